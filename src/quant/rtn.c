/* Round to nearest: every weight on its own, no data needed. The baseline that each cleverer
 * method has to beat. O(n_rows * n_cols). */
#include "quant/quantizer.h"

extern const nb_quantizer nb_quantizer_rtn;

static nb_status rtn_encode_rows(const nb_quant_job *job, nb_mat *out, nb_err *err)
{
    (void)err; /* cannot fail: the driver checked shapes and values */
    for (int64_t r = 0; r < job->n_rows; r++)
        out->fmt->encode_row(out, r, job->weight + r * job->n_cols);
    return NB_OK;
}

const nb_quantizer nb_quantizer_rtn = {
    .name = "rtn",
    .source = "folklore",
    .summary = "round to nearest",
    .needs = NB_STAT_NONE,
    .encode_rows = rtn_encode_rows,
};
