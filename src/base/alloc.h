/* The one allocator: malloc with checked sizes, alignment, and a test switch that makes the n-th
 * allocation fail. Freed with nb_free. */
#ifndef NB_BASE_ALLOC_H
#define NB_BASE_ALLOC_H

#include "base/status.h"

#define NB_CACHE_LINE 64

/* Checked size arithmetic: false (and *out untouched) when the result would wrap. */
static inline bool nb_mul_size(size_t a, size_t b, size_t *out)
{
    size_t r;
    if (__builtin_mul_overflow(a, b, &r))
        return false;
    *out = r;
    return true;
}

static inline bool nb_add_size(size_t a, size_t b, size_t *out)
{
    size_t r;
    if (__builtin_add_overflow(a, b, &r))
        return false;
    *out = r;
    return true;
}

/* `count` zeroed elements of `size` bytes, aligned to a cache line. Large blocks take memory only
 * where they are touched. *out is NULL only on failure: a count of 0 gives a valid pointer.
 * NB_MEMORY on failure, with the size in the message. */
nb_status nb_alloc(void **out, size_t count, size_t size, nb_err *err);
#define NB_ALLOC(out, count, err) nb_alloc((void **)(out), (size_t)(count), sizeof **(out), (err))

/* The same, of which only small places far from each other will be touched: those alone become
 * resident, where a large block of nb_alloc becomes so by huge pages of 2 MiB. */
nb_status nb_alloc_sparse(void **out, size_t count, size_t size, nb_err *err);

/* Frees what these gave; NULL is fine. */
void nb_free(void *p);

/* Arrays that are allocated and freed together, and whose bytes are told before. */
typedef struct {
    void **out; /* NULL or allocated */
    int64_t count;
    size_t size; /* of an element */
    bool sparse; /* as by nb_alloc_sparse */
} nb_array;
#define NB_ARRAY(pointer, n)                                                                       \
    {                                                                                              \
        .out = (void **)&(pointer), .count = (n), .size = sizeof *(pointer)                        \
    }
#define NB_ARRAY_SPARSE(pointer, n)                                                                \
    {                                                                                              \
        .out = (void **)&(pointer), .count = (n), .size = sizeof *(pointer), .sparse = true        \
    }

/* All of them as by nb_alloc, or none. */
nb_status nb_arrays_alloc(const nb_array *list, int n, nb_err *err);
void nb_arrays_free(const nb_array *list, int n);
/* SIZE_MAX when that is more than a size can say. */
size_t nb_arrays_bytes(const nb_array *list, int n);

/* Tests only: the n-th allocation from now on fails (0: none). Counts down; not thread-safe. */
void nb_alloc_fail_at(int64_t n);
/* Tests only: allocations made and not yet freed. */
int64_t nb_alloc_live(void);

#endif
