#include "coordinator/config_table.h"

#include <string.h>

#define AT(field) offsetof(struct coordinator_config, field)

/* A number below was meant in GiB, as other servers take it. */
#define MIN_SWAP_BYTES (64 << 10)

static const struct config_row rows[] = {
    PLAN_OPTIONS_ROWS(struct coordinator_config),
    {.name = "replicas",
     .type = CONFIG_INT,
     .offset = AT(replicas),
     .default_text = "1",
     .help = "worker groups to launch, each a whole model",
     .min = 1,
     .max = 64},
    {.name = "listen",
     .type = CONFIG_STRING,
     .offset = AT(listen),
     .default_text = "127.0.0.1:50051",
     .help = "gRPC address: HOST:PORT (port 0: any) or unix:PATH"},
    {.name = "http",
     .type = CONFIG_STRING,
     .offset = AT(http),
     .default_text = "off",
     .help = "address of /metrics, /livez and /readyz: HOST:PORT or off"},
    {.name = "device",
     .type = CONFIG_CHOICE,
     .offset = AT(device),
     .default_text = "auto",
     .choices = "auto|cpu|cuda",
     .help = "where workers compute"},
    {.name = "load-format",
     .type = CONFIG_CHOICE,
     .offset = AT(load_format),
     .default_text = "auto",
     .choices = "auto|dummy",
     .help = "auto reads safetensors; dummy makes weights up from config.json"},
    {.name = "seed",
     .type = CONFIG_INT,
     .offset = AT(seed),
     .default_text = "0",
     .help = "picks the weights of --load-format dummy",
     .min = 0,
     .max = 0x1p53},
    {.name = "launcher",
     .type = CONFIG_CHOICE,
     .offset = AT(launcher),
     .default_text = "none",
     .choices = "none|mpirun",
     .help = "mpirun starts and restarts the workers; none waits for them"},
    {.name = "mpirun",
     .type = CONFIG_STRING,
     .offset = AT(mpirun),
     .default_text = "mpirun",
     .help = "the program --launcher mpirun runs"},
    {.name = "mpirun-args",
     .type = CONFIG_STRING,
     .offset = AT(mpirun_args),
     .help = "more arguments for it, separated by blanks (='--hostfile F')"},
    {.name = "worker",
     .type = CONFIG_STRING,
     .offset = AT(worker),
     .help = "the worker program; default: kvasir-worker beside this one"},
    {.name = "max-model-len",
     .type = CONFIG_INT,
     .offset = AT(max_model_len),
     .default_text = "0",
     .help = "longest prompt + completion in tokens; 0: the model's",
     .min = 0,
     .max = 16777216},
    {.name = "max-num-seqs",
     .type = CONFIG_INT,
     .offset = AT(max_num_seqs),
     .default_text = "64",
     .help = "sequences a worker group computes at once",
     .min = 1,
     .max = 65536},
    {.name = "max-num-batched-tokens",
     .type = CONFIG_INT,
     .offset = AT(max_num_batched_tokens),
     .default_text = "512",
     .help = "tokens of one step, prompts and completions together",
     .min = 1,
     .max = 1048576},
    {.name = "kv-cache-memory",
     .type = CONFIG_INT,
     .offset = AT(kv_cache_memory_bytes),
     .default_text = "0",
     .alias = "--kv-cache-memory-bytes",
     .help = "bytes of KV cache per rank (4G, 512M); 0: as free memory allows",
     .min = 0,
     .max = 0x1p50},
    {.name = "swap-space",
     .type = CONFIG_INT,
     .offset = AT(swap_space_bytes),
     .default_text = "0",
     .help =
         "bytes of host memory per rank (4G) for KV of preempted requests, where moving it costs "
         "less than computing it again; 0: none",
     .min = 0,
     .max = 0x1p50},
    {.name = "gpu-memory-utilization",
     .type = CONFIG_FLOAT,
     .offset = AT(gpu_memory_utilization),
     .default_text = "0.9",
     .help = "part of a GPU's memory that its ranks use: weights, buffers, KV cache",
     .min = 0.01,
     .max = 1},
    {.name = "determinism",
     .type = CONFIG_CHOICE,
     .offset = AT(determinism),
     .default_text = "default",
     .choices = "default|batch|strict",
     .help = "batch: no bit of an answer depends on the requests beside it; slower on GPUs"},
    {.name = "comm",
     .type = CONFIG_CHOICE,
     .offset = AT(comm),
     .default_text = "auto",
     .choices = "auto|nccl|staged",
     .help = "between GPUs: nccl, or staged by way of the hosts; auto: nccl where it can be"},
    {.name = "collective-timeout",
     .type = CONFIG_FLOAT,
     .offset = AT(collective_timeout_s),
     .default_text = "30",
     .help = "seconds after which GPUs that wait for each other are given up, with their group",
     .min = 0.1,
     .max = 86400},
    {.name = "enable-prefix-caching",
     .type = CONFIG_BOOL,
     .offset = AT(enable_prefix_caching),
     .default_text = "true",
     .help = "keep KV of past sequences and begin behind prefixes that are there"},
    {.name = "threads",
     .type = CONFIG_INT,
     .offset = AT(threads),
     .default_text = "0",
     .help = "compute threads per rank; 0: cores / ranks on the host",
     .min = 0,
     .max = 4096},
    {.name = "served-model-name",
     .type = CONFIG_STRING,
     .offset = AT(served_model_name),
     .help = "name requests use; default: the directory's name"},
    {.name = "max-num-queued-reqs",
     .type = CONFIG_INT,
     .offset = AT(max_num_queued_reqs),
     .default_text = "1024",
     .help = "requests that may wait; more are refused at once",
     .min = 1,
     .max = 1048576},
    {.name = "max-num-queued-tokens",
     .type = CONFIG_INT,
     .offset = AT(max_num_queued_tokens),
     .default_text = "1M",
     .help = "prompt tokens that may wait",
     .min = 1,
     .max = 0x1p40},
    {.name = "max-queue-time",
     .type = CONFIG_FLOAT,
     .offset = AT(max_queue_time_s),
     .default_text = "0",
     .help = "seconds that a request may be expected to wait, from measured rates; 0: no limit",
     .min = 0,
     .max = 86400},
    {.name = "max-completion-tokens",
     .type = CONFIG_INT,
     .offset = AT(max_completion_tokens),
     .default_text = "1M",
     .help = "tokens that the samples of one request may ask for together: n x max_tokens",
     .min = 1,
     .max = 0x1p40},
    {.name = "max-unread-bytes",
     .type = CONFIG_INT,
     .offset = AT(max_unread_bytes),
     .default_text = "1M",
     .help = "bytes of a stream that its client may leave unread before it is ended",
     .min = 65536,
     .max = 0x1p30},
    {.name = "shutdown-timeout",
     .type = CONFIG_FLOAT,
     .offset = AT(shutdown_timeout_s),
     .default_text = "30",
     .help = "seconds that requests in flight may finish in after SIGTERM",
     .min = 0,
     .max = 86400},
    {.name = "heartbeat-timeout",
     .type = CONFIG_FLOAT,
     .offset = AT(heartbeat_timeout_s),
     .default_text = "10",
     .help = "seconds of silence after which a worker group counts as lost",
     .min = 0.1,
     .max = 3600},
    {.name = "step-timeout",
     .type = CONFIG_FLOAT,
     .offset = AT(step_timeout_s),
     .default_text = "600",
     .help = "seconds after which a step that does not end makes its group count as lost",
     .min = 0.1,
     .max = 86400},
    {.name = "join-token-file",
     .type = CONFIG_STRING,
     .offset = AT(join_token_file),
     .help = "file with the secret that workers must show (mode 0600)"},
    {.name = "log-level",
     .type = CONFIG_CHOICE,
     .offset = AT(log_level),
     .default_text = "warn",
     .choices = "error|warn|info|debug|trace",
     .help = "how much is logged to stderr"},
};

const struct config_row *config_table_rows(size_t *n_rows_out)
{
    *n_rows_out = sizeof rows / sizeof rows[0];
    return rows;
}

static status_t check_model(const struct config_set *set, struct coordinator_config *config)
{
    if (set->n_positional == 0) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "no MODEL given" STATUS_FIX
                             "name a model directory (config.json, tokenizer.json, *.safetensors)");
    }
    if (set->n_positional > 1) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "one MODEL is served, also given: %s",
                             set->positional[1]);
    }
    config->model = set->positional[0];
    return status_ok();
}

status_t config_table_check(const struct config_set *set, struct coordinator_config *config)
{
    TRY(check_model(set, config));
    if (config->served_model_name != NULL && config->served_model_name[0] == '\0') {
        return status_errorf(STATUS_INVALID_ARGUMENT, "--served-model-name: is empty");
    }
    if (config->determinism == CONFIG_TABLE_DETERMINISM_STRICT) {
        return status_errorf(STATUS_UNIMPLEMENTED,
                             "--determinism strict is not built in this version" STATUS_FIX
                             "--determinism batch");
    }
    if (config->swap_space_bytes > 0 && config->swap_space_bytes < MIN_SWAP_BYTES) {
        return status_errorf(
            STATUS_INVALID_ARGUMENT,
            "--swap-space %lld: is in bytes, and holds no KV to speak of" STATUS_FIX
            "--swap-space %lldG",
            (long long)config->swap_space_bytes, (long long)config->swap_space_bytes);
    }
    if (config->launcher == CONFIG_TABLE_LAUNCHER_NONE && config->replicas > 1) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "--replicas %lld: with --launcher none nothing is launched" STATUS_FIX
                             "leave it out and start as many worker groups as you like",
                             (long long)config->replicas);
    }
    return status_ok();
}
