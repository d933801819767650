/* Packing of weights into panels; see gemm.h and the drawing in kernel.h. */
#include "kernel/gemm.h"
#include "numeric/minifloat.h"

#include <assert.h>
#include <string.h>

static int64_t round_up(int64_t n, int64_t step)
{
    return (n + step - 1) / step * step;
}

/* Float-coded formats. */
static void plan_levels(nb_panels *p, const nb_mat *m)
{
    if (m->fmt->bits == 8) {
        p->kind = m->fmt == &nb_format_fp8_e4m3 ? NB_PANEL_E4M3 : NB_PANEL_E5M2;
        p->panel_bytes = p->n_cols * NB_PANEL_ROWS;
    } else {
        p->kind = NB_PANEL_L4;
        p->panel_bytes = p->k_pad * NB_PANEL_ROWS / 2;
        memcpy(p->levels, m->fmt->levels, sizeof p->levels);
    }
    p->seg_len = m->group_size;
    p->n_segs = nb_mat_n_groups(m);
    p->scale_type = m->scale_type;
}

void nb_panels_plan(nb_panels *out, const nb_mat *m)
{
    nb_panels p = {.n_rows = m->n_rows,
                   .n_cols = m->n_cols,
                   .k_pad = round_up(m->n_cols, 8),
                   .n_panels = (m->n_rows + NB_PANEL_ROWS - 1) / NB_PANEL_ROWS};
    if (m->fmt->levels != NULL) {
        plan_levels(&p, m);
    } else if (m->fmt->int_form == NULL) {
        p.kind = m->fmt == &nb_format_bf16  ? NB_PANEL_BF16
                 : m->fmt == &nb_format_f16 ? NB_PANEL_F16
                                            : NB_PANEL_F32;
        p.panel_bytes = p.n_cols * NB_PANEL_ROWS * (p.kind == NB_PANEL_F32 ? 4 : 2);
    } else {
        nb_int_form form;
        m->fmt->int_form(m, &form);
        const bool u4 = form.code_hi - form.code_lo <= 15;
        p.kind = form.table != NULL ? NB_PANEL_T4 : u4 ? NB_PANEL_U4 : NB_PANEL_U8;
        p.panel_bytes = p.k_pad * NB_PANEL_ROWS / (u4 ? 2 : 1);
        p.seg_len = form.segment_len;
        p.n_segs = (p.n_cols + p.seg_len - 1) / p.seg_len;
        p.scale_type = form.scale_type;
        p.zero_const = u4 && form.table == NULL ? -form.code_lo : 128;
        for (int i = 0; form.table != NULL && i < 16; i++)
            p.table[i] = (uint8_t)(form.table[i] + 128);
        /* Placeholders that say which arrays the pack will fill; nb_panels_alloc replaces them. */
        static int16_t has_zeros;
        static uint8_t has_mins;
        p.zeros = form.has_zero ? &has_zeros : NULL;
        p.mins = form.has_min ? &has_mins : NULL;
    }
    *out = p;
}

static int64_t n_params(const nb_panels *p)
{
    return p->n_panels * p->n_segs * NB_PANEL_ROWS;
}

int64_t nb_panels_bytes(const nb_panels *p)
{
    const int64_t scale = (int64_t)nb_float_bytes(p->scale_type);
    return p->n_panels * p->panel_bytes +
           n_params(p) * (scale + (p->zeros != NULL ? 2 : 0) + (p->mins != NULL ? scale : 0));
}

static nb_status allocate(nb_slab *slab, void **out, int64_t count, size_t size, nb_err *err)
{
    return slab != NULL ? nb_slab_alloc(slab, out, (size_t)count, size, err)
                        : nb_alloc(out, (size_t)count, size, err);
}

nb_status nb_panels_alloc(nb_panels *p, nb_slab *slab, nb_err *err)
{
    const bool zeros = p->zeros != NULL, mins = p->mins != NULL;
    const size_t scale = nb_float_bytes(p->scale_type);
    p->codes = NULL;
    p->scales = NULL;
    p->zeros = NULL;
    p->mins = NULL;
    p->borrowed = slab != NULL;
    nb_status s = allocate(slab, (void **)&p->codes, p->n_panels, (size_t)p->panel_bytes, err);
    if (s == NB_OK && p->n_segs > 0)
        s = allocate(slab, &p->scales, n_params(p), scale, err);
    if (s == NB_OK && zeros)
        s = allocate(slab, (void **)&p->zeros, n_params(p), sizeof *p->zeros, err);
    if (s == NB_OK && mins)
        s = allocate(slab, &p->mins, n_params(p), scale, err);
    if (s != NB_OK)
        nb_panels_free(p);
    return s;
}

void nb_panels_free(nb_panels *p)
{
    if (!p->borrowed) {
        nb_free(p->codes);
        nb_free(p->scales);
        nb_free(p->zeros);
        nb_free(p->mins);
    }
    *p = (nb_panels){0};
}

/* ---- filling ---- */

typedef struct {
    nb_panels *p;
    const nb_mat *m;
    uint8_t *scratch; /* per thread */
    size_t scratch_bytes;
} pack_job;

/* A format that has neither codes nor plain numbers is decoded to f32: slow, but it runs. */
static bool needs_decoding(const nb_mat *m)
{
    return m->fmt->int_form == NULL && m->fmt->levels == NULL && m->fmt->block_len > 1;
}

/* ---- sixteen rows become one panel ----
 *
 * Rows are read sixteen bytes at a time and turned in registers, so that a panel is written once
 * and in order. Row by row, each cache line of the panel was touched sixteen times. */

typedef uint8_t bytes16 __attribute__((vector_size(16)));
typedef uint16_t halves8 __attribute__((vector_size(16)));
typedef uint32_t words4 __attribute__((vector_size(16)));

/* Four rows of four words become four columns. */
static inline void turn_words(words4 v[4])
{
    const words4 ac = __builtin_shufflevector(v[0], v[2], 0, 4, 1, 5);
    const words4 bd = __builtin_shufflevector(v[1], v[3], 0, 4, 1, 5);
    const words4 ac2 = __builtin_shufflevector(v[0], v[2], 2, 6, 3, 7);
    const words4 bd2 = __builtin_shufflevector(v[1], v[3], 2, 6, 3, 7);
    v[0] = __builtin_shufflevector(ac, bd, 0, 4, 1, 5);
    v[1] = __builtin_shufflevector(ac, bd, 2, 6, 3, 7);
    v[2] = __builtin_shufflevector(ac2, bd2, 0, 4, 1, 5);
    v[3] = __builtin_shufflevector(ac2, bd2, 2, 6, 3, 7);
}

/* Four words each of four rows, `stride` bytes apart. */
static inline void load_and_turn(words4 v[4], const uint8_t *row, int64_t stride)
{
    for (int j = 0; j < 4; j++)
        memcpy(&v[j], row + j * stride, sizeof v[j]);
    turn_words(v);
}

/* Words of 16 rows, word k of row i to word 16 * k + i; n_words is a multiple of 4. */
static void turn_f32(uint8_t *out, const uint8_t *rows, int64_t stride, int64_t n_words)
{
    for (int64_t k = 0; k < n_words; k += 4, out += 256) {
        for (int i = 0; i < NB_PANEL_ROWS; i += 4) {
            words4 v[4];
            load_and_turn(v, rows + i * stride + 4 * k, stride);
            for (int j = 0; j < 4; j++)
                memcpy(out + 64 * j + 4 * i, &v[j], sizeof v[j]);
        }
    }
}

/* The same for halves; n_halves is a multiple of 8. A word of the turned rows holds columns 2k and
 * 2k + 1 of one row: the even halves of two vectors are eight rows of one column. */
static void turn_f16(uint8_t *out, const uint8_t *rows, int64_t stride, int64_t n_halves)
{
    for (int64_t k = 0; k < n_halves; k += 8, out += 256) {
        for (int i = 0; i < NB_PANEL_ROWS; i += 8) {
            words4 v[4], w[4];
            load_and_turn(v, rows + i * stride + 2 * k, stride);
            load_and_turn(w, rows + (i + 4) * stride + 2 * k, stride);
            for (int j = 0; j < 4; j++) {
                const halves8 a = (halves8)v[j], b = (halves8)w[j];
                const halves8 even = __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14);
                const halves8 odd = __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
                memcpy(out + 64 * j + 2 * i, &even, sizeof even);
                memcpy(out + 64 * j + 32 + 2 * i, &odd, sizeof odd);
            }
        }
    }
}

/* Codes of 16 rows, `offset` added, to bytes; k_pad is a multiple of 8, and the rows may be read up
 * to the next multiple of 16. */
static void turn_u8(uint8_t *out, const uint8_t *rows, int64_t stride, int64_t k_pad, int offset)
{
    const bytes16 add = (bytes16){0} + (uint8_t)offset;
    for (int64_t k = 0; k < k_pad; k += 16, out += 256) {
        const int n = k + 16 <= k_pad ? 4 : 2;
        for (int i = 0; i < NB_PANEL_ROWS; i += 4) {
            words4 v[4];
            load_and_turn(v, rows + i * stride + k, stride);
            for (int j = 0; j < n; j++) {
                const bytes16 stored = (bytes16)v[j] + add;
                memcpy(out + 64 * j + 4 * i, &stored, sizeof stored);
            }
        }
    }
}

/* The same to nibbles. Stored codes are at most 15: shifting whole words moves no bit of one into
 * its neighbour. */
static void turn_u4(uint8_t *out, const uint8_t *rows, int64_t stride, int64_t k_pad, int offset)
{
    const bytes16 add = (bytes16){0} + (uint8_t)offset;
    for (int64_t k = 0; k < k_pad; k += 16, out += 128) {
        const int n = k + 16 <= k_pad ? 2 : 1;
        for (int i = 0; i < NB_PANEL_ROWS; i += 4) {
            words4 v[4];
            load_and_turn(v, rows + i * stride + k, stride);
            for (int j = 0; j < n; j++) {
                const words4 low = (words4)((bytes16)v[2 * j] + add);
                const words4 high = (words4)((bytes16)v[2 * j + 1] + add);
                const words4 both = low | high << 4;
                memcpy(out + 64 * j + 4 * i, &both, sizeof both);
            }
        }
    }
}

/* The same for bytes that stay as they are, byte k of row i to byte 16 * k + i; n_bytes is a
 * multiple of 4. */
static void turn_bytes(uint8_t *out, const uint8_t *rows, int64_t stride, int64_t n_bytes)
{
    for (int64_t k = 0; k < n_bytes; k += 4) {
        for (int i = 0; i < NB_PANEL_ROWS; i++) {
            const uint8_t *row = rows + i * stride + k;
            for (int j = 0; j < 4; j++)
                out[(k + j) * NB_PANEL_ROWS + i] = row[j];
        }
    }
}

/* ---- plain numbers ---- */

static void pack_plain(const nb_panels *p, const nb_mat *m, int64_t panel, uint8_t *scratch)
{
    const int64_t first = panel * NB_PANEL_ROWS, n = p->n_cols;
    const int rows = (int)(m->n_rows - first < NB_PANEL_ROWS ? m->n_rows - first : NB_PANEL_ROWS);
    const bool wide = p->kind == NB_PANEL_F32;
    uint8_t *out = p->codes + panel * p->panel_bytes;
    int64_t turned = 0;
    if (rows == NB_PANEL_ROWS && !needs_decoding(m)) {
        turned = wide ? n / 4 * 4 : n / 8 * 8;
        if (wide)
            turn_f32(out, nb_mat_row(m, first), m->row_bytes, turned);
        else
            turn_f16(out, nb_mat_row(m, first), m->row_bytes, turned);
    }
    for (int i = 0; i < rows && turned < n; i++) {
        const uint8_t *row = nb_mat_row(m, first + i);
        if (needs_decoding(m)) {
            m->fmt->decode_row(m, first + i, (float *)(void *)scratch);
            row = scratch;
        }
        for (int64_t k = turned; k < n; k++) {
            if (wide)
                memcpy(out + 4 * (k * NB_PANEL_ROWS + i), row + 4 * k, 4);
            else
                memcpy(out + 2 * (k * NB_PANEL_ROWS + i), row + 2 * k, 2);
        }
    }
}

/* ---- codes ---- */

/* What is added to a code to store it: the lowest is stored as 0. Indexes are stored as they are.
 */
static int stored_offset(const nb_panels *p)
{
    return p->kind == NB_PANEL_U4 || p->kind == NB_PANEL_U8 ? p->zero_const : 0;
}

/* Sixteen rows in their integer form; scratch memory of one thread. Row i of an array begins at
 * i times its stride. */
typedef struct {
    float *scale, *min;
    int16_t *zero;
    int8_t *code;
    int64_t params, code_stride; /* strides */
} rows_form;

/* The strides keep arrays aligned, and are no large powers of two, so that sixteen rows do not
 * compete for the same few lines of a cache. */
static int64_t params_stride(const nb_panels *p)
{
    return round_up(p->n_segs, 16) + 16;
}

static int64_t code_stride(const nb_panels *p)
{
    return round_up(p->k_pad, 64) + 64;
}

static size_t rows_form_bytes(const nb_panels *p)
{
    const int64_t parameters = (int64_t)(2 * sizeof(float) + sizeof(int16_t)) * params_stride(p);
    return (size_t)(NB_PANEL_ROWS * (parameters + code_stride(p)));
}

static rows_form rows_form_in(const nb_panels *p, uint8_t *scratch)
{
    rows_form f = {.params = params_stride(p), .code_stride = code_stride(p)};
    f.scale = (float *)(void *)scratch;
    f.min = f.scale + NB_PANEL_ROWS * f.params;
    f.zero = (int16_t *)(void *)(f.min + NB_PANEL_ROWS * f.params);
    f.code = (int8_t *)(void *)(f.zero + NB_PANEL_ROWS * f.params);
    return f;
}

/* Codes and scales of a float-coded row. */
static void level_row(const nb_panels *p, const nb_mat *m, int64_t r, const nb_int_row *out)
{
    m->fmt->code_row(m, r, (uint8_t *)out->code);
    for (int64_t s = 0; s < p->n_segs; s++)
        out->scale[s] = nb_float_get(m->scales, m->scale_type, r * p->n_segs + s);
}

/* Reads the rows of a panel. Padding columns and missing rows hold the code that is stored as 0,
 * and missing rows parameters of 0. */
static void read_rows(const rows_form *f, const nb_panels *p, const nb_mat *m, int64_t first)
{
    for (int i = 0; i < NB_PANEL_ROWS; i++) {
        const int64_t at = i * f->params;
        const nb_int_row row = {.scale = f->scale + at,
                                .min = f->min + at,
                                .zero = f->zero + at,
                                .code = f->code + i * f->code_stride};
        int64_t known = 0;
        if (first + i < m->n_rows) {
            if (m->fmt->levels != NULL)
                level_row(p, m, first + i, &row);
            else
                m->fmt->int_row(m, first + i, &row);
            known = p->n_cols;
        } else {
            memset(row.scale, 0, (size_t)p->n_segs * sizeof *row.scale);
            if (p->mins != NULL)
                memset(row.min, 0, (size_t)p->n_segs * sizeof *row.min);
            for (int64_t s = 0; p->zeros != NULL && s < p->n_segs; s++)
                row.zero[s] = (int16_t)-p->zero_const;
        }
        memset(row.code + known, -stored_offset(p), (size_t)(f->code_stride - known));
    }
}

static void halves_of(uint16_t *restrict h, const float *restrict v)
{
    for (int i = 0; i < 4 * NB_PANEL_ROWS; i++)
        h[i] = nb_f16_from_f32(v[i]);
}

static void bf16_of(uint16_t *restrict h, const float *restrict v)
{
    for (int i = 0; i < 4 * NB_PANEL_ROWS; i++)
        h[i] = nb_bf16_from_f32(v[i]);
}

/* Element s of row i to element 16 * s + i, four segments at a time; rows may be read up to the
 * next multiple of 4. */
static void put_floats(const nb_panels *p, void *out, int64_t panel, const float *rows,
                       int64_t stride)
{
    const int64_t n = p->n_segs, size = NB_PANEL_ROWS * (int64_t)nb_float_bytes(p->scale_type);
    uint8_t *to = (uint8_t *)out + panel * n * size;
    for (int64_t s = 0; s < n; s += 4, to += 4 * size) {
        float v[4 * NB_PANEL_ROWS];
        uint16_t h[4 * NB_PANEL_ROWS];
        turn_f32((uint8_t *)v, (const uint8_t *)(rows + s), 4 * stride, 4);
        if (p->scale_type == NB_F16)
            halves_of(h, v);
        else if (p->scale_type == NB_BF16)
            bf16_of(h, v);
        const size_t bytes = (size_t)((n - s < 4 ? n - s : 4) * size);
        if (p->scale_type == NB_F32)
            memcpy(to, v, bytes);
        else
            memcpy(to, h, bytes);
    }
}

static void pack_codes(const nb_panels *p, const nb_mat *m, int64_t panel, uint8_t *scratch)
{
    const rows_form f = rows_form_in(p, scratch);
    read_rows(&f, p, m, panel * NB_PANEL_ROWS);
    uint8_t *out = p->codes + panel * p->panel_bytes;
    const uint8_t *codes = (const uint8_t *)f.code;
    if (nb_panels_is_fp8(p)) {
        const int64_t whole = p->n_cols / 4 * 4;
        turn_bytes(out, codes, f.code_stride, whole);
        for (int64_t k = whole; k < p->n_cols; k++)
            for (int i = 0; i < NB_PANEL_ROWS; i++)
                out[k * NB_PANEL_ROWS + i] = codes[i * f.code_stride + k];
    } else if (p->kind == NB_PANEL_U8) {
        turn_u8(out, codes, f.code_stride, p->k_pad, stored_offset(p));
    } else {
        turn_u4(out, codes, f.code_stride, p->k_pad, stored_offset(p));
    }
    put_floats(p, p->scales, panel, f.scale, f.params);
    if (p->mins != NULL)
        put_floats(p, p->mins, panel, f.min, f.params);
    const int64_t base = panel * p->n_segs * NB_PANEL_ROWS;
    for (int64_t s = 0; p->zeros != NULL && s < p->n_segs; s++)
        for (int i = 0; i < NB_PANEL_ROWS; i++)
            p->zeros[base + s * NB_PANEL_ROWS + i] =
                (int16_t)(f.zero[i * f.params + s] + p->zero_const);
}

static void pack_task(void *context, int64_t chunk, int thread)
{
    const pack_job *job = context;
    uint8_t *scratch =
        job->scratch_bytes > 0 ? job->scratch + (size_t)thread * job->scratch_bytes : NULL;
    if (job->p->n_segs == 0)
        pack_plain(job->p, job->m, chunk, scratch);
    else
        pack_codes(job->p, job->m, chunk, scratch);
}

nb_status nb_panels_pack(nb_panels *p, const nb_mat *m, nb_pool *pool, nb_err *err)
{
    assert(p->n_rows == m->n_rows && p->n_cols == m->n_cols);
    pack_job job = {.p = p, .m = m};
    if (p->n_segs > 0)
        job.scratch_bytes = rows_form_bytes(p);
    else if (needs_decoding(m))
        job.scratch_bytes = (size_t)round_up(4 * p->n_cols, 64);
    if (job.scratch_bytes > 0) {
        NB_TRY(nb_alloc((void **)&job.scratch, (size_t)nb_pool_n_threads(pool), job.scratch_bytes,
                        err));
    }
    nb_pool_run(pool, p->n_panels, pack_task, &job);
    nb_free(job.scratch);
    return NB_OK;
}

void nb_panels_row(const nb_panels *p, int64_t r, float *y)
{
    const int64_t panel = r / NB_PANEL_ROWS, i = r % NB_PANEL_ROWS;
    const uint8_t *codes = p->codes + panel * p->panel_bytes;
    if (p->n_segs == 0) {
        const nb_float_type type = p->kind == NB_PANEL_BF16  ? NB_BF16
                                   : p->kind == NB_PANEL_F16 ? NB_F16
                                                             : NB_F32;
        for (int64_t k = 0; k < p->n_cols; k++)
            y[k] = nb_float_get(codes, type, k * NB_PANEL_ROWS + i);
        return;
    }
    for (int64_t seg = 0; seg < p->n_segs; seg++) {
        const int64_t at = (panel * p->n_segs + seg) * NB_PANEL_ROWS + i;
        const float s = nb_float_get(p->scales, p->scale_type, at);
        const float m = p->mins != NULL ? nb_float_get(p->mins, p->scale_type, at) : 0;
        const int z = p->zeros != NULL ? p->zeros[at] : p->zero_const;
        const int64_t end = (seg + 1) * p->seg_len < p->n_cols ? (seg + 1) * p->seg_len : p->n_cols;
        for (int64_t k = seg * p->seg_len; k < end; k++) {
            int u;
            if (nb_panels_is_fp8(p)) {
                const uint8_t code = codes[k * NB_PANEL_ROWS + i];
                y[k] = s * (p->kind == NB_PANEL_E4M3 ? nb_e4m3_to_f32(code) : nb_e5m2_to_f32(code));
                continue;
            }
            if (p->kind == NB_PANEL_U8) {
                u = codes[k / 4 * 64 + 4 * i + k % 4];
            } else {
                const int byte = codes[k / 8 * 64 + 4 * i + k % 4];
                u = k % 8 < 4 ? byte & 15 : byte >> 4;
                u = p->kind == NB_PANEL_T4 ? p->table[u] : u;
            }
            if (p->kind == NB_PANEL_L4) {
                y[k] = s * p->levels[u];
                continue;
            }
            const float q = (float)(u - z);
            y[k] = p->mins == NULL ? s * q : __builtin_fmaf(s, q, m);
        }
    }
}
