/*
 * leader_beams.h - what a beam search ended with, as messages to the coordinator
 *
 * What:      the n best as the sequences from the request's on, best first. Long ones come in several messages, so that none is
 *            larger than the link takes.
 * Thread:    owner:leader
 * Errors:    of the link alone. Where fewer sequences ended than are asked for, and where there is no memory, the request is told.
 */
#pragma once

#include "worker/leader_link.h"
#include "worker/scheduler.h"

/* output->beams is not NULL. */
MUST_USE status_t leader_beams_say(struct leader_link *link, const struct scheduler_output *output,
                                   const struct wire_load *load);
