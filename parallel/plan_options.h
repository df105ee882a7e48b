/*
 * plan_options.h - the settings a plan is made from, the same for every program that makes one
 *
 * What:      the rows of -tp, -pp, --kv-placement, --dtype, --quantization and --kv-cache-dtype, for the table of a struct whose member
 *            `plan` is a struct plan_options.
 * Thread:    any
 */
#pragma once

#include <stddef.h>

#include "base/config.h"
#include "base/dtype.h"
#include "parallel/plan.h"

struct plan_options {
    int64_t tp, pp;      /* tensor-parallel ranks, pipeline stages */
    int placement;       /* enum plan_placement: the choices are in its order */
    int dtype, kv_dtype; /* enum dtype_wanted */
    int quantization;    /* enum quantization */
};

/* plan_make for these settings. */
MUST_USE status_t plan_options_make(const struct plan_options *options,
                                    const struct model_spec *spec, struct plan *plan_out);

#define PLAN_OPTIONS_ROWS(type_)                                                                   \
    {.name = "tensor-parallel-size",                                                               \
     .alias = "-tp",                                                                               \
     .type = CONFIG_INT,                                                                           \
     .offset = offsetof(type_, plan.tp),                                                           \
     .default_text = "1",                                                                          \
     .min = 1,                                                                                     \
     .max = 1024,                                                                                  \
     .help = "ranks that share every layer"},                                                      \
        {.name = "pipeline-parallel-size",                                                         \
         .alias = "-pp",                                                                           \
         .type = CONFIG_INT,                                                                       \
         .offset = offsetof(type_, plan.pp),                                                       \
         .default_text = "1",                                                                      \
         .min = 1,                                                                                 \
         .max = 1024,                                                                              \
         .help = "stages of consecutive layers"},                                                  \
        {.name = "kv-placement",                                                                   \
         .type = CONFIG_CHOICE,                                                                    \
         .offset = offsetof(type_, plan.placement),                                                \
         .default_text = "auto",                                                                   \
         .choices = "auto|share|replicate|token",                                                  \
         .help = "KV heads on several ranks: shared by sequence, copied, or split by token"},      \
        {.name = "dtype",                                                                          \
         .type = CONFIG_CHOICE,                                                                    \
         .offset = offsetof(type_, plan.dtype),                                                    \
         .default_text = "auto",                                                                   \
         .choices = DTYPE_CHOICES,                                                                 \
         .help = "type of the weights in memory; auto: the checkpoint's"},                         \
        {.name = "quantization",                                                                   \
         .type = CONFIG_CHOICE,                                                                    \
         .offset = offsetof(type_, plan.quantization),                                             \
         .default_text = "none",                                                                   \
         .choices = QUANTIZATION_CHOICES,                                                          \
         .help = "weights of the layers in 8 bits; w8a8: what they are multiplied with too"},      \
    {                                                                                              \
        .name = "kv-cache-dtype", .type = CONFIG_CHOICE, .offset = offsetof(type_, plan.kv_dtype), \
        .default_text = "auto", .choices = KV_DTYPE_CHOICES,                                       \
        .help = "type of stored keys and values; auto: as --dtype; int8: with a scale a row"       \
    }
