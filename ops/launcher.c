/*
 * launcher.c - starts a program of a relocatable bundle
 *
 * What:     needs nothing of the machine but the kernel: linked statically, it finds its own directory and runs the
 *           program of its own name by way of the bundle's loader and libraries (ops/bundle makes the tree).
 * Layout:   PREFIX/bin/NAME            this program, under the name of each
 *           PREFIX/libexec/NAME        the programs themselves
 *           PREFIX/lib                 kvasir-cuda.so; no libraries, so that an LD_LIBRARY_PATH with it harms nobody
 *           PREFIX/lib/system          loader, C library and all other libraries
 *           PREFIX/lib/openmpi, pmix   plugins
 *           PREFIX/share/openmpi       texts
 * Order:    ours come before LD_LIBRARY_PATH, which the loader would ignore if it were not handed on: with it users
 *           name their CUDA libraries.
 */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define EX_OSERR  71
#define LOADER    "ld-linux-x86-64.so.2"
#define MAX_EXTRA 8

struct variable {
    const char *name, *below; /* NAME=PREFIX/below */
};

/* Open MPI and PMIx were built for another place. Each directory is named, as Debian moves them one by one. */
static const struct variable variables[] = {
    {"KVASIR_PREFIX", ""},
    {"OPAL_PREFIX", ""},
    {"OPAL_BINDIR", "/bin"},
    {"OPAL_LIBDIR", "/lib"},
    {"OPAL_PKGLIBDIR", "/lib/openmpi"},
    {"OPAL_DATADIR", "/share"},
    {"OPAL_PKGDATADIR", "/share/openmpi"},
    {"OPAL_SYSCONFDIR", "/etc/openmpi"},
    {"PMIX_PREFIX", ""},
    {"PMIX_LIBDIR", "/lib"},
    {"PMIX_PKGLIBDIR", "/lib/pmix"},
    {"PMIX_DATADIR", "/share"},
    {"PMIX_PKGDATADIR", "/share/pmix"},
    {"PMIX_SYSCONFDIR", "/etc/pmix"},
};

static int fail(const char *what)
{
    fprintf(stderr, "error: %s: %s\n", what, strerror(errno));
    return EX_OSERR;
}

/* PREFIX and NAME of PREFIX/bin/NAME, both in path. */
static int split(char *path, const char **prefix_out, const char **name_out)
{
    const ssize_t n = readlink("/proc/self/exe", path, PATH_MAX - 1);
    if (n < 0) {
        return -1;
    }
    path[n] = '\0';
    char *const name = strrchr(path, '/');
    if (name == NULL) {
        return -1;
    }
    *name = '\0';
    char *const bin = strrchr(path, '/');
    if (bin == NULL) {
        return -1;
    }
    *bin = '\0';
    *prefix_out = path;
    *name_out = name + 1;
    return 0;
}

static int set(const char *name, const char *first, const char *second, const char *third)
{
    char *text = NULL;
    if (asprintf(&text, "%s%s%s", first, second, third) < 0) {
        return -1;
    }
    const int failed = setenv(name, text, 1);
    free(text);
    return failed;
}

/* mpirun and the coordinator start programs by name: ours come first, once. */
static int set_path(const char *prefix)
{
    const char *const path = getenv("PATH");
    const size_t n = strlen(prefix);
    if (path == NULL || path[0] == '\0') {
        return set("PATH", prefix, "/bin", ":/usr/bin:/bin");
    }
    if (strncmp(path, prefix, n) == 0 && strncmp(path + n, "/bin:", 5) == 0) {
        return 0;
    }
    char *rest = NULL;
    if (asprintf(&rest, "/bin:%s", path) < 0) {
        return -1;
    }
    const int failed = set("PATH", prefix, rest, "");
    free(rest);
    return failed;
}

static int set_environment(const char *prefix)
{
    for (size_t i = 0; i < sizeof variables / sizeof variables[0]; i++) {
        if (set(variables[i].name, prefix, variables[i].below, "") != 0) {
            return -1;
        }
    }
    // Open MPI 4.1 dies where there is neither HOME nor an entry of passwd.
    return setenv("HOME", "/tmp", 0) == 0 ? set_path(prefix) : -1;
}

/* LOADER --library-path LIBRARIES --argv0 PREFIX/bin/NAME PREFIX/libexec/NAME ARGUMENTS... */
static int start(const char *prefix, const char *name, int argc, char **argv)
{
    const char *const theirs = getenv("LD_LIBRARY_PATH");
    const char *const more = theirs != NULL ? theirs : "";
    char *loader = NULL, *libraries = NULL, *self = NULL, *program = NULL;
    char **args = calloc((size_t)argc + MAX_EXTRA, sizeof *args);
    if (args != NULL && asprintf(&loader, "%s/lib/system/" LOADER, prefix) >= 0 &&
        asprintf(&libraries, "%s/lib/system%s%s", prefix, more[0] != '\0' ? ":" : "", more) >= 0 &&
        asprintf(&self, "%s/bin/%s", prefix, name) >= 0 &&
        asprintf(&program, "%s/libexec/%s", prefix, name) >= 0) {
        char *const head[] = {loader, "--library-path", libraries, "--argv0", self, program};
        const size_t n_head = sizeof head / sizeof head[0];
        memcpy(args, head, sizeof head);
        for (int i = 1; i < argc; i++) {
            args[n_head + (size_t)i - 1] = argv[i];
        }
        execv(loader, args);
    }
    const int code = fail("cannot start the program by way of the bundle's loader");
    free(args);
    return code; // the texts end with the process
}

int main(int argc, char **argv)
{
    char path[PATH_MAX];
    const char *prefix, *name;
    if (split(path, &prefix, &name) != 0) {
        return fail("cannot read /proc/self/exe to find this program's directory");
    }
    if (set_environment(prefix) != 0) {
        return fail("cannot set the environment");
    }
    return start(prefix, name, argc, argv);
}
