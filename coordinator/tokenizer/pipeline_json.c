#include "coordinator/tokenizer/pipeline_json.h"

#include <string.h>

#include "base/log.h"
#include "coordinator/tokenizer/json_field.h"
#include "coordinator/tokenizer/split.h"

#define QUOTED_BYTES 80

static status_t unknown(const char *what, const char *name, const char *known)
{
    char quoted[QUOTED_BYTES];
    return status_errorf(STATUS_DATA_LOSS, "%s %s is not supported (known: %s)", what,
                         log_quote(name, quoted, sizeof quoted), known);
}

/* Copies a short text of the file. */
static status_t read_text(const json_t *step, const char *name, char *out, size_t out_bytes)
{
    const char *text;
    TRY(json_field_string(step, name, &text));
    if (strlen(text) >= out_bytes) {
        return status_errorf(STATUS_DATA_LOSS, "%s: %zu bytes, limit %zu", name, strlen(text),
                             out_bytes - 1);
    }
    memcpy(out, text, strlen(text) + 1);
    return status_ok();
}

/* {"pattern": {"String": " "}, "content": "x"} */
static status_t read_replace(const json_t *step, char *pattern, char *content, size_t text_bytes)
{
    json_t *object;
    TRY(json_field_object(step, "pattern", &object));
    if (json_object_get(object, "Regex") != NULL) {
        return status_errorf(STATUS_DATA_LOSS, "Replace: a Regex pattern is not supported");
    }
    TRY(read_text(object, "String", pattern, text_bytes));
    if (pattern[0] == '\0') {
        return status_errorf(STATUS_DATA_LOSS, "Replace: the pattern is empty");
    }
    return read_text(step, "content", content, text_bytes);
}

/* The steps of a Sequence under `list_name`; of any other step, the step alone. */
struct step_list {
    const json_t *single;
    const json_t *array; /* NULL: single */
};

static status_t open_steps(const json_t *json, const char *list_name, struct step_list *out)
{
    const char *type;
    TRY(json_field_type(json, &type));
    *out = (struct step_list){.single = json};
    if (strcmp(type, "Sequence") == 0) {
        json_t *array;
        TRY(json_field_array(json, list_name, &array));
        out->array = array;
    }
    return status_ok();
}

static size_t step_count(const struct step_list *list)
{
    return list->array != NULL ? json_array_size(list->array) : 1;
}

static const json_t *step_at(const struct step_list *list, size_t i)
{
    return list->array != NULL ? json_array_get(list->array, i) : list->single;
}

static status_t check_count(const struct step_list *list, size_t max)
{
    if (step_count(list) > max) {
        return status_errorf(STATUS_DATA_LOSS, "Sequence of %zu steps, limit %zu", step_count(list),
                             max);
    }
    return status_ok();
}

// ---- normalizer ----

static status_t read_normalize_step(const json_t *json, struct normalize_step *out)
{
    const char *type;
    TRY(json_field_type(json, &type));
    if (strcmp(type, "NFC") == 0) {
        out->kind = NORMALIZE_NFC;
        return status_ok();
    }
    if (strcmp(type, "Prepend") == 0) {
        out->kind = NORMALIZE_PREPEND;
        return read_text(json, "prepend", out->content, sizeof out->content);
    }
    if (strcmp(type, "Replace") == 0) {
        out->kind = NORMALIZE_REPLACE;
        return read_replace(json, out->pattern, out->content, sizeof out->content);
    }
    return unknown("normalizer", type, "NFC, Prepend, Replace");
}

status_t pipeline_json_normalizer(const json_t *json, struct normalizer *out)
{
    *out = (struct normalizer){0};
    if (json == NULL || json_is_null(json)) {
        return status_ok();
    }
    struct step_list list;
    TRY(open_steps(json, "normalizers", &list));
    TRY(check_count(&list, NORMALIZE_MAX_STEPS));
    for (size_t i = 0; i < step_count(&list); i++) {
        TRY(read_normalize_step(step_at(&list, i), &out->steps[out->n_steps]));
        out->n_steps++;
    }
    return status_ok();
}

// ---- pre_tokenizer ----

static void add_split(struct pretokenizer *out, int pattern)
{
    out->steps[out->n_steps++] =
        (struct pretokenizer_step){.kind = PRETOKENIZER_SPLIT, .pattern = pattern};
}

static status_t read_byte_level(const json_t *json, struct pretokenizer *out)
{
    bool prefix_space;
    bool use_regex;
    TRY(json_field_bool(json, "add_prefix_space", true, &prefix_space));
    TRY(json_field_bool(json, "use_regex", true, &use_regex));
    if (prefix_space) {
        out->steps[out->n_steps++] = (struct pretokenizer_step){.kind = PRETOKENIZER_PREFIX_SPACE};
    }
    if (use_regex) {
        add_split(out, SPLIT_GPT2);
    }
    out->byte_level = true;
    return status_ok();
}

static status_t read_split(const json_t *json, struct pretokenizer *out)
{
    json_t *pattern;
    const char *regex;
    const char *behavior;
    bool invert;
    TRY(json_field_object(json, "pattern", &pattern));
    TRY(json_field_string(pattern, "Regex", &regex));
    TRY(json_field_string(json, "behavior", &behavior));
    TRY(json_field_bool(json, "invert", false, &invert));
    if (strcmp(behavior, "Isolated") != 0 || invert) {
        return unknown("Split behavior", behavior, "Isolated, not inverted");
    }
    const int known = split_find(regex);
    if (known < 0) {
        return unknown("Split regex", regex, "those of GPT-2 and Llama 3");
    }
    add_split(out, known);
    return status_ok();
}

/* "▁", the one replacement character that there is. */
static status_t check_replacement(const json_t *json)
{
    const char *replacement;
    TRY(json_field_string(json, "replacement", &replacement));
    return strcmp(replacement, META_SPACE) == 0
               ? status_ok()
               : unknown("Metaspace replacement", replacement, META_SPACE);
}

/* Absent: always. add_prefix_space is the older field for the same. */
static status_t read_prepend(const json_t *json, int *prepend_out)
{
    static const char *const names[] = {
        [METASPACE_NEVER] = "never", [METASPACE_FIRST] = "first", [METASPACE_ALWAYS] = "always"};
    const char *name = "always";
    bool prefix_space;
    if (json_field_get(json, "prepend_scheme") != NULL) {
        TRY(json_field_string(json, "prepend_scheme", &name));
    }
    TRY(json_field_bool(json, "add_prefix_space", true, &prefix_space));
    int prepend = METASPACE_NEVER;
    while (prepend <= METASPACE_ALWAYS && strcmp(name, names[prepend]) != 0) {
        prepend++;
    }
    if (prepend > METASPACE_ALWAYS) {
        return unknown("prepend_scheme", name, "never, first, always");
    }
    if (!prefix_space && prepend != METASPACE_NEVER) {
        return status_errorf(STATUS_DATA_LOSS, "add_prefix_space: false with prepend_scheme %s",
                             name);
    }
    *prepend_out = prepend;
    return status_ok();
}

static status_t read_metaspace(const json_t *json, struct pretokenizer *out)
{
    struct pretokenizer_step step = {.kind = PRETOKENIZER_METASPACE};
    TRY(check_replacement(json));
    TRY(read_prepend(json, &step.prepend));
    TRY(json_field_bool(json, "split", true, &step.words));
    out->steps[out->n_steps++] = step;
    return status_ok();
}

static status_t read_pretokenizer_step(const json_t *json, struct pretokenizer *out)
{
    const char *type;
    TRY(json_field_type(json, &type));
    if (out->byte_level) {
        return status_errorf(STATUS_DATA_LOSS, "%s after ByteLevel is not supported", type);
    }
    if (strcmp(type, "ByteLevel") == 0) {
        return read_byte_level(json, out);
    }
    if (strcmp(type, "Digits") == 0) {
        bool individual;
        TRY(json_field_bool(json, "individual_digits", false, &individual));
        add_split(out, individual ? SPLIT_DIGITS : SPLIT_NUMBERS);
        return status_ok();
    }
    if (strcmp(type, "Split") == 0) {
        return read_split(json, out);
    }
    if (strcmp(type, "Metaspace") == 0) {
        return read_metaspace(json, out);
    }
    return unknown("pre_tokenizer", type, "ByteLevel, Digits, Metaspace, Split");
}

status_t pipeline_json_pretokenizer(const json_t *json, struct pretokenizer *out)
{
    *out = (struct pretokenizer){0};
    if (json == NULL || json_is_null(json)) {
        return status_ok();
    }
    struct step_list list;
    TRY(open_steps(json, "pretokenizers", &list));
    TRY(check_count(&list, PRETOKENIZER_MAX_STEPS / 2)); // a step of the file makes at most two
    for (size_t i = 0; i < step_count(&list); i++) {
        TRY(read_pretokenizer_step(step_at(&list, i), out));
    }
    for (size_t i = 0; i < out->n_steps; i++) {
        if (out->steps[i].kind == PRETOKENIZER_METASPACE && step_count(&list) > 1) {
            return status_errorf(STATUS_DATA_LOSS, "Metaspace with other steps is not supported");
        }
    }
    return status_ok();
}

// ---- decoder ----

/* The one order in which the steps of SentencePiece-style decoders mean what decoder.* says. */
enum decoder_stage { STAGE_START, STAGE_REPLACE, STAGE_BYTE_FALLBACK, STAGE_FUSE, STAGE_STRIP };

static status_t read_strip(const json_t *json, int stage, struct decoder *out)
{
    const char *content;
    json_int_t start;
    json_int_t stop;
    TRY(json_field_string(json, "content", &content));
    TRY(json_field_count(json, "start", INT32_MAX, &start));
    TRY(json_field_count(json, "stop", INT32_MAX, &stop));
    if (stage != STAGE_FUSE || strcmp(content, " ") != 0 || start > 1 || stop != 0) {
        return status_errorf(STATUS_DATA_LOSS,
                             "Strip other than of one leading space after Fuse is not supported");
    }
    out->strip_space = start == 1;
    return status_ok();
}

/* Metaspace as a decoder: Replace of "▁" by a space, and the first token loses its own. */
static status_t read_metaspace_decoder(const json_t *json, struct decoder *out)
{
    int prepend;
    TRY(check_replacement(json));
    TRY(read_prepend(json, &prepend));
    out->strip_first = prepend != METASPACE_NEVER;
    memcpy(out->pattern, META_SPACE, sizeof META_SPACE);
    memcpy(out->content, " ", sizeof " ");
    return status_ok();
}

static status_t read_decoder_step(const json_t *json, int *stage, struct decoder *out)
{
    static const char *const names[] = {[STAGE_START] = "",
                                        [STAGE_REPLACE] = "Replace",
                                        [STAGE_BYTE_FALLBACK] = "ByteFallback",
                                        [STAGE_FUSE] = "Fuse",
                                        [STAGE_STRIP] = "Strip"};
    const char *type;
    TRY(json_field_type(json, &type));
    if (strcmp(type, "Metaspace") == 0 && *stage == STAGE_START) {
        *stage = STAGE_REPLACE;
        return read_metaspace_decoder(json, out);
    }
    int next = STAGE_REPLACE;
    while (next <= STAGE_STRIP && strcmp(type, names[next]) != 0) {
        next++;
    }
    if (next > STAGE_STRIP) {
        return unknown("decoder", type,
                       "ByteLevel alone; Replace or Metaspace, ByteFallback, Fuse, Strip");
    }
    if (next <= *stage) {
        return status_errorf(STATUS_DATA_LOSS, "decoder %s after %s is not supported", type,
                             names[*stage]);
    }
    const int before = *stage;
    *stage = next;
    switch (next) {
    case STAGE_REPLACE:
        return read_replace(json, out->pattern, out->content, sizeof out->content);
    case STAGE_BYTE_FALLBACK:
        out->byte_fallback = true;
        return status_ok();
    case STAGE_STRIP:
        return read_strip(json, before, out);
    default:
        return status_ok();
    }
}

status_t pipeline_json_decoder(const json_t *json, struct decoder *out)
{
    *out = (struct decoder){0};
    if (json == NULL || json_is_null(json)) {
        return status_errorf(STATUS_DATA_LOSS, "absent: tokens would be joined by spaces");
    }
    struct step_list list;
    TRY(open_steps(json, "decoders", &list));
    const char *type = "";
    if (step_count(&list) == 1) {
        TRY(json_field_type(step_at(&list, 0), &type));
    }
    if (strcmp(type, "ByteLevel") == 0) {
        out->byte_level = true;
        return status_ok();
    }
    int stage = STAGE_START;
    for (size_t i = 0; i < step_count(&list); i++) {
        TRY(read_decoder_step(step_at(&list, i), &stage, out));
    }
    return status_ok();
}

// ---- post_processor ----

static status_t add_template_id(struct template_ids *out, bool before, int32_t id)
{
    size_t *n = before ? &out->n_before : &out->n_after;
    if (*n == TEMPLATE_MAX_TOKENS) {
        return status_errorf(STATUS_DATA_LOSS, "single: more than %d tokens on one side",
                             TEMPLATE_MAX_TOKENS);
    }
    (before ? out->before : out->after)[(*n)++] = id;
    return status_ok();
}

/* special_tokens: {"<s>": {"ids": [1]}} */
static status_t add_special_token(const json_t *json, const char *name, size_t n_ids, bool before,
                                  struct template_ids *out)
{
    json_t *tokens;
    json_t *token;
    json_t *ids;
    TRY(json_field_object(json, "special_tokens", &tokens));
    TRY(json_field_object(tokens, name, &token));
    TRY(json_field_array(token, "ids", &ids));
    for (size_t i = 0; i < json_array_size(ids); i++) {
        const json_t *id = json_array_get(ids, i);
        if (!json_is_integer(id) || json_integer_value(id) < 0 ||
            json_integer_value(id) >= (json_int_t)n_ids) {
            return status_errorf(STATUS_DATA_LOSS, "special_tokens.%s.ids: not in the vocabulary",
                                 name);
        }
        TRY(add_template_id(out, before, (int32_t)json_integer_value(id)));
    }
    return status_ok();
}

static status_t read_template(const json_t *json, size_t n_ids, struct template_ids *out)
{
    json_t *single;
    TRY(json_field_array(json, "single", &single));
    bool before = true;
    for (size_t i = 0; i < json_array_size(single); i++) {
        const json_t *item = json_array_get(single, i);
        const json_t *special = json_object_get(item, "SpecialToken");
        if (special != NULL) {
            const char *name;
            TRY(json_field_string(special, "id", &name));
            TRY(add_special_token(json, name, n_ids, before, out));
        } else if (json_object_get(item, "Sequence") != NULL && before) {
            before = false;
        } else {
            return status_errorf(STATUS_DATA_LOSS,
                                 "single[%zu]: neither a SpecialToken nor the one Sequence", i);
        }
    }
    if (before) {
        return status_errorf(STATUS_DATA_LOSS, "single: without a Sequence");
    }
    return status_ok();
}

status_t pipeline_json_template(const json_t *json, size_t n_ids, struct template_ids *out)
{
    *out = (struct template_ids){0};
    if (json == NULL || json_is_null(json)) {
        return status_ok();
    }
    struct step_list list;
    TRY(open_steps(json, "processors", &list));
    bool found = false;
    for (size_t i = 0; i < step_count(&list); i++) {
        const char *type;
        TRY(json_field_type(step_at(&list, i), &type));
        if (strcmp(type, "ByteLevel") == 0) {
            continue; // only moves offsets, which are not kept
        }
        if (strcmp(type, "TemplateProcessing") != 0 || found) {
            return unknown("post_processor", type, "ByteLevel, one TemplateProcessing");
        }
        TRY(read_template(step_at(&list, i), n_ids, out));
        found = true;
    }
    return status_ok();
}
