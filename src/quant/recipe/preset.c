/* See preset.h. Which weight gets which format is what llama.cpp does; the rules are said here in
 * the order in which they win over each other. */
#include "quant/recipe/preset.h"

#include <string.h>
#include <strings.h>

/* Which of n layers a rule is about. The thirds: every layer that adds to what later ones see, and
 * cannot be made up for, at the beginning and the end; and of the rest one in three. */
typedef enum {
    ALL,
    FIRST_TWO,
    FIRST_FOUR,
    FIRST_16TH,
    FIRST_8TH,
    ENDS_AND_THIRDS,
} layer_set;

/* What else has to hold. */
typedef enum {
    ALWAYS,
    FEW_KV_HEADS,  /* four or more heads share one of keys and values: v is small, and counts */
    EIGHTY_LAYERS, /* the shape of 70B models, where v is an eighth of q */
} condition;

struct nb_preset_rule {
    const char *weights; /* the end of a name in its block */
    const char *scheme;
    layer_set layers;
    condition when;
};
typedef struct nb_preset_rule rule;

#define V    "self_attn.v_proj"
#define O    "self_attn.o_proj"
#define DOWN "mlp.down_proj"

static const rule q2_k[] = {
    {"{" V "," O "," DOWN "}", "Q3_K", ALL, ALWAYS},
    {V, "Q4_K", ALL, FEW_KV_HEADS},
    {V, "Q5_K", ALL, EIGHTY_LAYERS},
};
static const rule q3_k_s[] = {
    {V, "Q5_K", ALL, EIGHTY_LAYERS},
};
static const rule q3_k_m[] = {
    {"{" V "," O "," DOWN "}", "Q4_K", ALL, ALWAYS},
    {V, "Q5_K", FIRST_TWO, ALWAYS},
    {DOWN, "Q5_K", FIRST_16TH, ALWAYS},
    {V, "Q5_K", ALL, EIGHTY_LAYERS},
};
static const rule q3_k_l[] = {
    {"{" V "," O "," DOWN "}", "Q5_K", ALL, ALWAYS},
};
static const rule q4_k_s[] = {
    {V, "Q5_K", FIRST_FOUR, ALWAYS},
    {DOWN, "Q5_K", FIRST_8TH, ALWAYS},
    {V, "Q5_K", ALL, EIGHTY_LAYERS},
};
static const rule q4_k_m[] = {
    {V, "Q5_K", ALL, EIGHTY_LAYERS},
    {"{" V "," DOWN "}", "Q6_K", ENDS_AND_THIRDS, ALWAYS},
};
static const rule q5_k_m[] = {
    {"{" V "," DOWN "}", "Q6_K", ENDS_AND_THIRDS, ALWAYS},
};

#define RULES(r) r, sizeof(r) / sizeof *(r)
const nb_preset nb_presets[] = {
    {"Q2_K", 10, RULES(q2_k), "Q2_K"},     {"Q3_K_S", 11, RULES(q3_k_s), "Q3_K"},
    {"Q3_K_M", 12, RULES(q3_k_m), "Q3_K"}, {"Q3_K_L", 13, RULES(q3_k_l), "Q3_K"},
    {"Q4_K_S", 14, RULES(q4_k_s), "Q4_K"}, {"Q4_K_M", 15, RULES(q4_k_m), "Q4_K"},
    {"Q5_K_S", 16, NULL, 0, "Q5_K"},       {"Q5_K_M", 17, RULES(q5_k_m), "Q5_K"},
    {"Q6_K", 18, NULL, 0, "Q6_K"},         {0},
};

const nb_preset *nb_preset_by_name(const char *name)
{
    for (const nb_preset *p = nb_presets; p->name != NULL; p++) {
        if (strcasecmp(p->name, name) == 0)
            return p;
    }
    return NULL;
}

nb_status nb_preset_check_container(const nb_preset *preset, nb_store_kind kind, nb_err *err)
{
    nb_scheme scheme;
    NB_TRY(nb_scheme_parse(&scheme, preset->main, err));
    if (nb_scheme_check_container(&scheme, kind, err) == NB_OK)
        return NB_OK;
    return strcmp(preset->main, preset->name) == 0 ? err->status
                                                   : nb_context(err, "scheme %s", preset->name);
}

/* ---- rules for a model ---- */

static bool holds(condition when, const nb_config *c)
{
    switch (when) {
    case FEW_KV_HEADS:
        return c->n_heads >= 4 * c->n_kv_heads;
    case EIGHTY_LAYERS:
        return c->n_layers == 80;
    case ALWAYS:
        break;
    }
    return true;
}

static bool has_layer(layer_set set, int64_t i, int64_t n)
{
    switch (set) {
    case FIRST_TWO:
        return i < 2;
    case FIRST_FOUR:
        return i < 4;
    case FIRST_16TH:
        return i < n / 16;
    case FIRST_8TH:
        return i < n / 8;
    case ENDS_AND_THIRDS:
        return i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2;
    case ALL:
        break;
    }
    return true;
}

static const char *reason_of(const rule *r)
{
    static const char *const layers[] = {
        [FIRST_TWO] = "the first two layers",
        [FIRST_FOUR] = "the first four layers",
        [FIRST_16TH] = "the first sixteenth of the layers",
        [FIRST_8TH] = "the first eighth of the layers",
        [ENDS_AND_THIRDS] = "the first and last eighth of the layers, and every third between",
    };
    return r->when == FEW_KV_HEADS    ? "four heads or more share keys and values"
           : r->when == EIGHTY_LAYERS ? "80 layers: v is small, and errors add up"
           : r->layers == ALL         ? "sums over values and over d_ff need more bits"
                                      : layers[r->layers];
}

/* "model.layers.{0,1,5}.": those of the set; `count` of them. */
static nb_status put_layers(nb_buf *out, layer_set set, int64_t n, int64_t *count, nb_err *err)
{
    *count = 0;
    for (int64_t i = 0; i < n; i++)
        *count += has_layer(set, i, n);
    if (set == ALL || *count == n)
        return nb_buf_text(out, "*.", err);
    NB_TRY(nb_buf_text(out, *count > 1 ? "model.layers.{" : "model.layers.", err));
    const char *before = "";
    for (int64_t i = 0; i < n; i++) {
        if (!has_layer(set, i, n))
            continue;
        NB_TRY(nb_buf_format(out, err, "%s%lld", before, (long long)i));
        before = ",";
    }
    return nb_buf_text(out, *count > 1 ? "}." : ".", err);
}

static nb_status add(nb_recipe *out, const char *pattern, const char *scheme,
                     const nb_method *method, const char *because, nb_err *err)
{
    nb_scheme parsed;
    NB_TRY(nb_scheme_parse(&parsed, scheme, err));
    return nb_recipe_add(out, pattern, &parsed, method, because, err);
}

static nb_status add_rule(nb_recipe *out, const rule *r, const nb_config *c,
                          const nb_method *method, nb_err *err)
{
    nb_buf pattern = {0};
    int64_t count;
    nb_status s = put_layers(&pattern, r->layers, c->n_layers, &count, err);
    if (s == NB_OK)
        s = nb_buf_text(&pattern, r->weights, err);
    if (s == NB_OK)
        s = nb_buf_u8(&pattern, 0, err);
    if (s == NB_OK && count > 0)
        s = add(out, (const char *)pattern.data, r->scheme, method, reason_of(r), err);
    nb_buf_free(&pattern);
    return s;
}

static nb_status add_all(const nb_preset *p, const nb_config *c, const nb_method *method,
                         nb_recipe *out, nb_err *err)
{
    NB_TRY(add(out, "*", p->main, method, NULL, err));
    for (int i = 0; i < p->n_rules; i++) {
        if (holds(p->rules[i].when, c))
            NB_TRY(add_rule(out, &p->rules[i], c, method, err));
    }
    if (c->tied_head)
        return add(out, "model.embed_tokens", "Q6_K", method, "is the output as well", err);
    NB_TRY(add(out, "model.embed_tokens", p->main, method, NULL, err));
    return add(out, "lm_head", "Q6_K", method, "every prediction passes through it", err);
}

nb_status nb_preset_recipe(const nb_preset *preset, const nb_config *config,
                           const nb_method *method, nb_recipe *out, nb_err *err)
{
    if (add_all(preset, config, method, out, err) == NB_OK)
        return NB_OK;
    nb_recipe_free(out);
    return nb_context(err, "scheme %s", preset->name);
}
