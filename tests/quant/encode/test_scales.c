/* Scales that are learned: their slopes against differences, their descent against Adam's algorithm
 * in doubles, and what is stored against what the format says. */
#include "quant/encode/scales.h"

#include "quant/weight/room.h"
#include "support/check.h"
#include "support/golden.h"
#include "support/must.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 5, OF_EACH = 3 }; /* floats of a number that is learned */

typedef struct {
    const char *format;
    int64_t n_cols, group_size; /* of affine formats */
    bool asymmetric;
    nb_float_type type;
} sort;

/* Every format whose scales can be learned. A row of 37 columns is one group. */
static const sort sorts[] = {
    {"int2", 96, 32, false, NB_F32},  {"int2", 96, 32, true, NB_F16},
    {"int2", 64, 16, true, NB_BF16},  {"int3", 96, 32, false, NB_F16},
    {"int3", 96, 32, true, NB_F32},   {"int4", 37, 37, false, NB_F32},
    {"int4", 96, 32, true, NB_F16},   {"int4", 96, 96, false, NB_BF16},
    {"int8", 37, 37, true, NB_F32},   {"int8", 96, 32, false, NB_F16},
    {"int8", 128, 64, true, NB_BF16}, {"iq4_nl", 96, 0, false, NB_F16},
    {"q4_0", 96, 0, false, NB_F16},   {"q4_1", 96, 0, false, NB_F16},
    {"q5_0", 96, 0, false, NB_F16},   {"q5_1", 96, 0, false, NB_F16},
    {"q8_0", 96, 0, false, NB_F16},
};
#define N_SORTS ((int)(sizeof sorts / sizeof *sorts))

/* A matrix of one sort, and what is learned of it. */
typedef struct {
    nb_weight to;
    nb_loaded made;
    nb_grid grid;
    nb_scales s;
    nb_pool *pool;
    float *learned;
    int64_t n_floats, n_values, n_groups; /* numbers of a group; groups of a row */
} scene;

static nb_weight weight_of(const sort *k, int64_t n_rows)
{
    const nb_format *fmt = nb_format_by_name(k->format);
    assert_non_null(fmt);
    return (nb_weight){.name = k->format,
                       .n_rows = n_rows,
                       .n_cols = k->n_cols,
                       .fmt = fmt,
                       .group_size = k->group_size,
                       .symmetric = !k->asymmetric,
                       .scale_type = k->type};
}

/* Encoded from w [n_rows][n_cols]. */
static void scene_open(scene *x, const sort *k, int64_t n_rows, const float *w, int n_threads)
{
    nb_err err = {0};
    *x = (scene){.to = weight_of(k, n_rows)};
    must(nb_pool_open(&x->pool, n_threads, &err), &err);
    must(nb_room_for(&x->made, &x->to, &err), &err);
    nb_mat *m = &x->made.mat;
    for (int64_t r = 0; r < n_rows; r++)
        m->fmt->encode_row(m, r, w + r * k->n_cols);
    must(nb_grid_of(&x->grid, m, &err), &err);
    must(nb_scales_init(&x->s, m, x->pool, &err), &err);
    x->n_values = x->grid.has_offset ? 2 : 1;
    x->n_groups = (k->n_cols + x->grid.group_len - 1) / x->grid.group_len;
    x->n_floats = nb_scales_floats(&x->to);
    assert_int_equal(x->n_floats, n_rows * x->n_groups * x->n_values * OF_EACH);
    x->learned = calloc((size_t)x->n_floats, sizeof *x->learned);
    assert_non_null(x->learned);
}

static void scene_close(scene *x)
{
    nb_scales_free(&x->s);
    nb_loaded_free(&x->made);
    nb_pool_close(x->pool);
    free(x->learned);
}

static float *random_floats(int64_t n, check_kind kind, uint64_t seed)
{
    float *w = malloc((size_t)n * sizeof *w);
    assert_non_null(w);
    check_fill(w, n, kind, seed);
    return w;
}

static void scene_random(scene *x, const sort *k, check_kind kind, uint64_t seed)
{
    float *w = random_floats(ROWS * k->n_cols, kind, seed);
    scene_open(x, k, ROWS, w, 1);
    free(w);
}

/* All bytes of the matrix, the caller's. */
static uint8_t *bytes_of(scene *x, size_t *n)
{
    nb_mat_arrays a;
    nb_mat_list_arrays(&x->made.mat, &a);
    *n = 0;
    for (int i = 0; i < a.n; i++)
        *n += a.array[i].bytes;
    uint8_t *all = malloc(*n), *at = all;
    assert_non_null(all);
    for (int i = 0; i < a.n; i++) {
        memcpy(at, a.array[i].data, a.array[i].bytes);
        at += a.array[i].bytes;
    }
    return all;
}

static void check_values(check_run *run, const char *what, const scene *x)
{
    const nb_mat *m = &x->made.mat;
    float row[256];
    for (int64_t r = 0; r < m->n_rows; r++) {
        m->fmt->decode_row(m, r, row);
        check_same_f32(run, what, x->s.value + r * m->n_cols, row, m->n_cols);
    }
}

static nb_grid_group group_at(const scene *x, int64_t i)
{
    nb_grid_group g;
    nb_grid_group_at(&x->grid, &x->made.mat, i / x->n_groups, i % x->n_groups * x->grid.group_len,
                     &g);
    return g;
}

/* ---- slopes ---- */

/* Powers of two for scales, so that all the moves here are exact in every type of scale. */
static void put_simple_scales(scene *x)
{
    nb_err err = {0};
    for (int64_t i = 0; i < ROWS * x->n_groups; i++) {
        nb_grid_group g = group_at(x, i);
        g.scale = ldexpf(g.scale < 0 ? -1 : 1, -1 - (int)(i % 3));
        g.offset = x->grid.has_offset ? (float)(i % 5) - 2 : 0;
        assert_true(nb_grid_group_put(&x->grid, &x->made.mat, i / x->n_groups,
                                      i % x->n_groups * x->grid.group_len, &g));
    }
    must(nb_scales_init(&x->s, &x->made.mat, x->pool, &err), &err);
}

static double loss(scene *x, const float *grad)
{
    double sum = 0;
    nb_scales_set(&x->s, x->learned, x->pool);
    for (int64_t i = 0; i < ROWS * x->to.n_cols; i++)
        sum += (double)grad[i] * (double)x->s.value[i];
    return sum;
}

/* A loss that is linear in the values is so in a and b, and differences are exact but for the sums.
 * After one step the first moment is a tenth of the slope. */
static void slopes_are_those_of_differences(void **state)
{
    (void)state;
    check_run run = {.name = "slopes"};
    for (int k = 0; k < N_SORTS; k++) {
        scene x;
        scene_random(&x, &sorts[k], CHECK_RANDOM, 3);
        put_simple_scales(&x);
        float *grad = random_floats(ROWS * x.to.n_cols, CHECK_RANDOM, 4);
        double *slope = malloc((size_t)x.n_floats * sizeof *slope);
        for (int64_t i = 0; i < x.n_floats; i += OF_EACH) {
            x.learned[i] = 0.25f;
            const double high = loss(&x, grad);
            x.learned[i] = -0.25f;
            slope[i] = (high - loss(&x, grad)) / 0.5;
            x.learned[i] = 0;
        }
        nb_scales_set(&x.s, x.learned, x.pool);
        memcpy(x.s.grad, grad, (size_t)(ROWS * x.to.n_cols) * sizeof *grad);
        nb_scales_step(&x.s, x.learned, 1, 0.01, x.pool);
        for (int64_t i = 0; i < x.n_floats; i += OF_EACH) {
            check_near(&run, sorts[k].format, (double)x.learned[i + 1] * 10, slope[i], 1e-4);
            check_near(&run, sorts[k].format, (double)x.learned[i + 2] * 10, fabs(slope[i]), 1e-4);
            check_near(&run, sorts[k].format, (double)x.learned[i], slope[i] > 0 ? -0.01 : 0.01,
                       1e-6);
        }
        free(slope);
        free(grad);
        scene_close(&x);
    }
    check_finish(&run);
}

/* Algorithm 1 of Adam in doubles, for slopes that change from step to step. */
static void the_descent_is_adams(void **state)
{
    (void)state;
    check_run run = {.name = "adam"};
    for (int k = 0; k < N_SORTS; k++) {
        scene x;
        scene_random(&x, &sorts[k], CHECK_RANDOM, 5);
        put_simple_scales(&x);
        const int64_t n = x.n_floats / OF_EACH, cols = x.to.n_cols, len = x.grid.group_len;
        double *m = calloc((size_t)n, sizeof *m), *v = calloc((size_t)n, sizeof *v),
               *want = calloc((size_t)n, sizeof *want);
        for (int step = 1; step <= 12; step++) {
            const double rate = 0.004 / step;
            check_fill(x.s.grad, ROWS * cols, CHECK_RANDOM, (uint64_t)(100 + step));
            for (int64_t i = 0; i < n; i++) {
                const int64_t group = i / x.n_values, first = group % x.n_groups * len;
                const int64_t at = group / x.n_groups * cols;
                const double s0 = (double)x.s.first[group].scale;
                const nb_grid_group is = group_at(&x, group);
                double slope = 0;
                for (int64_t c = first; c < cols && c < first + len; c++) {
                    const double level =
                        ((double)x.s.value[at + c] - (double)is.offset) / (double)is.scale;
                    slope += (double)x.s.grad[at + c] * s0 * (i % x.n_values == 0 ? level : 1);
                }
                m[i] = 0.9 * m[i] + 0.1 * slope;
                v[i] = 0.99 * v[i] + 0.01 * slope * slope;
                want[i] -=
                    rate * (m[i] / (1 - pow(0.9, step))) / sqrt(v[i] / (1 - pow(0.99, step)));
            }
            nb_scales_step(&x.s, x.learned, step, rate, x.pool);
            for (int64_t i = 0; i < n; i++)
                check_near(&run, sorts[k].format, (double)x.learned[i * OF_EACH], want[i], 1e-6);
            nb_scales_set(&x.s, x.learned, x.pool);
        }
        free(m);
        free(v);
        free(want);
        scene_close(&x);
    }
    check_finish(&run);
}

/* From scales that are a third too large, to a sum of squares near that of the best scales there
 * are for these codes. */
static void a_descent_finds_the_least_squares(void **state)
{
    (void)state;
    const sort k = {"int4", 96, 32, false, NB_F32};
    float *w = random_floats(ROWS * k.n_cols, CHECK_RANDOM, 6);
    scene x;
    nb_err err = {0};
    scene_open(&x, &k, ROWS, w, 2);
    for (int64_t i = 0; i < ROWS * x.n_groups; i++) {
        nb_grid_group g = group_at(&x, i);
        g.scale *= 4.0f / 3;
        assert_true(nb_grid_group_put(&x.grid, &x.made.mat, i / x.n_groups,
                                      i % x.n_groups * x.grid.group_len, &g));
    }
    must(nb_scales_init(&x.s, &x.made.mat, x.pool, &err), &err);
    double least = 0, start = 0, end = 0;
    for (int64_t i = 0; i < ROWS * x.n_groups; i++) {
        double wv = 0, vv = 0, ww = 0;
        for (int64_t c = 0; c < 32; c++) {
            const double a = (double)w[i * 32 + c], v = (double)x.s.value[i * 32 + c];
            wv += a * v;
            vv += v * v;
            ww += a * a;
            start += (v - a) * (v - a);
        }
        least += ww - wv * wv / vv;
    }
    for (int step = 0; step < 300; step++) {
        for (int64_t i = 0; i < ROWS * k.n_cols; i++)
            x.s.grad[i] = x.s.value[i] - w[i];
        nb_scales_step(&x.s, x.learned, step + 1, 0.01 * (1 - step / 300.0), x.pool);
        nb_scales_set(&x.s, x.learned, x.pool);
    }
    for (int64_t i = 0; i < ROWS * k.n_cols; i++)
        end += pow((double)x.s.value[i] - (double)w[i], 2);
    assert_true(start > 5 * least);
    assert_true(end >= least && end < 1.001 * least);
    free(w);
    scene_close(&x);
}

/* ---- what is stored ---- */

/* Zeros, subnormal numbers and wide ranges, too, among them groups of scale 0 and offsets of -0. */
static void nothing_learned_changes_no_byte(void **state)
{
    (void)state;
    static const check_kind kinds[] = {CHECK_RANDOM,    CHECK_INTEGERS, CHECK_WIDE,
                                       CHECK_SUBNORMAL, CHECK_EQUAL,    CHECK_ZEROS};
    check_run run = {.name = "bytes"};
    for (int k = 0; k < N_SORTS; k++) {
        for (int i = 0; i < (int)(sizeof kinds / sizeof *kinds); i++) {
            scene x;
            size_t n, again;
            scene_random(&x, &sorts[k], kinds[i], 7);
            uint8_t *before = bytes_of(&x, &n);
            check_values(&run, sorts[k].format, &x);
            nb_scales_set(&x.s, x.learned, x.pool);
            uint8_t *after = bytes_of(&x, &again);
            assert_int_equal(n, again);
            check_same_bytes(&run, sorts[k].format, after, before, n);
            check_values(&run, sorts[k].format, &x);
            free(before);
            free(after);
            scene_close(&x);
        }
    }
    check_finish(&run);
}

static void learn_at_random(scene *x, uint64_t seed)
{
    for (int64_t i = 0; i < x->n_floats; i++)
        x->learned[i] = ((float)check_pick(seed, (uint64_t)i, 2001) - 1000) / 2000;
}

/* Codes and zero points stay; scales are what was asked for, as the format rounds them; values are
 * what the matrix says; and all of it depends on what was learned last, not on what was before. */
static void what_is_learned_is_what_is_stored(void **state)
{
    (void)state;
    static const double epsilon[] = {[NB_F32] = 0x1p-23, [NB_F16] = 0x1p-11, [NB_BF16] = 0x1p-8};
    check_run run = {.name = "stored"};
    for (int k = 0; k < N_SORTS; k++) {
        scene x, y;
        scene_random(&x, &sorts[k], CHECK_RANDOM, 8);
        scene_random(&y, &sorts[k], CHECK_RANDOM, 8);
        const double e = epsilon[sorts[k].type];
        for (uint64_t seed = 1; seed <= 3; seed++) {
            learn_at_random(&x, seed);
            nb_scales_set(&x.s, x.learned, x.pool);
            check_values(&run, sorts[k].format, &x);
        }
        for (int64_t i = 0; i < ROWS * x.n_groups; i++) {
            const nb_grid_group was = group_at(&y, i), is = group_at(&x, i);
            const float *l = x.learned + i * x.n_values * OF_EACH;
            const double scale = (double)was.scale * (1 + (double)l[0]);
            check_near(&run, "scale", (double)is.scale, scale, fabs(scale) * e);
            assert_int_equal(is.zero, was.zero);
            if (!x.grid.has_offset)
                continue;
            const double offset = (double)was.offset + (double)was.scale * (double)l[OF_EACH];
            check_near(&run, "offset", (double)is.offset, offset,
                       (fabs((double)was.offset) + fabs((double)was.scale)) * e);
        }
        size_t n;
        nb_scales_set(&y.s, x.learned, y.pool);
        uint8_t *one = bytes_of(&x, &n), *other = bytes_of(&y, &n);
        check_same_bytes(&run, "after another", one, other, n);
        free(one);
        free(other);
        /* Back at the start: no code has moved. */
        memset(x.learned, 0, (size_t)x.n_floats * sizeof *x.learned);
        nb_scales_set(&x.s, x.learned, x.pool);
        nb_scales_set(&y.s, x.learned, y.pool);
        scene_close(&y);
        scene_random(&y, &sorts[k], CHECK_RANDOM, 8);
        one = bytes_of(&x, &n);
        other = bytes_of(&y, &n);
        check_same_bytes(&run, "back at the start", one, other, n);
        free(one);
        free(other);
        scene_close(&x);
        scene_close(&y);
    }
    check_finish(&run);
}

/* Half of the least number of binary16 is 0: no format stores that, and the start stays. */
static void what_cannot_be_stored_is_as_at_the_start(void **state)
{
    (void)state;
    for (int k = 0; k < N_SORTS; k++) {
        scene x;
        nb_err err = {0};
        if (sorts[k].type != NB_F16)
            continue;
        scene_random(&x, &sorts[k], CHECK_RANDOM, 9);
        nb_grid_group g = group_at(&x, 0), is;
        g.scale = 0x1p-24f;
        assert_true(nb_grid_group_put(&x.grid, &x.made.mat, 0, 0, &g));
        must(nb_scales_init(&x.s, &x.made.mat, x.pool, &err), &err);
        x.learned[0] = 0.5f; /* 1.5 is halfway, and goes to the even 2 */
        nb_scales_set(&x.s, x.learned, x.pool);
        is = group_at(&x, 0);
        assert_true(is.scale == 0x1p-23f);
        x.learned[0] = -0.5f;
        nb_scales_set(&x.s, x.learned, x.pool);
        is = group_at(&x, 0);
        assert_true(is.scale == 0x1p-24f && is.zero == g.zero && is.offset == g.offset);
        scene_close(&x);
    }
}

/* ---- what is out of the ordinary ---- */

/* ggml's blocks store 0 for a group of zeros. Of such a group nothing moves, whatever its scale; of
 * all others everything does. */
static void a_group_of_scale_zero_stays(void **state)
{
    (void)state;
    check_run run = {.name = "zeros"};
    int n_zero = 0;
    for (int k = 0; k < N_SORTS; k++) {
        const int64_t cols = sorts[k].n_cols;
        float *w = random_floats(ROWS * cols, CHECK_RANDOM, 10);
        scene x;
        memset(w, 0, (size_t)cols * sizeof *w);
        scene_open(&x, &sorts[k], ROWS, w, 1);
        check_fill(x.s.grad, ROWS * cols, CHECK_RANDOM, 11);
        nb_scales_step(&x.s, x.learned, 1, 0.1, x.pool);
        nb_scales_set(&x.s, x.learned, x.pool);
        for (int64_t i = 0; i < ROWS * x.n_groups; i++) {
            const float *l = x.learned + i * x.n_values * OF_EACH;
            for (int64_t j = 0; j < x.n_values * OF_EACH; j++)
                assert_true((l[j] == 0) == (i < x.n_groups));
            n_zero += x.s.first[i].scale == 0;
        }
        for (int64_t c = 0; c < cols && !x.grid.has_offset; c++)
            assert_true(x.s.value[c] == 0);
        check_values(&run, sorts[k].format, &x);
        free(w);
        scene_close(&x);
    }
    assert_true(n_zero > 0);
    check_finish(&run);
}

/* A gradient that is no number, or whose sum is too large for one, leaves its group where it was;
 * and others go on. */
static void gradients_that_are_no_numbers_move_nothing(void **state)
{
    (void)state;
    static const float bad[] = {NAN, INFINITY, -INFINITY, 3e38f};
    for (int k = 0; k < N_SORTS; k++) {
        for (int b = 0; b < 4; b++) {
            scene x;
            scene_random(&x, &sorts[k], CHECK_RANDOM, 12);
            put_simple_scales(&x);
            learn_at_random(&x, 13);
            for (int64_t i = 0; i < x.n_floats; i++)
                x.learned[i] = fabsf(x.learned[i]) / 4;
            const size_t bytes = (size_t)x.n_floats * sizeof *x.learned;
            float *before = malloc(bytes);
            assert_non_null(before);
            memcpy(before, x.learned, bytes);
            nb_scales_set(&x.s, x.learned, x.pool);
            check_fill(x.s.grad, ROWS * x.to.n_cols, CHECK_RANDOM, 14);
            for (int64_t c = 0; c < x.grid.group_len; c++) { /* of one sign, each */
                const bool up = x.s.value[c] > group_at(&x, 0).offset;
                x.s.grad[c] = b < 3 ? bad[b] : up ? bad[b] : -bad[b];
            }
            nb_scales_step(&x.s, x.learned, 2, 0.01, x.pool);
            assert_memory_equal(x.learned, before, OF_EACH * sizeof *before);
            for (int64_t i = x.n_values * OF_EACH; i < x.n_floats; i++) {
                assert_true(isfinite(x.learned[i]));
                assert_true(x.learned[i] != before[i]);
            }
            free(before);
            scene_close(&x);
        }
    }
}

static void a_scale_moves_by_half_at_most(void **state)
{
    (void)state;
    for (int k = 0; k < N_SORTS; k++) {
        scene x;
        scene_random(&x, &sorts[k], CHECK_RANDOM, 15);
        put_simple_scales(&x);
        check_fill(x.s.grad, ROWS * x.to.n_cols, CHECK_RANDOM, 16);
        for (int step = 1; step <= 40; step++)
            nb_scales_step(&x.s, x.learned, step, 0.1, x.pool);
        for (int64_t i = 0; i < x.n_floats; i += OF_EACH)
            assert_true(fabsf(x.learned[i]) == 0.5f);
        nb_scales_set(&x.s, x.learned, x.pool);
        for (int64_t i = 0; i < ROWS * x.n_groups; i++) {
            const double ratio = (double)group_at(&x, i).scale / (double)x.s.first[i].scale;
            assert_true(ratio == 0.5 || ratio == 1.5);
        }
        scene_close(&x);
    }
}

static void bits_do_not_depend_on_threads(void **state)
{
    (void)state;
    enum { MANY = 200 };
    static const sort wide[] = {{"int2", 1024, 32, true, NB_BF16}, {"q4_1", 1024, 0, false, 0}};
    check_run run = {.name = "threads"};
    for (int k = 0; k < 2; k++) {
        const int64_t n = MANY * wide[k].n_cols;
        float *w = random_floats(n, CHECK_RANDOM, 17), *first = NULL, *learned = NULL;
        for (int n_threads = 1; n_threads <= 4; n_threads++) {
            scene x;
            scene_open(&x, &wide[k], MANY, w, n_threads);
            for (int step = 1; step <= 3; step++) {
                check_fill(x.s.grad, n, CHECK_RANDOM, (uint64_t)step);
                nb_scales_step(&x.s, x.learned, step, 0.03, x.pool);
                nb_scales_set(&x.s, x.learned, x.pool);
            }
            const size_t value_bytes = (size_t)n * sizeof *first;
            const size_t learned_bytes = (size_t)x.n_floats * sizeof *learned;
            if (n_threads == 1) {
                first = malloc(value_bytes);
                learned = malloc(learned_bytes);
                assert_true(first != NULL && learned != NULL);
                memcpy(first, x.s.value, value_bytes);
                memcpy(learned, x.learned, learned_bytes);
            }
            check_same_f32(&run, "values", x.s.value, first, n);
            check_same_f32(&run, "learned", x.learned, learned, x.n_floats);
            scene_close(&x);
        }
        free(first);
        free(learned);
        free(w);
    }
    check_finish(&run);
}

/* Scales that are shared by rows, are codes themselves, or hang together: values, and no more. */
static void formats_with_nothing_to_learn(void **state)
{
    (void)state;
    enum { COLS = 256 };
    static const struct {
        sort k;
        int64_t scale_rows;
        bool nested;
    } all[] = {
        {{"q2_k", COLS, 0, false, 0}, 0, false},
        {{"q3_k", COLS, 0, false, 0}, 0, false},
        {{"q4_k", COLS, 0, false, 0}, 0, false},
        {{"q5_k", COLS, 0, false, 0}, 0, false},
        {{"q6_k", COLS, 0, false, 0}, 0, false},
        {{"nf4", COLS, 64, false, NB_F32}, 0, false},
        {{"nf4", COLS, 64, false, NB_F32}, 0, true},
        {{"fp8_e4m3", COLS, COLS, false, NB_F32}, 0, false},
        {{"fp8_e4m3", COLS, 128, false, NB_F32}, 128, false},
        {{"f16", COLS, 0, false, 0}, 0, false},
        {{"bf16", COLS, 0, false, 0}, 0, false},
    };
    check_run run = {.name = "nothing to learn"};
    nb_err err = {0};
    float *w = random_floats(ROWS * COLS, CHECK_RANDOM, 18);
    for (int i = 0; i < (int)(sizeof all / sizeof *all); i++) {
        scene x = {.to = weight_of(&all[i].k, ROWS)};
        size_t n;
        x.to.scale_rows = all[i].scale_rows;
        x.to.nested = all[i].nested;
        assert_int_equal(nb_scales_floats(&x.to), 0);
        must(nb_pool_open(&x.pool, 2, &err), &err);
        must(nb_room_for(&x.made, &x.to, &err), &err);
        nb_mat *m = &x.made.mat;
        for (int64_t r = 0; r < ROWS && nb_mat_shares(m); r++)
            m->fmt->survey_row(m, r, w + r * COLS);
        if (nb_mat_shares(m))
            m->fmt->settle(m);
        for (int64_t r = 0; r < ROWS; r++)
            m->fmt->encode_row(m, r, w + r * COLS);
        uint8_t *before = bytes_of(&x, &n);
        must(nb_scales_init(&x.s, m, x.pool, &err), &err);
        check_values(&run, all[i].k.format, &x);
        nb_scales_set(&x.s, NULL, x.pool);
        nb_scales_step(&x.s, NULL, 1, 0.1, x.pool);
        uint8_t *after = bytes_of(&x, &n);
        check_same_bytes(&run, all[i].k.format, after, before, n);
        check_values(&run, all[i].k.format, &x);
        free(before);
        free(after);
        scene_close(&x);
    }
    free(w);
    check_finish(&run);
}

static void no_memory_leaves_nothing(void **state)
{
    (void)state;
    scene x;
    nb_err err = {0};
    scene_random(&x, &sorts[0], CHECK_RANDOM, 19);
    nb_scales_free(&x.s);
    const int64_t live = nb_alloc_live();
    nb_alloc_fail_at(1);
    assert_int_equal(nb_scales_init(&x.s, &x.made.mat, x.pool, &err), NB_MEMORY);
    nb_alloc_fail_at(0);
    assert_int_equal(nb_alloc_live(), live);
    assert_null(x.s.value);
    scene_close(&x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(slopes_are_those_of_differences),
        cmocka_unit_test(the_descent_is_adams),
        cmocka_unit_test(a_descent_finds_the_least_squares),
        cmocka_unit_test(nothing_learned_changes_no_byte),
        cmocka_unit_test(what_is_learned_is_what_is_stored),
        cmocka_unit_test(what_cannot_be_stored_is_as_at_the_start),
        cmocka_unit_test(a_group_of_scale_zero_stays),
        cmocka_unit_test(gradients_that_are_no_numbers_move_nothing),
        cmocka_unit_test(a_scale_moves_by_half_at_most),
        cmocka_unit_test(bits_do_not_depend_on_threads),
        cmocka_unit_test(formats_with_nothing_to_learn),
        cmocka_unit_test(no_memory_leaves_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
