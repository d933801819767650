/* AWQ: its loss against plain loops, what it promises (never worse, the same on any machine), what
 * it is for (a planted outlier), and inputs with which nothing can be done. */
#include "quant/transform/awq_clip.h"
#include "toy_transform.h"

#define NEEDS (NB_STAT_HESSIAN | NB_STAT_MAGNITUDE)

extern const nb_transform nb_transform_awq;

/* The format's values of all rows of a linear, as plain rtn has them. */
static void round_all(const toy_block *b, int id, const float *w, float *out)
{
    nb_loaded made = {0};
    const nb_weight *to = &b->to[id];
    assert_int_equal(nb_room_for(&made, to, &err), NB_OK);
    const nb_quant_job job = {
        .method = &b->method, .weight = w, .n_rows = to->n_rows, .n_cols = to->n_cols};
    assert_int_equal(b->method.quantizer->encode_rows(&job, &made.mat, &err), NB_OK);
    for (int64_t r = 0; r < to->n_rows; r++)
        to->fmt->decode_row(&made.mat, r, out + r * to->n_cols);
    nb_loaded_free(&made);
}

/* sum over rows of e h e^T in plain doubles. */
static double quadratic(const nb_sym *h, const double *e, int64_t n_rows)
{
    double sum = 0;
    for (int64_t r = 0; r < n_rows; r++) {
        for (int64_t i = 0; i < h->n; i++) {
            for (int64_t j = i; j < h->n; j++)
                sum += (i == j ? 1 : 2) * e[r * h->n + i] * e[r * h->n + j] * nb_sym_row(h, i)[j];
        }
    }
    return sum;
}

/* The loss of rounding what a block has become: weights of `b`, statistics of `b`. */
static double loss_now(const toy_block *b, nb_point point)
{
    int count;
    const int first = (int)nb_point_linears(point, &count);
    double total = 0;
    for (int id = first; id < first + count; id++) {
        const int64_t size = b->to[id].n_rows * b->to[id].n_cols;
        float *q = malloc(sizeof *q * (size_t)size);
        double *e = malloc(sizeof *e * (size_t)size), *w = malloc(sizeof *w * (size_t)size);
        round_all(b, id, b->weight[id], q);
        for (int64_t i = 0; i < size; i++) {
            w[i] = (double)b->weight[id][i];
            e[i] = w[i] - (double)q[i];
        }
        total += quadratic(&b->stats[point].h, e, b->to[id].n_rows) /
                 quadratic(&b->stats[point].h, w, b->to[id].n_rows);
        free(q);
        free(e);
        free(w);
    }
    return total / count;
}

static nb_transform_result apply(toy_block *b, const char *options)
{
    return toy_apply(b, &nb_transform_awq, options);
}

/* What it says its losses are: those of the blocks before and after, by plain loops; and never
 * more after than before. */
static void losses_are_what_they_say_and_never_grow(void **state)
{
    (void)state;
    nb_algebra la = algebra(2, n_tables - 1);
    const toy_options cases[] = {
        {.seed = 1, .symmetric = true},
        {.seed = 2, .outlier = 3, .biases = true},
        {.seed = 3, .fmt = &nb_format_int8, .group = -1, .symmetric = true, .outlier = 5},
        {.seed = 4, .fmt = &nb_format_q4_0, .gain_type = NB_BF16, .n_kv_heads = 1},
        {.seed = 5, .fmt = &nb_format_int3, .gain_type = NB_F16, .n_kv_heads = 4, .outlier = 60},
        {.seed = 6, .fmt = &nb_format_q8_0},
    };
    int n_better = 0, n = 0;
    for (size_t i = 0; i < 2 * sizeof cases / sizeof *cases; i++) {
        toy_block b;
        toy_options o = cases[i / 2];
        o.needs = NEEDS;
        toy_open(&b, &la, &o);
        /* Two points of a block at a time, because moves at one change rows of the other. */
        const int half = (int)(i % 2);
        double before[NB_N_POINTS];
        for (int p = 0; p < NB_N_POINTS; p++) {
            before[p] = loss_now(&b, (nb_point)p);
            if (p % 2 != half)
                toy_forget(&b, (nb_point)p, NEEDS);
        }
        const nb_transform_result r = apply(&b, "clip=off,grid=8");
        for (int p = half; p < NB_N_POINTS; p += 2, n++) {
            assert_true(fabs(r.before[p] / before[p] - 1) < 1e-4);
            assert_true(r.after[p] <= r.before[p]);
            /* Roundings of scaled and rescaled weights differ in the last place. */
            assert_true(fabs(r.after[p] / loss_now(&b, (nb_point)p) - 1) < 0.002);
            n_better += r.after[p] < 0.999 * r.before[p];
            assert_true(isnan(r.after[p ^ 1]));
        }
        toy_close(&b);
    }
    assert_true(n_better >= n / 2);
    nb_algebra_free(&la);
}

/* A grid that is first tried on few rows ends nearly as low as one that is tried on all: the one of
 * either family alone, which is short enough for that. gate and up have rows to leave out. */
static void few_rows_choose_as_all_do(void **state)
{
    (void)state;
    nb_algebra la = algebra(2, n_tables - 1);
    static const char *const options[] = {"clip=off,grid=6", "clip=off,grid=6,duo=off",
                                          "clip=off,grid=6,duo=on"};
    double gained = 0;
    for (uint64_t seed = 20; seed < 28; seed++) {
        double after[3];
        for (int i = 0; i < 3; i++) {
            toy_block b;
            const toy_options o = {.seed = seed,
                                   .needs = NEEDS,
                                   .outlier = (int)seed % 5,
                                   .method = seed % 2 == 0 ? "rtn" : "rtn:search"};
            toy_open(&b, &la, &o);
            const nb_transform_result r = apply(&b, options[i]);
            after[i] = r.after[NB_AT_FFN];
            gained += i == 0 ? 1 - r.after[NB_AT_FFN] / r.before[NB_AT_FFN] : 0;
            toy_close(&b);
        }
        assert_true(after[0] <= 1.01 * fmin(after[1], after[2]));
    }
    assert_true(gained > 0.4); /* or any choice would do */
    nb_algebra_free(&la);
}

/* The first of equals is the identity, and then nothing at all changes. */
static void what_gains_nothing_is_left_alone(void **state)
{
    (void)state;
    nb_algebra la = algebra(2, n_tables - 1);
    toy_block b, was;
    /* Weights that int8 holds exactly: no loss before, so none to win. */
    const toy_options o = {
        .seed = 7, .fmt = &nb_format_int8, .group = 32, .symmetric = true, .needs = NEEDS};
    toy_open(&b, &la, &o);
    for (int id = 0; id < NB_N_LINEARS; id++) {
        for (int64_t i = 0; i < b.to[id].n_rows * b.to[id].n_cols; i++)
            b.weight[id][i] = i % 32 == 0 ? 127.5f : rintf(100 * b.weight[id][i]);
    }
    toy_open(&was, &la, &o);
    for (int id = 0; id < NB_N_LINEARS; id++)
        memcpy(was.weight[id], b.weight[id],
               sizeof(float) * (size_t)(b.to[id].n_rows * b.to[id].n_cols));
    const nb_transform_result r = apply(&b, "");
    for (int p = 0; p < NB_N_POINTS; p++) {
        if (r.before[p] == 0) {
            assert_true(r.after[p] == 0);
            assert_non_null(strstr(r.note[p], "alpha 0"));
        }
    }
    if (r.before[NB_AT_ATTN] == 0)
        assert_memory_equal(b.gain[0], was.gain[0], sizeof b.gain[0]);
    toy_close(&b);
    toy_close(&was);
    nb_algebra_free(&la);
}

/* A channel whose inputs are thirty times the others gets a larger weight than they do. */
static void an_outlier_gets_a_larger_weight(void **state)
{
    (void)state;
    enum { AT = 21 };
    nb_algebra la = algebra(2, n_tables - 1);
    toy_block b, was;
    const toy_options o = {.seed = 8, .outlier = AT, .needs = NEEDS};
    toy_open(&b, &la, &o);
    toy_open(&was, &la, &o);
    const nb_transform_result r = apply(&b, "clip=off,duo=off");
    for (int p = 0; p < NB_N_POINTS; p++) {
        int count;
        const int first = (int)nb_point_linears((nb_point)p, &count);
        /* o reads channel AT of v's rows in heads 2 and 3, or 0 and 1: row 21 is head 1. */
        const int64_t at =
            p == NB_AT_O ? AT / TOY_HEAD_DIM * 2 * TOY_HEAD_DIM + AT % TOY_HEAD_DIM : AT;
        assert_true((double)b.weight[first][at] / (double)was.weight[first][at] > 1.5);
        assert_true(r.after[p] < 0.9 * r.before[p]);
    }
    toy_close(&b);
    toy_close(&was);
    nb_algebra_free(&la);
}

static void results_depend_on_no_machine(void **state)
{
    (void)state;
    const toy_options o = {.seed = 9, .outlier = 4, .needs = NEEDS, .gain_type = NB_BF16};
    toy_on_every_machine(&nb_transform_awq, &o, "grid=4");
}

static void degenerate_inputs_end_well(void **state)
{
    (void)state;
    nb_algebra la = algebra(2, n_tables - 1);
    for (toy_spoilt kind = 0; kind < TOY_N_SPOILT; kind++) {
        toy_block b, was;
        const toy_options o = {.seed = 10, .needs = NEEDS, .empty = kind == TOY_EMPTY};
        toy_open(&b, &la, &o);
        toy_spoil(&b, kind, NEEDS);
        was = b;
        for (int id = 0; id < NB_N_LINEARS; id++) {
            const size_t size = sizeof(float) * (size_t)(b.to[id].n_rows * b.to[id].n_cols);
            was.weight[id] = malloc(size);
            memcpy(was.weight[id], b.weight[id], size);
        }
        const nb_transform_result r = apply(&b, "");
        toy_finite(&b);
        for (int p = 0; p < NB_N_POINTS; p++) {
            assert_true(r.note[p][0] != 0);
            assert_true(!(r.after[p] > r.before[p]));
        }
        if (kind == TOY_EMPTY || kind == TOY_NO_WEIGHTS)
            toy_same(&b, &was);
        /* Dead channels keep their weights (up to clipping, which cannot cost anything there). */
        for (int j = 0; kind == TOY_DEAD && j < 20; j++)
            assert_true(b.weight[NB_LINEAR_Q][j] == was.weight[NB_LINEAR_Q][j] &&
                        b.gain[0][j] == 0);
        for (int id = 0; id < NB_N_LINEARS; id++)
            free(was.weight[id]);
        toy_close(&b);
    }
    nb_algebra_free(&la);
}

/* ---- clipping ---- */

/* The loss of a span by its own block of h, all ratios tried in plain doubles, against what the
 * clipped weights give. */
static void clipping_is_the_best_of_its_ratios(void **state)
{
    (void)state;
    nb_algebra la = algebra(3, n_tables - 1);
    for (int asymmetric = 0; asymmetric < 2; asymmetric++) {
        toy_block b;
        const toy_options o = {.seed = 11, .needs = NEEDS, .symmetric = !asymmetric};
        toy_open(&b, &la, &o);
        const int64_t n = TOY_D, n_rows = b.to[NB_LINEAR_V].n_rows;
        float *w = b.weight[NB_LINEAR_V];
        for (int64_t r = 0; r < n_rows; r += 2) /* a weight that is not worth its range */
            w[r * n + 7] = 0.6f;
        float *was = malloc(sizeof *was * (size_t)(n_rows * n));
        memcpy(was, w, sizeof *was * (size_t)(n_rows * n));
        nb_sym h;
        assert_int_equal(nb_sym_init(&h, n, &err), NB_OK);
        nb_sym_copy(&h, &b.stats[NB_AT_ATTN].h);
        nb_sym_row(&h, 7)[7] *= 0.01;
        for (int64_t j = 0; j < n; j++) {
            if (j != 7)
                nb_sym_row(&h, j < 7 ? j : 7)[j < 7 ? 7 : j] *= 0.1;
        }
        double share;
        assert_int_equal(nb_awq_clip(&b.job, NB_LINEAR_V, &h, &share, &err), NB_OK);
        assert_true(share >= 0.2 && share <= 1);
        int64_t n_clipped = 0;
        float *q = malloc(sizeof *q * (size_t)(n_rows * n)),
              *tried = malloc(sizeof *q * (size_t)(n_rows * n));
        double *best = malloc(sizeof *best * (size_t)(n_rows * 2));
        for (int i = -1; i <= 10; i++) { /* -1: what was chosen */
            for (int64_t at = 0; at < n_rows * n; at += 32) {
                float lo = 0, hi = 0;
                for (int64_t j = at; j < at + 32; j++) {
                    lo = fminf(lo, was[j]);
                    hi = fmaxf(hi, was[j]);
                }
                hi = asymmetric ? hi : fmaxf(hi, -lo);
                lo = asymmetric ? lo : -hi;
                const float ratio = 1 - 0.05f * (float)i;
                for (int64_t j = at; j < at + 32; j++)
                    tried[j] = i < 0 ? w[j] : fmaxf(lo * ratio, fminf(hi * ratio, was[j]));
            }
            round_all(&b, NB_LINEAR_V, tried, q);
            for (int64_t at = 0; at < n_rows * n; at += 32) {
                double loss = 0;
                for (int64_t x = 0; x < 32; x++) {
                    for (int64_t y = 0; y < 32; y++) {
                        const int64_t c = at % n, lo = x < y ? x : y, hi = x < y ? y : x;
                        loss += ((double)was[at + x] - (double)q[at + x]) *
                                ((double)was[at + y] - (double)q[at + y]) *
                                nb_sym_row(&h, c + lo)[c + hi];
                    }
                }
                if (i < 0) {
                    best[at / 32] = loss;
                    n_clipped += memcmp(w + at, was + at, 32 * sizeof *w) != 0;
                } else {
                    assert_true(best[at / 32] <= loss * (1 + 1e-4) + 1e-12);
                }
            }
        }
        assert_true(fabs(share * (double)(n_rows * 2) - (double)n_clipped) < 0.5);
        nb_sym_free(&h);
        free(was);
        free(q);
        free(tried);
        free(best);
        toy_close(&b);
    }
    nb_algebra_free(&la);
}

/* Clipping serves methods that take scales from extremes, and leaves q and k alone. */
static void clipping_knows_its_place(void **state)
{
    (void)state;
    nb_algebra la = algebra(2, n_tables - 1);
    const struct {
        const char *method, *options;
        bool clips;
    } cases[] = {{"rtn", "grid=1", true},
                 {"rtn", "grid=1,clip=off", false},
                 {"rtn:search", "grid=1", false}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        toy_block b, was;
        const toy_options o = {.seed = 12, .needs = NEEDS, .method = cases[i].method};
        toy_open(&b, &la, &o);
        toy_open(&was, &la, &o);
        char options[64];
        snprintf(options, sizeof options, "%s,duo=off", cases[i].options);
        apply(&b, options); /* a grid of 1 tries no alpha but 0 */
        for (int id = 0; id < NB_N_LINEARS; id++) {
            const bool changed =
                memcmp(b.weight[id], was.weight[id],
                       sizeof(float) * (size_t)(b.to[id].n_rows * b.to[id].n_cols)) != 0;
            const bool may = id != NB_LINEAR_Q && id != NB_LINEAR_K;
            assert_true(changed == (may && cases[i].clips));
        }
        toy_close(&b);
        toy_close(&was);
    }
    nb_algebra_free(&la);
}

static void a_search_without_memory_leaks_nothing(void **state)
{
    (void)state;
    toy_without_memory(&nb_transform_awq, &(toy_options){.seed = 14, .needs = NEEDS}, "grid=2");
}

/* ---- cases for scripts/oracle_awq.py ---- */

static const float *full_h(const nb_input_stats *stats, float *h)
{
    const int64_t n = stats->n_cols;
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = i; j < n; j++)
            h[i * n + j] = h[j * n + i] = (float)nb_sym_row(&stats->h, i)[j];
    }
    return h;
}

/* One JSON object a point: its statistics and weights, what was chosen, s and the codes after; and
 * the scaled weights without and with clipping. */
static void print_cases(void)
{
    nb_algebra la = algebra(1, n_tables - 1);
    float *h = malloc(sizeof *h * TOY_MAX * TOY_MAX);
    for (uint64_t seed = 0; seed < 6; seed++) {
        const toy_options o = {.seed = 20 + seed,
                               .needs = NEEDS,
                               .symmetric = seed % 2 == 0,
                               .outlier = (int)(5 * seed)};
        toy_block b, was, clipped;
        toy_open(&b, &la, &o);
        toy_open(&was, &la, &o);
        toy_open(&clipped, &la, &o);
        const nb_transform_result r = apply(&b, "clip=off");
        apply(&clipped, "clip=on");
        for (int p = 0; p < NB_N_POINTS; p++) {
            int count;
            const int first = (int)nb_point_linears((nb_point)p, &count);
            const int64_t n = was.to[first].n_cols;
            float s[TOY_MAX];
            print_choice(&nb_transform_awq, &was, &b, p, &r);
            print_floats("h", full_h(&was.stats[p], h), n * n);
            for (int64_t j = 0; j < n; j++)
                s[j] = (float)was.stats[p].mean_abs[j];
            print_floats("mean_abs", s, n);
            for (int id = first; id < first + count; id++) {
                char name[32];
                snprintf(name, sizeof name, "w_%d", id);
                print_floats(name, was.weight[id], was.to[id].n_rows * n);
                /* Rows of v and up were divided at a later point. */
                if (id == NB_LINEAR_V || id == NB_LINEAR_UP)
                    continue;
                print_codes(&b, id);
                snprintf(name, sizeof name, "open_%d", id);
                print_floats(name, b.weight[id], was.to[id].n_rows * n);
                snprintf(name, sizeof name, "clip_%d", id);
                print_floats(name, clipped.weight[id], was.to[id].n_rows * n);
            }
            printf("}\n");
        }
        toy_close(&b);
        toy_close(&was);
        toy_close(&clipped);
    }
    free(h);
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
        cmocka_unit_test(losses_are_what_they_say_and_never_grow),
        cmocka_unit_test(few_rows_choose_as_all_do),
        cmocka_unit_test(what_gains_nothing_is_left_alone),
        cmocka_unit_test(an_outlier_gets_a_larger_weight),
        cmocka_unit_test(results_depend_on_no_machine),
        cmocka_unit_test(degenerate_inputs_end_well),
        cmocka_unit_test(clipping_is_the_best_of_its_ratios),
        cmocka_unit_test(clipping_knows_its_place),
        cmocka_unit_test(a_search_without_memory_leaks_nothing),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
