/* Matrices for tests: every array ends at guard bytes, which test_mat_free looks at. */
#ifndef NB_TESTS_NUMERIC_MAT_H
#define NB_TESTS_NUMERIC_MAT_H

#include "support/golden.h"

#include "base/rng.h"
#include "numeric/format.h"
#include "numeric/minifloat.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define GUARD      64
#define GUARD_BYTE 0xa5

/* `n` bytes of `fill`, then the guard. */
static inline void *guarded_alloc(size_t n, int fill)
{
    uint8_t *p = malloc(n + GUARD);
    assert_non_null(p);
    memset(p, fill, n);
    memset(p + n, GUARD_BYTE, GUARD);
    return p;
}

static inline void guarded_check(const void *p, size_t n)
{
    for (size_t i = 0; i < GUARD; i++)
        if (((const uint8_t *)p)[n + i] != GUARD_BYTE)
            fail_msg("byte %zu past an array of %zu was written", i, n);
}

static inline void guarded_free(void *p, size_t n)
{
    if (p == NULL)
        return;
    guarded_check(p, n);
    free(p);
}

static inline size_t test_mat_n_params(const nb_mat *m)
{
    return (size_t)(m->n_rows * nb_mat_n_groups(m));
}

static inline nb_mat test_mat(const nb_format *fmt, int64_t n_rows, int64_t n_cols,
                              int64_t group_size, nb_float_type scale_type, bool asymmetric)
{
    nb_mat m = {.fmt = fmt, .n_rows = n_rows, .n_cols = n_cols};
    nb_err err = {0};
    assert_int_equal(nb_format_row_bytes(fmt, n_cols, &m.row_bytes, &err), NB_OK);
    m.codes = guarded_alloc((size_t)(n_rows * m.row_bytes), 0x5a);
    if (fmt->affine) {
        m.group_size = group_size;
        m.scale_type = scale_type;
        m.scales = guarded_alloc(test_mat_n_params(&m) * nb_float_bytes(scale_type), 0x5a);
        m.zeros = asymmetric ? guarded_alloc(test_mat_n_params(&m), 0x5a) : NULL;
    }
    return m;
}

/* The same with float zero points. */
static inline nb_mat test_mat_float_zeros(const nb_format *fmt, int64_t n_rows, int64_t n_cols,
                                          int64_t group_size, nb_float_type type)
{
    nb_mat m = test_mat(fmt, n_rows, n_cols, group_size, type, false);
    m.float_zeros = guarded_alloc(test_mat_n_params(&m) * nb_float_bytes(type), 0x5a);
    return m;
}

static inline nb_mat test_mat_block(const nb_format *fmt, int64_t n_rows, int64_t n_cols)
{
    return test_mat(fmt, n_rows, n_cols, 0, NB_F32, false);
}

static inline void test_mat_free(nb_mat *m)
{
    guarded_free(m->codes, (size_t)(m->n_rows * m->row_bytes));
    guarded_free(m->scales, test_mat_n_params(m) * nb_float_bytes(m->scale_type));
    guarded_free(m->zeros, test_mat_n_params(m));
    guarded_free(m->float_zeros, test_mat_n_params(m) * nb_float_bytes(m->scale_type));
    *m = (nb_mat){0};
}

static inline uint32_t test_random_u32(uint64_t stream, uint64_t index)
{
    uint32_t w[4];
    nb_philox(20, stream, index, w);
    return w[0];
}

static inline void test_random_bytes(void *p, size_t n, uint64_t stream)
{
    for (size_t i = 0; i < n; i++)
        ((uint8_t *)p)[i] = (uint8_t)test_random_u32(stream, i);
}

/* Bell-shaped, with a heavy tail when `tail` is above 0, as weights are. */
static inline void test_random_weights(float *x, int64_t n, double sigma, double tail,
                                       uint64_t stream)
{
    for (int64_t i = 0; i < n; i++) {
        double sum = -6;
        for (uint64_t k = 0; k < 12; k++)
            sum += nb_rng_uniform(7, stream, (uint64_t)i * 16 + k);
        if (nb_rng_uniform(7, stream, (uint64_t)i * 16 + 12) < tail)
            sum *= 12;
        x[i] = (float)(sum * sigma);
    }
}

/* Equal bits, or both NaN. */
static inline bool same_float(float a, float b)
{
    return nb_f32_bits(a) == nb_f32_bits(b) || (isnan(a) && isnan(b));
}

#endif
