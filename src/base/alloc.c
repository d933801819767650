/* See alloc.h. */
#define _GNU_SOURCE
#include "base/alloc.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define HUGE_PAGE ((size_t)2 << 20)

static atomic_llong fail_countdown; /* 0: never */
static atomic_llong live;

void nb_alloc_fail_at(int64_t n)
{
    atomic_store(&fail_countdown, n);
}

int64_t nb_alloc_live(void)
{
    return atomic_load(&live);
}

static bool planted_failure(void)
{
    if (atomic_load_explicit(&fail_countdown, memory_order_relaxed) == 0)
        return false;
    return atomic_fetch_sub(&fail_countdown, 1) == 1;
}

nb_status nb_alloc(void **out, size_t count, size_t size, nb_err *err)
{
    *out = NULL;
    size_t bytes;
    if (!nb_mul_size(count, size, &bytes) || bytes > PTRDIFF_MAX / 2)
        return nb_fail(err, NB_MEMORY, "%zu elements of %zu bytes do not fit in memory", count,
                       size);
    const bool large = bytes >= 2 * HUGE_PAGE;
    const size_t align = large ? HUGE_PAGE : NB_CACHE_LINE;
    /* At least one byte, so that a count of 0 has an address of its own. */
    const size_t padded = (bytes + (bytes == 0) + align - 1) / align * align;
    void *p = planted_failure() ? NULL : aligned_alloc(align, padded);
    if (p == NULL)
        return nb_fail(err, NB_MEMORY, "out of memory: %zu bytes were needed", bytes);
    if (large)
        (void)madvise(p, padded, MADV_HUGEPAGE);
    memset(p, 0, bytes);
    atomic_fetch_add(&live, 1);
    *out = p;
    return NB_OK;
}

void nb_free(void *p)
{
    if (p == NULL)
        return;
    atomic_fetch_sub(&live, 1);
    free(p);
}
