/* What goes around the tensors of a model that is written: config, tokenizer and chat template, as
 * the files of a Hugging Face folder or as the keys of a GGUF, made from either of the two. */
#ifndef NB_QUANT_WRITE_WRAPPING_H
#define NB_QUANT_WRITE_WRAPPING_H

#include "quant/plan/plan.h"

#define NB_MAX_SIDE_FILES 24

/* `{0}` is empty. */
typedef struct {
    /* hf */
    nb_side_file side[NB_MAX_SIDE_FILES];
    nb_buf bytes[NB_MAX_SIDE_FILES]; /* of side[i] */
    int64_t n_side, side_bytes;
    /* gguf */
    nb_buf kv;
    int64_t n_kv, n_heads, n_kv_heads;
} nb_wrapping;

/* NB_UNSUPPORTED names what the target has no words for. */
nb_status nb_wrapping_make(nb_wrapping *w, nb_store *store, const nb_plan *plan, nb_err *err);
void nb_wrapping_free(nb_wrapping *w);

/* Starts the output; path NULL only plans it (store.h). */
nb_status nb_wrapping_open_sink(nb_sink **out, const nb_wrapping *w, const nb_plan *plan,
                                const char *path, bool force, nb_err *err);

/* ---- for wrapping.c ---- */
nb_status nb_wrap_hf(nb_wrapping *w, nb_store *store, const nb_plan *plan, nb_err *err);
nb_status nb_wrap_gguf(nb_wrapping *w, nb_store *store, const nb_plan *plan, nb_err *err);

#endif
