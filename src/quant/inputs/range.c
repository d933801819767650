/* See inputs/range.h. */
#include "quant/inputs/range.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Values that one thread takes at a time. */
#define CHUNK 16384

nb_status nb_input_range_new(nb_input_range **out, nb_err *err)
{
    return NB_ALLOC(out, 1, err);
}

void nb_input_range_free(nb_input_range *r)
{
    if (r != NULL)
        nb_free(r->part);
    nb_free(r);
}

typedef struct {
    nb_input_range *r;
    const float *x;
    int64_t n;
    atomic_bool bad;
} adding;

static void add_chunk(void *context, int64_t chunk, int thread)
{
    adding *job = context;
    nb_err err;
    const int64_t begin = chunk * CHUNK, left = job->n - begin;
    if (nb_observer_add(&job->r->part[thread], job->x + begin, left < CHUNK ? left : CHUNK, &err) !=
        NB_OK)
        atomic_store_explicit(&job->bad, true, memory_order_relaxed);
}

nb_status nb_input_range_add(nb_input_range *r, nb_pool *pool, const float *x, int64_t n,
                             nb_err *err)
{
    if (r->part == NULL) {
        NB_TRY(NB_ALLOC(&r->part, nb_pool_n_threads(pool), err));
        r->n_parts = nb_pool_n_threads(pool);
    }
    adding job = {.r = r, .x = x, .n = n};
    nb_pool_run(pool, (job.n + CHUNK - 1) / CHUNK, add_chunk, &job);
    for (int i = 0; i < r->n_parts; i++)
        nb_observer_merge(&r->all, &r->part[i]);
    memset(r->part, 0, (size_t)r->n_parts * sizeof *r->part);
    if (atomic_load(&job.bad))
        return nb_fail(err, NB_DATA, "an input of the layer is not finite");
    return NB_OK;
}

/* ---- from what was seen to a scale ---- */

static nb_status parse_percentile(double *out, const char *text, nb_err *err)
{
    char *end;
    /* Only digits and a point: strtod knows hexadecimal and names, too. */
    const bool plain = strspn(text, "0123456789.") == strlen(text) && strlen(text) < 20;
    *out = plain ? strtod(text, &end) : 0;
    if (!plain || *text == 0 || *end != 0 || !(*out > 0 && *out <= 100))
        return nb_fail(err, NB_USAGE, "observer 'percentile=%.40s': a number above 0, at most 100",
                       text);
    return NB_OK;
}

nb_status nb_observing_parse(nb_observing *out, const char *text, nb_err *err)
{
    static const char with[] = "percentile=";
    *out = (nb_observing){.kind = NB_OBSERVE_PERCENTILE};
    if (strncmp(text, with, sizeof with - 1) == 0)
        return parse_percentile(&out->percentile, text + sizeof with - 1, err);
    for (int i = 0; nb_observer_names[i] != NULL; i++) {
        if (strcmp(nb_observer_names[i], text) == 0) {
            out->kind = (nb_observer_kind)i;
            return NB_OK;
        }
    }
    return nb_fail(err, NB_USAGE,
                   "unknown observer '%.40s'; there are minmax, average, percentile (or "
                   "percentile=99.9), entropy and mse",
                   text);
}

float nb_input_range_scale(const nb_input_range *r, const nb_observing *how, nb_range_codes codes)
{
    float scale;
    int zero;
    const nb_value_range range = nb_observer_range(&r->all, how->kind, codes, how->percentile);
    nb_range_scale(range, codes, &scale, &zero);
    return scale < 0x1p-100f ? 0x1p-100f : scale > 0x1p100f ? 0x1p100f : scale;
}
