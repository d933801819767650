/* See alloc.h. */
#define _GNU_SOURCE
#include "base/alloc.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* From this size on, memory comes straight from the system: zeroed without being touched, so that
 * what is never used (most of a KV cache) is never resident, and given back when it is freed. */
#define LARGE ((size_t)4 << 20)

/* In front of every block, one cache line. */
typedef struct {
    size_t mapped; /* bytes of the mapping; 0: from malloc */
    void *base;    /* what malloc gave */
} header;

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

static header *allocate(size_t whole, bool sparse)
{
    if (planted_failure())
        return NULL;
    if (whole >= LARGE) {
        header *h = mmap(NULL, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (h == MAP_FAILED)
            return NULL;
        (void)madvise(h, whole, sparse ? MADV_NOHUGEPAGE : MADV_HUGEPAGE);
        h->mapped = whole;
        return h;
    }
    /* Aligned by hand: blocks that aligned_alloc has cut are not found again by glibc's once they
     * are free, and a walk over a model grew to ten times what it used. */
    void *base = malloc(whole + NB_CACHE_LINE);
    if (base == NULL)
        return NULL;
    const uintptr_t at = ((uintptr_t)base + NB_CACHE_LINE - 1) / NB_CACHE_LINE * NB_CACHE_LINE;
    header *h = (header *)at;
    memset(h, 0, whole);
    h->base = base;
    return h;
}

static nb_status take(void **out, size_t count, size_t size, bool sparse, nb_err *err)
{
    *out = NULL;
    size_t bytes, whole;
    if (!nb_mul_size(count, size, &bytes) || !nb_add_size(bytes, 2 * NB_CACHE_LINE, &whole))
        return nb_fail(err, NB_MEMORY, "%zu elements of %zu bytes do not fit in memory", count,
                       size);
    header *h = allocate(bytes + NB_CACHE_LINE, sparse);
    if (h == NULL)
        return nb_fail(err, NB_MEMORY, "out of memory: %zu bytes were needed", bytes);
    atomic_fetch_add(&live, 1);
    *out = (uint8_t *)h + NB_CACHE_LINE;
    return NB_OK;
}

nb_status nb_alloc(void **out, size_t count, size_t size, nb_err *err)
{
    return take(out, count, size, false, err);
}

nb_status nb_alloc_sparse(void **out, size_t count, size_t size, nb_err *err)
{
    return take(out, count, size, true, err);
}

void nb_free(void *p)
{
    if (p == NULL)
        return;
    atomic_fetch_sub(&live, 1);
    header *h = (header *)(void *)((uint8_t *)p - NB_CACHE_LINE);
    if (h->mapped != 0)
        munmap(h, h->mapped);
    else
        free(h->base);
}

nb_status nb_arrays_alloc(const nb_array *list, int n, nb_err *err)
{
    for (int i = 0; i < n; i++) {
        const nb_array *a = &list[i];
        if (take(a->out, (size_t)a->count, a->size, a->sparse, err) != NB_OK) {
            nb_arrays_free(list, i);
            return err->status;
        }
    }
    return NB_OK;
}

void nb_arrays_free(const nb_array *list, int n)
{
    for (int i = 0; i < n; i++) {
        nb_free(*list[i].out);
        *list[i].out = NULL;
    }
}

size_t nb_arrays_bytes(const nb_array *list, int n)
{
    size_t total = 0, bytes;
    for (int i = 0; i < n; i++) {
        if (!nb_mul_size((size_t)list[i].count, list[i].size, &bytes) ||
            !nb_add_size(total, bytes, &total))
            return SIZE_MAX;
    }
    return total;
}
