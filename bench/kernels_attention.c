/* Attention of the query heads of one KV head over its cache, one token or a tile of a prompt, at
 * several depths and with every number type of cells; and storing into the cache. */
#include "kernels.h"

#include <math.h>
#include <string.h>

#define HEAD_DIM 64
#define N_GROUP  3

typedef struct {
    const bench *b;
    nb_kv_view kv;
    nb_attn_args args;
    int32_t *table;
    float *k, *v, *q, *out;
    int64_t n;
} cache;

static void fill(cache *c, const bench *b, nb_kv_format format, int64_t n)
{
    *c = (cache){.b = b, .n = n};
    const int64_t n_pages = (n + NB_KV_PAGE - 1) / NB_KV_PAGE;
    const size_t head_bytes = nb_kv_head_bytes(format, HEAD_DIM);
    const size_t recent_bytes = nb_kv_head_bytes(NB_KV_F16, HEAD_DIM);
    c->table = bench_alloc(n_pages, sizeof *c->table);
    for (int64_t p = 0; p < n_pages; p++) /* not in order, as in a cache that has been used */
        c->table[p] = (int32_t)(n_pages - 1 - p);
    c->kv = (nb_kv_view){.arena = bench_alloc(n_pages, 2 * head_bytes),
                         .page_bytes = 2 * head_bytes,
                         .v_offset = head_bytes,
                         .head_bytes = head_bytes,
                         .table = c->table,
                         .format = format,
                         .n_kv_heads = 1,
                         .head_dim = HEAD_DIM};
    if (nb_kv_bits(format) > 0)
        c->kv.recent = (nb_kv_pages){.arena = bench_alloc(n_pages, 2 * recent_bytes),
                                     .page_bytes = 2 * recent_bytes,
                                     .v_offset = recent_bytes,
                                     .head_bytes = recent_bytes,
                                     .table = c->table};
    c->k = bench_alloc(HEAD_DIM, sizeof *c->k);
    c->v = bench_alloc(HEAD_DIM, sizeof *c->v);
    c->q = bench_alloc(NB_ATTN_ROWS * HEAD_DIM, sizeof *c->q);
    c->out = bench_alloc(NB_ATTN_ROWS * HEAD_DIM, sizeof *c->out);
    for (int64_t pos = 0; pos < n; pos++) {
        for (int d = 0; d < HEAD_DIM; d++) {
            c->k[d] = bench_random();
            c->v[d] = bench_random();
        }
        b->ref.kv_store(&c->kv, pos, 0, 1, c->k, c->v);
    }
    for (int i = 0; i < NB_ATTN_ROWS * HEAD_DIM; i++)
        c->q[i] = bench_random();
}

static void drop(cache *c)
{
    nb_free(c->table);
    nb_free(c->kv.arena);
    nb_free(c->kv.recent.arena);
    nb_free(c->k);
    nb_free(c->v);
    nb_free(c->q);
    nb_free(c->out);
}

static void run_attention(void *context)
{
    const cache *c = context;
    c->b->k.attention(&c->args);
}

static void run_store(void *context)
{
    const cache *c = context;
    for (int64_t pos = 0; pos < NB_KV_PAGE; pos++)
        c->b->k.kv_store(&c->kv, pos, 0, 1, c->k, c->v);
}

static void time_attention(cache *c, int n_q, int q_bits)
{
    const bench *b = c->b;
    const int n_rows = n_q * N_GROUP;
    float *scratch = bench_alloc(nb_attn_scratch_floats(HEAD_DIM, c->n), sizeof *scratch);
    c->args = (nb_attn_args){.q = c->q,
                             .out = c->out,
                             .ld = N_GROUP * HEAD_DIM,
                             .n_q = n_q,
                             .n_group = N_GROUP,
                             .pos0 = c->n - n_q,
                             .scale = 1 / sqrtf(HEAD_DIM),
                             .q_bits = q_bits,
                             .kv = c->kv,
                             .scratch = scratch};
    float want[NB_ATTN_ROWS * HEAD_DIM];
    b->ref.attention(&c->args);
    memcpy(want, c->out, sizeof want);
    memset(c->out, 0, sizeof want);
    run_attention(c);
    if (memcmp(want, c->out, (size_t)(n_rows * HEAD_DIM) * sizeof *want) != 0)
        bench_die("attention over %s: not what the reference gives",
                  nb_kv_format_name(c->kv.format));
    const double seconds = bench_time(run_attention, c);
    /* A multiply and an add for each dimension, over keys and over values. */
    const double half = 2.0 * HEAD_DIM * n_rows * (double)c->n;
    const double bytes = (double)c->n * 2 * (double)c->kv.head_bytes / NB_KV_PAGE;
    const work cost = {.int8_ops = q_bits == 0 ? 0 : half * q_bits / 8,
                       .fma_ops = q_bits == 0 ? 2 * half : half,
                       .bytes = bytes,
                       .footprint = bytes};
    char what[64], bits[16] = "";
    if (q_bits != 0)
        snprintf(bits, sizeof bits, " i%d", q_bits);
    snprintf(what, sizeof what, "%s%s, %d token%s at %lld", nb_kv_format_name(c->kv.format), bits,
             n_q, n_q == 1 ? "" : "s", (long long)c->n);
    bench_line(b, &b->one, "attention", what, seconds, &cost);
    nb_free(scratch);
}

void bench_attention(const bench *b)
{
    static const nb_kv_format formats[] = {NB_KV_F32, NB_KV_F16,  NB_KV_BF16, NB_KV_INT8,
                                           NB_KV_FP8, NB_KV_INT4, NB_KV_INT2};
    static const int64_t depths[] = {128, 1024, 4096, 32768};
    for (size_t f = 0; f < sizeof formats / sizeof *formats; f++) {
        for (size_t d = 0; d < sizeof depths / sizeof *depths; d++) {
            cache c;
            fill(&c, b, formats[f], depths[d]);
            for (int n_q = 1; n_q <= NB_ATTN_ROWS / N_GROUP; n_q += NB_ATTN_ROWS / N_GROUP - 1) {
                time_attention(&c, n_q, 0);
                if (formats[f] == NB_KV_INT8) {
                    time_attention(&c, n_q, 8);
                    time_attention(&c, n_q, 16);
                }
            }
            if (d == 0) {
                const double seconds = bench_time(run_store, &c) / NB_KV_PAGE;
                const double bytes =
                    2 * HEAD_DIM * sizeof(float) + 2 * (double)c.kv.head_bytes / NB_KV_PAGE;
                const work cost = {.bytes = bytes, .footprint = NB_KV_PAGE * bytes};
                bench_line(b, &b->one, "kv_store", nb_kv_format_name(formats[f]), seconds, &cost);
            }
            drop(&c);
        }
    }
}
