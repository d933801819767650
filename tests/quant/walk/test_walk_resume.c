/* A walk that was stopped ends in the bytes of one that was not; what was left behind and is not
 * what the walk left is never used. */
#include "walking.h"

#include <dirent.h>

/* Two blocks: one to have been done, one to be stopped in. */
static const walk_world_how small = {
    .n_seqs = 4, .length = 16, .model = {.d_model = 32, .n_heads = 2, .n_kv_heads = 1, .d_ff = 64}};

/* Where it does not matter how well codes are chosen. */
#define CHEAP "gptq:fit=absmax,polish=0,shrink=0.1"

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

static const walk_how ways[] = {
    {.method = "gptq"},
    {.method = "qronos"}, /* two streams */
    {.method = "rtn:search"},
    {.method = "rtn:search", .flow = NB_FLOW_QUANTIZED},
    {.method = "autoround:iters=3,batch=2,len=24"},
    {.method = "gptq", .guided = true},
    {.method = "gptq", .transform = "awq"},
    {.method = "gptaq", .transform = "awq"},
    {.method = "autoround:iters=3,batch=2,len=24", .transform = "awq"},
    {.method = "rtn", .transform = "smoothquant", .scheme = "W8A8"},
    {.method = "rtn", .scheme = "W8A8:static", .observing = {NB_OBSERVE_MSE, 0}},
    {.method = "autoround:iters=3,batch=2,len=24", .scheme = "W4A8:g32,static"},
};
#define N_WAYS ((int)(sizeof ways / sizeof *ways))

static void stop_and_go_on(const walk_how *way, int64_t at, const walk_outcome *whole,
                           int64_t *n_resumed)
{
    walk_outcome o;
    walk_how how = *way;
    how.stop_at = at;
    walk(&o, &world, &how);
    assert_int_equal(o.status, NB_INTERRUPTED);
    assert_int_equal(o.n_calls, at);
    how.stop_at = 0;
    o = walk_well(&world, &how);
    assert_string_equal(o.digest, whole->digest);
    assert_int_equal(o.n_made, whole->n_made);
    assert_null(o.anew);
    *n_resumed += o.resumed;
}

/* Each at several moments, from the first to the last one at which it asks. */
static void stopped_anywhere_it_ends_in_the_same_bytes(void **state)
{
    (void)state;
    for (int i = 0; i < N_WAYS; i++) {
        const walk_outcome whole = walk_well(&world, &ways[i]);
        assert_false(scratch_exists("work"));
        int64_t n_resumed = 0;
        const int64_t n = whole.n_calls;
        assert_true(n > 16);
        /* somewhere in the first block, somewhere in the second, at the very end */
        stop_and_go_on(&ways[i], 1 + (3 * i) % (n / 2), &whole, &n_resumed);
        assert_int_equal(n_resumed, 0);
        stop_and_go_on(&ways[i], n - 1 - (2 * i) % (n / 4), &whole, &n_resumed);
        stop_and_go_on(&ways[i], n, &whole, &n_resumed);
        assert_int_equal(n_resumed, 2);
    }
}

/* Every single moment of one way, in one folder: stopped after a little more each time, it comes
 * through all of them, and to its end. */
static void stopped_again_and_again(void **state)
{
    (void)state;
    const walk_how way = {.method = "qronos"};
    const walk_outcome whole = walk_well(&world, &way);
    walk_outcome o;
    int64_t n_runs = 0, at = 1;
    for (;; at += 7, n_runs++) {
        walk_how how = way;
        how.stop_at = at;
        walk(&o, &world, &how);
        if (o.status == NB_OK)
            break;
        assert_int_equal(o.status, NB_INTERRUPTED);
        assert_true(at < whole.n_calls);
    }
    assert_true(n_runs > 3);
    assert_true(o.resumed == 1);
    assert_string_equal(o.digest, whole.digest);
}

/* Threads, instruction set and memory may differ from one run to the next. */
static void gone_on_with_elsewhere(void **state)
{
    (void)state;
    walk_how how = {.n_threads = 2};
    const walk_outcome whole = walk_well(&world, &how);
    how.stop_at = whole.n_calls - 2;
    walk_outcome o;
    walk(&o, &world, &how);
    assert_int_equal(o.status, NB_INTERRUPTED);
    how = (walk_how){.n_threads = 3, .isa = NB_ISA_SCALAR + 1};
    o = walk_well(&world, &how);
    assert_int_equal(o.resumed, 1);
    assert_string_equal(o.digest, whole.digest);
}

/* ---- what is not gone on from ---- */

static void leave_one_block(const walk_how *way, const walk_outcome *whole)
{
    walk_outcome o;
    walk_how how = *way;
    how.stop_at = whole->n_calls - 2;
    walk(&o, &world, &how);
    assert_int_equal(o.status, NB_INTERRUPTED);
}

/* Another model, text or recipe has another key. */
static void a_state_of_another_key_is_not_used(void **state)
{
    (void)state;
    const walk_how one = {.key = "one", .method = CHEAP},
                   two = {.key = "two", .method = CHEAP ",act-order"};
    const walk_outcome first = walk_well(&world, &one), second = walk_well(&world, &two);
    assert_string_not_equal(first.digest, second.digest);
    leave_one_block(&one, &first);
    const walk_outcome o = walk_well(&world, &two);
    assert_int_equal(o.resumed, 0);
    assert_string_equal(o.anew, "is of another model, text or recipe");
    assert_string_equal(o.digest, second.digest);
}

/* The second recipe is stopped before its first state, when it has overwritten some weights of the
 * first one: the first one must not go on from its own state then. */
static void two_recipes_in_turn_do_not_mix(void **state)
{
    (void)state;
    const walk_how one = {.key = "one", .method = CHEAP},
                   two = {.key = "two", .method = CHEAP ",act-order"};
    const walk_outcome first = walk_well(&world, &one), second = walk_well(&world, &two);
    for (int64_t at = 1; at < second.n_calls / 2; at += second.n_calls / 5) {
        walk_outcome o;
        leave_one_block(&one, &first);
        walk_how stopped = two;
        stopped.stop_at = at;
        walk(&o, &world, &stopped);
        assert_int_equal(o.status, NB_INTERRUPTED);
        o = walk_well(&world, &one);
        assert_string_equal(o.digest, first.digest);
    }
}

/* ---- damage ---- */

typedef struct {
    char *bytes;
    size_t n;
} content;

static content slurp(const char *path)
{
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    content c = {.bytes = malloc(1 << 20)};
    assert_non_null(c.bytes);
    c.n = fread(c.bytes, 1, 1 << 20, f);
    assert_true(c.n < 1 << 20);
    fclose(f);
    return c;
}

static void put(const char *path, const char *bytes, size_t n)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

typedef enum {
    CUT_ONE,
    CUT_ALL,
    FLIP_FIRST,
    FLIP_MIDDLE,
    FLIP_LAST,
    REMOVE,
    LONGER,
    N_DAMAGES
} damage;

static void do_damage(const char *path, damage how)
{
    content c = slurp(path);
    const size_t at = how == FLIP_FIRST ? 0 : how == FLIP_MIDDLE ? c.n / 2 : c.n - 1;
    if (how == FLIP_FIRST || how == FLIP_MIDDLE || how == FLIP_LAST)
        c.bytes[at] ^= 1;
    if (how == LONGER)
        c.bytes[c.n] = 0;
    put(path, c.bytes, how == CUT_ONE ? c.n - 1 : how == CUT_ALL ? 0 : c.n + (how == LONGER));
    if (how == REMOVE)
        assert_int_equal(remove(path), 0);
    free(c.bytes);
}

/* Whether the damaged file says something that the walk must not go on without noticing. */
static bool matters(const char *name, damage how)
{
    if (strncmp(name, "x0-", 3) == 0) /* the other one is written before it is read */
        return strcmp(name, "x0-odd.bin") == 0 && how != LONGER;
    return true;
}

static void what_is_damaged_is_noticed(void **state)
{
    (void)state;
    static const char *const names[] = {"state.json", "x0-odd.bin", "x0-even.bin", NULL};
    const walk_how way = {.method = CHEAP};
    const walk_outcome whole = walk_well(&world, &way);
    char weight[300] = "";
    for (int i = 0; i < 4; i++) {
        for (int how = i < 3 ? 0 : CUT_ONE; how < N_DAMAGES; how++) {
            leave_one_block(&way, &whole);
            if (names[i] == NULL && weight[0] == 0) {
                DIR *d = opendir(scratch_path("work"));
                assert_non_null(d);
                for (const struct dirent *e; (e = readdir(d)) != NULL;) {
                    /* of the first block, so the first in the plan */
                    if (strncmp(e->d_name, "weight-", 7) == 0 &&
                        (weight[0] == 0 || strcmp(e->d_name, weight) < 0))
                        snprintf(weight, sizeof weight, "%s", e->d_name);
                }
                closedir(d);
            }
            const char *name = names[i] != NULL ? names[i] : weight;
            char path[320];
            snprintf(path, sizeof path, "work/%s", name);
            do_damage(scratch_path(path), (damage)how);
            const walk_outcome o = walk_well(&world, &way);
            assert_string_equal(o.digest, whole.digest);
            const bool gone = strcmp(name, "state.json") == 0 && how == REMOVE;
            if (!matters(name, (damage)how) || (i == 0 && how == LONGER)) {
                continue;
            }
            assert_int_equal(o.resumed, 0);
            if (gone)
                assert_null(o.anew);
            else
                assert_string_equal(o.anew, "is damaged");
        }
    }
}

/* A state whose numbers were changed is no state, even where what it speaks of is there. */
static void a_state_with_another_number_is_noticed(void **state)
{
    (void)state;
    const walk_how way = {.method = CHEAP};
    const walk_outcome whole = walk_well(&world, &way);
    static const char *const after[] = {"2",   "0",     "-1",  "9223372036854775807",
                                        "1.0", "\"1\"", "null"};
    for (size_t i = 0; i < sizeof after / sizeof *after; i++) {
        leave_one_block(&way, &whole);
        content c = slurp(scratch_path("work/state.json"));
        c.bytes[c.n] = 0;
        const char *at = strstr(c.bytes, "\"next_layer\": 1");
        assert_non_null(at);
        at += strlen("\"next_layer\": ");
        char *changed = malloc(c.n + 64);
        assert_non_null(changed);
        const int n =
            snprintf(changed, c.n + 64, "%.*s%s%s", (int)(at - c.bytes), c.bytes, after[i], at + 1);
        put(scratch_path("work/state.json"), changed, (size_t)n);
        free(changed);
        free(c.bytes);
        const walk_outcome o = walk_well(&world, &way);
        assert_string_equal(o.anew, "is damaged");
        assert_string_equal(o.digest, whole.digest);
    }
}

/* A state that says less than it should, but in itself is whole: what somebody else's program may
 * have left. */
static void a_state_of_other_members_is_not_used(void **state)
{
    (void)state;
    static const char *const states[] = {
        "{}",
        "{\"key\": 1}",
        "{\"key\": \"key\"}",
        "{\"key\": \"key\", \"next_layer\": 1}",
        "{\"key\": \"key\", \"next_layer\": 1, \"layers\": []}",
        "{\"key\": \"key\", \"next_layer\": 1, \"layers\": [], \"hashes\": [1]}",
        "{\"key\": \"key\", \"next_layer\": 3, \"layers\": [], \"hashes\": [\"00\"]}",
        "{\"key\": \"key\", \"next_layer\": 1, \"layers\": [], \"hashes\": [\"00\"]}"};
    const walk_how way = {.method = CHEAP};
    const walk_outcome whole = walk_well(&world, &way);
    for (size_t i = 0; i < sizeof states / sizeof *states; i++) {
        nb_workdir dir;
        nb_err err = {0};
        assert_int_equal(nb_workdir_open(&dir, scratch_path("work"), &err), NB_OK);
        json_t *s = json_loads(states[i], 0, NULL);
        assert_non_null(s);
        assert_int_equal(nb_workdir_put_state(&dir, s, &err), NB_OK);
        json_decref(s);
        nb_workdir_close(&dir, false);
        const walk_outcome o = walk_well(&world, &way);
        assert_int_equal(o.resumed, 0);
        assert_string_equal(o.digest, whole.digest);
    }
}

/* Done already, all blocks: nothing is computed again. */
static void a_finished_walk_is_not_walked_again(void **state)
{
    (void)state;
    nb_workdir_close(&(nb_workdir){0}, false); /* `{0}` is closed, too */
    const walk_how way = {.method = CHEAP};
    const walk_outcome whole = walk_well(&world, &way);
    walk_outcome o;
    walk_how how = way;
    how.keep_dir = true;
    walk(&o, &world, &how);
    assert_int_equal(o.status, NB_OK);
    o = walk_well(&world, &way);
    assert_int_equal(o.resumed, 2);
    assert_int_equal(o.n_calls, 0);
    assert_string_equal(o.digest, whole.digest);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stopped_anywhere_it_ends_in_the_same_bytes),
        cmocka_unit_test(stopped_again_and_again),
        cmocka_unit_test(gone_on_with_elsewhere),
        cmocka_unit_test(a_state_of_another_key_is_not_used),
        cmocka_unit_test(two_recipes_in_turn_do_not_mix),
        cmocka_unit_test(what_is_damaged_is_noticed),
        cmocka_unit_test(a_state_with_another_number_is_noticed),
        cmocka_unit_test(a_state_of_other_members_is_not_used),
        cmocka_unit_test(a_finished_walk_is_not_walked_again),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
