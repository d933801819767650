/* Static scales of the key-value cache as weights of a Hugging Face folder (kv_scheme.h). */
#include "store/hf.h"
#include "store/kv_scheme.h"

#include <string.h>

/* Files of quant_method "fp8" are older than the key, and may have scales without it. */
bool nb_hf_has_kv_scales(const nb_store *store)
{
    const nb_hf_state *hf = store->state;
    return store->kv_scheme == NB_KV_SCHEME_STATIC ||
           (store->kv_scheme == NB_KV_SCHEME_NONE && hf->fp8.name != NULL);
}

/* The same scale under another name would be one of two, and nobody knows which one counts. */
static nb_status check_once(const nb_hf_state *hf, const char *name, const char *part,
                            size_t prefix, nb_err *err)
{
    nb_buf other = {0};
    nb_status s = NB_OK;
    const char *const *all = nb_kv_scale_spellings(part);
    for (int i = 0; all[i] != NULL && s == NB_OK; i++) {
        other.len = 0;
        s = nb_buf_format(&other, err, "%.*s%s", (int)prefix, name, all[i]);
        const char *text = (const char *)other.data;
        if (s == NB_OK && strcmp(text, name) != 0 &&
            nb_names_find(hf->names, hf->n_tensors, text) != NULL)
            s = nb_fail(err, NB_DATA, "tensors '%.200s' and '%.200s' are one scale, twice", name,
                        text);
    }
    nb_buf_free(&other);
    return s;
}

nb_status nb_hf_add_kv_scale(nb_store *store, nb_located at, nb_err *err)
{
    nb_hf_state *hf = store->state;
    const nb_st_tensor *t = at.tensor;
    size_t prefix = 0;
    const char *part = nb_kv_scale_part(t->name, &prefix);
    nb_float_type type = NB_F32;
    NB_TRY(check_once(hf, t->name, part, prefix, err));
    NB_TRY(nb_ct_scale_type(t, &type, err));
    const bool one = t->n_dims == 0 || (t->n_dims == 1 && t->dims[0] == 1);
    const bool by_head = t->n_dims == 3 && t->dims[0] > 0 && t->dims[1] == 1 && t->dims[2] == 1;
    if (!one && !by_head) {
        char found[NB_ST_SHAPE_TEXT];
        return nb_fail(err, NB_DATA,
                       "tensor '%.200s': wanted one scale, or [n_kv_heads, 1, 1], found %s",
                       t->name, nb_st_shape_text(found, t->n_dims, t->dims));
    }
    nb_weight *w = &store->weights[store->n_weights];
    *w = (nb_weight){.file_name = t->name,
                     .n_dims = t->n_dims,
                     .n_rows = by_head ? t->dims[0] : 1,
                     .n_cols = 1,
                     .fmt = type == NB_F32   ? &nb_format_f32
                            : type == NB_F16 ? &nb_format_f16
                                             : &nb_format_bf16,
                     .bytes = t->bytes};
    memcpy(w->dims, t->dims, sizeof w->dims);
    char *name;
    NB_TRY(nb_arena_format(&store->arena, &name, err, "%.*s%s", (int)prefix, t->name, part));
    w->name = name;
    hf->recipes[store->n_weights] = (nb_hf_recipe){.codes = at};
    store->n_weights++;
    return NB_OK;
}
