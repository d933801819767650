/* Half-quadratic quantization (Badri and Shaji, "Half-Quadratic Quantization of Large Machine
 * Learning Models", 2023): without data, the scales of a group are moved so that
 *
 *   sum |w - value|^p,   p < 1,
 *
 * becomes small, a norm to which a few large errors are cheap: weights that stand out are given up
 * for the many that do not. With the error e split off, two steps alternate, in units of the scale:
 *
 *   e = shrink(w - value),   shrink(x) = sign(x) max(0, |x| - |x|^(p - 1) / beta)
 *   zero, offset, scale = least squares of w - e for the codes at hand
 *
 * while beta grows; p is taken in sixteenths. The paper moves a zero point of any value and leaves
 * the scale; here each format moves what it can store: the zero point, as a float or an integer,
 * and the scale (affine), the offset and the scale (q4_1, q5_1), the scale alone (symmetric grids).
 * Every point is rounded as it is stored before codes are taken with it, and the best one is kept.
 * Where groups depend on each other (K-quants), and where scales belong to the whole matrix, the
 * fit of the grid is what there is.
 *
 * With integer zero points the norm misleads: 0 is one of the values then, and what pays most is to
 * let the many small weights fall on it, at the cost of all others. Points of least norm came out
 * worse than plain rounding (W4 g64: KL 0.41, rounding 0.34), so there a point counts only if its
 * squares are no larger than those at the start. */
#include "quant/encode/quantizer.h"

#include <math.h>
#include <string.h>

extern const nb_quantizer nb_quantizer_hqq;

typedef struct {
    int p; /* in sixteenths */
    double beta, growth;
    int n_steps;
    nb_fit start;
} hqq_options;

static nb_status options_of(const nb_method *method, hqq_options *out, nb_err *err)
{
    static const char *const known[] = {"p", "steps", "start", NULL};
    NB_TRY(nb_method_only(method, known, err));
    double p, steps;
    *out = (hqq_options){.beta = 10, .growth = 1.05, .start = NB_FIT_SEARCH};
    NB_TRY(nb_method_number(method, "p", 0.7, 0.1, 1, &p, err));
    NB_TRY(nb_method_number(method, "steps", 20, 0, 1000, &steps, err));
    out->p = (int)rint(16 * p);
    out->n_steps = (int)steps;
    const char *start = nb_method_option_of(method, "start");
    if (start == NULL || strcmp(start, "search") == 0)
        return NB_OK;
    if (strcmp(start, "absmax") != 0)
        return nb_fail(err, NB_USAGE, "option start of method hqq is absmax or search, not '%s'",
                       start);
    out->start = NB_FIT_ABSMAX;
    return NB_OK;
}

static nb_status hqq_check(const nb_method *method, unsigned *needs, nb_err *err)
{
    (void)needs;
    hqq_options ignored;
    return options_of(method, &ignored, err);
}

/* ---- one group ---- */

typedef struct {
    const nb_grid *grid;
    const hqq_options *options;
    const float *w;
    int64_t n;
    uint8_t *code;  /* [n] of the point at hand */
    double *target; /* [n] w - e */
    double squares; /* of the errors */
} hqq_group;

/* x^(p / 16), from square roots: a power by logarithms took nine tenths of the time. */
static double power_of(double x, int p)
{
    double root = x, power = p >= 16 ? x : 1;
    for (int bit = 8; bit > 0; bit /= 2) {
        root = sqrt(root);
        if ((p & bit) != 0)
            power *= root;
    }
    return power;
}

/* Codes of a point, what is left of w when large errors are taken off, and the norm. The powers of
 * |x| that both need are one. */
static double take_codes(hqq_group *h, const nb_grid_group *g, double beta)
{
    const int p = h->options->p;
    const double scale = fabs((double)g->scale);
    double norm = 0;
    h->squares = 0;
    nb_grid_nearest_n(h->grid, g, h->w, h->n, h->code);
    for (int64_t i = 0; i < h->n; i++) {
        const double w = (double)h->w[i], error = w - (double)nb_grid_value(h->grid, g, h->code[i]);
        const double x = fabs(error) / scale;
        h->target[i] = w;
        h->squares += error * error;
        if (!(x > 0))
            continue;
        const double power = power_of(x, p), left = x - power / x / beta;
        norm += power;
        if (left > 0)
            h->target[i] = w - (error < 0 ? -left : left) * scale;
    }
    return norm * power_of(scale, p);
}

static double level_at(const hqq_group *h, int64_t i)
{
    return (double)h->grid->level[h->code[i]];
}

/* The zero point, as an integer that the levels reach, or the offset, with the scale as it is. */
static void move_origin(const hqq_group *h, nb_grid_group *g)
{
    double sum = 0;
    const double scale = (double)g->scale;
    for (int64_t i = 0; i < h->n; i++)
        sum += level_at(h, i) - h->target[i] / scale;
    const double mean = sum / (double)h->n;
    if (h->grid->has_offset)
        g->offset = (float)(-scale * mean);
    if (!h->grid->has_zero)
        return;
    const double least = (double)h->grid->level[0];
    const double most = (double)h->grid->level[h->grid->n_levels - 1];
    g->zero = (int)rint(mean < least ? least : mean > most ? most : mean);
}

static void move_scale(const hqq_group *h, nb_grid_group *g)
{
    double xl = 0, ll = 0;
    for (int64_t i = 0; i < h->n; i++) {
        const double l = level_at(h, i) - g->zero;
        xl += (h->target[i] - (double)g->offset) * l;
        ll += l * l;
    }
    const double scale = xl / ll;
    if (ll > 0 && fabs(scale) < 0x1p127)
        g->scale = (float)scale;
}

static bool same_group(const nb_grid_group *a, const nb_grid_group *b)
{
    return a->scale == b->scale && a->offset == b->offset && a->zero == b->zero;
}

/* The group is at column col of row r. */
static void solve_group(hqq_group *h, nb_mat *out, int64_t r, int64_t col)
{
    nb_grid_group g, best;
    nb_grid_group_at(h->grid, out, r, col, &g);
    if (g.scale == 0)
        return;
    double beta = h->options->beta, least = take_codes(h, &g, beta);
    const double most = h->grid->has_zero ? h->squares : INFINITY;
    best = g;
    for (int i = 0; i < h->options->n_steps; i++) {
        nb_grid_group next = g;
        if (h->grid->has_zero || h->grid->has_offset)
            move_origin(h, &next);
        move_scale(h, &next);
        if (!nb_grid_group_put(h->grid, out, r, col, &next))
            break;
        nb_grid_group_at(h->grid, out, r, col, &next);
        beta *= h->options->growth;
        const double norm = take_codes(h, &next, beta);
        if (norm < least && h->squares <= most) {
            least = norm;
            best = next;
        }
        if (same_group(&next, &g) && i > 0)
            break;
        g = next;
    }
    (void)nb_grid_group_put(h->grid, out, r, col, &best);
}

/* ---- rows ---- */

static void solve_row(hqq_group *h, nb_mat *out, int64_t r, const float *w)
{
    const int64_t len = h->grid->group_len;
    for (int64_t c = 0; c < out->n_cols; c += len) {
        h->w = w + c;
        h->n = out->n_cols - c < len ? out->n_cols - c : len;
        solve_group(h, out, r, c);
    }
}

static nb_status hqq_encode_rows(const nb_quant_job *job, nb_mat *out, nb_err *err)
{
    if (out->fmt->grid == NULL) { /* no scales: there is nothing to move */
        for (int64_t r = 0; r < job->n_rows; r++)
            out->fmt->encode_row(out, r, job->weight + r * out->n_cols);
        return NB_OK;
    }
    hqq_options options;
    nb_grid grid;
    NB_TRY(options_of(job->method, &options, err));
    NB_TRY(nb_grid_of(&grid, out, err));
    if (grid.whole)
        return nb_fail(err, NB_UNSUPPORTED, "method hqq needs groups; scales of %s are shared",
                       out->fmt->name);
    nb_grid_fit_rows(&grid, out, 0, job->n_rows, job->weight, NULL, options.start);
    hqq_group h = {.grid = &grid, .options = &options};
    nb_status s = NB_ALLOC(&h.code, grid.group_len, err);
    if (s == NB_OK)
        s = NB_ALLOC(&h.target, grid.group_len, err);
    for (int64_t r = 0; s == NB_OK && r < job->n_rows; r++) {
        const float *w = job->weight + r * out->n_cols;
        if (out->fmt->grid->group_put != NULL)
            solve_row(&h, out, r, w);
        nb_grid_round_row(&grid, out, r, w);
    }
    nb_free(h.target);
    nb_free(h.code);
    return s;
}

const nb_quantizer nb_quantizer_hqq = {
    .name = "hqq",
    .source = "Badri and Shaji, 2023",
    .summary = "scales that keep most errors small and let a few be large",
    .needs = NB_STAT_NONE,
    .check = hqq_check,
    .encode_rows = hqq_encode_rows,
};
