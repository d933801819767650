/* See layer_errors.h. */
#include "serve/layer_errors.h"

#include "base/file.h"

#include <stdio.h>
#include <string.h>

#define MAX_LAYERS 20000

static size_t n_digits(const char *text)
{
    return strspn(text, "0123456789");
}

/* "model.layers.3.mlp.up_proj.weight" is layer 3, kind mlp.up_proj; without a number all is kind.
 */
static void split_name(const char *name, nb_layer_error *e)
{
    size_t len = strlen(name);
    if (len > 7 && strcmp(name + len - 7, ".weight") == 0)
        len -= 7;
    const char *end = name + len, *kind = name;
    e->layer[0] = 0;
    for (const char *p = name; p < end; p++) {
        const bool starts = p == name || p[-1] == '.';
        const size_t n = starts ? n_digits(p) : 0;
        if (n == 0 || n >= sizeof e->layer || p[n] != '.')
            continue;
        memcpy(e->layer, p, n);
        e->layer[n] = 0;
        kind = p + n + 1;
        break;
    }
    const size_t n = kind < end ? (size_t)(end - kind) : 0;
    snprintf(e->kind, sizeof e->kind, "%.*s", (int)(n < 63 ? n : 63), kind);
}

nb_status nb_layer_errors_read(const json_t *report, nb_layer_error **out, int64_t *n, nb_err *err)
{
    *out = NULL;
    *n = 0;
    json_t *calibration = NULL, *layers = NULL;
    if (!json_is_object(report))
        return nb_fail(err, NB_DATA, "the report is no JSON object");
    NB_TRY(nb_json_object(report, "calibration", false, &calibration, err));
    if (calibration != NULL)
        NB_TRY(nb_json_array(calibration, "layers", false, &layers, err));
    if (layers == NULL || json_array_size(layers) == 0)
        return NB_OK;
    if (json_array_size(layers) > MAX_LAYERS)
        return nb_fail(err, NB_DATA, "the report has %zu layers", json_array_size(layers));
    nb_layer_error *errors;
    NB_TRY(NB_ALLOC(&errors, json_array_size(layers), err));
    size_t i;
    json_t *layer;
    int64_t found = 0;
    nb_status s = NB_OK;
    json_array_foreach(layers, i, layer)
    {
        const char *name = NULL;
        double loss = -1;
        s = json_is_object(layer) ? NB_OK : nb_fail(err, NB_DATA, "layer %zu is no object", i);
        if (s == NB_OK)
            s = nb_json_text(layer, "name", true, &name, err);
        if (s == NB_OK)
            s = nb_json_number(layer, "loss", false, &loss, err);
        if (s == NB_OK) /* on texts that the codes were not fitted to, where that was measured */
            s = nb_json_number(layer, "held_out_loss", false, &loss, err);
        if (s != NB_OK)
            break;
        if (loss < 0)
            continue;
        split_name(name, &errors[found]);
        errors[found++].value = loss;
    }
    if (s != NB_OK) {
        nb_free(errors);
        return s;
    }
    *out = errors;
    *n = found;
    return NB_OK;
}

nb_status nb_layer_errors_load(const char *model, nb_buf *text, nb_layer_error **out, int64_t *n,
                               nb_err *err)
{
    char path[4096];
    *out = NULL;
    *n = 0;
    const int k = snprintf(path, sizeof path, "%s%snibble-report.json", model,
                           nb_path_is_dir(model) ? "/" : ".");
    if (k < 0 || (size_t)k >= sizeof path || !nb_path_exists(path))
        return NB_OK;
    NB_TRY(nb_file_slurp(text, path, (size_t)64 << 20, err));
    json_t *report;
    nb_status s = nb_json_parse(&report, (const char *)text->data, text->len, err);
    if (s == NB_OK) {
        s = nb_layer_errors_read(report, out, n, err);
        json_decref(report);
    }
    if (s == NB_OK)
        return NB_OK;
    nb_buf_free(text);
    return nb_context(err, "%s", path);
}
