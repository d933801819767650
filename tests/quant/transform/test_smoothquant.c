/* SmoothQuant: its error against plain loops, what it promises, and the balance against small moves
 * of any channel. */
#include "quant/transform/balance.h"
#include "toy_transform.h"

#define NEEDS (NB_STAT_MAGNITUDE | NB_STAT_SAMPLE)

extern const nb_transform nb_transform_smoothquant;

static nb_transform_result apply(toy_block *b, const char *options)
{
    return toy_apply(b, &nb_transform_smoothquant, options);
}

/* Inputs rounded in plain doubles, one scale a token. */
static void round_token(const float *x, int64_t n, double *out)
{
    double most = 0;
    for (int64_t j = 0; j < n; j++)
        most = fabs((double)x[j]) > most ? fabs((double)x[j]) : most;
    for (int64_t j = 0; j < n; j++)
        out[j] = most > 0 ? rint((double)x[j] * 127 / most) * most / 127 : 0;
}

/* The error of rounding what a block has become, on its sample. */
static double error_now(const toy_block *b, nb_point point, bool round_inputs)
{
    int count;
    const int first = (int)nb_point_linears(point, &count);
    const nb_input_stats *stats = &b->stats[point];
    const int64_t n = stats->n_cols;
    double total = 0;
    for (int id = first; id < first + count; id++) {
        const nb_weight *to = &b->to[id];
        nb_loaded made = {0};
        float *q = malloc(sizeof *q * (size_t)n);
        double error = 0, power = 0;
        assert_int_equal(nb_room_for(&made, to, &err), NB_OK);
        for (int64_t r = 0; r < to->n_rows; r++) {
            const float *w = b->weight[id] + r * n;
            to->fmt->encode_row(&made.mat, r, w);
            to->fmt->decode_row(&made.mat, r, q);
            for (int64_t t = 0; t < stats->n_sample; t++) {
                const float *x = stats->sample + t * n;
                double rounded[TOY_MAX], got = 0, want = 0;
                if (round_inputs)
                    round_token(x, n, rounded);
                for (int64_t j = 0; j < n; j++) {
                    got += (round_inputs ? rounded[j] : (double)x[j]) * (double)q[j];
                    want += (double)x[j] * (double)w[j];
                }
                error += (got - want) * (got - want);
                power += want * want;
            }
        }
        total += error / power;
        nb_loaded_free(&made);
        free(q);
    }
    return total / count;
}

static void errors_are_what_they_say_and_never_grow(void **state)
{
    (void)state;
    nb_algebra la = algebra(2, n_tables - 1);
    const toy_options cases[] = {
        {.seed = 1, .fmt = &nb_format_int8, .group = -1, .act_bits = 8, .outlier = 3},
        {.seed = 2, .fmt = &nb_format_int4, .group = 32, .act_bits = 8, .outlier = 40},
        {.seed = 3, .fmt = &nb_format_int8, .group = -1, .act_bits = 0, .n_kv_heads = 4},
    };
    const char *const options[] = {"", "alpha=0.5", "balance=off"};
    for (size_t i = 0; i < 2 * 3 * sizeof cases / sizeof *cases; i++) {
        toy_block b;
        toy_options o = cases[i / 6];
        o.needs = NEEDS;
        o.symmetric = true;
        o.gain_type = NB_BF16;
        toy_open(&b, &la, &o);
        const int half = (int)(i % 2); /* moves at a point change rows of another */
        double before[NB_N_POINTS];
        for (int p = 0; p < NB_N_POINTS; p++) {
            before[p] = error_now(&b, (nb_point)p, o.act_bits == 8);
            if (p % 2 != half)
                toy_forget(&b, (nb_point)p, NEEDS);
        }
        const nb_transform_result r = apply(&b, options[i / 2 % 3]);
        for (int p = half; p < NB_N_POINTS; p += 2) {
            assert_true(fabs(r.before[p] / before[p] - 1) < 0.01);
            assert_true(r.after[p] <= r.before[p]);
            const double now = error_now(&b, (nb_point)p, o.act_bits == 8);
            assert_true(fabs(r.after[p] / now - 1) < 0.01);
            assert_true(isnan(r.after[p ^ 1]) && strcmp(r.note[p ^ 1], "no inputs") == 0);
        }
        toy_close(&b);
    }
    nb_algebra_free(&la);
}

/* A channel whose inputs are thirty times the others: smoothing makes it smaller against them, and
 * what is left of the error is a fraction; the balance beats every alpha. */
static void an_outlier_is_smoothed(void **state)
{
    (void)state;
    enum { AT = 21 };
    nb_algebra la = algebra(2, n_tables - 1);
    toy_options o = {.seed = 8,
                     .outlier = AT,
                     .needs = NEEDS,
                     .fmt = &nb_format_int8,
                     .group = -1,
                     .symmetric = true,
                     .act_bits = 8};
    toy_block b, alphas, was;
    toy_open(&b, &la, &o);
    toy_open(&alphas, &la, &o);
    toy_open(&was, &la, &o);
    const nb_transform_result r = apply(&b, ""), a = apply(&alphas, "balance=off");
    for (int p = 0; p < NB_N_POINTS; p++) {
        assert_true(r.after[p] < 0.5 * r.before[p]);
        assert_true(r.after[p] <= a.after[p]);
        const int64_t at =
            p == NB_AT_O ? AT / TOY_HEAD_DIM * 2 * TOY_HEAD_DIM + AT % TOY_HEAD_DIM : AT;
        double others = 0;
        for (int64_t j = 0; j < was.stats[p].n_cols; j++)
            others += log((double)(was.stats[p].max_abs[j] / b.stats[p].max_abs[j])) /
                      (double)was.stats[p].n_cols;
        const double s = (double)(was.stats[p].max_abs[at] / b.stats[p].max_abs[at]);
        assert_true(log(s) > others + log(2));
    }
    toy_close(&b);
    toy_close(&alphas);
    toy_close(&was);
    nb_algebra_free(&la);
}

static void results_depend_on_no_machine(void **state)
{
    (void)state;
    const toy_options o = {.seed = 9,
                           .outlier = 4,
                           .needs = NEEDS,
                           .gain_type = NB_BF16,
                           .fmt = &nb_format_int8,
                           .group = -1,
                           .symmetric = true,
                           .act_bits = 8};
    toy_on_every_machine(&nb_transform_smoothquant, &o, "");
}

static void degenerate_inputs_end_well(void **state)
{
    (void)state;
    nb_algebra la = algebra(2, n_tables - 1);
    for (toy_spoilt kind = 0; kind < TOY_N_SPOILT; kind++) {
        toy_block b;
        const toy_options o = {.seed = 10,
                               .needs = NEEDS,
                               .fmt = &nb_format_int8,
                               .group = -1,
                               .symmetric = true,
                               .act_bits = 8,
                               .empty = kind == TOY_EMPTY};
        toy_open(&b, &la, &o);
        toy_spoil(&b, kind, NEEDS);
        const float kept = b.weight[NB_LINEAR_Q][5];
        const nb_transform_result r = apply(&b, "");
        toy_finite(&b);
        for (int p = 0; p < NB_N_POINTS; p++) {
            assert_true(r.note[p][0] != 0 && !(r.after[p] > r.before[p]));
            assert_true((kind == TOY_EMPTY || kind == TOY_NO_WEIGHTS) == !!isnan(r.after[p]));
        }
        if (kind == TOY_DEAD)
            assert_true(b.weight[NB_LINEAR_Q][5] == kept && b.gain[0][5] == 0);
        toy_close(&b);
    }
    nb_algebra_free(&la);
}

/* ---- the balance ---- */

enum { N = 24, TOKENS = 70, ROWS = 40 };

/* f of balance.h in plain doubles, one linear and groups of `group` columns. */
static double f_of(const nb_balance_job *job, const double *s)
{
    double f = 0;
    const nb_balance_side *x = &job->x, *w = &job->w[0];
    for (int side = 0; side < 2; side++) {
        const nb_balance_side *maxima = side == 0 ? x : w, *squares = side == 0 ? w : x;
        if (maxima->largest == 0)
            continue;
        for (int64_t at = 0; at < N; at += maxima->group) {
            double sum = 0, errors = 0;
            for (int64_t r = 0; r < maxima->n_rows; r++) {
                double most = 0;
                for (int64_t j = at; j < at + maxima->group && j < N; j++) {
                    const double z =
                        fabs((double)maxima->a[r * N + j]) * (side == 0 ? 1 / s[j] : s[j]);
                    most = z > most ? z : most;
                }
                sum += most * most;
            }
            for (int64_t r = 0; r < squares->n_rows; r++) {
                for (int64_t j = at; j < at + maxima->group && j < N; j++) {
                    const double z = (double)squares->a[r * N + j] * (side == 0 ? s[j] : 1 / s[j]);
                    errors += z * z;
                }
            }
            f += sum * errors / (maxima->largest * maxima->largest);
        }
    }
    return f;
}

/* Close to the optimum: no channel or pair of them can be moved to win more than a little, while
 * s = 1 and every alpha are far behind. */
static void the_balance_is_an_optimum(void **state)
{
    (void)state;
    int64_t source[N];
    float *x = malloc(sizeof *x * TOKENS * N), *w = malloc(sizeof *w * ROWS * N);
    for (int64_t j = 0; j < N; j++)
        source[j] = j;
    for (int c = 0; c < 4; c++) {
        check_fill(x, TOKENS * N, CHECK_RANDOM, 5 + (uint64_t)c);
        check_fill(w, ROWS * N, CHECK_RANDOM, 50 + (uint64_t)c);
        for (int64_t i = 0; i < TOKENS; i++) {
            x[i * N + 2] *= 40;
            x[i * N + 9] *= i == 3 ? 300 : 1; /* once */
        }
        for (int64_t i = 0; i < ROWS; i++)
            w[i * N + 2] *= c == 1 ? 20.0f : 0.3f;
        const nb_balance_job job = {
            .pool = pools[1],
            .n = N,
            .x = {x, TOKENS, c == 2 ? 8 : N, c == 3 ? 0 : 127},
            .n_linears = 1,
            .w = {{w, ROWS, c == 2 ? 12 : N, c == 1 ? 7 : 127}},
            .power = {1},
            .source = source,
        };
        float s[N];
        double at[N], one[N];
        assert_int_equal(nb_balance(&job, s, &err), NB_OK);
        for (int64_t j = 0; j < N; j++) {
            at[j] = (double)s[j];
            one[j] = 1;
        }
        const double f = f_of(&job, at);
        assert_true(f < f_of(&job, one));
        if (c == 0)
            assert_true(f < 0.2 * f_of(&job, one));
        for (int64_t j = 0; j < N; j++) {
            for (int step = -1; step <= 1; step += 2) {
                double moved[N];
                memcpy(moved, at, sizeof at);
                moved[j] *= exp(0.1 * step);
                assert_true(f_of(&job, moved) > 0.97 * f);
            }
        }
        for (uint64_t k = 0; k < 200; k++) { /* and in no direction */
            double moved[N];
            for (int64_t j = 0; j < N; j++)
                moved[j] = at[j] * exp(0.02 * (double)(check_pick(k, (uint64_t)j, 3) - 1));
            assert_true(f_of(&job, moved) > 0.97 * f);
        }
    }
    free(x);
    free(w);
}

static void channels_of_one_source_share(void **state)
{
    (void)state;
    int64_t source[N];
    float *x = malloc(sizeof *x * TOKENS * N), *w = malloc(sizeof *w * ROWS * N), s[N];
    for (int64_t j = 0; j < N; j++)
        source[j] = j % 12;
    check_fill(x, TOKENS * N, CHECK_RANDOM, 5);
    check_fill(w, ROWS * N, CHECK_RANDOM, 6);
    for (int64_t i = 0; i < TOKENS; i++) {
        x[i * N + 2] *= 40;
        x[i * N + 3] = x[i * N + 15] = 0; /* dead: stays 1 */
    }
    const nb_balance_job job = {.pool = pools[2],
                                .n = N,
                                .x = {x, TOKENS, N, 127},
                                .n_linears = 1,
                                .w = {{w, ROWS, N, 127}},
                                .power = {1},
                                .source = source};
    assert_int_equal(nb_balance(&job, s, &err), NB_OK);
    for (int64_t j = 0; j < 12; j++)
        assert_true(s[j] == s[j + 12] && (s[j] == 1) == (j == 3));
    assert_true(s[2] > 2 * s[4]);
    int n = 0;
    for (nb_status status = NB_MEMORY; status != NB_OK; n++) {
        const int64_t live = nb_alloc_live();
        nb_alloc_fail_at(n + 1);
        status = nb_balance(&job, s, &err);
        nb_alloc_fail_at(0);
        assert_int_equal(nb_alloc_live(), live);
    }
    assert_true(n > 8);
    free(x);
    free(w);
}

static void a_search_without_memory_leaks_nothing(void **state)
{
    (void)state;
    const toy_options o = {.seed = 14,
                           .needs = NEEDS,
                           .fmt = &nb_format_int8,
                           .group = -1,
                           .symmetric = true,
                           .act_bits = 8};
    toy_without_memory(&nb_transform_smoothquant, &o, "alpha=0.5");
}

/* ---- cases for scripts/oracle_awq.py ---- */

/* One JSON object a point: its statistics and weights, what was chosen, s and the codes after. */
static void print_cases(void)
{
    nb_algebra la = algebra(1, n_tables - 1);
    for (uint64_t seed = 0; seed < 6; seed++) {
        const toy_options o = {.seed = 20 + seed,
                               .needs = NEEDS,
                               .fmt = &nb_format_int8,
                               .group = -1,
                               .symmetric = true,
                               .act_bits = 8,
                               .outlier = (int)(5 * seed)};
        toy_block b, was;
        toy_open(&b, &la, &o);
        toy_open(&was, &la, &o);
        const nb_transform_result r = apply(&b, "balance=off");
        for (int p = 0; p < NB_N_POINTS; p++) {
            int count;
            const int first = (int)nb_point_linears((nb_point)p, &count);
            const int64_t n = was.to[first].n_cols;
            print_choice(&nb_transform_smoothquant, &was, &b, p, &r);
            print_floats("sample", was.stats[p].sample, was.stats[p].n_sample * n);
            print_floats("max_abs", was.stats[p].max_abs, n);
            for (int id = first; id < first + count; id++) {
                char name[16];
                snprintf(name, sizeof name, "w_%d", id);
                print_floats(name, was.weight[id], was.to[id].n_rows * n);
                /* Rows of v and up were divided at a later point. */
                if (id != NB_LINEAR_V && id != NB_LINEAR_UP)
                    print_codes(&b, id);
            }
            printf("}\n");
        }
        toy_close(&b);
        toy_close(&was);
    }
    nb_algebra_free(&la);
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "--cases") == 0) {
        if (setup(NULL) != 0)
            return 1;
        print_cases();
        return teardown(NULL);
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(errors_are_what_they_say_and_never_grow),
        cmocka_unit_test(an_outlier_is_smoothed),
        cmocka_unit_test(results_depend_on_no_machine),
        cmocka_unit_test(degenerate_inputs_end_well),
        cmocka_unit_test(the_balance_is_an_optimum),
        cmocka_unit_test(channels_of_one_source_share),
        cmocka_unit_test(a_search_without_memory_leaks_nothing),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
