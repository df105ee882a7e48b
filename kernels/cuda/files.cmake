# The files of the CUDA backend, for its plugin and for the simulator of tests/kernels/cuda_sim.
set(KVASIR_CUDA_FILES
    backend_cuda.c
    graph.c
    matrix.c
    mem.c
    status.c
    stream.c
    ../cpu/convert.c)

# Those that call cuBLASLt; the simulator has a plain C twin of each.
set(KVASIR_CUDA_LIBRARY_FILES)
