/* How much memory this process may still take without anything being swapped out or killed. */
#ifndef NB_BASE_MEMORY_H
#define NB_BASE_MEMORY_H

#include "base/status.h"

/* Bytes: what the system calls available, or what is left of the control group's limit where that
 * is less. INT64_MAX where the system tells nothing. */
int64_t nb_memory_available(void);

/* Tests: the same, with other files in the place of /proc and /sys/fs/cgroup. */
int64_t nb_memory_available_in(const char *proc, const char *cgroup);

/* The most that this program has held at a time; 0: unknown. (What getrusage says of it begins with
 * the peak of the program that started this one.) */
int64_t nb_memory_peak(void);

#endif
