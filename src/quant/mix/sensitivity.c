/* See sensitivity.h. */
#include "quant/mix/sensitivity.h"

#include "quant/weight/roles.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

void nb_sensitivity_free(nb_sensitivity *t)
{
    for (int c = 0; c < NB_SENSITIVITY_MAX_CANDIDATES; c++) {
        nb_plan_free(&t->plan[c]);
        nb_recipe_free(&t->recipe[c]);
    }
    nb_arena_free(&t->arena);
    *t = (nb_sensitivity){0};
}

/* ---- linears ---- */

static nb_status find_linears(nb_sensitivity *t, nb_store *store, nb_err *err)
{
    nb_config config;
    NB_TRY(nb_config_read(store, &config, err));
    NB_TRY(nb_roles_check(store, &config, err));
    t->n_linears = config.n_layers * NB_N_LINEARS;
    NB_TRY(NB_ARENA_ALLOC(&t->arena, &t->from, t->n_linears, err));
    for (int64_t i = 0; i < t->n_linears; i++) {
        char name[128];
        snprintf(name, sizeof name, "model.layers.%lld.%s.weight", (long long)(i / NB_N_LINEARS),
                 nb_linear_name((nb_linear_id)(i % NB_N_LINEARS)));
        t->from[i] = nb_store_find(store, name); /* the roles were checked */
        t->n_params += t->from[i]->n_rows * t->from[i]->n_cols;
    }
    return NB_OK;
}

/* ---- candidates ---- */

static bool divides(const nb_scheme *s, const nb_weight *w)
{
    if (!s->fmt->affine)
        return w->n_cols % s->fmt->block_len == 0;
    return s->group_size <= 0 || s->scale_rows > 1 || w->n_cols % s->group_size == 0;
}

/* A group size that was left open is settled for all layers alike, so that what is measured is what
 * a recipe with this scheme will say. */
static nb_status settle_group(const nb_sensitivity *t, nb_scheme *s, nb_err *err)
{
    static const int64_t sizes[] = {128, 64, 32};
    if (!s->fmt->affine || s->group_size != NB_GROUP_CHOOSE)
        return NB_OK;
    for (int k = 0; k < 3; k++) {
        bool all = true;
        for (int64_t i = 0; i < t->n_linears; i++)
            all = all && t->from[i]->n_cols % sizes[k] == 0;
        if (!all && k < 2)
            continue;
        char text[64];
        snprintf(text, sizeof text, "%s%cg%lld", s->name, strchr(s->name, ':') != NULL ? ',' : ':',
                 (long long)sizes[k]);
        return nb_scheme_parse(s, text, err);
    }
    return NB_OK;
}

static nb_status add_candidate(nb_sensitivity *t, const char *text, size_t len, nb_err *err)
{
    char copy[128];
    nb_scheme *s = &t->scheme[t->n_candidates];
    if (t->n_candidates == NB_SENSITIVITY_MAX_CANDIDATES)
        return nb_fail(err, NB_USAGE, "at most %d candidates are taken",
                       NB_SENSITIVITY_MAX_CANDIDATES);
    if (len >= sizeof copy)
        return nb_fail(err, NB_USAGE, "'%.40s...' is no scheme", text);
    memcpy(copy, text, len);
    copy[len] = 0;
    NB_TRY(nb_scheme_parse(s, copy, err));
    if (s->act.is_static)
        return nb_fail(err, NB_USAGE,
                       "candidate %s: static scales are found while the model is quantized, which "
                       "comes after the choice",
                       s->name);
    NB_TRY(settle_group(t, s, err));
    for (int c = 0; c < t->n_candidates; c++) {
        if (strcmp(t->scheme[c].name, s->name) == 0)
            return nb_fail(err, NB_USAGE, "candidate %s is given twice", s->name);
    }
    t->n_candidates++;
    return NB_OK;
}

static nb_status add_candidates(nb_sensitivity *t, const char *text, nb_err *err)
{
    for (const char *at = text; *at != 0;) {
        at += strspn(at, " ;");
        const size_t len = strcspn(at, ";");
        size_t n = len;
        while (n > 0 && at[n - 1] == ' ')
            n--;
        if (n > 0)
            NB_TRY(add_candidate(t, at, n, err));
        at += len;
    }
    if (t->n_candidates == 0)
        return nb_fail(err, NB_USAGE, "'%s' names no candidate", text);
    return NB_OK;
}

/* A plan of all layers that a candidate fits. */
static nb_status plan_candidate(nb_sensitivity *t, int c, nb_store *store,
                                const nb_plan_request *like, nb_err *err)
{
    nb_plan_request request = *like;
    nb_recipe *recipe = &t->recipe[c];
    for (int64_t i = 0; i < t->n_linears; i++) {
        char name[128];
        const char *whole = t->from[i]->name;
        snprintf(name, sizeof name, "%.*s", (int)(strlen(whole) - strlen(".weight")), whole);
        if (divides(&t->scheme[c], t->from[i]))
            NB_TRY(nb_recipe_add(recipe, name, &t->scheme[c], &t->method, NULL, err));
    }
    if (recipe->n == 0)
        return nb_fail(err, NB_USAGE, "candidate %s fits no layer of %s", t->scheme[c].name,
                       nb_store_path(store));
    request.recipe = recipe;
    request.scheme = nb_recipe_main(recipe)->scheme;
    NB_TRY(nb_recipe_check_container(recipe, request.to, err));
    NB_TRY(nb_plan_make(&t->plan[c], store, &request, err));
    const nb_plan *plan = &t->plan[c];
    int64_t linear = 0;
    for (int64_t k = 0; k < plan->n; k++) {
        for (linear = 0; linear < t->n_linears && t->from[linear] != plan->from[k]; linear++)
            continue;
        if (linear < t->n_linears && plan->rule[k] != NULL)
            t->to[nb_sensitivity_at(t, linear, c)] = &plan->weights[k];
    }
    return NB_OK;
}

static nb_status init(nb_sensitivity *t, nb_store *store, const nb_plan_request *request,
                      const char *candidates, nb_err *err)
{
    NB_TRY(find_linears(t, store, err));
    NB_TRY(add_candidates(t, candidates, err));
    const int64_t n = t->n_linears * t->n_candidates;
    NB_TRY(NB_ARENA_ALLOC(&t->arena, &t->to, n, err));
    NB_TRY(NB_ARENA_ALLOC(&t->arena, &t->kl, n, err));
    for (int64_t i = 0; i < n; i++)
        t->kl[i] = NAN;
    for (int c = 0; c < t->n_candidates; c++)
        NB_TRY(plan_candidate(t, c, store, request, err));
    for (int64_t i = 0; i < t->n_linears; i++) {
        bool any = false;
        for (int c = 0; c < t->n_candidates; c++)
            any = any || t->to[nb_sensitivity_at(t, i, c)] != NULL;
        if (!any)
            return nb_fail(
                err, NB_USAGE,
                "tensor '%.200s' has rows of %lld columns, which no candidate divides; an "
                "integer format with channel does, and so may smaller groups",
                t->from[i]->name, (long long)t->from[i]->n_cols);
    }
    return NB_OK;
}

nb_status nb_sensitivity_init(nb_sensitivity *t, nb_store *store, const nb_plan_request *request,
                              const char *candidates, const nb_method *method, nb_err *err)
{
    *t = (nb_sensitivity){.method = *method};
    const nb_status s = init(t, store, request, candidates, err);
    if (s != NB_OK)
        nb_sensitivity_free(t);
    return s;
}

/* ---- measuring ---- */

double nb_sensitivity_flops(const nb_sensitivity *t, const nb_swapped_plan *plan, int64_t n_tokens)
{
    const int64_t n_layers = t->n_linears / NB_N_LINEARS;
    double all = 0;
    for (int64_t i = 0; i < t->n_linears; i++) {
        for (int c = 0; c < t->n_candidates; c++) {
            const int64_t at = nb_sensitivity_at(t, i, c);
            if (t->to[at] != NULL && isnan(t->kl[at]))
                all += plan->block_flops * (double)(n_layers - i / NB_N_LINEARS) + plan->head_flops;
        }
    }
    return all * (double)n_tokens;
}

bool nb_sensitivity_complete(const nb_sensitivity *t)
{
    for (int64_t at = 0; at < t->n_linears * t->n_candidates; at++) {
        if (t->to[at] != NULL && isnan(t->kl[at]))
            return false;
    }
    return true;
}

static nb_status measure_one(nb_sensitivity *t, nb_swapped *s, int64_t i, int c, nb_err *err)
{
    const int64_t at = nb_sensitivity_at(t, i, c), layer = i / NB_N_LINEARS;
    const nb_linear_id id = (nb_linear_id)(i % NB_N_LINEARS);
    double kl;
    NB_TRY(nb_swapped_set(s, layer, id, t->to[at], &t->method, err));
    const nb_status status = nb_swapped_kl(s, layer, &kl, err);
    nb_swapped_restore(s, layer, id);
    if (status != NB_OK)
        return nb_context(err, "tensor '%.200s' as %s", t->from[i]->name, t->scheme[c].name);
    t->kl[at] = kl > 0 ? kl : 0; /* rounding can leave less than nothing */
    return NB_OK;
}

nb_status nb_sensitivity_measure(nb_sensitivity *t, nb_swapped *s, nb_sensitivity_keep *keep,
                                 void *context, nb_err *err)
{
    for (int64_t i = 0; i < t->n_linears; i++) {
        bool any = false;
        for (int c = 0; c < t->n_candidates; c++) {
            const int64_t at = nb_sensitivity_at(t, i, c);
            if (t->to[at] == NULL || !isnan(t->kl[at]))
                continue;
            NB_TRY(measure_one(t, s, i, c, err));
            any = true;
        }
        if (any && keep != NULL && i % NB_N_LINEARS == NB_N_LINEARS - 1)
            NB_TRY(keep(context, t, err));
    }
    return NB_OK;
}

/* ---- JSON ---- */

static json_t *row_json(const nb_sensitivity *t, int64_t i)
{
    json_t *list = json_array();
    bool bad = list == NULL;
    for (int c = 0; c < t->n_candidates && !bad; c++) {
        const int64_t at = nb_sensitivity_at(t, i, c);
        if (t->to[at] == NULL)
            continue;
        json_t *o = json_pack("{s:s, s:I}", "scheme", t->scheme[c].name, "bytes",
                              (json_int_t)t->to[at]->bytes);
        bad = o == NULL ||
              (!isnan(t->kl[at]) && json_object_set_new(o, "kl", json_real(t->kl[at])) != 0);
        bad = json_array_append_new(list, o) != 0 || bad;
    }
    if (!bad)
        return json_pack("{s:s, s:o}", "name", t->from[i]->name, "candidates", list);
    json_decref(list);
    return NULL;
}

nb_status nb_sensitivity_json(const nb_sensitivity *t, json_t **out, nb_err *err)
{
    *out = json_array();
    bool bad = *out == NULL;
    for (int64_t i = 0; i < t->n_linears && !bad; i++)
        bad = json_array_append_new(*out, row_json(t, i)) != 0;
    if (!bad)
        return NB_OK;
    json_decref(*out);
    *out = NULL;
    return nb_fail(err, NB_MEMORY, "no memory for the table of sensitivities");
}

void nb_sensitivity_take(nb_sensitivity *t, const json_t *rows)
{
    for (int64_t i = 0; i < t->n_linears; i++) {
        const json_t *row = json_array_get(rows, (size_t)i);
        const json_t *list = json_object_get(row, "candidates");
        const char *name = json_string_value(json_object_get(row, "name"));
        if (name == NULL || strcmp(name, t->from[i]->name) != 0)
            continue;
        for (size_t k = 0; k < json_array_size(list); k++) {
            const json_t *o = json_array_get(list, k), *kl = json_object_get(o, "kl");
            const char *scheme = json_string_value(json_object_get(o, "scheme"));
            for (int c = 0; scheme != NULL && c < t->n_candidates; c++) {
                const int64_t at = nb_sensitivity_at(t, i, c);
                if (strcmp(scheme, t->scheme[c].name) == 0 && t->to[at] != NULL &&
                    json_is_number(kl) && json_number_value(kl) >= 0)
                    t->kl[at] = json_number_value(kl);
            }
        }
    }
}
