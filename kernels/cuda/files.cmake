# The files of the CUDA backend, for its plugin and for the simulator of tests/kernels/cuda_sim.
set(KVASIR_CUDA_FILES
    add_norm.cu
    all_reduce.cu
    attention.c
    attention_decode.cu
    attention_merge.cu
    attention_prefill.cu
    attention_split.c
    backend_cuda.c
    copy_strips.cu
    embedding.cu
    graph.c
    int8_rows.cu
    mark.c
    matmul.c
    matmul_i8_small.cu
    matmul_i8_tile.cu
    matmul_small.cu
    matmul_table.c
    matmul_tune.c
    matrix.c
    mem.c
    ordered_sum.cu
    peers.c
    rope_append.cu
    sample.cu
    status.c
    stream.c
    swiglu.cu
    ../cpu/convert.c
    ../int8_rows.c
    ../sample_check.c)

# Those that call cuBLASLt; the simulator has a plain C twin of each.
set(KVASIR_CUDA_LIBRARY_FILES
    matmul_lt.c)
