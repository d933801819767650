/* See embedding.h. */
#include "quant/weight/embedding.h"

#include "base/fpenv.h"

nb_status nb_embedding_open(nb_embedding *e, nb_store *store, const nb_config *c, nb_err *err)
{
    static const char name[] = "model.embed_tokens.weight";
    const nb_weight *w = nb_store_find(store, name);
    *e = (nb_embedding){0};
    if (w == NULL)
        return nb_fail(err, NB_DATA, "%s: tensor '%s' is missing", nb_store_path(store), name);
    if (w->n_rows != c->vocab_size || w->n_cols != c->d_model)
        return nb_fail(err, NB_DATA, "%s: tensor '%s' is [%lld, %lld], not [%lld, %lld]",
                       nb_store_path(store), name, (long long)w->n_rows, (long long)w->n_cols,
                       (long long)c->vocab_size, (long long)c->d_model);
    nb_embedding made = {.store = store, .weight = w, .whole = !nb_store_reads_rows(store, w)};
    const nb_status s = made.whole ? nb_store_read(store, w, &made.loaded, err) : NB_OK;
    if (s != NB_OK)
        nb_loaded_free(&made.loaded);
    else
        *e = made;
    return s;
}

void nb_embedding_close(nb_embedding *e)
{
    nb_loaded_free(&e->loaded);
    *e = (nb_embedding){0};
}

static nb_status embed(nb_embedding *e, int32_t id, float *x, nb_err *err)
{
    if (id < 0 || id >= e->weight->n_rows)
        return nb_fail(err, NB_DATA, "token id %d is outside the vocabulary of %lld", id,
                       (long long)e->weight->n_rows);
    if (!e->whole)
        NB_TRY(nb_store_read_rows(e->store, e->weight, id, 1, &e->loaded, err));
    e->loaded.mat.fmt->decode_row(&e->loaded.mat, e->whole ? id : 0, x);
    return NB_OK;
}

nb_status nb_embedding_rows(nb_embedding *e, const int32_t *ids, int64_t n, float *x, nb_err *err)
{
    const uint64_t env = nb_fpenv_enter();
    nb_status s = NB_OK;
    for (int64_t t = 0; t < n && s == NB_OK; t++)
        s = embed(e, ids[t], x + t * e->weight->n_cols, err);
    nb_fpenv_leave(env);
    return s;
}
