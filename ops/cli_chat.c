/*
 * cli_chat.c - kvasir chat: a conversation on the terminal
 *
 * A model with a chat template gets the messages. A base model has none: it gets the transcript as plain text and
 * continues it, which for the demo model means that one writes a story in turns.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ops/cli.h"
#include "ops/client.h"
#include "ops/generate_options.h"

#define MAX_MESSAGES 1024

struct chat_options {
    struct generate_common common;
    const char *system;
};

static const struct config_row rows[] = {
    GENERATE_COMMON_ROWS(struct chat_options),
    {.name = "system",
     .type = CONFIG_STRING,
     .offset = offsetof(struct chat_options, system),
     .help = "system message, for models with a chat template"},
};

struct chat {
    const struct chat_options *options;
    struct client *client;
    bool has_template;
    struct wire_chat_message messages[MAX_MESSAGES]; /* contents below */
    char *contents[MAX_MESSAGES];
    size_t n_messages;
    struct bytes transcript; /* of a base model */
    struct bytes reply;
};

static status_t on_response(void *user, const struct wire_generate_response *response)
{
    struct chat *chat = user;
    const char *text = response->event == WIRE_EVENT_TOKEN      ? response->token.text
                       : response->event == WIRE_EVENT_FINISHED ? response->finished.text
                                                                : NULL;
    if (text == NULL) {
        return status_ok();
    }
    fputs(text, stdout);
    fflush(stdout);
    return bytes_append_str(&chat->reply, text);
}

static status_t add_message(struct chat *chat, const char *role, const void *text, size_t size)
{
    if (chat->n_messages == MAX_MESSAGES) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "a chat has at most %d messages",
                             MAX_MESSAGES);
    }
    char *copy = strndup(size > 0 ? text : "", size);
    if (copy == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "chat: out of memory");
    }
    chat->contents[chat->n_messages] = copy;
    chat->messages[chat->n_messages++] = (struct wire_chat_message){.role = role, .content = copy};
    return status_ok();
}

static status_t ask(struct chat *chat, struct arena *arena, const char *line)
{
    struct wire_generate_request request;
    TRY(generate_common_request(&chat->options->common, arena, &request));
    if (chat->has_template) {
        TRY(add_message(chat, "user", line, strlen(line)));
        request.prompt_kind = WIRE_PROMPT_MESSAGES;
        request.messages = chat->messages;
        request.n_messages = chat->n_messages;
    } else {
        TRY(bytes_append_str(&chat->transcript, line));
        request.prompt_kind = WIRE_PROMPT_TEXT;
        request.prompt = (const char *)chat->transcript.data;
        request.prompt_bytes = chat->transcript.size;
    }
    bytes_clear(&chat->reply);
    const struct client_generate_args args = {.request = &request,
                                              .timeout_ns =
                                                  generate_common_timeout(&chat->options->common),
                                              .on_response = on_response,
                                              .user = chat};
    return client_generate(chat->client, &args);
}

static status_t turn(struct chat *chat, const char *line)
{
    struct arena arena;
    arena_init(&arena, GENERATE_MAX_LIST_BYTES);
    const status_t s = ask(chat, &arena, line);
    arena_destroy(&arena);
    TRY(s);
    fputc('\n', stdout);
    if (chat->has_template) {
        return add_message(chat, "assistant", chat->reply.data, chat->reply.size);
    }
    return bytes_append(&chat->transcript, chat->reply.data, chat->reply.size);
}

static status_t converse(struct chat *chat)
{
    const bool terminal = isatty(STDIN_FILENO);
    char *line = NULL;
    size_t capacity = 0;
    status_t s = status_ok();
    if (chat->options->system != NULL && chat->has_template) {
        s = add_message(chat, "system", chat->options->system, strlen(chat->options->system));
    }
    while (s.code == STATUS_OK) {
        if (terminal) {
            fputs("> ", stdout);
            fflush(stdout);
        }
        const ssize_t n = getline(&line, &capacity, stdin);
        if (n < 0 || strcmp(line, "/quit\n") == 0) {
            break;
        }
        line[strcspn(line, "\n")] = '\0';
        if (line[0] != '\0') {
            s = turn(chat, line);
        }
    }
    free(line);
    return s;
}

static status_t chat_at(const struct chat_options *options, const char *address)
{
    struct chat *chat = calloc(1, sizeof *chat);
    if (chat == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "chat: out of memory");
    }
    struct arena arena;
    struct wire_model_info info;
    arena_init(&arena, 1u << 20);
    chat->options = options;
    bytes_init(&chat->transcript, 16u << 20);
    bytes_init(&chat->reply, 16u << 20);
    status_t s;
    TRY_GOTO(s, client_open(address, &chat->client), undo_chat);
    s = client_model_info(chat->client, &arena, &info);
    if (s.code == STATUS_OK) {
        chat->has_template = info.has_chat_template;
        fprintf(stderr, "%s, %u tokens of context%s; /quit or Ctrl-D ends\n", info.name,
                info.context_length,
                chat->has_template ? "" : ", no chat template: it continues what you write");
        s = converse(chat);
    }
    client_close(chat->client);
undo_chat:
    for (size_t i = 0; i < chat->n_messages; i++) {
        free(chat->contents[i]);
    }
    bytes_destroy(&chat->transcript);
    bytes_destroy(&chat->reply);
    arena_destroy(&arena);
    free(chat);
    return s;
}

int cli_chat(const struct cli_command *command, int argc, char **argv)
{
    struct chat_options options;
    struct config_set set;
    const struct cli_table table = CLI_TABLE(rows, &options);
    int code = cli_load(command, &table, &set, argc, argv);
    if (code >= 0) {
        return code;
    }
    struct private_server server = {0};
    const char *address = options.common.address;
    if (options.common.server.model != NULL) {
        const status_t started = private_server_start(&server, &options.common.server, &code);
        if (started.code != STATUS_OK) { // the server has said why
            config_destroy(&set);
            return code;
        }
        address = server.address;
    }
    const status_t s = chat_at(&options, address);
    private_server_stop(&server);
    config_destroy(&set);
    return cli_report(&s);
}
