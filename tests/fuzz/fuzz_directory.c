#include "tests/fuzz/fuzz_directory.h"

#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char directory[256];

static void require(int holds)
{
    if (!holds) {
        perror(directory);
        abort();
    }
}

static const char *file_path(const char *name, char path[512])
{
    const int n = snprintf(path, 512, "%s/%s", directory, name);
    require(n > 0 && n < 512);
    return path;
}

static void write_file(const char *name, const void *data, size_t size)
{
    char path[512];
    const int fd = open(file_path(name, path), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    require(fd >= 0);
    require(write(fd, data, size) == (ssize_t)size);
    require(close(fd) == 0);
}

static const char *const names[] = {
    "config.json",           "generation_config.json",
    "tokenizer.json",        "model.safetensors.index.json",
    "tokenizer_config.json", "chat_template.jinja",
    "a.safetensors",         "b.safetensors",
};

static void remove_all(void)
{
    char path[512];
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        (void)unlink(file_path(names[i], path));
    }
    (void)rmdir(directory);
}

/* One tensor of two bytes. */
static void write_shard(const char *name, const char *tensor)
{
    char file[256] = {0};
    const int n =
        snprintf(file + 8, sizeof file - 8,
                 "{\"%s\":{\"dtype\":\"BF16\",\"shape\":[1],\"data_offsets\":[0,2]}}", tensor);
    file[0] = (char)n;
    write_file(name, file, 8 + (size_t)n + 2);
}

static void make(void)
{
    static const char config[] =
        "{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":8,\"num_hidden_layers\":1,"
        "\"num_attention_heads\":2,\"intermediate_size\":8,\"vocab_size\":8,"
        "\"max_position_embeddings\":16,\"rms_norm_eps\":1e-5}";
    static const char tokenizer[] =
        "{\"added_tokens\":[{\"id\":0,\"content\":\"<s>\",\"special\":true}],"
        "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false},"
        "\"decoder\":{\"type\":\"ByteLevel\"},"
        "\"model\":{\"type\":\"BPE\",\"vocab\":{\"<s>\":0,\"a\":1,\"b\":2,\"ab\":3},"
        "\"merges\":[\"a b\"]}}";
    const char *root = getenv("TMPDIR");
    snprintf(directory, sizeof directory, "%s/kvasir-fuzz-XXXXXX",
             root != NULL && root[0] != '\0' ? root : "/tmp");
    require(mkdtemp(directory) != NULL);
    (void)atexit(remove_all);
    write_file("config.json", config, sizeof config - 1);
    write_file("tokenizer.json", tokenizer, sizeof tokenizer - 1);
    write_shard("a.safetensors", "a");
    write_shard("b.safetensors", "b");
}

const char *fuzz_directory(void)
{
    if (directory[0] == '\0') {
        make();
    }
    return directory;
}

void fuzz_directory_write(const char *name, const void *data, size_t size)
{
    (void)fuzz_directory();
    write_file(name, data, size);
}

void fuzz_directory_remove(const char *name)
{
    char path[512];
    (void)unlink(file_path(name, path));
}
