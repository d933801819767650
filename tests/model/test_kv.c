/* The paged KV cache: no page is lost, none belongs to two sequences, whatever happens in whatever
 * order. */
#include "support/golden.h"
#include "support/must.h"

#include "base/rng.h"
#include "model/kv.h"
#include "numeric/minifloat.h"

#include <stdlib.h>
#include <string.h>

static const nb_config config = {.n_layers = 3, .n_kv_heads = 2, .head_dim = 16};

/* The same for the pages of `recent`, which a sequence has for those of its pages that are not
 * sealed. */
static void check_recent(const nb_kv_pool *pool, const nb_kv_seq *seqs, int64_t n_seqs)
{
    uint8_t *seen = calloc(1, (size_t)pool->n_pages);
    int64_t n = pool->n_recent_free;
    for (int64_t i = 0; i < pool->n_recent_free; i++)
        assert_int_equal(seen[pool->free_recent[i]]++, 0);
    for (int64_t s = 0; s < n_seqs; s++) {
        for (int64_t i = 0; i < seqs[s].n_table; i++) {
            if (nb_kv_sees_sealed(seqs[s].n_sealed, i))
                continue;
            n++;
            assert_in_range(seqs[s].recent[i], 0, pool->n_pages - 1);
            assert_int_equal(seen[seqs[s].recent[i]]++, 0);
        }
    }
    assert_int_equal(n, pool->n_pages);
    free(seen);
}

/* Every page is in the stack or in one table, once. */
static void check_pages(const nb_kv_pool *pool, const nb_kv_seq *seqs, int64_t n_seqs)
{
    uint8_t *seen = calloc(1, (size_t)pool->n_pages);
    int64_t n = 0;
    for (int64_t i = 0; i < pool->n_free; i++, n++) {
        assert_in_range(pool->free_pages[i], 0, pool->n_pages - 1);
        assert_int_equal(seen[pool->free_pages[i]]++, 0);
    }
    for (int64_t s = 0; s < n_seqs; s++) {
        assert_true(seqs[s].n_table <= seqs[s].cap);
        assert_true(seqs[s].n <= seqs[s].n_table * NB_KV_PAGE);
        for (int64_t i = 0; i < seqs[s].n_table; i++, n++) {
            assert_in_range(seqs[s].table[i], 0, pool->n_pages - 1);
            assert_int_equal(seen[seqs[s].table[i]]++, 0);
        }
    }
    assert_int_equal(n, pool->n_pages);
    free(seen);
    if (nb_kv_bits(pool->cell) > 0)
        check_recent(pool, seqs, n_seqs);
}

static int64_t pick(uint64_t index, int64_t n)
{
    uint32_t w[4];
    nb_philox(11, 0, index, w);
    return (int64_t)(((uint64_t)w[1] << 32 | w[0]) % (uint64_t)n);
}

/* Many steps of growing, shrinking, ending and beginning, against a plain model of it. */
static void grow_and_shrink(nb_kv_format format, uint64_t n_ops)
{
    enum { N_SEQS = 7, N_PAGES = 40, CAP = 400 };
    nb_err err;
    nb_kv_pool pool;
    must(nb_kv_pool_init(&pool, &config, format, N_PAGES, &err), &err);
    nb_kv_seq seqs[N_SEQS];
    int64_t reserved[N_SEQS] = {0}, n_refused = 0, n_full = 0, n_forgot = 0;
    for (int s = 0; s < N_SEQS; s++)
        must(nb_kv_seq_init(&seqs[s], &pool, CAP, &err), &err);
    for (uint64_t op = 0; op < n_ops; op++) {
        nb_kv_seq *q = &seqs[pick(4 * op, N_SEQS)];
        int64_t *r = &reserved[q - seqs];
        switch (pick(4 * op + 1, 8)) {
        case 0: { /* shorter */
            int64_t n = pick(4 * op + 2, CAP);
            const int64_t before = q->n;
            if (nb_kv_n_sealed(format, n) < q->n_sealed) { /* what it would need is gone */
                nb_kv_seq_truncate(q, n);
                n = 0;
                n_forgot++;
            }
            nb_kv_seq_truncate(q, n);
            *r = nb_kv_pages_for(n) < nb_kv_pages_for(*r) ? n : *r;
            assert_int_equal(q->n, n < before ? n : before);
            break;
        }
        case 1: /* another sequence */
            nb_kv_seq_free(q);
            assert_null(q->table);
            must(nb_kv_seq_init(q, &pool, CAP, &err), &err);
            *r = 0;
            break;
        default: { /* longer */
            const int64_t n = q->n + pick(4 * op + 2, 70), free_before = pool.n_free;
            const int64_t more = nb_kv_pages_for(n) - nb_kv_pages_for(*r);
            const nb_kv_seq was = *q;
            const nb_status s = nb_kv_seq_reserve(q, n, &err);
            const bool too_long = nb_kv_pages_for(n) > nb_kv_pages_for(CAP);
            if (too_long || more > free_before) {
                assert_int_equal(s, NB_LIMIT);
                assert_memory_equal(&was, q, sizeof was);
                assert_int_equal(pool.n_free, free_before);
                n_refused += too_long;
                n_full += !too_long;
            } else {
                assert_int_equal(s, NB_OK);
                *r = n > *r ? n : *r;
                q->n = n;
            }
        }
        }
        assert_int_equal(q->n_table, nb_kv_pages_for(*r));
        if (op % 64 == 0)
            check_pages(&pool, seqs, N_SEQS);
    }
    assert_true(n_refused > 100 && n_full > 1000);
    assert_int_equal(n_forgot > 100, nb_kv_bits(format) > 0);
    for (int s = 0; s < N_SEQS; s++)
        nb_kv_seq_free(&seqs[s]);
    check_pages(&pool, NULL, 0);
    assert_int_equal(pool.n_free, N_PAGES);
    nb_kv_pool_free(&pool);
    assert_int_equal(nb_alloc_live(), 0);
}

static void pages_are_neither_lost_nor_shared(void **state)
{
    (void)state;
    grow_and_shrink(NB_KV_F16, 1000000);
    grow_and_shrink(NB_KV_INT2, 200000);
}

/* Packed formats keep what a query at the sequence's end sees unsealed, and what one at the pinned
 * length would: truncating to either forgets nothing else, and to less forgets everything. */
static void recent_positions_are_kept(void **state)
{
    (void)state;
    nb_err err;
    nb_kv_pool pool;
    must(nb_kv_pool_init(&pool, &config, NB_KV_INT2, 20, &err), &err);
    nb_kv_seq q;
    must(nb_kv_seq_init(&q, &pool, 640, &err), &err);
    int64_t most = 0;
    for (int64_t n = 1; n <= 600; n++) {
        must(nb_kv_seq_reserve(&q, n, &err), &err);
        assert_int_equal(q.n_sealed, nb_kv_n_sealed(NB_KV_INT2, q.n));
        q.n = n;
        const int64_t n_recent = pool.n_recent - pool.n_recent_free;
        most = n_recent > most ? n_recent : most;
    }
    assert_int_equal(most, NB_KV_FIRST + NB_KV_RECENT / NB_KV_PAGE + 1);
    nb_kv_seq_truncate(&q, 599);
    assert_int_equal(q.n, 599);
    q.pinned = 300;
    nb_kv_seq_truncate(&q, 300);
    assert_int_equal(q.n, 0); /* pinned too late */
    assert_int_equal(q.n_table, 0);
    for (int64_t n = 100; n <= 600; n += 50) {
        must(nb_kv_seq_reserve(&q, n, &err), &err);
        q.n = n;
    }
    nb_kv_seq_truncate(&q, 300);
    assert_int_equal(q.n, 300);
    nb_kv_seq_truncate(&q, 300 - NB_KV_PAGE);
    assert_int_equal(q.n, 0);
    assert_int_equal(pool.n_recent_free, 20);
    nb_kv_seq_free(&q);
    nb_kv_pool_free(&pool);
    assert_int_equal(nb_alloc_live(), 0);
}

static void limits_have_their_words(void **state)
{
    (void)state;
    nb_err err;
    nb_kv_pool pool;
    must(nb_kv_pool_init(&pool, &config, NB_KV_F32, 3, &err), &err);
    nb_kv_seq a, b;
    must(nb_kv_seq_init(&a, &pool, 64, &err), &err);
    must(nb_kv_seq_init(&b, &pool, 1000, &err), &err);
    must(nb_kv_seq_reserve(&a, 64, &err), &err);
    assert_int_equal(nb_kv_seq_reserve(&a, 65, &err), NB_LIMIT);
    assert_string_equal(err.text, "65 positions do not fit in a context of 64");
    assert_int_equal(nb_kv_seq_reserve(&b, 33, &err), NB_LIMIT);
    assert_string_equal(err.text, "the KV cache is full: 2 pages are needed, 1 are free");
    must(nb_kv_seq_reserve(&b, 32, &err), &err);
    must(nb_kv_seq_reserve(&b, 1, &err), &err); /* never less */
    assert_int_equal(b.n_table, 1);
    nb_kv_seq_free(&b);
    nb_kv_seq_free(&b); /* twice is fine */
    nb_kv_seq_free(&a);
    nb_kv_pool_free(&pool);
    nb_kv_pool_free(&pool);
    assert_int_equal(nb_kv_pool_init(&pool, &config, NB_KV_F32, (int64_t)1 << 40, &err), NB_LIMIT);
    assert_string_equal(err.text, "a KV cache of 1099511627776 pages");
    assert_int_equal(nb_alloc_live(), 0);
}

/* A cache that no machine has room for is refused, not attempted: the product would wrap. */
static void sizes_do_not_wrap(void **state)
{
    (void)state;
    nb_err err;
    const nb_config huge = {.n_layers = 4096, .n_kv_heads = 4096, .head_dim = 512};
    nb_kv_pool pool;
    assert_int_equal(nb_kv_pool_init(&pool, &huge, NB_KV_F32, INT32_MAX, &err), NB_MEMORY);
    assert_memory_equal(err.text, "the KV cache: ", 14);
    assert_int_equal(nb_alloc_live(), 0);
}

/* The value of a cell, from where kernel.h says it lies. */
static float cell(const nb_kv_view *v, bool key, int64_t head, int64_t p, int64_t d)
{
    const uint8_t *at = v->arena + (size_t)v->table[p / 32] * v->page_bytes +
                        (key ? v->k_offset : v->v_offset) + (size_t)head * v->head_bytes;
    const int64_t dim = v->head_dim, i = key ? d * 32 + p % 32 : p % 32 * dim + d;
    static const nb_float_type types[] = {NB_F32, NB_F16, NB_BF16};
    const float scale = nb_float_get(at + nb_kv_scales_at(v->format, v->head_dim), NB_F16, p % 32);
    if (v->format == NB_KV_FP8) /* heads of 16 need no padding */
        return nb_e4m3_to_f32(at[i]) * scale;
    if (v->format != NB_KV_INT8)
        return nb_float_get(at, types[v->format], i);
    const int64_t panel = p % 32 / 16 * (16 * dim), four = d / 4 * 64 + p % 16 * 4;
    const int code = key ? at[panel + four + d % 4] - 128 : (int8_t)at[i];
    return (float)code * scale;
}

static void names_find_their_format(void **state)
{
    (void)state;
    static const char *const names[NB_KV_N_FORMATS] = {"f32", "f16",  "bf16",       "int8",
                                                       "fp8", "int4", "int4_plain", "int2"};
    for (int i = 0; i < NB_KV_N_FORMATS; i++) {
        nb_kv_format format = (nb_kv_format)((i + 1) % NB_KV_N_FORMATS);
        assert_true(nb_kv_format_named(names[i], &format));
        assert_int_equal(format, i);
        assert_string_equal(nb_kv_format_name(format), names[i]);
    }
    nb_kv_format other = NB_KV_F32;
    assert_true(nb_kv_format_named("fp8_e4m3", &other));
    assert_int_equal(other, NB_KV_FP8);
    static const char *const others[] = {"", "f", "F16", "f16 ", "int", "int88", "auto", "i8"};
    for (int i = 0; i < 8; i++) {
        nb_kv_format format = NB_KV_BF16;
        assert_false(nb_kv_format_named(others[i], &format));
        assert_int_equal(format, NB_KV_BF16);
    }
}

/* Cells of different layers, heads and positions are different bytes inside the arena: whatever is
 * stored last anywhere does not change what was stored before. */
static void cells_do_not_overlap(void **state)
{
    (void)state;
    enum { N = 100 };
    nb_err err;
    for (int type = 0; type < NB_KV_N_FORMATS; type++) {
        if (nb_kv_bits((nb_kv_format)type) > 0) /* test_packed_cells.c has those */
            continue;
        nb_kernels k;
        nb_kernels_init(&k, 0);
        nb_kv_pool pool;
        must(nb_kv_pool_init(&pool, &config, (nb_kv_format)type, 2 * nb_kv_pages_for(N), &err),
             &err);
        nb_kv_seq seqs[2];
        for (int s = 0; s < 2; s++)
            must(nb_kv_seq_init(&seqs[s], &pool, N, &err), &err);
        for (int64_t p = 0; p < N; p++) { /* so that their pages alternate */
            must(nb_kv_seq_reserve(&seqs[0], p + 1, &err), &err);
            must(nb_kv_seq_reserve(&seqs[1], p + 1, &err), &err);
        }
        const int64_t width = config.n_kv_heads * config.head_dim;
        float key[32], value[32];
        for (int pass = 0; pass < 2; pass++) {
            int64_t id = 0;
            for (int s = 0; s < 2; s++) {
                for (int64_t layer = 0; layer < config.n_layers; layer++) {
                    const nb_kv_view v = nb_kv_seq_view(&seqs[s], layer);
                    for (int64_t p = 0; p < N; p++, id++) {
                        for (int64_t i = 0; i < width; i++) {
                            const int64_t range = type == NB_KV_FP8 ? 16 : 119; /* exact ones */
                            key[i] = (float)((id * 7 + i * 3) % range);
                            value[i] = -(float)((id * 5 + i * 11) % range);
                            if (i % config.head_dim == 0) /* then the scales of codes are 1 */
                                key[i] = value[i] = type == NB_KV_FP8 ? 448 : 127;
                        }
                        if (pass == 0) {
                            k.kv_store(&v, p, 0, (int)config.n_kv_heads, key, value);
                            continue;
                        }
                        for (int64_t h = 0; h < config.n_kv_heads; h++) {
                            for (int64_t d = 0; d < config.head_dim; d++) {
                                const int64_t i = h * config.head_dim + d;
                                assert_true(cell(&v, true, h, p, d) == key[i]);
                                assert_true(cell(&v, false, h, p, d) == value[i]);
                            }
                        }
                    }
                }
            }
        }
        assert_int_equal((int64_t)pool.page_bytes,
                         NB_KV_PAGE * nb_config_kv_bytes(&config, (nb_kv_format)type));
        for (int s = 0; s < 2; s++)
            nb_kv_seq_free(&seqs[s]);
        nb_kv_pool_free(&pool);
    }
}

static void making_one_survives_every_allocation_failure(void **state)
{
    (void)state;
    nb_err err;
    for (int64_t n = 1; n <= 7; n++) {
        nb_kv_pool pool;
        nb_kv_seq seq = {0};
        nb_alloc_fail_at(n);
        nb_status s = nb_kv_pool_init(&pool, &config, NB_KV_INT2, 10, &err);
        if (s == NB_OK)
            s = nb_kv_seq_init(&seq, &pool, 100, &err);
        nb_alloc_fail_at(0);
        assert_int_equal(s, n == 7 ? NB_OK : NB_MEMORY);
        nb_kv_seq_free(&seq);
        nb_kv_pool_free(&pool);
        assert_int_equal(nb_alloc_live(), 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pages_are_neither_lost_nor_shared),
        cmocka_unit_test(recent_positions_are_kept),
        cmocka_unit_test(limits_have_their_words),
        cmocka_unit_test(sizes_do_not_wrap),
        cmocka_unit_test(names_find_their_format),
        cmocka_unit_test(cells_do_not_overlap),
        cmocka_unit_test(making_one_survives_every_allocation_failure),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
