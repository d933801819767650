/* The definition of the paged cache and of attention over it (A5, A8): one query head at a time,
 * one cell at a time, in the contract's order. Scalar, never optimised.
 *
 * Scratch: the scores of one split, then q', then m_j, l_j, o_j of every split of one query head;
 * the vector variants keep them for NB_ATTN_ROWS heads at once (attn_body.h). */
#include "kernel/kernel.h"
#include "kernel/attn_scratch.h"
#include "kernel/math.h"
#include "numeric/minifloat.h"

#include <assert.h>

int64_t nb_attn_scratch_floats(int head_dim, int64_t n_positions)
{
    return nb_attn_scratch(head_dim, n_positions).total;
}

static nb_float_type cell_type(const nb_kv_view *kv)
{
    return kv->format == NB_KV_F32 ? NB_F32 : kv->format == NB_KV_BF16 ? NB_BF16 : NB_F16;
}

/* Index, in cells, of key (d, p) and value (p, d) from the start of a head's part of a page. */
static int64_t key_cell(int64_t d, int64_t p)
{
    return d * NB_KV_PAGE + p % NB_KV_PAGE;
}

static int64_t value_cell(const nb_kv_view *kv, int64_t d, int64_t p)
{
    return p % NB_KV_PAGE * kv->head_dim + d;
}

/* The part of p's page that holds the keys (offset k_offset) or values (v_offset) of a head. */
static void *page_of(const nb_kv_view *kv, size_t offset, int head, int64_t p)
{
    return kv->arena + (size_t)kv->table[p / NB_KV_PAGE] * kv->page_bytes + offset +
           (size_t)head * kv->head_bytes;
}

static void kv_store_ref(const nb_kv_view *kv, int64_t pos, int first, int n_heads, const float *k,
                         const float *v)
{
    const nb_float_type cell = cell_type(kv);
    for (int head = first; head < first + n_heads; head++, k += kv->head_dim, v += kv->head_dim) {
        void *keys = page_of(kv, kv->k_offset, head, pos);
        void *values = page_of(kv, kv->v_offset, head, pos);
        for (int64_t d = 0; d < kv->head_dim; d++) {
            nb_float_put(keys, cell, key_cell(d, pos), k[d]);
            nb_float_put(values, cell, value_cell(kv, d, pos), v[d]);
        }
    }
}

/* A2 over the head dimension. */
static float score_of(const nb_attn_args *a, const float *q, int64_t p)
{
    const void *keys = page_of(&a->kv, a->kv.k_offset, a->kv_head, p);
    float sum = 0;
    for (int64_t begin = 0; begin < a->kv.head_dim; begin += NB_CHUNK_K) {
        float chunk = 0;
        for (int64_t d = begin; d < a->kv.head_dim && d < begin + NB_CHUNK_K; d++)
            chunk = fmaf(q[d], nb_float_get(keys, cell_type(&a->kv), key_cell(d, p)), chunk);
        sum += chunk;
    }
    return sum;
}

/* A2 over the visible cells [begin, end) of the split at `first`, element d. */
static float weighted_value(const nb_attn_args *a, const float *e, int64_t first, int64_t begin,
                            int64_t end, int64_t d)
{
    float sum = 0;
    for (int64_t cut = first; cut < end; cut += NB_CHUNK_K) {
        float chunk = 0;
        for (int64_t p = cut < begin ? begin : cut; p < end && p < cut + NB_CHUNK_K; p++) {
            const void *values = page_of(&a->kv, a->kv.v_offset, a->kv_head, p);
            const float v = nb_float_get(values, cell_type(&a->kv), value_cell(&a->kv, d, p));
            chunk = fmaf(e[p - first], v, chunk);
        }
        sum += chunk;
    }
    return sum;
}

/* A1 over the cells of a split: cell c in lane c mod 16. */
static float sum_of(const float *e, int64_t begin, int64_t end)
{
    float lane[16] = {0};
    for (int64_t c = begin; c < end; c++)
        lane[c % 16] += e[c];
    for (int half = 8; half >= 1; half /= 2)
        for (int j = 0; j < half; j++)
            lane[j] += lane[j + half];
    return lane[0];
}

/* One query at position `pos`: m_j, l_j, o_j of each split with something visible, then the merge.
 */
static void attend(const nb_attn_args *a, int64_t pos, const float *q, float *out)
{
    const int64_t head_dim = a->kv.head_dim;
    const nb_attn_room room = nb_attn_scratch((int)head_dim, pos + 1);
    float *e = a->scratch + room.scores, *scaled = a->scratch + room.q;
    float *m = a->scratch + room.m, *l = a->scratch + room.l, *o = a->scratch + room.o;
    const int64_t visible = a->window > 0 && a->window <= pos ? pos + 1 - a->window : 0;

    for (int64_t d = 0; d < head_dim; d++)
        scaled[d] = q[d] * a->scale;
    float max = -INFINITY;
    for (int64_t j = visible / NB_KV_SPLIT; j <= pos / NB_KV_SPLIT; j++) {
        const int64_t first = j * NB_KV_SPLIT;
        const int64_t begin = visible > first ? visible : first;
        const int64_t end = pos + 1 < first + NB_KV_SPLIT ? pos + 1 : first + NB_KV_SPLIT;
        m[j] = -INFINITY;
        for (int64_t p = begin; p < end; p++) {
            e[p - first] = score_of(a, scaled, p);
            m[j] = e[p - first] > m[j] ? e[p - first] : m[j];
        }
        for (int64_t p = begin; p < end; p++)
            e[p - first] = nb_expf(e[p - first] - m[j]);
        l[j] = sum_of(e, begin - first, end - first);
        for (int64_t d = 0; d < head_dim; d++)
            o[j * head_dim + d] = weighted_value(a, e, first, begin, end, d);
        max = m[j] > max ? m[j] : max;
    }

    for (int64_t d = 0; d < head_dim; d++) {
        float L = 0, O = 0;
        for (int64_t j = visible / NB_KV_SPLIT; j <= pos / NB_KV_SPLIT; j++) {
            const float w = nb_expf(m[j] - max);
            L = fmaf(l[j], w, L);
            O = fmaf(o[j * head_dim + d], w, O);
        }
        out[d] = O / L;
    }
}

static void attention_ref(const nb_attn_args *a)
{
    assert(a->n_q * a->n_group <= NB_ATTN_ROWS && a->kv.head_dim <= NB_ATTN_MAX_DIM);
    for (int t = 0; t < a->n_q; t++) {
        for (int j = 0; j < a->n_group; j++) {
            const int64_t head = (int64_t)a->kv_head * a->n_group + j;
            const int64_t at = t * a->ld + head * a->kv.head_dim;
            attend(a, a->pos0 + t, a->q + at, a->out + at);
        }
    }
}

void nb_kernels_ref_attn(nb_kernels *k)
{
    k->kv_store = kv_store_ref;
    k->attention = attention_ref;
}
