/* See changes.h. */
#include "quant/transform/changes.h"

#define CHUNK_ROWS 16

void nb_changes_free(nb_changes *c)
{
    nb_free(c->columns);
    nb_free(c->clip);
    nb_free(c->divisors);
    *c = (nb_changes){0};
}

void nb_clip_range(const float *w, int64_t n, bool two_sided, float *lo, float *hi)
{
    float least = 0, most = 0;
    for (int64_t j = 0; j < n; j++) {
        least = w[j] < least ? w[j] : least;
        most = w[j] > most ? w[j] : most;
    }
    *hi = two_sided || most > -least ? most : -least;
    *lo = two_sided ? least : -*hi;
}

void nb_clip_span(float *to, const float *w, int64_t n, float lo, float hi, int steps)
{
    const float ratio = 1 - NB_CLIP_STEP * (float)steps, from = lo * ratio, end = hi * ratio;
    for (int64_t j = 0; j < n; j++)
        to[j] = w[j] < from ? from : w[j] > end ? end : w[j];
}

typedef struct {
    const nb_changes *c;
    float *w;
    int64_t n_cols, row, n;
} changing;

static void clip_row(const nb_changes *c, float *w, int64_t n_cols, const uint8_t *steps)
{
    for (int64_t at = 0; at < n_cols; at += c->span_len, steps++) {
        const int64_t n = n_cols - at < c->span_len ? n_cols - at : c->span_len;
        float lo, hi;
        if (*steps == 0)
            continue;
        nb_clip_range(w + at, n, c->two_sided, &lo, &hi);
        nb_clip_span(w + at, w + at, n, lo, hi, *steps);
    }
}

static void change_chunk(void *context, int64_t chunk, int thread)
{
    (void)thread;
    const changing *x = context;
    const nb_changes *c = x->c;
    const int64_t n_cols = x->n_cols, end = (chunk + 1) * CHUNK_ROWS;
    for (int64_t r = chunk * CHUNK_ROWS; r < end && r < x->n; r++) {
        float *w = x->w + r * n_cols;
        for (int64_t j = 0; c->columns != NULL && j < n_cols; j++)
            w[j] *= c->columns[j];
        if (c->clip != NULL)
            clip_row(c, w, n_cols,
                     c->clip + (x->row + r) * ((n_cols + c->span_len - 1) / c->span_len));
        for (int64_t j = 0; c->divisors != NULL && j < n_cols; j++)
            w[j] /= c->divisors[x->row + r];
    }
}

void nb_changes_apply(const nb_changes *c, nb_pool *pool, float *w, int64_t n_cols, int64_t row,
                      int64_t n)
{
    if (c->columns == NULL && c->clip == NULL && c->divisors == NULL)
        return;
    nb_pool_run(pool, (n + CHUNK_ROWS - 1) / CHUNK_ROWS, change_chunk,
                &(changing){c, w, n_cols, row, n});
}
