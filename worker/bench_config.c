#include "worker/bench_config.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>

#include "base/dtype.h"
#include "worker/host_cores.h"

#define AT(field) offsetof(struct bench_config, field)

const struct config_row bench_config_rows[] = {
    {.name = "device",
     .type = CONFIG_CHOICE,
     .offset = AT(device),
     .default_text = "auto",
     .choices = "auto|cpu|cuda",
     .help = "where to compute"},
    {.name = "load-format",
     .type = CONFIG_CHOICE,
     .offset = AT(load),
     .default_text = "auto",
     .choices = "auto|dummy",
     .help = "auto reads safetensors; dummy makes weights up from config.json"},
    {.name = "kv-placement",
     .type = CONFIG_CHOICE,
     .offset = AT(placement),
     .default_text = "auto",
     .choices = "auto|share|replicate|token",
     .help = "KV heads on several ranks: shared by sequence, copied, or split by token"},
    {.name = "dtype",
     .type = CONFIG_CHOICE,
     .offset = AT(dtype),
     .default_text = "auto",
     .choices = DTYPE_CHOICES,
     .help = "type of the weights in memory; auto: the checkpoint's"},
    {.name = "quantization",
     .type = CONFIG_CHOICE,
     .offset = AT(quantization),
     .default_text = "none",
     .choices = QUANTIZATION_CHOICES,
     .help = "weights of the layers in 8 bits; w8a8: what they are multiplied with too"},
    {.name = "kv-cache-dtype",
     .type = CONFIG_CHOICE,
     .offset = AT(kv_dtype),
     .default_text = "auto",
     .choices = KV_DTYPE_CHOICES,
     .help = "type of stored keys and values; auto: as --dtype"},
    {.name = "batch",
     .type = CONFIG_STRING,
     .offset = AT(batch),
     .default_text = "1",
     .help = "engine: sequences at once; several sizes with commas: 1,16,64"},
    {.name = "prompt",
     .type = CONFIG_INT,
     .offset = AT(prompt),
     .default_text = "512",
     .min = 1,
     .max = 1e8,
     .help = "engine: tokens of each prompt"},
    {.name = "generate",
     .type = CONFIG_INT,
     .offset = AT(generate),
     .default_text = "64",
     .min = 1,
     .max = 1e8,
     .help = "engine: tokens generated of each"},
    {.name = "max-num-batched-tokens",
     .type = CONFIG_INT,
     .offset = AT(max_num_batched_tokens),
     .default_text = "2048",
     .min = 1,
     .max = 1e6,
     .help = "tokens of one step"},
    {.name = "steps-ahead",
     .type = CONFIG_INT,
     .offset = AT(steps_ahead),
     .default_text = "1",
     .min = 0,
     .max = 3,
     .help = "engine: steps prepared while one is computed"},
    {.name = "tokens",
     .type = CONFIG_STRING,
     .offset = AT(tokens_file),
     .help = "perplexity: file of token ids as decimal text"},
    {.name = "context",
     .type = CONFIG_INT,
     .offset = AT(context),
     .default_text = "0",
     .min = 0,
     .max = 1e8,
     .help = "perplexity: tokens of a window; 0: 2048, or the model's when it has less"},
    {.name = "stride",
     .type = CONFIG_INT,
     .offset = AT(stride),
     .default_text = "0",
     .min = 0,
     .max = 1e8,
     .help = "perplexity: tokens from one window to the next; 0: windows do not overlap"},
    {.name = "threads",
     .type = CONFIG_INT,
     .offset = AT(threads),
     .default_text = "0",
     .min = 0,
     .max = 1024,
     .help = "threads of a rank; 0: cores / ranks of the host"},
    {.name = "pin-threads",
     .type = CONFIG_CHOICE,
     .offset = AT(pin_threads),
     .default_text = "auto",
     .choices = HOST_PINNING_CHOICES,
     .help = "each thread to a core; auto: when the ranks' threads fill the cores they may use"},
    {.name = "seed",
     .type = CONFIG_INT,
     .offset = AT(seed),
     .default_text = "0",
     .min = 0,
     .max = 0x1p53,
     .help = "of made-up weights and prompts"},
    {.name = "gpu-memory-utilization",
     .type = CONFIG_FLOAT,
     .offset = AT(gpu_memory_utilization),
     .default_text = "0.9",
     .min = 0.01,
     .max = 1,
     .help = "share of a GPU's memory that may be used"},
    {.name = "cache-dir",
     .type = CONFIG_STRING,
     .offset = AT(cache_dir),
     .help = "keeps what a GPU measured of its ways to multiply"},
    {.name = "trace",
     .type = CONFIG_BOOL,
     .offset = AT(trace),
     .default_text = "false",
     .help = "engine: time each op; on a GPU waits for each, which slows small ones"},
    {.name = "floor",
     .type = CONFIG_BOOL,
     .offset = AT(floor),
     .default_text = "false",
     .help = "engine: measure a copy and a square matmul first"},
    {.name = "log-level",
     .type = CONFIG_STRING,
     .offset = AT(log_level),
     .default_text = "warn",
     .help = "error, warn, info, debug or trace"},
};

const size_t bench_config_n_rows = sizeof bench_config_rows / sizeof bench_config_rows[0];

status_t bench_config_batches(const struct bench_config *config, int32_t most,
                              int32_t batches_out[BENCH_MAX_BATCHES], int32_t *n_out)
{
    int32_t n = 0;
    for (const char *at = config->batch; *at != '\0';) {
        char *end;
        errno = 0;
        const long batch = strtol(at, &end, 10);
        if (errno != 0 || end == at || (*end != ',' && *end != '\0') || batch < 1 || batch > most ||
            n == BENCH_MAX_BATCHES) {
            return status_errorf(STATUS_INVALID_ARGUMENT,
                                 "--batch %s: at most %d numbers from 1 to %d", config->batch,
                                 BENCH_MAX_BATCHES, most);
        }
        batches_out[n++] = (int32_t)batch;
        at = *end == ',' ? end + 1 : end;
    }
    if (n == 0) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "--batch: at least one number");
    }
    *n_out = n;
    return status_ok();
}
