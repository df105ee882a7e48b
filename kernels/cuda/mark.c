/*
 * mark.c - events: places in a stream's order that the host can wait for
 */
#include <stdlib.h>

#include "kernels/cuda/cuda.h"

struct backend_mark {
    int device;
    cudaEvent_t event;
};

status_t cuda_mark_new(struct backend_stream *stream, struct backend_mark **mark_out)
{
    struct backend_mark *mark = calloc(1, sizeof *mark);
    if (mark == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for a mark");
    }
    mark->device = stream->device;
    status_t s;
    TRY_GOTO(s, cuda_status(cudaSetDevice(stream->device), "set device", stream->device),
             free_mark);
    TRY_GOTO(s,
             cuda_status(cudaEventCreateWithFlags(&mark->event, cudaEventDisableTiming), "mark",
                         stream->device),
             free_mark);
    *mark_out = mark;
    return status_ok();

free_mark:
    free(mark);
    return s;
}

void cuda_mark_free(struct backend_mark *mark)
{
    if (mark != NULL) {
        (void)cudaEventDestroy(mark->event);
        free(mark);
    }
}

status_t cuda_mark_set(struct backend_stream *stream, struct backend_mark *mark)
{
    return cuda_status(cudaEventRecord(mark->event, stream->stream), "mark", mark->device);
}

bool cuda_mark_passed(const struct backend_mark *mark)
{
    const bool passed = cudaEventQuery(mark->event) != cudaErrorNotReady;
    if (!passed) {
        (void)cudaGetLastError(); // no fault, but the runtime keeps it as one
    }
    return passed;
}

status_t cuda_mark_wait(struct backend_mark *mark)
{
    return cuda_status(cudaEventSynchronize(mark->event), "mark", mark->device);
}
