/*
 * bench_engine.c - kvasir-worker --bench over CUDA's kernels on the simulator: that it does run
 *
 * usage: bench_engine PART MODEL [options of kvasir-worker --bench]
 */
#include "tests/reference/engine_backend.h"
#include "worker/bench.h"

int main(int argc, char **argv)
{
    const struct backend *backend = NULL;
    const status_t s = engine_backend("cuda", &backend);
    if (s.code != STATUS_OK) {
        status_print(stderr, &s);
        return status_exit_code(&s);
    }
    return bench_main(argc, argv, backend);
}
