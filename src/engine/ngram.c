/* See ngram.h. */
#include "engine/ngram.h"

#include "base/mix.h"

#include <string.h>

static const int lengths[NB_NGRAM_ORDERS] = {3, 2};

nb_status nb_ngram_init(nb_ngram *g, int64_t max, nb_err *err)
{
    *g = (nb_ngram){.max = max, .mask = 15};
    while (g->mask < 2 * (uint64_t)max)
        g->mask = 2 * g->mask + 1;
    nb_status s = NB_ALLOC(&g->id, max, err);
    for (int k = 0; k < NB_NGRAM_ORDERS && s == NB_OK; k++)
        s = NB_ALLOC(&g->after[k], g->mask + 1, err);
    if (s != NB_OK)
        nb_ngram_free(g);
    return s;
}

void nb_ngram_free(nb_ngram *g)
{
    nb_free(g->id);
    for (int k = 0; k < NB_NGRAM_ORDERS; k++)
        nb_free(g->after[k]);
    *g = (nb_ngram){0};
}

void nb_ngram_clear(nb_ngram *g)
{
    g->n = 0;
    for (int k = 0; k < NB_NGRAM_ORDERS; k++)
        memset(g->after[k], 0, (size_t)(g->mask + 1) * sizeof *g->after[k]);
}

/* The place in the table of the `length` tokens before position `end`. */
static uint64_t place(const nb_ngram *g, int64_t end, int length)
{
    uint64_t h = (uint64_t)length;
    for (int i = 1; i <= length; i++)
        h = nb_mix64(h ^ (uint64_t)(uint32_t)g->id[end - i]);
    return h & g->mask;
}

/* Ends are noted when it is known what follows, so that a text never finds itself. Of two that
 * share a place the later one stays. */
void nb_ngram_push(nb_ngram *g, int32_t id)
{
    if (g->n == g->max)
        return;
    for (int k = 0; k < NB_NGRAM_ORDERS; k++) {
        if (g->n >= lengths[k])
            g->after[k][place(g, g->n, lengths[k])] = g->n;
    }
    g->id[g->n++] = id;
}

int64_t nb_ngram_guess(const nb_ngram *g, int64_t k, int32_t *out)
{
    for (int o = 0; o < NB_NGRAM_ORDERS; o++) {
        const int length = lengths[o];
        if (g->n <= length)
            continue;
        const int64_t after = g->after[o][place(g, g->n, length)];
        if (after == 0 || memcmp(g->id + after - length, g->id + g->n - length,
                                 (size_t)length * sizeof *g->id) != 0)
            continue;
        /* A period shorter than k goes on with its own guesses. */
        for (int64_t i = 0; i < k; i++)
            out[i] = after + i < g->n ? g->id[after + i] : out[after + i - g->n];
        return k;
    }
    return 0;
}
