/*
 * fuzz_driver.h - runs a fuzz target without libFuzzer: a deterministic search from a corpus
 *
 * What:      main() of each plain fuzz program. It takes inputs from a corpus, or from the target's own generator,
 *            damages them and gives them to LLVMFuzzerTestOneInput, each in memory of exactly its size. The runs happen in
 *            a child: when it dies, or takes longer than 20 s for one input, that input is written to a file.
 *              fuzz_x RUNS CORPUS     every file of the corpus, then RUNS damaged inputs from KVASIR_TEST_SEED
 *              fuzz_x RUNS            the same, of a target with a generator
 *              fuzz_x FILE...         each file once, as it is
 *            A line of CORPUS/words.txt is put into inputs as a whole.
 * Thread:    the target's
 */
#pragma once

#include <stdbool.h>

#include "base/bytes.h"

/* What every target defines; 0. Anything it does not expect ends in abort(). */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Appends a good input of the target's own making. False: it makes none, only the corpus counts; so in
 * fuzz_no_generator.c, which a target without one is linked with. */
bool fuzz_generate(struct bytes *out);
