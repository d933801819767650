/* Guided walks: stopped anywhere they end in the same bytes, methods without sums are refused, and
 * what a weight's error is predicted to add to the KL divergence is what it adds. */
#include "quant/pass/true_model.h"
#include "walking.h"

static const walk_world_how small = {
    .n_seqs = 4,
    .length = 20,
    .model = {.n_layers = 2, .d_model = 32, .n_heads = 2, .n_kv_heads = 1, .d_ff = 64}};

/* Stopped while the guide is made, between blocks, inside them. */
static void stopped_anywhere_it_ends_in_the_same_bytes(void **state)
{
    (void)state;
    walk_world w;
    walk_world_open(&w, "stopped", &small);
    walk_how how = {.method = "gptq", .guided = true};
    const walk_outcome whole = walk_well(&w, &how);
    const walk_outcome plain = walk_well(&w, &(walk_how){.method = "gptq"});
    assert_string_not_equal(whole.digest, plain.digest);
    assert_true(whole.plan.flops > 2 * plain.plan.flops);
    assert_true(whole.plan.disk > plain.plan.disk);
    assert_true(whole.plan.memory >= plain.plan.memory);
    for (int64_t stop = 1; stop < whole.n_calls; stop += 1 + whole.n_calls / 12) {
        walk_outcome o;
        how.stop_at = stop;
        walk(&o, &w, &how);
        assert_int_equal(o.status, NB_INTERRUPTED);
        how.stop_at = 0;
        const walk_outcome rest = walk_well(&w, &how);
        assert_string_equal(rest.digest, whole.digest);
        assert_null(rest.anew);
    }
    walk_world_close(&w);
}

static int64_t guide_calls(const walk_outcome *guided, const walk_outcome *plain)
{
    return guided->n_calls - plain->n_calls;
}

/* A guide that is done is not made again, unless it was damaged: then it is, without the blocks
 * that are there. */
static void a_guide_is_made_once(void **state)
{
    (void)state;
    walk_world w;
    walk_outcome o;
    walk_world_open(&w, "once", &small);
    walk_how how = {.method = "gptq", .guided = true};
    const walk_outcome whole = walk_well(&w, &how);
    const walk_outcome plain = walk_well(&w, &(walk_how){.method = "gptq"});
    const int64_t n = guide_calls(&whole, &plain);
    for (int damage = 0; damage < 2; damage++) {
        how.stop_at = whole.n_calls - 2; /* in the last block */
        walk(&o, &w, &how);
        assert_int_equal(o.status, NB_INTERRUPTED);
        if (damage == 1) {
            FILE *f = fopen(scratch_path("work/guide.bin"), "r+b");
            assert_non_null(f);
            assert_int_equal(fseek(f, 40, SEEK_SET), 0);
            const int c = fgetc(f);
            assert_int_equal(fseek(f, 40, SEEK_SET), 0);
            assert_int_equal(fputc(c ^ 1, f), c ^ 1);
            assert_int_equal(fclose(f), 0);
        }
        how.stop_at = 0;
        const walk_outcome rest = walk_well(&w, &how);
        assert_string_equal(rest.digest, whole.digest);
        assert_int_equal(rest.resumed, 1);
        assert_int_equal(rest.n_calls, plain.n_calls / 2 + (damage == 1 ? n : 0));
    }
    walk_world_close(&w);
}

static void methods_without_sums_are_refused(void **state)
{
    (void)state;
    static const walk_how without[] = {{.method = "rtn", .guided = true},
                                       {.method = "hqq", .guided = true},
                                       {.method = "autoround:iters=1", .guided = true}};
    static const walk_how with[] = {{.method = "rtn:search", .guided = true},
                                    {.method = "rtn", .transform = "awq", .guided = true}};
    walk_world w;
    walk_world_open(&w, "refused", &small);
    for (int i = 0; i < 3; i++) {
        walk_outcome o;
        walk(&o, &w, &without[i]);
        assert_int_equal(o.status, NB_USAGE);
        assert_non_null(strstr(o.err.text, "makes no sums over tokens"));
    }
    for (int i = 0; i < 2; i++)
        walk_well(&w, &with[i]);
    walk_world_close(&w);
}

/* ---- the prediction ---- */

typedef struct {
    const walk_world *world;
    double predicted, measured; /* KL a token of the held-out sequences */
    int64_t n_linears;
} prediction;

/* Puts what was made in place of the weights. */
static void replace_weights(true_model *m, const nb_plan *plan, const nb_workdir *dir)
{
    nb_err err = {0};
    for (int64_t i = 0; i < plan->n; i++) {
        nb_loaded made = {0};
        for (int64_t at = 0; at < m->config.n_layers * NB_N_LINEARS; at++) {
            char name[128];
            const int64_t layer = at / NB_N_LINEARS, j = at % NB_N_LINEARS;
            snprintf(name, sizeof name, "model.layers.%d.%s.weight", (int)layer,
                     nb_linear_name((nb_linear_id)j));
            if (strcmp(plan->weights[i].name, name) != 0)
                continue;
            assert_int_equal(nb_room_for(&made, &plan->weights[i], &err), NB_OK);
            assert_int_equal(nb_workdir_get_mat(dir, i, &made, &err), NB_OK);
            float row[TRUE_MAX_WIDTH];
            for (int64_t r = 0; r < made.mat.n_rows; r++) {
                made.mat.fmt->decode_row(&made.mat, r, row);
                for (int64_t c = 0; c < made.mat.n_cols; c++)
                    m->layer[layer].linear[j][r * made.mat.n_cols + c] = (double)row[c];
            }
        }
        nb_loaded_free(&made);
    }
}

static void compare(void *context, nb_store *store, const nb_plan *plan, const nb_workdir *dir,
                    const nb_walk_result *result)
{
    prediction *p = context;
    true_model base, made;
    int64_t n_tokens = 0;
    for (size_t i = 0; i < json_array_size(result->layers); i++) {
        const json_t *kl = json_object_get(json_array_get(result->layers, i), "predicted_kl");
        assert_true(json_real_value(kl) > 0);
        p->predicted += json_real_value(kl);
        p->n_linears++;
    }
    true_model_open(&base, store);
    true_model_open(&made, store);
    replace_weights(&made, plan, dir);
    const int64_t v = base.config.vocab_size;
    double *a = malloc(sizeof *a * TRUE_MAX_TOKENS * (size_t)v);
    double *b = malloc(sizeof *b * TRUE_MAX_TOKENS * (size_t)v);
    for (int64_t q = 0; q < p->world->n_seqs; q++) {
        const nb_calib_seq *seq = &p->world->seqs[q];
        if (!seq->held)
            continue;
        true_logits(&base, seq->ids, seq->n, NULL, a);
        true_logits(&made, seq->ids, seq->n, NULL, b);
        for (int64_t t = 0; t < seq->n; t++, n_tokens++) {
            true_softmax(a + t * v, v);
            true_softmax(b + t * v, v);
            for (int64_t i = 0; i < v; i++)
                p->measured += a[t * v + i] * log(a[t * v + i] / b[t * v + i]);
        }
    }
    p->measured /= (double)n_tokens;
    free(a);
    free(b);
    true_model_close(&base);
    true_model_close(&made);
}

/* 8 bits are few enough for an error that can be seen and many enough for the second order to be
 * all of it. Errors of linears add up as if they were independent. */
static void predictions_come_true(void **state)
{
    (void)state;
    static const char *const methods[] = {"gptq", "rtn:search"};
    walk_world_how how = small;
    how.n_seqs = 16;
    how.length = 24;
    walk_world w;
    walk_world_open(&w, "predicted", &how);
    for (int i = 0; i < 2; i++) {
        walk_outcome o;
        prediction p = {.world = &w};
        walk_and_visit(
            &o, &w,
            &(walk_how){
                .method = methods[i], .guided = true, .scheme = "W8A16", .flow = NB_FLOW_ORIGINAL},
            compare, &p);
        assert_int_equal(o.status, NB_OK);
        json_decref(o.layers);
        assert_int_equal(p.n_linears, 2 * NB_N_LINEARS);
        print_message("%s: %g, predicted %g\n", methods[i], p.measured, p.predicted);
        assert_true(p.predicted > p.measured * 0.7 && p.predicted < p.measured * 1.4);
    }
    walk_world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stopped_anywhere_it_ends_in_the_same_bytes),
        cmocka_unit_test(a_guide_is_made_once),
        cmocka_unit_test(methods_without_sums_are_refused),
        cmocka_unit_test(predictions_come_true),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
