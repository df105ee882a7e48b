/* Ops that are not written yet: weak, so that they give way to the real ones. */
#include "kernels/cuda/cuda.h"

#define WEAK __attribute__((weak))
#define ABSENT(name, ...)                                  \
    WEAK status_t name(__VA_ARGS__)                        \
    {                                                      \
        return status_errorf(STATUS_UNIMPLEMENTED, #name); \
    }

#pragma GCC diagnostic ignored "-Wunused-parameter"
ABSENT(cuda_embedding, struct backend_stream *stream, const struct embedding_args *a)
ABSENT(cuda_matmul, struct backend_stream *stream, const struct matmul_args *a)
ABSENT(cuda_add_norm, struct backend_stream *stream, const struct add_norm_args *a)
ABSENT(cuda_rope_append, struct backend_stream *stream, const struct rope_append_args *a)
ABSENT(cuda_attention_plan_new, struct backend_stream *stream, const struct attention_shape *shape,
       struct attention_plan **plan_out)
ABSENT(cuda_attention_plan_set, struct backend_stream *stream, struct attention_plan *plan,
       const struct attention_seq *seqs, int32_t n_seqs)
ABSENT(cuda_attention, struct backend_stream *stream, struct attention_plan *plan,
       const struct attention_args *a)
ABSENT(cuda_swiglu, struct backend_stream *stream, const struct swiglu_args *a)
ABSENT(cuda_copy_strips, struct backend_stream *stream, const struct strip *strips, int32_t n)
ABSENT(cuda_sample, struct backend_stream *stream, const struct sample_args *a)

WEAK void cuda_attention_plan_free(struct attention_plan *plan)
{
}

WEAK void cuda_matmul_free(struct cuda_matmul *matmul)
{
}

WEAK void cuda_sample_free(struct cuda_sampler *sampler)
{
}
