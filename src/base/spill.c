/* See spill.h. */
#define _GNU_SOURCE
#include "base/spill.h"

#include "base/mix.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

nb_status nb_spill_open(nb_spill *s, const char *path, size_t row_bytes, int64_t n_rows,
                        nb_err *err)
{
    *s = NB_SPILL_CLOSED;
    size_t bytes;
    if (!nb_mul_size(row_bytes, (size_t)n_rows, &bytes) || bytes > (size_t)INT64_MAX)
        return nb_fail(err, NB_LIMIT, "%s: %lld rows of %zu bytes are too many", path,
                       (long long)n_rows, row_bytes);
    char *copy;
    const size_t n_path = strlen(path) + 1;
    NB_TRY(NB_ALLOC(&copy, n_path, err));
    memcpy(copy, path, n_path);
    const int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) {
        nb_free(copy);
        return nb_fail_errno(err, errno, "%s: cannot make a scratch file", path);
    }
    *s = (nb_spill){.fd = fd, .row_bytes = row_bytes, .n_rows = n_rows, .path = copy};
    if (bytes > 0 && fallocate(fd, 0, 0, (off_t)bytes) != 0 && errno != EOPNOTSUPP &&
        errno != ENOSYS && errno != EINTR) {
        const int why = errno;
        nb_spill_close(s);
        return nb_fail_errno(err, why, "%s: cannot make room for %zu bytes", path, bytes);
    }
    return NB_OK;
}

nb_status nb_spill_write(const nb_spill *s, int64_t row, int64_t n, const void *rows, nb_err *err)
{
    const char *at = rows;
    size_t left = (size_t)n * s->row_bytes;
    off_t offset = (off_t)row * (off_t)s->row_bytes;
    while (left > 0) {
        const ssize_t done = pwrite(s->fd, at, left, offset);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            return nb_fail_errno(err, errno, "%s: cannot write", s->path);
        at += done;
        left -= (size_t)done;
        offset += done;
    }
    return NB_OK;
}

nb_status nb_spill_read(const nb_spill *s, int64_t row, int64_t n, void *rows, nb_err *err)
{
    char *at = rows;
    size_t left = (size_t)n * s->row_bytes;
    off_t offset = (off_t)row * (off_t)s->row_bytes;
    while (left > 0) {
        const ssize_t done = pread(s->fd, at, left, offset);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            return nb_fail_errno(err, errno, "%s: cannot read", s->path);
        if (done == 0)
            return nb_fail(err, NB_IO, "%s: ends at byte %lld, and more was written", s->path,
                           (long long)offset);
        at += done;
        left -= (size_t)done;
        offset += done;
    }
    return NB_OK;
}

void nb_spill_close(nb_spill *s)
{
    if (s->path != NULL && s->fd >= 0)
        (void)close(s->fd);
    nb_free(s->path);
    *s = NB_SPILL_CLOSED;
}

#define MULTIPLIER 0x9e3779b97f4a7c15ull

/* Four chains, because one would wait for its multiplications. */
static uint64_t hash_row(const uint8_t *p, size_t n, uint64_t seed)
{
    uint64_t h[4] = {seed, seed + 1, seed + 2, seed + 3}, v[4];
    size_t i = 0;
    for (; i + sizeof v <= n; i += sizeof v) {
        memcpy(v, p + i, sizeof v);
        for (int j = 0; j < 4; j++) {
            h[j] = (h[j] ^ v[j]) * MULTIPLIER;
            h[j] ^= h[j] >> 32;
        }
    }
    for (; i < n; i++)
        h[0] = (h[0] ^ p[i]) * MULTIPLIER;
    return nb_mix64(nb_mix64(h[0]) ^ nb_mix64(h[1] + MULTIPLIER) ^ nb_mix64(h[2] + 2 * MULTIPLIER) ^
                    nb_mix64(h[3] + 3 * MULTIPLIER));
}

uint64_t nb_spill_hash(const nb_spill *s, int64_t row, int64_t n, const void *rows)
{
    uint64_t all = 0;
    for (int64_t i = 0; i < n; i++)
        all ^= hash_row((const uint8_t *)rows + (size_t)i * s->row_bytes, s->row_bytes,
                        nb_mix64((uint64_t)(row + i) + MULTIPLIER));
    return all;
}

/* ---- on all threads ---- */

/* Bytes that one thread moves at a time. */
#define MOVED_BYTES (1 << 17)

typedef struct {
    const nb_spill *s;
    int64_t row, n, rows_each;
    uint8_t *rows;
    atomic_flag failed; /* taken by the first that fails, which alone writes status and err */
    nb_status status;
    nb_err *err;
    _Atomic uint64_t hash;
} moving;

/* The rows of a chunk: how many, and from which on. */
static int64_t share(const moving *m, int64_t chunk, int64_t *begin)
{
    *begin = chunk * m->rows_each;
    return m->n - *begin < m->rows_each ? m->n - *begin : m->rows_each;
}

static void settle(moving *m, nb_status status, const nb_err *err)
{
    if (status == NB_OK || atomic_flag_test_and_set(&m->failed))
        return;
    m->status = status;
    *m->err = *err;
}

static void read_chunk(void *context, int64_t chunk, int thread)
{
    (void)thread;
    moving *m = context;
    nb_err err;
    int64_t begin;
    const int64_t n = share(m, chunk, &begin);
    uint8_t *rows = m->rows + (size_t)begin * m->s->row_bytes;
    settle(m, nb_spill_read(m->s, m->row + begin, n, rows, &err), &err);
}

static void write_chunk(void *context, int64_t chunk, int thread)
{
    (void)thread;
    moving *m = context;
    nb_err err;
    int64_t begin;
    const int64_t n = share(m, chunk, &begin);
    const uint8_t *rows = m->rows + (size_t)begin * m->s->row_bytes;
    settle(m, nb_spill_write(m->s, m->row + begin, n, rows, &err), &err);
}

static void hash_chunk(void *context, int64_t chunk, int thread)
{
    (void)thread;
    moving *m = context;
    int64_t begin;
    const int64_t n = share(m, chunk, &begin);
    const uint8_t *rows = m->rows + (size_t)begin * m->s->row_bytes;
    atomic_fetch_xor(&m->hash, nb_spill_hash(m->s, m->row + begin, n, rows));
}

static nb_status move(nb_pool *pool, nb_task_fn *task, moving *m)
{
    m->rows_each = MOVED_BYTES / (int64_t)m->s->row_bytes;
    if (m->rows_each < 1)
        m->rows_each = 1;
    nb_pool_run(pool, (m->n + m->rows_each - 1) / m->rows_each, task, m);
    return m->status;
}

nb_status nb_spill_write_on(nb_pool *pool, const nb_spill *s, int64_t row, int64_t n,
                            const void *rows, nb_err *err)
{
    moving m = {.s = s,
                .row = row,
                .n = n,
                .rows = (uint8_t *)(uintptr_t)rows,
                .failed = ATOMIC_FLAG_INIT,
                .err = err};
    return move(pool, write_chunk, &m);
}

nb_status nb_spill_read_on(nb_pool *pool, const nb_spill *s, int64_t row, int64_t n, void *rows,
                           nb_err *err)
{
    moving m = {.s = s, .row = row, .n = n, .rows = rows, .failed = ATOMIC_FLAG_INIT, .err = err};
    return move(pool, read_chunk, &m);
}

uint64_t nb_spill_hash_on(nb_pool *pool, const nb_spill *s, int64_t row, int64_t n,
                          const void *rows)
{
    moving m = {
        .s = s, .row = row, .n = n, .rows = (uint8_t *)(uintptr_t)rows, .failed = ATOMIC_FLAG_INIT};
    (void)move(pool, hash_chunk, &m);
    return atomic_load(&m.hash);
}
