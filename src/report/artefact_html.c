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

/* "0.4100 +- 0.0492". */
static nb_status put_share(nb_buf *out, double v, double se, nb_err *err)
{
    char text[80] = "\xe2\x80\x93";
    if (isfinite(v) && isfinite(se))
        snprintf(text, sizeof text, "%.4f \xc2\xb1 %.4f", v, se);
    else if (isfinite(v))
        snprintf(text, sizeof text, "%.4f", v);
    return put_cell(out, "<td>", text, "</td>", err);
}

static nb_status put_tasks(const nb_artefact *a, nb_buf *out, nb_err *err)
{
    if (a->tasks_left_out != NULL)
        NB_TRY(put_cell(out, "<p>No answers to the tasks: ", a->tasks_left_out, "</p>\n", err));
    if (a->n_tasks == 0)
        return NB_OK;
    NB_TRY(nb_buf_text(out,
                       "<div class=\"scroll\" tabindex=\"0\" role=\"region\" "
                       "aria-label=\"Tasks\"><table><caption>Tasks: the share of items answered "
                       "right, by likelihood (acc) and by likelihood per character (acc_norm), "
                       "with standard errors; what changed is counted in items, by "
                       "likelihood</caption>\n<thead><tr><th scope=\"col\" class=\"t\">task</th>"
                       "<th scope=\"col\">items</th><th scope=\"col\">acc</th>"
                       "<th scope=\"col\">of the original</th><th scope=\"col\">acc_norm</th>"
                       "<th scope=\"col\">of the original</th>"
                       "<th scope=\"col\">answers that flipped</th>"
                       "<th scope=\"col\">right before only</th>"
                       "<th scope=\"col\">right now only</th></tr></thead>\n<tbody>\n",
                       err));
    for (int64_t i = 0; i < a->n_tasks; i++) {
        const nb_artefact_task *t = &a->tasks[i];
        NB_TRY(put_cell(out, "<tr><th scope=\"row\">", t->name, "</th>", err));
        NB_TRY(put_number(out, "%.6g", t->n, err));
        NB_TRY(put_share(out, t->acc, t->acc_se, err));
        NB_TRY(put_share(out, t->base_acc, t->base_acc_se, err));
        NB_TRY(put_share(out, t->acc_norm, t->acc_norm_se, err));
        NB_TRY(put_share(out, t->base_acc_norm, t->base_acc_norm_se, err));
        NB_TRY(put_number(out, "%.6g", t->flips, err));
        NB_TRY(put_number(out, "%.6g", t->lost, err));
        NB_TRY(put_number(out, "%.6g", t->won, err));
        NB_TRY(nb_buf_text(out, "</tr>\n", err));
    }
    return nb_buf_text(out, "</tbody></table></div>\n", err);
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
                       "<th scope=\"col\">error of outputs</th><th scope=\"col\">held out</th>"
                       "<th scope=\"col\">error of weights</th>"
                       "<th scope=\"col\">predicted KL</th><th scope=\"col\">inputs apart</th>"
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
        NB_TRY(put_number(out, "%.4g", l->rms_error, err));
        NB_TRY(put_number(out, "%.3g", l->predicted_kl, err));
        NB_TRY(put_number(out, "%.3f", l->coverage, err));
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

/* Points where linears read, and the kind that stands for those of a point. */
#define N_POINTS 4
static const char *const points[N_POINTS] = {"q, k, v", "o", "gate, up", "down"};
static const int point_of[NB_ARTEFACT_KINDS] = {0, 0, 0, 1, 2, 2, 3};

/* What is plotted, by layer. */
typedef struct {
    double *errors;   /* [kind][layer]: held-out ones where there are */
    double *kl;       /* [kind][layer]: predicted */
    double *coverage; /* [point][layer] */
    double *bits, *seconds, *params;
} plotted;

static void fill(const nb_artefact *a, plotted *p)
{
    const int64_t n = a->n_layers;
    for (int64_t i = 0; i < NB_ARTEFACT_KINDS * n; i++)
        p->errors[i] = p->kl[i] = NAN;
    for (int64_t i = 0; i < N_POINTS * n; i++)
        p->coverage[i] = NAN;
    for (int64_t i = 0; i < n; i++)
        p->seconds[i] = NAN;
    for (int64_t i = 0; i < a->n_linears; i++) {
        const nb_artefact_linear *l = &a->linears[i];
        if (l->layer < 0)
            continue;
        const int64_t at = l->kind * n + l->layer;
        p->errors[at] = isfinite(l->held_out_loss) ? l->held_out_loss : l->loss;
        p->kl[at] = l->predicted_kl;
        if (isfinite(l->coverage))
            p->coverage[point_of[l->kind] * n + l->layer] = l->coverage;
        if (isfinite(l->bytes) && l->params > 0) {
            p->bits[l->layer] += 8 * l->bytes;
            p->params[l->layer] += l->params;
        }
        if (isfinite(l->seconds))
            p->seconds[l->layer] =
                (isfinite(p->seconds[l->layer]) ? p->seconds[l->layer] : 0) + l->seconds;
    }
    for (int64_t i = 0; i < n; i++)
        p->bits[i] = p->params[i] > 0 ? p->bits[i] / p->params[i] : NAN;
}

static nb_status put_all(const nb_artefact *a, const plotted *p, nb_buf *out, nb_err *err)
{
    static const char *const blocks[] = {"block"};
    const struct {
        const char *heading, *caption;
        nb_series series;
    } plots[] = {
        {"Error by layer",
         "Error of a linear layer's output over the output's own size, on held-out text where "
         "there "
         "is some; logarithmic.",
         {.label = "relative error of each linear layer, by layer",
          .names = nb_artefact_kinds,
          .values = p->errors,
          .n_series = NB_ARTEFACT_KINDS,
          .is_log = true}},
        {"KL by layer",
         "Divergence from the original when only this block is quantized, in nat; logarithmic. A "
         "block that stands out is one to give more bits.",
         {.label = "KL that each block alone brings, by layer",
          .names = blocks,
          .values = a->layer_kl,
          .n_series = 1,
          .is_log = true}},
        {"Predicted KL of each linear layer",
         "What the error of this layer alone does to the predictions, by the guide, in nat a "
         "token; "
         "logarithmic.",
         {.label = "predicted KL of each linear layer, by layer",
          .names = nb_artefact_kinds,
          .values = p->kl,
          .n_series = NB_ARTEFACT_KINDS,
          .is_log = true}},
        {"Coverage by layer",
         "How far the inputs of layers on held-out text are from those on the text that chose: the "
         "mean over columns of |ln| of the ratio of their mean squares. 0.1 is 10 %; a layer that "
         "stands out wants more text, or more even text.",
         {.label = "inputs on held-out text against the rest, by layer",
          .names = points,
          .values = p->coverage,
          .n_series = N_POINTS}},
        {"Time by layer",
         "Seconds that choosing codes took; running the text through the layer is not in it.",
         {.label = "seconds that choosing codes took, by layer",
          .names = blocks,
          .values = p->seconds,
          .n_series = 1}},
        {"Bits by layer",
         "Scales and zero points are counted.",
         {.label = "bits per weight of the linear layers, by layer",
          .names = blocks,
          .values = p->bits,
          .n_series = 1}},
    };
    for (size_t i = 0; i < sizeof plots / sizeof *plots; i++) {
        nb_series series = plots[i].series;
        series.n = a->n_layers;
        NB_TRY(put_plot(plots[i].heading, plots[i].caption, &series, out, err));
    }
    return NB_OK;
}

static nb_status put_plots(const nb_artefact *a, nb_buf *out, nb_err *err)
{
    const int64_t n = a->n_layers;
    double *room;
    if (n == 0)
        return NB_OK;
    NB_TRY(NB_ALLOC(&room, (2 * NB_ARTEFACT_KINDS + N_POINTS + 3) * n, err));
    plotted p = {.errors = room, .kl = room + NB_ARTEFACT_KINDS * n};
    p.coverage = p.kl + NB_ARTEFACT_KINDS * n;
    p.bits = p.coverage + N_POINTS * n;
    p.seconds = p.bits + n;
    p.params = p.seconds + n;
    fill(a, &p);
    const nb_status s = put_all(a, &p, out, err);
    nb_free(room);
    return s;
}

nb_status nb_artefact_html(const nb_artefact *a, nb_buf *out, nb_err *err)
{
    NB_TRY(put_cell(out, "<section class=\"artefact\"><h2>", a->name, "</h2>\n", err));
    NB_TRY(put_lines("What it is", a->head, a->n_head, out, err));
    if (a->left_out != NULL)
        NB_TRY(put_cell(out, "<p>Not measured against the original: ", a->left_out, "</p>\n", err));
    NB_TRY(put_tasks(a, out, err));
    NB_TRY(put_lines("Notes and reasons", a->notes, a->n_notes, out, err));
    NB_TRY(put_plots(a, out, err));
    NB_TRY(put_linears(a, out, err));
    return nb_buf_text(out, "</section>\n", err);
}
