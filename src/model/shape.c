/* See shape.h. */
#include "model/shape.h"

#include "base/arena.h"
#include "model/config.h"
#include "store/random.h"

#include <stdio.h>
#include <string.h>

/* From the models' config.json. */
const nb_shape nb_shapes[] = {
    {"smollm2-135m", 30, 576, 9, 3, 64, 1536, 49152, true, 8192, 100000},
    {"llama3.2-1b", 16, 2048, 32, 8, 64, 8192, 128256, true, 131072, 500000},
    {"llama2-7b", 32, 4096, 32, 32, 128, 11008, 32000, false, 4096, 10000},
    {0},
};

/* ---- names and numbers ---- */

/* A number of at most 9 digits, and the text behind it. */
static bool read_number(const char **text, int64_t *out)
{
    int64_t n = 0;
    int digits = 0;
    for (; **text >= '0' && **text <= '9' && digits < 10; digits++)
        n = 10 * n + (*(*text)++ - '0');
    *out = n;
    return digits > 0 && digits < 10 && n > 0;
}

/* The measures, each with what stands behind it. */
static bool read_numbers(nb_shape *s, const char *text)
{
    const struct {
        int64_t *out;
        char behind;
    } parts[] = {{&s->n_layers, 'x'}, {&s->d_model, ','}, {&s->n_heads, '/'}, {&s->n_kv_heads, 'x'},
                 {&s->head_dim, ','}, {&s->d_ff, ','},    {&s->vocab_size, 0}};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        if (!read_number(&text, parts[i].out))
            return false;
        if (parts[i].behind != 0 && *text++ != parts[i].behind)
            return false;
    }
    s->tied_head = strcmp(text, ",tied") == 0;
    return s->tied_head || *text == 0;
}

nb_status nb_shape_parse(nb_shape *out, const char *text, nb_err *err)
{
    char names[128];
    size_t n = 0;
    for (const nb_shape *s = nb_shapes; s->name != NULL; s++) {
        if (strcmp(s->name, text) == 0) {
            *out = *s;
            return NB_OK;
        }
        n += (size_t)snprintf(names + n, sizeof names - n, "%s, ", s->name);
    }
    nb_shape made = {.n_ctx = 131072, .rope_base = 10000};
    if (!read_numbers(&made, text))
        return nb_fail(err, NB_USAGE,
                       "no shape '%.80s': there are %sand LAYERSxWIDTH,HEADS/KV_HEADSxHEAD_DIM,FFN,"
                       "VOCAB[,tied]",
                       text, names);
    *out = made;
    return NB_OK;
}

/* ---- weights ---- */

typedef struct {
    nb_weight *list;
    int64_t n;
    nb_arena arena; /* of names */
} plan;

static nb_status add(plan *p, const nb_weight *like, int64_t layer, const char *name,
                     int64_t n_rows, int64_t n_cols, nb_err *err)
{
    nb_weight *w = &p->list[p->n];
    char *full = NULL;
    if (layer >= 0)
        NB_TRY(nb_arena_format(&p->arena, &full, err, "model.layers.%lld.%s.weight",
                               (long long)layer, name));
    else
        NB_TRY(nb_arena_format(&p->arena, &full, err, "%s.weight", name));
    *w = *like;
    w->name = full;
    w->n_dims = n_rows > 0 ? 2 : 1;
    w->n_rows = n_rows > 0 ? n_rows : 1;
    w->n_cols = n_cols;
    w->dims[0] = n_rows > 0 ? n_rows : n_cols;
    w->dims[1] = n_rows > 0 ? n_cols : 0;
    if (w->fmt->affine && w->group_size == 0)
        w->group_size = n_cols;
    p->n++;
    return NB_OK;
}

static nb_status add_layer(plan *p, const nb_shape *s, const nb_weight *linear, int64_t layer,
                           nb_err *err)
{
    static const nb_weight vector = {.fmt = &nb_format_f32};
    const int64_t d_q = s->n_heads * s->head_dim, d_kv = s->n_kv_heads * s->head_dim;
    const struct {
        const char *name;
        int64_t n_rows, n_cols; /* no rows: a vector */
    } weights[] = {
        {"input_layernorm", 0, s->d_model},     {"self_attn.q_proj", d_q, s->d_model},
        {"self_attn.k_proj", d_kv, s->d_model}, {"self_attn.v_proj", d_kv, s->d_model},
        {"self_attn.o_proj", s->d_model, d_q},  {"post_attention_layernorm", 0, s->d_model},
        {"mlp.gate_proj", s->d_ff, s->d_model}, {"mlp.up_proj", s->d_ff, s->d_model},
        {"mlp.down_proj", s->d_model, s->d_ff},
    };
    for (size_t i = 0; i < sizeof weights / sizeof *weights; i++)
        NB_TRY(add(p, weights[i].n_rows > 0 ? linear : &vector, layer, weights[i].name,
                   weights[i].n_rows, weights[i].n_cols, err));
    return NB_OK;
}
#define WEIGHTS_PER_LAYER 9

static nb_status add_all(plan *p, const nb_shape *s, const nb_weight *linear, nb_err *err)
{
    const nb_weight table = {.fmt = s->d_model % 32 == 0 ? &nb_format_q8_0 : &nb_format_bf16};
    static const nb_weight vector = {.fmt = &nb_format_f32};
    NB_TRY(NB_ARENA_ALLOC(&p->arena, &p->list, s->n_layers * WEIGHTS_PER_LAYER + 3, err));
    NB_TRY(add(p, &table, -1, "model.embed_tokens", s->vocab_size, s->d_model, err));
    for (int64_t i = 0; i < s->n_layers; i++)
        NB_TRY(add_layer(p, s, linear, i, err));
    NB_TRY(add(p, &vector, -1, "model.norm", 0, s->d_model, err));
    if (!s->tied_head)
        NB_TRY(add(p, &table, -1, "lm_head", s->vocab_size, s->d_model, err));
    return NB_OK;
}

/* Goes the way of every config.json, so that every limit is checked there, and there only. */
static nb_status config_of(const nb_shape *s, json_t **out, nb_err *err)
{
    *out = json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:b}", "model_type",
                     "llama", "num_hidden_layers", (json_int_t)s->n_layers, "hidden_size",
                     (json_int_t)s->d_model, "num_attention_heads", (json_int_t)s->n_heads,
                     "num_key_value_heads", (json_int_t)s->n_kv_heads, "head_dim",
                     (json_int_t)s->head_dim, "intermediate_size", (json_int_t)s->d_ff,
                     "vocab_size", (json_int_t)s->vocab_size, "max_position_embeddings",
                     (json_int_t)s->n_ctx, "rms_norm_eps", 1e-5, "rope_theta", s->rope_base,
                     "tie_word_embeddings", s->tied_head);
    return *out != NULL ? NB_OK : nb_fail(err, NB_MEMORY, "out of memory for a config");
}

nb_status nb_shape_open(nb_store **out, const nb_shape *shape, const char *name,
                        const nb_weight *linear, uint64_t seed, nb_err *err)
{
    *out = NULL;
    /* A store without weights reads the config: what it refuses has no plan worth making. */
    json_t *json = NULL;
    nb_store *empty = NULL;
    nb_config config;
    NB_TRY(config_of(shape, &json, err));
    nb_status s = nb_store_open_random(&empty, name, json_incref(json), NULL, 0, 0, err);
    if (s == NB_OK)
        s = nb_config_read(empty, &config, err);
    nb_store_close(empty);
    plan p = {0};
    if (s == NB_OK)
        s = add_all(&p, shape, linear, err);
    if (s == NB_OK)
        s = nb_store_open_random(out, name, json_incref(json), p.list, p.n, seed, err);
    nb_arena_free(&p.arena);
    json_decref(json);
    return s;
}
