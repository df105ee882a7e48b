#include "ops/doctor_checks.h"

#include <netdb.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "coordinator/tokenizer/tokenizer.h"
#include "ops/cli.h"
#include "parallel/plan.h"
#include "proto/rpc/rpc.h"

static void found(struct doctor_finding *f, int verdict, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

static void found(struct doctor_finding *f, int verdict, const char *fmt, ...)
{
    va_list args;
    f->verdict = verdict;
    va_start(args, fmt);
    vsnprintf(f->fact, sizeof f->fact, fmt, args);
    va_end(args);
}

static void advise(struct doctor_finding *f, const char *fix)
{
    snprintf(f->fix, sizeof f->fix, "%s", fix);
}

/* A status as a finding: its message is the fact, its remedy the fix. */
static void found_status(struct doctor_finding *f, const status_t *s)
{
    found(f, DOCTOR_FAIL, "%s", s->msg);
    char *fix = strstr(f->fact, STATUS_FIX);
    if (fix != NULL) {
        snprintf(f->fix, sizeof f->fix, "%s", fix + strlen(STATUS_FIX));
        *fix = '\0';
    }
}

static void check_cpu(const struct doctor_context *context, struct doctor_finding *f)
{
    (void)context;
    cpu_set_t set;
    const int n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")) {
        found(f, DOCTOR_OK, "%d cores with AVX-512", n);
    } else if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        found(f, DOCTOR_OK, "%d cores with AVX2", n);
    } else {
        found(f, DOCTOR_WARN, "%d cores without AVX2: portable kernels, several times slower", n);
    }
}

static void check_gpu(const struct doctor_context *context, struct doctor_finding *f)
{
    (void)context;
    if (access("/dev/nvidiactl", F_OK) == 0) {
        found(f, DOCTOR_WARN, "an NVIDIA driver is there, but this build has no CUDA backend");
    } else {
        found(f, DOCTOR_OK, "no NVIDIA driver: workers compute on the CPU");
    }
}

static void check_memory(const struct doctor_context *context, struct doctor_finding *f)
{
    (void)context;
    struct sysinfo info;
    if (sysinfo(&info) != 0) {
        found(f, DOCTOR_WARN, "cannot read the memory size");
        return;
    }
    const double total = (double)info.totalram * info.mem_unit / 1e9;
    found(f, total >= 1 ? DOCTOR_OK : DOCTOR_WARN, "%.1f GB of memory, %.1f GB free", total,
          (double)info.freeram * info.mem_unit / 1e9);
}

static void check_shm(const struct doctor_context *context, struct doctor_finding *f)
{
    (void)context;
    struct statvfs fs;
    if (statvfs("/dev/shm", &fs) != 0) {
        found(f, DOCTOR_FAIL, "/dev/shm is not there: ranks of one host talk through it");
        advise(f, "mount -t tmpfs tmpfs /dev/shm");
        return;
    }
    const double mb = (double)fs.f_bavail * (double)fs.f_frsize / 1e6;
    found(f, mb >= 64 ? DOCTOR_OK : DOCTOR_WARN, "/dev/shm has %.0f MB free", mb);
    if (mb < 64) {
        advise(f, "give the container more shared memory (--shm-size 1g)");
    }
}

static void check_files(const struct doctor_context *context, struct doctor_finding *f)
{
    (void)context;
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) {
        found(f, DOCTOR_WARN, "cannot read the limit of open files");
        return;
    }
    const bool enough = limit.rlim_max >= 4096;
    found(f, enough ? DOCTOR_OK : DOCTOR_WARN, "open files: %llu, at most %llu",
          (unsigned long long)limit.rlim_cur, (unsigned long long)limit.rlim_max);
    if (!enough) {
        advise(f, "raise it (ulimit -n): every client connection takes one");
    }
}

/* The first line a program prints. */
static bool first_line(const char *command, char *line, int size)
{
    FILE *pipe = popen(command, "r");
    if (pipe == NULL) {
        return false;
    }
    const bool got = fgets(line, size, pipe) != NULL;
    const bool ended_well = pclose(pipe) == 0;
    line[got ? strcspn(line, "\n") : 0] = '\0';
    return got && ended_well;
}

static void check_mpirun(const struct doctor_context *context, struct doctor_finding *f)
{
    (void)context;
    char line[200];
    if (!first_line("mpirun --version 2>/dev/null", line, sizeof line)) {
        found(f, DOCTOR_FAIL, "mpirun does not run: kvasir serve starts its workers with it");
        advise(f, "install Open MPI (apt-get install openmpi-bin), or load its module");
        return;
    }
    found(f, DOCTOR_OK, "%s", line);
}

static void check_ranks(const struct doctor_context *context, struct doctor_finding *f)
{
    (void)context;
    char line[200];
    const char *command =
        "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_plm=isolated "
        "timeout 20 mpirun --oversubscribe --bind-to none -n 2 sh -c 'echo ranks started' 2>&1";
    if (!first_line(command, line, sizeof line)) {
        found(f, DOCTOR_FAIL, "mpirun cannot start two ranks here: %s", line);
        return;
    }
    found(f, DOCTOR_OK, "mpirun starts two ranks on this host");
}

static void check_programs(const struct doctor_context *context, struct doctor_finding *f)
{
    (void)context;
    static const char *const names[] = {"kvasir-coordinator", "kvasir-worker"};
    char path[4096];
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const status_t s = cli_sibling(names[i], path, sizeof path);
        if (s.code != STATUS_OK) {
            found_status(f, &s);
            return;
        }
    }
    found(f, DOCTOR_OK, "kvasir-coordinator and kvasir-worker lie beside kvasir");
}

static void check_host_name(const struct doctor_context *context, struct doctor_finding *f)
{
    (void)context;
    char host[256] = "";
    struct addrinfo *result = NULL;
    (void)gethostname(host, sizeof host - 1);
    const int error = getaddrinfo(host, NULL, NULL, &result);
    if (error != 0) {
        found(f, DOCTOR_WARN, "host name %s does not resolve: %s", host, gai_strerror(error));
        advise(f, "add it to /etc/hosts; several hosts find each other by name");
        return;
    }
    freeaddrinfo(result);
    found(f, DOCTOR_OK, "host name %s resolves", host);
}

static void check_listen(const struct doctor_context *context, struct doctor_finding *f)
{
    struct rpc_server *server = NULL;
    const struct rpc_server_options options = {.address = context->listen, .log = {.fd = -1}};
    const status_t s = rpc_server_new(&options, &server);
    if (s.code != STATUS_OK) {
        found_status(f, &s);
        return;
    }
    rpc_server_free(server);
    found(f, DOCTOR_OK, "%s is free to listen on", context->listen);
}

static void check_rpc_exposure(const struct doctor_context *context, struct doctor_finding *f)
{
    const char *a = context->listen;
    const bool local = strncmp(a, "unix:", 5) == 0 || strncmp(a, "127.", 4) == 0 ||
                       strncmp(a, "localhost:", 10) == 0 || strncmp(a, "[::1]:", 6) == 0;
    if (local) {
        found(f, DOCTOR_OK, "%s is reachable from this host alone", a);
        return;
    }
    found(f, DOCTOR_WARN, "%s is reachable from other hosts, without TLS or credentials", a);
    advise(f, "put a proxy with TLS in front; gRPC 1.51 misses the HTTP/2 fixes of 2023");
}

static void check_model(const struct doctor_context *context, struct doctor_finding *f)
{
    struct model_spec spec;
    const status_t s = spec_load(context->model, &spec);
    if (s.code != STATUS_OK) {
        found_status(f, &s);
        return;
    }
    found(f, DOCTOR_OK, "%s (%s): %.1f M parameters, %d layers, tensor parallel 1 to %d", spec.name,
          spec.architecture, (double)spec_parameters(&spec) / 1e6, spec.n_layers, spec.n_heads);
    spec_destroy(&spec);
}

static void check_tokenizer(const struct doctor_context *context, struct doctor_finding *f)
{
    struct tokenizer *tokenizer = NULL;
    const status_t s = tokenizer_load(context->model, &tokenizer);
    if (s.code != STATUS_OK) {
        found_status(f, &s);
        return;
    }
    found(f, DOCTOR_OK, "tokenizer of %d ids", tokenizer_vocab_size(tokenizer));
    tokenizer_free(tokenizer);
}

static const struct {
    const char *name;
    void (*run)(const struct doctor_context *context, struct doctor_finding *finding);
    bool needs_model;
} checks[] = {
    {"programs", check_programs, false},
    {"cpu", check_cpu, false},
    {"gpu", check_gpu, false},
    {"memory", check_memory, false},
    {"shared memory", check_shm, false},
    {"open files", check_files, false},
    {"mpirun", check_mpirun, false},
    {"ranks", check_ranks, false},
    {"host name", check_host_name, false},
    {"address", check_listen, false},
    {"exposure", check_rpc_exposure, false},
    {"model", check_model, true},
    {"tokenizer", check_tokenizer, true},
};

size_t doctor_run(const struct doctor_context *context, struct doctor_finding *findings, size_t max)
{
    size_t n = 0;
    for (size_t i = 0; i < sizeof checks / sizeof checks[0] && n < max; i++) {
        if (!checks[i].needs_model || context->model != NULL) {
            findings[n] =
                (struct doctor_finding){.name = checks[i].name, .of_model = checks[i].needs_model};
            checks[i].run(context, &findings[n++]);
        }
    }
    return n;
}
