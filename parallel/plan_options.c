#include "parallel/plan_options.h"

status_t plan_options_make(const struct plan_options *options, const struct model_spec *spec,
                           struct plan *plan_out)
{
    const struct plan_request request = {
        .tp = (int32_t)options->tp,
        .pp = (int32_t)options->pp,
        .placement = options->placement,
    };
    return plan_make(spec, &request, plan_out);
}
