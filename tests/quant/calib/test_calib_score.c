/* The score of a calibration set: every figure is the one that its definition gives, and a bad set
 * is called bad. */
#include "quant/calib/score.h"

#include "base/rng.h"
#include "support/golden.h"
#include "support/scratch.h"
#include "support/tiny_model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static nb_store *store;
static nb_tokenizer *tokenizer;

static int setup(void **state)
{
    nb_err err = {0};
    if (scratch_setup(state) != 0)
        return 1;
    if (nb_store_open(&store, tiny_model_write("model", &(tiny_model){0}), &err) != NB_OK ||
        nb_tokenizer_open(&tokenizer, store, &err) != NB_OK)
        fail_msg("%s", err.text);
    return 0;
}

static int teardown(void **state)
{
    nb_tokenizer_close(tokenizer);
    nb_store_close(store);
    return scratch_teardown(state);
}

/* Sequences of `length` out of ids [n]. */
static nb_calib_set set_of(const uint16_t *ids, size_t n, int64_t length)
{
    scratch_write("ids.bin", ids, n * sizeof *ids);
    const char *path = scratch_path("ids.bin");
    nb_calib_set set;
    nb_err err = {0};
    if (nb_calib_set_open(
            &set, tokenizer, NULL, 0,
            &(nb_calib_options){
                .paths = &path, .n_paths = 1, .length = length, .n_samples = (int64_t)n / length},
            &err) != NB_OK)
        fail_msg("%s", err.text);
    return set;
}

static nb_calib_score score_of(const nb_calib_set *set, const nb_calib_set *other)
{
    nb_calib_score s;
    nb_err err = {0};
    assert_int_equal(nb_calib_score_set(&s, set, other, tokenizer, &err), NB_OK);
    return s;
}

static bool says(const nb_calib_score *s, const char *part)
{
    for (int i = 0; i < s->n_words; i++)
        if (strstr(s->words[i], part) != NULL)
            return true;
    return false;
}

static void near(double got, double want)
{
    if (!(fabs(got - want) <= 1e-12 * fabs(want)))
        fail_msg("%.17g, not %.17g", got, want);
}

/* ---- tokens ---- */

/* Ids of 8 sequences, of which the last one is held out: counted by hand, so to say. */
static void figures_follow_their_definitions(void **state)
{
    (void)state;
    enum { N = 8 * 40, V = TINY_VOCAB };
    uint16_t ids[N];
    int64_t p[V] = {0}, q[V] = {0};
    for (int i = 0; i < N; i++) {
        const double u = nb_rng_uniform(1, 1, (uint64_t)i);
        const bool held = i >= 7 * 40;
        ids[i] = (uint16_t)(u * u * (held ? 120 : 100));
        (held ? q : p)[ids[i]]++;
    }
    nb_calib_set set = set_of(ids, N, 40);
    const nb_calib_score s = score_of(&set, NULL);
    assert_int_equal(s.n_tokens, 7 * 40);
    assert_int_equal(s.n_held, 40);
    assert_int_equal(s.vocab_size, V);
    int64_t distinct = 0, unseen = 0, most = 0;
    int common = 0;
    double kl = 0;
    for (int id = 0; id < V; id++) {
        distinct += p[id] > 0;
        unseen += p[id] == 0 ? q[id] : 0;
        if (p[id] > most) {
            most = p[id];
            common = id;
        }
        const double b = ((double)q[id] + 0.5) / (40 + V / 2.0);
        kl += b * log(b / (((double)p[id] + 0.5) / (280 + V / 2.0)));
    }
    assert_true(unseen > 0 && distinct > 20 && distinct < 100);
    assert_int_equal(s.n_distinct, distinct);
    assert_int_equal(s.most_common_id, common);
    near(s.most_common, (double)most / 280);
    near(s.unseen, (double)unseen / 40);
    assert_true(fabs(s.unigram_kl - kl) < 1e-13 * V && kl > 0.01);
    assert_true(s.repeated == 0);
    assert_true(says(&s, "too few tokens: 280; 65536 or more are usual"));

    /* Against another set, its own held-out part does not count, and the other's all does. */
    const nb_calib_score other = score_of(&set, &set);
    assert_int_equal(other.n_tokens, 280);
    assert_int_equal(other.n_held, N);
    near(other.unseen, (double)unseen / N);
    nb_calib_set_free(&set);
}

static void scripts_are_counted_in_bytes(void **state)
{
    (void)state;
    uint16_t ids[16];
    for (int i = 0; i < 16; i++)
        ids[i] = TINY_BYTE(i % 4 == 0 ? 0xC3 : 'a');
    nb_calib_set set = set_of(ids, 16, 4);
    near(score_of(&set, NULL).other_script, 0.25);
    nb_calib_set_free(&set);
}

/* A long set without repetition, the same with each sequence twice, and one token alone. */
static void repetition_is_found(void **state)
{
    (void)state;
    const size_t half = 800 * 1000;
    uint16_t *ids = malloc(2 * half * sizeof *ids);
    assert_non_null(ids);
    for (size_t i = 0; i < 2 * half; i++)
        ids[i] = (uint16_t)(nb_rng_uniform(2, 2, i) * TINY_VOCAB);
    nb_calib_set set = set_of(ids, 2 * half, 1000);
    nb_calib_score s = score_of(&set, NULL);
    assert_true(s.repeated == 0);
    assert_int_equal(s.n_distinct, TINY_VOCAB);
    assert_int_equal(s.n_words, 0); /* nothing is wrong with it */
    nb_calib_set_free(&set);
    memmove(ids + half + 1, ids, (half - 1) * sizeof *ids); /* an odd distance */
    set = set_of(ids, 2 * half, 1000);
    s = score_of(&set, NULL);
    /* Of 1.4 million runs a half are looked at, +- 0.001 at 2 sigma; 16 of 1,000 now lie across the
     * border of two sequences in one of their two places. */
    assert_true(fabs(s.repeated - 0.5) < 0.01);
    assert_true(says(&s, "50 % of all runs of 8 tokens repeat"));
    nb_calib_set_free(&set);
    for (size_t i = 0; i < 80000; i++)
        ids[i] = i % 10 == 0 ? 7 : 9;
    set = set_of(ids, 80000, 1000);
    s = score_of(&set, NULL);
    near(s.most_common, 0.9);
    assert_int_equal(s.most_common_id, 9);
    assert_string_equal(s.words[0], "one token, id 9, makes up 90 % of the set");
    assert_true(s.repeated > 0.999);
    assert_true(s.unseen == 0);
    nb_calib_set_free(&set);
    free(ids);
}

static void what_is_missing_is_said(void **state)
{
    (void)state;
    const uint16_t ids[] = {1, 2, 3, 4, 9, 9, 9, 9};
    nb_calib_set set = set_of(ids, 4, 4);
    nb_calib_score s = score_of(&set, NULL); /* one sequence: nothing is held out */
    assert_true(isnan(s.unseen) && isnan(s.unigram_kl) && isnan(s.repeated));
    assert_true(says(&s, "no tokens are held out"));
    nb_calib_set_free(&set);
    uint16_t twice[20];
    for (int i = 0; i < 20; i++)
        twice[i] = (uint16_t)(i % 10);
    set = set_of(twice, 20, 10); /* what is held out repeats nothing */
    s = score_of(&set, NULL);
    assert_true(s.unseen == 0 && s.repeated == 0);
    nb_calib_set_free(&set);
    set = set_of(ids, 8, 4);
    s = score_of(&set, NULL);
    assert_true(s.unseen == 1);
    assert_true(says(&s, "100.0 % of held-out tokens are not in the part that chooses"));
    nb_calib_set_free(&set);
}

static void failures_leak_nothing(void **state)
{
    (void)state;
    const uint16_t ids[] = {1, 2, 3, 4, 9, 9, 9, 9};
    nb_calib_set set = set_of(ids, 8, 4);
    const int64_t live = nb_alloc_live();
    int64_t n = 1;
    for (;; n++) {
        nb_calib_score s = {.n_tokens = -1};
        nb_err err = {0};
        nb_alloc_fail_at(n);
        const nb_status status = nb_calib_score_set(&s, &set, NULL, tokenizer, &err);
        nb_alloc_fail_at(0);
        assert_int_equal(nb_alloc_live(), live);
        if (status == NB_OK)
            break;
        assert_int_equal(status, NB_MEMORY);
        assert_int_equal(s.n_tokens, -1);
    }
    assert_true(n > 3);
    nb_calib_set_free(&set);
}

/* ---- activations ---- */

static void coverage_compares_columns(void **state)
{
    (void)state;
    const double a[] = {1, 2, 0, 4, 0}, b[] = {2 * exp(1), 4, 0, 8 * exp(-2), 5};
    nb_calib_coverage c = nb_calib_coverage_of_squares(a, 10, b, 20, 5);
    near(c.log_ratio, (1.0 + 0 + 0 + 2) / 4); /* the last column is counted, not compared */
    assert_int_equal(c.n_one_sided, 1);
    assert_true(isnan(c.moments));
    c = nb_calib_coverage_of_squares(a, 3, a, 3, 5);
    assert_true(c.log_ratio == 0 && c.n_one_sided == 0);
    const double zero[5] = {0};
    c = nb_calib_coverage_of_squares(zero, 1, zero, 1, 5);
    assert_true(c.log_ratio == 0);
    c = nb_calib_coverage_of_squares(zero, 1, b, 1, 2);
    assert_true(isnan(c.log_ratio) && c.n_one_sided == 2);
}

enum { SIZE = 150 }; /* two bands of an nb_sym */

typedef struct {
    nb_sym s;
    double full[SIZE][SIZE];
    double a[2 * SIZE * SIZE];
    int64_t row_at[SIZE];
} moments;

/* Rows one after the other are bands enough: an element is found by row_at. Below the diagonal lies
 * scratch, which nobody may read. */
static void fill(moments *m, uint64_t seed, double scale)
{
    m->s = (nb_sym){.n = SIZE, .a = m->a, .row_at = m->row_at};
    for (int i = 0; i < SIZE; i++) {
        m->row_at[i] = i * SIZE;
        for (int j = 0; j < SIZE; j++) {
            const int u = i < j ? i : j, v = i < j ? j : i;
            m->full[i][j] =
                scale * (nb_rng_uniform(seed, (uint64_t)u, (uint64_t)v) - 0.5 + (u == v ? 1 : 0));
            m->a[m->row_at[i] + j] = j < i ? (double)NAN : m->full[i][j];
        }
    }
}

static void coverage_compares_moments(void **state)
{
    (void)state;
    moments *a = malloc(sizeof *a), *b = malloc(sizeof *b);
    assert_non_null(a);
    assert_non_null(b);
    fill(a, 1, 30);
    fill(b, 2, 7);
    double trace_a = 0, trace_b = 0, d = 0, size = 0, ratio = 0;
    for (int i = 0; i < SIZE; i++) {
        trace_a += a->full[i][i];
        trace_b += b->full[i][i];
        ratio += fabs(log(a->full[i][i] / 300 / (b->full[i][i] / 70))) / SIZE;
    }
    for (int i = 0; i < SIZE; i++)
        for (int j = 0; j < SIZE; j++) {
            d += pow(a->full[i][j] / trace_a - b->full[i][j] / trace_b, 2);
            size += pow(b->full[i][j] / trace_b, 2);
        }
    const nb_calib_coverage c = nb_calib_coverage_of_moments(&a->s, 300, &b->s, 70);
    assert_true(fabs(c.moments - sqrt(d / size)) < 1e-12);
    assert_true(c.moments > 0.1);
    assert_true(fabs(c.log_ratio - ratio) < 1e-12);
    fill(b, 1, 3); /* the same, of a tenth of the tokens */
    const nb_calib_coverage same = nb_calib_coverage_of_moments(&a->s, 300, &b->s, 30);
    assert_true(same.moments < 1e-14 && same.log_ratio < 1e-14);
    fill(b, 1, 0);
    assert_true(isnan(nb_calib_coverage_of_moments(&a->s, 300, &b->s, 30).moments));
    free(a);
    free(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(figures_follow_their_definitions),
        cmocka_unit_test(scripts_are_counted_in_bytes),
        cmocka_unit_test(repetition_is_found),
        cmocka_unit_test(what_is_missing_is_said),
        cmocka_unit_test(failures_leak_nothing),
        cmocka_unit_test(coverage_compares_columns),
        cmocka_unit_test(coverage_compares_moments),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
