/* Blocks that a transform takes in pieces, because there is no memory for all of their weights and
 * second moments at once: the same bytes and the same report as with memory for all, however little
 * there is, stopped or not; and a disk that is full on the way is an error. */
#include "walking.h"

#include <signal.h>
#include <sys/resource.h>

/* Wide enough for weights and second moments to be more than what trying out scales takes, and for
 * steps of 128 tokens to be several. */
static const walk_world_how wide = {
    .n_seqs = 2,
    .length = 140,
    .model = {
        .n_layers = 1, .d_model = 128, .n_heads = 2, .n_kv_heads = 1, .d_ff = 512, .biases = true}};

#define SEARCH "awq:grid=2,duo=off"

static walk_world world, two_blocks;

static int setup(void **state)
{
    if (scratch_setup(state) != 0)
        return -1;
    walk_world_how two = wide;
    two.model.n_layers = 2;
    walk_world_open(&world, "model", &wide);
    walk_world_open(&two_blocks, "two-blocks", &two);
    return 0;
}

static int teardown(void **state)
{
    walk_world_close(&world);
    walk_world_close(&two_blocks);
    return scratch_teardown(state);
}

static const walk_how ways[] = {
    {.method = "rtn:search", .transform = SEARCH},
    {.method = "rtn", .transform = SEARCH, .n_threads = 3}, /* which clips */
    {.method = "rtn", .transform = "awq:grid=1", .scheme = "W4A16:channel", .keeps = "v_proj"},
    {.method = "rtn:search", .transform = SEARCH, .flow = NB_FLOW_QUANTIZED, .keeps = "down_proj"},
    {.method = "gptq:fit=absmax,polish=1,shrink=0.1", .transform = SEARCH},
    {.method = "hqq", .transform = SEARCH}, /* wants whole weights */
    {.method = "rtn:search", .transform = "smoothquant:alpha=0.5", .scheme = "W8A8"},
    {.method = "rtn", .transform = "smoothquant:alpha=0.5", .scheme = "W8A8:static"},
};
#define N_WAYS ((int)(sizeof ways / sizeof *ways))

/* Times are the runs' own. */
static void forget_times(json_t *layers)
{
    size_t i;
    json_t *o;
    json_array_foreach(layers, i, o)(void) json_object_del(o, "seconds");
}

static void keep_layers(void *context, nb_store *store, const nb_plan *plan, const nb_workdir *dir,
                        const nb_walk_result *result)
{
    json_t **out = context;
    (void)store;
    (void)plan;
    (void)dir;
    *out = json_deep_copy(result->layers);
    assert_non_null(*out);
    forget_times(*out);
}

/* What it would take; and the memory under which a way goes in pieces: one byte less than the least
 * without. */
static nb_walk_plan planned(const walk_how *way, int64_t memory)
{
    walk_outcome o;
    walk_how how = *way;
    how.memory = memory;
    how.stop_at = 1;
    walk(&o, &world, &how);
    assert_true(o.status == NB_INTERRUPTED || o.status == NB_LIMIT);
    return o.plan;
}

static int64_t little_memory(const walk_how *way)
{
    nb_walk_plan plan = planned(way, 0);
    for (int64_t rows = NB_STREAMS_ROWS; rows > 128; rows /= 2) {
        assert_int_equal(plan.max_rows, rows);
        plan = planned(way, plan.memory - 1);
    }
    assert_int_equal(plan.max_rows, 128);
    return plan.memory - 1;
}

/* The least of all. */
static int64_t least_memory(const walk_how *way)
{
    nb_walk_plan plan = planned(way, little_memory(way));
    for (;;) {
        const nb_walk_plan less = planned(way, plan.memory - 1);
        if (less.memory == 0) /* refused */
            return plan.memory;
        plan = less;
    }
}

static void little_memory_gives_the_same_bytes_and_report(void **state)
{
    (void)state;
    for (int i = 0; i < N_WAYS; i++) {
        walk_outcome o;
        json_t *want, *got;
        walk_and_visit(&o, &world, &ways[i], keep_layers, &want);
        assert_int_equal(o.status, NB_OK);
        json_decref(o.layers);
        const walk_outcome whole = o;
        const int64_t limits[] = {little_memory(&ways[i]), least_memory(&ways[i])};
        assert_true(planned(&ways[i], limits[0]).max_rows > 128); /* no longer by smaller steps */
        for (int k = 0; k < (i % 4 == 0 ? 2 : 1); k++) {
            walk_how how = ways[i];
            how.memory = limits[k];
            walk_and_visit(&o, &world, &how, keep_layers, &got);
            assert_int_equal(o.status, NB_OK);
            assert_true(o.plan.memory <= how.memory);
            json_decref(o.layers);
            assert_string_equal(o.digest, whole.digest);
            assert_int_equal(o.n_made, whole.n_made);
            assert_true(json_equal(got, want));
            json_decref(got);
        }
        json_decref(want);
    }
}

static void stopped_in_pieces_it_ends_in_the_same_bytes(void **state)
{
    (void)state;
    const walk_outcome held = walk_well(&two_blocks, &ways[4]);
    walk_how how = ways[4];
    how.memory = little_memory(&how);
    const walk_outcome whole = walk_well(&two_blocks, &how);
    assert_string_equal(whole.digest, held.digest);
    for (int block = 0; block < 2; block++) {
        walk_outcome o;
        how.stop_at = block == 0 ? 9 : whole.n_calls - 9;
        walk(&o, &two_blocks, &how);
        assert_int_equal(o.status, NB_INTERRUPTED);
        how.stop_at = 0;
        /* Memory may have come meanwhile. */
        o = walk_well(&two_blocks, block == 1 ? &how : &ways[4]);
        assert_int_equal(o.resumed, block);
        assert_string_equal(o.digest, held.digest);
    }
}

/* No file may be longer than what some of them want. */
static nb_status walk_on_a_small_disk(const walk_how *how, int64_t bytes, walk_outcome *o)
{
    struct rlimit was, small;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &was), 0);
    small = was;
    small.rlim_cur = (rlim_t)bytes;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    walk(o, &world, how);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &was), 0);
    return o->status;
}

/* Between the points of a block, and where second moments rest in the middle of one. */
static void a_disk_that_is_full_is_an_error(void **state)
{
    (void)state;
    (void)signal(SIGXFSZ, SIG_IGN);
    walk_outcome o;
    walk_how how = ways[4];
    how.memory = least_memory(&how);
    const walk_outcome whole = walk_well(&world, &how);
    const int64_t n_tokens = 2 * 140 - 2, inside = n_tokens * 512 * 4;
    const struct {
        int64_t bytes;
        const char *file;
    } cases[] = {{inside - 1, "x0-ffn"}, {inside, "moments"}};
    for (int i = 0; i < 2; i++) {
        assert_int_equal(walk_on_a_small_disk(&how, cases[i].bytes, &o), NB_IO);
        assert_non_null(strstr(o.err.text, cases[i].file));
        assert_true((o.n_calls > 0) == (i == 1));
        assert_string_equal(walk_well(&world, &how).digest, whole.digest);
    }
}

/* Every so many allocations one fails: an error, nothing is kept, and the next run ends as ever. */
static void memory_that_fails_leaves_nothing(void **state)
{
    (void)state;
    for (int i = 1; i < N_WAYS; i += N_WAYS) {
        walk_how how = ways[i];
        how.memory = little_memory(&how);
        const walk_outcome whole = walk_well(&world, &how);
        const int64_t live = nb_alloc_live();
        int64_t n_failed = 0;
        for (int64_t n = 30 + 7 * i; n < 4000; n += 67) {
            walk_outcome o;
            walk_how failing = how;
            failing.fail_alloc = n;
            walk(&o, &world, &failing);
            assert_int_equal(nb_alloc_live(), live);
            if (o.status == NB_OK)
                break;
            assert_int_equal(o.status, NB_MEMORY);
            n_failed++;
        }
        assert_true(n_failed > 3);
        assert_string_equal(walk_well(&world, &how).digest, whole.digest);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(little_memory_gives_the_same_bytes_and_report),
        cmocka_unit_test(stopped_in_pieces_it_ends_in_the_same_bytes),
        cmocka_unit_test(a_disk_that_is_full_is_an_error),
        cmocka_unit_test(memory_that_fails_leaves_nothing),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
