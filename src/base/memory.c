/* See memory.h. Linux only; elsewhere nothing is known. */
#include "base/memory.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* The number behind `key` in a file of lines "key number", or in a file of one number when key is
 * "". INT64_MAX when it is not there ("max" is no number either). */
static int64_t number_in(const char *folder, const char *name, const char *key)
{
    char path[512], line[256];
    const int n = snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = n > 0 && (size_t)n < sizeof path ? fopen(path, "re") : NULL;
    if (f == NULL)
        return INT64_MAX;
    int64_t found = INT64_MAX;
    const size_t key_len = strlen(key);
    while (found == INT64_MAX && fgets(line, sizeof line, f) != NULL) {
        int64_t v;
        if (strncmp(line, key, key_len) == 0 && sscanf(line + key_len, " %" SCNd64, &v) == 1 &&
            v >= 0)
            found = v;
    }
    fclose(f);
    return found;
}

/* The limit of a control group, less what it uses and cannot give back. */
static int64_t left_of_group(const char *cgroup)
{
    const int64_t limit = number_in(cgroup, "memory.max", "");
    const int64_t used = number_in(cgroup, "memory.current", "");
    if (limit == INT64_MAX || used == INT64_MAX)
        return INT64_MAX;
    const int64_t cache = number_in(cgroup, "memory.stat", "inactive_file ");
    const int64_t kept = cache == INT64_MAX || cache > used ? used : used - cache;
    return limit > kept ? limit - kept : 0;
}

int64_t nb_memory_available_in(const char *proc, const char *cgroup)
{
    const int64_t kib = number_in(proc, "meminfo", "MemAvailable:");
    const int64_t system = kib < INT64_MAX / 1024 ? kib * 1024 : INT64_MAX;
    const int64_t group = left_of_group(cgroup);
    return system < group ? system : group;
}

int64_t nb_memory_available(void)
{
    return nb_memory_available_in("/proc", "/sys/fs/cgroup");
}

int64_t nb_memory_peak(void)
{
    const int64_t kib = number_in("/proc/self", "status", "VmHWM:");
    return kib < INT64_MAX / 1024 ? kib * 1024 : 0;
}
