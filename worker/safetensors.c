#include "worker/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <jansson.h>

#include "base/file.h"
#include "base/json_limits.h"
#include "worker/open_beneath.h"

#define PREFIX_BYTES 8
#define PATH_BYTES   4096

/* A tensor is an object with two arrays inside the header's object; of two dimensions it has 7 commas and one behind. */
static const struct json_limits header_limits = {
    .max_depth = 3,
    .max_containers = 3 * (int64_t)SAFETENSORS_MAX_TENSORS + 2,
    .max_values = 12 * (int64_t)SAFETENSORS_MAX_TENSORS,
};

// ---- element types ----

struct type_row {
    const char *name;
    uint64_t bits;
    int dtype;
};

static const struct type_row types[] = {
    {"F32", 32, DTYPE_F32},
    {"F16", 16, DTYPE_F16},
    {"BF16", 16, DTYPE_BF16},
    {"BOOL", 8, SAFETENSORS_OTHER_DTYPE},
    {"F4", 4, SAFETENSORS_OTHER_DTYPE},
    {"F6_E2M3", 6, SAFETENSORS_OTHER_DTYPE},
    {"F6_E3M2", 6, SAFETENSORS_OTHER_DTYPE},
    {"U8", 8, SAFETENSORS_OTHER_DTYPE},
    {"I8", 8, SAFETENSORS_OTHER_DTYPE},
    {"F8_E5M2", 8, SAFETENSORS_OTHER_DTYPE},
    {"F8_E4M3", 8, SAFETENSORS_OTHER_DTYPE},
    {"F8_E8M0", 8, SAFETENSORS_OTHER_DTYPE},
    {"I16", 16, SAFETENSORS_OTHER_DTYPE},
    {"U16", 16, SAFETENSORS_OTHER_DTYPE},
    {"I32", 32, SAFETENSORS_OTHER_DTYPE},
    {"U32", 32, SAFETENSORS_OTHER_DTYPE},
    {"F64", 64, SAFETENSORS_OTHER_DTYPE},
    {"I64", 64, SAFETENSORS_OTHER_DTYPE},
    {"U64", 64, SAFETENSORS_OTHER_DTYPE},
    {"C64", 64, SAFETENSORS_OTHER_DTYPE},
};

static const struct type_row *find_type(const char *name)
{
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        if (strcmp(types[i].name, name) == 0) {
            return &types[i];
        }
    }
    return NULL;
}

// ---- one tensor of the header ----

/* Control characters would travel into messages and logs. */
bool safetensors_name_is_sane(const char *name)
{
    const size_t length = strlen(name);
    if (length == 0 || length > SAFETENSORS_MAX_NAME_BYTES) {
        return false;
    }
    for (size_t i = 0; i < length; i++) {
        const unsigned char c = (unsigned char)name[i];
        if (c < 0x20 || c == 0x7f) {
            return false;
        }
    }
    return true;
}

static status_t rule(const char *name, const char *text)
{
    return status_errorf(STATUS_DATA_LOSS, "tensor %.200s: %s", name, text);
}

static status_t parse_type(const json_t *entry, struct safetensors_tensor *tensor,
                           uint64_t *bits_out)
{
    const char *text = json_string_value(json_object_get(entry, "dtype"));
    if (text == NULL) {
        return rule(tensor->name, "dtype must be a string");
    }
    const struct type_row *type = find_type(text);
    if (type == NULL) {
        return status_errorf(STATUS_DATA_LOSS, "tensor %.200s: dtype is not one the format knows",
                             tensor->name);
    }
    tensor->dtype_name = type->name;
    tensor->dtype = type->dtype;
    *bits_out = type->bits;
    return status_ok();
}

/* Fills the shape and the bytes it takes. */
static status_t parse_shape(const json_t *entry, struct safetensors_tensor *tensor, uint64_t bits)
{
    const json_t *shape = json_object_get(entry, "shape");
    if (!json_is_array(shape)) {
        return rule(tensor->name, "shape must be an array");
    }
    const size_t n_dims = json_array_size(shape);
    if (n_dims > SAFETENSORS_MAX_DIMS) {
        return status_errorf(STATUS_DATA_LOSS, "tensor %.200s: %zu dimensions, limit %d",
                             tensor->name, n_dims, SAFETENSORS_MAX_DIMS);
    }
    uint64_t n_bits = bits;
    for (size_t i = 0; i < n_dims; i++) {
        const json_t *dim = json_array_get(shape, i);
        if (!json_is_integer(dim) || json_integer_value(dim) < 0) {
            return rule(tensor->name, "shape must hold integers, none negative");
        }
        tensor->shape[i] = json_integer_value(dim);
        if (__builtin_mul_overflow(n_bits, (uint64_t)tensor->shape[i], &n_bits)) {
            return rule(tensor->name, "shape is larger than 64 bits can count");
        }
    }
    if (n_bits % 8 != 0) {
        return rule(tensor->name, "does not end at a whole byte");
    }
    tensor->n_dims = (int32_t)n_dims;
    tensor->size_bytes = n_bits / 8;
    return status_ok();
}

/* offset_bytes counts from the first data byte here; place_tensors moves it. */
static status_t parse_offsets(const json_t *entry, struct safetensors_tensor *tensor,
                              uint64_t data_bytes)
{
    const json_t *offsets = json_object_get(entry, "data_offsets");
    const json_t *first = json_array_get(offsets, 0);
    const json_t *last = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(first) || !json_is_integer(last)) {
        return rule(tensor->name, "data_offsets must be two integers");
    }
    const json_int_t begin = json_integer_value(first);
    const json_int_t end = json_integer_value(last);
    if (begin < 0 || end < begin) {
        return status_errorf(STATUS_DATA_LOSS,
                             "tensor %.200s: data_offsets [%lld, %lld] are negative or reversed",
                             tensor->name, (long long)begin, (long long)end);
    }
    if ((uint64_t)(end - begin) != tensor->size_bytes) {
        return status_errorf(
            STATUS_DATA_LOSS,
            "tensor %.200s: data_offsets hold %lld bytes, dtype and shape need %" PRIu64,
            tensor->name, (long long)(end - begin), tensor->size_bytes);
    }
    if ((uint64_t)end > data_bytes) {
        return status_errorf(STATUS_DATA_LOSS,
                             "tensor %.200s: ends at data byte %lld, the file has %" PRIu64
                             " (truncated)" STATUS_FIX "download the file again",
                             tensor->name, (long long)end, data_bytes);
    }
    tensor->offset_bytes = (uint64_t)begin;
    return status_ok();
}

static status_t parse_tensor(const json_t *entry, uint64_t data_bytes,
                             struct safetensors_tensor *tensor)
{
    if (!json_is_object(entry)) {
        return rule(tensor->name, "must be an object");
    }
    if (json_object_size(entry) != 3) {
        return rule(tensor->name, "must have dtype, shape and data_offsets, nothing else");
    }
    uint64_t bits;
    TRY(parse_type(entry, tensor, &bits));
    TRY(parse_shape(entry, tensor, bits));
    return parse_offsets(entry, tensor, data_bytes);
}

static status_t check_metadata(json_t *metadata)
{
    if (!json_is_object(metadata)) {
        return status_errorf(STATUS_DATA_LOSS, "__metadata__ must be an object");
    }
    const char *key;
    json_t *value;
    json_object_foreach(metadata, key, value)
    {
        if (!json_is_string(value)) {
            return status_errorf(STATUS_DATA_LOSS, "__metadata__ must hold strings only");
        }
    }
    return status_ok();
}

// ---- the table ----

static int by_offset(const void *a, const void *b)
{
    const struct safetensors_tensor *x = a;
    const struct safetensors_tensor *y = b;
    if (x->offset_bytes != y->offset_bytes) {
        return x->offset_bytes < y->offset_bytes ? -1 : 1;
    }
    // An empty tensor stands before the one that begins where it does.
    return (x->size_bytes > y->size_bytes) - (x->size_bytes < y->size_bytes);
}

static int by_name(const void *a, const void *b)
{
    const struct safetensors_tensor *x = a;
    const struct safetensors_tensor *y = b;
    return strcmp(x->name, y->name);
}

/* The tensors lie end to end and fill the data; then their offsets are made those of the file. */
static status_t place_tensors(struct safetensors *file, uint64_t data_begin)
{
    qsort(file->tensors, file->n_tensors, sizeof *file->tensors, by_offset);
    uint64_t end = 0;
    for (size_t i = 0; i < file->n_tensors; i++) {
        struct safetensors_tensor *tensor = &file->tensors[i];
        if (tensor->offset_bytes != end) {
            return status_errorf(STATUS_DATA_LOSS,
                                 "tensor %.200s: begins at data byte %" PRIu64
                                 ", the one before it ends at %" PRIu64 " (a hole or an overlap)",
                                 tensor->name, tensor->offset_bytes, end);
        }
        end += tensor->size_bytes;
        tensor->offset_bytes += data_begin;
    }
    if (end != file->data_bytes) {
        return status_errorf(STATUS_DATA_LOSS,
                             "%" PRIu64 " data bytes, the tensors fill %" PRIu64
                             " (trailing bytes)",
                             file->data_bytes, end);
    }
    qsort(file->tensors, file->n_tensors, sizeof *file->tensors, by_name);
    return status_ok();
}

static status_t fill_table(json_t *root, struct safetensors *file)
{
    const char *name;
    json_t *entry;
    json_object_foreach(root, name, entry)
    {
        if (strcmp(name, "__metadata__") == 0) {
            TRY(check_metadata(entry));
            continue;
        }
        if (!safetensors_name_is_sane(name)) {
            return status_errorf(
                STATUS_DATA_LOSS,
                "a tensor name is empty, longer than %d bytes or has control characters",
                SAFETENSORS_MAX_NAME_BYTES);
        }
        struct safetensors_tensor *tensor = &file->tensors[file->n_tensors];
        tensor->name = arena_strndup(&file->strings, name, strlen(name));
        if (tensor->name == NULL) {
            return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for tensor names");
        }
        TRY(parse_tensor(entry, file->data_bytes, tensor));
        file->n_tensors++;
    }
    return status_ok();
}

static status_t load_json(const char *header, size_t header_bytes, json_t **root_out)
{
    if (header_bytes == 0 || header[0] != '{') {
        return status_errorf(STATUS_DATA_LOSS, "the header must begin with '{'");
    }
    TRY(json_limits_check(header, header_bytes, &header_limits));
    json_error_t error;
    json_t *root = json_loadb(header, header_bytes, JSON_REJECT_DUPLICATES, &error);
    if (root == NULL) {
        // The text may quote the file's own bytes: keep to what can be printed.
        char quoted[160];
        snprintf(quoted, sizeof quoted, "%s", error.text);
        for (char *c = quoted; *c != '\0'; c++) {
            if (*c < 0x20 || *c == 0x7f) {
                *c = '?';
            }
        }
        return status_errorf(STATUS_DATA_LOSS, "header is not the JSON it must be: %s at byte %d",
                             quoted, error.position);
    }
    *root_out = root;
    return status_ok();
}

static status_t parse_header(const char *header, size_t header_bytes, struct safetensors *file)
{
    json_t *root;
    TRY(load_json(header, header_bytes, &root));

    status_t s;
    const size_t n = json_object_size(root);
    if (n > SAFETENSORS_MAX_TENSORS) {
        s = status_errorf(STATUS_DATA_LOSS, "%zu tensors, limit %d", n, SAFETENSORS_MAX_TENSORS);
        goto undo_root;
    }
    file->tensors = calloc(n + 1, sizeof *file->tensors);
    if (file->tensors == NULL) {
        s = status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for %zu tensors", n);
        goto undo_root;
    }
    TRY_GOTO(s, fill_table(root, file), undo_root);
    TRY_GOTO(s, place_tensors(file, PREFIX_BYTES + (uint64_t)header_bytes), undo_root);
    json_decref(root);
    return status_ok();

undo_root:
    json_decref(root);
    return s;
}

status_t safetensors_parse(const char *header, size_t header_bytes, uint64_t data_bytes,
                           const char *path, struct safetensors *file_out)
{
    struct safetensors file = {.fd = -1, .data_bytes = data_bytes};
    // Each name counts rounded up to the arena's alignment.
    arena_init(&file.strings, 2 * header_bytes + 1024);
    file.path = strdup(path);
    status_t s = file.path != NULL
                     ? parse_header(header, header_bytes, &file)
                     : status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for a path");
    if (!status_is_ok(&s)) {
        safetensors_close(&file);
        return status_wrapf(s, "%s", path);
    }
    *file_out = file;
    return status_ok();
}

// ---- the file ----

/* pread until everything is there. */
static status_t read_exactly(int fd, uint64_t offset, size_t size, void *out)
{
    uint8_t *at = out;
    while (size > 0) {
        const ssize_t n = pread(fd, at, size, (off_t)offset);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return status_errorf(STATUS_DATA_LOSS, "read at byte %" PRIu64 ": %s", offset,
                                 strerror(errno));
        }
        if (n == 0) {
            return status_errorf(STATUS_DATA_LOSS,
                                 "ends at byte %" PRIu64 ": it shrank while it was read", offset);
        }
        at += n;
        offset += (uint64_t)n;
        size -= (size_t)n;
    }
    return status_ok();
}

static uint64_t load_u64(const uint8_t bytes[PREFIX_BYTES])
{
    uint64_t value = 0;
    for (int i = PREFIX_BYTES - 1; i >= 0; i--) {
        value = value << 8 | bytes[i];
    }
    return value;
}

static status_t read_prefix(int fd, uint64_t file_bytes, uint64_t *header_bytes_out)
{
    static const char lfs[] = "version https://git-lfs";
    char start[sizeof lfs] = {0};
    const size_t want = file_bytes < sizeof lfs - 1 ? (size_t)file_bytes : sizeof lfs - 1;
    TRY(read_exactly(fd, 0, want, start));
    if (strcmp(start, lfs) == 0) {
        return status_errorf(STATUS_DATA_LOSS,
                             "is a git-lfs pointer, not the weights themselves" STATUS_FIX
                             "run `git lfs pull` in the model's repository");
    }
    if (file_bytes < PREFIX_BYTES) {
        return status_errorf(STATUS_DATA_LOSS,
                             "%" PRIu64 " bytes, a safetensors file has at least 10", file_bytes);
    }
    uint8_t prefix[PREFIX_BYTES];
    memcpy(prefix, start, sizeof prefix);
    const uint64_t n = load_u64(prefix);
    if (n > SAFETENSORS_MAX_HEADER_BYTES) {
        return status_errorf(STATUS_DATA_LOSS,
                             "header of %" PRIu64 " bytes, limit %" PRIu64
                             " (not a safetensors file?)",
                             n, SAFETENSORS_MAX_HEADER_BYTES);
    }
    if (n > file_bytes - PREFIX_BYTES) {
        return status_errorf(STATUS_DATA_LOSS,
                             "header of %" PRIu64 " bytes in a file of %" PRIu64
                             " (truncated)" STATUS_FIX "download the file again",
                             n, file_bytes);
    }
    *header_bytes_out = n;
    return status_ok();
}

static status_t read_header(int fd, uint64_t file_bytes, const char *path,
                            struct safetensors *file_out)
{
    uint64_t header_bytes;
    status_t s = read_prefix(fd, file_bytes, &header_bytes);
    if (!status_is_ok(&s)) {
        return status_wrapf(s, "%s", path);
    }
    char *header = malloc((size_t)header_bytes + 1);
    if (header == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED,
                             "%s: no memory for a header of %" PRIu64 " bytes", path, header_bytes);
    }
    s = read_exactly(fd, PREFIX_BYTES, (size_t)header_bytes, header);
    if (status_is_ok(&s)) {
        s = safetensors_parse(header, (size_t)header_bytes,
                              file_bytes - PREFIX_BYTES - header_bytes, path, file_out);
    } else {
        s = status_wrapf(s, "%s", path);
    }
    free(header);
    return s;
}

status_t safetensors_open(const char *dir, const char *name, struct safetensors *file_out)
{
    char path[PATH_BYTES];
    TRY(file_join(path, sizeof path, dir, name));
    int fd;
    uint64_t file_bytes;
    TRY(open_beneath(dir, name, &fd, &file_bytes));
    const status_t s = read_header(fd, file_bytes, path, file_out);
    if (!status_is_ok(&s)) {
        close(fd);
        return s;
    }
    file_out->fd = fd;
    return status_ok();
}

void safetensors_close(struct safetensors *file)
{
    if (file->path == NULL) {
        return; // zeroed: its descriptor 0 is not ours
    }
    if (file->fd >= 0) {
        close(file->fd);
    }
    free(file->path);
    free(file->tensors);
    arena_destroy(&file->strings);
    memset(file, 0, sizeof *file);
}

static int name_against_tensor(const void *key, const void *element)
{
    const struct safetensors_tensor *tensor = element;
    return strcmp(key, tensor->name);
}

const struct safetensors_tensor *safetensors_find(const struct safetensors *file, const char *name)
{
    if (file->n_tensors == 0) {
        return NULL;
    }
    return bsearch(name, file->tensors, file->n_tensors, sizeof *file->tensors,
                   name_against_tensor);
}

status_t safetensors_read(const struct safetensors *file, const struct safetensors_tensor *tensor,
                          uint64_t offset, size_t size, void *out)
{
    if (offset > tensor->size_bytes || size > tensor->size_bytes - offset) {
        return status_errorf(STATUS_INTERNAL,
                             "%s: tensor %.200s: read of %zu bytes at %" PRIu64 ", it has %" PRIu64,
                             file->path, tensor->name, size, offset, tensor->size_bytes);
    }
    const status_t s = read_exactly(file->fd, tensor->offset_bytes + offset, size, out);
    return status_is_ok(&s) ? s : status_wrapf(s, "%s: tensor %.200s", file->path, tensor->name);
}
