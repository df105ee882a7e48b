/*
 * tiny_model.h - a model directory without weights, whose token ids are bytes
 *
 * What:   config.json of a two-layer model with 4 and 2 KV heads, and a tokenizer.json in which id b is byte b, 256 is
 *         the special token <eos>. Text is therefore what its ids say, and a fake worker can speak.
 * Thread: any
 */
#pragma once

#define TINY_EOS     256
#define TINY_VOCAB   320
#define TINY_CONTEXT 2048

/* Writes the files into dir, which exists. */
void tiny_model_write(const char *dir);
