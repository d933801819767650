/* See calib/pick.h. */
#include "quant/calib/pick.h"

#include "base/rng.h"

#include <stdlib.h>

#define STREAM UINT64_C(0x63616c6962)

static int by_key(const void *a, const void *b)
{
    const nb_calib_ticket *x = a, *y = b;
    if (x->key != y->key)
        return x->key < y->key ? -1 : 1;
    return (x->number > y->number) - (x->number < y->number);
}

void nb_calib_pick_draw(nb_calib_picker *p, const nb_calib_ticket **out, int64_t *n)
{
    const size_t most = (size_t)(p->most > 0 ? p->most : NB_CALIB_PICKED);
    size_t count = p->tickets.len / sizeof(nb_calib_ticket);
    if (count > 0)
        qsort(p->tickets.data, count, sizeof(nb_calib_ticket), by_key);
    count = count < most ? count : most;
    p->tickets.len = count * sizeof(nb_calib_ticket);
    *out = (const nb_calib_ticket *)(const void *)p->tickets.data;
    *n = (int64_t)count;
}

nb_status nb_calib_pick_offer(nb_calib_picker *p, int file, nb_calib_span span, nb_err *err)
{
    /* Twice as many are kept as will stay, so that sorting them costs little for each. */
    const int64_t most = p->most > 0 ? p->most : NB_CALIB_PICKED;
    if (p->tickets.len / sizeof(nb_calib_ticket) >= 2 * (size_t)most) {
        const nb_calib_ticket *ignored;
        int64_t n;
        nb_calib_pick_draw(p, &ignored, &n);
    }
    uint32_t words[4];
    nb_philox(p->seed, STREAM, (uint64_t)p->n_offered, words);
    const nb_calib_ticket ticket = {
        .key = (uint64_t)words[1] << 32 | words[0],
        .number = p->n_offered,
        .span = span,
        .file = file,
    };
    NB_TRY(nb_buf_put(&p->tickets, &ticket, sizeof ticket, err));
    p->n_offered++;
    return NB_OK;
}
