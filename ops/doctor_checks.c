#include "ops/doctor_checks.h"

#include <fcntl.h>
#include <limits.h>
#include <netdb.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/sysinfo.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/program.h"
#include "ops/cli.h"
#include "proto/rpc/rpc.h"
#include "worker/host_cores.h"

#define MAX_RUN_S 20

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

/* As ranks will do that have the machine for themselves. */
static void check_cores(const struct doctor_context *context, struct doctor_finding *f)
{
    (void)context;
    const struct host_cores_request request = {.n_sharers = 1};
    struct host_cores cores;
    host_cores_choose(&request, &cores);
    if (cores.pinned) {
        doctor_finding_set(f, DOCTOR_OK, "threads of workers stay each on one of %d cores",
                           cores.n_threads);
        return;
    }
    doctor_finding_set(f, DOCTOR_WARN, "threads of workers are not pinned to cores: %s", cores.why);
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

/* In the child: out takes what it prints. */
_Noreturn static void become(const char *const *args, int out)
{
    const int null_fd = open("/dev/null", O_RDWR);
    if (null_fd >= 0 && dup2(null_fd, 0) >= 0 && dup2(out, 1) >= 0 && dup2(out, 2) >= 0) {
        execvp(args[0], (char *const *)args); // changes nothing: its type is older than const
    }
    _exit(127);
}

/* Until the end or the deadline; text is cut to fit. */
static void read_until(int fd, uint64_t deadline_ns, char *text, size_t size)
{
    char chunk[512];
    size_t n = 0;
    for (;;) {
        const uint64_t now_ns = clock_now_ns(clock_system());
        struct pollfd ready = {.fd = fd, .events = POLLIN};
        if (now_ns >= deadline_ns ||
            poll(&ready, 1, (int)((deadline_ns - now_ns) / NS_PER_MS) + 1) <= 0) {
            break;
        }
        const ssize_t got = read(fd, chunk, sizeof chunk);
        if (got <= 0) {
            break;
        }
        const size_t room = size - 1 - n;
        const size_t kept = (size_t)got < room ? (size_t)got : room;
        memcpy(text + n, chunk, kept);
        n += kept;
    }
    text[n] = '\0';
}

/* Of a child whose output has ended, or whose time is over. */
static bool ended_well(pid_t pid)
{
    int wait_status = 0;
    for (int tries = 0; tries < 100; tries++) {
        if (waitpid(pid, &wait_status, WNOHANG) == pid) {
            return WIFEXITED(wait_status) && WEXITSTATUS(wait_status) == 0;
        }
        (void)usleep(10000);
    }
    kill(pid, SIGKILL);
    (void)waitpid(pid, &wait_status, 0);
    return false;
}

/* The first line a program prints, stderr included. False when it does not run, fails or takes too long. No shell: there
 * may be none. */
static bool first_line(const char *const *args, char *line, size_t size)
{
    int fds[2];
    line[0] = '\0';
    if (pipe2(fds, O_CLOEXEC) != 0) {
        return false;
    }
    const pid_t pid = fork();
    if (pid == 0) {
        become(args, fds[1]);
    }
    close(fds[1]);
    if (pid > 0) {
        read_until(fds[0], clock_now_ns(clock_system()) + MAX_RUN_S * NS_PER_S, line, size);
    }
    close(fds[0]);
    line[strcspn(line, "\n")] = '\0';
    return pid > 0 && ended_well(pid) && line[0] != '\0';
}

static void check_mpirun(const struct doctor_context *context, struct doctor_finding *f)
{
    (void)context;
    static const char *const args[] = {"mpirun", "--version", NULL};
    char line[200];
    if (!first_line(args, line, sizeof line)) {
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
    char line[200], self[PATH_MAX];
    const status_t s = program_path("kvasir", self, sizeof self);
    if (!status_is_ok(&s)) {
        doctor_finding_fail(f, &s);
        return;
    }
    const char *const args[] = {"mpirun",    "--allow-run-as-root",
                                "--mca",     "plm",
                                "isolated",  "--oversubscribe",
                                "--bind-to", "none",
                                "-n",        "2",
                                self,        "--version",
                                NULL};
    if (!first_line(args, line, sizeof line)) {
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
    {"programs", check_programs}, {"cpu", check_cpu},
    {"cores", check_cores},       {"gpu", check_gpu},
    {"memory", check_memory},     {"shared memory", check_shm},
    {"open files", check_files},  {"mpirun", check_mpirun},
    {"ranks", check_ranks},       {"host name", check_host_name},
    {"address", check_listen},    {"exposure", check_rpc_exposure},
};

void doctor_checks_run(const struct doctor_context *context, struct doctor_findings *list)
{
    for (size_t i = 0; i < sizeof checks / sizeof checks[0]; i++) {
        checks[i].run(context, doctor_finding_add(list, checks[i].name, DOCTOR_MACHINE));
    }
}
