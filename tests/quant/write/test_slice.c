/* Pieces of a matrix: together they are all of it, and what they report is true. */
#include "quant/write/slice.h"

#include "base/rng.h"
#include "numeric/minifloat.h"
#include "support/golden.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const nb_method *rtn(void)
{
    static nb_method m;
    nb_err err = {0};
    assert_int_equal(nb_method_parse(&m, "rtn", &err), NB_OK);
    return &m;
}

typedef struct {
    nb_mat m;
    uint8_t *codes, *scales;
    int8_t *zeros;
} matrix;

/* Filled with 0xa5, so that what nobody writes is noticed. */
static void matrix_init(matrix *x, const nb_format *fmt, int64_t n_rows, int64_t n_cols,
                        int64_t group_size, bool asym)
{
    nb_err err = {0};
    *x = (matrix){.m = {.fmt = fmt, .n_rows = n_rows, .n_cols = n_cols}};
    assert_int_equal(nb_format_row_bytes(fmt, n_cols, &x->m.row_bytes, &err), NB_OK);
    const size_t n_codes = (size_t)(n_rows * x->m.row_bytes), n = (size_t)(n_rows * n_cols);
    x->codes = malloc(n_codes);
    x->scales = malloc(4 * n);
    x->zeros = malloc(n);
    memset(x->codes, 0xa5, n_codes);
    memset(x->scales, 0xa5, 4 * n);
    memset(x->zeros, 0xa5, n);
    x->m.codes = x->codes;
    if (fmt->affine) {
        x->m.group_size = group_size;
        x->m.scale_type = NB_BF16;
        x->m.scales = x->scales;
        x->m.zeros = asym ? x->zeros : NULL;
    }
}

static void matrix_free(matrix *x)
{
    free(x->codes);
    free(x->scales);
    free(x->zeros);
}

static void fill_random(matrix *x, uint64_t seed)
{
    float *row = malloc((size_t)x->m.n_cols * sizeof *row);
    for (int64_t r = 0; r < x->m.n_rows; r++) {
        for (int64_t c = 0; c < x->m.n_cols; c++)
            row[c] = (float)(nb_rng_uniform(seed, (uint64_t)r, (uint64_t)c) * 4 - 2);
        x->m.fmt->encode_row(&x->m, r, row);
    }
    free(row);
}

/* Runs all slices in an order of the caller's; the sum of their results. */
static nb_slice_result run_all(const nb_slice_job *job, bool backwards, int64_t *n_slices)
{
    nb_slicing s;
    nb_slicing_of(&s, job->from, job->how == NB_HOW_COPY ? NULL : job->to);
    *n_slices = s.n_slices;
    void *scratch = malloc(nb_slice_scratch_bytes(&s));
    nb_slice_result *each = calloc((size_t)s.n_slices, sizeof *each), sum = {0};
    nb_err err = {0};
    for (int64_t k = 0; k < s.n_slices; k++) {
        const int64_t i = backwards ? s.n_slices - 1 - k : k;
        nb_slice_run(job, &s, i, scratch, &each[i], &err);
    }
    for (int64_t i = 0; i < s.n_slices; i++) {
        if (sum.end == NB_SLICE_FINE && each[i].end != NB_SLICE_FINE)
            sum = each[i];
        nb_error_sum_add(&sum.error, &each[i].error);
        sum.n_zeroed += sum.end == NB_SLICE_FINE ? each[i].n_zeroed : 0;
        sum.n_requantized += sum.end == NB_SLICE_FINE ? each[i].n_requantized : 0;
    }
    free(scratch);
    free(each);
    return sum;
}

static const struct {
    const nb_format *from, *to;
    int64_t group_size; /* 0: n_cols */
    bool asym;
} kinds[] = {
    {&nb_format_bf16, &nb_format_int4, 32, false}, {&nb_format_bf16, &nb_format_int4, 32, true},
    {&nb_format_f32, &nb_format_int8, 0, false},   {&nb_format_q4_1, &nb_format_int8, 0, true},
    {&nb_format_f32, &nb_format_q4_0, 0, false},   {&nb_format_q4_0, &nb_format_f16, 0, false},
    {&nb_format_f16, &nb_format_bf16, 0, false},   {&nb_format_int4, &nb_format_f32, 32, false},
};
#define N_KINDS (sizeof kinds / sizeof *kinds)

/* The slices of a matrix, in any order, write what one pass over its rows would write. */
static void slices_are_the_whole(void **state)
{
    (void)state;
    static const int64_t shapes[][2] = {{1, 32},    {3, 64},   {257, 576}, {2, 65536},
                                        {1, 98304}, {700, 96}, {2049, 32}, {3, 32800}};
    int64_t most_slices = 0;
    for (size_t k = 0; k < N_KINDS; k++) {
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
            const int64_t rows = shapes[i][0], cols = shapes[i][1];
            const int64_t group = kinds[k].group_size == 0 ? cols : kinds[k].group_size;
            matrix from, want, got;
            matrix_init(&from, kinds[k].from, rows, cols, 32, false);
            fill_random(&from, k + 100 * i);
            matrix_init(&want, kinds[k].to, rows, cols, group, kinds[k].asym);
            matrix_init(&got, kinds[k].to, rows, cols, group, kinds[k].asym);
            float *x = malloc((size_t)cols * sizeof *x), *y = malloc((size_t)cols * sizeof *y);
            nb_error_sum error = {0};
            for (int64_t r = 0; r < rows; r++) {
                from.m.fmt->decode_row(&from.m, r, x);
                want.m.fmt->encode_row(&want.m, r, x);
                want.m.fmt->decode_row(&want.m, r, y);
                for (int64_t c = 0; c < cols; c++) {
                    const double d = fabs((double)(y[c] - x[c]));
                    error.max = d > error.max ? d : error.max;
                    error.square += d * d;
                    error.power += (double)x[c] * (double)x[c];
                }
            }
            const nb_slice_job job = {.from = &from.m,
                                      .to = &got.m,
                                      .how = kinds[k].to->affine ? NB_HOW_QUANTIZE : NB_HOW_ROUND,
                                      .method = rtn()};
            int64_t n_slices;
            const nb_slice_result forward = run_all(&job, false, &n_slices);
            most_slices = n_slices > most_slices ? n_slices : most_slices;
            assert_int_equal(forward.end, NB_SLICE_FINE);
            assert_memory_equal(got.codes, want.codes, (size_t)(rows * want.m.row_bytes));
            assert_memory_equal(got.scales, want.scales, 4 * (size_t)(rows * cols));
            assert_memory_equal(got.zeros, want.zeros, (size_t)(rows * cols));
            assert_true(forward.error.max == error.max);
            assert_true(fabs(forward.error.square - error.square) <= 1e-12 * error.square);
            assert_true(fabs(forward.error.power - error.power) <= 1e-12 * error.power);
            const nb_slice_result backward = run_all(&job, true, &n_slices);
            assert_memory_equal(&forward.error, &backward.error, sizeof forward.error);
            matrix_free(&from);
            matrix_free(&want);
            matrix_free(&got);
            free(x);
            free(y);
        }
    }
    assert_true(most_slices > 3); /* or nothing was cut */
}

/* The first value that is no number is found wherever it is, and replaced if asked for. */
static void nonfinite_values(void **state)
{
    (void)state;
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    static const int64_t places[][2] = {{0, 0}, {0, 31}, {0, 32}, {199, 511}, {130, 7}, {1, 500}};
    matrix from, to;
    matrix_init(&from, &nb_format_f32, 200, 512, 0, false);
    matrix_init(&to, &nb_format_int4, 200, 512, 64, false);
    for (size_t p = 0; p < sizeof places / sizeof *places; p++) {
        for (size_t b = 0; b < 3; b++) {
            const int64_t row = places[p][0], col = places[p][1];
            fill_random(&from, 5);
            ((float *)(void *)from.codes)[row * 512 + col] = bad[b];
            ((float *)(void *)from.codes)[199 * 512 + 511] = bad[b]; /* and a later one */
            nb_slice_job job = {
                .from = &from.m, .to = &to.m, .how = NB_HOW_QUANTIZE, .method = rtn()};
            int64_t n_slices;
            nb_slice_result r = run_all(&job, b == 1, &n_slices);
            assert_int_equal(r.end, NB_SLICE_NONFINITE);
            assert_int_equal(r.row, row);
            assert_int_equal(r.col, col);
            assert_true(isnan(bad[b]) ? isnan(r.value) : r.value == bad[b]);
            job.how = NB_HOW_COPY; /* a copy looks, too */
            assert_int_equal(run_all(&job, false, &n_slices).end, NB_SLICE_NONFINITE);

            job.how = NB_HOW_QUANTIZE;
            job.nonfinite = NB_NONFINITE_ZERO;
            r = run_all(&job, false, &n_slices);
            assert_int_equal(r.end, NB_SLICE_FINE);
            assert_int_equal(r.n_zeroed, p == 3 ? 1 : 2);
            float y[512];
            to.m.fmt->decode_row(&to.m, row, y);
            assert_true(y[col] == 0);
            assert_true(isfinite(r.error.square) && isfinite(r.error.power));
        }
    }
    matrix_free(&from);
    matrix_free(&to);
}

/* 1e30 is a number, and no F16. */
static void overflow_is_an_error(void **state)
{
    (void)state;
    matrix from, to;
    matrix_init(&from, &nb_format_f32, 40, 96, 0, false);
    matrix_init(&to, &nb_format_f16, 40, 96, 0, false);
    fill_random(&from, 1);
    ((float *)(void *)from.codes)[17 * 96 + 95] = -1e30f;
    const nb_slice_job job = {.from = &from.m, .to = &to.m, .how = NB_HOW_ROUND, .method = rtn()};
    int64_t n_slices;
    const nb_slice_result r = run_all(&job, false, &n_slices);
    assert_int_equal(r.end, NB_SLICE_OVERFLOW);
    assert_int_equal(r.row, 17);
    assert_int_equal(r.col, 95);
    assert_true(r.value == -1e30f);
    matrix_free(&from);
    matrix_free(&to);
}

/* With KEEP, what is no number stays none, and is no part of the error. */
static void kept_nonfinite_values(void **state)
{
    (void)state;
    matrix from, to;
    matrix_init(&from, &nb_format_f32, 3, 40, 0, false);
    matrix_init(&to, &nb_format_bf16, 3, 40, 0, false);
    fill_random(&from, 1);
    ((float *)(void *)from.codes)[45] = NAN;
    ((float *)(void *)from.codes)[46] = -INFINITY;
    const nb_slice_job job = {.from = &from.m,
                              .to = &to.m,
                              .how = NB_HOW_ROUND,
                              .method = rtn(),
                              .nonfinite = NB_NONFINITE_KEEP};
    int64_t n_slices;
    const nb_slice_result r = run_all(&job, false, &n_slices);
    assert_int_equal(r.end, NB_SLICE_FINE);
    assert_true(isfinite(r.error.max) && r.error.max > 0 && isfinite(r.error.power));
    float y[40];
    to.m.fmt->decode_row(&to.m, 1, y);
    assert_true(isnan(y[5]) && y[6] == -INFINITY && isfinite(y[7]));
    matrix_free(&from);
    matrix_free(&to);
}

/* A row that cannot be repacked is named; with requantize it alone gets new codes. */
static void inexact_rows(void **state)
{
    (void)state;
    matrix from, to;
    matrix_init(&from, &nb_format_int4, 50, 64, 32, false);
    matrix_init(&to, &nb_format_q4_0, 50, 64, 0, false);
    fill_random(&from, 9);
    nb_float_put(from.scales, NB_BF16, 2 * 33 + 1, 0x1p-60f);
    nb_slice_job job = {.from = &from.m, .to = &to.m, .how = NB_HOW_REPACK, .method = rtn()};
    int64_t n_slices;
    nb_slice_result r = run_all(&job, false, &n_slices);
    assert_int_equal(r.end, NB_SLICE_INEXACT);
    assert_int_equal(r.row, 33);
    job.requantize = true;
    r = run_all(&job, false, &n_slices);
    assert_int_equal(r.end, NB_SLICE_FINE);
    assert_int_equal(r.n_requantized, 1);
    float x[64], y[64];
    for (int64_t row = 0; row < 50; row++) {
        from.m.fmt->decode_row(&from.m, row, x);
        to.m.fmt->decode_row(&to.m, row, y);
        assert_int_equal(memcmp(x, y, sizeof x) == 0, row != 33);
    }
    matrix_free(&from);
    matrix_free(&to);
}

/* A Q8_0 block whose scale is NaN becomes zeros; its neighbours' codes stay what they are. */
static void broken_scale_in_a_repacked_row(void **state)
{
    (void)state;
    matrix from, to;
    matrix_init(&from, &nb_format_q8_0, 4, 64, 0, false);
    matrix_init(&to, &nb_format_int8, 4, 64, 32, false);
    to.m.scale_type = NB_F16;
    fill_random(&from, 2);
    const uint16_t nan = 0x7e00;
    memcpy(from.codes + 2 * from.m.row_bytes, &nan, 2);
    nb_slice_job job = {.from = &from.m, .to = &to.m, .how = NB_HOW_REPACK, .method = rtn()};
    int64_t n_slices;
    nb_slice_result r = run_all(&job, false, &n_slices);
    assert_int_equal(r.end, NB_SLICE_NONFINITE);
    assert_int_equal(r.row, 2);
    assert_int_equal(r.col, 0);
    job.nonfinite = NB_NONFINITE_ZERO;
    r = run_all(&job, false, &n_slices);
    assert_int_equal(r.end, NB_SLICE_FINE);
    assert_int_equal(r.n_zeroed, 32);
    float x[64], y[64];
    for (int64_t row = 0; row < 4; row++) {
        from.m.fmt->decode_row(&from.m, row, x);
        to.m.fmt->decode_row(&to.m, row, y);
        if (row != 2)
            assert_memory_equal(x, y, sizeof x);
        for (int c = 0; row == 2 && c < 64; c++)
            assert_true(c < 32 ? y[c] == 0 : fabsf(y[c] - x[c]) <= 0.01f);
    }
    matrix_free(&from);
    matrix_free(&to);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(slices_are_the_whole), cmocka_unit_test(nonfinite_values),
        cmocka_unit_test(overflow_is_an_error), cmocka_unit_test(kept_nonfinite_values),
        cmocka_unit_test(inexact_rows),         cmocka_unit_test(broken_scale_in_a_repacked_row),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
