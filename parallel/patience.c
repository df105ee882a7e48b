#include "parallel/patience.h"

#include <time.h>

#define N_SPINS        1000
#define FIRST_SLEEP_US 20

struct patience patience_new(uint32_t max_sleep_us)
{
    const struct patience patience = {.sleep_us = FIRST_SLEEP_US, .max_sleep_us = max_sleep_us};
    return patience;
}

void patience_pause(struct patience *patience)
{
    if (patience->n_spins < N_SPINS) {
        patience->n_spins++;
        return;
    }
    const uint32_t sleep_us =
        patience->sleep_us < patience->max_sleep_us ? patience->sleep_us : patience->max_sleep_us;
    const struct timespec pause = {.tv_sec = sleep_us / 1000000,
                                   .tv_nsec = (long)(sleep_us % 1000000) * 1000};
    (void)nanosleep(&pause, NULL); // waking early only means looking early
    patience->sleep_us = sleep_us < patience->max_sleep_us ? 2 * sleep_us : sleep_us;
}

int patience_wait_all(int n, MPI_Request *requests, uint32_t max_sleep_us)
{
    struct patience patience = patience_new(max_sleep_us);
    for (;;) {
        int done = 0;
        const int rc = MPI_Testall(n, requests, &done, MPI_STATUSES_IGNORE);
        if (rc != MPI_SUCCESS || done) {
            return rc;
        }
        patience_pause(&patience);
    }
}
