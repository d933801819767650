/* The tuning of all scales at the end of a walk: what it says against divergences in binary64
 * written here; that it pays; and that neither threads nor kills nor damage change what comes out.
 */
#include "quant/pass/true_model.h"
#include "walking.h"

/* Two bits for two blocks. */
#define SCHEME "W2A16:g32,asym"
static const walk_world_how small = {
    .n_seqs = 9, .length = 16, .model = {.d_model = 32, .n_heads = 2, .n_kv_heads = 1, .d_ff = 64}};

static walk_world world;

static int setup(void **state)
{
    if (scratch_setup(state) != 0)
        return -1;
    walk_world_open(&world, "model", &small);
    return 0;
}

static int teardown(void **state)
{
    walk_world_close(&world);
    return scratch_teardown(state);
}

/* ---- against divergences in doubles ---- */

/* The linears of a walk's output in place of the original's. */
static void replace_linears(true_model *m, const nb_plan *plan, const nb_workdir *dir,
                            const nb_walk_result *result)
{
    nb_err err = {0};
    nb_loaded loaded = {0};
    float row[TRUE_MAX_WIDTH];
    for (int64_t i = 0; i < plan->n; i++) {
        int64_t layer = 0, j = 0;
        char name[128] = "";
        for (; result->made[i] && layer * NB_N_LINEARS + j < 2 * NB_N_LINEARS; j++) {
            layer += j == NB_N_LINEARS;
            j = j == NB_N_LINEARS ? 0 : j;
            snprintf(name, sizeof name, "model.layers.%d.%s.weight", (int)layer,
                     nb_linear_name((nb_linear_id)j));
            if (strcmp(name, plan->weights[i].name) == 0)
                break;
        }
        if (strcmp(name, plan->weights[i].name) != 0)
            continue;
        assert_int_equal(nb_room_for(&loaded, &plan->weights[i], &err), NB_OK);
        assert_int_equal(nb_workdir_get_mat(dir, result->made_from + i, &loaded, &err), NB_OK);
        for (int64_t r = 0; r < loaded.mat.n_rows; r++) {
            loaded.mat.fmt->decode_row(&loaded.mat, r, row);
            for (int64_t c = 0; c < loaded.mat.n_cols; c++)
                m->layer[layer].linear[j][r * loaded.mat.n_cols + c] = (double)row[c];
        }
    }
    nb_loaded_free(&loaded);
}

/* Mean KL of held-out tokens. */
static void true_kl(void *context, nb_store *store, const nb_plan *plan, const nb_workdir *dir,
                    const nb_walk_result *result)
{
    double *out = context, sum = 0;
    true_model m[2];
    int64_t n = 0;
    for (int i = 0; i < 2; i++)
        true_model_open(&m[i], store);
    replace_linears(&m[1], plan, dir, result);
    const int64_t v = m[0].config.vocab_size;
    double *logits[2];
    for (int i = 0; i < 2; i++)
        logits[i] = malloc(sizeof(double) * (size_t)(TRUE_MAX_TOKENS * v));
    for (int64_t s = 0; s < world.n_seqs; s++) {
        const nb_calib_seq *seq = &world.seqs[s];
        if (!seq->held)
            continue;
        for (int i = 0; i < 2; i++)
            true_logits(&m[i], seq->ids, seq->n, NULL, logits[i]);
        for (int64_t t = 0; t < seq->n; t++) {
            for (int i = 0; i < 2; i++)
                true_softmax(logits[i] + t * v, v);
            for (int64_t c = t * v; c < (t + 1) * v; c++)
                sum += logits[0][c] * log(logits[0][c] / logits[1][c]);
        }
        n += seq->n;
    }
    assert_true(n > 0);
    *out = sum / (double)n;
    for (int i = 0; i < 2; i++) {
        free(logits[i]);
        true_model_close(&m[i]);
    }
}

/* Several formats; some layers that stay as they are; data-free methods and others. So little
 * random text is soon known by heart: what has been tuned already may lose by more of it, and is
 * not touched then. */
static void divergences_are_those_of_doubles_and_fall(void **state)
{
    (void)state;
    enum { N_FALLING = 3 };
    static const walk_how ways[] = {
        {.scheme = SCHEME, .method = "rtn"},
        {.scheme = SCHEME, .method = "hqq", .keeps = "down_proj"},
        {.scheme = "W3A16:g32", .method = "gptq"},
        {.scheme = SCHEME, .method = "rtn:search", .tune = "autoround:iters=2,batch=2,len=16"},
        {.scheme = SCHEME, .method = "qronos", .guided = true},
    };
    for (int i = 0; i < (int)(sizeof ways / sizeof *ways); i++) {
        walk_how how = ways[i];
        walk_outcome o;
        double before, after;
        walk_and_visit(&o, &world, &how, true_kl, &before);
        assert_int_equal(o.status, NB_OK);
        json_decref(o.layers);
        assert_false(o.distilled.any);
        how.distill = "steps=24,lr=0.01";
        walk_and_visit(&o, &world, &how, true_kl, &after);
        if (o.status != NB_OK)
            fail_msg("%s", o.err.text);
        json_decref(o.layers);
        assert_true(o.distilled.any);
        assert_int_equal(o.distilled.steps, 24);
        assert_true(fabs(o.distilled.before - before) < 1e-4 * before);
        const double want = o.distilled.kept ? o.distilled.after : o.distilled.before;
        assert_true(fabs(want - after) < 1e-4 * before);
        assert_true(o.distilled.kept == (o.distilled.after < o.distilled.before));
        if (i < N_FALLING && !(after < 0.97 * before))
            fail_msg("%s: %g to %g", how.method, before, after);
    }
}

/* ---- in every way it may be made ---- */

static const walk_how way = {
    .scheme = SCHEME, .method = "rtn", .distill = "steps=5,batch=2,len=15,lr=0.02"};

static void same_result(const walk_outcome *o, const walk_outcome *want)
{
    assert_string_equal(o->digest, want->digest);
    assert_int_equal(o->n_made, want->n_made);
    assert_int_equal(o->distilled.steps, want->distilled.steps);
    assert_true(o->distilled.kept == want->distilled.kept);
    assert_true(o->distilled.before == want->distilled.before);
    assert_true(o->distilled.after == want->distilled.after);
}

static void bits_depend_on_neither_threads_nor_isa(void **state)
{
    (void)state;
    static const unsigned isa[] = {0, NB_ISA_SCALAR + 1, NB_ISA_AVX2 + 1};
    const walk_outcome want = walk_well(&world, &way);
    for (int i = 0; i < 5; i++) {
        walk_how how = way;
        how.n_threads = 1 + i;
        how.isa = isa[i % 3];
        const walk_outcome o = walk_well(&world, &how);
        same_result(&o, &want);
    }
}

/* At every call of the progress, each time from the start. */
static void stopped_anywhere_it_ends_in_the_same_bytes(void **state)
{
    (void)state;
    const walk_outcome whole = walk_well(&world, &way);
    int64_t n_resumed = 0;
    for (int64_t at = 1; at <= whole.n_calls; at += 7) {
        walk_outcome o;
        walk_how how = way;
        how.stop_at = at;
        walk(&o, &world, &how);
        assert_int_equal(o.status, NB_INTERRUPTED);
        how.stop_at = 0;
        how.n_threads = 1 + (int)(at % 3);
        o = walk_well(&world, &how);
        assert_null(o.anew);
        same_result(&o, &whole);
        n_resumed += o.n_calls < whole.n_calls / 2;
    }
    assert_true(n_resumed > 2);
}

static void stopped_again_and_again(void **state)
{
    (void)state;
    const walk_outcome whole = walk_well(&world, &way);
    walk_outcome o = {.status = NB_INTERRUPTED};
    int64_t n_runs = 0;
    for (int64_t at = whole.n_calls / 6; o.status == NB_INTERRUPTED; at += 2, n_runs++) {
        walk_how how = way;
        how.stop_at = at;
        walk(&o, &world, &how);
        assert_true(at < whole.n_calls);
    }
    assert_int_equal(o.status, NB_OK);
    assert_true(n_runs > 3);
    same_result(&o, &whole);
}

/* ---- what was left is not what was written ---- */

static int64_t n_weights(void)
{
    nb_err err = {0};
    nb_scheme scheme;
    nb_plan plan;
    assert_int_equal(nb_scheme_parse(&scheme, SCHEME, &err), NB_OK);
    const nb_plan_request request = {.to = NB_STORE_HF, .scheme = &scheme};
    assert_int_equal(nb_plan_make(&plan, world.store, &request, &err), NB_OK);
    const int64_t n = plan.n;
    nb_plan_free(&plan);
    return n;
}

static const char *file_of(int64_t first, int64_t index)
{
    char name[80];
    int64_t found = 0;
    for (int64_t i = first;; i++) {
        snprintf(name, sizeof name, "work/weight-%06lld.bin", (long long)i);
        if (scratch_exists(name) && found++ == index)
            return scratch_path(name);
        assert_true(i < first + 100);
    }
}

static void flip_byte(const char *path, long at)
{
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    assert_int_equal(fseek(f, at, SEEK_SET), 0);
    const int c = fgetc(f);
    assert_int_equal(fseek(f, at, SEEK_SET), 0);
    assert_int_equal(fputc(c ^ 1, f), c ^ 1);
    assert_int_equal(fclose(f), 0);
}

static walk_outcome leave_all(void)
{
    walk_how how = way;
    how.keep_dir = true;
    return walk_well(&world, &how);
}

/* All is there: nothing is done again. One of what was learned is missing, or is not what was
 * written: it is made again from the last step. One of the start: all is. */
static void what_was_damaged_is_made_again(void **state)
{
    (void)state;
    const walk_outcome whole = walk_well(&world, &way);
    const int64_t n = n_weights();
    assert_true(whole.distilled.kept);
    for (int how = 0; how < 7; how++) {
        walk_outcome o = leave_all();
        same_result(&o, &whole);
        if (how == 1)
            assert_int_equal(remove(file_of(n, 3)), 0);
        if (how == 2 || how == 3)
            flip_byte(file_of(n, 5), how == 2 ? 3 : 40);
        if (how == 4)
            flip_byte(file_of(0, 5), 40);
        if (how == 5 || how == 6) {
            assert_int_equal(remove(file_of(n, 0)), 0);
            const char *learned = scratch_path("work/distill-odd.bin");
            if (how == 5)
                flip_byte(learned, 9);
            else
                assert_int_equal(remove(learned), 0);
        }
        o = walk_well(&world, &way);
        same_result(&o, &whole);
        assert_int_equal(o.resumed, how == 4 ? 0 : 2);
        assert_true((o.anew != NULL) == (how == 4));
        if (how == 0)
            assert_int_equal(o.n_calls, 0);
        else if (how < 4)
            assert_true(o.n_calls > 0 && o.n_calls < whole.n_calls / 3);
        else
            assert_true(o.n_calls > whole.n_calls / 2);
    }
}

/* What another command has learned is not taken for what this one did. */
static void another_commands_scales_are_not_used(void **state)
{
    (void)state;
    walk_how still = way;
    still.key = "other";
    still.distill = "steps=1,lr=0"; /* learns nothing: the start counts */
    const walk_outcome want = walk_well(&world, &still);
    assert_false(want.distilled.kept);
    assert_true(want.distilled.after == want.distilled.before);
    walk_how plain = way;
    plain.distill = NULL;
    walk_outcome o = walk_well(&world, &plain);
    assert_string_equal(o.digest, want.digest);
    o = leave_all();
    assert_string_not_equal(o.digest, want.digest);
    o = walk_well(&world, &still);
    assert_string_equal(o.anew, "is of another model, text or recipe");
    same_result(&o, &want);
}

/* ---- the edges ---- */

/* One sequence, and none held out: nothing judges, and the end is taken. */
static void without_held_out_text_the_end_is_taken(void **state)
{
    (void)state;
    walk_world alone = world;
    alone.n_seqs = 1;
    assert_false(alone.seqs[0].held);
    walk_how how = way;
    const walk_outcome o = walk_well(&alone, &how);
    assert_true(o.distilled.kept && isnan(o.distilled.before) && isnan(o.distilled.after));
    how.distill = NULL;
    const walk_outcome plain = walk_well(&alone, &how);
    assert_string_not_equal(o.digest, plain.digest);
}

/* Sequences are cut to `len`; a longer one than there are changes nothing, nor a larger batch than
 * there are sequences. */
static void lengths_and_batches_are_cut(void **state)
{
    (void)state;
    walk_how how = way;
    how.distill = "steps=2,batch=8,lr=0.05";
    const walk_outcome all = walk_well(&world, &how);
    assert_true(all.distilled.kept);
    how.distill = "steps=2,batch=1000,len=100000,lr=0.05";
    walk_outcome o = walk_well(&world, &how);
    same_result(&o, &all);
    how.distill = "steps=2,batch=8,len=1,lr=0.05";
    o = walk_well(&world, &how);
    assert_string_not_equal(o.digest, all.digest);
}

/* A head with a NaN has no loss: no step is made, and the walk ends with what it had. */
static void a_loss_that_is_no_number_ends_it(void **state)
{
    (void)state;
    walk_world broken;
    walk_world_how model = small;
    model.model.nan_head = true;
    walk_world_open(&broken, "broken", &model);
    walk_how how = way;
    const walk_outcome o = walk_well(&broken, &how);
    assert_true(o.distilled.any && !o.distilled.kept && o.distilled.steps == 0);
    how.distill = NULL;
    const walk_outcome plain = walk_well(&broken, &how);
    assert_string_equal(o.digest, plain.digest);
    walk_world_close(&broken);
}

static void what_it_cannot_do_is_refused(void **state)
{
    (void)state;
    static const struct {
        walk_how how;
        const char *said;
    } all[] = {
        {{.scheme = SCHEME, .transform = "awq"}, "transform awq changes them"},
        {{.scheme = "W8A8", .method = "rtn"}, "this scheme quantizes them"},
        {{.scheme = "W4A8:g32,static", .method = "rtn"}, "this scheme quantizes them"},
    };
    for (int i = 0; i < (int)(sizeof all / sizeof *all); i++) {
        walk_how how = all[i].how;
        walk_outcome o;
        how.distill = "steps=1";
        walk(&o, &world, &how);
        assert_int_equal(o.status, NB_UNSUPPORTED);
        assert_non_null(strstr(o.err.text, all[i].said));
    }
}

static void the_plan_counts_it(void **state)
{
    (void)state;
    walk_how how = way;
    const walk_outcome some = walk_well(&world, &how);
    how.distill = "steps=50,batch=2,len=15,lr=0.02";
    how.stop_at = 1;
    walk_outcome more, none;
    walk(&more, &world, &how);
    how.distill = NULL;
    how.key = "none";
    walk(&none, &world, &how);
    assert_true(none.plan.flops < some.plan.flops && some.plan.flops < more.plan.flops / 3);
    assert_true(none.plan.disk < some.plan.disk && some.plan.disk == more.plan.disk);
    assert_true(none.plan.memory < some.plan.memory);
    how = way;
    how.memory = some.plan.memory / 2;
    walk(&more, &world, &how);
    assert_int_equal(more.status, NB_LIMIT);
}

static void allocations_may_fail(void **state)
{
    (void)state;
    const int64_t live = nb_alloc_live();
    walk_world few = world;
    few.n_seqs = 3;
    int64_t n = 1;
    for (nb_status s = NB_MEMORY; s != NB_OK; n += 3) { /* every third one */
        char key[24];
        walk_outcome o;
        walk_how how = way;
        snprintf(key, sizeof key, "key %d", (int)n); /* from the start, each time */
        how.key = key;
        how.distill = "steps=1";
        how.fail_alloc = n;
        walk(&o, &few, &how);
        s = o.status;
        if (s != NB_OK && s != NB_MEMORY)
            fail_msg("allocation %d: %s", (int)n, o.err.text);
        assert_int_equal(nb_alloc_live(), live);
    }
    assert_true(n > 300);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(divergences_are_those_of_doubles_and_fall),
        cmocka_unit_test(bits_depend_on_neither_threads_nor_isa),
        cmocka_unit_test(stopped_anywhere_it_ends_in_the_same_bytes),
        cmocka_unit_test(stopped_again_and_again),
        cmocka_unit_test(what_was_damaged_is_made_again),
        cmocka_unit_test(another_commands_scales_are_not_used),
        cmocka_unit_test(without_held_out_text_the_end_is_taken),
        cmocka_unit_test(lengths_and_batches_are_cut),
        cmocka_unit_test(a_loss_that_is_no_number_ends_it),
        cmocka_unit_test(what_it_cannot_do_is_refused),
        cmocka_unit_test(the_plan_counts_it),
        cmocka_unit_test(allocations_may_fail),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
