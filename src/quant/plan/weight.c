/* See plan/weight.h. */
#include "quant/plan/weight.h"

void nb_planned_plain(nb_weight *to, nb_how *how, const nb_format *fmt)
{
    if (to->fmt == fmt)
        return;
    *how = fmt == &nb_format_f32 ? NB_HOW_WIDEN : NB_HOW_ROUND;
    to->fmt = fmt;
    to->group_size = to->scale_rows = 0;
    to->nested = to->float_zeros = false;
    to->act = (nb_act_spec){0};
}

void nb_planned_affine(nb_weight *to, nb_how *how, const nb_scheme *scheme, int64_t group_size,
                       nb_float_type scale_type)
{
    const int64_t group = group_size == NB_GROUP_CHANNEL ? to->n_cols : group_size;
    const bool same = to->fmt == scheme->fmt && to->group_size == group &&
                      to->symmetric == scheme->symmetric &&
                      to->float_zeros == scheme->float_zeros && to->scale_type == scale_type;
    *how = same ? NB_HOW_COPY : NB_HOW_QUANTIZE;
    to->fmt = scheme->fmt;
    to->group_size = group;
    to->symmetric = scheme->symmetric;
    to->float_zeros = scheme->float_zeros;
    to->scale_type = scale_type;
    to->scale_rows = 0;
    to->nested = false;
    to->layout = scheme->float_zeros ? NB_LAYOUT_HQQ : NB_LAYOUT_CT;
    to->act = scheme->act;
}

void nb_planned_float_coded(nb_weight *to, nb_how *how, const nb_scheme *scheme, int64_t group_size,
                            nb_float_type main_type)
{
    const nb_weight from = *to;
    const bool nf4 = scheme->fmt == &nb_format_nf4;
    to->fmt = scheme->fmt;
    to->group_size = group_size == NB_GROUP_CHANNEL ? to->n_cols : group_size;
    to->symmetric = true;
    to->float_zeros = false;
    to->scale_type = nf4 ? NB_F32 : main_type;
    to->scale_rows = scheme->scale_rows == NB_ROWS_ALL ? to->n_rows : scheme->scale_rows;
    to->nested = scheme->nested;
    to->act = scheme->act;
    to->layout = nf4 ? NB_LAYOUT_BNB : NB_LAYOUT_CT;
    const bool same = from.fmt == to->fmt && from.group_size == to->group_size &&
                      from.scale_type == to->scale_type && from.scale_rows == to->scale_rows &&
                      from.nested == to->nested;
    *how = same ? NB_HOW_COPY : NB_HOW_QUANTIZE;
}

bool nb_planned_affine_of_block(nb_weight *to, nb_how *how)
{
    const nb_format *fmt = to->fmt == &nb_format_q4_0   ? &nb_format_int4
                           : to->fmt == &nb_format_q8_0 ? &nb_format_int8
                                                        : NULL;
    if (fmt == NULL)
        return false;
    to->group_size = to->fmt->block_len;
    to->fmt = fmt;
    to->symmetric = true;
    to->float_zeros = false;
    to->scale_type = NB_F16;
    *how = NB_HOW_REPACK;
    return true;
}

nb_status nb_planned_block_of_affine(nb_weight *to, nb_how *how, bool requantize, nb_err *err)
{
    const nb_format *fmt = to->fmt->bits <= 4 ? &nb_format_q4_0 : &nb_format_q8_0;
    const bool whole = to->n_cols % fmt->block_len == 0;
    const bool same =
        to->symmetric && to->group_size % fmt->block_len == 0 && to->fmt->int_form != NULL;
    if (to->act.is_static && !requantize)
        return nb_fail(
            err, NB_UNSUPPORTED,
            "tensor '%.200s': its activations share one scale (static), for which a GGUF "
            "has no place; --requantize goes without, --dtype bf16 makes floats",
            to->name);
    if (whole && same) {
        *how = NB_HOW_REPACK;
    } else if (whole && requantize) {
        *how = NB_HOW_QUANTIZE;
    } else {
        return nb_fail(err, NB_UNSUPPORTED,
                       "tensor '%.200s': %s in groups of %lld%s of %lld columns has no lossless "
                       "GGUF form; --requantize chooses new %s codes, --dtype bf16 makes floats",
                       to->name, to->fmt->name, (long long)to->group_size,
                       to->symmetric ? "" : ", asymmetric,", (long long)to->n_cols, fmt->name);
    }
    to->fmt = fmt;
    to->group_size = to->scale_rows = 0;
    to->nested = to->float_zeros = false;
    to->act = (nb_act_spec){0};
    return NB_OK;
}
