/*
 * matmul_table.c - which way to multiply is the fastest, by shape; in memory and on disk
 *
 * Layout:  a text file, a line each, numbers in decimal, algorithms in hexadecimal:
 *
 *            kvasir matmul 1
 *            device NVIDIA H200
 *            cublaslt 130100 driver 13000
 *            N_OUT N_IN N_ROWS OUT_DTYPE ALIGNMENT small TIME_US
 *            N_OUT N_IN N_ROWS OUT_DTYPE ALIGNMENT library TIME_US W0 W1 W2 W3 W4 W5 W6 W7
 *            end COUNT
 *
 *          The last line shows that nothing is missing. Algorithms are data of the library's own, good for the version and
 *          device named above them.
 * Thread:  a table has one owner. Files may be read and written by several processes at once: the last to write stays.
 */
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "kernels/cuda/matmul.h"

enum { MAX_BUCKET = 8192, PATH_BYTES = 4096, MAX_FILE_BYTES = 1 << 20, KEY_BYTES = 256 };

int32_t cuda_matmul_table_bucket(int32_t n_rows)
{
    int32_t bucket = 1;
    while (bucket < n_rows && bucket < MAX_BUCKET) {
        bucket *= 2;
    }
    return bucket;
}

// ---- in memory ----

static int compare(const struct cuda_matmul_shape *a, const struct cuda_matmul_shape *b)
{
    const int32_t of_a[] = {a->n_out, a->n_in, a->n_rows, a->out_dtype, a->alignment};
    const int32_t of_b[] = {b->n_out, b->n_in, b->n_rows, b->out_dtype, b->alignment};
    for (size_t i = 0; i < sizeof of_a / sizeof of_a[0]; i++) {
        if (of_a[i] != of_b[i]) {
            return of_a[i] < of_b[i] ? -1 : 1;
        }
    }
    return 0;
}

/* The first choice that is not before the shape. */
static int32_t place_of(const struct cuda_matmul_table *table,
                        const struct cuda_matmul_shape *shape)
{
    int32_t low = 0, high = table->n;
    while (low < high) {
        const int32_t middle = (low + high) / 2;
        if (compare(&table->choices[middle].shape, shape) < 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

const struct cuda_matmul_choice *cuda_matmul_table_find(const struct cuda_matmul_table *table,
                                                        const struct cuda_matmul_shape *shape)
{
    const int32_t at = place_of(table, shape);
    const bool is_there = at < table->n && compare(&table->choices[at].shape, shape) == 0;
    return is_there ? &table->choices[at] : NULL;
}

void cuda_matmul_table_put(struct cuda_matmul_table *table, const struct cuda_matmul_choice *choice)
{
    const int32_t at = place_of(table, &choice->shape);
    struct cuda_matmul_choice *const place = &table->choices[at];
    if (at == table->n || compare(&place->shape, &choice->shape) != 0) {
        if (table->n == CUDA_MATMUL_MAX_CHOICES) {
            return;
        }
        memmove(place + 1, place, (size_t)(table->n - at) * sizeof *place);
        table->n++;
    }
    *place = *choice;
}

// ---- reading ----

static void print_key(const struct cuda_matmul_key *key, char buf[KEY_BYTES])
{
    (void)snprintf(buf, KEY_BYTES, "device %s\ncublaslt %" PRIu64 " driver %" PRIu64 "\n",
                   key->device, key->library_version, key->driver_version);
}

static const char heading[] = "kvasir matmul 1\n";

/* Moves *at past the text; false where something else stands there. */
static bool skip(const char **at, const char *text)
{
    const size_t n = strlen(text);
    if (strncmp(*at, text, n) != 0) {
        return false;
    }
    *at += n;
    return true;
}

static bool is_sound(const struct cuda_matmul_choice *choice)
{
    const struct cuda_matmul_shape *s = &choice->shape;
    const bool is_bucket = s->n_rows > 0 && s->n_rows == cuda_matmul_table_bucket(s->n_rows);
    const bool is_aligned =
        s->alignment == 2 || s->alignment == 4 || s->alignment == 8 || s->alignment == 16;
    const bool is_way = choice->way == CUDA_MATMUL_LIBRARY ||
                        (choice->way == CUDA_MATMUL_SMALL && s->n_rows <= CUDA_MATMUL_SMALL_ROWS);
    return s->n_out > 0 && s->n_in > 0 && is_bucket && is_aligned && is_way &&
           (s->out_dtype == DTYPE_F32 || s->out_dtype == DTYPE_BF16) && choice->time_us > 0.0f;
}

/* One line of the table, without its end. */
static bool parse_choice(const char *line, struct cuda_matmul_choice *choice)
{
    struct cuda_matmul_shape *const s = &choice->shape;
    char way[8];
    int n_read = 0;
    *choice = (struct cuda_matmul_choice){0};
    if (sscanf(line, "%" SCNd32 " %" SCNd32 " %" SCNd32 " %" SCNd32 " %" SCNd32 " %7s %f%n",
               &s->n_out, &s->n_in, &s->n_rows, &s->out_dtype, &s->alignment, way, &choice->time_us,
               &n_read) != 7) {
        return false;
    }
    line += n_read;
    choice->way = strcmp(way, "library") == 0 ? CUDA_MATMUL_LIBRARY : CUDA_MATMUL_SMALL;
    if (choice->way == CUDA_MATMUL_SMALL && strcmp(way, "small") != 0) {
        return false;
    }
    const int n_words = choice->way == CUDA_MATMUL_LIBRARY ? CUDA_MATMUL_ALGORITHM_WORDS : 0;
    for (int i = 0; i < n_words; i++) {
        if (sscanf(line, " %16" SCNx64 "%n", &choice->algorithm.words[i], &n_read) != 1) {
            return false;
        }
        line += n_read;
    }
    return *line == '\0' && is_sound(choice);
}

/* The lines after the key; at is changed on the way. */
static status_t parse_choices(char *at, const char *path, struct cuda_matmul_table *table)
{
    for (;;) {
        char *const end = strchr(at, '\n');
        if (end == NULL) {
            return status_errorf(STATUS_DATA_LOSS, "%s: ends in the middle, after %d choices", path,
                                 table->n);
        }
        *end = '\0';
        int32_t n = 0;
        int n_read = 0;
        if (sscanf(at, "end %" SCNd32 "%n", &n, &n_read) == 1) {
            if (at[n_read] != '\0' || n != table->n || end[1] != '\0') {
                return status_errorf(STATUS_DATA_LOSS, "%s: %d choices, and its end says %d", path,
                                     table->n, n);
            }
            return status_ok();
        }
        struct cuda_matmul_choice choice;
        if (!parse_choice(at, &choice)) {
            return status_errorf(STATUS_DATA_LOSS, "%s: choice %d is none", path, table->n + 1);
        }
        cuda_matmul_table_put(table, &choice);
        at = end + 1;
    }
}

static status_t parse(char *text, const char *path, const struct cuda_matmul_key *key,
                      struct cuda_matmul_table *table)
{
    char want[KEY_BYTES];
    print_key(key, want);
    const char *at = text;
    if (!skip(&at, heading)) {
        return status_errorf(STATUS_DATA_LOSS, "%s: not a table of matmul choices", path);
    }
    if (!skip(&at, want)) {
        return status_errorf(STATUS_NOT_FOUND,
                             "%s: measured with another device, library or driver", path);
    }
    return parse_choices(text + (at - text), path, table);
}

status_t cuda_matmul_table_read(const char *path, const struct cuda_matmul_key *key,
                                struct cuda_matmul_table *table_out)
{
    struct bytes text;
    bytes_init(&text, MAX_FILE_BYTES + 1);
    struct cuda_matmul_table *table = NULL;
    status_t s;
    TRY_GOTO(s, file_read(path, MAX_FILE_BYTES, &text), done);
    TRY_GOTO(s, bytes_append(&text, "", 1), done);
    table = calloc(1, sizeof *table);
    if (table == NULL) {
        s = status_errorf(STATUS_RESOURCE_EXHAUSTED, "%s: out of memory", path);
        goto done;
    }
    TRY_GOTO(s, parse((char *)text.data, path, key, table), done);
    *table_out = *table;

done:
    free(table);
    bytes_destroy(&text);
    return s;
}

// ---- writing ----

status_t cuda_matmul_table_path(const char *dir, const struct cuda_matmul_key *key, char *buf)
{
    char name[sizeof key->device + 16];
    (void)snprintf(name, sizeof name, "matmul-%s.txt", key->device);
    for (char *c = name + strlen("matmul-"); c[0] != '\0' && strcmp(c, ".txt") != 0; c++) {
        if (isalnum((unsigned char)*c) == 0) {
            *c = '-';
        }
    }
    return file_join(buf, PATH_BYTES, dir, name);
}

static void print_choice(FILE *out, const struct cuda_matmul_choice *choice)
{
    const struct cuda_matmul_shape *const s = &choice->shape;
    const bool library = choice->way == CUDA_MATMUL_LIBRARY;
    (void)fprintf(out, "%d %d %d %d %d %s %.3f", s->n_out, s->n_in, s->n_rows, s->out_dtype,
                  s->alignment, library ? "library" : "small", (double)choice->time_us);
    for (int i = 0; library && i < CUDA_MATMUL_ALGORITHM_WORDS; i++) {
        (void)fprintf(out, " %" PRIx64, choice->algorithm.words[i]);
    }
    (void)fputc('\n', out);
}

static status_t print_table(FILE *out, const struct cuda_matmul_key *key,
                            const struct cuda_matmul_table *table)
{
    char text[KEY_BYTES];
    print_key(key, text);
    (void)fprintf(out, "%s%s", heading, text);
    int32_t n = 0;
    for (int32_t i = 0; i < table->n; i++) {
        if (table->choices[i].time_us > 0.0f) {
            print_choice(out, &table->choices[i]);
            n++;
        }
    }
    (void)fprintf(out, "end %d\n", n);
    const bool failed = ferror(out) != 0;
    if (fclose(out) != 0 || failed) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "write: %s", strerror(errno));
    }
    return status_ok();
}

/* Makes the directory the file is to be in, and those above it. */
static void make_directories(const char *path)
{
    char dir[PATH_BYTES];
    (void)snprintf(dir, sizeof dir, "%s", path);
    for (char *c = dir + 1; *c != '\0'; c++) {
        if (*c == '/') {
            *c = '\0';
            (void)mkdir(dir, 0755); // one that fails shows when the file is opened
            *c = '/';
        }
    }
}

status_t cuda_matmul_table_write(const char *path, const struct cuda_matmul_key *key,
                                 const struct cuda_matmul_table *table)
{
    char temporary[PATH_BYTES + 8];
    (void)snprintf(temporary, sizeof temporary, "%s.XXXXXX", path);
    make_directories(path);
    const int fd = mkstemp(temporary);
    if (fd < 0) {
        return status_errorf(STATUS_PERMISSION_DENIED, "%s: %s", temporary, strerror(errno));
    }
    FILE *const out = fdopen(fd, "w");
    status_t s;
    if (out == NULL) {
        (void)close(fd);
        s = status_errorf(STATUS_RESOURCE_EXHAUSTED, "open: %s", strerror(errno));
        goto remove_temporary;
    }
    TRY_GOTO(s, print_table(out, key, table), remove_temporary);
    if (rename(temporary, path) != 0) {
        s = status_errorf(STATUS_PERMISSION_DENIED, "rename: %s", strerror(errno));
        goto remove_temporary;
    }
    return status_ok();

remove_temporary:
    (void)unlink(temporary);
    return status_wrapf(s, "%s", path);
}
