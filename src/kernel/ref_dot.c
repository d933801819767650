/* Matrix products, scalar: the definition of A2 and A3 on packed panels. Never optimised. */
#include "kernel/kernel.h"
#include "numeric/minifloat.h"

#include <assert.h>
#include <math.h>

/* The stored code of panel p, row i, column k. */
static int code_at(const nb_panels *w, int64_t p, int64_t k, int i)
{
    const uint8_t *panel = w->codes + p * w->panel_bytes;
    if (w->kind == NB_PANEL_U8)
        return panel[k / 4 * 64 + 4 * i + k % 4];
    const uint8_t byte = panel[k / 8 * 64 + 4 * i + k % 4];
    const int nibble = k % 8 < 4 ? byte & 15 : byte >> 4;
    return w->kind == NB_PANEL_T4 ? w->table[nibble] : nibble;
}

static int zero_at(const nb_panels *w, int64_t p, int64_t seg, int i)
{
    return w->zeros != NULL ? w->zeros[(p * w->n_segs + seg) * NB_PANEL_ROWS + i] : w->zero_const;
}

static float scale_at(const nb_panels *w, int64_t p, int64_t seg, int i)
{
    return nb_float_get(w->scales, w->scale_type, (p * w->n_segs + seg) * NB_PANEL_ROWS + i);
}

static float min_at(const nb_panels *w, int64_t p, int64_t seg, int i)
{
    return nb_float_get(w->mins, w->scale_type, (p * w->n_segs + seg) * NB_PANEL_ROWS + i);
}

static float weight_at(const nb_panels *w, int64_t p, int64_t k, int i)
{
    const int64_t e = (p * w->n_cols + k) * NB_PANEL_ROWS + i;
    switch (w->kind) {
    case NB_PANEL_F32:
        return nb_float_get(w->codes, NB_F32, e);
    case NB_PANEL_F16:
        return nb_float_get(w->codes, NB_F16, e);
    case NB_PANEL_BF16:
        return nb_float_get(w->codes, NB_BF16, e);
    case NB_PANEL_E4M3:
        return scale_at(w, p, k / w->seg_len, i) * nb_e4m3_to_f32(w->codes[e]);
    case NB_PANEL_E5M2:
        return scale_at(w, p, k / w->seg_len, i) * nb_e5m2_to_f32(w->codes[e]);
    case NB_PANEL_L4:
        return scale_at(w, p, k / w->seg_len, i) * w->levels[code_at(w, p, k, i)];
    case NB_PANEL_U4:
    case NB_PANEL_T4:
    case NB_PANEL_U8:
        break;
    }
    const int64_t seg = k / w->seg_len;
    const float q = (float)(code_at(w, p, k, i) - zero_at(w, p, seg, i));
    const float s = scale_at(w, p, seg, i);
    if (w->mins == NULL)
        return s * q;
    return fmaf(s, q, min_at(w, p, seg, i));
}

static void gemm_f(float *y, int64_t ldy, const nb_panels *w, int64_t begin, int64_t end,
                   const nb_xtile *tiles, const int64_t *tile_first, int64_t n_tiles,
                   float *scratch)
{
    (void)scratch;
    for (int64_t r = begin * NB_PANEL_ROWS; r < end * NB_PANEL_ROWS && r < w->n_rows; r++) {
        for (int64_t n = 0; n < n_tiles; n++) {
            const nb_xtile *x = &tiles[n];
            for (int t = 0; t < x->n_tok; t++) {
                float total = 0;
                for (int64_t chunk = 0; chunk < w->n_cols; chunk += NB_CHUNK_K) {
                    float sum = 0;
                    for (int64_t k = chunk; k < w->n_cols && k < chunk + NB_CHUNK_K; k++)
                        sum = fmaf(weight_at(w, r / NB_PANEL_ROWS, k, (int)(r % NB_PANEL_ROWS)),
                                   x->f[k * x->n_tok + t], sum);
                    total += sum;
                }
                y[(tile_first[n] + t) * ldy + r] = total;
            }
        }
    }
}

static int32_t x_code(const nb_xtile *x, int64_t k, int t)
{
    const int64_t at = (k / 4 * x->n_tok + t) * 4 + k % 4;
    return x->lo == NULL ? x->hi[at] : 256 * x->hi[at] + x->lo[at];
}

static void gemm_i(float *y, int64_t ldy, const nb_panels *w, int64_t begin, int64_t end,
                   const nb_xtile *x)
{
    for (int64_t r = begin * NB_PANEL_ROWS; r < end * NB_PANEL_ROWS && r < w->n_rows; r++) {
        const int64_t p = r / NB_PANEL_ROWS;
        const int i = (int)(r % NB_PANEL_ROWS);
        for (int t = 0; t < x->n_tok; t++) {
            float acc = 0;
            for (int64_t k0 = 0; k0 < w->n_cols; k0 += x->seg_len) {
                const int64_t k1 = k0 + x->seg_len < w->n_cols ? k0 + x->seg_len : w->n_cols;
                const int64_t wseg = k0 / w->seg_len;
                int64_t isum = 0;
                for (int64_t k = k0; k < k1; k++)
                    isum +=
                        (int64_t)(code_at(w, p, k, i) - zero_at(w, p, wseg, i)) * x_code(x, k, t);
                assert(isum >= INT32_MIN && isum <= INT32_MAX);
                const float sx = x->scale[k0 / x->x_seg_len * x->n_tok + t];
                acc = fmaf((float)(int32_t)isum, scale_at(w, p, wseg, i) * sx, acc);
                if (w->mins != NULL) {
                    const float xsum = (float)x->xsum[k0 / x->seg_len * x->n_tok + t];
                    const float m = min_at(w, p, wseg, i);
                    acc = fmaf(m, xsum * sx, acc);
                }
            }
            y[t * ldy + r] = acc;
        }
    }
}

static bool quantize(const float *x, int64_t n, int64_t group, float given, int8_t *hi, int8_t *lo,
                     float *scale)
{
    const float qmax = lo == NULL ? 127.0f : 32639.0f;
    bool finite = true;
    for (int64_t g = 0; g * group < n; g++) {
        const int64_t begin = g * group, end = begin + group < n ? begin + group : n;
        uint32_t bits = 0;
        for (int64_t k = begin; k < end; k++) {
            const uint32_t b = nb_f32_bits(x[k]) & 0x7fffffffu;
            bits = b > bits ? b : bits;
        }
        const float absmax = nb_f32_from_bits(bits);
        const bool bad = bits >= 0x7f800000u, none = absmax < 0x1p-100f;
        scale[g] = bad          ? nb_f32_from_bits(0x7fc00000u)
                   : given != 0 ? given
                   : none       ? 0.0f
                                : absmax / qmax;
        const float inv = bad || none ? 0.0f : given != 0 ? 1.0f : qmax / absmax;
        finite = finite && !bad;
        for (int64_t k = begin; k < end; k++) {
            float q = bad ? 0.0f : rintf(x[k] * inv);
            q = q > qmax ? qmax : q < -qmax ? -qmax : q;
            const int32_t code = (int32_t)q;
            if (lo == NULL) {
                hi[k] = (int8_t)code;
            } else {
                const int32_t low = ((code + 128) & 255) - 128;
                lo[k] = (int8_t)low;
                hi[k] = (int8_t)((code - low) / 256);
            }
        }
    }
    return finite;
}

static bool quantize_row(const float *x, int64_t n, int64_t group, int8_t *hi, int8_t *lo,
                         float *scale)
{
    return quantize(x, n, group, 0, hi, lo, scale);
}

/* Where plane element (column k, token t) lies. */
static int64_t plane_at(const nb_xtile *x, int64_t k, int64_t t)
{
    return x->rows ? t * x->row_stride + k : (k / 4 * x->n_tok + t) * 4 + k % 4;
}

static void pack_row_i(const nb_xtile *tile, int64_t t, const int8_t *hi, const int8_t *lo,
                       const float *scale)
{
    const int64_t n = tile->n_cols, n_tok = tile->n_tok;
    for (int64_t k = 0; k < (tile->rows ? tile->row_stride : tile->k_pad); k++) {
        tile->hi[plane_at(tile, k, t)] = k < n ? hi[k] : 0;
        if (tile->lo != NULL)
            tile->lo[plane_at(tile, k, t)] = k < n ? lo[k] : 0;
    }
    for (int64_t s = 0; s * tile->x_seg_len < n; s++)
        tile->scale[s * n_tok + t] = scale[s];
    for (int64_t s = 0; s * tile->seg_len < n; s++) {
        uint32_t sum = 0;
        for (int64_t k = s * tile->seg_len; k < n && k < (s + 1) * tile->seg_len; k++) {
            const int32_t code = tile->lo != NULL ? 256 * hi[k] + lo[k] : hi[k];
            sum += (uint32_t)code;
        }
        tile->xsum[s * n_tok + t] = (int32_t)sum;
        if (tile->start != NULL)
            tile->start[s * n_tok + t] = (int32_t)(0u - (uint32_t)tile->zero_const * sum);
    }
}

static bool pack_tile(const nb_xtile *tile, const float *x, int64_t ld, void *staging)
{
    bool finite = true;
    for (int64_t t = 0; t < tile->n_tok; t++, x += ld) {
        if (tile->f != NULL) {
            for (int64_t k = 0; k < tile->n_cols; k++)
                tile->f[k * tile->n_tok + t] = x[k];
            continue;
        }
        const int64_t width = (tile->n_cols + 63) / 64 * 64;
        int8_t *hi = staging, *lo = tile->lo != NULL ? hi + width : NULL;
        float *scale = (float *)(void *)(hi + 2 * width);
        finite = quantize(x, tile->n_cols, tile->x_seg_len, tile->given, hi, lo, scale) && finite;
        pack_row_i(tile, t, hi, lo, scale);
    }
    return finite;
}

void nb_kernels_ref_dot(nb_kernels *k)
{
    k->gemm_f = gemm_f;
    k->gemm_i = gemm_i;
    k->quantize_row = quantize_row;
    k->pack_tile = pack_tile;
}
