/* What attention and the cache's formats mean, for every table: nothing unseen is read, equal
 * scores give exact means, cells are what the contract says; and the reference is near what double
 * arithmetic gives. */
#include "attn_scene.h"

#include "kernel/math.h"

/* ---- what a query may not see ---- */

/* NaN and infinity at a position spoil the queries that see it and no others, in every table. */
static void poisoned_position(check_run *run, const nb_kernels *k, const scene *s, int64_t at,
                              bool values_only)
{
    cache c = cache_open(s, k);
    float *clean = open_out(s, &c), *out = open_out(s, &c);
    attend(run, "clean", s, &c, k, 0, s->n_q, clean);
    float *key = check_floats(s->head_dim), *value = check_floats(s->head_dim);
    for (int d = 0; d < s->head_dim; d++) {
        key[d] = values_only ? 0.5f : NAN;
        value[d] = values_only ? (d == 20 ? NAN : 0.25f) : d % 2 ? NAN : INFINITY;
    }
    k->kv_store(&c.view, at, 0, 1, key, value);
    attend(run, "poisoned", s, &c, k, 0, s->n_q, out);
    for (int t = 0; t < s->n_q; t++) {
        const int64_t pos = s->pos0 + t;
        const bool sees = pos >= at && (s->window == 0 || pos < at + s->window);
        for (int d = 0; d < s->n_group * s->head_dim; d++) {
            if (sees)
                assert_true(isnan(out[t * c.ld + d]) || (values_only && d % s->head_dim != 20));
            else
                check_same_f32(run, "unseen", &out[t * c.ld + d], &clean[t * c.ld + d], 1);
        }
    }
    check_free(key);
    check_free(value);
    check_free(clean);
    check_free(out);
    cache_close(run, "poison", &c);
}

/* Many rows and few, with and without a window; positions that all, some, one and no query sees,
 * at the edges of the call and of a split. */
static void poisoned_positions(const nb_kernels *k)
{
    static const struct {
        int n_q, n_group;
    } rows[] = {{12, 2}, {12, 1}, {5, 1}, {2, 3}};
    check_run run = {.name = "poison"};
    enum { N = NB_KV_N_FORMATS };
    const int n_scenes = (int)check_cases(N * 4 * 2);
    for (int i = 0; i < n_scenes || i < N; i++) { /* each format at least once */
        const nb_kv_format cell = (nb_kv_format)(i % N);
        const int n_q = rows[i / N % 4].n_q, window = i / (4 * N) * 4;
        const scene s = {.cell = cell,
                         .n_kv_heads = 1,
                         .head_dim = 72,
                         .n_group = rows[i / N % 4].n_group,
                         .n_q = n_q,
                         .pos0 = 252,
                         .window = window,
                         .kind = CHECK_RANDOM,
                         .seed = 5,
                         .q_bits = cell == NB_KV_INT8 ? 8 : 0};
        const int64_t last = s.pos0 + n_q - 1, places[] = {last - 1, last, 249, 250, 252, 253, 256};
        for (int p = 0; p < 14; p++)
            if (places[p / 2] <= last)
                poisoned_position(&run, k, &s, places[p / 2], p % 2 == 0);
    }
    check_finish(&run);
}

/* Equal scores and small integers: every sum is exact, so one cell lost or seen twice shows. */
static void exact_means(const nb_kernels *k)
{
    static const int64_t places[] = {0, 1, 31, 32, 127, 128, 255, 256, 300, 511, 512, 1000};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        for (int64_t window = 0; window <= 300; window += 75) {
            const scene s = {(nb_kv_format)(i % 3), 1, 36, 3, 5, places[i], window,
                             CHECK_INTEGERS,        i, 0};
            cache c = cache_open(&s, k);
            memset(c.q, 0, (size_t)(s.n_q * c.ld) * sizeof *c.q);
            check_run run = {.name = "mean"};
            float *out = open_out(&s, &c), *value = check_floats(36);
            attend(&run, "mean", &s, &c, k, 0, s.n_q, out);
            for (int t = 0; t < s.n_q; t++) {
                const int64_t end = s.pos0 + t + 1;
                const int64_t begin = window > 0 && window < end ? end - window : 0;
                float sum[36] = {0};
                for (int64_t p = begin; p < end; p++) {
                    check_fill(value, 36, s.kind, s.seed * 1000003 + (uint64_t)(2 * p + 1));
                    for (int d = 0; d < 36; d++)
                        sum[d] += value[d];
                }
                for (int d = 0; d < 36; d++)
                    sum[d] /= (float)(end - begin);
                for (int j = 0; j < s.n_group; j++)
                    check_same_f32(&run, "mean", out + t * c.ld + j * 36, sum, 36);
            }
            check_finish(&run);
            check_free(out);
            check_free(value);
            cache_close(&run, "mean", &c);
        }
    }
}

static void every_table_sees_what_it_should(void **state)
{
    (void)state;
    nb_kernels ref, variants[N_ISA_MASKS];
    nb_kernels_init(&ref, NB_ISA_SCALAR);
    poisoned_positions(&ref);
    exact_means(&ref);
    const int64_t n_variants = check_cases(isa_tables(variants));
    for (int64_t v = 0; v < n_variants; v++) {
        poisoned_positions(&variants[v]);
        exact_means(&variants[v]);
    }
}

/* ---- the reference against double ---- */

/* q as its scores are taken: q / sqrt(d), or what A3 makes of it as one group. */
static void query_values(const scene *s, const float *q, double *out)
{
    const float scale = 1.0f / sqrtf((float)s->head_dim), qmax = s->q_bits == 8 ? 127 : 32639;
    float absmax = 0;
    for (int64_t d = 0; d < s->head_dim; d++)
        absmax = fmaxf(absmax, fabsf(q[d] * scale));
    for (int64_t d = 0; d < s->head_dim; d++) {
        const float scaled = q[d] * scale;
        out[d] = (double)q[d] * (double)scale;
        if (s->q_bits > 0)
            out[d] = absmax < 0x1p-100f
                         ? 0
                         : (double)rintf(scaled * (qmax / absmax)) * (double)(absmax / qmax);
    }
}

/* Softmax attention of one query head as a textbook has it, on the cells' values, and a bound on
 * what the contract's roundings can change, to first order:
 *
 *   a score of n products is off by at most (n + 2) u sum |q k|   (q', products, chunk sums); of
 *   codes by three roundings, because truth takes the codes that A3 makes of q
 *   a weight then by twice the largest of these, by the roundings of s - m_j and m_j - m, by two
 *   exps and a product
 *   a sum of weights by 256 / 16 + 4 + splits roundings, of weighted values by 128 + 2 + splits,
 *   and one division
 *   and what is smaller than normal numbers, weights, products and the quotient, by their last
 *   place */
static void truth_of_head(const scene *s, const cache *c, int t, int kv_head, const float *q,
                          double *out, double *bound)
{
    const double u = 0x1p-24;
    const int64_t dim = s->head_dim, end = s->pos0 + t + 1;
    const int64_t sealed = nb_kv_n_sealed(s->cell, end - 1);
    const int64_t begin = s->window > 0 && s->window < end ? end - s->window : 0;
    const double n_splits = (double)(end / NB_KV_SPLIT + 1);
    double *score = check_alloc((size_t)end * sizeof *score), max = -(double)INFINITY, off = 0;
    double lowest = (double)INFINITY, *query = check_alloc((size_t)dim * sizeof *query);
    query_values(s, q, query);
    for (int64_t p = begin; p < end; p++) {
        double dot = 0, size = 0;
        for (int64_t d = 0; d < dim; d++) {
            const double product = query[d] * cell_value(&c->view, sealed, true, kv_head, p, d);
            dot += product;
            size += fabs(product);
        }
        score[p] = dot;
        max = fmax(max, score[p]);
        lowest = fmin(lowest, score[p]);
        off = fmax(off, s->q_bits > 0 ? 3 * u * fabs(dot) : (double)(dim + 2) * u * size);
    }
    check_free(query);
    const double weight_off =
        2 * off + 2 * (max - lowest + off) * u + (4 * NB_EXPF_MAX_ULP + 1) * u;
    double total = 0;
    for (int64_t p = begin; p < end; p++)
        total += exp(score[p] - max);
    for (int64_t d = 0; d < dim; d++) {
        double sum = 0, size = 0, plain = 0;
        for (int64_t p = begin; p < end; p++) {
            const double v = cell_value(&c->view, sealed, false, kv_head, p, d);
            sum += exp(score[p] - max) * v;
            size += exp(score[p] - max) * fabs(v);
            plain += fabs(v) + 1;
        }
        out[d] = sum / total;
        bound[d] = size / total *
                       (2 * weight_off + (256.0 / 16 + 4 + 128 + 2 + 2 * n_splits + 1) * u) * 1.01 +
                   0x1p-149 * (3 * plain / total + 1);
    }
    check_free(score);
}

static void the_reference_is_near_the_truth(void **state)
{
    (void)state;
    nb_kernels ref;
    nb_kernels_init(&ref, NB_ISA_SCALAR);
    check_run run = {.name = "attention"};
    double want[256], bound[256];
    for (uint64_t seed = 1; seed <= (uint64_t)check_cases(250); seed++) {
        scene s = random_scene(seed);
        s.kind = seed % 4 ? CHECK_RANDOM : CHECK_INTEGERS; /* with infinities there is no bound */
        if (s.cell == NB_KV_INT4) /* test_packed_cells.c has what is rotated */
            s.cell = NB_KV_INT4_PLAIN;
        if (s.cell == NB_KV_INT2 && s.head_dim > 1 && nb_kv_rotates(s.cell, s.head_dim))
            s.head_dim += s.head_dim > 256 ? -1 : 1;
        if (scene_work(&s) > 500000)
            continue;
        char what[200];
        scene_text(&s, what);
        cache c = cache_open(&s, &ref);
        float *out = open_out(&s, &c);
        attend(&run, what, &s, &c, &ref, 0, s.n_q, out);
        for (int t = 0; t < s.n_q; t++) {
            for (int head = 0; head < s.n_kv_heads * s.n_group; head++) {
                const int64_t at = t * c.ld + (int64_t)head * s.head_dim;
                truth_of_head(&s, &c, t, head / s.n_group, c.q + at, want, bound);
                for (int d = 0; d < s.head_dim; d++)
                    check_near(&run, what, (double)out[at + d], want[d], bound[d]);
            }
        }
        check_free(out);
        cache_close(&run, what, &c);
    }
    check_finish(&run);
}

/* ---- cells of codes ---- */

/* One head of a sequence of one page. */
typedef struct {
    nb_kv_view view;
    int32_t table[1];
} one_page;

static void page_open(one_page *p, nb_kv_format format, int head_dim)
{
    const size_t bytes = nb_kv_head_bytes(format, head_dim);
    p->table[0] = 0;
    p->view = (nb_kv_view){.arena = check_alloc(2 * bytes),
                           .page_bytes = 2 * bytes,
                           .v_offset = bytes,
                           .head_bytes = bytes,
                           .table = p->table,
                           .format = format,
                           .n_kv_heads = 1,
                           .head_dim = head_dim};
}

static float absmax_of(const float *x, int64_t n, bool *finite)
{
    float absmax = 0;
    *finite = true;
    for (int64_t d = 0; d < n; d++) {
        *finite = *finite && isfinite(x[d]);
        absmax = fmaxf(absmax, fabsf(x[d]));
    }
    return absmax;
}

/* The scale stored for x is the one that A8 wants: a rounded one, or `given` unless 0. */
static double check_scale(const uint8_t *at, float top, float absmax, bool finite, uint16_t given)
{
    uint16_t bits;
    memcpy(&bits, at, sizeof bits);
    if (!finite)
        assert_int_equal(bits, 0x7e00);
    else if (given != 0)
        assert_int_equal(bits, given);
    else if (absmax / top >= 65504.0f)
        assert_int_equal(bits, 0x7bff);
    else
        assert_int_equal(bits, nb_f16_from_f32(absmax / top));
    return (double)nb_f16_to_f32(bits);
}

/* The bytes of the head at p hold x as A8 says, by its words: codes are taken with the scale that
 * is stored, so each is within half a step unless it was clamped. */
static void check_head(const nb_kv_view *kv, bool key, int64_t p, const float *x)
{
    const uint8_t *at = kv->arena + (key ? kv->k_offset : kv->v_offset);
    const int64_t dim = kv->head_dim, padded = (dim + 3) / 4 * 4;
    bool finite;
    const float absmax = absmax_of(x, dim, &finite);
    const double s = check_scale(at + padded * 32 + 2 * p, 127.0f, absmax, finite, 0);
    for (int64_t d = 0; d < (key ? padded : dim); d++) {
        const int code = key ? at[p / 16 * 16 * padded + d / 4 * 64 + p % 16 * 4 + d % 4] - 128
                             : (int8_t)at[p * dim + d];
        assert_in_range(code + 127, 0, 254);
        if (d >= dim || !finite || s == 0) {
            assert_int_equal(code, 0);
        } else if (fabs((double)x[d]) <= 127 * s) {
            assert_true(fabs((double)x[d] - code * s) <= s * (0.5 + 0x1p-15));
        } else {
            assert_int_equal(code, x[d] > 0 ? 127 : -127);
        }
    }
}

/* The same for E4M3, whose half step is that of the number: 2^-4 of it, or of 2^-6 for the
 * smallest. Values have zeros to a multiple of 16. */
static void check_fp8_head(const nb_kv_view *kv, bool key, int64_t p, const float *x)
{
    const uint8_t *at = kv->arena + (key ? kv->k_offset : kv->v_offset);
    const int64_t dim = kv->head_dim, padded = (dim + 15) / 16 * 16;
    const uint16_t *given = key ? kv->k_scales : kv->v_scales;
    bool finite;
    const float absmax = absmax_of(x, dim, &finite);
    const double s =
        check_scale(at + padded * 32 + 2 * p, 448.0f, absmax, finite, given != NULL ? *given : 0);
    for (int64_t d = 0; d < (key ? dim : padded); d++) {
        const uint8_t code = at[key ? d * 32 + p : p * padded + d];
        const double number = (double)nb_e4m3_to_f32(code);
        assert_int_not_equal(code & 0x7f, 0x7f); /* no NaN */
        if (d >= dim || !finite || s == 0) {
            assert_int_equal(code, 0);
        } else if (fabs((double)x[d]) <= 448 * s) {
            const double size = fmax(fabs((double)x[d] / s), 0x1p-6);
            assert_true(fabs((double)x[d] / s - number) <= size * 0x1p-4 * (1 + 0x1p-15));
        } else {
            assert_true(number == (x[d] > 0 ? 448.0 : -448.0));
        }
    }
}

static void cells_hold_what_the_contract_says(nb_kv_format format, const uint16_t *given)
{
    void (*check)(const nb_kv_view *kv, bool key, int64_t p, const float *x) =
        format == NB_KV_INT8 ? check_head : check_fp8_head;
    static const int dims[] = {1, 2, 3, 4, 15, 16, 17, 20, 64, 80, 127, 128, 512};
    nb_kernels tables[N_ISA_MASKS + 1];
    nb_kernels_init(&tables[0], NB_ISA_SCALAR);
    const int n_tables = 1 + isa_tables(tables + 1);
    int64_t n_tiny = 0, n_huge = 0, n_bad = 0;
    for (int i = 0; i < n_tables * (int)(sizeof dims / sizeof *dims); i++) {
        const nb_kernels *k = &tables[i % n_tables];
        one_page page;
        page_open(&page, format, dims[i / n_tables]);
        page.view.k_scales = page.view.v_scales = given;
        const int dim = page.view.head_dim;
        float *key = check_floats(dim), *value = check_floats(dim);
        for (int e = -150; e <= 127; e++) { /* from subnormal floats to the largest */
            check_fill(key, dim, CHECK_RANDOM, (uint64_t)(e + 1000));
            check_fill(value, dim, e % 3 ? CHECK_RANDOM : CHECK_EQUAL, (uint64_t)(e + 2000));
            for (int d = 0; d < dim; d++) {
                key[d] = ldexpf(key[d], e);
                value[d] = ldexpf(value[d], -e);
            }
            if (e % 16 == 5)
                key[dim / 2] = e % 32 == 5 ? NAN : -INFINITY;
            if (e % 16 == 9)
                value[dim - 1] = e % 32 == 9 ? nb_f32_from_bits(0xff800001u) : INFINITY;
            const int64_t p = (e + 150) % 32;
            k->kv_store(&page.view, p, 0, 1, key, value);
            check(&page.view, true, p, key);
            check(&page.view, false, p, value);
            n_tiny += e < -30;
            n_huge += e > 30;
            n_bad += e % 16 == 5;
        }
        assert_true(check_guard_ok(page.view.arena));
        check_free(page.view.arena);
        check_free(key);
        check_free(value);
    }
    assert_true(n_tiny > 0 && n_huge > 0 && n_bad > 0);
}

static void int8_cells_hold_what_they_should(void **state)
{
    (void)state;
    cells_hold_what_the_contract_says(NB_KV_INT8, NULL);
}

static void fp8_cells_hold_what_they_should(void **state)
{
    (void)state;
    static const uint16_t given = 0x2345;
    cells_hold_what_the_contract_says(NB_KV_FP8, NULL);
    cells_hold_what_the_contract_says(NB_KV_FP8, &given);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_table_sees_what_it_should),
        cmocka_unit_test(the_reference_is_near_the_truth),
        cmocka_unit_test(int8_cells_hold_what_they_should),
        cmocka_unit_test(fp8_cells_hold_what_they_should),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
