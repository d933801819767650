/* One row out of a prompt's many: see nb_pooling of engine.h. The rows come in the order of the
 * tokens, however the prompt was cut into steps, so that the sum is always the same. */
#include "engine/engine_parts.h"

#include <assert.h>
#include <string.h>

nb_status nb_pooling_init(nb_engine_request_state *r, int64_t d_model, nb_err *err)
{
    const nb_engine_request *q = &r->asked;
    if (q->pooling == NB_POOL_NONE)
        return NB_OK;
    if (!q->no_answer || q->n != 1 || q->prompt_logprobs)
        return nb_fail(err, NB_USAGE, "pooling is of a prompt alone: no answer, no logprobs");
    NB_TRY(NB_ALLOC(&r->pooled, d_model, err));
    return q->pooling == NB_POOL_MEAN ? NB_ALLOC(&r->sum, d_model, err) : NB_OK;
}

void nb_pooling_take(nb_engine_request_state *r, const float *hidden, int64_t d_model, int64_t from,
                     int64_t n)
{
    const int64_t n_prompt = r->asked.n_prompt;
    if (r->asked.pooling == NB_POOL_LAST) {
        if (from + n == n_prompt)
            memcpy(r->pooled, hidden + (n - 1) * d_model, (size_t)d_model * sizeof *hidden);
        return;
    }
    /* After a preemption tokens run again. Of those the engine asks for one row, which is here
     * already. */
    assert(from <= r->n_pooled);
    for (int64_t i = r->n_pooled - from; i < n; i++) {
        for (int64_t k = 0; k < d_model; k++)
            r->sum[k] += (double)hidden[i * d_model + k];
        r->n_pooled++;
    }
    for (int64_t k = 0; k < d_model && r->n_pooled == n_prompt; k++)
        r->pooled[k] = (float)(r->sum[k] / (double)n_prompt);
}
