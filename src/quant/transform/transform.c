/* See transform.h: the list of transforms, and the one way in which they move scales. */
#include "quant/transform/transform.h"

#include "kernel/math.h"
#include "numeric/minifloat.h"

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

typedef struct {
    const nb_transform_job *job;
    nb_point point;
    float *s;    /* [n_cols] */
    float *most; /* [n_cols]: largest |w| of a column, and of a row that feeds it */
    float *fed;
} settling;

#define CHUNK_COLS 64
#define CHUNK_ROWS 16

static void column_maxima(void *context, int64_t chunk, int thread)
{
    (void)thread;
    const settling *x = context;
    const nb_config *c = x->job->config;
    const int64_t n = nb_point_n_cols(c, x->point), begin = chunk * CHUNK_COLS;
    const int64_t end = smaller(begin + CHUNK_COLS, n);
    int count;
    const nb_linear_id first = nb_point_linears(x->point, &count);
    for (int i = 0; i < count; i++) {
        const nb_linear_id id = (nb_linear_id)((int)first + i);
        for (int64_t r = 0; r < nb_linear_n_rows(c, id); r++) {
            const float *w = x->job->weight[id] + r * n;
            for (int64_t j = begin; j < end; j++)
                x->most[j] = fabsf(w[j]) > x->most[j] ? fabsf(w[j]) : x->most[j];
        }
    }
}

static void row_maxima(void *context, int64_t chunk, int thread)
{
    (void)thread;
    const settling *x = context;
    const nb_config *c = x->job->config;
    const nb_linear_id id = feeder(x->point);
    const int64_t n_rows = nb_linear_n_rows(c, id), end = smaller((chunk + 1) * CHUNK_ROWS, n_rows);
    for (int64_t r = chunk * CHUNK_ROWS; r < end; r++) {
        const float *w = x->job->weight[id] + r * c->d_model;
        float most = x->job->bias[id] == NULL ? 0 : fabsf(x->job->bias[id][r]);
        for (int64_t j = 0; j < c->d_model; j++)
            most = fabsf(w[j]) > most ? fabsf(w[j]) : most;
        x->fed[r] = most;
    }
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

static void bound(const settling *x, int64_t j)
{
    float s = x->s[j];
    const float fed = x->fed[nb_point_source(x->job->config, x->point, j)];
    const float lo = fed / W_MAX > 1 / S_MAX ? fed / W_MAX : 1 / S_MAX;
    const float hi = W_MAX / S_MAX < x->most[j] ? W_MAX / x->most[j] : S_MAX;
    s = s < lo ? lo : s > hi ? hi : s;
    /* Where there is no room for 1, weights are too large already. */
    x->s[j] = lo <= 1 && hi >= 1 && s == s ? s : 1;
}

nb_status nb_transform_settle(const nb_transform_job *job, nb_point point, float *s, nb_err *err)
{
    const nb_config *c = job->config;
    const int64_t n = nb_point_n_cols(c, point);
    const nb_linear_id id = feeder(point);
    settling x = {.job = job, .point = point, .s = s};
    nb_status status = NB_OK;
    NB_TRY_GOTO(status, NB_ALLOC(&x.most, n, err));
    NB_TRY_GOTO(status, NB_ALLOC(&x.fed, n, err));
    nb_pool_run(job->la->pool, (n + CHUNK_COLS - 1) / CHUNK_COLS, column_maxima, &x);
    if (id != NB_N_LINEARS)
        nb_pool_run(job->la->pool, (nb_linear_n_rows(c, id) + CHUNK_ROWS - 1) / CHUNK_ROWS,
                    row_maxima, &x);
    const bool exact = all_rounded_later(job, point);
    const float *gain = gain_of(job, point);
    if (point == NB_AT_O)
        share_maxima(c, x.most);
    for (int64_t j = 0; j < n; j++)
        bound(&x, j);
    if (point == NB_AT_O)
        share_sources(c, s);
    for (int64_t j = 0; j < n; j++) {
        if (!exact)
            s[j] = power_of_two(s[j]);
        if (gain != NULL)
            s[j] = of_gain(job->gain_type, gain[j], s[j]);
    }
done:
    nb_free(x.most);
    nb_free(x.fed);
    return status;
}

/* ---- moving ---- */

typedef struct {
    float *w, *bias; /* [n_rows][n_cols]; bias NULL: none */
    int64_t n_rows, n_cols;
    const float *columns; /* times these; NULL: no */
    const float *rows;    /* divided by these; NULL: no */
} scaling;

static void scale_rows(void *context, int64_t chunk, int thread)
{
    (void)thread;
    const scaling *x = context;
    const int64_t end = smaller((chunk + 1) * CHUNK_ROWS, x->n_rows);
    for (int64_t r = chunk * CHUNK_ROWS; r < end; r++) {
        float *w = x->w + r * x->n_cols;
        for (int64_t j = 0; x->columns != NULL && j < x->n_cols; j++)
            w[j] *= x->columns[j];
        for (int64_t j = 0; x->rows != NULL && j < x->n_cols; j++)
            w[j] /= x->rows[r];
        if (x->rows != NULL && x->bias != NULL)
            x->bias[r] /= x->rows[r];
    }
}

static void scale(const nb_transform_job *job, scaling *x)
{
    nb_pool_run(job->la->pool, (x->n_rows + CHUNK_ROWS - 1) / CHUNK_ROWS, scale_rows, x);
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

nb_status nb_transform_move(const nb_transform_job *job, nb_point point, float *s, nb_err *err)
{
    const nb_config *c = job->config;
    const int64_t n = nb_point_n_cols(c, point);
    const nb_linear_id fed_by = feeder(point);
    float *rows;
    NB_TRY(nb_transform_settle(job, point, s, err));
    NB_TRY(NB_ALLOC(&rows, nb_point_n_sources(c, point), err));
    for (int64_t j = 0; j < n; j++)
        rows[nb_point_source(c, point, j)] = s[j];

    int count;
    const int first = (int)nb_point_linears(point, &count);
    for (int id = first; id < first + count; id++)
        scale(job, &(scaling){.w = job->weight[id],
                              .n_rows = nb_linear_n_rows(c, (nb_linear_id)id),
                              .n_cols = n,
                              .columns = s});
    if (fed_by != NB_N_LINEARS)
        scale(job, &(scaling){.w = job->weight[fed_by],
                              .bias = job->bias[fed_by],
                              .n_rows = nb_linear_n_rows(c, fed_by),
                              .n_cols = c->d_model,
                              .rows = rows});
    float *gain = gain_of(job, point);
    for (int64_t j = 0; gain != NULL && j < n; j++)
        gain[j] = s[j] == 1 ? gain[j] : rounded(job->gain_type, gain[j] / s[j]);
    if (job->stats[point] != NULL)
        nb_pool_run(job->la->pool, n, rescale_row, &(rescaling){job->stats[point], s});
    nb_free(rows);
    return NB_OK;
}
