/*
 * matmul_lt.c - y = x W^T by cuBLASLt: bfloat16 in, float32 sums, float32 or bfloat16 out
 *
 * Layout:  see matmul.h: out = W^T x, all three stored by columns: A = W [n_in, n_out] transposed, B = x [n_in, n_rows],
 *          C = D = out [n_out, n_rows].
 * Numerics: algorithms that split a sum over blocks put the parts into the workspace and add them in a fixed order; those
 *          that add in place, in the order of arrival, are not asked for. Equal calls give equal bits.
 * Source:  cuBLAS library documentation 13.0, "Using the cublasLt API".
 */
#include <cublasLt.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/matmul.h"

enum {
    WORKSPACE_BYTES = 32 << 20,
    /* what the library's makers advise for compute capability 9.0 */ MAX_GUESSES = 16
};

struct cuda_matmul_lt {
    int device;
    cublasLtHandle_t handle;
    void *workspace;
};

/* One call as the library wants to hear of it. */
struct problem {
    cublasLtMatmulDescOpaque_t operation;
    cublasLtMatrixLayoutOpaque_t weight, x, out;
};

static status_t lt_status(cublasStatus_t status, const char *what)
{
    if (status == CUBLAS_STATUS_SUCCESS) {
        return status_ok();
    }
    return status_errorf(STATUS_INTERNAL, "cuda: matmul: %s: %s", what,
                         cublasLtGetStatusString(status));
}

uint64_t cuda_matmul_lt_version(void)
{
    return cublasLtGetVersion();
}

status_t cuda_matmul_lt_new(struct backend_stream *stream, struct cuda_matmul_lt **lt_out)
{
    struct cuda_matmul_lt *lt = calloc(1, sizeof *lt);
    if (lt == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "matmul: out of memory");
    }
    lt->device = stream->device;
    status_t s;
    TRY_GOTO(s, cuda_status(cudaSetDevice(lt->device), "set device", lt->device), fail);
    TRY_GOTO(
        s, cuda_status(cudaMalloc(&lt->workspace, WORKSPACE_BYTES), "matmul workspace", lt->device),
        fail);
    TRY_GOTO(s, lt_status(cublasLtCreate(&lt->handle), "create"), free_workspace);
    *lt_out = lt;
    return status_ok();

free_workspace:
    (void)cudaFree(lt->workspace);
fail:
    free(lt);
    return s;
}

void cuda_matmul_lt_free(struct cuda_matmul_lt *lt)
{
    if (lt != NULL) {
        (void)cublasLtDestroy(lt->handle);
        (void)cudaFree(lt->workspace);
        free(lt);
    }
}

// ---- problems ----

/* Sizes of a problem; ld in elements. */
struct extent {
    int32_t n_out, n_in, n_rows;
    int out_dtype;
    int64_t ld_weight, ld_x, ld_out;
};

static status_t describe(const struct extent *e, struct problem *p)
{
    const cublasOperation_t transposed = CUBLAS_OP_T;
    const cudaDataType_t out_type = e->out_dtype == DTYPE_F32 ? CUDA_R_32F : CUDA_R_16BF;
    const uint64_t n_out = (uint64_t)e->n_out, n_in = (uint64_t)e->n_in,
                   n_rows = (uint64_t)e->n_rows;
    TRY(lt_status(cublasLtMatmulDescInit(&p->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F),
                  "operation"));
    TRY(lt_status(cublasLtMatmulDescSetAttribute(&p->operation, CUBLASLT_MATMUL_DESC_TRANSA,
                                                 &transposed, sizeof transposed),
                  "operation"));
    TRY(lt_status(cublasLtMatrixLayoutInit(&p->weight, CUDA_R_16BF, n_in, n_out, e->ld_weight),
                  "weight"));
    TRY(lt_status(cublasLtMatrixLayoutInit(&p->x, CUDA_R_16BF, n_in, n_rows, e->ld_x), "x"));
    return lt_status(cublasLtMatrixLayoutInit(&p->out, out_type, n_out, n_rows, e->ld_out), "out");
}

/* The smallest ld whose rows are aligned to this many bytes, and to no more where that is less than 16. */
static int64_t ld_of(int32_t n_columns, int32_t alignment, int64_t element_bytes)
{
    const int64_t step = alignment > element_bytes ? alignment / element_bytes : 1;
    int64_t ld = (n_columns + step - 1) / step * step;
    if (alignment < 16 && ld * element_bytes % ((int64_t)alignment * 2) == 0) {
        ld += step;
    }
    return ld;
}

static struct extent extent_of(const struct cuda_matmul_shape *shape)
{
    return (struct extent){
        .n_out = shape->n_out,
        .n_in = shape->n_in,
        .n_rows = shape->n_rows > 0 ? shape->n_rows : CUDA_MATMUL_PINNED_ROWS,
        .out_dtype = shape->out_dtype,
        .ld_weight = ld_of(shape->n_in, 16, sizeof(uint16_t)),
        .ld_x = ld_of(shape->n_in, shape->alignment, sizeof(uint16_t)),
        .ld_out = ld_of(shape->n_out, shape->alignment, (int64_t)dtype_bytes(shape->out_dtype)),
    };
}

// ---- guesses ----

static status_t set(cublasLtMatmulPreference_t preference,
                    cublasLtMatmulPreferenceAttributes_t attribute, const void *value, size_t size)
{
    return lt_status(cublasLtMatmulPreferenceSetAttribute(preference, attribute, value, size),
                     "preference");
}

static status_t prefer(const struct cuda_matmul_shape *shape,
                       cublasLtMatmulPreferenceOpaque_t *preference)
{
    static const cublasLtMatmulPreferenceAttributes_t alignments[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    const size_t workspace = WORKSPACE_BYTES;
    const uint32_t alignment = (uint32_t)shape->alignment;
    const uint32_t reductions = shape->n_rows == 0 ? CUBLASLT_REDUCTION_SCHEME_NONE
                                                   : CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    TRY(lt_status(cublasLtMatmulPreferenceInit(preference), "preference"));
    TRY(set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace));
    TRY(set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reductions,
            sizeof reductions));
    for (size_t i = 0; i < sizeof alignments / sizeof alignments[0]; i++) {
        TRY(set(preference, alignments[i], &alignment, sizeof alignment));
    }
    return status_ok();
}

status_t cuda_matmul_lt_guess(struct cuda_matmul_lt *lt, const struct cuda_matmul_shape *shape,
                              int max, struct cuda_matmul_algorithm *algorithms_out, int *n_out)
{
    _Static_assert(sizeof(cublasLtMatmulAlgo_t) == sizeof algorithms_out->words, "algorithm");
    const struct extent extent = extent_of(shape);
    cublasLtMatmulPreferenceOpaque_t preference;
    cublasLtMatmulHeuristicResult_t guesses[MAX_GUESSES];
    struct problem p;
    int n_guesses = 0, n = 0;
    TRY(describe(&extent, &p));
    TRY(prefer(shape, &preference));
    const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
        lt->handle, &p.operation, &p.weight, &p.x, &p.out, &p.out, &preference,
        max < MAX_GUESSES ? max : MAX_GUESSES, guesses, &n_guesses);
    if (status != CUBLAS_STATUS_NOT_SUPPORTED) {
        TRY(lt_status(status, "heuristic"));
    }
    for (int i = 0; status == CUBLAS_STATUS_SUCCESS && i < n_guesses; i++) {
        if (guesses[i].state == CUBLAS_STATUS_SUCCESS) {
            memcpy(algorithms_out[n].words, &guesses[i].algo, sizeof guesses[i].algo);
            n++;
        }
    }
    if (n == 0) {
        return status_errorf(STATUS_NOT_FOUND,
                             "cuda: matmul: no algorithm for [%d, %d] and %d rows aligned to %d",
                             shape->n_out, shape->n_in, extent.n_rows, shape->alignment);
    }
    *n_out = n;
    return status_ok();
}

// ---- the call ----

status_t cuda_matmul_lt_run(struct cuda_matmul_lt *lt, struct backend_stream *stream,
                            const struct matmul_args *a,
                            const struct cuda_matmul_algorithm *algorithm)
{
    const struct extent extent = {
        .n_out = a->weight->n_out,
        .n_in = a->weight->n_in,
        .n_rows = a->n_rows,
        .out_dtype = a->out_dtype,
        .ld_weight = a->weight->ld,
        .ld_x = a->ld_x,
        .ld_out = a->ld_out,
    };
    const float one = 1.0f, zero = 0.0f;
    cublasLtMatmulAlgo_t algo;
    struct problem p;
    memcpy(&algo, algorithm->words, sizeof algo);
    TRY(describe(&extent, &p));
    const cublasStatus_t status = cublasLtMatmul(
        lt->handle, &p.operation, &one, a->weight->data, &p.weight, a->x, &p.x, &zero, a->out,
        &p.out, a->out, &p.out, &algo, lt->workspace, WORKSPACE_BYTES, stream->stream);
    return status_wrapf(lt_status(status, "run"), "[%d, %d], %d rows (device %d)", extent.n_out,
                        extent.n_in, extent.n_rows, stream->device);
}
