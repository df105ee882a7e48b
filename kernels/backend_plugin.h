/*
 * backend_plugin.h - what a program and a backend's shared library agree on
 *
 * What:      libraries of a device's vendor may be missing where the programs run, so programs have no link to them: a
 *            backend that needs them is a library of its own, kvasir-NAME.so, which exports kvasir_NAME_backend.
 * Thread:    any
 * Invariant: BACKEND_ABI changes with every change of backend.h that the size of its table does not show.
 */
#pragma once

#include "kernels/backend.h"

#define BACKEND_ABI ((uint64_t)2 << 32 | sizeof(struct backend))

/* The library's table; NULL where the program was built with another backend.h. Static. */
typedef const struct backend *backend_entry_fn(uint64_t abi);

const struct backend *kvasir_cuda_backend(uint64_t abi);
