/* Rows of numbers on disk, for what does not fit in memory: written and read in any order, by
 * position, without a mapping, so that they count against the page cache and not against the
 * program. */
#ifndef NB_BASE_SPILL_H
#define NB_BASE_SPILL_H

#include "base/pool.h"

typedef struct {
    int fd; /* < 0: not open, as in NB_SPILL_CLOSED */
    size_t row_bytes;
    int64_t n_rows;
    char *path;
} nb_spill;

#define NB_SPILL_CLOSED ((nb_spill){.fd = -1})

/* Makes the file, or takes the one that is there with what it holds. Room for all rows is asked
 * for at once where the file system can tell: NB_IO when the disk is too small. */
nb_status nb_spill_open(nb_spill *s, const char *path, size_t row_bytes, int64_t n_rows,
                        nb_err *err);
nb_status nb_spill_write(const nb_spill *s, int64_t row, int64_t n, const void *rows, nb_err *err);
/* Rows that were never written are an error or zero. */
nb_status nb_spill_read(const nb_spill *s, int64_t row, int64_t n, void *rows, nb_err *err);
void nb_spill_close(nb_spill *s); /* the file stays */

/* A 64-bit hash of rows [row, row + n) at their place: the XOR over all rows of a file tells
 * whether it holds what was written, whatever the order of writing. */
uint64_t nb_spill_hash(const nb_spill *s, int64_t row, int64_t n, const void *rows);

/* The same, on the threads of a pool: what lies in the page cache is copied as fast as memory
 * goes. Results and hashes are those of the functions above. */
nb_status nb_spill_write_on(nb_pool *pool, const nb_spill *s, int64_t row, int64_t n,
                            const void *rows, nb_err *err);
nb_status nb_spill_read_on(nb_pool *pool, const nb_spill *s, int64_t row, int64_t n, void *rows,
                           nb_err *err);
uint64_t nb_spill_hash_on(nb_pool *pool, const nb_spill *s, int64_t row, int64_t n,
                          const void *rows);

#endif
