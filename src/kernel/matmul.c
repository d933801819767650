/* See matmul.h. Packing and blocking, written once over the tiles of the table.
 *
 * Products: b is packed by slabs of 512 columns' depth (four chunks of 128) and 2,048 columns, 4
 * MiB, which the last level of cache holds. A task is 96 rows by 512 columns of c, which stay in
 * its L2 for all chunks of the slab: it packs 96 rows of a, one chunk at a time, and goes through b
 * panel by panel, each of which stays in L1 for all rows.
 *
 * Sums over tokens: 512 rows, four pieces, are packed at once, and a task is a square of 128 x 128
 * sums in binary64, which stays in L2 for the four pieces. */
#include "kernel/matmul.h"

#include <assert.h>
#include <string.h>

enum {
    CHUNK = NB_CHUNK_K,
    ROWS = NB_MM_ROWS,
    COLS = NB_MM_COLS,
    SLAB_DEPTH = 4 * CHUNK,
    SLAB_COLS = 2048,
    TASK_ROWS = 96,
    TASK_COLS = 512,
    PACK_COLS = 128, /* columns of b that a task packs */
    PANEL_A = CHUNK * ROWS,
    PANEL_B = CHUNK * COLS,
};
static_assert(NB_MATMUL_ROWS_SCRATCH == TASK_ROWS * CHUNK * sizeof(float) &&
                  TASK_ROWS % ROWS == 0 && SLAB_COLS % TASK_COLS == 0 && TASK_COLS % COLS == 0 &&
                  PACK_COLS % COLS == 0,
              "blocks are whole panels");

static int64_t min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

/* ---- packing ---- */

#define INLINE static inline __attribute__((always_inline))

typedef float v4 __attribute__((vector_size(16), aligned(4), may_alias));

/* Four by four: to[k * width + i] = from[i * i_step + k]. */
INLINE void transpose4(float *to, const int64_t width, const float *from, int64_t i_step)
{
    const v4 *const r[4] = {(const void *)from, (const void *)(from + i_step),
                            (const void *)(from + 2 * i_step), (const void *)(from + 3 * i_step)};
    const v4 a = __builtin_shufflevector(*r[0], *r[1], 0, 4, 1, 5);
    const v4 b = __builtin_shufflevector(*r[2], *r[3], 0, 4, 1, 5);
    const v4 c = __builtin_shufflevector(*r[0], *r[1], 2, 6, 3, 7);
    const v4 d = __builtin_shufflevector(*r[2], *r[3], 2, 6, 3, 7);
    const v4 out[4] = {
        __builtin_shufflevector(a, b, 0, 1, 4, 5), __builtin_shufflevector(a, b, 2, 3, 6, 7),
        __builtin_shufflevector(c, d, 0, 1, 4, 5), __builtin_shufflevector(c, d, 2, 3, 6, 7)};
    for (int k = 0; k < 4; k++)
        memcpy(to + k * width, &out[k], sizeof out[k]);
}

/* One panel: dst[k * width + i] = p[i * i_step + k * k_step], i < n, k < depth; 0 for i in
 * [n, width). */
INLINE void pack_panel(float *dst, const float *p, int64_t i_step, int64_t k_step, int64_t n,
                       int64_t depth, const int64_t width)
{
    if (n < width)
        memset(dst, 0, (size_t)(depth * width) * sizeof *dst);
    const int64_t n4 = k_step == 1 ? n / 4 * 4 : 0, depth4 = depth / 4 * 4;
    for (int64_t i = 0; i < n4; i += 4)
        for (int64_t k = 0; k < depth4; k += 4)
            transpose4(dst + k * width + i, width, p + i * i_step + k, i_step);
    for (int64_t i = 0; i < n; i++)
        for (int64_t k = i < n4 ? depth4 : 0; k < depth; k++)
            dst[k * width + i] = p[i * i_step + k * k_step];
}

/* Panels of `width` for n rows (or columns) of up to CHUNK elements, CHUNK * width apart. Rows that
 * lie side by side are copied across all panels, as memory has them. */
INLINE void pack_panels(float *dst, const float *p, int64_t i_step, int64_t k_step, int64_t n,
                        int64_t depth, const int64_t width)
{
    const int64_t whole = i_step == 1 ? n / width * width : 0;
    for (int64_t k = 0; k < depth && whole > 0; k++)
        for (int64_t i = 0; i < whole; i += width)
            memcpy(dst + i * CHUNK + k * width, p + i + k * k_step, (size_t)width * sizeof *dst);
    for (int64_t i = whole; i < n; i += width)
        pack_panel(dst + i * CHUNK, p + i * i_step, i_step, k_step, min64(n - i, width), depth,
                   width);
}

static void pack_a(float *dst, const float *p, int64_t i_step, int64_t k_step, int64_t m,
                   int64_t depth)
{
    pack_panels(dst, p, i_step, k_step, m, depth, ROWS);
}

static void pack_b(float *dst, const float *p, int64_t j_step, int64_t k_step, int64_t n,
                   int64_t depth)
{
    pack_panels(dst, p, j_step, k_step, n, depth, COLS);
}

/* Packed b: [chunk][panel][CHUNK][COLS]. */
int64_t nb_matmul_packed_floats(int64_t n, int64_t depth)
{
    return ceil_div(n, COLS) * ceil_div(depth, CHUNK) * PANEL_B;
}

void nb_matmul_pack(float *packed, const nb_view *b, int64_t n, int64_t depth, int64_t begin,
                    int64_t end)
{
    assert(begin % COLS == 0 && (end % COLS == 0 || end == n));
    const int64_t chunk_floats = ceil_div(n, COLS) * PANEL_B;
    for (int64_t k = 0; k < depth; k += CHUNK)
        pack_b(packed + k / CHUNK * chunk_floats + begin / COLS * PANEL_B,
               b->p + k * b->row_step + begin * b->col_step, b->col_step, b->row_step, end - begin,
               min64(depth - k, CHUNK));
}

/* ---- products ---- */

/* A part of the product: rows [0, m) from a and c on, columns that `packed` has, its chunks
 * `chunk_floats` apart. */
static void block(nb_mm_fn *mm, float *c, int64_t ldc, int64_t m, int64_t n, int64_t depth,
                  const nb_view *a, const float *packed, int64_t chunk_floats, bool add,
                  float *scratch)
{
    for (int64_t k0 = 0; k0 < depth; k0 += CHUNK, packed += chunk_floats, add = true) {
        const int64_t kn = min64(depth - k0, CHUNK);
        pack_a(scratch, a->p + k0 * a->col_step, a->row_step, a->col_step, m, kn);
        for (int64_t j = 0; j < n; j += COLS)
            for (int64_t i = 0; i < m; i += ROWS)
                mm(c + i * ldc + j, ldc, min64(m - i, ROWS), min64(n - j, COLS),
                   scratch + i / ROWS * PANEL_A, packed + j / COLS * PANEL_B, kn, add);
    }
}

/* A sum of nothing is +0. */
static void clear(const nb_matmul_job *job)
{
    for (int64_t i = 0; i < job->m && !job->add; i++)
        memset(job->c + i * job->ldc, 0, (size_t)job->n * sizeof *job->c);
}

static nb_view view_at(const nb_view *v, int64_t i, int64_t j)
{
    nb_view at = *v;
    at.p += i * v->row_step + j * v->col_step;
    return at;
}

void nb_matmul_rows(const nb_kernels *k, const nb_matmul_job *job, const float *packed,
                    void *scratch)
{
    if (job->depth == 0)
        clear(job);
    const int64_t chunk_floats = ceil_div(job->n, COLS) * PANEL_B;
    for (int64_t i = 0; i < job->m; i += TASK_ROWS) {
        const nb_view a = view_at(&job->a, i, 0);
        for (int64_t j = 0; j < job->n; j += TASK_COLS)
            block(job->pairs ? k->mm_pairs : k->mm, job->c + i * job->ldc + j, job->ldc,
                  min64(job->m - i, TASK_ROWS), min64(job->n - j, TASK_COLS), job->depth, &a,
                  packed + j / COLS * PANEL_B, chunk_floats, job->add, scratch);
    }
}

/* A slab of the product: columns [j, j + n), depth [k, k + depth). */
typedef struct {
    const nb_kernels *kernels;
    const nb_matmul_job *job;
    int64_t j, n, k, depth;
    float *packed, *scratch;
} slab;

static void pack_task(void *context, int64_t chunk, int thread)
{
    (void)thread;
    const slab *s = context;
    const nb_view b = view_at(&s->job->b, s->k, s->j);
    nb_matmul_pack(s->packed, &b, s->n, s->depth, chunk * PACK_COLS,
                   min64((chunk + 1) * PACK_COLS, s->n));
}

static void block_task(void *context, int64_t chunk, int thread)
{
    const slab *s = context;
    const nb_matmul_job *job = s->job;
    const int64_t across = ceil_div(s->n, TASK_COLS);
    const int64_t i = chunk / across * TASK_ROWS, j = chunk % across * TASK_COLS;
    const nb_view a = view_at(&job->a, i, s->k);
    block(job->pairs ? s->kernels->mm_pairs : s->kernels->mm, job->c + i * job->ldc + s->j + j,
          job->ldc, min64(job->m - i, TASK_ROWS), min64(s->n - j, TASK_COLS), s->depth, &a,
          s->packed + j / COLS * PANEL_B, ceil_div(s->n, COLS) * PANEL_B, job->add || s->k > 0,
          s->scratch + thread * TASK_ROWS * CHUNK);
}

int64_t nb_matmul_scratch_bytes(int64_t m, int64_t n, int64_t depth, int n_threads)
{
    (void)m;
    return nb_matmul_packed_floats(min64(n, SLAB_COLS), min64(depth, SLAB_DEPTH)) *
               (int64_t)sizeof(float) +
           n_threads * NB_MATMUL_ROWS_SCRATCH;
}

void nb_matmul(const nb_kernels *k, nb_pool *pool, const nb_matmul_job *job, void *scratch)
{
    if (job->depth == 0)
        clear(job);
    slab s = {.kernels = k, .job = job};
    s.packed = scratch;
    s.scratch =
        s.packed + nb_matmul_packed_floats(min64(job->n, SLAB_COLS), min64(job->depth, SLAB_DEPTH));
    for (s.j = 0; s.j < job->n; s.j += SLAB_COLS) {
        s.n = min64(job->n - s.j, SLAB_COLS);
        for (s.k = 0; s.k < job->depth; s.k += SLAB_DEPTH) {
            s.depth = min64(job->depth - s.k, SLAB_DEPTH);
            const nb_stage stages[] = {
                {.n_chunks = ceil_div(s.n, PACK_COLS), .task = pack_task},
                {.n_chunks = ceil_div(job->m, TASK_ROWS) * ceil_div(s.n, TASK_COLS),
                 .task = block_task},
            };
            nb_pool_run_stages(pool, stages, 2, &s);
        }
    }
}

/* ---- sums over tokens ---- */

enum {
    BAND = 128, /* rows and columns of a task */
    BAND_A = (BAND + ROWS - 1) / ROWS * PANEL_A,
    BAND_B = BAND / COLS * PANEL_B,
    PIECES = 4, /* packed at once */
};
static_assert(BAND % COLS == 0, "bands are whole panels of columns");

/* Packed: [band][piece] of a, then of b. */
typedef struct {
    const nb_kernels *kernels;
    const nb_outer_job *job;
    int64_t row, n_rows; /* of what is packed */
    float *a, *b;
} tokens;

static void pack_band(float *dst, int64_t floats, const float *p, int64_t ld, int64_t n,
                      const tokens *t,
                      void (*pack)(float *, const float *, int64_t, int64_t, int64_t, int64_t))
{
    for (int64_t r = 0; r < t->n_rows; r += CHUNK, dst += floats)
        pack(dst, p + (t->row + r) * ld, 1, ld, min64(n, BAND), min64(t->n_rows - r, CHUNK));
}

/* Bands of a, then those of b. */
static void pack_tokens_task(void *context, int64_t chunk, int thread)
{
    (void)thread;
    const tokens *t = context;
    const nb_outer_job *job = t->job;
    const int64_t a_bands = ceil_div(job->m, BAND), band = chunk - a_bands;
    if (chunk < a_bands)
        pack_band(t->a + chunk * PIECES * BAND_A, BAND_A, job->a + chunk * BAND, job->lda,
                  job->m - chunk * BAND, t, pack_a);
    else
        pack_band(t->b + band * PIECES * BAND_B, BAND_B, job->b + band * BAND, job->ldb,
                  job->n - band * BAND, t, pack_b);
}

/* Row and column of the chunk-th square of a triangle of `bands`, row by row. */
static void square_of(int64_t chunk, int64_t bands, int64_t *row, int64_t *col)
{
    int64_t r = 0;
    for (; chunk >= bands - r; r++)
        chunk -= bands - r;
    *row = r;
    *col = r + chunk;
}

static void square_task(void *context, int64_t chunk, int thread)
{
    (void)thread;
    const tokens *t = context;
    const nb_outer_job *job = t->job;
    const int64_t bands = ceil_div(job->n, BAND);
    int64_t row = chunk / bands, col = chunk % bands;
    if (job->upper)
        square_of(chunk, bands, &row, &col);
    const int64_t *row_at = job->row_at + row * BAND;
    const int64_t m = min64(job->m - row * BAND, BAND), n = min64(job->n - col * BAND, BAND);
    const float *a = t->a + row * PIECES * BAND_A, *b = t->b + col * PIECES * BAND_B;
    for (int64_t r = 0; r < t->n_rows; r += CHUNK, a += BAND_A, b += BAND_B) {
        for (int64_t j = 0; j < n; j += COLS) {
            const int64_t end = job->upper && row == col ? min64(m, j + COLS) : m;
            for (int64_t i = 0; i < end; i += ROWS)
                t->kernels->mm_widen(job->c + col * BAND + j, row_at + i, min64(m - i, ROWS),
                                     min64(n - j, COLS), a + i / ROWS * PANEL_A,
                                     b + j / COLS * PANEL_B, min64(t->n_rows - r, CHUNK));
        }
    }
}

int64_t nb_outer_scratch_bytes(int64_t m, int64_t n, int n_threads)
{
    (void)n_threads;
    return (ceil_div(m, BAND) * BAND_A + ceil_div(n, BAND) * BAND_B) * PIECES *
           (int64_t)sizeof(float);
}

void nb_outer_add(const nb_kernels *k, nb_pool *pool, const nb_outer_job *job, void *scratch)
{
    assert(!job->upper || (job->a == job->b && job->lda == job->ldb && job->m == job->n));
    const int64_t a_bands = ceil_div(job->m, BAND), b_bands = ceil_div(job->n, BAND);
    tokens t = {.kernels = k, .job = job};
    t.a = scratch;
    t.b = t.a + a_bands * PIECES * BAND_A;
    for (t.row = 0; t.row < job->n_rows; t.row += PIECES * CHUNK) {
        t.n_rows = min64(job->n_rows - t.row, PIECES * CHUNK);
        const nb_stage stages[] = {
            {.n_chunks = a_bands + b_bands, .task = pack_tokens_task},
            {.n_chunks = job->upper ? b_bands * (b_bands + 1) / 2 : a_bands * b_bands,
             .task = square_task},
        };
        nb_pool_run_stages(pool, stages, 2, &t);
    }
}
