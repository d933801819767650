/* What a cell of the key-value cache is, and where it lies (A8). The kernels that store cells and
 * attend to them are slots of kernel.h. */
#ifndef NB_KERNEL_CELLS_H
#define NB_KERNEL_CELLS_H

#include <stddef.h>
#include <stdint.h>

#define NB_KV_PAGE 32 /* positions in a page */

typedef enum {
    NB_KV_F32,
    NB_KV_F16,
    NB_KV_BF16,
    NB_KV_INT8,
    NB_KV_FP8,
    NB_KV_N_FORMATS
} nb_kv_format;
const char *nb_kv_format_name(nb_kv_format f); /* "f32", "f16", "bf16", "int8", "fp8" */

/* One layer's cache of one sequence. Position p lives in page table[p / NB_KV_PAGE], at
 * arena + page * page_bytes. In a page, KV head h has its keys at k_offset + h * head_bytes and its
 * values at v_offset + h * head_bytes:
 *   floats  keys cell [d][p % 32] (dimension-major), values cell [p % 32][d] (position-major)
 *   int8    keys [p % 32 / 16][d / 4][p % 16][d % 4], stored as code + 128: two U8 panels of 16
 *           positions, head_dim rounded up to a multiple of 4, padding codes 0 (stored 128);
 *           values cell [p % 32][d], signed
 *   fp8     E4M3: keys cell [d][p % 32]; values cell [p % 32][d], head_dim rounded up to a multiple
 *           of 16, padding 0
 * int8 and fp8 have 32 scales F16 each, at nb_kv_scales_at from the start of the head's keys
 * (values).
 * int8 (A8): per position and head, s = F16(absmax / 127), at most 65504; code =
 * clamp(rne(x * fl(1 / s)), -127, 127), all 0 where s is 0; Inf or NaN inside: s = NaN, codes 0.
 * The value of a cell is fl(code * s).
 * fp8: the same with 448 for 127, and code = E4M3(x * fl(1 / s)), which saturates. Where the view
 * has scales of its own, s is the head's, whatever is inside; but NaN as before. */
typedef struct {
    uint8_t *arena;
    size_t page_bytes, k_offset, v_offset, head_bytes;
    const int32_t *table;
    nb_kv_format format;
    int n_kv_heads, head_dim;
    /* fp8: static scales F16 [n_kv_heads], positive and finite; NULL: dynamic ones */
    const uint16_t *k_scales, *v_scales;
} nb_kv_view;

static inline size_t nb_kv_scales_at(nb_kv_format format, int head_dim)
{
    const int padding = format == NB_KV_INT8 ? 4 : 16;
    return (size_t)((head_dim + padding - 1) / padding * padding) * NB_KV_PAGE;
}
/* Bytes of the keys (or the values) of one head in a page. */
static inline size_t nb_kv_head_bytes(nb_kv_format format, int head_dim)
{
    if (format >= NB_KV_INT8)
        return nb_kv_scales_at(format, head_dim) + 2 * NB_KV_PAGE;
    return (size_t)head_dim * NB_KV_PAGE * (format == NB_KV_F32 ? 4 : 2);
}

#endif
