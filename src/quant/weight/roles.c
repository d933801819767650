/* See roles.h. */
#include "quant/weight/roles.h"

#include <stdio.h>
#include <string.h>

/* The rest of a name after "model.layers.LAYER."; NULL for any other name. */
static const char *in_layer(const char *name)
{
    static const char prefix[] = "model.layers.";
    if (strncmp(name, prefix, sizeof prefix - 1) != 0)
        return NULL;
    const char *digits = name + sizeof prefix - 1;
    const size_t n = strspn(digits, "0123456789");
    return n > 0 && digits[n] == '.' ? digits + n + 1 : NULL;
}

static const char *const linears[] = {
    "self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight",
    "self_attn.o_proj.weight", "mlp.gate_proj.weight",    "mlp.up_proj.weight",
    "mlp.down_proj.weight",
};
#define N_LINEARS (sizeof linears / sizeof *linears)

nb_role nb_role_of(const nb_weight *w)
{
    if (w->n_dims < 2)
        return NB_ROLE_VECTOR;
    if (w->n_dims > 2)
        return NB_ROLE_OTHER;
    if (strcmp(w->name, "model.embed_tokens.weight") == 0)
        return NB_ROLE_EMBED;
    if (strcmp(w->name, "lm_head.weight") == 0)
        return NB_ROLE_HEAD;
    const char *rest = in_layer(w->name);
    for (size_t i = 0; rest != NULL && i < N_LINEARS; i++) {
        if (strcmp(rest, linears[i]) == 0)
            return NB_ROLE_LINEAR;
    }
    return NB_ROLE_OTHER;
}

static nb_status check(const nb_store *store, const char *name, int n_dims, int64_t n_rows,
                       int64_t n_cols, nb_err *err)
{
    const nb_weight *w = nb_store_find(store, name);
    if (w == NULL)
        return nb_fail(err, NB_DATA, "%s: tensor '%s' is missing", nb_store_path(store), name);
    if (w->n_dims != n_dims || w->n_rows != n_rows || w->n_cols != n_cols)
        return nb_fail(err, NB_DATA,
                       "%s: tensor '%s' is %lld x %lld in %d dimensions, and the config wants %lld "
                       "x %lld in %d",
                       nb_store_path(store), name, (long long)w->n_rows, (long long)w->n_cols,
                       w->n_dims, (long long)n_rows, (long long)n_cols, n_dims);
    return NB_OK;
}

static nb_status check_layer(const nb_store *store, const nb_config *c, int64_t layer, nb_err *err)
{
    const int64_t d_q = c->n_heads * c->head_dim, d_kv = c->n_kv_heads * c->head_dim;
    const int64_t shapes[N_LINEARS][2] = {
        {d_q, c->d_model},     {d_kv, c->d_model},    {d_kv, c->d_model},   {c->d_model, d_q},
        {c->d_ff, c->d_model}, {c->d_ff, c->d_model}, {c->d_model, c->d_ff}};
    char name[96];
    for (size_t i = 0; i < N_LINEARS; i++) {
        snprintf(name, sizeof name, "model.layers.%lld.%s", (long long)layer, linears[i]);
        NB_TRY(check(store, name, 2, shapes[i][0], shapes[i][1], err));
    }
    static const char *const norms[] = {"input_layernorm.weight",
                                        "post_attention_layernorm.weight"};
    for (size_t i = 0; i < 2; i++) {
        snprintf(name, sizeof name, "model.layers.%lld.%s", (long long)layer, norms[i]);
        NB_TRY(check(store, name, 1, 1, c->d_model, err));
    }
    return NB_OK;
}

nb_status nb_roles_check(const nb_store *store, const nb_config *c, nb_err *err)
{
    NB_TRY(check(store, "model.embed_tokens.weight", 2, c->vocab_size, c->d_model, err));
    NB_TRY(check(store, "model.norm.weight", 1, 1, c->d_model, err));
    if (!c->tied_head)
        NB_TRY(check(store, "lm_head.weight", 2, c->vocab_size, c->d_model, err));
    for (int64_t i = 0; i < c->n_layers; i++)
        NB_TRY(check_layer(store, c, i, err));
    char beyond[96];
    snprintf(beyond, sizeof beyond, "model.layers.%lld.%s", (long long)c->n_layers, linears[0]);
    if (nb_store_find(store, beyond) != NULL)
        return nb_fail(err, NB_DATA, "%s: the config has %lld layers, and the tensors have more",
                       nb_store_path(store), (long long)c->n_layers);
    return NB_OK;
}
