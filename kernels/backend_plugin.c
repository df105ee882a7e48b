/*
 * backend_plugin.c - opens a backend's shared library
 *
 * Mapping: looks for kvasir-NAME.so beside the running program, in ../lib from there, and in KVASIR_PLUGIN_PATH. Once
 *          opened it stays: its table is used to the end of the process.
 */
#include "kernels/backend_plugin.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/program.h"

#define PLUGIN_PATH_VARIABLE "KVASIR_PLUGIN_PATH"

static bool is_there(const char *folder, const char *below, const char *name, char path[PATH_MAX])
{
    const int n = snprintf(path, PATH_MAX, "%s%s/kvasir-%s.so", folder, below, name);
    return n > 0 && n < PATH_MAX && access(path, R_OK) == 0;
}

static status_t find(const char *name, char path[PATH_MAX])
{
    char folder[PATH_MAX];
    TRY(program_dir(folder, sizeof folder));
    const char *const other = getenv(PLUGIN_PATH_VARIABLE);
    if (is_there(folder, "", name, path) || is_there(folder, "/../lib", name, path) ||
        (other != NULL && is_there(other, "", name, path))) {
        return status_ok();
    }
    return status_errorf(
        STATUS_UNAVAILABLE, "this installation has no kvasir-%s.so in %s, %s/../lib or %s", name,
        folder, folder, other != NULL ? other : "$" PLUGIN_PATH_VARIABLE " (not set)");
}

/*
 * A machine without the device's driver has no use for the library, and opening it is not cheap: cuBLASLt's 540 MB leave 160 MB
 * of memory behind.
 */
static status_t check_driver(const char *name)
{
    static const struct {
        const char *backend, *driver;
    } drivers[] = {{"cuda", "libcuda.so.1"}};

    for (size_t i = 0; i < sizeof drivers / sizeof drivers[0]; i++) {
        if (strcmp(name, drivers[i].backend) != 0) {
            continue;
        }
        void *const driver = dlopen(drivers[i].driver, RTLD_LAZY | RTLD_LOCAL);
        if (driver == NULL) {
            return status_errorf(STATUS_UNAVAILABLE, "no CUDA driver: this machine has no %s",
                                 drivers[i].driver);
        }
        (void)dlclose(driver);
    }
    return status_ok();
}

static status_t open_library(const char *name, const char *path, const struct backend **backend_out)
{
    void *const library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        return status_errorf(STATUS_UNAVAILABLE, "%s", dlerror());
    }
    char symbol[64];
    (void)snprintf(symbol, sizeof symbol, "kvasir_%s_backend", name);
    backend_entry_fn *entry = NULL;
    void *const address = dlsym(library, symbol);
    memcpy(&entry, &address, sizeof entry); // C has no conversion from objects to functions
    const struct backend *const backend = entry != NULL ? entry(BACKEND_ABI) : NULL;
    if (backend == NULL) {
        (void)dlclose(library);
        return status_errorf(STATUS_UNAVAILABLE, "%s is of another version than this program",
                             path);
    }
    *backend_out = backend;
    return status_ok();
}

status_t backend_load(const char *name, const struct backend **backend_out)
{
    if (strcmp(name, backend_cpu()->name) == 0) {
        *backend_out = backend_cpu();
        return status_ok();
    }
    char path[PATH_MAX];
    const struct backend *backend = NULL;
    TRY(find(name, path));
    TRY(check_driver(name));
    TRY(open_library(name, path, &backend));
    int n_devices = 0;
    TRY(backend->devices(NULL, 0, &n_devices)); // says why when there is no device
    *backend_out = backend;
    return status_ok();
}
