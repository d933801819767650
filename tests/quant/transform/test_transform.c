/* Moving scales: the block computes the same, statistics follow, and what cannot take a scale gets
 * none. */
#include "support/golden.h"

#include "base/rng.h"
#include "numeric/minifloat.h"
#include "toy_block.h"

#include <float.h>

static nb_kernels kernels;
static nb_pool *pool;
static nb_err err;

static int setup(void **state)
{
    (void)state;
    nb_kernels_init(&kernels, ~0u);
    return nb_pool_open(&pool, 2, &err) == NB_OK ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    nb_pool_close(pool);
    return 0;
}

static nb_algebra algebra(void)
{
    return (nb_algebra){.kernels = &kernels, .pool = pool};
}

/* From 1/range to range, spread evenly in the logarithm. */
static void random_s(float *s, int64_t n, double range, uint64_t seed)
{
    for (int64_t j = 0; j < n; j++)
        s[j] = (float)exp((2 * nb_rng_uniform(seed, 1, (uint64_t)j) - 1) * log(range));
}

static double *outputs(const toy_block *b)
{
    double *out = malloc(sizeof *out * TOY_TOKENS * TOY_D);
    toy_run(b, b->x, out, NULL);
    return out;
}

/* Moves a random s at every point in turn, or all of them; how far the outputs went. */
static double moved_by(const toy_options *o, int only, double range)
{
    nb_algebra la = algebra();
    toy_block b;
    toy_open(&b, &la, o);
    double *before = outputs(&b);
    for (int p = 0; p < NB_N_POINTS; p++) {
        float s[TOY_MAX];
        if (only >= 0 && p != only)
            continue;
        random_s(s, nb_point_n_cols(&b.config, (nb_point)p), range, o->seed + 9 + (uint64_t)p);
        assert_int_equal(nb_transform_move(&b.job, (nb_point)p, s, &err), NB_OK);
    }
    double *after = outputs(&b);
    const double distance = toy_distance(after, before);
    free(before);
    free(after);
    toy_close(&b);
    nb_algebra_free(&la);
    return distance;
}

static void a_block_computes_the_same_after_any_move(void **state)
{
    (void)state;
    int n = 0;
    for (int kv = 1; kv <= 4; kv *= 2) {
        for (int type = NB_F32; type <= NB_BF16; type++) {
            const toy_options o = {.seed = (uint64_t)(10 * kv + type),
                                   .n_kv_heads = kv,
                                   .biases = kv != 1,
                                   .gain_type = (nb_float_type)type};
            assert_true(moved_by(&o, -1, 16) <= 2e-6);
            n++;
        }
    }
    assert_int_equal(n, 9);
    const toy_options o = {.seed = 5, .biases = true, .gain_type = NB_F16};
    for (int p = 0; p < NB_N_POINTS; p++)
        assert_true(moved_by(&o, p, 1000) <= 2e-6);
}

/* The check above sees a column that was multiplied and whose input was not divided. */
static void a_forgotten_division_is_seen(void **state)
{
    (void)state;
    nb_algebra la = algebra();
    const int columns[] = {NB_LINEAR_V, NB_LINEAR_O, NB_LINEAR_GATE, NB_LINEAR_DOWN};
    for (size_t i = 0; i < sizeof columns / sizeof *columns; i++) {
        toy_block b;
        toy_open(&b, &la, &(toy_options){.seed = 3});
        double *before = outputs(&b);
        for (int64_t r = 0; r < b.to[columns[i]].n_rows; r++)
            b.weight[columns[i]][r * b.to[columns[i]].n_cols + 7] *= 1.01f;
        double *after = outputs(&b);
        assert_true(toy_distance(after, before) > 2e-5);
        free(before);
        free(after);
        toy_close(&b);
    }
    nb_algebra_free(&la);
}

/* Gains are numbers of their type, and s is what they were divided by: weights are what they were
 * times s, and rows what they were divided by it. */
static void s_is_what_was_applied(void **state)
{
    (void)state;
    nb_algebra la = algebra();
    toy_block b, was;
    const toy_options o = {.seed = 4, .biases = true, .gain_type = NB_BF16};
    for (int p = 0; p < NB_N_POINTS; p++) {
        toy_open(&b, &la, &o);
        toy_open(&was, &la, &o);
        float s[TOY_MAX], wanted[TOY_MAX];
        const int64_t n = nb_point_n_cols(&b.config, (nb_point)p);
        random_s(s, n, 16, 77);
        memcpy(wanted, s, sizeof s);
        assert_int_equal(nb_transform_move(&b.job, (nb_point)p, s, &err), NB_OK);
        int count;
        const int first = (int)nb_point_linears((nb_point)p, &count);
        for (int64_t i = 0; i < b.to[first].n_rows * n; i++)
            assert_true(b.weight[first][i] == was.weight[first][i] * s[i % n]);
        for (int64_t j = 0; j < n; j++) {
            if (p == NB_AT_ATTN || p == NB_AT_FFN) {
                const float gain = b.gain[p == NB_AT_FFN][j];
                assert_true(nb_bf16_to_f32(nb_bf16_from_f32(gain)) == gain);
                assert_true(fabs((double)(s[j] / wanted[j]) - 1) <= 0x1p-8);
                continue;
            }
            const int up = p == NB_AT_O ? NB_LINEAR_V : NB_LINEAR_UP;
            const int64_t r = nb_point_source(&b.config, (nb_point)p, j);
            assert_true(b.weight[up][r * TOY_D + 5] == was.weight[up][r * TOY_D + 5] / s[j]);
            assert_true(b.bias[up][r] == was.bias[up][r] / s[j]);
            if (p == NB_AT_DOWN)
                assert_true(s[j] == wanted[j]);
        }
        toy_close(&b);
        toy_close(&was);
    }
    nb_algebra_free(&la);
}

/* Query heads of a group: the geometric mean of what they asked for. */
static void heads_of_a_group_share_their_scales(void **state)
{
    (void)state;
    nb_algebra la = algebra();
    toy_block b;
    toy_open(&b, &la, &(toy_options){.seed = 6});
    float s[TOY_MAX], wanted[TOY_MAX];
    random_s(wanted, TOY_D, 16, 5);
    memcpy(s, wanted, sizeof s);
    toy_settle(&b, NB_AT_O, s);
    for (int j = 0; j < TOY_D; j++) {
        const int twin = j / TOY_HEAD_DIM % 2 == 0 ? j + TOY_HEAD_DIM : j - TOY_HEAD_DIM;
        assert_true(s[j] == s[twin]);
        assert_true(nb_point_source(&b.config, NB_AT_O, j) ==
                    nb_point_source(&b.config, NB_AT_O, twin));
        const double mean = sqrt((double)wanted[j] * (double)wanted[twin]);
        assert_true(fabs((double)s[j] / mean - 1) < 1e-6);
    }
    assert_int_equal(nb_point_n_sources(&b.config, NB_AT_O), 2 * TOY_HEAD_DIM);
    toy_close(&b);
    nb_algebra_free(&la);
}

static void near(double got, double want, double scale)
{
    assert_true(fabs(got - want) <= 1e-4 * fabs(want) + 1e-5 * scale);
}

static void near_square(const double *got, const double *want, int64_t n)
{
    for (int64_t i = 0; i < n * n; i++)
        near(got[i], want[i], sqrt(fabs(want[i / n * (n + 1)] * want[i % n * (n + 1)])));
}

/* Statistics that were rescaled are those of the changed block. */
static void statistics_follow(void **state)
{
    (void)state;
    const unsigned needs =
        NB_STAT_HESSIAN | NB_STAT_HELD_OUT | NB_STAT_CROSS | NB_STAT_MAGNITUDE | NB_STAT_SAMPLE;
    nb_algebra la = algebra();
    toy_block b;
    const toy_options o = {
        .seed = 8, .biases = true, .gain_type = NB_BF16, .needs = needs, .outlier = 9};
    toy_open(&b, &la, &o);
    for (int p = 0; p < NB_N_POINTS; p++) {
        float s[TOY_MAX];
        random_s(s, nb_point_n_cols(&b.config, (nb_point)p), 8, 60 + (uint64_t)p);
        assert_int_equal(nb_transform_move(&b.job, (nb_point)p, s, &err), NB_OK);
    }
    nb_input_stats fresh[NB_N_POINTS];
    toy_gather(&b, fresh, needs, b.x, b.x);
    for (int p = 0; p < NB_N_POINTS; p++) {
        const nb_input_stats *got = &b.stats[p], *want = &fresh[p];
        const int64_t n = want->n_cols;
        assert_int_equal(got->n_sample, want->n_sample);
        assert_true(got->n_held > 0 && got->n_sample == TOY_TOKENS);
        near_square(got->cross, want->cross, n);
        near_square(got->held_cross, want->held_cross, n);
        for (int64_t i = 0; i < n; i++) {
            near(got->mean_abs[i], want->mean_abs[i], 0);
            near(got->mean_square[i], want->mean_square[i], 0);
            near((double)got->max_abs[i], (double)want->max_abs[i], 0);
            for (int64_t j = i; j < n; j++) {
                near(nb_sym_row(&got->h, i)[j], nb_sym_row(&want->h, i)[j],
                     want->cross[i * (n + 1)]);
                near(nb_sym_row(&got->held_h, i)[j], nb_sym_row(&want->held_h, i)[j],
                     want->cross[i * (n + 1)]);
            }
        }
        for (int64_t i = 0; i < got->n_sample * n; i++)
            near((double)got->sample[i], (double)want->sample[i], (double)want->max_abs[i % n]);
        nb_input_stats_free(&fresh[p]);
    }
    toy_close(&b);
    nb_algebra_free(&la);
}

/* Weights that are rounded to 16 bits afterwards lose nothing to a power of two. */
static void what_is_not_quantized_takes_powers_of_two(void **state)
{
    (void)state;
    nb_algebra la = algebra();
    const struct {
        nb_point point;
        nb_linear_id kept;
    } cases[] = {{NB_AT_ATTN, NB_LINEAR_K},
                 {NB_AT_O, NB_LINEAR_V},
                 {NB_AT_O, NB_LINEAR_O},
                 {NB_AT_FFN, NB_LINEAR_UP},
                 {NB_AT_DOWN, NB_LINEAR_UP}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        toy_block b;
        toy_open(&b, &la, &(toy_options){.seed = 9, .gain_type = NB_F32});
        for (int g = 0; g < 2; g++) /* exact after a division by a power of two */
            for (int j = 0; j < TOY_D; j++)
                b.gain[g][j] = rintf(64 * b.gain[g][j]) / 64 + 1;
        b.job.to[cases[i].kept] = NULL;
        float s[TOY_MAX];
        const int64_t n = nb_point_n_cols(&b.config, cases[i].point);
        random_s(s, n, 16, 3);
        toy_settle(&b, cases[i].point, s);
        int others = 0;
        for (int64_t j = 0; j < n; j++) {
            int exponent;
            assert_true(frexpf(s[j], &exponent) == 0.5f);
            others += s[j] != 1;
        }
        assert_true(others > n / 2);
        toy_close(&b);
    }
    nb_algebra_free(&la);
}

/* Whatever is asked for, s is a positive number that weights and gains can take. */
static void hostile_scales_are_settled(void **state)
{
    (void)state;
    nb_algebra la = algebra();
    const float asked[] = {NAN, INFINITY, -INFINITY, 0, -1, FLT_MAX, FLT_MIN, 1e-40f, 1e6f, 1e-6f};
    const float gains[] = {1, 0, -0.0f, 1e-35f, -3, 60000, 1e-6f, -1e-5f, 65504};
    const float weights[] = {1, 0, 3e38f, 1e5f, 1e-30f};
    for (int type = NB_F32; type <= NB_BF16; type++) {
        toy_block b;
        toy_open(&b, &la, &(toy_options){.seed = 2, .gain_type = (nb_float_type)type});
        for (int p = 0; p < NB_N_POINTS; p++) {
            const int64_t n = nb_point_n_cols(&b.config, (nb_point)p);
            int count;
            const int first = (int)nb_point_linears((nb_point)p, &count);
            float s[TOY_MAX];
            for (int64_t j = 0; j < n; j++) {
                s[j] = asked[j % 10];
                if (p == NB_AT_ATTN || p == NB_AT_FFN)
                    b.gain[p == NB_AT_FFN][j] = gains[j % 9];
                b.weight[first][j] = weights[j % 5];
            }
            assert_int_equal(nb_transform_move(&b.job, (nb_point)p, s, &err), NB_OK);
            for (int64_t j = 0; j < n; j++) {
                assert_true(s[j] > 0x1p-13f && s[j] < 0x1p13f);
                if (n == TOY_D && p != NB_AT_O && j % 9 >= 1 && j % 9 <= 3)
                    assert_true(s[j] == 1 && b.gain[p == NB_AT_FFN][j] == gains[j % 9]);
                const float w = weights[j % 5];
                assert_true(fabsf(b.weight[first][j]) <= (w > 33000 ? 1.004f * w : 33000));
            }
            for (int64_t j = 0; type == NB_F16 && j < TOY_D; j++)
                assert_true(fabsf(b.gain[0][j]) <= 65504 && fabsf(b.gain[1][j]) <= 65504);
        }
        toy_close(&b);
    }
    nb_algebra_free(&la);
}

/* A search tries s as it will be: settling twice changes nothing. */
static void settled_scales_stay(void **state)
{
    (void)state;
    nb_algebra la = algebra();
    toy_block b;
    for (int type = NB_F16; type <= NB_BF16; type++) {
        toy_open(&b, &la, &(toy_options){.seed = 11, .gain_type = (nb_float_type)type});
        for (int p = 0; p < NB_N_POINTS; p++) {
            float s[TOY_MAX], again[TOY_MAX];
            const int64_t n = nb_point_n_cols(&b.config, (nb_point)p);
            random_s(s, n, 100, 12);
            toy_settle(&b, (nb_point)p, s);
            memcpy(again, s, sizeof s);
            toy_settle(&b, (nb_point)p, again);
            assert_memory_equal(s, again, (size_t)n * sizeof *s);
        }
        toy_close(&b);
    }
    nb_algebra_free(&la);
}

static void a_move_without_memory_changes_nothing(void **state)
{
    (void)state;
    nb_algebra la = algebra();
    toy_block b;
    toy_open(&b, &la, &(toy_options){.seed = 13});
    float *w = malloc(sizeof *w * TOY_D * TOY_D), s[TOY_MAX];
    memcpy(w, b.weight[NB_LINEAR_O], sizeof *w * TOY_D * TOY_D);
    int n = 0;
    for (nb_status status = NB_MEMORY; status != NB_OK; n++) {
        random_s(s, TOY_D, 4, 1);
        const int64_t live = nb_alloc_live();
        nb_alloc_fail_at(n + 1);
        status = nb_transform_move(&b.job, NB_AT_O, s, &err);
        nb_alloc_fail_at(0);
        assert_true(status == NB_OK || status == NB_MEMORY);
        assert_int_equal(nb_alloc_live(), live);
        if (status != NB_OK)
            assert_memory_equal(w, b.weight[NB_LINEAR_O], sizeof *w * TOY_D * TOY_D);
    }
    assert_true(n > 2);
    free(w);
    toy_close(&b);
    nb_algebra_free(&la);
}

static void every_transform_is_found_by_its_name(void **state)
{
    (void)state;
    const nb_transform *found;
    const char *options;
    int n = 0;
    for (const nb_transform *const *t = nb_transforms; *t != NULL; t++, n++) {
        char text[64];
        snprintf(text, sizeof text, "%s:a=b,c", (*t)->name);
        assert_int_equal(nb_transform_by_name(&found, &options, text, &err), NB_OK);
        assert_ptr_equal(found, *t);
        assert_string_equal(options, "a=b,c");
        assert_int_equal((*t)->check(options, &err), NB_USAGE);
        assert_non_null(strstr(err.text, (*t)->name));
        assert_int_equal(nb_transform_by_name(&found, &options, (*t)->name, &err), NB_OK);
        assert_string_equal(options, "");
        assert_int_equal((*t)->check(options, &err), NB_OK);
        assert_true((*t)->needs != 0 && (*t)->source != NULL && (*t)->summary != NULL);
    }
    assert_true(n >= 2);
    const char *const unknown[] = {"", "aw", "awqq", ":", "AWQ", "smoothquant "};
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++) {
        assert_int_equal(nb_transform_by_name(&found, &options, unknown[i], &err), NB_USAGE);
        assert_non_null(strstr(err.text, "awq, smoothquant"));
    }
}

static void options_are_checked(void **state)
{
    (void)state;
    const struct {
        const char *text;
        nb_status want;
    } cases[] = {
        {"awq:clip=on", NB_OK},
        {"awq:clip=off,duo=both,grid=5", NB_OK},
        {"awq:duo=off", NB_OK},
        {"awq:clip", NB_USAGE},
        {"awq:clip=maybe", NB_USAGE},
        {"awq:grid=0", NB_USAGE},
        {"awq:grid=101", NB_USAGE},
        {"awq:grid=99999999999999999999999", NB_USAGE},
        {"awq:grid=", NB_USAGE},
        {"awq:grid=1x", NB_USAGE},
        {"awq:,", NB_USAGE},
        {"awq:x", NB_USAGE},
        {"smoothquant:alpha=0.5", NB_OK},
        {"smoothquant:balance=off", NB_OK},
        {"smoothquant:alpha=", NB_USAGE},
        {"smoothquant:alpha=1.1", NB_USAGE},
        {"smoothquant:alpha=nan", NB_USAGE},
        {"smoothquant:alpha=-0.1", NB_USAGE},
        {"smoothquant:0.5", NB_USAGE},
        {"smoothquant:balance=1", NB_USAGE},
        {"awq:abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz=1", NB_USAGE},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const nb_transform *t;
        const char *options;
        assert_int_equal(nb_transform_by_name(&t, &options, cases[i].text, &err), NB_OK);
        assert_int_equal(t->check(options, &err), cases[i].want);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_block_computes_the_same_after_any_move),
        cmocka_unit_test(a_forgotten_division_is_seen),
        cmocka_unit_test(s_is_what_was_applied),
        cmocka_unit_test(heads_of_a_group_share_their_scales),
        cmocka_unit_test(statistics_follow),
        cmocka_unit_test(what_is_not_quantized_takes_powers_of_two),
        cmocka_unit_test(hostile_scales_are_settled),
        cmocka_unit_test(settled_scales_stay),
        cmocka_unit_test(a_move_without_memory_changes_nothing),
        cmocka_unit_test(every_transform_is_found_by_its_name),
        cmocka_unit_test(options_are_checked),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
