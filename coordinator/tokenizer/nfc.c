#include "coordinator/tokenizer/nfc.h"

#include <stdlib.h>
#include <string.h>

#include <utf8proc.h>

#include "base/utf8.h"

// The longest canonical decomposition has four code points.
#define MAX_DECOMPOSED 4
// Runs of marks up to this length are put in order by insertion.
#define SHORT_RUN 16
#define N_CLASSES 256

struct code_points {
    utf8proc_int32_t *data;
    size_t n;
    size_t capacity;
};

static status_t make_room(struct code_points *list)
{
    if (list->capacity - list->n >= MAX_DECOMPOSED) {
        return status_ok();
    }
    const size_t capacity = 2 * list->capacity + 64;
    utf8proc_int32_t *data = realloc(list->data, capacity * sizeof *data);
    if (data == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for %zu code points",
                             capacity);
    }
    list->data = data;
    list->capacity = capacity;
    return status_ok();
}

static status_t decompose(struct code_points *list, utf8proc_int32_t code_point)
{
    TRY(make_room(list));
    int boundary = 0; // of graphemes; not asked for
    const utf8proc_ssize_t n =
        utf8proc_decompose_char(code_point, list->data + list->n, MAX_DECOMPOSED,
                                UTF8PROC_DECOMPOSE | UTF8PROC_STABLE, &boundary);
    if (n < 0 || n > MAX_DECOMPOSED) {
        return status_errorf(STATUS_INTERNAL, "U+%04X has no decomposition: %s",
                             (unsigned)code_point, utf8proc_errmsg(n));
    }
    list->n += (size_t)n;
    return status_ok();
}

// ---- canonical order ----

static uint8_t mark_class(utf8proc_int32_t code_point)
{
    return (uint8_t)utf8proc_get_property(code_point)->combining_class;
}

static void order_short(utf8proc_int32_t *marks, size_t n)
{
    for (size_t i = 1; i < n; i++) {
        const utf8proc_int32_t moving = marks[i];
        const uint8_t ccc = mark_class(moving);
        size_t at = i;
        for (; at > 0 && mark_class(marks[at - 1]) > ccc; at--) {
            marks[at] = marks[at - 1];
        }
        marks[at] = moving;
    }
}

/* A stable counting sort: linear however long the run is. */
static status_t order_long(utf8proc_int32_t *marks, size_t n)
{
    utf8proc_int32_t *sorted = malloc(n * sizeof *sorted);
    if (sorted == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for %zu marks", n);
    }
    size_t start[N_CLASSES + 1] = {0};
    for (size_t i = 0; i < n; i++) {
        start[mark_class(marks[i]) + 1]++;
    }
    for (size_t ccc = 0; ccc < N_CLASSES; ccc++) {
        start[ccc + 1] += start[ccc];
    }
    for (size_t i = 0; i < n; i++) {
        sorted[start[mark_class(marks[i])]++] = marks[i];
    }
    memcpy(marks, sorted, n * sizeof *sorted);
    free(sorted);
    return status_ok();
}

static status_t order_marks(struct code_points *list)
{
    size_t at = 0;
    while (at < list->n) {
        size_t end = at;
        while (end < list->n && mark_class(list->data[end]) != 0) {
            end++;
        }
        if (end - at > SHORT_RUN) {
            TRY(order_long(list->data + at, end - at));
        } else if (end - at > 1) {
            order_short(list->data + at, end - at);
        }
        at = end + 1; // a starter stays where it is
    }
    return status_ok();
}

// ---- the whole ----

/* Nothing below U+0300 changes: no marks, and all precomposed letters there are their own normal form. */
static size_t plain_prefix(const uint8_t *text, size_t size)
{
    size_t at = 0;
    while (at < size && text[at] < 0xCC) {
        at++; // U+0300 is CC 80
    }
    return at;
}

static status_t compose(struct code_points *list, struct bytes *out)
{
    TRY(order_marks(list));
    const utf8proc_ssize_t n = utf8proc_normalize_utf32(list->data, (utf8proc_ssize_t)list->n,
                                                        UTF8PROC_COMPOSE | UTF8PROC_STABLE);
    if (n < 0) {
        return status_errorf(STATUS_INTERNAL, "normalization: %s", utf8proc_errmsg(n));
    }
    for (utf8proc_ssize_t i = 0; i < n; i++) {
        uint8_t encoded[4];
        const size_t length = utf8_encode((uint32_t)list->data[i], encoded);
        TRY(bytes_append(out, encoded, length));
    }
    return status_ok();
}

status_t nfc_append(const uint8_t *text, size_t size, struct bytes *out)
{
    size_t at = plain_prefix(text, size);
    if (at == size) {
        return bytes_append(out, text, size);
    }
    // The character before the first change may compose with it.
    while (at > 0 && (text[at] & 0xC0) == 0x80) {
        at--;
    }
    if (at > 0) {
        at--;
        while (at > 0 && (text[at] & 0xC0) == 0x80) {
            at--;
        }
    }
    TRY(bytes_append(out, text, at));

    struct code_points list = {0};
    status_t s = status_ok();
    while (at < size && status_is_ok(&s)) {
        size_t length;
        const uint32_t code_point = utf8_decode(text + at, &length);
        s = decompose(&list, (utf8proc_int32_t)code_point);
        at += length;
    }
    if (status_is_ok(&s)) {
        s = compose(&list, out);
    }
    free(list.data);
    return s;
}
