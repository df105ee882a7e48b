/*
 * patience.h - waiting for other ranks without burning a core
 *
 * What:      a look, a short spin, then sleeps that grow longer up to a limit.
 * Thread:    owner:main for patience_wait_all, which calls MPI.
 * Errors:    patience_wait_all returns what MPI said.
 */
#pragma once

#include <mpi.h>
#include <stdint.h>

struct patience {
    uint32_t n_spins;
    uint32_t sleep_us, max_sleep_us;
};

struct patience patience_new(uint32_t max_sleep_us);
void patience_pause(struct patience *patience);

/* MPI_Waitall that sleeps. */
int patience_wait_all(int n, MPI_Request *requests, uint32_t max_sleep_us);
