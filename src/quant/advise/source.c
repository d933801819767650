/* A model that is quantized already, by its config or its files; see advise.h. */
#include "quant/advise/advise.h"

#include "quant/weight/roles.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- by config ---- */

typedef struct {
    int64_t bits, group; /* group 0: a row */
    bool zeros, is_float;
} layout;

/* config_groups: {"group_0": {"weights": {"num_bits", "group_size", "symmetric", "type"}}} */
static nb_status read_groups(layout *l, const json_t *q, nb_err *err)
{
    json_t *groups = NULL, *weights = NULL;
    const char *key, *type = NULL;
    json_t *group;
    bool symmetric = true;
    NB_TRY(nb_json_object(q, "config_groups", false, &groups, err));
    json_object_foreach(groups, key, group)
    {
        if (!json_is_object(group))
            return nb_fail(err, NB_DATA, "config_groups: '%.60s' is no object", key);
        NB_TRY(nb_json_object(group, "weights", false, &weights, err));
        if (weights == NULL)
            continue;
        NB_TRY(nb_json_int(weights, "num_bits", true, 1, 16, &l->bits, err));
        NB_TRY(nb_json_int(weights, "group_size", false, -1, 1 << 20, &l->group, err));
        NB_TRY(nb_json_bool(weights, "symmetric", false, &symmetric, err));
        NB_TRY(nb_json_text(weights, "type", false, &type, err));
        l->zeros = !symmetric;
        l->is_float = type != NULL && strcmp(type, "float") == 0;
        return NB_OK;
    }
    return NB_OK;
}

static nb_status read_layout(layout *l, const char *method, const json_t *q, nb_err *err)
{
    bool flag = false, symmetric = true;
    *l = (layout){0};
    if (strcmp(method, "bitsandbytes") == 0) {
        NB_TRY(nb_json_bool(q, "load_in_4bit", false, &flag, err));
        *l = (layout){.bits = flag ? 4 : 8, .group = flag ? 64 : 0, .is_float = flag};
        return NB_OK;
    }
    if (strstr(method, "fp8") != NULL) {
        *l = (layout){.bits = 8, .is_float = true};
        return NB_OK;
    }
    if (strcmp(method, "compressed-tensors") == 0)
        return read_groups(l, q, err);
    NB_TRY(nb_json_int(q, "bits", false, 1, 16, &l->bits, err));
    if (l->bits == 0)
        NB_TRY(nb_json_int(q, "w_bit", false, 1, 16, &l->bits, err));
    NB_TRY(nb_json_int(q, "group_size", false, -1, 1 << 20, &l->group, err));
    NB_TRY(nb_json_bool(q, "sym", false, &symmetric, err));
    NB_TRY(nb_json_bool(q, "zero_point", false, &flag, err));
    l->zeros = !symmetric || flag;
    return NB_OK;
}

/* The scheme of nibble that is of the same size. */
static void spell_scheme(char *out, size_t size, const layout *l)
{
    const int64_t bits = l->bits <= 4 ? (l->bits < 2 ? 2 : l->bits) : 8;
    if (l->is_float) {
        snprintf(out, size, "%s", l->bits > 4 ? "FP8" : "NF4");
        return;
    }
    int n = snprintf(out, size, "W%lldA16:", (long long)bits);
    if (l->group > 0)
        n += snprintf(out + n, size - (size_t)n, "g%lld", (long long)l->group);
    else
        n += snprintf(out + n, size - (size_t)n, "channel");
    snprintf(out + n, size - (size_t)n, "%s", l->zeros && bits <= 4 ? ",asym" : "");
}

nb_status nb_advise_source_read(nb_advise_source *out, const nb_advise_shape *s,
                                const json_t *config, nb_err *err)
{
    json_t *q = NULL;
    const char *method = NULL;
    char scheme[48];
    layout l;
    *out = (nb_advise_source){0};
    NB_TRY(nb_json_object(config, "quantization_config", false, &q, err));
    if (q == NULL)
        return NB_OK;
    NB_TRY(nb_json_text(q, "quant_method", false, &method, err));
    method = method != NULL ? method : "unnamed";
    if (read_layout(&l, method, q, err) != NB_OK)
        return nb_context(err, "quantization_config");
    if (l.bits == 16)
        return NB_OK;
    out->quantized = true;
    out->bits_known = l.bits != 0;
    l.bits = out->bits_known ? l.bits : 4;
    l.group = l.group > 0 ? l.group : 0;
    int n = snprintf(out->what, sizeof out->what, "%.40s, %lld bits", method, (long long)l.bits);
    if (!out->bits_known)
        n += snprintf(out->what + n, sizeof out->what - (size_t)n, " as it seems");
    if (l.group > 0)
        snprintf(out->what + n, sizeof out->what - (size_t)n, " in groups of %lld",
                 (long long)l.group);
    spell_scheme(scheme, sizeof scheme, &l);
    nb_err ignored = {0};
    nb_status status = nb_advise_candidate_like(&out->as, s, scheme, &ignored);
    if (status == NB_USAGE || status == NB_UNSUPPORTED || (status == NB_OK && !out->as.possible)) {
        l.group = 0;
        spell_scheme(scheme, sizeof scheme, &l);
        status = nb_advise_candidate_like(&out->as, s, scheme, err);
    }
    const bool calibrated = strcmp(method, "gptq") == 0 || strcmp(method, "awq") == 0;
    out->as.loss = nb_advise_loss_like((int)l.bits, l.zeros, l.group, calibrated);
    out->as.scheme = "as it is";
    out->as.bits = (int)l.bits;
    return status;
}

/* ---- by files ---- */

/* What is a candidate has its number there. */
static nb_advise_loss loss_of(const nb_weight *w)
{
    char name[24];
    snprintf(name, sizeof name, "%s", w->fmt->name);
    for (char *c = name; *c != 0; c++)
        *c = (char)(*c >= 'a' && *c <= 'z' ? *c - 'a' + 'A' : *c);
    const nb_advise_loss its = nb_advise_loss_of(name, "rtn");
    if (!isnan(its.kl))
        return its;
    const bool zeros = w->fmt->affine ? !w->symmetric : strstr(w->fmt->name, "_1") != NULL;
    return nb_advise_loss_like(w->fmt->bits, zeros, w->fmt->affine ? w->group_size : 32, false);
}

void nb_advise_source_of(nb_advise_source *out, const nb_advise_shape *s, const nb_store *store)
{
    int64_t bytes = 0, params = 0, most = 0;
    const nb_weight *main = NULL;
    *out = (nb_advise_source){0};
    for (int64_t i = 0; i < nb_store_n_weights(store); i++) {
        const nb_weight *w = nb_store_weight(store, i);
        if (nb_role_of(w) != NB_ROLE_LINEAR)
            continue;
        bytes += w->bytes;
        params += w->n_rows * w->n_cols;
        if (w->bytes > most) {
            most = w->bytes;
            main = w;
        }
    }
    const double bpw = params > 0 ? 8 * (double)bytes / (double)params : 16;
    if (main == NULL || bpw > 12)
        return;
    const double all = (double)nb_advise_params(s), file = (double)nb_store_file_bytes(store);
    out->quantized = out->bits_known = true;
    snprintf(out->what, sizeof out->what, "%s of %.3f bits per weight in its layers",
             main->fmt->affine ? "codes" : main->fmt->name, bpw);
    out->as = (nb_candidate){.scheme = "as it is",
                             .bits = main->fmt->bits,
                             .loss = loss_of(main),
                             .possible = true,
                             .bytes = nb_store_file_bytes(store),
                             .bpw = 8 * file / all,
                             .active_bytes = file * (double)nb_advise_active_params(s) / all,
                             .compute = nb_weight_compute(main, NB_COMPUTE_AUTO),
                             .a8 = main->act.bits == 8};
}
