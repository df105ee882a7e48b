/*
 * doctor_model.h - what `kvasir doctor MODEL` looks at in a model directory
 *
 * What:      every file that serving would read, each judged alone, so that one run names all that is wrong: config.json
 *            and generation_config.json, the weights' headers against what the model needs, the tokenizer against the
 *            model's vocabulary, the chat template, and the memory it takes against what the host has. With
 *            scan_weights also every number of the weights.
 *            Nothing of the directory is run: no code, no pickle, no template.
 * Thread:    owner:main
 * Errors:    findings, never a status.
 */
#pragma once

#include <stdbool.h>

#include "ops/doctor_finding.h"

struct doctor_model_options {
    const char *dir;
    bool scan_weights; /* reads all of them: as slow as the disk */
};

void doctor_model_run(const struct doctor_model_options *options, struct doctor_findings *list);
