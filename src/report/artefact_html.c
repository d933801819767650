/* The section of a page about one quantized model; see artefact.h. */
#include "report/artefact.h"
#include "report/series.h"
#include "report/table.h"

#include <math.h>
#include <string.h>

static nb_status put_cell(nb_buf *out, const char *open, const char *text, const char *close,
                          nb_err *err)
{
    NB_TRY(nb_buf_text(out, open, err));
    NB_TRY(nb_html_text(out, text, err));
    return nb_buf_text(out, close, err);
}

static nb_status put_lines(const char *caption, const nb_artefact_line *lines, int64_t n,
                           nb_buf *out, nb_err *err)
{
    if (n == 0)
        return NB_OK;
    NB_TRY(nb_buf_format(out, err,
                         "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"%s\">"
                         "<table class=\"facts\"><caption>%s</caption>\n<tbody>\n",
                         caption, caption));
    for (int64_t i = 0; i < n; i++) {
        NB_TRY(put_cell(out, "<tr><th scope=\"row\">", lines[i].what, "</th>", err));
        NB_TRY(put_cell(out, "<td class=\"t\">", lines[i].text, "</td></tr>\n", err));
    }
    return nb_buf_text(out, "</tbody></table></div>\n", err);
}

static nb_status put_number(nb_buf *out, const char *format, double v, nb_err *err)
{
    char text[64] = "\xe2\x80\x93";
    if (isfinite(v))
        snprintf(text, sizeof text, format, v);
    return put_cell(out, "<td>", text, "</td>", err);
}

static double bits_of(double bytes, double params)
{
    return params > 0 ? 8 * bytes / params : NAN;
}

static nb_status put_linears(const nb_artefact *a, nb_buf *out, nb_err *err)
{
    if (a->n_linears == 0)
        return NB_OK;
    NB_TRY(nb_buf_text(out,
                       "<details><summary>All linear layers</summary><div class=\"scroll\" "
                       "tabindex=\"0\" role=\"region\" aria-label=\"Linear layers\"><table>"
                       "<thead><tr><th scope=\"col\" class=\"t\">layer</th>"
                       "<th scope=\"col\" class=\"t\">format</th><th scope=\"col\">bits/weight</th>"
                       "<th scope=\"col\">relative error</th><th scope=\"col\">held out</th>"
                       "<th scope=\"col\">seconds</th><th scope=\"col\" class=\"t\">note</th>"
                       "</tr></thead>\n<tbody>\n",
                       err));
    for (int64_t i = 0; i < a->n_linears; i++) {
        const nb_artefact_linear *l = &a->linears[i];
        NB_TRY(put_cell(out, "<tr><th scope=\"row\">", l->name, "</th>", err));
        NB_TRY(put_cell(out, "<td class=\"t\">", l->format != NULL ? l->format : "", "</td>", err));
        NB_TRY(put_number(out, "%.3f", bits_of(l->bytes, l->params), err));
        NB_TRY(put_number(out, "%.4g", l->loss, err));
        NB_TRY(put_number(out, "%.4g", l->held_out_loss, err));
        NB_TRY(put_number(out, "%.2f", l->seconds, err));
        NB_TRY(
            put_cell(out, "<td class=\"t\">", l->note != NULL ? l->note : "", "</td></tr>\n", err));
    }
    return nb_buf_text(out, "</tbody></table></div></details>\n", err);
}

/* ---- plots ---- */

static nb_status put_plot(const char *heading, const char *caption, const nb_series *series,
                          nb_buf *out, nb_err *err)
{
    nb_buf svg = {0};
    nb_status s = nb_svg_series(series, &svg, err);
    if (s == NB_OK && svg.len > 0) {
        s = nb_buf_format(out, err, "<h3>%s</h3>\n<figure>", heading);
        if (s == NB_OK)
            s = nb_buf_put(out, svg.data, svg.len, err);
        if (s == NB_OK)
            s = nb_buf_format(out, err, "<figcaption>%s</figcaption></figure>\n", caption);
    }
    nb_buf_free(&svg);
    return s;
}

/* Errors [kind][layer] and bits [layer] of the linear layers: held-out errors where there are. */
static void fill(const nb_artefact *a, double *errors, double *bits, double *params)
{
    for (int64_t i = 0; i < NB_ARTEFACT_KINDS * a->n_layers; i++)
        errors[i] = NAN;
    for (int64_t i = 0; i < a->n_linears; i++) {
        const nb_artefact_linear *l = &a->linears[i];
        if (l->layer < 0)
            continue;
        errors[l->kind * a->n_layers + l->layer] =
            isfinite(l->held_out_loss) ? l->held_out_loss : l->loss;
        if (isfinite(l->bytes) && l->params > 0) {
            bits[l->layer] += 8 * l->bytes;
            params[l->layer] += l->params;
        }
    }
    for (int64_t i = 0; i < a->n_layers; i++)
        bits[i] = params[i] > 0 ? bits[i] / params[i] : NAN;
}

static nb_status put_plots(const nb_artefact *a, nb_buf *out, nb_err *err)
{
    static const char *const blocks[] = {"block"};
    if (a->n_layers == 0)
        return NB_OK;
    double *room;
    NB_TRY(NB_ALLOC(&room, (NB_ARTEFACT_KINDS + 2) * a->n_layers, err));
    double *errors = room, *bits = room + NB_ARTEFACT_KINDS * a->n_layers;
    fill(a, errors, bits, bits + a->n_layers);
    const nb_series by_kind = {.label = "relative error of each linear layer, by layer",
                               .names = nb_artefact_kinds,
                               .values = errors,
                               .n_series = NB_ARTEFACT_KINDS,
                               .n = a->n_layers,
                               .is_log = true};
    const nb_series kl = {.label = "KL that each block alone brings, by layer",
                          .names = blocks,
                          .values = a->layer_kl,
                          .n_series = 1,
                          .n = a->n_layers,
                          .is_log = true};
    const nb_series by_bits = {.label = "bits per weight of the linear layers, by layer",
                               .names = blocks,
                               .values = bits,
                               .n_series = 1,
                               .n = a->n_layers};
    nb_status s = put_plot("Error by layer",
                           "Error of a linear layer's output over the output's own size, on "
                           "held-out text where there is some; logarithmic.",
                           &by_kind, out, err);
    if (s == NB_OK)
        s = put_plot("KL by layer",
                     "Divergence from the original when only this block is quantized, in nat; "
                     "logarithmic. A block that stands out is one to give more bits.",
                     &kl, out, err);
    if (s == NB_OK)
        s = put_plot("Bits by layer", "Scales and zero points are counted.", &by_bits, out, err);
    nb_free(room);
    return s;
}

nb_status nb_artefact_html(const nb_artefact *a, nb_buf *out, nb_err *err)
{
    NB_TRY(put_cell(out, "<section class=\"artefact\"><h2>", a->name, "</h2>\n", err));
    NB_TRY(put_lines("What it is", a->head, a->n_head, out, err));
    if (a->left_out != NULL)
        NB_TRY(put_cell(out, "<p>Not measured against the original: ", a->left_out, "</p>\n", err));
    NB_TRY(put_lines("Notes and reasons", a->notes, a->n_notes, out, err));
    NB_TRY(put_plots(a, out, err));
    NB_TRY(put_linears(a, out, err));
    return nb_buf_text(out, "</section>\n", err);
}
