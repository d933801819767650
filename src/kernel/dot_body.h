/* The part of the matrix products that does not depend on the instruction set, included by each
 * one's file after it has defined:
 *
 *   tile_f_fn                what a float tile takes: see the typedef there
 *   TILE_TOKENS              the widest float tile
 *   PANELS_AT_ONCE(T)        panels that a tile of T tokens takes, to hide the latency of the FMA
 *   tiles_one[kind][T - 1]   float tiles of one panel
 *   tiles_wide[kind][T - 1]  float tiles of PANELS_AT_ONCE(T) panels
 *   dequantize_chunk         up to 128 columns of a panel of codes, as binary32 [k][16] */

#include "kernel/group_scale.h"

static void gemm_f(float *y, int64_t ldy, const nb_panels *w, int64_t begin, int64_t end,
                   const nb_xtile *tiles, const int64_t *tile_first, int64_t n_tiles,
                   float *scratch)
{
    const bool codes = w->n_segs > 0;
    const nb_panel_kind kind = codes ? NB_PANEL_F32 : w->kind;
    const int64_t column_bytes = NB_PANEL_ROWS * (kind == NB_PANEL_F32 ? 4 : 2);
    for (int64_t p = begin; p < end;) {
        int P = n_tiles > 1 ? 1 : PANELS_AT_ONCE(tiles[0].n_tok);
        if (p + P > end)
            P = 1;
        const int64_t left = w->n_rows - p * NB_PANEL_ROWS;
        for (int64_t k0 = 0; k0 < w->n_cols; k0 += NB_CHUNK_K) {
            const int64_t n = k0 + NB_CHUNK_K < w->n_cols ? NB_CHUNK_K : w->n_cols - k0;
            const uint8_t *wk = w->codes + p * w->panel_bytes + k0 * column_bytes;
            int64_t stride = w->panel_bytes;
            if (codes) { /* a dequantized chunk serves all tokens */
                for (int j = 0; j < P; j++)
                    dequantize_chunk(scratch + j * NB_CHUNK_K * NB_PANEL_ROWS, w, p + j, k0, n);
                wk = (const uint8_t *)scratch;
                stride = (int64_t)sizeof(float) * NB_CHUNK_K * NB_PANEL_ROWS;
            }
            for (int64_t i = 0; i < n_tiles; i++) {
                const int n_tok = tiles[i].n_tok;
                for (int t0 = 0, T; t0 < n_tok; t0 += T) { /* 8 tokens by 6 are 4 + 4 */
                    const int n_cuts = (n_tok - t0 + TILE_TOKENS - 1) / TILE_TOKENS;
                    T = (n_tok - t0 + n_cuts - 1) / n_cuts;
                    tile_f_fn *tile = P > 1 ? tiles_wide[kind][T - 1] : tiles_one[kind][T - 1];
                    tile(y + (tile_first[i] + t0) * ldy + p * NB_PANEL_ROWS, ldy, left, wk, stride,
                         tiles[i].f + k0 * n_tok + t0, n_tok, n, k0 == 0);
                }
            }
        }
        p += P;
    }
}
