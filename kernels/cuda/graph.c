/*
 * graph.c - ops recorded by capturing the stream, replayed in one call
 *
 * Mapping: the capture is thread-local: what other threads do to the device meanwhile (allocate, synchronise) neither
 *          enters the graph nor ends the capture.
 */
#include <stdlib.h>

#include "kernels/cuda/cuda.h"

struct backend_graph {
    cudaGraphExec_t exec;
};

status_t cuda_graph_begin(struct backend_stream *stream)
{
    TRY(cuda_status(cudaSetDevice(stream->device), "set device", stream->device));
    return cuda_status(cudaStreamBeginCapture(stream->stream, cudaStreamCaptureModeThreadLocal),
                       "graph begin", stream->device);
}

status_t cuda_graph_end(struct backend_stream *stream, struct backend_graph **graph_out)
{
    cudaGraph_t recorded = NULL;
    TRY(cuda_status(cudaStreamEndCapture(stream->stream, &recorded), "graph end", stream->device));
    status_t s;
    struct backend_graph *graph = calloc(1, sizeof *graph);
    if (graph == NULL) {
        s = status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for a graph");
        goto free_recorded;
    }
    TRY_GOTO(s,
             cuda_status(cudaGraphInstantiate(&graph->exec, recorded, 0), "graph instantiate",
                         stream->device),
             free_graph);
    (void)cudaGraphDestroy(recorded); // the executable graph holds all it needs
    *graph_out = graph;
    return status_ok();

free_graph:
    free(graph);
free_recorded:
    (void)cudaGraphDestroy(recorded);
    return s;
}

status_t cuda_graph_run(struct backend_stream *stream, struct backend_graph *graph)
{
    return cuda_status(cudaGraphLaunch(graph->exec, stream->stream), "graph run", stream->device);
}

void cuda_graph_free(struct backend_graph *graph)
{
    if (graph != NULL) {
        (void)cudaGraphExecDestroy(graph->exec);
        free(graph);
    }
}
