/* What a cell of the key-value cache is, and where it lies (A8). The kernels that store cells and
 * attend to them are slots of kernel.h. */
#ifndef NB_KERNEL_CELLS_H
#define NB_KERNEL_CELLS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NB_KV_PAGE   32  /* positions in a page */
#define NB_KV_RECENT 128 /* positions that packed formats keep as they are, at least */
#define NB_KV_FIRST  2   /* pages at the start of which packed formats keep that form for good */

typedef enum {
    NB_KV_F32,
    NB_KV_F16,
    NB_KV_BF16,
    NB_KV_INT8,
    NB_KV_FP8,
    NB_KV_INT4,
    NB_KV_INT4_PLAIN,
    NB_KV_INT2,
    NB_KV_N_FORMATS
} nb_kv_format;
/* "f32", "f16", "bf16", "int8", "fp8", "int4", "int4_plain", "int2" */
const char *nb_kv_format_name(nb_kv_format f);

/* Bits of a code of the formats that pack several into a byte; 0 for the others. */
static inline int nb_kv_bits(nb_kv_format format)
{
    return format == NB_KV_INT2 ? 2 : format == NB_KV_INT4 || format == NB_KV_INT4_PLAIN ? 4 : 0;
}

/* Where pages are: as the fields of that name in a view. */
typedef struct {
    uint8_t *arena;
    size_t page_bytes, k_offset, v_offset, head_bytes;
    const int32_t *table;
} nb_kv_pages;

/* One layer's cache of one sequence. Position p lives in page table[p / NB_KV_PAGE], at
 * arena + page * page_bytes. In a page, KV head h has its keys at k_offset + h * head_bytes and its
 * values at v_offset + h * head_bytes:
 *
 *   floats  keys cell [d][p % 32] (dimension-major), values cell [p % 32][d] (position-major)
 *   int8    keys [p % 32 / 16][d / 4][p % 16][d % 4], stored as code + 128: two U8 panels of 16
 *           positions, head_dim rounded up to a multiple of 4, padding codes 0 (stored 128);
 *           values cell [p % 32][d], signed
 *   fp8     E4M3: keys cell [d][p % 32]; values cell [p % 32][d], head_dim rounded up to a multiple
 *           of 16, padding 0
 *   packed  n = 2 (int4) or 4 (int2) codes to a byte, the first in the lowest bits, head_dim
 *           rounded up to a multiple of 16 n, padding codes 0:
 *           keys    byte [d / n][p % 32],               code d % n of it
 *           values  byte [p % 32][d / (16 n)][d % 16],  code d / 16 % n of it
 *
 * int8 and fp8 then have 32 scales F16, one for each position; packed formats have scales F16 and
 * as many minima F16 directly after them: of keys [d], of values [d / g][p % 32], g = 32 (int4) or
 * 64 (int2). In int2 a quarter of the dimensions have keys of 4 bits, and scales with the sign bit
 * set: `wide` ones (nb_pack_wide). The codes' upper two bits come, in what the values have left of
 * their bytes, after the minima: the r-th wide dimension's as code r of keys [r / 4][p % 32].
 *
 * int8 (A8): per position and head, s = F16(absmax / 127), at most 65504; code =
 * clamp(rne(x * fl(1 / s)), -127, 127), all 0 where s is 0; Inf or NaN inside: s = NaN, codes 0.
 * The value of a cell is fl(code * s).
 * fp8: the same with 448 for 127, and code = E4M3(x * fl(1 / s)), which saturates. Where the view
 * has scales of its own, s is the head's, whatever is inside; but NaN as before.
 * packed: numbers that share a scale are packed by nb_pack (packed.h), and the value of a cell is
 * fma(|s|, code, m), m the minimum; Inf or NaN inside: s = NaN, m = 0, codes 0.
 * Positions come as F16 into the pages of `recent`, laid out as f16 is. When the last position of a
 * page is stored, the page is sealed, that is, quantized from there: keys by channel, 32 positions
 * sharing a scale, values by position. A query at p sees the sealed form of the first
 * nb_kv_n_sealed(p) pages, and `recent` of the others (arXiv:2402.02750), to which the first
 * NB_KV_FIRST pages always belong: the keys of the first tokens, which much attention goes to, are
 * unlike all others (arXiv:2309.17453), and spoil the scales of those beside them.
 * int4 and int2, but not int4_plain, store H v (hadamard.h) for v, where nb_kv_rotates: outputs are
 * rotated after they were divided. Keys are never: their outliers have channels of their own. */
typedef struct {
    uint8_t *arena;
    size_t page_bytes, k_offset, v_offset, head_bytes;
    const int32_t *table;
    nb_kv_format format;
    int n_kv_heads, head_dim;
    /* fp8: static scales F16 [n_kv_heads], positive and finite; NULL: dynamic ones */
    const uint16_t *k_scales, *v_scales;
    nb_kv_pages recent; /* of packed formats */
} nb_kv_view;

/* Bytes of codes of the keys (or the values) of one head in a page; scales come after them. */
static inline size_t nb_kv_scales_at(nb_kv_format format, int head_dim)
{
    const int bits = nb_kv_bits(format) > 0 ? nb_kv_bits(format) : 8;
    const int unit = format == NB_KV_INT8 ? 4 : 16 * 8 / bits;
    return (size_t)((head_dim + unit - 1) / unit * unit * bits) * NB_KV_PAGE / 8;
}
/* Of packed formats: scales, and as many minima. */
static inline size_t nb_kv_n_scales(nb_kv_format format, int head_dim)
{
    return nb_kv_scales_at(format, head_dim) / (size_t)(4 * nb_kv_bits(format));
}
/* Dimensions of a position that share a scale and a minimum, and how many scales values have. */
static inline int nb_kv_group(nb_kv_format format)
{
    return format == NB_KV_INT2 ? 64 : 32;
}
static inline size_t nb_kv_n_value_scales(nb_kv_format format, int head_dim)
{
    return nb_kv_n_scales(format, head_dim) * NB_KV_PAGE / (size_t)nb_kv_group(format);
}
/* Dimensions with keys of 4 bits, at most; and where, among the bytes of the values, the upper bits
 * of their codes begin. */
static inline size_t nb_kv_n_wide(nb_kv_format format, int head_dim)
{
    return format == NB_KV_INT2 ? nb_kv_n_scales(format, head_dim) / 4 : 0;
}
static inline size_t nb_kv_wide_at(nb_kv_format format, int head_dim)
{
    return nb_kv_scales_at(format, head_dim) + 4 * nb_kv_n_value_scales(format, head_dim);
}
static inline bool nb_kv_is_wide(uint16_t scale)
{
    return scale >> 15 != 0;
}
/* Bytes of the keys (or the values) of one head in a page. */
static inline size_t nb_kv_head_bytes(nb_kv_format format, int head_dim)
{
    if (nb_kv_bits(format) > 0)
        return nb_kv_scales_at(format, head_dim) + 4 * nb_kv_n_scales(format, head_dim);
    if (format >= NB_KV_INT8)
        return nb_kv_scales_at(format, head_dim) + 2 * NB_KV_PAGE;
    return (size_t)head_dim * NB_KV_PAGE * (format == NB_KV_F32 ? 4 : 2);
}

static inline bool nb_kv_rotates(nb_kv_format format, int head_dim)
{
    return (format == NB_KV_INT4 || format == NB_KV_INT2) && (head_dim & (head_dim - 1)) == 0;
}

/* Pages of which a query at position p sees the sealed form, which packed formats have. */
static inline int64_t nb_kv_n_sealed(nb_kv_format format, int64_t p)
{
    return nb_kv_bits(format) > 0 && p + 1 > NB_KV_RECENT ? (p + 1 - NB_KV_RECENT) / NB_KV_PAGE : 0;
}
/* Whether such a query sees that form of a page. */
static inline bool nb_kv_sees_sealed(int64_t n_sealed, int64_t page)
{
    return page >= NB_KV_FIRST && page < n_sealed;
}

#endif
