/* The one dispatch table of everything fast, with a contract on every slot.
 *
 * Every slot is filled with the scalar reference (ref_*.c), then overridden by what the CPU has and
 * the mask allows. All variants of a slot give the same bits: each result is the expression of the
 * arithmetic contract (docs/numerics.md; A0-A12), which depends on the problem only.
 *
 * Kernels are single-threaded functions over a range; they allocate nothing, read nothing outside
 * their arguments and handle every tail themselves. They run under the floating-point environment
 * of base/fpenv.h (the pool sets it). Pointers need the alignment of their type only. */
#ifndef NB_KERNEL_KERNEL_H
#define NB_KERNEL_KERNEL_H

#include "kernel/back.h"
#include "kernel/cells.h"
#include "kernel/cpu.h"
#include "numeric/minifloat.h"

/* ---- A2, A3: matrix products on packed weights ---- */

#define NB_PANEL_ROWS   16 /* weight rows interleaved in a panel: one 512-bit register of outputs */
#define NB_TILE_MAX     12 /* tokens in a register tile */
#define NB_ROWS_MAX     16 /* tokens in a tile of rows */
#define NB_ROWS_BLOCK   640   /* columns that gemm_rows unpacks at once */
#define NB_CHUNK_K      128   /* A2: columns in one chain of FMAs */
#define NB_SEG_MAX      65536 /* A3: columns in one integer sum */
#define NB_GEMM_SCRATCH (4 * NB_CHUNK_K * NB_PANEL_ROWS) /* floats: chunks of 4 panels */

typedef enum {
    NB_PANEL_F32,
    NB_PANEL_BF16,
    NB_PANEL_F16,
    NB_PANEL_U4,
    NB_PANEL_T4,
    NB_PANEL_U8,
    NB_PANEL_L4,
    NB_PANEL_E4M3,
    NB_PANEL_E5M2
} nb_panel_kind;

/* A matrix packed for the kernels, in panels of 16 rows (missing rows of the last are zero).
 *
 * Plain kinds: panel p, column k, row i: element [(p * n_cols + k) * 16 + i].
 * U8: panel p is k_pad / 4 groups of 64 bytes; byte 4 * i + j of group g is column 4 * g + j of
 *     row i, stored as code + 128.
 * U4: panel p is k_pad / 8 groups of 64 bytes; byte 4 * i + j of group g holds column 8 * g + j of
 *     row i in its low nibble and column 8 * g + 4 + j in its high one, stored as code - code_lo.
 * T4: as U4, but a nibble is an index, and table[index] is the stored code, + 128 as in U8.
 * L4: as U4, but a nibble is an index of levels: value = fl(s * levels[index]).
 * E4M3, E5M2: panel p, column k, row i: byte [(p * n_cols + k) * 16 + i], value = fl(s * number).
 * k_pad is n_cols rounded up to a multiple of 8; padding codes are 0.
 * scales, zeros, mins: [panel][segment][16]. value = s * (u - z) + m, u the stored code. */
typedef struct {
    nb_panel_kind kind;
    int64_t n_rows, n_cols, k_pad, n_panels;
    int64_t panel_bytes; /* of codes */
    uint8_t *codes;
    /* codes of all kinds */
    uint8_t table[16];       /* T4 */
    float levels[16];        /* L4 */
    int64_t seg_len, n_segs; /* columns that share a scale */
    nb_float_type scale_type;
    void *scales;
    int32_t zero_const; /* z of every segment when zeros is NULL */
    int16_t *zeros;     /* or one for each row and segment */
    void *mins;         /* as scales; NULL: all zero */
    bool borrowed;      /* the arrays belong to somebody else */
} nb_panels;

/* Whether codes are integers, and A3 can be done with them. */
static inline bool nb_panels_has_ints(const nb_panels *w)
{
    return w->n_segs > 0 && w->kind < NB_PANEL_L4;
}
static inline bool nb_panels_is_fp8(const nb_panels *w)
{
    return w->kind == NB_PANEL_E4M3 || w->kind == NB_PANEL_E5M2;
}

/* Activations of up to NB_TILE_MAX tokens, packed so that each is a broadcast memory operand.
 * float: element [k * n_tok + t].
 * int:   plane [k_pad / 4][n_tok][4] of int8, columns past n_cols are 0; `lo` is NULL in mode i8;
 *        x = code * scale with code = hi (i8) or 256 * hi + lo (i16).
 *        scale [n_x_segs][n_tok], xsum [n_segs][n_tok]: sums of codes over each joint segment,
 *        start [n_segs][n_tok] = -zero_const * xsum (modulo 2^32), what an integer sum of stored
 *        codes starts from when its weight has one zero point; NULL when zero_const is 0.
 * rows:  what a unit that multiplies tiles of rows takes (gemm_rows): up to NB_ROWS_MAX tokens and
 *        planes [n_tok][row_stride], row_stride = k_pad rounded up to 64; the rest as in int. */
typedef struct {
    int n_tok;
    bool rows;
    int64_t n_cols, k_pad, row_stride;
    float *f;
    int8_t *hi, *lo;
    float *scale;
    int32_t *xsum, *start;
    int64_t x_seg_len; /* columns that share an activation scale */
    int64_t seg_len;   /* joint segment: min(x_seg_len, weight seg_len, NB_SEG_MAX) */
    int32_t zero_const;
    float given; /* int: not 0: rows come as codes already, whole numbers in [-127, 127], and this
                    is the scale of all of them */
} nb_xtile;

/* y[t * ldy + r] for rows r of panels [begin, end), tokens t of the tile: A2, weights dequantized
 * to binary32 first where they are codes (fl(s * (u - z)), or fma(s, u - z, m) with mins).
 * `scratch` holds NB_GEMM_SCRATCH floats. The tiles are all of x's n_tiles, tile i
 * writing from y + tile_first[i] * ldy, so that a dequantized chunk serves all tokens. */
typedef void nb_gemm_f_fn(float *y, int64_t ldy, const nb_panels *w, int64_t begin, int64_t end,
                          const nb_xtile *tiles, const int64_t *tile_first, int64_t n_tiles,
                          float *scratch);
/* The same by A3: per joint segment isum = sum of (u - z) * x exactly in int32, then
 * acc = fma((float)isum, fl(s_w * s_x), acc), then with mins
 * acc = fma(m, fl((float)xsum * s_x), acc). Segments ascending from acc = +0. */
typedef void nb_gemm_i_fn(float *y, int64_t ldy, const nb_panels *w, int64_t begin, int64_t end,
                          const nb_xtile *tile);
/* The same for all tiles of an x in rows, so that weights unpacked once serve all tokens. NULL on
 * a machine without such a unit. A segment is the whole row or at most NB_ROWS_BLOCK columns; in
 * i16 at most 128, as nb_xlayout_for has it. y may hold anything else until the call returns.
 * `scratch` holds NB_GEMM_SCRATCH floats. */
typedef void nb_gemm_rows_fn(float *y, int64_t ldy, const nb_panels *w, int64_t begin, int64_t end,
                             const nb_xtile *tiles, const int64_t *tile_first, int64_t n_tiles,
                             float *scratch);

/* A3 activation codes of one row: for each group of `group` columns (the last may be shorter)
 * absmax by integer comparison, scale = absmax / qmax, inv = qmax / absmax,
 * code = clamp(rne(x * inv)). qmax is 127 with lo == NULL, else 32639 split as x = 256 hi + lo with
 * lo in [-128, 127]. absmax < 2^-100: scale +0, codes 0. Inf or NaN in the group: scale NaN,
 * codes 0, and the call returns false. hi, lo [n]; scale [ceil(n / group)]. */
typedef bool nb_quantize_row_fn(const float *x, int64_t n, int64_t group, int8_t *hi, int8_t *lo,
                                float *scale);

/* Fills the arrays of `tile` (f; or hi, lo, scale, xsum, start) from its n_tok tokens, token t at
 * x + t * ld, by quantize_row's rule; with tile->given codes are what x holds, and scales are that
 * one (NaN as ever). False if a group of some token holds Inf or NaN. `staging` holds
 * nb_pack_tile_staging(n_cols) bytes, aligned to 64. */
typedef bool nb_pack_tile_fn(const nb_xtile *tile, const float *x, int64_t ld, void *staging);
static inline int64_t nb_pack_tile_staging(int64_t n_cols)
{
    return (2 * ((n_cols + 63) / 64 * 64) + 4 * (n_cols / 32 + 16) + 63) / 64 * 64;
}

/* ---- A2, A10: tiles of general matrix products (matmul.h) ---- */

#define NB_MM_ROWS   12 /* of a packed panel of a: element [k * NB_MM_ROWS + i] */
#define NB_MM_COLS   32 /* of a packed panel of b in binary32: element [k * NB_MM_COLS + j] */
#define NB_MM_COLS_D 16 /* the same in binary64 */

/* s(i, j) = sum over k < depth of a(k, i) * b(k, j): one chain of fused multiply-adds in ascending
 * k from +0; for i < m <= NB_MM_ROWS, j < n <= NB_MM_COLS. Panels are whole: what they hold past m
 * and n is read and does not matter. c[i * ldc + j] = +0 + s, or += s with `add`. */
typedef void nb_mm_fn(float *c, int64_t ldc, int64_t m, int64_t n, const float *a, const float *b,
                      int64_t depth, bool add);
/* The same s; c[row_at[i] + j] += (double)s. */
typedef void nb_mm_widen_fn(double *c, const int64_t *row_at, int64_t m, int64_t n, const float *a,
                            const float *b, int64_t depth);
/* In binary64, n <= NB_MM_COLS_D: for k ascending, c[i * ldc + j] = fma(-a(k, i), b(k, j), c). */
typedef void nb_mm_sub_d_fn(double *c, int64_t ldc, int64_t m, int64_t n, const double *a,
                            const double *b, int64_t depth);
/* y[i] = fma(a, x[i], y[i]), i < n. y does not overlap x. */
typedef void nb_axpy_fn(float *y, float a, const float *x, int64_t n);
typedef void nb_axpy_d_fn(double *y, double a, const double *x, int64_t n);

/* ---- A10: products in bfloat16 (matmul.h) ---- */

/* The bfloat16 nearest to the number of these bits (nb_bf16_from_f32); but what is below 2^-50
 * becomes +0: products and sums of products are then multiples of 2^-114, and none is denormal,
 * which processors treat differently in this format. */
#define NB_BF16_SMALL 0x26800000u /* 2^-50 in binary32 */
static inline uint32_t nb_bf16_near(uint32_t u)
{
    return (u & 0x7fffffff) < NB_BF16_SMALL ? 0 : nb_bf16_from_f32(nb_f32_from_bits(u));
}
/* A pair lies in the place of a binary32 number, which it is not: `low` in the low half. */
static inline void nb_bf16_put(float *pair, float low, float high)
{
    *pair =
        nb_f32_from_bits(nb_bf16_near(nb_f32_bits(low)) | nb_bf16_near(nb_f32_bits(high)) << 16);
}
/* y[i] = the pair (low[i], high[i]), i < n. y overlaps neither, or is one of them. */
typedef void nb_bf16_pairs_fn(float *y, const float *low, const float *high, int64_t n);
/* The pairs (x[0], x[1]), (x[2], x[3]), ... of n numbers; an odd n is filled up with 0. y[(n + 1) /
 * 2] does not overlap x. */
typedef void nb_bf16_row_fn(float *y, const float *x, int64_t n);
/* nb_mm_fn, where an element of a panel is the pair of columns (2 k, 2 k + 1): in one chain of
 * fused multiply-adds from +0, s takes for ascending k the product of the high halves, then that of
 * the low ones. */
typedef nb_mm_fn nb_mm_pairs_fn;

/* ---- A1, A6, A11: small steps; n is any length >= 1 ---- */

/* y = fl(fl(x * r) * g), r = 1 / sqrt(fl(ss / n) + eps), ss by A1 (16 lanes of fma(x, x, lane),
 * element i in lane i mod 16, then the tree 8-4-2-1: lane j += lane j + 8, then 4, 2, 1).
 * y may be x. */
typedef void nb_rmsnorm_fn(float *y, const float *x, const float *g, int64_t n, float eps);
/* y = y + x */
typedef void nb_add_fn(float *y, const float *x, int64_t n);
/* y = fl(fl(g / fl(1 + exp(-g))) * u). y may be g or u. */
typedef void nb_swiglu_fn(float *y, const float *g, const float *u, int64_t n);
/* Rotates halves in place, for each of n_heads heads of head_dim: with h = rot_dim / 2, i < h,
 * a = x[i], b = x[i + h]:  x[i] = fma(a, cos[i], -fl(b * sin[i])),
 * x[i + h] = fma(b, cos[i], fl(a * sin[i])). Elements past rot_dim stay. */
typedef void nb_rope_fn(float *x, const float *cos, const float *sin, int64_t n_heads,
                        int64_t head_dim, int64_t rot_dim);
/* y = nb_expf(x), element by element (kernel/math.h). y may be x. */
typedef void nb_exp_fn(float *y, const float *x, int64_t n);
/* max of x (NaN if any is NaN; a zero is +0), and *sum = sum of exp(x - max) by A1 over pieces of
 * 4,096 elements, pieces added ascending in binary64. */
typedef void nb_softmax_stats_fn(const float *x, int64_t n, float *max, double *sum);
/* Sum over i of p_i * (lp_i - lq_i), where lp = fl(fl(p[i] - p_max) - p_logsum), the same for q,
 * p_i = exp(lp): A1 over pieces of 4,096, lane = fma(p_i, fl(lp - lq), lane), pieces in binary64.
 */
typedef double nb_kl_fn(const float *p, float p_max, float p_logsum, const float *q, float q_max,
                        float q_logsum, int64_t n);
/* Index of the largest element, the lowest on ties; NaN never wins (0 if all are NaN). */
typedef int64_t nb_argmax_fn(const float *x, int64_t n);

/* ---- A5, A8: attention over pages (cells.h) ---- */

#define NB_KV_SPLIT 256 /* positions in a split: partial softmaxes are merged in this unit */

/* Stores the keys and values [n_heads * head_dim] of heads [head, head + n_heads) at position
 * `pos`, converted to the format (round to nearest even). Packed formats: those of a page's other
 * positions have been stored before those of its last, which seals it. */
typedef void nb_kv_store_fn(const nb_kv_view *kv, int64_t pos, int head, int n_heads,
                            const float *k, const float *v);

/* Causal attention of n_q consecutive tokens of one sequence, at positions pos0, pos0 + 1, ...,
 * for the query heads of one KV head (n_group of them: heads kv_head * n_group + j).
 *
 *   q, out  token t, head hd at [t * ld + hd * head_dim]; out may not overlap q
 *   window  0, or how many positions a query sees, itself included (sliding window)
 *   n_q * n_group <= NB_ATTN_ROWS; nb_kv_n_sealed is the same for all n_q
 *
 * A5: q' = fl(q * scale). Score of a cell: A2 over the head dimension on the cell's value. Splits
 * of 256 absolute positions; per split over the visible cells: m_j = max, e = nb_expf(fl(s - m_j)),
 * l_j = sum of e by A1 (cell c of the split in lane c mod 16; cells not visible add +0),
 * o_j = A2 over the split's cells in ascending position, chunks cut every 128 positions of the
 * split. A split with no visible cell is skipped. Merge: m = max m_j; j ascending from L = O = +0,
 * w = nb_expf(fl(m_j - m)): L = fma(l_j, w, L), O = fma(o_j, w, O); out = O / L.
 * With int8 cells and q_bits 8 or 16, q' of a token and head is quantized as one group by A3 to
 * that width, and a score is fl((float)isum * fl(s_q * s_k)) with the exact sum of code products.
 * Cells that a query may not see are never read for it. `scratch` holds
 * nb_attn_scratch_floats(head_dim, pos0 + n_q) floats; head_dim <= NB_ATTN_MAX_DIM. */
#define NB_ATTN_ROWS    48
#define NB_ATTN_MAX_DIM 512
typedef struct {
    const float *q;
    float *out;
    int64_t ld;
    int n_q, n_group, kv_head;
    int64_t pos0, window;
    float scale;
    int q_bits; /* 8 or 16: the integer scores of modes i8 and i16, with int8 cells; else 0 */
    nb_kv_view kv;
    float *scratch;
} nb_attn_args;
/* Room for the queries, scores and widened cells of one split, and the parts of every split of
 * n_positions (0: nb_attn_splits_fn needs no more). */
int64_t nb_attn_scratch_floats(int head_dim, int64_t n_positions);
typedef void nb_attention_fn(const nb_attn_args *args);

/* The same in two steps, so that threads can share out the splits of a long sequence:
 * attention(args) is attn_splits(args, 0, nb_attn_n_splits(args), parts), in one call or many that
 * may run at once, each with its own scratch of nb_attn_scratch_floats(head_dim, 0), and then
 * attn_merge(args, parts). Split i is the i-th that some query sees; its part, m_j, l_j and o_j of
 * each row, is the nb_attn_part_floats floats from parts + i * nb_attn_part_floats on, whatever
 * the variant. attn_splits writes no other part and not args->out; attn_merge reads neither
 * args->q nor the cache, and needs no scratch. */
static inline int64_t nb_attn_first_position(const nb_attn_args *a)
{
    return a->window > 0 && a->window <= a->pos0 ? a->pos0 + 1 - a->window : 0;
}
static inline int64_t nb_attn_n_splits(const nb_attn_args *a)
{
    return (a->pos0 + a->n_q - 1) / NB_KV_SPLIT - nb_attn_first_position(a) / NB_KV_SPLIT + 1;
}
static inline int64_t nb_attn_part_floats(const nb_attn_args *a)
{
    const int64_t n_rows = a->n_q * a->n_group, row_floats = (a->kv.head_dim + 15) / 16 * 16;
    return 2 * ((n_rows + 15) / 16 * 16) + n_rows * row_floats;
}
typedef void nb_attn_splits_fn(const nb_attn_args *args, int64_t begin, int64_t end, float *parts);
typedef void nb_attn_merge_fn(const nb_attn_args *args, const float *parts);

typedef struct {
    unsigned isa; /* the mask in force */
    nb_gemm_f_fn *gemm_f;
    nb_gemm_i_fn *gemm_i;
    nb_gemm_rows_fn *gemm_rows;
    nb_quantize_row_fn *quantize_row;
    nb_pack_tile_fn *pack_tile;
    nb_mm_fn *mm;
    nb_mm_widen_fn *mm_widen;
    nb_mm_sub_d_fn *mm_sub_d;
    nb_mm_pairs_fn *mm_pairs;
    nb_bf16_pairs_fn *bf16_pairs;
    nb_bf16_row_fn *bf16_row;
    nb_axpy_fn *axpy;
    nb_axpy_d_fn *axpy_d;
    nb_rmsnorm_fn *rmsnorm;
    nb_add_fn *add;
    nb_swiglu_fn *swiglu;
    nb_rope_fn *rope;
    nb_exp_fn *exp;
    nb_softmax_stats_fn *softmax_stats;
    nb_kl_fn *kl;
    nb_argmax_fn *argmax;
    nb_kv_store_fn *kv_store;
    nb_attention_fn *attention;
    nb_attn_splits_fn *attn_splits;
    nb_attn_merge_fn *attn_merge;
    /* the backward pass: back.h */
    nb_product_fn *product;
    nb_rmsnorm_back_fn *rmsnorm_back;
    nb_swiglu_back_fn *swiglu_back;
    nb_softmax_back_fn *softmax_back;
} nb_kernels;

/* Fills every slot from what nb_cpu_isa() & allow has. */
void nb_kernels_init(nb_kernels *k, unsigned allow);

/* The tables below override some slots of *k; called by nb_kernels_init only. */
void nb_kernels_ref_dot(nb_kernels *k);
void nb_kernels_ref_mm(nb_kernels *k);
void nb_kernels_ref_nn(nb_kernels *k);
void nb_kernels_ref_kv(nb_kernels *k);
void nb_kernels_ref_attn(nb_kernels *k);
void nb_kernels_ref_back(nb_kernels *k);
#if defined(__x86_64__)
void nb_kernels_avx2_dot(nb_kernels *k);
void nb_kernels_avx2_mm(nb_kernels *k);
void nb_kernels_avx2_nn(nb_kernels *k);
void nb_kernels_avx2_attn(nb_kernels *k);
void nb_kernels_avx2_back(nb_kernels *k);
void nb_kernels_avx512_dot(nb_kernels *k);
void nb_kernels_avx512_mm(nb_kernels *k);
void nb_kernels_avx512bf16_mm(nb_kernels *k);
void nb_kernels_avx512_nn(nb_kernels *k);
void nb_kernels_avx512_attn(nb_kernels *k);
void nb_kernels_avx512_back(nb_kernels *k);
void nb_kernels_amx_dot(nb_kernels *k);
#elif defined(__aarch64__)
void nb_kernels_neon_dot(nb_kernels *k);
void nb_kernels_neon_pack(nb_kernels *k);
void nb_kernels_neon_mm(nb_kernels *k);
void nb_kernels_neon_nn(nb_kernels *k);
void nb_kernels_neon_attn(nb_kernels *k);
void nb_kernels_neon_back(nb_kernels *k);
#endif
/* A mistake on purpose, after all else; only in builds with -DNIBBLE_PLANT_FAULT (tests/fault). */
void nb_kernels_plant_fault(nb_kernels *k);

#endif
