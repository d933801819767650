/* Factors of second moments and what is solved with them: see hessian.h.
 *
 * All of it is one loop over blocks of 128 columns. A step packs what the matrix holds for these
 * columns, once for all threads; then each task takes a strip of rows, subtracts what the columns
 * that are done contribute to it, a product of binary64 tiles, and ends with the triangle on the
 * diagonal. So every element is one chain of fused multiply-adds, in the order in which columns
 * become known, descending or ascending: what two plain loops over scalars would compute, whatever
 * the sizes of blocks, strips and registers. Nothing is copied but the block: workspace is 128
 * columns. */
#include "quant/inputs/hessian.h"

#include <assert.h>
#include <math.h>
#include <string.h>

enum {
    BLOCK = NB_SYM_BLOCK,
    SQUARE = BLOCK * BLOCK,
    ROWS = NB_MM_ROWS,
    COLS = NB_MM_COLS_D,
    STRIP = 4 * ROWS, /* rows of a task */
    BAND_STRIPS = (BLOCK + STRIP - 1) / STRIP,
    NARROW = 2 * COLS, /* columns that are solved one by one */
};
static_assert(BLOCK % NARROW == 0 && NARROW % COLS == 0, "a block is whole panels");

typedef struct step step;
struct step {
    const nb_kernels *k;
    const nb_sym *s;
    int64_t n_blocks, block; /* of the matrix; the one of this step */
    int64_t at, width;       /* its columns */
    bool down;               /* columns become known from the last to the first */
    double *packed;          /* [block, in the order of the sum][panel][BLOCK][COLS] */
    double *diag, *inverse;  /* of the triangle on the diagonal: see pack_diag */
    double *scratch;         /* of each thread: 2 * STRIP * BLOCK */
    bool *positive;
    double *v; /* rows to solve */
    const float *e;
    double *loss;
    int64_t n_rows;
};

static int64_t min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

/* ---- a step ---- */

static nb_status step_init(step *st, nb_algebra *la, const nb_sym *s, bool down, nb_err *err)
{
    const int64_t n_blocks = ceil_div(s->n, BLOCK), n_threads = nb_pool_n_threads(la->pool);
    const int64_t doubles = (n_blocks + 1) * SQUARE + BLOCK + n_threads * 2 * STRIP * BLOCK;
    NB_TRY(nb_buf_reserve(&la->scratch, (size_t)doubles * sizeof(double), err));
    *st = (step){.k = la->kernels, .s = s, .n_blocks = n_blocks, .down = down};
    st->packed = (double *)(void *)la->scratch.data;
    st->diag = st->packed + n_blocks * SQUARE;
    st->inverse = st->diag + SQUARE;
    st->scratch = st->inverse + BLOCK;
    return NB_OK;
}

static void step_to(step *st, int64_t block)
{
    st->block = block;
    st->at = block * BLOCK;
    st->width = min64(st->s->n - st->at, BLOCK);
}

/* The i-th block that a sum goes through, and its columns. */
static int64_t block_at(const step *st, int64_t i, int64_t *depth)
{
    const int64_t block = st->down ? st->n_blocks - 1 - i : i;
    *depth = min64(st->s->n - block * BLOCK, BLOCK);
    return block;
}

/* Blocks whose columns are known before this step. */
static int64_t n_known(const step *st)
{
    return st->down ? st->n_blocks - 1 - st->block : st->block;
}

/* ---- packing ---- */

/* Up: what column k of a known block contributes to the columns of this one: b(k, l) = R(k, l). */
static void pack_up(const step *st, int64_t i)
{
    int64_t depth;
    const int64_t first = block_at(st, i, &depth) * BLOCK;
    double *dst = st->packed + i * SQUARE;
    for (int64_t l = 0; l < st->width; l += COLS, dst += BLOCK * COLS) {
        const int64_t n = min64(st->width - l, COLS);
        if (n < COLS)
            memset(dst, 0, BLOCK * COLS * sizeof *dst);
        for (int64_t k = 0; k < depth; k++)
            memcpy(dst + k * COLS, nb_sym_row(st->s, first + k) + st->at + l,
                   (size_t)n * sizeof *dst);
    }
}

/* Down: b(k, l) = R(l, k), k descending. */
static void pack_down(const step *st, int64_t i)
{
    int64_t depth;
    const int64_t first = block_at(st, i, &depth) * BLOCK;
    double *dst = st->packed + i * SQUARE;
    for (int64_t l = 0; l < st->width; l += COLS, dst += BLOCK * COLS) {
        const int64_t n = min64(st->width - l, COLS);
        if (n < COLS)
            memset(dst, 0, BLOCK * COLS * sizeof *dst);
        for (int64_t j = 0; j < n; j++) {
            const double *src = nb_sym_row(st->s, st->at + l + j) + first;
            for (int64_t k = 0; k < depth; k++)
                dst[(depth - 1 - k) * COLS + j] = src[k];
        }
    }
}

/* The triangle on the diagonal, as the solves below read it: what is known of column j goes to the
 * columns after it (up) or before it (down), which row j of `diag` holds. */
static void pack_diag(const step *st)
{
    for (int64_t i = 0; i < st->width; i++) {
        const double *row = nb_sym_row(st->s, st->at + i) + st->at;
        st->inverse[i] = 1 / row[i];
        for (int64_t j = i + 1; j < st->width; j++)
            st->diag[st->down ? j * BLOCK + i : i * BLOCK + j] = row[j];
    }
}

/* Chunks: the known blocks, then the one on the diagonal where it is known too. */
static void pack_task(void *context, int64_t chunk, int thread)
{
    (void)thread;
    const step *st = context;
    if (chunk == n_known(st))
        pack_diag(st);
    if (st->down)
        pack_down(st, chunk);
    else
        pack_up(st, chunk);
}

/* m rows of `depth` columns from a on, lda apart, as the tiles take them. */
static void pack_rows(double *dst, const double *a, int64_t lda, int64_t m, int64_t depth,
                      bool reversed)
{
    const int64_t step_k = reversed ? -ROWS : ROWS, start = reversed ? (depth - 1) * ROWS : 0;
    for (int64_t i = 0; i < m; i++, a += lda) {
        double *to = dst + i / ROWS * ROWS * BLOCK + i % ROWS + start;
        for (int64_t k = 0; k < depth; k++, to += step_k)
            *to = a[k];
    }
}

static void pack_rows_f32(double *dst, const float *a, int64_t lda, int64_t m, int64_t depth)
{
    for (int64_t i = 0; i < m; i++, a += lda)
        for (int64_t k = 0; k < depth; k++)
            dst[i / ROWS * ROWS * BLOCK + i % ROWS + k * ROWS] = (double)a[k];
}

/* ---- leaves ---- */

/* c [m][n] -= packed rows times a packed panel. */
static void subtract_panel(const step *st, double *c, int64_t ldc, int64_t m, int64_t n,
                           const double *rows, const double *panel, int64_t depth)
{
    for (int64_t r = 0; r < m; r += ROWS)
        st->k->mm_sub_d(c + r * ldc, ldc, min64(m - r, ROWS), n, rows + r * BLOCK, panel, depth);
}

/* c [m][width] -= packed rows times the i-th packed block. */
static void subtract_block(const step *st, int64_t i, int64_t depth, double *c, int64_t ldc,
                           int64_t m, const double *rows)
{
    for (int64_t j = 0; j < st->width; j += COLS)
        subtract_panel(st, c + j, ldc, m, min64(st->width - j, COLS), rows,
                       st->packed + i * SQUARE + j * BLOCK, depth);
}

/* c -= what the known blocks from the `first` of the sum on contribute, by the columns of a. */
static void subtract_known(const step *st, int64_t first, double *c, int64_t ldc, int64_t m,
                           const double *a, int64_t lda, double *scratch)
{
    for (int64_t i = first; i < n_known(st); i++) {
        int64_t depth;
        const int64_t block = block_at(st, i, &depth);
        pack_rows(scratch, a + block * BLOCK, lda, m, depth, st->down);
        subtract_block(st, i, depth, c, ldc, m, scratch);
    }
}

/* Columns [begin, end) of y become known: y R = y (up) or y R^T = y (down) for the triangle R on
 * the diagonal between them. Rows go side by side, because each step of one waits for the step
 * before. */
static void solve_narrow(const step *st, double *y, int64_t ldy, int64_t m, int64_t begin,
                         int64_t end)
{
    for (int64_t s = begin; s < end; s++) {
        const int64_t j = st->down ? begin + end - 1 - s : s;
        const int64_t to = st->down ? begin : j + 1, n = st->down ? j - begin : end - j - 1;
        for (int64_t i = 0; i < m; i++) {
            double *row = y + i * ldy;
            row[j] *= st->inverse[j];
            st->k->axpy_d(row + to, -row[j], st->diag + j * BLOCK + to, n);
        }
    }
}

/* The same for all columns of the step, m <= STRIP rows, in place: a few columns at a time, which
 * then leave the others as those of a known block do. */
static void solve(const step *st, double *y, int64_t ldy, int64_t m, double *scratch)
{
    const double *packed = st->packed + n_known(st) * SQUARE;
    for (int64_t at = 0; at < st->width; at += NARROW) {
        /* down, the first columns are the last ones, and what is left of them may be fewer */
        const int64_t begin = st->down ? (st->width - at - 1) / NARROW * NARROW : at;
        const int64_t end = min64(begin + NARROW, st->width), depth = end - begin;
        solve_narrow(st, y, ldy, m, begin, end);
        pack_rows(scratch, y + begin, ldy, m, depth, st->down);
        const double *b = packed + (st->down ? st->width - end : begin) * COLS;
        const int64_t from = st->down ? 0 : end, to = st->down ? begin : st->width;
        for (int64_t j = from; j < to; j += COLS)
            subtract_panel(st, y + j, ldy, m, min64(to - j, COLS), scratch, b + j * BLOCK, depth);
    }
}

static double *thread_scratch(const step *st, int thread)
{
    return st->scratch + thread * 2 * STRIP * BLOCK;
}

/* Strips of the rows of the triangle itself: none spans two bands. */
typedef struct {
    int64_t band, row, m; /* m may be 0 */
    double *a;            /* element (row, 0), as if it were there */
    int64_t ld;
} strip;

static strip strip_at(const step *st, int64_t chunk)
{
    const int64_t n = st->s->n, band = chunk / BAND_STRIPS, first = chunk % BAND_STRIPS * STRIP;
    const int64_t band_rows = min64(n - band * BLOCK, BLOCK);
    strip t = {.band = band, .row = band * BLOCK + first, .ld = n - band * BLOCK};
    t.m = min64(band_rows - first, STRIP);
    if (t.m <= 0)
        t.m = 0;
    else
        t.a = st->s->a + st->s->row_at[t.row];
    return t;
}

/* ---- factor ---- */

static void factor_update_task(void *context, int64_t chunk, int thread)
{
    const step *st = context;
    const strip t = strip_at(st, chunk);
    if (t.m > 0)
        subtract_known(st, 0, t.a + st->at, t.ld, t.m, t.a, t.ld, thread_scratch(st, thread));
}

/* The square on the diagonal, columns descending; leaves it packed for the others. */
static void factor_diag_task(void *context, int64_t chunk, int thread)
{
    (void)chunk, (void)thread;
    const step *st = context;
    for (int64_t j = st->width - 1; j >= 0; j--) {
        const double pivot = nb_sym_row(st->s, st->at + j)[st->at + j];
        if (!(pivot > 0) || pivot > 0x1.fffffffffffffp+1023) {
            *st->positive = false;
            return;
        }
        const double root = sqrt(pivot);
        st->inverse[j] = 1 / root;
        nb_sym_row(st->s, st->at + j)[st->at + j] = root;
        double *column = st->diag + j * BLOCK;
        for (int64_t i = 0; i < j; i++) {
            double *row = nb_sym_row(st->s, st->at + i) + st->at;
            column[i] = row[j] *= st->inverse[j];
        }
        for (int64_t i = 0; i < j; i++)
            st->k->axpy_d(nb_sym_row(st->s, st->at + i) + st->at + i, -column[i], column + i,
                          j - i);
    }
    pack_down(st, n_known(st));
}

static void factor_solve_task(void *context, int64_t chunk, int thread)
{
    const step *st = context;
    const strip t = strip_at(st, chunk);
    if (t.m > 0 && *st->positive)
        solve(st, t.a + st->at, t.ld, t.m, thread_scratch(st, thread));
}

nb_status nb_sym_factor(nb_algebra *la, nb_sym *s, bool *positive, nb_err *err)
{
    step st;
    NB_TRY(step_init(&st, la, s, true, err));
    *positive = true;
    st.positive = positive;
    for (int64_t block = st.n_blocks - 1; block >= 0 && *positive; block--) {
        step_to(&st, block);
        const nb_stage stages[] = {
            {.n_chunks = n_known(&st), .task = pack_task},
            {.n_chunks = (block + 1) * BAND_STRIPS, .task = factor_update_task},
            {.n_chunks = 1, .task = factor_diag_task},
            {.n_chunks = block * BAND_STRIPS, .task = factor_solve_task},
        };
        nb_pool_run_stages(la->pool, stages, 4, &st);
    }
    return NB_OK;
}

/* ---- inverse ---- */

/* Row i of the inverse is y R = e_i: element (i, j) needs those of its row before it, which are
 * done, and column j of R, which is packed: so it may take the place of R's. */
static void invert_task(void *context, int64_t chunk, int thread)
{
    const step *st = context;
    const strip t = strip_at(st, chunk);
    double *scratch = thread_scratch(st, thread), *y = scratch + STRIP * BLOCK;
    memset(y, 0, STRIP * BLOCK * sizeof *y);
    const bool on_diagonal = t.band == st->block;
    if (t.m > 0 && !on_diagonal)
        subtract_known(st, t.band, y, BLOCK, t.m, t.a, t.ld, scratch);
    for (int64_t i = 0; i < t.m && on_diagonal; i++)
        y[i * BLOCK + t.row + i - st->at] = 1;
    solve(st, y, BLOCK, t.m, scratch);
    for (int64_t i = 0; i < t.m; i++)
        memcpy(t.a + i * t.ld + st->at, y + i * BLOCK, (size_t)st->width * sizeof *y);
}

nb_status nb_sym_invert_factor(nb_algebra *la, nb_sym *r, nb_err *err)
{
    step st;
    NB_TRY(step_init(&st, la, r, false, err));
    for (int64_t block = 0; block < st.n_blocks; block++) {
        step_to(&st, block);
        const nb_stage stages[] = {
            {.n_chunks = n_known(&st) + 1, .task = pack_task},
            {.n_chunks = (block + 1) * BAND_STRIPS, .task = invert_task},
        };
        nb_pool_run_stages(la->pool, stages, 2, &st);
    }
    return NB_OK;
}

/* ---- solve ---- */

static void solve_task(void *context, int64_t chunk, int thread)
{
    const step *st = context;
    const int64_t n = st->s->n, row = chunk * STRIP, m = min64(st->n_rows - row, STRIP);
    double *v = st->v + row * n, *scratch = thread_scratch(st, thread);
    subtract_known(st, 0, v + st->at, n, m, v, n, scratch);
    solve(st, v + st->at, n, m, scratch);
}

static void solve_step(nb_pool *pool, step *st, int64_t block)
{
    step_to(st, block);
    const nb_stage stages[] = {
        {.n_chunks = n_known(st) + 1, .task = pack_task},
        {.n_chunks = ceil_div(st->n_rows, STRIP), .task = solve_task},
    };
    nb_pool_run_stages(pool, stages, 2, st);
}

static nb_status solve_half(nb_algebra *la, const nb_sym *r, double *v, int64_t n_rows, bool down,
                            nb_err *err)
{
    step st;
    NB_TRY(step_init(&st, la, r, down, err));
    st.v = v;
    st.n_rows = n_rows;
    for (int64_t i = 0; i < st.n_blocks; i++)
        solve_step(la->pool, &st, down ? st.n_blocks - 1 - i : i);
    return NB_OK;
}

nb_status nb_sym_half_solve_rows(nb_algebra *la, const nb_sym *r, double *v, int64_t n_rows,
                                 nb_err *err)
{
    return solve_half(la, r, v, n_rows, true, err);
}

/* v S^-1 = (v R^-T) R^-1. */
nb_status nb_sym_solve_rows(nb_algebra *la, const nb_sym *r, double *v, int64_t n_rows, nb_err *err)
{
    NB_TRY(solve_half(la, r, v, n_rows, true, err));
    return solve_half(la, r, v, n_rows, false, err);
}

/* ---- loss ---- */

/* The block on the diagonal with half of its diagonal: e S e^T = 2 e U e^T for this upper U. */
static void pack_half(const step *st)
{
    pack_up(st, st->block);
    double *dst = st->packed + st->block * SQUARE;
    for (int64_t l = 0; l < st->width; l++) {
        double *column = dst + l / COLS * BLOCK * COLS + l % COLS;
        column[l * COLS] *= 0.5;
        for (int64_t k = l + 1; k < st->width; k++)
            column[k * COLS] = 0;
    }
}

static void loss_pack_task(void *context, int64_t chunk, int thread)
{
    (void)thread;
    const step *st = context;
    if (chunk == st->block)
        pack_half(st);
    else
        pack_up(st, chunk);
}

static void loss_task(void *context, int64_t chunk, int thread)
{
    const step *st = context;
    const int64_t n = st->s->n, row = chunk * STRIP, m = min64(st->n_rows - row, STRIP);
    const float *e = st->e + row * n;
    double *scratch = thread_scratch(st, thread), *y = scratch + STRIP * BLOCK; /* -e U */
    memset(y, 0, STRIP * BLOCK * sizeof *y);
    for (int64_t i = 0; i <= st->block; i++) {
        int64_t depth;
        const int64_t block = block_at(st, i, &depth);
        pack_rows_f32(scratch, e + block * BLOCK, n, m, depth);
        subtract_block(st, i, depth, y, BLOCK, m, scratch);
    }
    for (int64_t i = 0; i < m; i++)
        for (int64_t l = 0; l < st->width; l++)
            st->loss[row + i] -= 2 * y[i * BLOCK + l] * (double)e[i * n + st->at + l];
}

nb_status nb_sym_loss_rows(nb_algebra *la, const nb_sym *s, const float *e, int64_t n_rows,
                           double *loss, nb_err *err)
{
    step st;
    NB_TRY(step_init(&st, la, s, false, err));
    st.e = e;
    st.loss = loss;
    st.n_rows = n_rows;
    for (int64_t i = 0; i < n_rows; i++)
        loss[i] = 0;
    for (int64_t block = 0; block < st.n_blocks; block++) {
        step_to(&st, block);
        const nb_stage stages[] = {
            {.n_chunks = block + 1, .task = loss_pack_task},
            {.n_chunks = ceil_div(n_rows, STRIP), .task = loss_task},
        };
        nb_pool_run_stages(la->pool, stages, 2, &st);
    }
    return NB_OK;
}
