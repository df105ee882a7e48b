/*
 * tokenizer_tool - the tokenizer as a filter, for comparing it with other programs
 *
 * What:   tokenizer_tool DIR. Each line of standard input is a JSON object; each gets one line back:
 *           {"text": "...", "add_special": false, "parse_special": false}  ->  {"ids": [1, 2]}
 *           {"ids": [1, 2], "skip_special": false}                         ->  {"text": "..."}
 *           anything that fails                                            ->  {"error": "..."}
 * Thread: main
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "coordinator/tokenizer/tokenizer.h"

static json_t *error_reply(const status_t *s)
{
    return json_pack("{s:s, s:s}", "error", s->msg, "code", status_code_name(s->code));
}

static int flag(const json_t *request, const char *name, int bit)
{
    return json_is_true(json_object_get(request, name)) ? bit : 0;
}

static json_t *encode_reply(const struct tokenizer *tokenizer, const json_t *request,
                            const json_t *text)
{
    const int flags = flag(request, "add_special", TOKENIZER_ADD_SPECIAL) |
                      flag(request, "parse_special", TOKENIZER_PARSE_SPECIAL);
    struct token_list list = {0};
    const status_t s = tokenizer_encode(tokenizer, json_string_value(text),
                                        json_string_length(text), flags, &list);
    if (!status_is_ok(&s)) {
        token_list_destroy(&list);
        return error_reply(&s);
    }
    json_t *ids = json_array();
    for (size_t i = 0; i < list.n; i++) {
        json_array_append_new(ids, json_integer(list.ids[i]));
    }
    token_list_destroy(&list);
    return json_pack("{s:o}", "ids", ids);
}

static json_t *decode_reply(const struct tokenizer *tokenizer, const json_t *request,
                            const json_t *ids)
{
    const int flags = flag(request, "skip_special", TOKENIZER_SKIP_SPECIAL);
    struct bytes text;
    bytes_init(&text, SIZE_MAX);
    struct detokenizer d;
    detokenizer_init(&d, tokenizer, flags);
    status_t s = status_ok();
    for (size_t i = 0; i < json_array_size(ids) && status_is_ok(&s); i++) {
        const json_int_t id = json_integer_value(json_array_get(ids, i));
        s = detokenizer_push(&d, (int32_t)id, &text);
    }
    if (status_is_ok(&s)) {
        s = detokenizer_finish(&d, &text);
    }
    json_t *reply =
        status_is_ok(&s)
            ? json_pack("{s:s%}", "text", text.size > 0 ? (const char *)text.data : "", text.size)
            : error_reply(&s);
    bytes_destroy(&text);
    return reply;
}

static json_t *reply_to(const struct tokenizer *tokenizer, const char *line, size_t size)
{
    json_error_t error;
    json_t *request = json_loadb(line, size, JSON_ALLOW_NUL, &error);
    const json_t *text = json_object_get(request, "text");
    const json_t *ids = json_object_get(request, "ids");
    json_t *reply;
    if (json_is_string(text)) {
        reply = encode_reply(tokenizer, request, text);
    } else if (json_is_array(ids)) {
        reply = decode_reply(tokenizer, request, ids);
    } else {
        reply = json_pack("{s:s}", "error", "neither text nor ids");
    }
    json_decref(request);
    return reply;
}

static void serve(const struct tokenizer *tokenizer)
{
    char *line = NULL;
    size_t capacity = 0;
    ssize_t size = getline(&line, &capacity, stdin);
    while (size >= 0) {
        json_t *reply = reply_to(tokenizer, line, (size_t)size);
        json_dumpf(reply, stdout, JSON_COMPACT);
        putchar('\n');
        fflush(stdout);
        json_decref(reply);
        size = getline(&line, &capacity, stdin);
    }
    free(line);
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: tokenizer_tool DIR < requests\n");
        return 64;
    }
    struct tokenizer *tokenizer;
    const status_t s = tokenizer_load(argv[1], &tokenizer);
    if (!status_is_ok(&s)) {
        status_print(stderr, &s);
        return status_exit_code(&s);
    }
    serve(tokenizer);
    tokenizer_free(tokenizer);
    return 0;
}
