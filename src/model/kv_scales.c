/* See kv_scales.h. */
#include "model/kv_scales.h"

#include "numeric/minifloat.h"

#include <math.h>
#include <stdio.h>

/* The scale of one layer's keys or values; NULL: there is none. */
static const nb_weight *find(const nb_store *store, int64_t layer, const char *part)
{
    char name[96];
    snprintf(name, sizeof name, "model.layers.%lld.self_attn.%s", (long long)layer, part);
    return nb_store_find(store, name);
}

static bool has_any(const nb_store *store)
{
    for (int64_t i = 0; i < nb_store_n_weights(store); i++) {
        if (nb_weight_is_kv_scale(nb_store_weight(store, i)))
            return true;
    }
    return false;
}

static nb_status find_part(const nb_store *store, const nb_config *c, int64_t layer,
                           const char *part, const nb_weight **out, nb_err *err)
{
    const nb_weight *own = find(store, layer, part), *both = find(store, layer, "kv_scale");
    const char *path = nb_store_path(store);
    if (own != NULL && both != NULL)
        return nb_fail(err, NB_DATA, "%s: tensors '%.200s' and '%.200s' are one scale, twice", path,
                       own->file_name, both->file_name);
    const nb_weight *w = own != NULL ? own : both;
    if (w == NULL)
        return nb_fail(err, NB_DATA,
                       "%s: tensor 'model.layers.%lld.self_attn.%s' is missing: static scales of "
                       "the KV cache are there for every layer, or for none",
                       path, (long long)layer, part);
    if (w->n_dims == 3 && w->n_rows != c->n_kv_heads)
        return nb_fail(err, NB_DATA,
                       "%s: tensor '%.200s' has %lld scales, and the config has %lld KV heads",
                       path, w->file_name, (long long)w->n_rows, (long long)c->n_kv_heads);
    *out = w;
    return NB_OK;
}

static nb_status read_part(nb_store *store, const nb_config *c, const nb_weight *w,
                           nb_loaded *loaded, uint16_t *to, nb_err *err)
{
    NB_TRY(nb_store_read(store, w, loaded, err));
    for (int64_t h = 0; h < c->n_kv_heads; h++) {
        float scale = 0;
        loaded->mat.fmt->decode_row(&loaded->mat, w->n_rows > 1 ? h : 0, &scale);
        if (!(scale > 0) || isinf(scale))
            return nb_fail(err, NB_DATA,
                           "%s: tensor '%.200s': %g is no scale, which is positive and finite",
                           nb_store_path(store), w->file_name, (double)scale);
        to[h] = nb_f16_from_f32(scale);
        if (to[h] == 0 || to[h] >= 0x7c00)
            return nb_fail(
                err, NB_DATA,
                "%s: tensor '%.200s': the scale %g is out of the range of F16, which the "
                "cache holds scales in: 6e-08 to 65504",
                nb_store_path(store), w->file_name, (double)scale);
    }
    return NB_OK;
}

static nb_status read_all(nb_store *store, const nb_config *c, uint16_t *k, uint16_t *v,
                          nb_loaded *loaded, nb_err *err)
{
    for (int64_t i = 0; i < c->n_layers; i++) {
        const nb_weight *keys = NULL, *values = NULL;
        NB_TRY(find_part(store, c, i, "k_scale", &keys, err));
        NB_TRY(find_part(store, c, i, "v_scale", &values, err));
        if (k == NULL)
            continue;
        NB_TRY(read_part(store, c, keys, loaded, k + i * c->n_kv_heads, err));
        NB_TRY(read_part(store, c, values, loaded, v + i * c->n_kv_heads, err));
    }
    return NB_OK;
}

nb_status nb_kv_scales_read(nb_kv_scales *out, nb_store *store, const nb_config *c, nb_arena *arena,
                            nb_err *err)
{
    uint16_t *k = NULL, *v = NULL;
    nb_loaded loaded = {0};
    *out = (nb_kv_scales){0};
    if (c->kv_scheme != NB_KV_SCHEME_STATIC && !has_any(store))
        return NB_OK;
    if (arena != NULL) {
        NB_TRY(NB_ARENA_ALLOC(arena, &k, c->n_layers * c->n_kv_heads, err));
        NB_TRY(NB_ARENA_ALLOC(arena, &v, c->n_layers * c->n_kv_heads, err));
    }
    const nb_status s = read_all(store, c, k, v, &loaded, err);
    nb_loaded_free(&loaded);
    if (s == NB_OK)
        *out = (nb_kv_scales){k, v};
    return s;
}
