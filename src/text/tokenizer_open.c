/* Finding the tokenizer of a model: in the keys of its GGUF, or in the files of its folder. */
#include "text/tokenizer_parts.h"

/* The largest published tokenizer.json has 35 MB. */
#define MAX_JSON_BYTES ((size_t)128 << 20)

static nb_status open_folder(nb_tokenizer **out, nb_store *store, int64_t n_rows, nb_err *err)
{
    nb_arena arena = {0};
    json_t *tokenizer = NULL;
    char *path;
    nb_status s;
    NB_TRY_GOTO(s, nb_arena_format(&arena, &path, err, "%s/tokenizer.json", nb_store_path(store)));
    NB_TRY_GOTO(s, nb_json_load(&tokenizer, path, MAX_JSON_BYTES, err));
    s = nb_tokenizer_from_json(out, tokenizer, nb_store_tokenizer_config(store),
                               nb_store_generation_config(store), nb_store_config(store), n_rows,
                               err);
    if (s != NB_OK)
        nb_context(err, "%s", path);
done:
    json_decref(tokenizer);
    nb_arena_free(&arena);
    return s;
}

nb_status nb_tokenizer_open(nb_tokenizer **out, nb_store *store, nb_err *err)
{
    *out = NULL;
    const nb_weight *embedding = nb_store_find(store, "model.embed_tokens.weight");
    const int64_t n_rows = embedding != NULL ? embedding->n_rows : -1;
    if (nb_store_kind_of(store) == NB_STORE_HF)
        return open_folder(out, store, n_rows, err);
    if (nb_tokenizer_from_gguf(out, nb_store_gguf(store), n_rows, err) != NB_OK)
        return nb_context(err, "%s", nb_store_path(store));
    return NB_OK;
}
