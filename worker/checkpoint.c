#include "worker/checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <jansson.h>

#include "base/bytes.h"
#include "base/file.h"
#include "base/json_limits.h"

#define SINGLE_NAME     "model.safetensors"
#define INDEX_NAME      "model.safetensors.index.json"
#define MAX_INDEX_BYTES ((size_t)8 * 1024 * 1024)
#define PATH_BYTES      4096

static const struct json_limits index_limits = {
    .max_depth = 16,
    .max_containers = 1000,
    .max_values = CHECKPOINT_MAX_TENSORS,
};

struct shard {
    char *name;
    struct safetensors file;
};

struct checkpoint {
    char *dir;
    size_t n_shards;
    struct shard *shards; /* ascending by name; room for CHECKPOINT_MAX_SHARDS */
    size_t n_listed;      /* in the headers of all shards */
    size_t n_tensors;
    checkpoint_tensor_t *tensors; /* ascending by name */
    uint64_t bytes_read;
};

// ---- what is in the directory ----

static bool ends_with(const char *text, const char *end)
{
    const size_t n = strlen(text);
    const size_t m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

/* The first file of a kind that people mistake for what is needed; NULL: none. */
static const char *find_other_kind(DIR *stream)
{
    static const char *const kinds[] = {".bin",  ".pt", ".pth",  ".ckpt",
                                        ".gguf", ".h5", ".onnx", ".msgpack"};
    for (const struct dirent *entry; (entry = readdir(stream)) != NULL;) {
        for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
            if (ends_with(entry->d_name, kinds[i])) {
                return kinds[i];
            }
        }
    }
    return NULL;
}

static status_t nothing_to_load(const char *dir)
{
    DIR *stream = opendir(dir);
    if (stream == NULL) {
        return status_errorf(errno == EACCES ? STATUS_PERMISSION_DENIED : STATUS_NOT_FOUND,
                             "%s: %s" STATUS_FIX
                             "name a directory with config.json and " SINGLE_NAME,
                             dir, strerror(errno));
    }
    const char *kind = find_other_kind(stream);
    closedir(stream);
    if (kind != NULL) {
        return status_errorf(STATUS_NOT_FOUND,
                             "%s: has %s files and no " SINGLE_NAME STATUS_FIX
                             "download the model's safetensors, or convert it once with "
                             "transformers: AutoModelForCausalLM.from_pretrained(FROM)"
                             ".save_pretrained(TO)",
                             dir, kind);
    }
    return status_errorf(STATUS_NOT_FOUND,
                         "%s: has neither " SINGLE_NAME " nor " INDEX_NAME STATUS_FIX
                         "name the directory that the model's weights are in",
                         dir);
}

/* lstat: a link that leads nowhere is still there, and opening it says what is wrong. */
static bool has_file(const char *dir, const char *name)
{
    char path[PATH_BYTES];
    struct stat st;
    const status_t s = file_join(path, sizeof path, dir, name);
    return status_is_ok(&s) && lstat(path, &st) == 0;
}

// ---- shards ----

static status_t add_shard(struct checkpoint *checkpoint, const char *name)
{
    struct shard *shard = &checkpoint->shards[checkpoint->n_shards];
    struct safetensors file;
    TRY(safetensors_open(checkpoint->dir, name, &file));
    checkpoint->n_listed += file.n_tensors;
    if (checkpoint->n_listed > CHECKPOINT_MAX_TENSORS) {
        const status_t s =
            status_errorf(STATUS_DATA_LOSS, "%s: tensor %zu of the checkpoint, limit %d", file.path,
                          checkpoint->n_listed, CHECKPOINT_MAX_TENSORS);
        safetensors_close(&file);
        return s;
    }
    shard->name = strdup(name);
    if (shard->name == NULL) {
        safetensors_close(&file);
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for a shard's name");
    }
    shard->file = file;
    checkpoint->n_shards++;
    return status_ok();
}

static int name_against_shard(const void *key, const void *element)
{
    const struct shard *shard = element;
    return strcmp(key, shard->name);
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Opens each file that the values of weight_map name once, in the order of their names. */
static status_t open_named_shards(struct checkpoint *checkpoint, const char **names, size_t n_names)
{
    qsort(names, n_names, sizeof *names, compare_names);
    for (size_t i = 0; i < n_names; i++) {
        if (i > 0 && strcmp(names[i], names[i - 1]) == 0) {
            continue;
        }
        if (checkpoint->n_shards == CHECKPOINT_MAX_SHARDS) {
            return status_errorf(STATUS_DATA_LOSS, "%s/" INDEX_NAME ": more than %d shards",
                                 checkpoint->dir, CHECKPOINT_MAX_SHARDS);
        }
        TRY(add_shard(checkpoint, names[i]));
    }
    return status_ok();
}

static status_t open_shards(struct checkpoint *checkpoint, json_t *map)
{
    const char **names = calloc(json_object_size(map) + 1, sizeof *names);
    if (names == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for an index");
    }
    status_t s = status_ok();
    size_t n = 0;
    const char *tensor;
    json_t *file;
    json_object_foreach(map, tensor, file)
    {
        names[n] = json_string_value(file);
        if (names[n] == NULL || !safetensors_name_is_sane(tensor)) {
            s = status_errorf(STATUS_DATA_LOSS,
                              "%s/" INDEX_NAME
                              ": entry %zu of weight_map is not a tensor's name and "
                              "its file's",
                              checkpoint->dir, n);
            break;
        }
        n++;
    }
    if (status_is_ok(&s)) {
        s = open_named_shards(checkpoint, names, n);
    }
    free(names);
    return s;
}

// ---- the table of tensors ----

static int by_name(const void *a, const void *b)
{
    const checkpoint_tensor_t *x = a;
    const checkpoint_tensor_t *y = b;
    return strcmp(x->tensor->name, y->tensor->name);
}

static status_t fill_from_single(struct checkpoint *checkpoint)
{
    TRY(add_shard(checkpoint, SINGLE_NAME));
    const struct safetensors *file = &checkpoint->shards[0].file;
    checkpoint->tensors = calloc(file->n_tensors + 1, sizeof *checkpoint->tensors);
    if (checkpoint->tensors == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for %zu tensors",
                             file->n_tensors);
    }
    for (size_t i = 0; i < file->n_tensors; i++) {
        checkpoint->tensors[i] = (checkpoint_tensor_t){file, &file->tensors[i]};
    }
    checkpoint->n_tensors = file->n_tensors;
    return status_ok();
}

static status_t find_in_shard(const struct checkpoint *checkpoint, const char *name,
                              const char *shard_name, checkpoint_tensor_t *tensor_out)
{
    const struct shard *shard = bsearch(shard_name, checkpoint->shards, checkpoint->n_shards,
                                        sizeof *checkpoint->shards, name_against_shard);
    const struct safetensors_tensor *tensor = safetensors_find(&shard->file, name);
    if (tensor == NULL) {
        return status_errorf(STATUS_DATA_LOSS,
                             "%s: tensor %.200s: " INDEX_NAME " says it is here, the file lacks it",
                             shard->file.path, name);
    }
    *tensor_out = (checkpoint_tensor_t){&shard->file, tensor};
    return status_ok();
}

static status_t fill_from_map(struct checkpoint *checkpoint, json_t *map)
{
    TRY(open_shards(checkpoint, map));
    checkpoint->tensors = calloc(json_object_size(map) + 1, sizeof *checkpoint->tensors);
    if (checkpoint->tensors == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for %zu tensors",
                             json_object_size(map));
    }
    const char *name;
    json_t *file;
    json_object_foreach(map, name, file)
    {
        TRY(find_in_shard(checkpoint, name, json_string_value(file),
                          &checkpoint->tensors[checkpoint->n_tensors]));
        checkpoint->n_tensors++;
    }
    qsort(checkpoint->tensors, checkpoint->n_tensors, sizeof *checkpoint->tensors, by_name);
    return status_ok();
}

/* Two shards with the same tensor: which of them is meant would be a guess. */
static status_t check_shard_tensors(const struct checkpoint *checkpoint, const struct shard *shard)
{
    for (size_t i = 0; i < shard->file.n_tensors; i++) {
        const char *name = shard->file.tensors[i].name;
        checkpoint_tensor_t listed;
        const status_t s = checkpoint_find(checkpoint, name, &listed);
        if (status_is_ok(&s) && listed.file != &shard->file) {
            return status_errorf(STATUS_DATA_LOSS,
                                 "%s: tensor %.200s: " INDEX_NAME
                                 " says it is in %s, here it is too",
                                 shard->file.path, name, listed.file->path);
        }
    }
    return status_ok();
}

static status_t check_all_shards(const struct checkpoint *checkpoint)
{
    for (size_t i = 0; i < checkpoint->n_shards; i++) {
        TRY(check_shard_tensors(checkpoint, &checkpoint->shards[i]));
    }
    return status_ok();
}

/* metadata.total_size, where it is given, counts the tensors' bytes: an index of other files does not fit. */
static status_t check_total(const struct checkpoint *checkpoint, const json_t *root)
{
    const json_t *total = json_object_get(json_object_get(root, "metadata"), "total_size");
    uint64_t bytes = 0;
    for (size_t i = 0; i < checkpoint->n_tensors; i++) {
        bytes += checkpoint->tensors[i].tensor->size_bytes;
    }
    if (total == NULL || (json_is_number(total) && json_number_value(total) == (double)bytes)) {
        return status_ok();
    }
    if (!json_is_number(total)) {
        return status_errorf(STATUS_DATA_LOSS, "%s/" INDEX_NAME ": total_size must be a number",
                             checkpoint->dir);
    }
    return status_errorf(STATUS_DATA_LOSS,
                         "%s/" INDEX_NAME ": total_size is %.0f, the tensors have %" PRIu64
                         " bytes" STATUS_FIX "download index and shards again, of one revision",
                         checkpoint->dir, json_number_value(total), bytes);
}

static status_t parse_index(const char *path, json_t **root_out)
{
    struct bytes text;
    bytes_init(&text, MAX_INDEX_BYTES + 1);
    status_t s;
    TRY_GOTO(s, file_read(path, MAX_INDEX_BYTES, &text), undo_text);
    s = json_limits_check((const char *)text.data, text.size, &index_limits);
    TRY_GOTO(s, status_wrapf(s, "%s", path), undo_text);
    json_error_t error;
    *root_out = json_loadb((const char *)text.data, text.size, JSON_REJECT_DUPLICATES, &error);
    if (*root_out == NULL) {
        s = status_errorf(STATUS_DATA_LOSS, "%s: not the JSON it must be: line %d, column %d", path,
                          error.line, error.column);
        goto undo_text;
    }
    bytes_destroy(&text);
    return status_ok();

undo_text:
    bytes_destroy(&text);
    return s;
}

static status_t fill_from_index(struct checkpoint *checkpoint)
{
    char path[PATH_BYTES];
    TRY(file_join(path, sizeof path, checkpoint->dir, INDEX_NAME));
    json_t *root;
    TRY(parse_index(path, &root));
    json_t *map = json_object_get(root, "weight_map");
    status_t s;
    if (!json_is_object(map) || json_object_size(map) == 0) {
        s = status_errorf(STATUS_DATA_LOSS, "%s: weight_map must be an object with tensors", path);
    } else {
        s = fill_from_map(checkpoint, map);
    }
    if (status_is_ok(&s)) {
        s = check_all_shards(checkpoint);
    }
    if (status_is_ok(&s)) {
        s = check_total(checkpoint, root);
    }
    json_decref(root);
    return s;
}

// ---- open, find, read ----

static status_t fill(struct checkpoint *checkpoint)
{
    // Both: Hugging Face reads the single file.
    if (has_file(checkpoint->dir, SINGLE_NAME)) {
        return fill_from_single(checkpoint);
    }
    if (has_file(checkpoint->dir, INDEX_NAME)) {
        return fill_from_index(checkpoint);
    }
    return nothing_to_load(checkpoint->dir);
}

status_t checkpoint_open(const char *dir, struct checkpoint **checkpoint_out)
{
    struct checkpoint *checkpoint = calloc(1, sizeof *checkpoint);
    if (checkpoint == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for a checkpoint");
    }
    checkpoint->dir = strdup(dir);
    checkpoint->shards = calloc(CHECKPOINT_MAX_SHARDS, sizeof *checkpoint->shards);
    status_t s = checkpoint->dir != NULL && checkpoint->shards != NULL
                     ? fill(checkpoint)
                     : status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for a checkpoint");
    if (!status_is_ok(&s)) {
        checkpoint_close(checkpoint);
        return s;
    }
    *checkpoint_out = checkpoint;
    return status_ok();
}

void checkpoint_close(struct checkpoint *checkpoint)
{
    if (checkpoint == NULL) {
        return;
    }
    for (size_t i = 0; i < checkpoint->n_shards; i++) {
        free(checkpoint->shards[i].name);
        safetensors_close(&checkpoint->shards[i].file);
    }
    free(checkpoint->shards);
    free(checkpoint->tensors);
    free(checkpoint->dir);
    free(checkpoint);
}

static int name_against_tensor(const void *key, const void *element)
{
    const checkpoint_tensor_t *tensor = element;
    return strcmp(key, tensor->tensor->name);
}

status_t checkpoint_find(const struct checkpoint *checkpoint, const char *name,
                         checkpoint_tensor_t *tensor_out)
{
    const checkpoint_tensor_t *found = NULL;
    if (checkpoint->n_tensors > 0) {
        found = bsearch(name, checkpoint->tensors, checkpoint->n_tensors,
                        sizeof *checkpoint->tensors, name_against_tensor);
    }
    if (found == NULL) {
        return status_errorf(STATUS_NOT_FOUND, "%s: no tensor %s among %zu", checkpoint->dir, name,
                             checkpoint->n_tensors);
    }
    *tensor_out = *found;
    return status_ok();
}

size_t checkpoint_n_tensors(const struct checkpoint *checkpoint)
{
    return checkpoint->n_tensors;
}

checkpoint_tensor_t checkpoint_tensor_at(const struct checkpoint *checkpoint, size_t index)
{
    return checkpoint->tensors[index];
}

status_t checkpoint_read(struct checkpoint *checkpoint, checkpoint_tensor_t tensor, uint64_t offset,
                         size_t size, void *out)
{
    TRY(safetensors_read(tensor.file, tensor.tensor, offset, size, out));
    checkpoint->bytes_read += size;
    return status_ok();
}

uint64_t checkpoint_bytes_read(const struct checkpoint *checkpoint)
{
    return checkpoint->bytes_read;
}
