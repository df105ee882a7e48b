#include "ops/doctor_checks.h"

#include <netdb.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "ops/cli.h"
#include "proto/rpc/rpc.h"

static void check_cpu(const struct doctor_context *context, struct doctor_finding *f)
{
    (void)context;
    cpu_set_t set;
    const int n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")) {
        doctor_finding_set(f, DOCTOR_OK, "%d cores with AVX-512", n);
    } else if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        doctor_finding_set(f, DOCTOR_OK, "%d cores with AVX2", n);
    } else {
        doctor_finding_set(f, DOCTOR_WARN,
                           "%d cores without AVX2: portable kernels, several times slower", n);
    }
}

static void check_gpu(const struct doctor_context *context, struct doctor_finding *f)
{
    (void)context;
    if (access("/dev/nvidiactl", F_OK) == 0) {
        doctor_finding_set(f, DOCTOR_WARN,
                           "an NVIDIA driver is there, but this build has no CUDA backend");
    } else {
        doctor_finding_set(f, DOCTOR_OK, "no NVIDIA driver: workers compute on the CPU");
    }
}

static void check_memory(const struct doctor_context *context, struct doctor_finding *f)
{
    (void)context;
    struct sysinfo info;
    if (sysinfo(&info) != 0) {
        doctor_finding_set(f, DOCTOR_WARN, "cannot read the memory size");
        return;
    }
    const double total = (double)info.totalram * info.mem_unit / 1e9;
    doctor_finding_set(f, total >= 1 ? DOCTOR_OK : DOCTOR_WARN, "%.1f GB of memory, %.1f GB free",
                       total, (double)info.freeram * info.mem_unit / 1e9);
}

static void check_shm(const struct doctor_context *context, struct doctor_finding *f)
{
    (void)context;
    struct statvfs fs;
    if (statvfs("/dev/shm", &fs) != 0) {
        doctor_finding_set(f, DOCTOR_FAIL,
                           "/dev/shm is not there: ranks of one host talk through it");
        doctor_finding_advise(f, "mount -t tmpfs tmpfs /dev/shm");
        return;
    }
    const double mb = (double)fs.f_bavail * (double)fs.f_frsize / 1e6;
    doctor_finding_set(f, mb >= 64 ? DOCTOR_OK : DOCTOR_WARN, "/dev/shm has %.0f MB free", mb);
    if (mb < 64) {
        doctor_finding_advise(f, "give the container more shared memory (--shm-size 1g)");
    }
}

static void check_files(const struct doctor_context *context, struct doctor_finding *f)
{
    (void)context;
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) {
        doctor_finding_set(f, DOCTOR_WARN, "cannot read the limit of open files");
        return;
    }
    const bool enough = limit.rlim_max >= 4096;
    doctor_finding_set(f, enough ? DOCTOR_OK : DOCTOR_WARN, "open files: %llu, at most %llu",
                       (unsigned long long)limit.rlim_cur, (unsigned long long)limit.rlim_max);
    if (!enough) {
        doctor_finding_advise(f, "raise it (ulimit -n): every client connection takes one");
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
        doctor_finding_set(f, DOCTOR_FAIL,
                           "mpirun does not run: kvasir serve starts its workers with it");
        doctor_finding_advise(f,
                              "install Open MPI (apt-get install openmpi-bin), or load its module");
        return;
    }
    doctor_finding_set(f, DOCTOR_OK, "%s", line);
}

static void check_ranks(const struct doctor_context *context, struct doctor_finding *f)
{
    (void)context;
    char line[200];
    const char *command =
        "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_plm=isolated "
        "timeout 20 mpirun --oversubscribe --bind-to none -n 2 sh -c 'echo ranks started' 2>&1";
    if (!first_line(command, line, sizeof line)) {
        doctor_finding_set(f, DOCTOR_FAIL, "mpirun cannot start two ranks here: %s", line);
        return;
    }
    doctor_finding_set(f, DOCTOR_OK, "mpirun starts two ranks on this host");
}

static void check_programs(const struct doctor_context *context, struct doctor_finding *f)
{
    (void)context;
    static const char *const names[] = {"kvasir-coordinator", "kvasir-worker"};
    char path[4096];
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const status_t s = cli_sibling(names[i], path, sizeof path);
        if (s.code != STATUS_OK) {
            doctor_finding_fail(f, &s);
            return;
        }
    }
    doctor_finding_set(f, DOCTOR_OK, "kvasir-coordinator and kvasir-worker lie beside kvasir");
}

static void check_host_name(const struct doctor_context *context, struct doctor_finding *f)
{
    (void)context;
    char host[256] = "";
    struct addrinfo *result = NULL;
    (void)gethostname(host, sizeof host - 1);
    const int error = getaddrinfo(host, NULL, NULL, &result);
    if (error != 0) {
        doctor_finding_set(f, DOCTOR_WARN, "host name %s does not resolve: %s", host,
                           gai_strerror(error));
        doctor_finding_advise(f, "add it to /etc/hosts; several hosts find each other by name");
        return;
    }
    freeaddrinfo(result);
    doctor_finding_set(f, DOCTOR_OK, "host name %s resolves", host);
}

static void check_listen(const struct doctor_context *context, struct doctor_finding *f)
{
    struct rpc_server *server = NULL;
    const struct rpc_server_options options = {.address = context->listen, .log = {.fd = -1}};
    const status_t s = rpc_server_new(&options, &server);
    if (s.code != STATUS_OK) {
        doctor_finding_fail(f, &s);
        return;
    }
    rpc_server_free(server);
    doctor_finding_set(f, DOCTOR_OK, "%s is free to listen on", context->listen);
}

static void check_rpc_exposure(const struct doctor_context *context, struct doctor_finding *f)
{
    const char *a = context->listen;
    const bool local = strncmp(a, "unix:", 5) == 0 || strncmp(a, "127.", 4) == 0 ||
                       strncmp(a, "localhost:", 10) == 0 || strncmp(a, "[::1]:", 6) == 0;
    if (local) {
        doctor_finding_set(f, DOCTOR_OK, "%s is reachable from this host alone", a);
        return;
    }
    doctor_finding_set(f, DOCTOR_WARN,
                       "%s is reachable from other hosts, without TLS or credentials", a);
    doctor_finding_advise(
        f, "put a proxy with TLS in front; gRPC 1.51 misses the HTTP/2 fixes of 2023");
}

static const struct {
    const char *name;
    void (*run)(const struct doctor_context *context, struct doctor_finding *finding);
} checks[] = {
    {"programs", check_programs},
    {"cpu", check_cpu},
    {"gpu", check_gpu},
    {"memory", check_memory},
    {"shared memory", check_shm},
    {"open files", check_files},
    {"mpirun", check_mpirun},
    {"ranks", check_ranks},
    {"host name", check_host_name},
    {"address", check_listen},
    {"exposure", check_rpc_exposure},
};

void doctor_checks_run(const struct doctor_context *context, struct doctor_findings *list)
{
    for (size_t i = 0; i < sizeof checks / sizeof checks[0]; i++) {
        checks[i].run(context, doctor_finding_add(list, checks[i].name, DOCTOR_MACHINE));
    }
}
