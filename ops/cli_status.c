/*
 * cli_status.c - kvasir status: one look at a running server
 */
#include <jansson.h>

#include "ops/cli.h"
#include "ops/client.h"

struct status_options {
    const char *address;
    bool json;
};

static const struct config_row rows[] = {
    {.name = "address",
     .type = CONFIG_STRING,
     .offset = offsetof(struct status_options, address),
     .default_text = "127.0.0.1:50051",
     .help = "server to ask, HOST:PORT or unix:PATH"},
    {.name = "json",
     .type = CONFIG_BOOL,
     .offset = offsetof(struct status_options, json),
     .default_text = "false",
     .help = "print JSON"},
};

static json_t *group_json(const struct wire_group_status *g)
{
    return json_pack(
        "{sisssisisssssisisIsIsfsIsf}", "group", (int)g->group_id, "state",
        wire_group_state_name(g->state), "generation", (int)g->generation, "ranks", (int)g->n_ranks,
        "host", g->host, "device", g->device, "running", (int)g->running, "waiting",
        (int)g->waiting, "kv_blocks_used", (json_int_t)g->kv_blocks_used, "kv_blocks_total",
        (json_int_t)g->kv_blocks_total, "tokens_per_second", g->tokens_per_second, "restarts",
        (json_int_t)g->restarts, "heartbeat_age_seconds", g->heartbeat_age_seconds);
}

static void print_json(const struct wire_cluster_status *status)
{
    json_t *groups = json_array();
    for (size_t i = 0; i < status->n_groups; i++) {
        json_array_append_new(groups, group_json(&status->groups[i]));
    }
    json_t *object =
        json_pack("{sssssbsbsfsisisIsIsIsfsfso}", "model", status->model, "version",
                  status->version, "serving", status->serving, "draining", status->draining,
                  "uptime_seconds", status->uptime_seconds, "requests_running",
                  (int)status->requests_running, "requests_waiting", (int)status->requests_waiting,
                  "requests_total", (json_int_t)status->requests_total, "prompt_tokens_total",
                  (json_int_t)status->prompt_tokens_total, "generation_tokens_total",
                  (json_int_t)status->generation_tokens_total, "kv_replication_factor",
                  status->kv_replication_factor, "kv_bytes_per_token", status->kv_bytes_per_token,
                  "groups", groups);
    json_dumpf(object, stdout, JSON_REAL_PRECISION(9));
    fputc('\n', stdout);
    json_decref(object);
}

static void print_text(const struct wire_cluster_status *status)
{
    printf("model %s, version %s, up %.0f s, %s\n", status->model, status->version,
           status->uptime_seconds,
           status->draining  ? "draining"
           : status->serving ? "serving"
                             : "not serving");
    printf("requests: %u running, %u waiting, %llu so far; tokens: %llu prompt, %llu generated\n",
           status->requests_running, status->requests_waiting,
           (unsigned long long)status->requests_total,
           (unsigned long long)status->prompt_tokens_total,
           (unsigned long long)status->generation_tokens_total);
    printf("KV cache: %.0f bytes a token, replication factor %.3f\n", status->kv_bytes_per_token,
           status->kv_replication_factor);
    printf("\n GROUP  STATE     GEN  RANKS  RUN  WAIT   KV%%    TOK/S  RESTARTS  HOST\n");
    for (size_t i = 0; i < status->n_groups; i++) {
        const struct wire_group_status *g = &status->groups[i];
        const double kv = g->kv_blocks_total > 0
                              ? 100.0 * (double)g->kv_blocks_used / (double)g->kv_blocks_total
                              : 0;
        printf("%6u  %-9s %3u  %5u  %3u  %4u  %4.1f  %7.1f  %8llu  %s (%s)\n", g->group_id,
               wire_group_state_name(g->state), g->generation, g->n_ranks, g->running, g->waiting,
               kv, g->tokens_per_second, (unsigned long long)g->restarts, g->host, g->device);
    }
}

static status_t show(const struct status_options *options)
{
    struct arena arena;
    struct wire_cluster_status status;
    struct client *client = NULL;
    arena_init(&arena, 16u << 20);
    TRY(client_open(options->address, &client));
    const status_t s = client_status(client, &arena, &status);
    if (s.code == STATUS_OK) {
        if (options->json) {
            print_json(&status);
        } else {
            print_text(&status);
        }
    }
    client_close(client);
    arena_destroy(&arena);
    return s;
}

int cli_status(const struct cli_command *command, int argc, char **argv)
{
    struct status_options options;
    struct config_set set;
    const struct cli_table table = CLI_TABLE(rows, &options);
    const int code = cli_load(command, &table, &set, argc, argv);
    if (code >= 0) {
        return code;
    }
    const status_t s = show(&options);
    config_destroy(&set);
    return cli_report(&s);
}
