#include "tests/fuzz/fuzz_driver.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "tests/support/test.h"

#define MAX_INPUT_BYTES ((size_t)64 * 1024)
#define BUFFER_BYTES    ((size_t)64 << 20) /* room to read into, and for a generator */
#define MAX_FILES       256
#define MAX_WORDS       512
#define SECONDS_A_RUN   20
#define MAX_CHANGES     5
#define WORDS_FILE_NAME "words.txt"

/* Where the parent finds the input that its child died of. */
struct shared {
    size_t size;
    uint8_t input[MAX_INPUT_BYTES];
};

struct corpus {
    struct bytes files[MAX_FILES];
    size_t n_files;
    struct bytes words_text;
    char *words[MAX_WORDS]; /* into words_text */
    size_t n_words;
};

struct search {
    unsigned long n_runs;
    struct corpus corpus;
    struct shared *shared;
};

/* Numbers at the edges of types, and what JSON is made of. */
static const char *const common_words[] = {
    "0",
    "-1",
    "1e3",
    "2147483648",
    "4294967296",
    "9223372036854775807",
    "18446744073709551616",
    "null",
    "true",
    "{}",
    "[]",
    "\"\"",
    "\"a\"",
    "1e999",
    ",",
    ":",
    "{",
    "}",
    "[",
    "]",
    "\"",
    "0.5",
    "[0]",
    "[[]]",
    "\\u0000",
    "\\ud800",
    "\xff",
    "\xe2\x96\x81",
};

#define N_COMMON_WORDS (sizeof common_words / sizeof common_words[0])

// ---- corpus ----

static bool ends_with(const char *text, const char *end)
{
    const size_t n = strlen(text);
    const size_t m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

static void split_words(struct corpus *corpus)
{
    char *rest = (char *)corpus->words_text.data;
    while (rest != NULL && corpus->n_words < MAX_WORDS) {
        char *line = strsep(&rest, "\n");
        if (line[0] != '\0') {
            corpus->words[corpus->n_words++] = line;
        }
    }
}

static status_t load_file(struct corpus *corpus, const char *path)
{
    if (ends_with(path, WORDS_FILE_NAME)) {
        bytes_init(&corpus->words_text, BUFFER_BYTES);
        TRY(file_read(path, MAX_INPUT_BYTES - 1, &corpus->words_text));
        TRY(bytes_append(&corpus->words_text, "", 1));
        split_words(corpus);
        return status_ok();
    }
    if (corpus->n_files == MAX_FILES) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "more than %d files in the corpus",
                             MAX_FILES);
    }
    struct bytes *file = &corpus->files[corpus->n_files];
    bytes_init(file, BUFFER_BYTES);
    TRY(file_read(path, MAX_INPUT_BYTES, file));
    corpus->n_files++;
    return status_ok();
}

static int not_hidden(const struct dirent *entry)
{
    return entry->d_name[0] != '.';
}

/* In the order of names: the same search everywhere. */
static status_t corpus_load(const char *dir, struct corpus *corpus)
{
    struct dirent **entries = NULL;
    const int n = scandir(dir, &entries, not_hidden, alphasort);
    if (n < 0) {
        return status_errorf(STATUS_NOT_FOUND, "%s: no such corpus", dir);
    }
    status_t s = status_ok();
    for (int i = 0; i < n; i++) {
        char path[TEST_PATH_BYTES];
        if (status_is_ok(&s)) {
            s = file_join(path, sizeof path, dir, entries[i]->d_name);
        }
        if (status_is_ok(&s)) {
            s = load_file(corpus, path);
        }
        free(entries[i]);
    }
    free(entries);
    return s;
}

static void corpus_destroy(struct corpus *corpus)
{
    for (size_t i = 0; i < corpus->n_files; i++) {
        bytes_destroy(&corpus->files[i]);
    }
    bytes_destroy(&corpus->words_text);
}

// ---- damage ----

/* Replaces `removed` bytes at `at` by others; what grows too large stays as it was. */
static void replace(struct bytes *input, size_t at, size_t removed, const void *data, size_t size)
{
    uint8_t *tail;
    if (input->size - removed + size > MAX_INPUT_BYTES) {
        return;
    }
    const status_t s = bytes_reserve(input, size, &tail);
    assert_status_ok(s);
    memmove(input->data + at + size, input->data + at + removed, input->size - at - removed);
    memcpy(input->data + at, data, size);
    input->size = input->size - removed + size;
}

static void put_word(const struct corpus *corpus, struct bytes *input, size_t at)
{
    const size_t choice = test_random_below(N_COMMON_WORDS + corpus->n_words);
    const char *word =
        choice < N_COMMON_WORDS ? common_words[choice] : corpus->words[choice - N_COMMON_WORDS];
    const size_t rest = input->size - at;
    const size_t removed = test_random_below(8);
    replace(input, at, removed < rest ? removed : rest, word, strlen(word));
}

/* A piece of the input, or of another one, once more. */
static void put_piece(const struct corpus *corpus, struct bytes *input, size_t at)
{
    const struct bytes *from =
        corpus->n_files > 0 ? &corpus->files[test_random_below(corpus->n_files)] : input;
    if (from->size == 0) {
        return;
    }
    const size_t begin = test_random_below(from->size);
    const size_t size = 1 + test_random_below(from->size - begin);
    uint8_t *piece = malloc(size);
    assert_non_null(piece);
    memcpy(piece, from->data + begin, size);
    replace(input, at, 0, piece, size);
    free(piece);
}

static void damage_once(const struct corpus *corpus, struct bytes *input)
{
    if (input->size == 0) {
        return;
    }
    const size_t at = test_random_below(input->size);
    const size_t rest = input->size - at;
    switch (test_random_below(8)) {
    case 0:
        input->data[at] = (uint8_t)test_random_below(256);
        break;
    case 1:
        input->data[at] ^= (uint8_t)(1u << test_random_below(8));
        break;
    case 2:
        replace(input, at, 1 + test_random_below(rest < 16 ? rest : 16), "", 0);
        break;
    case 3:
        put_piece(corpus, input, at);
        break;
    case 4:
        input->size = test_random_below(8) == 0 ? at : input->size;
        break;
    default:
        put_word(corpus, input, at);
        break;
    }
}

static void make_input(const struct corpus *corpus, struct bytes *input)
{
    bytes_clear(input);
    if (!fuzz_generate(input) && corpus->n_files > 0) {
        const struct bytes *file = &corpus->files[test_random_below(corpus->n_files)];
        assert_status_ok(bytes_append(input, file->data, file->size));
    }
    for (uint64_t n = test_random_below(MAX_CHANGES); n > 0; n--) {
        damage_once(corpus, input);
    }
    input->size = input->size < MAX_INPUT_BYTES ? input->size : MAX_INPUT_BYTES;
}

// ---- running ----

/* In memory of exactly this size, so that the address sanitizer sees one byte too far. */
static void run_one(struct shared *shared, const uint8_t *data, size_t size)
{
    shared->size = size;
    memcpy(shared->input, data != NULL ? data : (const uint8_t *)"", size);
    uint8_t *copy = malloc(size > 0 ? size : 1);
    if (copy == NULL) {
        return;
    }
    memcpy(copy, shared->input, size);
    (void)alarm(SECONDS_A_RUN);
    (void)LLVMFuzzerTestOneInput(copy, size);
    (void)alarm(0);
    free(copy);
}

static void run_search(struct search *search)
{
    const struct corpus *corpus = &search->corpus;
    for (size_t i = 0; i < corpus->n_files; i++) {
        run_one(search->shared, corpus->files[i].data, corpus->files[i].size);
    }
    struct bytes input;
    bytes_init(&input, BUFFER_BYTES);
    for (unsigned long i = 0; i < search->n_runs; i++) {
        make_input(corpus, &input);
        run_one(search->shared, input.data, input.size);
    }
    bytes_destroy(&input);
}

/* NAME.failed in the working directory. */
static void keep_input(const char *program, const struct shared *shared)
{
    const char *slash = strrchr(program, '/');
    char path[TEST_PATH_BYTES];
    snprintf(path, sizeof path, "%s.failed", slash != NULL ? slash + 1 : program);
    FILE *file = fopen(path, "we");
    if (file == NULL) {
        return;
    }
    const size_t n = fwrite(shared->input, 1, shared->size, file);
    if (fclose(file) == 0 && n == shared->size) {
        fprintf(stderr, "the last input is kept in %s (%zu bytes)\n", path, n);
    }
}

/* The exit code; the child's own when it is not 0. */
static int wait_for(pid_t child, const char *program, const struct shared *shared)
{
    int status = 0;
    if (waitpid(child, &status, 0) != child) {
        return 1;
    }
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
        return 0;
    }
    if (WIFSIGNALED(status)) {
        fprintf(stderr, "ended by signal %d (%s)\n", WTERMSIG(status), strsignal(WTERMSIG(status)));
    }
    keep_input(program, shared);
    return 1;
}

static int search_in_child(struct search *search, const char *program)
{
    const uint64_t seed = test_seed();
    const uint64_t started = clock_now_ns(clock_system());
    fflush(stdout);
    const pid_t child = fork();
    if (child < 0) {
        perror("fork");
        return 1;
    }
    if (child == 0) {
        run_search(search);
        return 0;
    }
    const int code = wait_for(child, program, search->shared);
    if (code == 0) {
        printf("%lu inputs from seed %llu, %.1f s\n", search->n_runs, (unsigned long long)seed,
               (double)(clock_now_ns(clock_system()) - started) / 1e9);
    }
    return code;
}

static int run_files(struct shared *shared, int n, char **paths)
{
    for (int i = 0; i < n; i++) {
        struct bytes input;
        bytes_init(&input, BUFFER_BYTES);
        const status_t s = file_read(paths[i], MAX_INPUT_BYTES, &input);
        if (!status_is_ok(&s)) {
            status_print(stderr, &s);
            return status_exit_code(&s);
        }
        run_one(shared, input.data, input.size);
        bytes_destroy(&input);
    }
    return 0;
}

/* dir NULL: the target makes its inputs itself. */
static int run_from_corpus(struct search *search, const char *dir, const char *program)
{
    const status_t s = dir != NULL ? corpus_load(dir, &search->corpus) : status_ok();
    int code = status_exit_code(&s);
    if (status_is_ok(&s)) {
        code = search_in_child(search, program);
    } else {
        status_print(stderr, &s);
    }
    corpus_destroy(&search->corpus);
    return code;
}

int main(int argc, char **argv)
{
    struct search *search = calloc(1, sizeof *search);
    struct shared *shared =
        mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (search == NULL || shared == MAP_FAILED) {
        perror(argv[0]);
        free(search);
        return 1;
    }
    search->shared = shared;
    char *end = NULL;
    search->n_runs = argc == 2 || argc == 3 ? strtoul(argv[1], &end, 10) : 0;
    const int code = end != NULL && *end == '\0' ? run_from_corpus(search, argv[2], argv[0])
                                                 : run_files(shared, argc - 1, argv + 1);
    munmap(shared, sizeof *shared);
    free(search);
    return code;
}
