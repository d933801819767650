/* Measurements of a mixture that are kept in OUT.nibble-mix; see mixing.h. */
#include "cli/mixing.h"

#include "quant/write/digest.h"

#include <string.h>

static nb_status make_key(nb_mixing *m, nb_err *err)
{
    char digest[NB_SHA256_HEX];
    nb_buf text = {0};
    NB_TRY(nb_model_digest(nb_store_path(m->store), digest, err));
    nb_status s =
        nb_buf_format(&text, err, "%s %s %s %d %d %s", nb_version(), digest, m->set.sha256,
                      (int)m->request->to, (int)m->request->layout, m->measured_with);
    for (int64_t i = 0; i < m->n_pieces && s == NB_OK; i++)
        s = nb_buf_format(&text, err, " %lld+%lld",
                          (long long)(m->pieces[i].ids - m->set.seq[0].ids),
                          (long long)m->pieces[i].n);
    if (s == NB_OK)
        nb_sha256_hex(text.data, text.len, m->key);
    nb_buf_free(&text);
    return s;
}

nb_status nb_mixing_keep(void *context, const nb_sensitivity *t, nb_err *err)
{
    nb_mixing *m = context;
    json_t *rows;
    NB_TRY(nb_sensitivity_json(t, &rows, err));
    json_t *state = json_pack("{s:s, s:o}", "key", m->key, "layers", rows);
    const nb_status s = state == NULL ? nb_fail(err, NB_MEMORY, "no memory for the state")
                                      : nb_workdir_put_state(&m->dir, state, err);
    json_decref(state);
    return s;
}

static nb_status take_kept(nb_mixing *m, nb_err *err)
{
    json_t *state;
    bool damaged;
    NB_TRY(nb_workdir_get_state(&m->dir, &state, &damaged, err));
    const char *key = json_string_value(json_object_get(state, "key"));
    if (key != NULL && strcmp(key, m->key) == 0)
        nb_sensitivity_take(&m->table, json_object_get(state, "layers"));
    json_decref(state);
    return NB_OK;
}

static nb_status folder_of(const char *output, nb_buf *path, nb_err *err)
{
    size_t n = strlen(output);
    while (n > 1 && output[n - 1] == '/')
        n--;
    return nb_buf_format(path, err, "%.*s.nibble-mix", (int)n, output);
}

nb_status nb_mixing_open_kept(nb_mixing *m, const char *output, bool dry, nb_err *err)
{
    nb_buf path = {0};
    if (output == NULL)
        return NB_OK;
    nb_status s = folder_of(output, &path, err);
    const char *folder = (const char *)path.data;
    const bool there = s == NB_OK && nb_path_is_dir(folder);
    if (s == NB_OK && (!dry || there))
        s = dry ? nb_workdir_look(&m->dir, folder, err) : nb_workdir_open(&m->dir, folder, err);
    if (s == NB_OK && !dry && m->flags->fresh)
        nb_workdir_clear(&m->dir);
    if (s == NB_OK && (!dry || there))
        s = make_key(m, err);
    if (s == NB_OK && there && !m->flags->fresh)
        s = take_kept(m, err);
    nb_buf_free(&path);
    return s;
}
