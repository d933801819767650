/* See plan.h. */
#include "quant/plan/plan.h"

#include "quant/plan/bytes.h"
#include "quant/plan/fallback.h"
#include "quant/plan/kv.h"
#include "quant/plan/rope.h"
#include "quant/plan/target.h"
#include "quant/plan/weight.h"
#include "quant/weight/roles.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define MAX_NOTES 64

/* How many columns share a scale under a scheme. */
typedef struct {
    const nb_scheme *scheme;
    int64_t group_size;
} scheme_group;

/* What planning passes around. */
typedef struct {
    nb_plan *plan;
    nb_store *store;
    bool is_f32;          /* a model whose floats have 32 bits: then all of them do */
    nb_loaded loaded;     /* of the few weights that planning has to look into */
    const nb_rule **rule; /* of each weight of the store */
    scheme_group *groups; /* of each scheme */
    int64_t n_groups;
    int64_t n_affine;    /* weights in codes of an affine format */
    int64_t n_unblocked; /* weights whose rows are no whole blocks, and the first of them */
    const nb_weight *first_unblocked;
    int64_t n_dropped_kv; /* scales of the cache that do not stay */
    bool plain_ends;      /* embedding or head is q8_0 because its rows are no blocks of 256 */
} planner;

const char *nb_how_name(nb_how how)
{
    static const char *const names[] = {"copy", "repack", "widen", "round", "quantize", "make"};
    return names[how];
}

static nb_status note(nb_plan *plan, nb_err *err, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static nb_status note(nb_plan *plan, nb_err *err, const char *format, ...)
{
    if (plan->n_notes == MAX_NOTES)
        return NB_OK;
    char text[400];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return nb_arena_text(&plan->arena, &plan->notes[plan->n_notes++], text, strlen(text), err);
}

/* ---- what the source is ---- */

static nb_status find_main_type(planner *p, nb_err *err)
{
    const nb_store *store = p->store;
    const nb_plan_request *r = &p->plan->request;
    /* Blocks have F16 scales, which readers turn into the type of the whole folder. */
    const bool keeps_blocks = r->scheme == NULL && r->dtype == NB_DTYPE_KEEP &&
                              r->to == NB_STORE_HF && nb_store_kind_of(store) == NB_STORE_GGUF;
    const bool turns_blocks =
        nb_target_turns(r->layout) && nb_store_kind_of(store) == NB_STORE_GGUF;
    p->plan->main_type = keeps_blocks || turns_blocks ? NB_F16 : NB_BF16;
    if (keeps_blocks || turns_blocks)
        return NB_OK;
    for (int64_t i = 0; i < nb_store_n_weights(store); i++) {
        const nb_weight *w = nb_store_weight(store, i);
        if (w->n_dims != 2 || (w->fmt != &nb_format_f16 && w->fmt != &nb_format_bf16))
            continue;
        p->plan->main_type = w->fmt == &nb_format_f16 ? NB_F16 : NB_BF16;
        return NB_OK;
    }
    const json_t *config = nb_store_config(store);
    const char *dtype = NULL;
    if (config != NULL)
        NB_TRY(nb_json_text(config, json_object_get(config, "dtype") ? "dtype" : "torch_dtype",
                            false, &dtype, err));
    if (dtype != NULL && strcmp(dtype, "float16") == 0)
        p->plan->main_type = NB_F16;
    return NB_OK;
}

static const nb_format *float_format(nb_float_type type)
{
    return type == NB_F32 ? &nb_format_f32 : type == NB_F16 ? &nb_format_f16 : &nb_format_bf16;
}

static bool is_plain(const nb_weight *w)
{
    return !w->fmt->affine && w->fmt->block_len == 1;
}

/* Whether a vector's values all fit into the main type. Only vectors are read while planning. */
static nb_status fits_main_type(planner *p, const nb_weight *w, bool *fits, nb_err *err)
{
    NB_TRY(nb_store_read(p->store, w, &p->loaded, err));
    const float *x = (const float *)p->loaded.mat.codes;
    float back;
    nb_mat one = {.fmt = float_format(p->plan->main_type), .n_rows = 1, .n_cols = 1};
    uint16_t stored;
    one.codes = &stored;
    one.row_bytes = sizeof stored;
    *fits = true;
    for (int64_t i = 0; i < w->n_rows * w->n_cols && *fits; i++) {
        one.fmt->encode_row(&one, 0, &x[i]);
        one.fmt->decode_row(&one, 0, &back);
        *fits = memcmp(&back, &x[i], sizeof back) == 0;
    }
    return NB_OK;
}

/* ---- the groups of a scheme ---- */

static const int64_t usual_groups[] = {128, 64, 32, 16, 8};

/* What weight i of the store becomes; NULL: it is kept, or no linear layer. */
static const nb_scheme *scheme_of(const planner *p, int64_t i)
{
    if (nb_role_of(nb_store_weight(p->store, i)) != NB_ROLE_LINEAR)
        return NULL;
    if (p->plan->request.recipe == NULL)
        return p->plan->request.scheme;
    return p->rule[i] != NULL ? p->rule[i]->scheme : NULL;
}

/* The first weight of a scheme whose rows a group does not divide; -1: none. */
static int64_t first_undivided(const planner *p, const nb_scheme *scheme, int64_t group_size)
{
    for (int64_t i = 0; i < nb_store_n_weights(p->store); i++) {
        if (scheme_of(p, i) == scheme && nb_store_weight(p->store, i)->n_cols % group_size != 0)
            return i;
    }
    return -1;
}

static nb_status undivided(const planner *p, const nb_scheme *scheme, int64_t group_size,
                           nb_err *err)
{
    const int64_t at = first_undivided(p, scheme, group_size);
    const nb_weight *w = nb_store_weight(p->store, at);
    char fits[64];
    size_t n = 0;
    for (size_t i = 0; i < sizeof usual_groups / sizeof *usual_groups; i++) {
        if (first_undivided(p, scheme, usual_groups[i]) < 0)
            n += (size_t)snprintf(fits + n, sizeof fits - n, "g%lld, ", (long long)usual_groups[i]);
    }
    if (scheme->fmt->levels == NULL)
        snprintf(fits + n, sizeof fits - n, "channel");
    else if (n > 0)
        fits[n - 2] = 0; /* NF4 has no channel: the last comma goes */
    else
        snprintf(fits, sizeof fits, "nothing that %s has", scheme->fmt->name);
    nb_fail(err, NB_UNSUPPORTED,
            "%s: tensor '%.200s' has rows of %lld columns, which groups of %lld do not "
            "divide; what fits every row: %s",
            nb_store_path(p->store), w->name, (long long)w->n_cols, (long long)group_size, fits);
    return p->rule[at] != NULL ? nb_rule_context(p->plan->request.recipe, p->rule[at], err)
                               : err->status;
}

static nb_status choose_group(planner *p, const nb_scheme *scheme, int64_t *out, nb_err *err)
{
    *out = scheme->group_size;
    if (!scheme->fmt->affine || scheme->group_size == NB_GROUP_CHANNEL || scheme->scale_rows > 1)
        return NB_OK; /* the last of a row's blocks may be smaller */
    if (scheme->group_size != NB_GROUP_CHOOSE)
        return first_undivided(p, scheme, scheme->group_size) < 0
                   ? NB_OK
                   : undivided(p, scheme, scheme->group_size, err);
    for (size_t i = 0; i < 3; i++) { /* 128, 64, 32 */
        *out = usual_groups[i];
        if (first_undivided(p, scheme, usual_groups[i]) >= 0)
            continue;
        const char *why =
            i == 0 ? "the default" : "the largest of 128, 64, 32 that divides every row";
        if (p->plan->request.recipe != NULL && p->plan->request.recipe->n > 1)
            return note(p->plan, err, "%s: group size %lld: %s", scheme->name,
                        (long long)usual_groups[i], why);
        return note(p->plan, err, "group size %lld: %s", (long long)usual_groups[i], why);
    }
    return undivided(p, scheme, 32, err);
}

static int64_t group_of(const planner *p, const nb_scheme *scheme)
{
    int64_t i = 0;
    while (p->groups[i].scheme != scheme)
        i++;
    return p->groups[i].group_size;
}

static nb_status add_scheme(planner *p, const nb_scheme *scheme, nb_err *err)
{
    for (int64_t i = 0; i < p->n_groups; i++) {
        if (p->groups[i].scheme == scheme)
            return NB_OK;
    }
    nb_plan_request alone = p->plan->request;
    alone.scheme = scheme;
    NB_TRY(nb_target_check(&alone, err));
    scheme_group *g = &p->groups[p->n_groups++];
    g->scheme = scheme;
    return choose_group(p, scheme, &g->group_size, err);
}

/* All schemes that occur, and which rule decides about which weight. */
static nb_status apply_rules(planner *p, nb_err *err)
{
    const nb_recipe *recipe = p->plan->request.recipe;
    const int64_t n = nb_store_n_weights(p->store), n_rules = recipe != NULL ? recipe->n : 0;
    NB_TRY(NB_ARENA_ALLOC(&p->plan->arena, &p->rule, n, err));
    NB_TRY(NB_ARENA_ALLOC(&p->plan->arena, &p->groups, n_rules + 1, err));
    if (p->plan->request.scheme == NULL)
        return NB_OK;
    if (recipe != NULL)
        NB_TRY(nb_recipe_check_matches(recipe, p->store, err));
    for (int64_t i = 0; i < n && recipe != NULL; i++)
        p->rule[i] = nb_recipe_find(recipe, nb_store_weight(p->store, i));
    NB_TRY(add_scheme(p, p->plan->request.scheme, err));
    p->plan->group_size = p->groups[0].group_size;
    for (int64_t i = 0; i < n_rules; i++) {
        const nb_rule *rule = &recipe->rule[i];
        if (rule->scheme != NULL && add_scheme(p, rule->scheme, err) != NB_OK)
            return nb_rule_context(recipe, rule, err);
    }
    return NB_OK;
}

/* ---- the rules ---- */

/* Rows that are no whole blocks stay floats, as other programs keep them; where blocks of 256 do
 * not fit, smaller ones may, as in llama.cpp. */
static void be_block(planner *p, nb_weight *to, nb_how *how, const nb_format *fmt)
{
    const nb_format *smaller = nb_fallback_of(fmt);
    if (smaller != NULL && to->n_cols % fmt->block_len != 0 &&
        to->n_cols % smaller->block_len == 0) {
        p->plan->wanted[p->plan->n] = fmt;
        fmt = smaller;
    }
    if (to->fmt == fmt)
        return;
    if (to->n_cols % fmt->block_len == 0) {
        to->fmt = fmt;
        to->group_size = to->scale_rows = 0;
        to->nested = to->float_zeros = false;
        to->act = (nb_act_spec){0};
        *how = NB_HOW_QUANTIZE;
        return;
    }
    if (p->n_unblocked++ == 0)
        p->first_unblocked = to;
    if (!is_plain(to))
        nb_planned_plain(to, how, float_format(p->plan->main_type));
}

/* What is not quantized. Vectors that a GGUF holds in F32 were 16-bit numbers once, as a rule:
 * they become that again where nothing is lost, unless the whole model is F32. ggml computes with
 * vectors in F32 only. */
static nb_status keep(planner *p, const nb_weight *from, nb_weight *to, nb_how *how, nb_err *err)
{
    const nb_format *main_format = float_format(p->plan->main_type);
    if (p->plan->request.to == NB_STORE_GGUF) {
        if (nb_role_of(from) == NB_ROLE_VECTOR)
            nb_planned_plain(to, how, &nb_format_f32);
        else if (from->fmt->affine)
            nb_planned_plain(to, how, main_format);
        return NB_OK;
    }
    if (!is_plain(from)) {
        nb_planned_plain(to, how, main_format);
        return NB_OK;
    }
    bool fits = false;
    if (nb_store_kind_of(p->store) == NB_STORE_GGUF && from->fmt == &nb_format_f32 &&
        nb_role_of(from) == NB_ROLE_VECTOR && !p->is_f32)
        NB_TRY(fits_main_type(p, from, &fits, err));
    if (fits) {
        nb_planned_plain(to, how, main_format);
        *how = NB_HOW_WIDEN;
    }
    return NB_OK;
}

/* Embedding and head where no rule is about them: six bits, which formats of fewer bits have other
 * programs take for granted, or eight. */
static const nb_format *end_format(planner *p, int64_t n_cols)
{
    if (p->plan->request.scheme->fmt == &nb_format_q8_0)
        return &nb_format_q8_0;
    if (n_cols % nb_format_q6_k.block_len == 0)
        return &nb_format_q6_k;
    p->plain_ends = p->plain_ends || n_cols % nb_format_q8_0.block_len == 0;
    return &nb_format_q8_0;
}

/* Embedding and head: their own rule, or what the container's readers expect. */
static nb_status quantize_end(planner *p, const nb_rule *rule, const nb_weight *from, nb_weight *to,
                              nb_how *how, nb_err *err)
{
    const bool blocks = !p->plan->request.scheme->fmt->affine;
    if (rule == NULL && blocks) {
        be_block(p, to, how, end_format(p, to->n_cols));
        return NB_OK;
    }
    if (rule == NULL || rule->scheme == NULL)
        return keep(p, from, to, how, err);
    if (!blocks) {
        nb_fail(err, NB_UNSUPPORTED,
                "%s stays floats in a folder: no reader knows it in codes there", rule->pattern);
        return nb_rule_context(p->plan->request.recipe, rule, err);
    }
    be_block(p, to, how, rule->scheme->fmt);
    return NB_OK;
}

static nb_status quantize(planner *p, int64_t i, const nb_weight *from, nb_weight *to, nb_how *how,
                          nb_err *err)
{
    const nb_scheme *scheme = scheme_of(p, i);
    const nb_role role = nb_role_of(from);
    if (role == NB_ROLE_EMBED || role == NB_ROLE_HEAD)
        NB_TRY(quantize_end(p, p->rule[i], from, to, how, err));
    else if (scheme == NULL)
        NB_TRY(keep(p, from, to, how, err));
    else if (scheme->fmt->levels != NULL)
        nb_planned_float_coded(to, how, scheme, group_of(p, scheme), p->plan->main_type);
    else if (scheme->fmt->affine)
        nb_planned_affine(to, how, scheme, group_of(p, scheme),
                          nb_target_turns(p->plan->request.layout) ? NB_F16 : p->plan->main_type);
    else
        be_block(p, to, how, scheme->fmt);
    p->plan->n_quantized += *how == NB_HOW_QUANTIZE;
    p->plan->n_requantized += *how == NB_HOW_QUANTIZE && (!is_plain(from) || from->reordered);
    return NB_OK;
}

static nb_status convert_to_hf(planner *p, const nb_weight *from, nb_weight *to, nb_how *how,
                               nb_err *err)
{
    const bool turned = nb_target_turns(p->plan->request.layout);
    if (turned && from->fmt->levels != NULL)
        return nb_fail(err, NB_UNSUPPORTED,
                       "%s: tensor '%.200s' is %s, and GPTQ and AWQ have integer codes only",
                       nb_store_path(p->store), from->name, from->fmt->name);
    if (turned && from->float_zeros)
        return nb_fail(err, NB_UNSUPPORTED,
                       "%s: tensor '%.200s' has float zero points, and GPTQ and AWQ have integers "
                       "only",
                       nb_store_path(p->store), from->name);
    if (nb_store_kind_of(p->store) == NB_STORE_HF) {
        /* Whatever a folder holds, another one does; only scales may have to be another type. */
        if (turned && from->fmt->affine && from->scale_type != NB_F16) {
            to->scale_type = NB_F16;
            *how = NB_HOW_REPACK;
        }
        return NB_OK;
    }
    const nb_role role = nb_role_of(from);
    if (turned && role == NB_ROLE_LINEAR && nb_planned_affine_of_block(to, how))
        return NB_OK;
    if (is_plain(from) || p->plan->request.dtype == NB_DTYPE_AUTO)
        return keep(p, from, to, how, err);
    if ((role == NB_ROLE_LINEAR || (role == NB_ROLE_HEAD && !turned)) &&
        nb_planned_affine_of_block(to, how))
        return NB_OK;
    /* No reader of folders knows embeddings in codes. Binary32 holds code * scale exactly. */
    if (role == NB_ROLE_EMBED || role == NB_ROLE_VECTOR || (turned && role == NB_ROLE_HEAD)) {
        nb_planned_plain(to, how, &nb_format_f32);
        return NB_OK;
    }
    return nb_fail(err, NB_UNSUPPORTED,
                   "%s: tensor '%.200s' is %s, which a Hugging Face folder cannot keep; --dtype "
                   "bf16 rounds it, --dtype f32 holds its values exactly",
                   nb_store_path(p->store), from->name, from->fmt->name);
}

static nb_status convert(planner *p, const nb_weight *from, nb_weight *to, nb_how *how, nb_err *err)
{
    static const nb_format *const formats[] = {
        [NB_DTYPE_F32] = &nb_format_f32,
        [NB_DTYPE_F16] = &nb_format_f16,
        [NB_DTYPE_BF16] = &nb_format_bf16,
    };
    const nb_dtype dtype = p->plan->request.dtype;
    const bool gguf = p->plan->request.to == NB_STORE_GGUF;
    if (dtype >= NB_DTYPE_F32) {
        const bool vector = nb_role_of(from) == NB_ROLE_VECTOR;
        nb_planned_plain(to, how, gguf && vector ? &nb_format_f32 : formats[dtype]);
        return NB_OK;
    }
    if (from->reordered)
        return nb_fail(err, NB_UNSUPPORTED,
                       "%s: the columns of tensor '%.200s' are in groups by an order of their own "
                       "(desc_act), which nothing that nibble writes can say; --dtype bf16 makes "
                       "floats, nibble quantize chooses new codes",
                       nb_store_path(p->store), from->name);
    if (!gguf)
        return convert_to_hf(p, from, to, how, err);
    if (nb_store_kind_of(p->store) == NB_STORE_GGUF)
        return NB_OK;
    if (!from->fmt->affine)
        return keep(p, from, to, how, err);
    if (nb_planned_block_of_affine(to, how, p->plan->request.requantize, err) != NB_OK)
        return nb_context(err, "%s", nb_store_path(p->store));
    p->plan->n_quantized += *how == NB_HOW_QUANTIZE;
    p->plan->n_requantized += *how == NB_HOW_QUANTIZE;
    return NB_OK;
}

/* ---- all weights ---- */

/* Weights that the target has no use for. */
static nb_status left_out(planner *p, const nb_weight *w, bool *out, nb_err *err)
{
    static const char inverse[] = ".rotary_emb.inv_freq";
    const size_t n = strlen(w->name), end = sizeof inverse - 1;
    const bool gguf = p->plan->request.to == NB_STORE_GGUF;
    const bool from_hf = nb_store_kind_of(p->store) == NB_STORE_HF;
    *out = true;
    if (nb_plan_drops_kv(&p->plan->request, w)) {
        if (p->n_dropped_kv++ > 0 || p->plan->request.kv != NB_KV_SCALES_NONE)
            return NB_OK;
        return note(p->plan, err, "static scales of the KV cache are left out: %s",
                    p->plan->request.scheme != NULL
                        ? "they are not of the new weights; --kv fp8 finds some that are"
                        : "the output has no place for them, and finds its own as it runs");
    }
    if (!gguf && strcmp(w->name, "rope_freqs.weight") == 0)
        return NB_OK; /* config.json says it */
    if (gguf && from_hf && n > end && strcmp(w->name + n - end, inverse) == 0)
        return NB_OK; /* computed from the config by every reader */
    if (gguf && from_hf && p->plan->config.tied_head && strcmp(w->name, "lm_head.weight") == 0)
        return note(p->plan, err,
                    "lm_head.weight is left out: the config ties it to the embedding");
    *out = false;
    return NB_OK;
}

static nb_status add(planner *p, int64_t i, nb_err *err)
{
    nb_plan *plan = p->plan;
    const nb_weight *from = nb_store_weight(p->store, i);
    bool out;
    NB_TRY(left_out(p, from, &out, err));
    if (out)
        return NB_OK;
    nb_weight *to = &plan->weights[plan->n];
    nb_how *how = &plan->how[plan->n];
    plan->from[plan->n] = from;
    plan->rule[plan->n] = p->rule[i];
    *to = *from;
    to->reordered = false;
    *how = NB_HOW_COPY;
    const bool kv_scale = nb_weight_is_kv_scale(from); /* stays what it is */
    if (!kv_scale)
        NB_TRY(plan->request.scheme != NULL ? quantize(p, i, from, to, how, err)
                                            : convert(p, from, to, how, err));
    if (to->fmt->affine && (nb_target_turns(to->layout) || nb_target_turns(plan->request.layout)))
        to->layout = plan->request.layout;
    p->n_affine += to->fmt->affine;
    if (plan->request.to == NB_STORE_GGUF && to->n_dims == 0) {
        to->n_dims = 1; /* GGUF knows no scalars */
        to->dims[0] = 1;
    }
    to->bytes = nb_planned_bytes(to);
    plan->n_rounded += *how == NB_HOW_ROUND;
    plan->n_params += kv_scale ? 0 : to->n_rows * to->n_cols;
    plan->bytes += to->bytes;
    plan->n++;
    return NB_OK;
}

static nb_status add_notes(planner *p, nb_err *err)
{
    nb_plan *plan = p->plan;
    nb_fallback f;
    if (plan->n_requantized > 0)
        NB_TRY(
            note(plan, err,
                 "requantizing: %lld of the %lld quantized tensors hold codes already; what those "
                 "lost adds to what these lose",
                 (long long)plan->n_requantized, (long long)plan->n_quantized));
    if (p->plain_ends)
        NB_TRY(note(plan, err,
                    "embedding and output become q8_0: their rows are no whole blocks of 256, "
                    "which q6_k has"));
    for (int64_t at = 0; nb_fallback_next(plan, &at, &f);)
        NB_TRY(note(plan, err,
                    "%lld tensor%s %s instead of %s: rows such as the %lld columns of '%.100s' are "
                    "no whole blocks of %d",
                    (long long)f.n, f.n == 1 ? " becomes" : "s become", f.became->name,
                    f.wanted->name, (long long)plan->weights[f.first].n_cols,
                    plan->weights[f.first].name, f.wanted->block_len));
    if (p->n_unblocked > 0)
        NB_TRY(note(plan, err,
                    "%lld tensor%s floats: rows such as the %lld columns of '%.100s' are no whole "
                    "blocks",
                    (long long)p->n_unblocked, p->n_unblocked == 1 ? " stays" : "s stay",
                    (long long)p->first_unblocked->n_cols, p->first_unblocked->name));
    if (plan->n_rounded > 0)
        NB_TRY(note(plan, err, "not lossless: %lld tensor%s rounded to other floats",
                    (long long)plan->n_rounded, plan->n_rounded == 1 ? " is" : "s are"));
    return NB_OK;
}

static nb_status make(planner *p, nb_err *err)
{
    nb_plan *plan = p->plan;
    const int64_t n = nb_store_n_weights(p->store);
    NB_TRY(nb_plan_check_kv(&plan->request, err));
    NB_TRY(nb_config_read(p->store, &plan->config, err));
    NB_TRY(nb_roles_check(p->store, &plan->config, err));
    const int64_t room = n + 1 + nb_plan_n_kv(plan);
    NB_TRY(NB_ARENA_ALLOC(&plan->arena, &plan->weights, room, err));
    NB_TRY(NB_ARENA_ALLOC(&plan->arena, &plan->from, room, err));
    NB_TRY(NB_ARENA_ALLOC(&plan->arena, &plan->how, room, err));
    NB_TRY(NB_ARENA_ALLOC(&plan->arena, &plan->rule, room, err));
    NB_TRY(NB_ARENA_ALLOC(&plan->arena, &plan->wanted, room, err));
    NB_TRY(NB_ARENA_ALLOC(&plan->arena, &plan->notes, MAX_NOTES, err));
    p->is_f32 = nb_store_find(p->store, "model.embed_tokens.weight")->fmt == &nb_format_f32;
    NB_TRY(find_main_type(p, err));
    NB_TRY(apply_rules(p, err));
    NB_TRY(nb_plan_resolve_rope(plan, p->store, &p->loaded, err));
    for (int64_t i = 0; i < n; i++)
        NB_TRY(add(p, i, err));
    NB_TRY(nb_plan_add_rope(plan, err));
    NB_TRY(nb_plan_add_kv(plan, err));
    NB_TRY(NB_ARENA_ALLOC(&plan->arena, &plan->index, plan->n, err));
    for (int64_t i = 0; i < plan->n; i++)
        plan->index[i] = (nb_name){.name = plan->weights[i].name, .value = i};
    nb_names_sort(plan->index, plan->n);
    if (nb_target_turns(plan->request.layout) && p->n_affine == 0)
        return nb_fail(err, NB_UNSUPPORTED,
                       "%s: no weight is in codes that %s can hold; nibble quantize chooses some",
                       nb_store_path(p->store), nb_target_name(&plan->request));
    NB_TRY(add_notes(p, err));
    return nb_fallback_warn(plan, err);
}

nb_status nb_plan_make(nb_plan *plan, nb_store *store, const nb_plan_request *request, nb_err *err)
{
    *plan = (nb_plan){.request = *request};
    planner p = {.plan = plan, .store = store};
    const nb_status s = make(&p, err);
    nb_loaded_free(&p.loaded);
    if (s != NB_OK)
        nb_plan_free(plan);
    return s;
}

int64_t nb_plan_find(const nb_plan *plan, const char *name)
{
    const nb_name *found = nb_names_find(plan->index, plan->n, name);
    return found == NULL ? -1 : found->value;
}

int64_t nb_plan_linear(const nb_plan *plan, int64_t layer, nb_linear_id id)
{
    char name[128];
    snprintf(name, sizeof name, "model.layers.%lld.%s.weight", (long long)layer,
             nb_linear_name(id));
    return nb_plan_find(plan, name);
}

double nb_plan_linear_bpw(const nb_plan *p)
{
    int64_t bytes = 0, n_params = 0;
    for (int64_t i = 0; i < p->n; i++) {
        const nb_weight *w = &p->weights[i];
        if (nb_role_of(w) != NB_ROLE_LINEAR)
            continue;
        bytes += nb_weight_payload(w);
        n_params += w->n_rows * w->n_cols;
    }
    return n_params > 0 ? 8.0 * (double)bytes / (double)n_params : 0.0;
}

void nb_plan_free(nb_plan *plan)
{
    nb_arena_free(&plan->arena);
    *plan = (nb_plan){0};
}
