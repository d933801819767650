/* What the kernel checks share: buffers whose edges bite, data that is hard to handle, and
 * comparisons that are counted, so that a check which looked at nothing is a failure.
 *
 * A comparison never fails the test by itself: it records a fault in a check_run. So a planted
 * fault can go through the same checker and be expected. check_finish() is what fails the test. */
#ifndef NB_TESTS_CHECK_H
#define NB_TESTS_CHECK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* `bytes` of memory that end at an unreadable page (reading or writing one byte past the end is a
 * crash) and begin after at least 64 guard bytes (0xff: a NaN to whom reads them). Filled with
 * 0xff too. Only as aligned as its size is. Never NULL: the test fails instead. */
void *check_alloc(size_t bytes);
float *check_floats(int64_t n);
bool check_guard_ok(const void *buffer); /* the guard bytes before it are untouched */
void check_free(void *buffer);           /* NULL is fine */

/* How random data looks. */
typedef enum {
    CHECK_RANDOM,    /* uniform in (-1, 1) */
    CHECK_INTEGERS,  /* -8 .. 8: sums are exact */
    CHECK_WIDE,      /* random sign, exponents -40 .. 40 */
    CHECK_EXTREME,   /* any finite bit pattern */
    CHECK_SUBNORMAL, /* nothing else */
    CHECK_EQUAL,     /* one value everywhere */
    CHECK_ZEROS,     /* +0 and -0 */
    CHECK_SPECIAL,   /* ordinary, with NaN, infinities, zeros and subnormals strewn in */
    CHECK_N_KINDS,
} check_kind;
const char *check_kind_name(check_kind kind);
void check_fill(float *x, int64_t n, check_kind kind, uint64_t seed);
/* How many of n random cases to try: all, or one in $NIBBLE_CHECK_ONE_IN of them, for emulators and
 * sanitizers. */
int64_t check_cases(int64_t n);
/* Uniform in [0, n), from (seed, index). */
int64_t check_pick(uint64_t seed, uint64_t index, int64_t n);

typedef struct {
    const char *name;
    int64_t n_compared, n_nonzero, n_faults;
    char first[400]; /* the first fault */
} check_run;

/* Bit for bit, a NaN being equal to every other NaN. `what` says which case this is. */
bool check_same_f32(check_run *run, const char *what, const float *got, const float *want,
                    int64_t n);
bool check_same_f64(check_run *run, const char *what, double got, double want);
bool check_same_bytes(check_run *run, const char *what, const void *got, const void *want,
                      size_t n);
/* |got - want| <= bound; a NaN or an infinity must be met by the same. */
bool check_near(check_run *run, const char *what, double got, double want, double bound);
/* Records a fault when the guard bytes before `buffer` were written. */
bool check_guard(check_run *run, const char *what, const void *buffer);

/* Compared something, not only zeros, and found no fault. */
bool check_clean(const check_run *run);
/* Fails the cmocka test unless check_clean(), with the first fault. */
void check_finish(const check_run *run);
/* The opposite, for planted faults: fails the test unless a fault was found. */
void check_caught(const check_run *run);

#endif
