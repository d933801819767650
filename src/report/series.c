/* See series.h. */
#include "report/series.h"

#include "report/table.h"

#include <math.h>

#define WIDTH  760.0
#define HEIGHT 300.0
#define LEFT   72.0
#define RIGHT  16.0
#define TOP    34.0
#define BOTTOM 44.0

typedef struct {
    double lo, hi; /* of the values, or of their decimal logarithms */
    double step;
    bool is_log;
} scale;

static bool is_shown(const nb_series *s, double v)
{
    return isfinite(v) && fabs(v) < 1e18 && (!s->is_log || v > 1e-30);
}

static double height_of(const scale *y, double v)
{
    v = y->is_log ? log10(v) : v;
    return HEIGHT - BOTTOM - (v - y->lo) / (y->hi - y->lo) * (HEIGHT - TOP - BOTTOM);
}

static double place_of(const nb_series *s, int64_t i)
{
    return LEFT + ((double)i + 0.5) / (double)s->n * (WIDTH - LEFT - RIGHT);
}

/* False when no value is shown. A linear scale begins at 0. */
static bool find_scale(const nb_series *s, scale *y)
{
    double lo = INFINITY, hi = -INFINITY;
    for (int64_t i = 0; i < s->n_series * s->n; i++) {
        if (is_shown(s, s->values[i])) {
            lo = fmin(lo, s->values[i]);
            hi = fmax(hi, s->values[i]);
        }
    }
    if (!(lo <= hi))
        return false;
    *y = (scale){.is_log = s->is_log, .step = 1};
    if (s->is_log) {
        y->lo = floor(log10(lo));
        y->hi = fmax(ceil(log10(hi)), y->lo + 1);
        return true;
    }
    y->lo = fmin(lo, 0);
    y->hi = hi > y->lo ? hi : y->lo + 1;
    const double raw = (y->hi - y->lo) / 5, power = pow(10.0, floor(log10(raw)));
    y->step = power * (raw / power < 1.5 ? 1 : raw / power < 3.5 ? 2 : raw / power < 7.5 ? 5 : 10);
    y->lo = floor(y->lo / y->step) * y->step;
    y->hi = ceil(y->hi / y->step) * y->step;
    return true;
}

static nb_status put_grid(const nb_series *s, const scale *y, nb_buf *out, nb_err *err)
{
    const double steps = (y->hi - y->lo) / y->step;
    const double stride = steps > 12 ? ceil(steps / 12) * y->step : y->step;
    for (double v = y->lo; v <= y->hi + y->step / 2; v += stride) {
        const double shown = y->is_log ? pow(10.0, v) : v, at = height_of(y, shown);
        NB_TRY(nb_buf_format(out, err,
                             "<line class=\"grid\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" "
                             "y2=\"%.1f\"/><text class=\"soft\" x=\"%.1f\" y=\"%.1f\" "
                             "text-anchor=\"end\">%.4g</text>\n",
                             LEFT, at, WIDTH - RIGHT, at, LEFT - 8, at + 4, shown));
    }
    const int64_t every = (s->n + 19) / 20;
    for (int64_t i = 0; i < s->n; i += every)
        NB_TRY(nb_buf_format(out, err,
                             "<text class=\"soft\" x=\"%.1f\" y=\"%.1f\" "
                             "text-anchor=\"middle\">%lld</text>\n",
                             place_of(s, i), HEIGHT - BOTTOM + 18, (long long)i));
    return nb_buf_format(out, err,
                         "<text class=\"soft\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">layer"
                         "</text>\n",
                         (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6);
}

/* A line breaks where a value is missing; each value is a dot that says what it is. */
static nb_status put_line(const nb_series *s, const scale *y, int k, nb_buf *out, nb_err *err)
{
    const double *v = s->values + (int64_t)k * s->n;
    bool open = false;
    for (int64_t i = 0; i < s->n; i++) {
        const bool shown = is_shown(s, v[i]);
        if (shown && !open)
            NB_TRY(nb_buf_format(out, err, "<polyline class=\"s%d\" points=\"", k));
        if (shown)
            NB_TRY(nb_buf_format(out, err, "%.1f,%.1f ", place_of(s, i), height_of(y, v[i])));
        else if (open)
            NB_TRY(nb_buf_text(out, "\"/>\n", err));
        open = shown;
    }
    if (open)
        NB_TRY(nb_buf_text(out, "\"/>\n", err));
    for (int64_t i = 0; i < s->n; i++) {
        if (!is_shown(s, v[i]))
            continue;
        NB_TRY(nb_buf_format(out, err,
                             "<circle class=\"s%d\" cx=\"%.1f\" cy=\"%.1f\" r=\"3\"><title>", k,
                             place_of(s, i), height_of(y, v[i])));
        NB_TRY(nb_html_text(out, s->names[k], err));
        NB_TRY(
            nb_buf_format(out, err, ", layer %lld: %.4g</title></circle>\n", (long long)i, v[i]));
    }
    return NB_OK;
}

static nb_status put_legend(const nb_series *s, nb_buf *out, nb_err *err)
{
    if (s->n_series == 1)
        return NB_OK;
    for (int k = 0; k < s->n_series; k++) {
        const double x = LEFT + 90.0 * k;
        NB_TRY(nb_buf_format(out, err,
                             "<circle class=\"s%d\" cx=\"%.1f\" cy=\"14\" r=\"5\"/>"
                             "<text x=\"%.1f\" y=\"19\">",
                             k, x, x + 10));
        NB_TRY(nb_html_text(out, s->names[k], err));
        NB_TRY(nb_buf_text(out, "</text>\n", err));
    }
    return NB_OK;
}

nb_status nb_svg_series(const nb_series *s, nb_buf *out, nb_err *err)
{
    scale y;
    if (!find_scale(s, &y))
        return NB_OK;
    NB_TRY(nb_buf_format(out, err, "<svg viewBox=\"0 0 %.0f %.0f\" role=\"img\" aria-label=\"",
                         WIDTH, HEIGHT));
    NB_TRY(nb_html_text(out, s->label, err));
    NB_TRY(nb_buf_text(out, "\">\n", err));
    NB_TRY(put_grid(s, &y, out, err));
    for (int k = 0; k < s->n_series; k++)
        NB_TRY(put_line(s, &y, k, out, err));
    NB_TRY(put_legend(s, out, err));
    return nb_buf_text(out, "</svg>", err);
}
