/* Plots as inline SVG. Colours are classes of the page's style, so that they follow dark mode. */
#include "report/table.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* Widths are guesses (no font is measured here); wide letters err on the safe side. */
#define LETTER_WIDTH 7.4
#define TEXT_HEIGHT  16.0

/* A divergence below this is rounding: it is drawn as 0, not as one more decade. */
#define ZERO 1e-12

static int letters(const char *text)
{
    int n = 0;
    for (const char *p = text; *p != 0; p++)
        n += ((unsigned char)*p & 0xc0) != 0x80;
    return n;
}

/* Appends at most `max` characters of the text, escaped. */
static nb_status put_short(nb_buf *out, const char *text, int max, nb_err *err)
{
    if (letters(text) <= max)
        return nb_html_text(out, text, err);
    char cut[256];
    size_t n = 0;
    int taken = 0;
    for (const char *p = text; *p != 0 && n + 4 < sizeof cut; p++) {
        taken += ((unsigned char)*p & 0xc0) != 0x80;
        if (taken >= max)
            break;
        cut[n++] = *p;
    }
    memcpy(cut + n, "\xe2\x80\xa6", 4);
    return nb_html_text(out, cut, err);
}

/* ---- axes ---- */

typedef struct {
    double lo, hi;   /* of the values; for a logarithmic axis, of their logarithms */
    double from, to; /* where they lie on the page */
    double step;
    bool is_log;
    bool has_zero; /* a logarithmic axis with a lane for zeros below it */
} axis;

/* 1, 2 or 5 times a power of ten, so that `span` holds about `n` of them. */
static double nice_step(double span, int n)
{
    const double raw = span / n;
    const double power = pow(10.0, floor(log10(raw)));
    const double m = raw / power;
    return power * (m < 1.5 ? 1 : m < 3.5 ? 2 : m < 7.5 ? 5 : 10);
}

static axis linear_axis(double lo, double hi, double from, double to)
{
    if (lo > 0 && lo < 0.5 * hi)
        lo = 0;
    if (!(hi > lo)) {
        lo -= fabs(lo) * 0.1 + 1e-12;
        hi += fabs(hi) * 0.1 + 1e-12;
    }
    const double step = nice_step(hi - lo, 6);
    return (axis){.lo = floor(lo / step) * step,
                  .hi = ceil(hi / step) * step,
                  .from = from,
                  .to = to,
                  .step = step};
}

static axis log_axis(double lo, double hi, bool has_zero, double from, double to)
{
    axis a = {.lo = floor(log10(lo)), .hi = ceil(log10(hi)), .from = from, .to = to, .step = 1};
    a.is_log = true;
    if (a.hi <= a.lo)
        a.hi = a.lo + 1;
    a.has_zero = has_zero;
    if (has_zero)
        a.lo -= 0.5;
    return a;
}

static double place(const axis *a, double v)
{
    if (a->is_log)
        v = v > ZERO ? log10(v) : a->lo;
    return a->from + (v - a->lo) / (a->hi - a->lo) * (a->to - a->from);
}

/* ---- the scatter plot ---- */

#define PLOT_W 760.0
#define PLOT_H 420.0
#define LEFT   72.0
#define RIGHT  20.0
#define TOP    14.0
#define BOTTOM 52.0

typedef struct {
    double x, y, w, h;
} box;

static double overlap(box a, box b)
{
    const double w = fmin(a.x + a.w, b.x + b.w) - fmax(a.x, b.x);
    const double h = fmin(a.y + a.h, b.y + b.h) - fmax(a.y, b.y);
    return w > 0 && h > 0 ? w * h : 0;
}

/* Part of the box that sticks out of the plot. */
static double outside(box b)
{
    const box plot = {LEFT, TOP, PLOT_W - LEFT - RIGHT, PLOT_H - TOP - BOTTOM};
    return b.w * b.h - overlap(b, plot);
}

/* Each label takes the candidate place that covers the least of what is there already: the dots,
 * and the labels placed before it. Greedy, which is enough for the dozens of rows people plot. */
static box place_label(double x, double y, double w, const box *taken, int64_t n_taken)
{
    const box candidates[] = {
        {x + 9, y - TEXT_HEIGHT / 2, w, TEXT_HEIGHT},
        {x - 9 - w, y - TEXT_HEIGHT / 2, w, TEXT_HEIGHT},
        {x - w / 2, y - 9 - TEXT_HEIGHT, w, TEXT_HEIGHT},
        {x - w / 2, y + 9, w, TEXT_HEIGHT},
        {x + 7, y - 7 - TEXT_HEIGHT, w, TEXT_HEIGHT},
        {x + 7, y + 7, w, TEXT_HEIGHT},
        {x - 7 - w, y - 7 - TEXT_HEIGHT, w, TEXT_HEIGHT},
        {x - 7 - w, y + 7, w, TEXT_HEIGHT},
        {x + 18, y - 14 - 2 * TEXT_HEIGHT, w, TEXT_HEIGHT},
        {x + 18, y + 14 + TEXT_HEIGHT, w, TEXT_HEIGHT},
        {x - 18 - w, y - 14 - 2 * TEXT_HEIGHT, w, TEXT_HEIGHT},
        {x - 18 - w, y + 14 + TEXT_HEIGHT, w, TEXT_HEIGHT},
    };
    box best = candidates[0];
    double best_cost = INFINITY;
    for (size_t c = 0; c < sizeof candidates / sizeof *candidates; c++) {
        double cost = 3 * outside(candidates[c]) + (double)c;
        for (int64_t i = 0; i < n_taken; i++)
            cost += overlap(candidates[c], taken[i]);
        if (cost < best_cost) {
            best_cost = cost;
            best = candidates[c];
        }
    }
    return best;
}

static nb_status put_axes(const nb_report *r, const axis *x, const axis *y, int x_column,
                          int y_column, nb_buf *out, nb_err *err)
{
    for (double v = x->lo; v <= x->hi + x->step / 2; v += x->step) {
        const double px = place(x, v);
        NB_TRY(nb_buf_format(out, err,
                             "<line class=\"grid\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" "
                             "y2=\"%.1f\"/><text class=\"soft\" x=\"%.1f\" y=\"%.1f\" "
                             "text-anchor=\"middle\">%.6g</text>\n",
                             px, TOP, px, PLOT_H - BOTTOM, px, PLOT_H - BOTTOM + 18, v));
    }
    const double first = y->is_log ? ceil(y->lo) : y->lo;
    for (double v = first; v <= y->hi + y->step / 2; v += y->step) {
        const double shown = y->is_log ? pow(10.0, v) : v, py = place(y, shown);
        NB_TRY(nb_buf_format(out, err,
                             "<line class=\"grid\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" "
                             "y2=\"%.1f\"/><text class=\"soft\" x=\"%.1f\" y=\"%.1f\" "
                             "text-anchor=\"end\">%.6g</text>\n",
                             LEFT, py, PLOT_W - RIGHT, py, LEFT - 8, py + 4, shown));
    }
    if (y->has_zero) {
        const double py = place(y, 0);
        NB_TRY(nb_buf_format(out, err,
                             "<line class=\"grid\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" "
                             "stroke-dasharray=\"4 4\"/><text class=\"soft\" x=\"%.1f\" y=\"%.1f\" "
                             "text-anchor=\"end\">0</text>\n",
                             LEFT, py, PLOT_W - RIGHT, py, LEFT - 8, py + 4));
    }
    return nb_buf_format(
        out, err,
        "<text class=\"soft\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%s (%s)</text>"
        "<text class=\"soft\" transform=\"translate(14 %.1f) rotate(-90)\" "
        "text-anchor=\"middle\">%s (%s)%s</text>\n",
        (LEFT + PLOT_W - RIGHT) / 2, PLOT_H - 8, r->columns[x_column].title,
        r->columns[x_column].unit, (TOP + PLOT_H - BOTTOM) / 2, r->columns[y_column].title,
        r->columns[y_column].unit, y->is_log ? ", logarithmic" : "");
}

static bool is_plotted(const nb_row *row, int x_column, int y_column)
{
    const nb_value *x = &row->value[x_column], *y = &row->value[y_column];
    return x->present && y->present && x->number >= 0 && x->number < 1e18 && y->number >= 0 &&
           y->number < 1e18;
}

static nb_status put_points(const nb_report *r, const axis *ax, const axis *ay, int x_column,
                            int y_column, box *taken, nb_buf *out, nb_err *err)
{
    int64_t n = 0;
    for (int64_t i = 0; i < r->n_rows; i++) {
        const nb_row *row = r->rows[i];
        if (!is_plotted(row, x_column, y_column))
            continue;
        const double x = place(ax, row->value[x_column].number / 1e6);
        const double y = place(ay, row->value[y_column].number);
        taken[n++] = (box){x - 6, y - 6, 12, 12};
    }
    int64_t dot = 0;
    for (int64_t i = 0; i < r->n_rows; i++) {
        const nb_row *row = r->rows[i];
        if (!is_plotted(row, x_column, y_column))
            continue;
        const double x = taken[dot].x + 6, y = taken[dot].y + 6;
        dot++;
        const int shown = letters(row->name) < 28 ? letters(row->name) : 28;
        const box label = place_label(x, y, shown * LETTER_WIDTH, taken, n);
        taken[n++] = label;
        const bool right = label.x > x, left = label.x + label.w < x;
        const double at = right ? label.x : left ? label.x + label.w : label.x + label.w / 2;
        if (fabs(label.y + label.h / 2 - y) > 20) /* far off: a line leads to the dot */
            NB_TRY(nb_buf_format(out, err,
                                 "<line class=\"lead\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" "
                                 "y2=\"%.1f\"/>",
                                 x, y, label.x > x ? label.x - 2 : label.x + label.w + 2,
                                 label.y + label.h / 2));
        NB_TRY(nb_buf_format(
            out, err, "<circle class=\"dot\" cx=\"%.1f\" cy=\"%.1f\" r=\"6\"><title>", x, y));
        NB_TRY(nb_html_text(out, row->name, err));
        NB_TRY(nb_buf_format(out, err, ": %s %s, %s %s</title></circle>",
                             nb_report_show(r, row, x_column).text, r->columns[x_column].unit,
                             r->columns[y_column].title, nb_report_show(r, row, y_column).text));
        NB_TRY(nb_buf_format(out, err, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">", at,
                             label.y + 12,
                             right  ? "start"
                             : left ? "end"
                                    : "middle"));
        NB_TRY(put_short(out, row->name, 28, err));
        NB_TRY(nb_buf_text(out, "</text>\n", err));
    }
    return NB_OK;
}

nb_status nb_svg_scatter(const nb_report *r, int x_column, int y_column, nb_buf *out, nb_err *err)
{
    double x_lo = INFINITY, x_hi = 0, y_lo = INFINITY, y_hi = 0;
    int64_t n = 0;
    bool has_zero = false;
    for (int64_t i = 0; i < r->n_rows; i++) {
        if (!is_plotted(r->rows[i], x_column, y_column))
            continue;
        const double x = r->rows[i]->value[x_column].number / 1e6;
        const double y = r->rows[i]->value[y_column].number;
        n++;
        x_lo = fmin(x_lo, x);
        x_hi = fmax(x_hi, x);
        y_hi = fmax(y_hi, y);
        has_zero = has_zero || y <= ZERO;
        if (y > ZERO)
            y_lo = fmin(y_lo, y);
    }
    if (n == 0)
        return NB_OK;
    const axis x = linear_axis(x_lo, x_hi, LEFT, PLOT_W - RIGHT);
    const axis y = y_hi > ZERO ? log_axis(y_lo, y_hi, has_zero, PLOT_H - BOTTOM, TOP)
                               : linear_axis(0, 1, PLOT_H - BOTTOM, TOP);
    box *taken;
    NB_TRY(NB_ALLOC(&taken, 2 * n, err));
    nb_status s =
        nb_buf_format(out, err,
                      "<svg viewBox=\"0 0 %.0f %.0f\" role=\"img\" "
                      "aria-label=\"%s against %s, one dot a model\">\n",
                      PLOT_W, PLOT_H, r->columns[x_column].title, r->columns[y_column].title);
    if (s == NB_OK)
        s = put_axes(r, &x, &y, x_column, y_column, out, err);
    if (s == NB_OK)
        s = put_points(r, &x, &y, x_column, y_column, taken, out, err);
    if (s == NB_OK)
        s = nb_buf_text(out, "</svg>", err);
    nb_free(taken);
    return s;
}

/* ---- bars ---- */

#define BAR_W       520.0
#define BAR_ROW     28.0
#define BAR_NAMES   170.0
#define BAR_NUMBERS 70.0

nb_status nb_svg_bars(const nb_report *r, int column, nb_buf *out, nb_err *err)
{
    const nb_column *c = &r->columns[column];
    double largest = 0;
    int64_t n = 0;
    for (int64_t i = 0; i < r->n_rows; i++) {
        const nb_value *v = &r->rows[i]->value[column];
        n += v->present;
        if (v->present && v->number > largest && v->number < 1e18)
            largest = v->number;
    }
    if (n == 0 || largest == 0)
        return NB_OK;
    NB_TRY(
        nb_buf_format(out, err,
                      "<svg viewBox=\"0 0 %.0f %.0f\" role=\"img\" aria-label=\"%s in %s, one bar "
                      "a model\">\n",
                      BAR_W, BAR_ROW * (double)n + 4, c->title, c->unit));
    double y = 2;
    for (int64_t i = 0; i < r->n_rows; i++) {
        const nb_row *row = r->rows[i];
        const nb_value *v = &row->value[column];
        if (!v->present)
            continue;
        const double share = v->number > 0 && v->number < 1e18 ? v->number / largest : 0;
        const double width = share * (BAR_W - BAR_NAMES - BAR_NUMBERS);
        NB_TRY(nb_buf_format(out, err, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">",
                             BAR_NAMES - 10, y + 18));
        NB_TRY(put_short(out, row->name, 21, err));
        NB_TRY(nb_buf_text(out, "<title>", err));
        NB_TRY(nb_html_text(out, row->name, err));
        NB_TRY(nb_buf_format(out, err,
                             "</title></text><rect class=\"bar\" x=\"%.1f\" y=\"%.1f\" "
                             "width=\"%.1f\" height=\"%.1f\" rx=\"3\"/>"
                             "<text x=\"%.1f\" y=\"%.1f\">%s</text>\n",
                             BAR_NAMES, y + 3, fmax(width, 1), BAR_ROW - 6,
                             BAR_NAMES + fmax(width, 1) + 8, y + 18,
                             nb_report_show(r, row, column).text));
        y += BAR_ROW;
    }
    return nb_buf_text(out, "</svg>", err);
}
