/* See transform.h: the list of transforms, and the one way in which they move scales. */
#include "quant/transform/transform.h"

#include "kernel/math.h"
#include "numeric/minifloat.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#define X(id) extern const nb_transform nb_transform_##id;
#include "quant/transform/transforms.def"
#undef X

const nb_transform *const nb_transforms[] = {
#define X(id) &nb_transform_##id,
#include "quant/transform/transforms.def"
#undef X
    NULL,
};

nb_status nb_transform_by_name(const nb_transform **out, const char **options, const char *text,
                               nb_err *err)
{
    const size_t len = strcspn(text, ":");
    for (const nb_transform *const *t = nb_transforms; *t != NULL; t++) {
        if (strlen((*t)->name) != len || strncmp((*t)->name, text, len) != 0)
            continue;
        *out = *t;
        *options = text[len] == ':' ? text + len + 1 : text + len;
        return NB_OK;
    }
    char list[160] = "";
    for (const nb_transform *const *t = nb_transforms; *t != NULL; t++) {
        strncat(list, t == nb_transforms ? "" : ", ", sizeof list - strlen(list) - 1);
        strncat(list, (*t)->name, sizeof list - strlen(list) - 1);
    }
    return nb_fail(err, NB_USAGE, "unknown transform '%.*s'; there are: %s",
                   len < 40 ? (int)len : 40, text, list);
}

/* ---- options ---- */

bool nb_transform_option(const char **at, nb_method_option *out)
{
    if (**at == 0)
        return false;
    const size_t len = strcspn(*at, ",");
    const char *equals = memchr(*at, '=', len);
    const size_t n_name = equals == NULL ? len : (size_t)(equals - *at);
    const size_t n_value = equals == NULL ? 0 : len - n_name - 1;
    *out = (nb_method_option){0};
    /* What is too long is cut, which leaves a word that is none: no option has 23 letters. */
    memcpy(out->name, *at, n_name < NB_METHOD_MAX_WORD ? n_name : NB_METHOD_MAX_WORD - 1);
    if (n_value > 0)
        memcpy(out->value, equals + 1,
               n_value < NB_METHOD_MAX_WORD ? n_value : NB_METHOD_MAX_WORD - 1);
    *at += len;
    *at += **at == ',';
    return true;
}

nb_status nb_transform_no_option(const char *transform, const nb_method_option *o,
                                 const char *known, nb_err *err)
{
    return nb_fail(err, NB_USAGE, "transform %s has no option '%s%s%s'; there are: %s", transform,
                   o->name, o->value[0] != 0 ? "=" : "", o->value, known);
}

/* ---- points ---- */

const char *nb_point_name(nb_point point)
{
    static const char *const names[NB_N_POINTS] = {"q, k, v", "o", "gate, up", "down"};
    return names[point];
}

nb_linear_id nb_point_linears(nb_point point, int *n)
{
    static const nb_linear_id first[NB_N_POINTS] = {NB_LINEAR_Q, NB_LINEAR_O, NB_LINEAR_GATE,
                                                    NB_LINEAR_DOWN};
    static const int count[NB_N_POINTS] = {3, 1, 2, 1};
    *n = count[point];
    return first[point];
}

static int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

int64_t nb_point_n_cols(const nb_config *c, nb_point point)
{
    if (point == NB_AT_O)
        return c->n_heads * c->head_dim;
    return point == NB_AT_DOWN ? c->d_ff : c->d_model;
}

int64_t nb_point_source(const nb_config *c, nb_point point, int64_t j)
{
    if (point != NB_AT_O)
        return j;
    const int64_t head = j / c->head_dim, per = c->n_heads / c->n_kv_heads;
    return head / per * c->head_dim + j % c->head_dim;
}

int64_t nb_point_n_sources(const nb_config *c, nb_point point)
{
    return point == NB_AT_O ? c->n_kv_heads * c->head_dim : nb_point_n_cols(c, point);
}

/* The linear whose rows are divided; NB_N_LINEARS where a gain is. */
static nb_linear_id feeder(nb_point point)
{
    return point == NB_AT_O ? NB_LINEAR_V : point == NB_AT_DOWN ? NB_LINEAR_UP : NB_N_LINEARS;
}

static float *gain_of(const nb_transform_job *job, nb_point point)
{
    return point == NB_AT_ATTN ? job->gain[0] : point == NB_AT_FFN ? job->gain[1] : NULL;
}

/* ---- all points, all rows ---- */

nb_transform_result nb_transform_result_none(void)
{
    nb_transform_result r = {0};
    for (int p = 0; p < NB_N_POINTS; p++)
        r.before[p] = r.after[p] = NAN;
    return r;
}

nb_status nb_transform_apply(const nb_transform *t, const nb_transform_job *job,
                             nb_transform_result *result, nb_err *err)
{
    *result = nb_transform_result_none();
    for (int p = 0; p < NB_N_POINTS; p++)
        NB_TRY(t->apply_at(job, (nb_point)p, result, err));
    return NB_OK;
}

nb_status nb_transform_rows(const nb_transform_job *job, nb_linear_id id, int64_t row, int64_t n,
                            float *room, const float **out, nb_err *err)
{
    const nb_rows *rows = &job->rows[id];
    const nb_rows all = {.all = job->weight[id], .read = rows->read, .context = rows->context};
    return nb_rows_get(&all, nb_linear_n_cols(job->config, id), row, n, room, out, err);
}

int64_t nb_transform_strip(const nb_transform_job *job, nb_linear_id id)
{
    const nb_config *c = job->config;
    const int64_t n_rows = nb_linear_n_rows(c, id);
    return job->weight[id] != NULL ? n_rows : nb_strip_rows(n_rows, nb_linear_n_cols(c, id));
}

/* Calls `each` for all rows of a linear, a strip at a time. */
typedef void strip_fn(void *context, const float *w, int64_t row, int64_t n);

static nb_status for_rows(const nb_transform_job *job, nb_linear_id id, strip_fn *each,
                          void *context, nb_err *err)
{
    const int64_t n_rows = nb_linear_n_rows(job->config, id), strip = nb_transform_strip(job, id);
    float *room = NULL;
    nb_status s = NB_OK;
    if (job->weight[id] == NULL)
        NB_TRY(NB_ALLOC(&room, strip * nb_linear_n_cols(job->config, id), err));
    for (int64_t row = 0; row < n_rows && s == NB_OK; row += strip) {
        const int64_t n = smaller(strip, n_rows - row);
        const float *w;
        s = nb_transform_rows(job, id, row, n, room, &w, err);
        if (s == NB_OK)
            each(context, w, row, n);
    }
    nb_free(room);
    return s;
}

/* ---- what s can be ---- */

/* Scales further from 1 are no use to anybody, and F16 has little room. */
#define S_MAX 4096.0f
/* Weights stay below this, and so do their scales: half of what F16 holds. */
#define W_MAX 32768.0f

/* What is rounded to 16 bits afterwards only takes powers of two without loss. */
static bool all_rounded_later(const nb_transform_job *job, nb_point point)
{
    int n;
    const nb_linear_id first = nb_point_linears(point, &n);
    for (int i = 0; i < n; i++) {
        if (job->to[(int)first + i] == NULL)
            return false;
    }
    return feeder(point) == NB_N_LINEARS || job->to[feeder(point)] != NULL;
}

static float power_of_two(float s)
{
    const uint32_t half = nb_f32_bits(s) + (0x3f800000u - 0x3f3504f3u); /* from sqrt(1/2) up */
    return nb_f32_from_bits(half & 0x7f800000u);
}

static float rounded(nb_float_type type, float v)
{
    switch (type) {
    case NB_F16:
        return nb_f16_to_f32(nb_f16_from_f32(v));
    case NB_BF16:
        return nb_bf16_to_f32(nb_bf16_from_f32(v));
    case NB_F32:
        break;
    }
    return v;
}

/* s such that gain / s is a number of the type; 1 where there is none. */
static float of_gain(nb_float_type type, float gain, float s)
{
    const float least = type == NB_F16 ? 0x1p-14f : 0x1p-100f;
    const float most = type == NB_F16 ? 65504.0f : 0x1p100f;
    const float size = fabsf(gain);
    if (!(size >= least && size <= most))
        return 1;
    float divided = size / s;
    divided = divided < least ? least : divided > most ? most : divided;
    return size / rounded(type, divided);
}

/* Maxima of the rows at hand. */
typedef struct {
    const nb_transform_job *job;
    nb_transform_bounds *b;
    const float *w; /* [n_rows][n_cols] */
    int64_t row, n_rows, n_cols;
    const float *bias; /* of all rows; NULL: none */
} looking;

#define CHUNK_COLS 64
#define CHUNK_ROWS 16

static void column_maxima(void *context, int64_t chunk, int thread)
{
    (void)thread;
    const looking *x = context;
    const int64_t begin = chunk * CHUNK_COLS, end = smaller(begin + CHUNK_COLS, x->n_cols);
    float *most = x->b->most;
    for (int64_t r = 0; r < x->n_rows; r++) {
        const float *w = x->w + r * x->n_cols;
        for (int64_t j = begin; j < end; j++)
            most[j] = fabsf(w[j]) > most[j] ? fabsf(w[j]) : most[j];
    }
}

static void row_maxima(void *context, int64_t chunk, int thread)
{
    (void)thread;
    const looking *x = context;
    const int64_t end = smaller((chunk + 1) * CHUNK_ROWS, x->n_rows);
    for (int64_t r = chunk * CHUNK_ROWS; r < end; r++) {
        const float *w = x->w + r * x->n_cols;
        float most = x->bias == NULL ? 0 : fabsf(x->bias[x->row + r]);
        for (int64_t j = 0; j < x->n_cols; j++)
            most = fabsf(w[j]) > most ? fabsf(w[j]) : most;
        x->b->fed[x->row + r] = most;
    }
}

static void look_at_columns(void *context, const float *w, int64_t row, int64_t n)
{
    looking *x = context;
    x->w = w;
    x->row = row;
    x->n_rows = n;
    nb_pool_run(x->job->la->pool, (x->n_cols + CHUNK_COLS - 1) / CHUNK_COLS, column_maxima, x);
}

static void look_at_rows(void *context, const float *w, int64_t row, int64_t n)
{
    looking *x = context;
    x->w = w;
    x->row = row;
    x->n_rows = n;
    nb_pool_run(x->job->la->pool, (n + CHUNK_ROWS - 1) / CHUNK_ROWS, row_maxima, x);
}

/* The channels that one source feeds get the geometric mean of their s. What bounds one of them
 * bounds them all, so that the mean is in bounds, too. */
static void share_sources(const nb_config *c, float *s)
{
    const int64_t per = c->n_heads / c->n_kv_heads;
    for (int64_t j = 0; per > 1 && j < c->n_heads * c->head_dim; j++) {
        if (j / c->head_dim % per != 0)
            continue;
        double product = 1;
        bool equal = true;
        for (int64_t i = 0; i < per; i++) {
            product *= (double)s[j + i * c->head_dim];
            equal = equal && s[j + i * c->head_dim] == s[j];
        }
        const float mean = equal ? s[j] : (float)nb_pow64(product, 1.0 / (double)per);
        for (int64_t i = 0; i < per; i++)
            s[j + i * c->head_dim] = mean;
    }
}

static void share_maxima(const nb_config *c, float *most)
{
    const int64_t per = c->n_heads / c->n_kv_heads, n = c->n_heads * c->head_dim;
    for (int64_t j = 0; j < n; j++) {
        const int64_t first = j - j / c->head_dim % per * c->head_dim;
        most[first] = most[j] > most[first] ? most[j] : most[first];
    }
    for (int64_t j = 0; j < n; j++)
        most[j] = most[j - j / c->head_dim % per * c->head_dim];
}

void nb_transform_bounds_free(nb_transform_bounds *b)
{
    nb_free(b->most);
    nb_free(b->fed);
    *b = (nb_transform_bounds){0};
}

static nb_status look(nb_transform_bounds *b, const nb_transform_job *job, nb_err *err)
{
    const nb_config *c = job->config;
    const nb_linear_id fed_by = feeder(b->point);
    int count;
    const int first = (int)nb_point_linears(b->point, &count);
    looking x = {.job = job, .b = b, .n_cols = nb_point_n_cols(c, b->point)};
    NB_TRY(NB_ALLOC(&b->most, x.n_cols, err));
    NB_TRY(NB_ALLOC(&b->fed, x.n_cols, err));
    for (int id = first; id < first + count; id++)
        NB_TRY(for_rows(job, (nb_linear_id)id, look_at_columns, &x, err));
    if (fed_by == NB_N_LINEARS)
        return NB_OK;
    x.n_cols = c->d_model;
    x.bias = job->bias[fed_by];
    return for_rows(job, fed_by, look_at_rows, &x, err);
}

nb_status nb_transform_bounds_find(nb_transform_bounds *b, const nb_transform_job *job,
                                   nb_point point, nb_err *err)
{
    *b = (nb_transform_bounds){.point = point};
    const nb_status s = look(b, job, err);
    if (s != NB_OK)
        nb_transform_bounds_free(b);
    else if (point == NB_AT_O)
        share_maxima(job->config, b->most);
    return s;
}

static float bounded(float s, float most, float fed)
{
    const float lo = fed / W_MAX > 1 / S_MAX ? fed / W_MAX : 1 / S_MAX;
    const float hi = W_MAX / S_MAX < most ? W_MAX / most : S_MAX;
    s = s < lo ? lo : s > hi ? hi : s;
    /* Where there is no room for 1, weights are too large already. */
    return lo <= 1 && hi >= 1 && s == s ? s : 1;
}

void nb_transform_settle(const nb_transform_job *job, const nb_transform_bounds *b, float *s)
{
    const nb_config *c = job->config;
    const int64_t n = nb_point_n_cols(c, b->point);
    const bool exact = all_rounded_later(job, b->point);
    const float *gain = gain_of(job, b->point);
    for (int64_t j = 0; j < n; j++)
        s[j] = bounded(s[j], b->most[j], b->fed[nb_point_source(c, b->point, j)]);
    if (b->point == NB_AT_O)
        share_sources(c, s);
    for (int64_t j = 0; j < n; j++) {
        if (!exact)
            s[j] = power_of_two(s[j]);
        if (gain != NULL)
            s[j] = of_gain(job->gain_type, gain[j], s[j]);
    }
}

/* ---- moving ---- */

/* What a move does to a linear: to its weights where they are held, else to what is kept of it. */
typedef struct {
    float *columns[NB_N_LINEARS], *divisors[NB_N_LINEARS]; /* those of changes; NULL: none */
} keeping;

static nb_status copy_of(float **out, const float *x, int64_t n, nb_err *err)
{
    NB_TRY(NB_ALLOC(out, n, err));
    memcpy(*out, x, (size_t)n * sizeof *x);
    return NB_OK;
}

static nb_status keep_for(keeping *k, const nb_transform_job *job, nb_point point, const float *s,
                          const float *rows, nb_err *err)
{
    int count;
    const int first = (int)nb_point_linears(point, &count);
    const nb_linear_id fed_by = feeder(point);
    *k = (keeping){0};
    for (int id = first; id < first + count; id++) {
        if (job->weight[id] == NULL)
            NB_TRY(copy_of(&k->columns[id], s, nb_point_n_cols(job->config, point), err));
    }
    if (fed_by != NB_N_LINEARS && job->weight[fed_by] == NULL)
        NB_TRY(copy_of(&k->divisors[fed_by], rows, nb_linear_n_rows(job->config, fed_by), err));
    return NB_OK;
}

static void keep(const nb_transform_job *job, const keeping *k)
{
    for (int id = 0; id < NB_N_LINEARS; id++) {
        nb_changes *c = job->changes[id];
        if (k->columns[id] != NULL) {
            assert(c->columns == NULL && c->clip == NULL && c->divisors == NULL);
            c->columns = k->columns[id];
        }
        if (k->divisors[id] != NULL) {
            assert(c->divisors == NULL);
            c->divisors = k->divisors[id];
        }
    }
}

/* `by` is the caller's. */
static void change(const nb_transform_job *job, nb_linear_id id, nb_changes by)
{
    const nb_config *c = job->config;
    const int64_t n_rows = nb_linear_n_rows(c, id);
    float *bias = job->bias[id];
    if (job->weight[id] != NULL)
        nb_changes_apply(&by, job->la->pool, job->weight[id], nb_linear_n_cols(c, id), 0, n_rows);
    for (int64_t r = 0; by.divisors != NULL && bias != NULL && r < n_rows; r++)
        bias[r] /= by.divisors[r];
}

typedef struct {
    const nb_input_stats *stats;
    const float *s;
} rescaling;

static void rescale_sym(const nb_sym *h, const float *s, int64_t i)
{
    double *row = nb_sym_row(h, i);
    for (int64_t j = i; j < h->n; j++)
        row[j] /= (double)s[i] * (double)s[j];
}

static void rescale_square(double *a, const float *s, int64_t n, int64_t i)
{
    for (int64_t j = 0; j < n; j++)
        a[i * n + j] /= (double)s[i] * (double)s[j];
}

static void rescale_row(void *context, int64_t i, int thread)
{
    (void)thread;
    const rescaling *x = context;
    const nb_input_stats *t = x->stats;
    if (t->h.a != NULL)
        rescale_sym(&t->h, x->s, i);
    if (t->held_h.a != NULL)
        rescale_sym(&t->held_h, x->s, i);
    if (t->cross != NULL)
        rescale_square(t->cross, x->s, t->n_cols, i);
    if (t->held_cross != NULL)
        rescale_square(t->held_cross, x->s, t->n_cols, i);
    const float s = x->s[i];
    if (t->mean_abs != NULL)
        t->mean_abs[i] /= (double)s;
    if (t->mean_square != NULL)
        t->mean_square[i] /= (double)s * (double)s;
    if (t->max_abs != NULL)
        t->max_abs[i] /= s;
    for (int64_t r = 0; t->sample != NULL && r < t->n_sample; r++)
        t->sample[r * t->n_cols + i] /= s;
}

/* s settled, and what is to be kept of it; rows [n_sources of the point]. */
static nb_status prepare(const nb_transform_job *job, nb_point point, float *s, float *rows,
                         keeping *k, nb_err *err)
{
    nb_transform_bounds bounds;
    NB_TRY(nb_transform_bounds_find(&bounds, job, point, err));
    nb_transform_settle(job, &bounds, s);
    nb_transform_bounds_free(&bounds);
    for (int64_t j = 0; j < nb_point_n_cols(job->config, point); j++)
        rows[nb_point_source(job->config, point, j)] = s[j];
    const nb_status status = keep_for(k, job, point, s, rows, err);
    for (int id = 0; id < NB_N_LINEARS && status != NB_OK; id++) {
        nb_free(k->columns[id]);
        nb_free(k->divisors[id]);
    }
    return status;
}

nb_status nb_transform_move(const nb_transform_job *job, nb_point point, float *s, nb_err *err)
{
    const nb_config *c = job->config;
    const int64_t n = nb_point_n_cols(c, point);
    const nb_linear_id fed_by = feeder(point);
    keeping kept;
    float *rows;
    NB_TRY(NB_ALLOC(&rows, nb_point_n_sources(c, point), err));
    const nb_status status = prepare(job, point, s, rows, &kept, err);
    if (status != NB_OK) {
        nb_free(rows);
        return status;
    }
    keep(job, &kept);
    int count;
    const int first = (int)nb_point_linears(point, &count);
    for (int id = first; id < first + count; id++)
        change(job, (nb_linear_id)id, (nb_changes){.columns = s});
    if (fed_by != NB_N_LINEARS)
        change(job, fed_by, (nb_changes){.divisors = rows});
    float *gain = gain_of(job, point);
    for (int64_t j = 0; gain != NULL && j < n; j++)
        gain[j] = s[j] == 1 ? gain[j] : rounded(job->gain_type, gain[j] / s[j]);
    if (job->stats[point] != NULL)
        nb_pool_run(job->la->pool, n, rescale_row, &(rescaling){job->stats[point], s});
    nb_free(rows);
    return NB_OK;
}
