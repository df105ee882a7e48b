/*
 * cluster.h - messages of kvasir.v1.Cluster as plain structs (see inference.h for the rules)
 */
#pragma once

#include "base/arena.h"
#include "base/bytes.h"

enum wire_group_state {
    WIRE_GROUP_STARTING,
    WIRE_GROUP_LOADING,
    WIRE_GROUP_READY,
    WIRE_GROUP_DRAINING,
    WIRE_GROUP_LOST,
};

const char *wire_group_state_name(int state); /* "starting", ... */

struct wire_group_status {
    uint32_t group_id;
    int state; /* enum wire_group_state */
    uint32_t generation;
    uint32_t n_ranks;
    const char *host, *device;
    uint32_t running, waiting;
    uint64_t kv_blocks_used, kv_blocks_total;
    double tokens_per_second; /* generated, over the last seconds */
    uint64_t restarts;
    double heartbeat_age_seconds;
};

struct wire_cluster_status {
    const char *model;
    const char *version;
    bool serving, draining;
    double uptime_seconds;
    const struct wire_group_status *groups;
    size_t n_groups;
    uint32_t requests_running, requests_waiting; /* in the coordinator: admitted, not finished */
    uint64_t requests_total, prompt_tokens_total, generation_tokens_total;
    double kv_replication_factor;
    double kv_bytes_per_token;
};

/* GetStatusRequest is empty. */
MUST_USE status_t wire_cluster_status_pack(const struct wire_cluster_status *m, struct bytes *out);
MUST_USE status_t wire_cluster_status_unpack(const uint8_t *data, size_t size, struct arena *arena,
                                             struct wire_cluster_status *out);

/* GetPlanResponse: the JSON object that `kvasir plan --json` prints. GetPlanRequest is empty. */
MUST_USE status_t wire_plan_response_pack(const char *json, struct bytes *out);
MUST_USE status_t wire_plan_response_unpack(const uint8_t *data, size_t size, struct arena *arena,
                                            const char **json_out);

/* WatchStatusRequest: milliseconds between two messages at most; 0: the server's choice. */
MUST_USE status_t wire_watch_request_pack(uint32_t interval_ms, struct bytes *out);
MUST_USE status_t wire_watch_request_unpack(const uint8_t *data, size_t size, struct arena *arena,
                                            uint32_t *interval_ms_out);

/* DrainRequest: seconds to wait for running requests; 0: as configured. */
MUST_USE status_t wire_drain_request_pack(double grace_seconds, struct bytes *out);
MUST_USE status_t wire_drain_request_unpack(const uint8_t *data, size_t size, struct arena *arena,
                                            double *grace_seconds_out);

/* DrainResponse: requests that had to be ended. */
MUST_USE status_t wire_drain_response_pack(uint32_t requests_ended, struct bytes *out);
MUST_USE status_t wire_drain_response_unpack(const uint8_t *data, size_t size, struct arena *arena,
                                             uint32_t *requests_ended_out);
