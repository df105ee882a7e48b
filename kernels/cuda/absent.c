/* Attention, until its files are listed: weak, so that it gives way to them. */
#include "kernels/cuda/cuda.h"

#define WEAK __attribute__((weak))
#define ABSENT(name, ...)                                  \
    WEAK status_t name(__VA_ARGS__)                        \
    {                                                      \
        return status_errorf(STATUS_UNIMPLEMENTED, #name); \
    }

#pragma GCC diagnostic ignored "-Wunused-parameter"
ABSENT(cuda_attention_plan_new, struct backend_stream *stream, const struct attention_shape *shape,
       struct attention_plan **plan_out)
ABSENT(cuda_attention_plan_set, struct backend_stream *stream, struct attention_plan *plan,
       const struct attention_seq *seqs, int32_t n_seqs)
ABSENT(cuda_attention, struct backend_stream *stream, struct attention_plan *plan,
       const struct attention_args *a)

WEAK void cuda_attention_plan_free(struct attention_plan *plan)
{
}
