/* Points whose second moments have no room beside what is made of them: the sums are taken from the
 * activations on disk when the weights before the point are gone, those held out in a pass of their
 * own, and both wait in files until they are needed. */
#include "quant/walk/weights.h"

static nb_status rest(nb_walker *w, nb_sym *h, int i, nb_err *err)
{
    static const char *const names[2] = {"moments", "moments-held"};
    nb_spill_close(&w->resting[i]);
    NB_TRY(nb_workdir_spill(w->job->dir, names[i], sizeof(double), nb_sym_rest_rows(h->n),
                            &w->resting[i], err));
    return nb_sym_rest(h, &w->resting[i], err);
}

nb_status nb_walker_gather(nb_walker *w, nb_point point, nb_err *err)
{
    int64_t n_rows;
    const int64_t n_cols = nb_walker_point_shape(&w->config, point, &n_rows);
    nb_input_stats *s = &w->stats[point];
    const unsigned needs = w->point_needs[point] | NB_WALKER_LOOKS;
    NB_TRY(nb_input_stats_init(s, n_cols, needs & ~(unsigned)NB_STAT_HELD_OUT, w->streams.n_tokens,
                               err));
    s->held_later = (needs & NB_STAT_HELD_OUT) != 0;
    NB_TRY(nb_streams_gather(&w->streams, point, s, false, err));
    NB_TRY(rest(w, &s->h, 0, err));
    if (s->held_later && s->n_held > 0) {
        NB_TRY(nb_sym_init(&s->held_h, n_cols, err));
        NB_TRY(nb_streams_gather(&w->streams, point, s, true, err));
        NB_TRY(rest(w, &s->held_h, 1, err));
    }
    nb_algebra_free(&w->la); /* sums have the largest scratch */
    w->la.scratch = (nb_buf){0};
    return NB_OK;
}
