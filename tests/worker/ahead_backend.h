/*
 * ahead_backend.h - the backend test_engine_ahead runs on: one source file for each
 */
#pragma once

#include "kernels/backend.h"

const struct backend *ahead_backend(void);
