/* The paged cache and attention over it: every variant against the scalar reference, bit for bit,
 * over formats, shapes, positions, windows and data; independence of how queries are grouped into
 * calls and splits; and planted faults through the same checks. What the reference means is
 * test_attn_meaning.c's. */
#include "attn_scene.h"

/* The cache as k fills it, and every output, equal the reference's bit for bit; and so does every
 * way to cut the queries into calls. `c` is as the reference fills it, `want` what it answers. */
static void check_table(check_run *run, const char *what, const nb_kernels *ref,
                        const nb_kernels *k, const scene *s, cache *c, const float *want)
{
    cache own = cache_open(s, k);
    check_same_bytes(run, what, own.arena, c->arena, c->arena_bytes);
    if (c->recent != NULL)
        check_same_bytes(run, what, own.recent, c->recent, c->recent_bytes);
    cache_close(run, what, &own);

    float *got = open_out(s, c);
    attend(run, what, s, c, k, 0, s->n_q, got);
    check_same_f32(run, what, got, want, s->n_q * c->ld);
    check_guard(run, what, got);
    check_free(got);

    for (int size = 1; size < s->n_q; size = 2 * size + 1) {
        got = open_out(s, c);
        for (int t = 0; t < s->n_q; t += size)
            attend(run, what, s, c, k, t, t + size < s->n_q ? size : s->n_q - t, got);
        check_same_f32(run, what, got, want, s->n_q * c->ld);
        check_guard(run, what, got);
        check_free(got);
    }
    for (int64_t at_once = 1; at_once < 4; at_once += 2) {
        got = open_out(s, c);
        attend_by_splits(run, what, s, c, at_once == 1 ? k : ref, at_once == 1 ? ref : k, at_once,
                         got);
        check_same_f32(run, what, got, want, s->n_q * c->ld);
        check_guard(run, what, got);
        check_free(got);
    }
}

/* The reference is the slowest by far, and runs once for all n tables. */
static void check_scene(check_run *runs, const nb_kernels *ref, const nb_kernels *tables, int n,
                        const scene *s)
{
    char what[200];
    scene_text(s, what);
    cache c = cache_open(s, ref);
    float *want = open_out(s, &c);
    attend(&runs[0], what, s, &c, ref, 0, s->n_q, want);
    for (int i = 0; i < n; i++)
        check_table(&runs[i], what, ref, &tables[i], s, &c, want);
    check_free(want);
    cache_close(&runs[0], what, &c);
}

/* With `planted`, ends at the first fault. */
static void walk(check_run *runs, const nb_kernels *ref, const nb_kernels *tables, int n_tables,
                 int64_t n, bool planted)
{
    for (int64_t seed = 1; seed <= n; seed++) {
        if (planted && runs[0].n_faults > 0)
            return;
        const scene s = random_scene((uint64_t)seed);
        if (scene_work(&s) < 1000000)
            check_scene(runs, ref, tables, n_tables, &s);
    }
    static const scene fixed[] = {
        /* SmolLM2, prefill across a split and decode */
        {NB_KV_F16, 3, 64, 3, 8, 252, 0, CHECK_RANDOM, 1, 0},
        {NB_KV_F32, 3, 64, 3, 8, 252, 0, CHECK_RANDOM, 2, 0},
        {NB_KV_F16, 3, 64, 3, 1, 1100, 0, CHECK_RANDOM, 3, 0},
        /* the largest head, deep, with and without a window */
        {NB_KV_F16, 1, 512, 1, 2, 700, 0, CHECK_RANDOM, 4, 0},
        {NB_KV_F32, 1, 256, 2, 2, 3000, 0, CHECK_RANDOM, 5, 0},
        {NB_KV_F16, 1, 64, 1, 24, 2040, 10, CHECK_RANDOM, 6, 0},
        {NB_KV_F32, 1, 16, 1, 24, 250, 3, CHECK_RANDOM, 7, 0},
        {NB_KV_BF16, 3, 64, 3, 8, 252, 0, CHECK_RANDOM, 8, 0},
        {NB_KV_INT8, 3, 64, 3, 8, 252, 0, CHECK_RANDOM, 9, 8},
        {NB_KV_INT8, 3, 64, 3, 1, 1100, 0, CHECK_RANDOM, 10, 8},
        {NB_KV_INT8, 1, 512, 1, 3, 700, 0, CHECK_RANDOM, 11, 16},
        {NB_KV_INT8, 1, 512, 1, 3, 700, 0, CHECK_EQUAL, 12, 16}, /* the largest sums */
        {NB_KV_INT8, 1, 128, 4, 6, 1000, 300, CHECK_RANDOM, 13, 16},
        {NB_KV_INT8, 1, 512, 1, 2, 300, 0, CHECK_RANDOM, 14, 0},
        /* many rows, of which some see what is not finite and some do not */
        {NB_KV_F32, 1, 64, 1, 24, 250, 0, CHECK_SPECIAL, 15, 0},
        {NB_KV_F16, 1, 64, 2, 12, 250, 7, CHECK_SPECIAL, 16, 0},
        {NB_KV_INT8, 1, 64, 3, 8, 250, 7, CHECK_SPECIAL, 17, 8},
        {NB_KV_INT8, 1, 80, 1, 24, 500, 0, CHECK_WIDE, 18, 8},
        {NB_KV_F16, 1, 64, 1, 48, 230, 40, CHECK_SPECIAL, 19, 0},
        {NB_KV_BF16, 1, 72, 16, 3, 250, 0, CHECK_SPECIAL, 20, 0},
        /* few rows and an odd end of the head, window and causal edge in one split */
        {NB_KV_F32, 2, 20, 1, 3, 290, 20, CHECK_SPECIAL, 21, 0},
        {NB_KV_BF16, 2, 136, 1, 6, 510, 300, CHECK_SPECIAL, 22, 0},
        {NB_KV_INT8, 2, 250, 2, 3, 770, 514, CHECK_SPECIAL, 23, 16},
        {NB_KV_INT4, 3, 64, 3, 8, 252, 0, CHECK_RANDOM, 30, 0},
        {NB_KV_INT4, 3, 64, 3, 1, 1100, 0, CHECK_RANDOM, 31, 0},
        {NB_KV_INT4, 1, 512, 1, 2, 300, 0, CHECK_WIDE, 32, 0},
        {NB_KV_INT4, 1, 80, 1, 24, 250, 7, CHECK_SPECIAL, 33, 0},
        {NB_KV_INT4_PLAIN, 1, 128, 4, 6, 250, 100, CHECK_SPECIAL, 34, 0},
        {NB_KV_INT4_PLAIN, 2, 250, 2, 3, 770, 514, CHECK_WIDE, 35, 0},
        {NB_KV_INT2, 3, 64, 3, 8, 252, 0, CHECK_RANDOM, 36, 0},
        {NB_KV_INT2, 3, 64, 3, 1, 1100, 0, CHECK_RANDOM, 37, 0},
        {NB_KV_INT2, 1, 512, 1, 2, 300, 0, CHECK_WIDE, 38, 0},
        {NB_KV_INT2, 1, 80, 1, 48, 250, 0, CHECK_SPECIAL, 39, 0},
        {NB_KV_INT2, 1, 33, 2, 24, 310, 160, CHECK_SPECIAL, 40, 0},
        {NB_KV_INT2, 2, 250, 2, 3, 770, 514, CHECK_RANDOM, 41, 0},
        {NB_KV_FP8, 3, 64, 3, 8, 252, 0, CHECK_RANDOM, 25, 0},
        {NB_KV_FP8, 3, 64, 3, 1, 1100, 0, CHECK_RANDOM, 24, 0},
        {NB_KV_FP8, 1, 512, 1, 2, 300, 0, CHECK_RANDOM, 27, 0},
        {NB_KV_FP8, 1, 80, 1, 24, 250, 7, CHECK_SPECIAL, 28, 0},
        {NB_KV_FP8, 2, 250, 2, 3, 770, 514, CHECK_WIDE, 29, 0},
    };
    const bool all = check_cases(2) == 2; /* else those that the reference is quick with */
    for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++)
        if ((!planted || runs[0].n_faults == 0) && (all || scene_work(&fixed[i]) < 1000000))
            check_scene(runs, ref, tables, n_tables, &fixed[i]);
}

static void variants_equal_the_reference(void **state)
{
    (void)state;
    nb_kernels ref, variants[N_ISA_MASKS];
    nb_kernels_init(&ref, NB_ISA_SCALAR);
    const int n_variants = isa_tables(variants);
    check_run runs[N_ISA_MASKS] = {0};
    for (int v = 0; v < n_variants; v++) {
        assert_true(variants[v].attention != ref.attention);
        assert_true(variants[v].kv_store != ref.kv_store);
        runs[v].name = nb_isa_name(variants[v].isa);
    }
    if (n_variants > 0)
        walk(runs, &ref, variants, n_variants, check_cases(500), false);
    for (int v = 0; v < n_variants; v++)
        check_finish(&runs[v]);
}

/* The reference itself gives the same bits for every grouping. */
static void the_reference_does_not_depend_on_grouping(void **state)
{
    (void)state;
    nb_kernels ref;
    nb_kernels_init(&ref, NB_ISA_SCALAR);
    check_run run = {.name = "reference"};
    walk(&run, &ref, &ref, 1, check_cases(100), false);
    check_finish(&run);
}

/* ---- planted faults ---- */

static nb_kernels good; /* what the broken ones are made from */

/* Every query of a call sees what the last one sees. */
static void sees_the_future(const nb_attn_args *args)
{
    nb_attn_args a = *args;
    for (int t = 0; t < args->n_q; t++) {
        a.n_q = 1;
        a.pos0 = args->pos0 + args->n_q - 1;
        a.q = args->q + t * args->ld;
        a.out = args->out + t * args->ld;
        good.attention(&a);
    }
}

static void window_off_by_one(const nb_attn_args *args)
{
    nb_attn_args a = *args;
    a.window -= a.window > 1; /* one more would be a crash, as it should */
    good.attention(&a);
}

/* The next float after the scale. */
static void scale_off(const nb_attn_args *args)
{
    nb_attn_args a = *args;
    a.scale = nextafterf(a.scale, 1);
    good.attention(&a);
}

/* Value (31, 7) of the first head is one bit off, as a wrong rounding of a tail would be. */
static void store_off(const nb_kv_view *kv, int64_t pos, int head, int n, const float *k,
                      const float *v)
{
    const int64_t dim = kv->head_dim;
    size_t at = (size_t)(31 * dim + 7) * (kv->format == NB_KV_F32 ? 4 : 2);
    if (kv->format == NB_KV_INT8)
        at = (size_t)(31 * dim + 7);
    else if (kv->format > NB_KV_INT8)
        at = 31 * (nb_kv_scales_at(kv->format, kv->head_dim) / 32) + 7;
    good.kv_store(kv, pos, head, n, k, v);
    uint8_t *page = kv->arena + (size_t)kv->table[pos / 32] * kv->page_bytes;
    if (kv->head_dim > 7 && pos % 32 == 31)
        page[kv->v_offset + at] ^= 1;
}

/* The scale of the keys at position 3 of each page of one head in one unit of its last place. */
static void key_scale_off(const nb_kv_view *kv, int64_t pos, int head, int n, const float *k,
                          const float *v)
{
    good.kv_store(kv, pos, head, n, k, v);
    uint8_t *page = kv->arena + (size_t)kv->table[pos / 32] * kv->page_bytes;
    if (kv->format >= NB_KV_INT8 && pos % 32 == 3)
        page[kv->k_offset + nb_kv_scales_at(kv->format, kv->head_dim) + 6] ^= 1;
}

/* 16-bit queries lose their low bits. */
static void narrow_queries(const nb_attn_args *args)
{
    nb_attn_args a = *args;
    a.q_bits = a.q_bits == 16 ? 8 : a.q_bits;
    good.attention(&a);
}

/* Float scores where the contract has integers. */
static void float_scores(const nb_attn_args *args)
{
    nb_attn_args a = *args;
    a.q_bits = 0;
    good.attention(&a);
}

/* The merge forgets the second split. */
static void merge_one_less(const nb_attn_args *args, const float *parts)
{
    const int64_t size = nb_attn_part_floats(args), n = nb_attn_n_splits(args);
    float *own = check_floats(n * size);
    memcpy(own, parts, (size_t)(n * size) * sizeof *own);
    for (int64_t i = 0; n > 1 && i < args->n_q * args->n_group; i++)
        own[size + i] = -1000;
    good.attn_merge(args, own);
    check_free(own);
}

/* A split's l is summed in another order: its last bit now and then. */
static void split_sum_off(const nb_attn_args *args, int64_t begin, int64_t end, float *parts)
{
    good.attn_splits(args, begin, end, parts);
    const int64_t n_rows = args->n_q * args->n_group;
    float *l = parts + begin * nb_attn_part_floats(args) + (n_rows + 15) / 16 * 16;
    l[n_rows - 1] = nextafterf(l[n_rows - 1], 0);
}

static void writes_before_scratch(const nb_attn_args *args)
{
    good.attention(args);
    args->scratch[-1] = 0;
}

static void planted_faults_are_caught(void **state)
{
    (void)state;
    nb_kernels ref;
    nb_kernels_init(&ref, NB_ISA_SCALAR);
    nb_kernels_init(&good, NB_ISA_ALL);
    static const struct {
        const char *name;
        nb_attention_fn *attention;
        nb_kv_store_fn *kv_store;
        nb_attn_splits_fn *splits;
        nb_attn_merge_fn *merge;
    } faults[] = {
        {.name = "sees the future", .attention = sees_the_future},
        {.name = "window off by one", .attention = window_off_by_one},
        {.name = "scale off by a bit", .attention = scale_off},
        {.name = "narrow queries", .attention = narrow_queries},
        {.name = "float scores", .attention = float_scores},
        {.name = "a cell off by a bit", .kv_store = store_off},
        {.name = "a key's scale off by a bit", .kv_store = key_scale_off},
        {.name = "writes before its scratch", .attention = writes_before_scratch},
        {.name = "a split is forgotten", .merge = merge_one_less},
        {.name = "a sum off by a bit", .splits = split_sum_off},
    };
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
        nb_kernels broken = good;
        if (faults[i].attention != NULL)
            broken.attention = faults[i].attention;
        if (faults[i].kv_store != NULL)
            broken.kv_store = faults[i].kv_store;
        if (faults[i].splits != NULL)
            broken.attn_splits = faults[i].splits;
        if (faults[i].merge != NULL)
            broken.attn_merge = faults[i].merge;
        check_run run = {.name = faults[i].name};
        walk(&run, &ref, &broken, 1, 60, true);
        check_caught(&run);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(variants_equal_the_reference),
        cmocka_unit_test(the_reference_does_not_depend_on_grouping),
        cmocka_unit_test(planted_faults_are_caught),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
