/*
 * fuzz_config.c - any config.json: refused with a reason, or a model that a plan can be made for
 */
#include <stdlib.h>
#include <string.h>

#include "parallel/plan.h"
#include "parallel/spec.h"
#include "tests/fuzz/fuzz_driver.h"

static void require(bool holds)
{
    if (!holds) {
        abort();
    }
}

static void check_spec(const struct model_spec *spec)
{
    require(spec->n_layers >= 1 && spec->n_layers <= SPEC_MAX_LAYERS);
    require(spec->head_dim % 2 == 0 && spec->rotary_dim <= spec->head_dim);
    require(spec->n_eos >= 0 && spec->n_eos <= SPEC_MAX_EOS);
    require(spec->norm_eps > 0 && spec->rope_theta > 0);
    require(spec_parameters(spec) > 0 && spec_kv_bytes_per_token(spec, DTYPE_F32) >= 0);
    for (int32_t i = 0; i < spec->n_layers; i++) {
        const int32_t n = spec->layers[i].n_kv_heads;
        require(n >= 0 && (n == 0 || spec->n_heads % n == 0));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct model_spec spec;
    status_t s = spec_parse((const char *)data, size, "config.json", &spec);
    if (!status_is_ok(&s)) {
        require(s.code == STATUS_DATA_LOSS && strstr(s.msg, "config.json") != NULL);
        return 0;
    }
    check_spec(&spec);
    const struct plan_request request = {.tp = 1 + (int32_t)(size % 4), .pp = 1};
    struct plan plan;
    s = plan_make(&spec, &request, &plan);
    if (status_is_ok(&s)) {
        plan_destroy(&plan);
    }
    spec_destroy(&spec);
    return 0;
}
