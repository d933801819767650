/* What a walk tells of each linear: errors that are what a look at source and result gives, and
 * whether the held-out text is like the rest. */
#include "walking.h"

#include <math.h>

#define CHEAP "gptq:fit=absmax,polish=0,shrink=0.1"

static const walk_world_how small = {
    .n_seqs = 9,
    .length = 24,
    .model = {.n_layers = 2, .d_model = 32, .n_heads = 2, .n_kv_heads = 1, .d_ff = 64}};

static double number(const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);
    return json_is_number(v) ? json_number_value(v) : NAN;
}

/* The object of a weight; fails when there is none, or more than one. */
static const json_t *told_of(const json_t *layers, const char *name)
{
    const json_t *found = NULL;
    size_t i;
    json_t *o;
    json_array_foreach(layers, i, o)
    {
        const char *its = json_string_value(json_object_get(o, "name"));
        if (its == NULL || strcmp(its, name) != 0)
            continue;
        assert_null(found);
        found = o;
    }
    assert_non_null(found);
    return found;
}

/* Decodes source and result once more, in double. */
static void compare_weight(nb_store *store, const nb_plan *plan, int64_t i, const nb_workdir *dir,
                           const json_t *told)
{
    nb_err err = {0};
    nb_loaded source = {0}, made = {0};
    const nb_weight *to = &plan->weights[i];
    double square = 0, power = 0, most = 0;
    assert_int_equal(nb_store_read(store, plan->from[i], &source, &err), NB_OK);
    assert_int_equal(nb_room_for(&made, to, &err), NB_OK);
    assert_int_equal(nb_workdir_get_mat(dir, i, &made, &err), NB_OK);
    float *was = malloc(sizeof *was * (size_t)to->n_cols),
          *is = malloc(sizeof *is * (size_t)to->n_cols);
    for (int64_t r = 0; r < to->n_rows; r++) {
        source.mat.fmt->decode_row(&source.mat, r, was);
        made.mat.fmt->decode_row(&made.mat, r, is);
        for (int64_t c = 0; c < to->n_cols; c++) {
            const double e = fabs((double)is[c] - (double)was[c]);
            square += e * e;
            power += (double)was[c] * (double)was[c];
            most = e > most ? e : most;
        }
    }
    assert_true(square > 0);
    assert_true(fabs(number(told, "rms_error") - sqrt(square / power)) < 1e-12);
    assert_true(number(told, "max_error") == most);
    const double rms = sqrt(power / (double)(to->n_rows * to->n_cols));
    assert_true(fabs(number(told, "weight_rms") - rms) < 1e-12 * rms);
    free(was);
    free(is);
    nb_loaded_free(&source);
    nb_loaded_free(&made);
}

typedef struct {
    const walk_how *how;
    int64_t n_seen;
    double mean_coverage;
} looking;

static void look(void *context, nb_store *store, const nb_plan *plan, const nb_workdir *dir,
                 const nb_walk_result *result)
{
    looking *l = context;
    for (int64_t i = 0; i < plan->n; i++) {
        if (plan->how[i] != NB_HOW_QUANTIZE || !result->made[i])
            continue;
        const json_t *o = told_of(result->layers, plan->weights[i].name);
        if (l->how->transform == NULL) /* else the source is not what was quantized */
            compare_weight(store, plan, i, dir, o);
        const double loss = number(o, "loss"), relative = number(o, "rms_error");
        assert_true(loss > 0 && loss < 1);
        assert_true(relative > 0 && relative < 1);
        /* Errors of rounding point everywhere: those of outputs are about those of weights. A
         * method that learns does better; none is ten times worse. */
        assert_true(loss < 10 * relative * relative);
        const json_t *coverage = json_object_get(o, "coverage");
        assert_true(number(coverage, "log_ratio") > 0);
        assert_int_equal(json_integer_value(json_object_get(coverage, "one_sided")), 0);
        l->mean_coverage += number(coverage, "log_ratio");
        l->n_seen++;
    }
    l->mean_coverage /= (double)l->n_seen;
}

static const walk_how ways[] = {
    {.method = CHEAP},
    {.method = "gptq:fit=absmax,polish=0"}, /* with sums of its own for what is held out */
    {.method = "rtn:search"},
    {.method = "rtn:search", .flow = NB_FLOW_QUANTIZED},
    {.method = CHEAP, .guided = true},
    {.method = "autoround:iters=2,batch=2,len=20"},
    {.method = CHEAP, .tune = "autoround:iters=2,batch=2,len=20"},
    {.method = "rtn", .tune = "autoround:iters=2,batch=2,len=20"},
    {.method = "rtn:search", .transform = "awq"},
    {.method = "autoround:iters=2,batch=2,len=20", .transform = "awq"},
};
#define N_WAYS (sizeof ways / sizeof *ways)

/* Of every linear, once, whatever the method: where gptq gives losses and rtn none. */
static void every_linear_is_told_of(void **state)
{
    (void)state;
    walk_world w;
    walk_world_open(&w, "told", &small);
    for (size_t i = 0; i < N_WAYS; i++) {
        walk_outcome o;
        looking l = {.how = &ways[i]};
        walk_and_visit(&o, &w, &ways[i], look, &l);
        if (o.status != NB_OK)
            fail_msg("%s: %s", ways[i].method, o.err.text);
        assert_int_equal(l.n_seen, 14);
        json_decref(o.layers);
    }
    walk_world_close(&w);
}

/* Held-out sequences of a token that the others do not have stand out. */
static void a_text_unlike_the_rest_is_noticed(void **state)
{
    (void)state;
    walk_world alike, other;
    walk_world_open(&alike, "alike", &small);
    walk_world_open(&other, "other", &small);
    for (int64_t q = 0; q < other.n_seqs; q++) {
        for (int64_t t = 0; other.seqs[q].held && t < other.seqs[q].n; t++)
            other.ids[q * small.length + t] = TINY_BYTE('Z');
    }
    for (size_t i = 0; i < 3; i++) {
        double coverage[2];
        for (int k = 0; k < 2; k++) {
            walk_outcome o;
            looking l = {.how = &ways[i]};
            walk_and_visit(&o, k == 0 ? &alike : &other, &ways[i], look, &l);
            assert_int_equal(o.status, NB_OK);
            json_decref(o.layers);
            coverage[k] = l.mean_coverage;
        }
        assert_true(coverage[1] > 2 * coverage[0]);
    }
    walk_world_close(&alike);
    walk_world_close(&other);
}

/* What is told does not depend on threads; only times do. */
static void threads_tell_the_same(void **state)
{
    (void)state;
    walk_world w;
    walk_world_open(&w, "threads", &small);
    for (size_t i = 0; i < N_WAYS; i += 2) {
        json_t *first = NULL;
        for (int n = 1; n <= 3; n += 2) {
            walk_outcome o;
            walk_how how = ways[i];
            how.n_threads = n;
            walk_and_visit(&o, &w, &how, NULL, NULL);
            assert_int_equal(o.status, NB_OK);
            size_t k;
            json_t *told;
            json_array_foreach(o.layers, k, told)
            {
                (void)json_object_del(told, "seconds");
            }
            if (first != NULL)
                assert_true(json_equal(first, o.layers));
            else
                first = json_incref(o.layers);
            json_decref(o.layers);
        }
        json_decref(first);
    }
    walk_world_close(&w);
}

/* With one sequence nothing is held out, and nothing is said of it. */
static void nothing_held_out_is_not_compared(void **state)
{
    (void)state;
    walk_world w;
    walk_world_how one = small;
    one.n_seqs = 1;
    walk_world_open(&w, "one", &one);
    for (size_t i = 0; i < 3; i++) {
        walk_outcome o;
        walk_and_visit(&o, &w, &ways[i], NULL, NULL);
        assert_int_equal(o.status, NB_OK);
        size_t k;
        json_t *told;
        assert_int_equal(json_array_size(o.layers), 14);
        json_array_foreach(o.layers, k, told)
        {
            assert_null(json_object_get(told, "coverage"));
            assert_true(number(told, "loss") > 0);
        }
        json_decref(o.layers);
    }
    walk_world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_linear_is_told_of),
        cmocka_unit_test(a_text_unlike_the_rest_is_noticed),
        cmocka_unit_test(threads_tell_the_same),
        cmocka_unit_test(nothing_held_out_is_not_compared),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
