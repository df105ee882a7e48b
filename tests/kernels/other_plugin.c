/*
 * other_plugin.c - kvasir-other.so: a backend's library that was built with another backend.h
 */
#include "kernels/backend_plugin.h"

const struct backend *kvasir_other_backend(uint64_t abi);

const struct backend *kvasir_other_backend(uint64_t abi)
{
    (void)abi;
    return NULL;
}
