/* See model.h. */
#include "model/model.h"

#include "base/fpenv.h"
#include "model/kv_scales.h"

#include <stdio.h>
#include <string.h>

/* What loading passes around. */
typedef struct {
    nb_model *m;
    nb_store *store;
    nb_pool *pool;
    nb_compute_choice compute;
    bool only_check;  /* names and shapes: nothing is read */
    nb_loaded loaded; /* reused for every weight */
} loader;

nb_compute nb_weight_compute(const nb_weight *w, nb_compute_choice choice)
{
    if (w->fmt->int_form == NULL)
        return NB_COMPUTE_F;
    if (choice != NB_COMPUTE_AUTO)
        return (nb_compute)choice;
    return w->fmt->affine && w->act.bits == 0 ? NB_COMPUTE_I16 : NB_COMPUTE_I8;
}

static nb_status find(const loader *l, const char *name, int64_t n_rows, int64_t n_cols,
                      const nb_weight **out, nb_err *err)
{
    const nb_weight *w = nb_store_find(l->store, name);
    if (w == NULL)
        return nb_fail(err, NB_DATA, "%s: tensor '%s' is missing", nb_store_path(l->store), name);
    if (w->n_rows != n_rows || w->n_cols != n_cols)
        return nb_fail(err, NB_DATA,
                       "%s: tensor '%s' is %lld x %lld, and the config wants %lld x %lld",
                       nb_store_path(l->store), name, (long long)w->n_rows, (long long)w->n_cols,
                       (long long)n_rows, (long long)n_cols);
    *out = w;
    return NB_OK;
}

static nb_status load_vector(loader *l, const char *name, int64_t n, float **out, nb_err *err)
{
    const nb_weight *w = NULL;
    NB_TRY(find(l, name, 1, n, &w, err));
    if (w->n_dims != 1)
        return nb_fail(err, NB_DATA, "%s: tensor '%s' has %d dimensions instead of 1",
                       nb_store_path(l->store), name, w->n_dims);
    if (l->only_check)
        return NB_OK;
    NB_TRY(nb_store_read(l->store, w, &l->loaded, err));
    NB_TRY(NB_ARENA_ALLOC(&l->m->arena, out, n, err));
    l->loaded.mat.fmt->decode_row(&l->loaded.mat, 0, *out);
    l->m->weight_bytes += w->bytes;
    l->m->n_params += n;
    return NB_OK;
}

/* A bias or norm that the config knows nothing of would change the numbers if it were not zero. */
static nb_status refuse_unused(loader *l, const char *name, nb_err *err)
{
    const nb_weight *w = nb_store_find(l->store, name);
    if (w == NULL || l->only_check)
        return NB_OK;
    NB_TRY(nb_store_read(l->store, w, &l->loaded, err));
    float *row;
    NB_TRY(NB_ALLOC(&row, w->n_cols, err));
    bool zero = true;
    for (int64_t r = 0; r < w->n_rows; r++) {
        l->loaded.mat.fmt->decode_row(&l->loaded.mat, r, row);
        for (int64_t i = 0; i < w->n_cols; i++)
            zero = zero && row[i] == 0;
    }
    nb_free(row);
    if (!zero)
        return nb_fail(err, NB_UNSUPPORTED,
                       "%s: tensor '%s' is there, and %s by this config has none",
                       nb_store_path(l->store), name, l->m->config.arch->name);
    return NB_OK;
}

/* How a packed weight is computed. */
static void choose_mode(nb_linear *out, const nb_format *fmt, const nb_act_spec *act,
                        nb_compute_choice choice)
{
    const nb_weight like = {.fmt = fmt, .act = *act};
    nb_xlayout layout;
    nb_xlayout_for(&layout, &out->w, nb_weight_compute(&like, choice), act->per_token);
    out->mode = layout.mode;
    out->per_token = act->per_token;
    /* Mode f, asked for by name, takes activations as they are: what quantizing them costs can be
     * seen then. So does i16, as near as 16 bits come. */
    const float scale = act->is_static ? act->scale : 0;
    out->round = (nb_xround){0};
    if (act->is_float && choice != NB_COMPUTE_ALL_F)
        out->round = (nb_xround){.on = true, .group = act->group_size, .scale = scale};
    if (!act->is_float && scale != 0 && out->mode == NB_COMPUTE_I8)
        out->round = (nb_xround){.on = true, .scale = scale, .integer = true};
}

static nb_status pack_linear(loader *l, const nb_weight *w, nb_linear *out, nb_err *err)
{
    NB_TRY(nb_store_read(l->store, w, &l->loaded, err));
    nb_panels_plan(&out->w, &l->loaded.mat);
    NB_TRY(nb_panels_alloc(&out->w, &l->m->slab, err));
    NB_TRY(nb_panels_pack(&out->w, &l->loaded.mat, l->pool, err));
    out->info = w;
    choose_mode(out, l->loaded.mat.fmt, &w->act, l->compute);
    l->m->packed_bytes += nb_panels_bytes(&out->w);
    l->m->weight_bytes += w->bytes;
    l->m->n_params += w->n_rows * w->n_cols;
    return NB_OK;
}

static nb_status load_linear(loader *l, const char *name, int64_t n_rows, int64_t n_cols, bool bias,
                             nb_linear *out, nb_err *err)
{
    char full[160];
    snprintf(full, sizeof full, "%s.weight", name);
    const nb_weight *w = NULL;
    NB_TRY(find(l, full, n_rows, n_cols, &w, err));
    if (w->n_dims != 2)
        return nb_fail(err, NB_DATA, "%s: tensor '%s' has %d dimensions instead of 2",
                       nb_store_path(l->store), full, w->n_dims);
    if (!l->only_check)
        NB_TRY(pack_linear(l, w, out, err));
    snprintf(full, sizeof full, "%s.bias", name);
    return bias ? load_vector(l, full, n_rows, &out->bias, err) : refuse_unused(l, full, err);
}

nb_linear *nb_layer_linear(nb_layer *layer, nb_linear_id id)
{
    nb_linear *const linears[NB_N_LINEARS] = {&layer->q,    &layer->k,  &layer->v,   &layer->o,
                                              &layer->gate, &layer->up, &layer->down};
    return linears[id];
}

const char *nb_linear_name(nb_linear_id id)
{
    static const char *const names[NB_N_LINEARS] = {
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
        "mlp.gate_proj",    "mlp.up_proj",      "mlp.down_proj"};
    return names[id];
}

int64_t nb_linear_n_rows(const nb_config *c, nb_linear_id id)
{
    switch (id) {
    case NB_LINEAR_Q:
        return c->n_heads * c->head_dim;
    case NB_LINEAR_K:
    case NB_LINEAR_V:
        return c->n_kv_heads * c->head_dim;
    case NB_LINEAR_GATE:
    case NB_LINEAR_UP:
        return c->d_ff;
    default:
        return c->d_model;
    }
}

int64_t nb_linear_n_cols(const nb_config *c, nb_linear_id id)
{
    return id == NB_LINEAR_O      ? c->n_heads * c->head_dim
           : id == NB_LINEAR_DOWN ? c->d_ff
                                  : c->d_model;
}

bool nb_linear_has_bias(const nb_config *c, nb_linear_id id)
{
    return id <= NB_LINEAR_V ? c->qkv_bias : id == NB_LINEAR_O ? c->o_bias : c->mlp_bias;
}

static nb_status load_layer_linears(loader *l, nb_layer *layer, int64_t i, nb_err *err)
{
    const nb_config *c = &l->m->config;
    char name[96];
    for (int j = 0; j < NB_N_LINEARS; j++) {
        const nb_linear_id id = (nb_linear_id)j;
        snprintf(name, sizeof name, "model.layers.%lld.%s", (long long)i, nb_linear_name(id));
        NB_TRY(load_linear(l, name, nb_linear_n_rows(c, id), nb_linear_n_cols(c, id),
                           nb_linear_has_bias(c, id), nb_layer_linear(layer, id), err));
    }
    return NB_OK;
}

static nb_status load_layer_norms(loader *l, nb_layer *layer, int64_t i, nb_err *err)
{
    const nb_config *c = &l->m->config;
    const struct {
        const char *name;
        int64_t n;
        bool wanted;
        float **out;
    } vectors[] = {
        {"input_layernorm", c->d_model, true, &layer->attn_norm},
        {"post_attention_layernorm", c->d_model, true, &layer->ffn_norm},
        {"self_attn.q_norm", c->head_dim, c->qk_norm, &layer->q_norm},
        {"self_attn.k_norm", c->head_dim, c->qk_norm, &layer->k_norm},
    };
    char name[96];
    for (size_t j = 0; j < sizeof vectors / sizeof *vectors; j++) {
        snprintf(name, sizeof name, "model.layers.%lld.%s.weight", (long long)i, vectors[j].name);
        NB_TRY(vectors[j].wanted ? load_vector(l, name, vectors[j].n, vectors[j].out, err)
                                 : refuse_unused(l, name, err));
    }
    return NB_OK;
}

/* Layers that the tensors' names speak of: one more than the highest. */
static int64_t count_layers(const nb_store *store)
{
    static const char prefix[] = "model.layers.";
    int64_t n = 0;
    for (int64_t i = 0; i < nb_store_n_weights(store); i++) {
        const char *name = nb_store_weight(store, i)->name;
        if (strncmp(name, prefix, sizeof prefix - 1) != 0)
            continue;
        int64_t index = 0;
        const char *digit = name + sizeof prefix - 1;
        for (; *digit >= '0' && *digit <= '9' && index < INT32_MAX; digit++)
            index = 10 * index + (*digit - '0');
        n = *digit == '.' && index >= n ? index + 1 : n;
    }
    return n;
}

/* Without a single layer, a missing tensor tells more. */
static nb_status check_n_layers(const loader *l, nb_err *err)
{
    const int64_t n = count_layers(l->store), wanted = l->m->config.n_layers;
    if (n != 0 && n != wanted)
        return nb_fail(err, NB_DATA, "%s: the config has %lld layers, and the tensors have %lld",
                       nb_store_path(l->store), (long long)wanted, (long long)n);
    return NB_OK;
}

/* The last norm and the rotation. */
static nb_status load_rest(loader *l, nb_err *err)
{
    nb_model *m = l->m;
    const nb_config *c = &m->config;
    NB_TRY(load_vector(l, "model.norm.weight", c->d_model, &m->norm, err));
    float *factors = NULL;
    if (c->rope.type == NB_ROPE_FACTORS) {
        NB_TRY(load_vector(l, "rope_freqs.weight", c->rot_dim / 2, &factors, err));
        for (int64_t i = 0; !l->only_check && i < c->rot_dim / 2; i++) {
            if (!(factors[i] > 0))
                return nb_fail(err, NB_DATA, "%s: tensor 'rope_freqs.weight' has %g at %lld",
                               nb_store_path(l->store), (double)factors[i], (long long)i);
        }
    }
    if (l->only_check)
        return NB_OK;
    const nb_status s = nb_rope_table_init(&m->rope, c, m->n_ctx, factors, err);
    return s == NB_OK ? s : nb_context(err, "%s", nb_store_path(l->store));
}

static nb_status load_kv_scales(loader *l, nb_err *err)
{
    nb_config *c = &l->m->config;
    nb_kv_scales scales;
    NB_TRY(nb_kv_scales_read(&scales, l->store, c, l->only_check ? NULL : &l->m->arena, err));
    c->k_scales = scales.k;
    c->v_scales = scales.v;
    return NB_OK;
}

static nb_status load(loader *l, nb_err *err)
{
    nb_model *m = l->m;
    const nb_config *c = &m->config;
    NB_TRY(check_n_layers(l, err));
    /* The largest tensors first, and their buffer given back: the peak of memory is what the packed
     * weights take, not that and the embedding once more. */
    NB_TRY(load_linear(l, "model.embed_tokens", c->vocab_size, c->d_model, false, &m->embed, err));
    if (!c->tied_head)
        NB_TRY(load_linear(l, "lm_head", c->vocab_size, c->d_model, false, &m->head, err));
    nb_loaded_free(&l->loaded);
    l->loaded = (nb_loaded){0};
    NB_TRY(NB_ARENA_ALLOC(&m->arena, &m->layers, c->n_layers, err));
    for (int64_t i = 0; i < c->n_layers; i++) {
        NB_TRY(load_layer_linears(l, &m->layers[i], i, err));
        NB_TRY(load_layer_norms(l, &m->layers[i], i, err));
    }
    NB_TRY(load_kv_scales(l, err));
    return load_rest(l, err);
}

nb_status nb_model_open(nb_model *m, nb_store *store, const nb_model_options *options,
                        nb_pool *pool, nb_err *err)
{
    *m = (nb_model){0};
    NB_TRY(nb_config_read(store, &m->config, err));
    m->n_ctx = options->n_ctx;
    if (m->n_ctx == 0)
        m->n_ctx = m->config.n_ctx < NB_DEFAULT_CTX ? m->config.n_ctx : NB_DEFAULT_CTX;
    loader l = {.m = m, .store = store, .pool = pool, .compute = options->compute};
    const uint64_t env = nb_fpenv_enter();
    const nb_status s = load(&l, err);
    nb_fpenv_leave(env);
    nb_loaded_free(&l.loaded);
    if (s != NB_OK)
        nb_model_close(m);
    return s;
}

/* ---- one block at a time ---- */

nb_status nb_model_open_frame(nb_model *m, nb_store *store, int64_t n_slots, int64_t n_ctx,
                              nb_err *err)
{
    *m = (nb_model){.n_ctx = n_ctx};
    NB_TRY(nb_config_read(store, &m->config, err));
    loader l = {.m = m, .store = store};
    nb_status s = load_rest(&l, err);
    nb_loaded_free(&l.loaded);
    m->config.n_layers = n_slots;
    if (s == NB_OK)
        s = NB_ARENA_ALLOC(&m->arena, &m->layers, n_slots, err);
    if (s != NB_OK)
        nb_model_close(m);
    return s;
}

nb_status nb_model_load_vectors(nb_model *m, nb_store *store, int64_t slot, int64_t layer,
                                nb_err *err)
{
    const nb_config *c = &m->config;
    nb_layer *to = &m->layers[slot];
    loader l = {.m = m, .store = store};
    nb_status s = load_layer_norms(&l, to, layer, err);
    for (int j = 0; j < NB_N_LINEARS && s == NB_OK; j++) {
        const nb_linear_id id = (nb_linear_id)j;
        char name[96];
        snprintf(name, sizeof name, "model.layers.%lld.%s.weight", (long long)layer,
                 nb_linear_name(id));
        const nb_weight *w = nb_store_find(store, name);
        if (w == NULL)
            s = nb_fail(err, NB_DATA, "%s: tensor '%s' is missing", nb_store_path(store), name);
        nb_layer_linear(to, id)->info = w;
        snprintf(name, sizeof name, "model.layers.%lld.%s.bias", (long long)layer,
                 nb_linear_name(id));
        if (s == NB_OK && nb_linear_has_bias(c, id))
            s = load_vector(&l, name, w->n_rows, &nb_layer_linear(to, id)->bias, err);
    }
    nb_loaded_free(&l.loaded);
    return s;
}

nb_status nb_model_set_linear(nb_model *m, int64_t slot, nb_linear_id id, const nb_mat *mat,
                              const nb_act_spec *act, nb_compute_choice choice, nb_pool *pool,
                              nb_err *err)
{
    nb_linear *out = nb_layer_linear(&m->layers[slot], id);
    nb_panels_free(&out->w);
    nb_panels_plan(&out->w, mat);
    nb_status s = nb_panels_alloc(&out->w, NULL, err);
    if (s == NB_OK)
        s = nb_panels_pack(&out->w, mat, pool, err);
    if (s != NB_OK) {
        nb_panels_free(&out->w);
        return s;
    }
    choose_mode(out, mat->fmt, act, choice);
    return NB_OK;
}

void nb_model_drop_linear(nb_model *m, int64_t slot, nb_linear_id id)
{
    nb_panels_free(&nb_layer_linear(&m->layers[slot], id)->w);
}

nb_status nb_model_check(nb_store *store, const nb_config *config, nb_err *err)
{
    nb_model m = {.config = *config};
    loader l = {.m = &m, .store = store, .only_check = true};
    const nb_status s = load(&l, err);
    nb_model_close(&m);
    return s;
}

void nb_model_close(nb_model *m)
{
    nb_slab_free(&m->slab);
    nb_rope_table_free(&m->rope);
    nb_arena_free(&m->arena);
    *m = (nb_model){0};
}

const char *nb_model_compute_name(const nb_model *m)
{
    unsigned seen = 0;
    for (int64_t i = 0; i < m->config.n_layers; i++) {
        const nb_layer *y = &m->layers[i];
        seen |= 1u << y->q.mode | 1u << y->k.mode | 1u << y->v.mode | 1u << y->o.mode |
                1u << y->gate.mode | 1u << y->up.mode | 1u << y->down.mode;
    }
    static const char *const names[8] = {"f",   "f",     "i8",     "i8+f",
                                         "i16", "i16+f", "i16+i8", "i16+i8+f"};
    return names[seen & 7u];
}
