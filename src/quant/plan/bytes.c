/* See plan/bytes.h. */
#include "quant/plan/bytes.h"

#include "quant/plan/target.h"
#include "store/bnb.h"
#include "store/hqq.h"

/* GPTQ and AWQ: zero points are always there, and GPTQ has an index for each column. */
static int64_t turned_bytes(const nb_weight *w)
{
    const int64_t n_groups = w->n_cols / w->group_size;
    const int64_t codes = w->n_rows * w->n_cols * w->fmt->bits / 8;
    const int64_t order = w->layout == NB_LAYOUT_AWQ ? 0 : 4 * w->n_cols;
    return codes + order + n_groups * (2 * w->n_rows + w->n_rows * w->fmt->bits / 8);
}

/* With what bitsandbytes keeps of each matrix besides: tables and a text. */
static int64_t nf4_bytes(const nb_weight *w)
{
    const int64_t all = w->n_rows * w->n_cols, n = all / w->group_size;
    const int64_t scales =
        w->nested ? n + 4 * ((n + NB_NESTED_BLOCK - 1) / NB_NESTED_BLOCK) + 4 * 256 : 4 * n;
    return all / 2 + scales + 4 * 16 + nb_bnb_state_bytes(w);
}

static int64_t fp8_bytes(const nb_weight *w)
{
    const int64_t rows = w->scale_rows > 1 ? w->scale_rows : 1;
    const int64_t n_groups = (w->n_cols + w->group_size - 1) / w->group_size;
    const int64_t n_scales = (w->n_rows + rows - 1) / rows * n_groups;
    return w->n_rows * w->n_cols + n_scales * (int64_t)nb_float_bytes(w->scale_type) +
           (w->act.is_static ? 4 : 0);
}

/* Packed codes have a small tensor beside them that says their shape. */
#define SHAPE_BYTES 16

int64_t nb_weight_payload(const nb_weight *w)
{
    if (w->float_zeros)
        return w->bytes - nb_hqq_words_bytes(w);
    const bool packed = w->fmt->affine && w->fmt->levels == NULL && w->layout == NB_LAYOUT_CT &&
                        (w->fmt->bits != 8 || w->act.bits == 0);
    return w->bytes - (packed ? SHAPE_BYTES : 0);
}

int64_t nb_planned_bytes(const nb_weight *w)
{
    const int64_t word_bits = 32, n_words = (w->n_cols * w->fmt->bits + word_bits - 1) / word_bits;
    if (!w->fmt->affine)
        return w->n_rows * (w->n_cols / w->fmt->block_len) * w->fmt->block_bytes;
    if (w->fmt->levels != NULL)
        return w->fmt == &nb_format_nf4 ? nf4_bytes(w) : fp8_bytes(w);
    if (w->float_zeros)
        return nb_hqq_bytes(w);
    if (nb_target_turns(w->layout))
        return turned_bytes(w);
    const bool packed = w->fmt->bits != 8 || w->act.bits == 0;
    const int64_t n_groups = w->n_cols / w->group_size;
    int64_t bytes = packed ? SHAPE_BYTES + w->n_rows * 4 * n_words : w->n_rows * w->n_cols;
    bytes += w->n_rows * n_groups * (int64_t)nb_float_bytes(w->scale_type);
    bytes += w->act.is_static ? 4 : 0;
    if (w->symmetric)
        return bytes;
    const int64_t zero_rows = (w->n_rows * w->fmt->bits + word_bits - 1) / word_bits;
    return bytes + (packed ? 4 * zero_rows : w->n_rows) * n_groups;
}
