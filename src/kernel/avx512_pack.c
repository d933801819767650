/* Packing of activations, AVX-512.
 *
 * Two passes over the tokens of a tile, which fit in the second-level cache. First the scales:
 * sixteen groups' maxima are reduced together, so that a group costs three operations more than
 * its loads, and a division serves sixteen. Then the codes, 64 columns of a token to a register,
 * and for a tile of panels a transpose of 16 x 16 dwords of four columns. After it a lane is a
 * token, so one vpdpbusd with ones adds four columns to the sums of all tokens. */
#include "kernel/avx512_dot.h"
#include "kernel/group_scale.h"

#include <math.h>
#include <string.h>

/* Lanes [0, n) of 16, n of any sign. */
INLINE __mmask16 lanes_within(int64_t n)
{
    return n <= 0 ? 0 : lanes(n);
}

INLINE __m512i max_or_sum(__m512i a, __m512i b, const bool max)
{
    return max ? _mm512_max_epi32(a, b) : _mm512_add_epi32(a, b);
}

/* Lane i of the result: the maximum or sum of the lanes of v[i]. */
INLINE __m512i reduce16(__m512i *v, const bool max)
{
    UNROLL
    for (int i = 0; i < 8; i++) /* halves of quarters */
        v[i] = max_or_sum(_mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]),
                          _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]), max);
    UNROLL
    for (int i = 0; i < 4; i++) /* quarters: lanes 4j to 4j + 3 are four results, four times */
        v[i] = max_or_sum(_mm512_unpacklo_epi64(v[2 * i], v[2 * i + 1]),
                          _mm512_unpackhi_epi64(v[2 * i], v[2 * i + 1]), max);
    UNROLL
    for (int i = 0; i < 2; i++)
        v[i] = max_or_sum(_mm512_shuffle_i32x4(v[2 * i], v[2 * i + 1], 0x88),
                          _mm512_shuffle_i32x4(v[2 * i], v[2 * i + 1], 0xdd), max);
    return max_or_sum(_mm512_shuffle_i32x4(v[0], v[1], 0x88),
                      _mm512_shuffle_i32x4(v[0], v[1], 0xdd), max);
}

/* Four rows of 16 dwords: afterwards lanes 4j to 4j + 3 of r[c] are column 4j + c of the rows. */
INLINE void transpose_quads(__m512i *r)
{
    const __m512i a = _mm512_unpacklo_epi32(r[0], r[1]), b = _mm512_unpackhi_epi32(r[0], r[1]);
    const __m512i c = _mm512_unpacklo_epi32(r[2], r[3]), d = _mm512_unpackhi_epi32(r[2], r[3]);
    r[0] = _mm512_unpacklo_epi64(a, c);
    r[1] = _mm512_unpackhi_epi64(a, c);
    r[2] = _mm512_unpacklo_epi64(b, d);
    r[3] = _mm512_unpackhi_epi64(b, d);
}

/* Four registers of four quarters: q[i]'s quarter j becomes out[j * step]'s quarter i. */
INLINE void transpose_quarters(__m512i *out, int step, __m512i q0, __m512i q1, __m512i q2,
                               __m512i q3)
{
    const __m512i a = _mm512_shuffle_i32x4(q0, q1, 0x88), b = _mm512_shuffle_i32x4(q0, q1, 0xdd);
    const __m512i c = _mm512_shuffle_i32x4(q2, q3, 0x88), d = _mm512_shuffle_i32x4(q2, q3, 0xdd);
    out[0] = _mm512_shuffle_i32x4(a, c, 0x88);
    out[step] = _mm512_shuffle_i32x4(b, d, 0x88);
    out[2 * step] = _mm512_shuffle_i32x4(a, c, 0xdd);
    out[3 * step] = _mm512_shuffle_i32x4(b, d, 0xdd);
}

/* ---- floats ---- */

static void pack_floats(const nb_xtile *tile, const float *x, int64_t ld)
{
    const int64_t n = tile->n_cols;
    const int T = tile->n_tok;
    float *out = tile->f;
    if (T == 1) {
        memcpy(out, x, (size_t)n * sizeof *x);
        return;
    }
    /* Up to four tokens: out of four columns by four rows, those of the T rows. */
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512i chosen = lane;
    if (T == 2)
        chosen = _mm512_setr_epi32(0, 1, 4, 5, 8, 9, 12, 13, 0, 0, 0, 0, 0, 0, 0, 0);
    else if (T == 3)
        chosen = _mm512_setr_epi32(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 0, 0, 0, 0);
    const __mmask16 tokens = lanes(T);
    for (int64_t k = 0; k < n; k += 16) {
        const __mmask16 in = lanes(n - k);
        __m512i row[16], col[16];
        UNROLL
        for (int t = 0; t < 16; t++)
            row[t] = t < T ? _mm512_maskz_loadu_epi32(in, x + t * ld + k) : _mm512_setzero_si512();
        transpose_quads(row);
        if (T <= 4) {
            transpose_quarters(col, 1, row[0], row[1], row[2], row[3]);
            for (int j = 0; j < 4 && k + 4 * j < n; j++)
                _mm512_mask_storeu_epi32(out + (k + 4 * j) * T,
                                         lanes((n - k - 4 * j) * T) & lanes(4 * T),
                                         _mm512_permutexvar_epi32(chosen, col[j]));
            continue;
        }
        transpose_quads(row + 4);
        transpose_quads(row + 8);
        transpose_quads(row + 12);
        UNROLL
        for (int c = 0; c < 4; c++)
            transpose_quarters(col + c, 4, row[c], row[4 + c], row[8 + c], row[12 + c]);
        const int count = (int)(n - k < 16 ? n - k : 16);
        UNROLL
        for (int j = 0; j < 16; j++)
            if (j < count)
                _mm512_mask_storeu_epi32(out + (k + j) * T, tokens, col[j]);
    }
}

/* ---- codes ---- */

/* The largest magnitude's bits of n values, lane by lane. */
INLINE __m512i magnitudes(const float *x, int64_t n)
{
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    if (n == 32) /* by far the most frequent */
        return _mm512_max_epi32(_mm512_and_si512(_mm512_loadu_si512(x), magnitude),
                                _mm512_and_si512(_mm512_loadu_si512(x + 16), magnitude));
    __m512i most = _mm512_setzero_si512();
    int64_t k = 0;
    for (; k + 16 <= n; k += 16)
        most = _mm512_max_epi32(most, _mm512_and_si512(_mm512_loadu_si512(x + k), magnitude));
    if (k < n)
        most = _mm512_max_epi32(
            most, _mm512_and_si512(_mm512_maskz_loadu_epi32(lanes(n - k), x + k), magnitude));
    return most;
}

/* scale and inv [n_groups][n_tok] of all groups: group_scale, sixteen at a time. */
static bool tile_scales(const nb_xtile *tile, const float *x, int64_t ld, float *inv)
{
    const int64_t n = tile->n_cols, group = tile->x_seg_len, T = tile->n_tok;
    const int64_t n_entries = (n + group - 1) / group * T;
    const __m512 qmax = _mm512_set1_ps(tile->lo == NULL ? 127.0f : 32639.0f);
    __mmask16 any_bad = 0;
    int64_t begin = 0, t = 0;
    for (int64_t e = 0; e < n_entries; e += 16) {
        __m512i v[16];
        for (int i = 0; i < 16; i++) {
            v[i] = _mm512_setzero_si512();
            if (e + i >= n_entries)
                continue;
            const int64_t left = n - begin;
            v[i] = magnitudes(x + t * ld + begin, left < group ? left : group);
            if (++t == T) {
                t = 0;
                begin += group;
            }
        }
        const __m512i bits = reduce16(v, true);
        const __m512 absmax = _mm512_castsi512_ps(bits);
        const __mmask16 out = lanes(n_entries - e);
        const __mmask16 bad = _mm512_cmpge_epi32_mask(bits, _mm512_set1_epi32(0x7f800000));
        const __mmask16 some =
            _mm512_cmp_ps_mask(absmax, _mm512_set1_ps(0x1p-100f), _CMP_GE_OQ) & (__mmask16)~bad;
        __m512 s = _mm512_maskz_div_ps(some, absmax, qmax);
        __m512 inverse = _mm512_maskz_div_ps(some, qmax, absmax);
        if (tile->given != 0) {
            s = _mm512_set1_ps(tile->given);
            inverse = _mm512_maskz_mov_ps(some, _mm512_set1_ps(1));
        }
        any_bad |= bad & out;
        _mm512_mask_storeu_ps(tile->scale + e, out,
                              _mm512_mask_blend_ps(bad, s, _mm512_set1_ps(NAN)));
        _mm512_mask_storeu_ps(inv + e, out, inverse);
    }
    return any_bad == 0;
}

/* Which columns of a token's 64 from k0 on are in the row, and which group's scale they take: the
 * lanes of `same` group g of inv, the others the next one. A group has 32 columns or more. */
typedef struct {
    bool plain; /* every lane is in, finite and of one group with its 16 */
    __mmask16 in[4], same[4];
    int64_t g[4], next[4]; /* where a group's values begin */
} block64;

static block64 block_at(const nb_xtile *tile, int64_t k0, bool finite)
{
    block64 b;
    const int64_t n = tile->n_cols, group = tile->x_seg_len, last = (n - 1) / group;
    b.plain = finite && k0 + 64 <= n;
    for (int i = 0; i < 4; i++) {
        const int64_t k = k0 + 16 * i, g = k < n ? k / group : last;
        b.in[i] = lanes_within(n - k);
        b.same[i] = lanes_within((g + 1) * group - k);
        b.g[i] = g * tile->n_tok;
        b.next[i] = (g < last ? g + 1 : last) * tile->n_tok;
        b.plain = b.plain && b.same[i] == 0xffff;
    }
    return b;
}

/* 16 codes, i-th of a block. */
INLINE __m512i quantize16(const float *x, const float *inv, const block64 *b, int i)
{
    if (b->plain) /* nearest even */
        return _mm512_cvtps_epi32(
            _mm512_mul_ps(_mm512_loadu_ps(x + 16 * i), _mm512_set1_ps(inv[b->g[i]])));
    const __m512 v = _mm512_mask_blend_ps(b->same[i], _mm512_set1_ps(inv[b->next[i]]),
                                          _mm512_set1_ps(inv[b->g[i]]));
    /* inv is 0 where the codes are, and there x may be Inf. */
    const __mmask16 some = b->in[i] & _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_NEQ_OQ);
    return _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_maskz_loadu_ps(some, x + 16 * i), v));
}

/* The codes of 64 columns of a token, `inv` at the token, `x` at the block. Byte 16 j + 4 i + c is
 * column 16 i + 4 j + c: what the packing instructions leave. No code is clamped, because |x| * inv
 * exceeds qmax by two roundings at most. */
INLINE void quantize64(__m512i *hi, __m512i *lo, const float *x, const float *inv, const block64 *b,
                       const bool wide)
{
    __m512i q[4];
    UNROLL
    for (int i = 0; i < 4; i++)
        q[i] = quantize16(x, inv, b, i);
    const __m512i a = _mm512_packs_epi32(q[0], q[1]), c = _mm512_packs_epi32(q[2], q[3]);
    if (!wide) {
        *hi = _mm512_packs_epi16(a, c);
        return;
    }
    const __m512i half = _mm512_set1_epi16(128), low = _mm512_set1_epi16(255);
    *hi = _mm512_packs_epi16(_mm512_srai_epi16(_mm512_add_epi16(a, half), 8),
                             _mm512_srai_epi16(_mm512_add_epi16(c, half), 8));
    *lo = _mm512_packus_epi16(_mm512_and_si512(a, low), _mm512_and_si512(c, low));
}

/* Writes xsum and start of 16 lanes from entry e on, from the sums of both planes. */
INLINE void put_sums(const nb_xtile *tile, int64_t e, __mmask16 out, __m512i hi, __m512i lo,
                     const bool wide)
{
    const __m512i sum = wide ? _mm512_add_epi32(_mm512_slli_epi32(hi, 8), lo) : hi;
    _mm512_mask_storeu_epi32(tile->xsum + e, out, sum);
    if (tile->start != NULL)
        _mm512_mask_storeu_epi32(
            tile->start + e, out,
            _mm512_mullo_epi32(sum, _mm512_set1_epi32((int)(0u - (unsigned)tile->zero_const))));
}

/* A tile of panels: [k_pad / 4][n_tok][4]. */
INLINE void pack_transposed(const nb_xtile *tile, const float *x, int64_t ld, const float *inv,
                            bool finite, const bool wide)
{
    const __m512i ones = _mm512_set1_epi8(1), zero = _mm512_setzero_si512();
    const int T = tile->n_tok;
    const __mmask16 tokens = lanes(T);
    int8_t *hi_out = tile->hi, *lo_out = tile->lo;
    __m512i hi_sum = zero, lo_sum = zero;
    int64_t seg_end = tile->seg_len, e = 0;
    for (int64_t k0 = 0; k0 < tile->k_pad; k0 += 64) {
        const block64 b = block_at(tile, k0, finite);
        __m512i hi[16], lo[16], four[2][16];
        for (int t = 0; t < 16; t++) {
            hi[t] = lo[t] = zero;
            if (t < T)
                quantize64(&hi[t], &lo[t], x + t * ld + k0, inv + t, &b, wide);
        }
        for (int plane = 0; plane < (wide ? 2 : 1); plane++) {
            __m512i *row = plane == 0 ? hi : lo;
            UNROLL
            for (int j = 0; j < 4; j++)
                transpose_quads(row + 4 * j);
            /* Dword 4 j + i is columns 16 i + 4 j and on, so quarter j of the i-th goes there. */
            UNROLL
            for (int i = 0; i < 4; i++)
                transpose_quarters(four[plane] + 4 * i, 1, row[i], row[4 + i], row[8 + i],
                                   row[12 + i]);
        }
        const int64_t left = tile->k_pad - k0;
        const int count = (int)(left < 64 ? left / 4 : 16);
        for (int j = 0; j < count; j += 2) { /* segments end at multiples of 8 columns */
            UNROLL
            for (int c = 0; c < 2; c++) {
                _mm512_mask_storeu_epi32(hi_out, tokens, four[0][j + c]);
                hi_sum = _mm512_dpbusd_epi32(hi_sum, ones, four[0][j + c]);
                hi_out += 4 * T;
                if (wide) {
                    _mm512_mask_storeu_epi32(lo_out, tokens, four[1][j + c]);
                    lo_sum = _mm512_dpbusd_epi32(lo_sum, ones, four[1][j + c]);
                    lo_out += 4 * T;
                }
            }
            const int64_t k = k0 + 4 * (j + 2);
            if (k == seg_end || k == tile->k_pad) {
                put_sums(tile, e, tokens, hi_sum, lo_sum, wide);
                hi_sum = lo_sum = zero;
                seg_end += tile->seg_len;
                e += T;
            }
        }
    }
}

/* The sums of n codes (n a multiple of 4), dword by dword. */
INLINE __m512i sums_of(const int8_t *code, int64_t n)
{
    const __m512i ones = _mm512_set1_epi8(1);
    __m512i sum = _mm512_setzero_si512();
    for (int64_t k = 0; k < n; k += 64)
        sum =
            _mm512_dpbusd_epi32(sum, ones, _mm512_maskz_loadu_epi32(lanes((n - k) / 4), code + k));
    return sum;
}

/* Rows of codes: [n_tok][row_stride], or a tile of panels with one token. */
INLINE void pack_rows(const nb_xtile *tile, const float *x, int64_t ld, const float *inv,
                      bool finite, const bool wide)
{
    const __m512i ascending =
        _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const int64_t T = tile->n_tok, width = tile->rows ? tile->row_stride : tile->k_pad;
    for (int64_t k0 = 0; k0 < width; k0 += 64) {
        const block64 b = block_at(tile, k0, finite);
        const __mmask16 out = lanes((width - k0) / 4);
        for (int64_t t = 0; t < T; t++) {
            __m512i hi, lo;
            quantize64(&hi, &lo, x + t * ld + k0, inv + t, &b, wide);
            _mm512_mask_storeu_epi32(tile->hi + t * width + k0, out,
                                     _mm512_permutexvar_epi32(ascending, hi));
            if (wide)
                _mm512_mask_storeu_epi32(tile->lo + t * width + k0, out,
                                         _mm512_permutexvar_epi32(ascending, lo));
        }
    }
    const int64_t n_entries = (tile->n_cols + tile->seg_len - 1) / tile->seg_len * T;
    int64_t begin = 0, t = 0;
    for (int64_t e = 0; e < n_entries; e += 16) {
        __m512i hi[16], lo[16];
        for (int i = 0; i < 16; i++) {
            hi[i] = lo[i] = _mm512_setzero_si512();
            if (e + i >= n_entries)
                continue;
            /* The last segment's padding is 0; elsewhere segments end at multiples of 8. */
            const bool last = begin + tile->seg_len >= tile->n_cols;
            const int64_t n = last ? tile->k_pad - begin : tile->seg_len;
            hi[i] = sums_of(tile->hi + t * width + begin, n);
            if (wide)
                lo[i] = sums_of(tile->lo + t * width + begin, n);
            if (++t == T) {
                t = 0;
                begin += tile->seg_len;
            }
        }
        const __m512i hi_sum = reduce16(hi, false);
        put_sums(tile, e, lanes(n_entries - e), hi_sum, wide ? reduce16(lo, false) : hi_sum, wide);
    }
}

bool nb_avx512_pack_tile(const nb_xtile *tile, const float *x, int64_t ld, void *staging)
{
    if (tile->f != NULL) {
        pack_floats(tile, x, ld);
        return true;
    }
    assert(tile->x_seg_len >= 32 || tile->x_seg_len >= tile->n_cols);
    float *inv = staging; /* [n_groups][n_tok]: less than half of it */
    const bool finite = tile_scales(tile, x, ld, inv);
    if (tile->rows || tile->n_tok == 1) {
        if (tile->lo != NULL)
            pack_rows(tile, x, ld, inv, finite, true);
        else
            pack_rows(tile, x, ld, inv, finite, false);
    } else if (tile->lo != NULL) {
        pack_transposed(tile, x, ld, inv, finite, true);
    } else {
        pack_transposed(tile, x, ld, inv, finite, false);
    }
    return finite;
}

bool nb_avx512_quantize_row(const float *x, int64_t n, int64_t group, int8_t *hi, int8_t *lo,
                            float *scale)
{
    const float qmax = lo == NULL ? 127.0f : 32639.0f;
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    bool finite = true;
    for (int64_t g = 0; g * group < n; g++) {
        const int64_t begin = g * group, end = begin + group < n ? begin + group : n;
        __m512i most = _mm512_setzero_si512();
        for (int64_t k = begin; k < end; k += 16) {
            const __mmask16 in = lanes(end - k);
            const __m512i bits = _mm512_castps_si512(_mm512_maskz_loadu_ps(in, x + k));
            most = _mm512_max_epi32(most, _mm512_and_si512(bits, magnitude));
        }
        const int32_t bits = _mm512_reduce_max_epi32(most);
        float inv;
        const bool good = group_scale(bits, qmax, 0, &scale[g], &inv);
        finite = finite && good;
        const __m512 inv16 = _mm512_set1_ps(inv);
        const __m512i most_code = _mm512_set1_epi32((int)qmax);
        for (int64_t k = begin; k < end; k += 16) {
            const __mmask16 in = lanes(end - k);
            __m512 v = _mm512_maskz_loadu_ps(in, x + k);
            if (!good)
                v = _mm512_setzero_ps();
            __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(v, inv16)); /* nearest even */
            q = _mm512_max_epi32(_mm512_min_epi32(q, most_code),
                                 _mm512_sub_epi32(_mm512_setzero_si512(), most_code));
            if (lo != NULL) {
                const __m512i high =
                    _mm512_srai_epi32(_mm512_add_epi32(q, _mm512_set1_epi32(128)), 8);
                const __m512i low = _mm512_sub_epi32(q, _mm512_slli_epi32(high, 8));
                _mm512_mask_cvtepi32_storeu_epi8(lo + k, in, low);
                q = high;
            }
            _mm512_mask_cvtepi32_storeu_epi8(hi + k, in, q);
        }
    }
    return finite;
}
