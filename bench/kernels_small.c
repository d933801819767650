/* Everything between the matrix products: norms, quantizing and packing, RoPE, SwiGLU, residuals,
 * and what turns logits into words. Rows come from the second-level cache, where a step of a
 * prompt leaves them; the share is of its bandwidth, although some of them compute more than they
 * load. */
#include "kernels.h"

#include <string.h>

#define N_ROWS 32
#define WIDTH  2048
#define HALF   32
#define HEADS  (WIDTH / (2 * HALF))

typedef struct {
    const bench *b;
    const nb_kernels *k;
    float *x, *y, *gain; /* [N_ROWS][WIDTH]; gain [WIDTH] */
    float *cosine, *sine;
    int8_t *hi, *lo; /* [WIDTH] */
    float *scale;
    nb_xlayout layout;
    nb_xpacked packed;
    void *buffer;
    double sum; /* of what returns numbers */
} rows;

static void run_norm(void *context)
{
    const rows *r = context;
    for (int i = 0; i < N_ROWS; i++)
        r->k->rmsnorm(r->y + i * WIDTH, r->x + i * WIDTH, r->gain, WIDTH, 1e-5f);
}

static void run_add(void *context)
{
    const rows *r = context;
    for (int i = 0; i < N_ROWS; i++)
        r->k->add(r->y + i * WIDTH, r->x + i * WIDTH, WIDTH);
}

static void run_swiglu(void *context)
{
    const rows *r = context;
    for (int i = 0; i < N_ROWS; i++)
        r->k->swiglu(r->y + i * WIDTH, r->x + i * WIDTH, r->x + (N_ROWS - 1 - i) * WIDTH, WIDTH);
}

static void run_rope(void *context)
{
    const rows *r = context;
    for (int i = 0; i < N_ROWS; i++)
        r->k->rope(r->y + i * WIDTH, r->cosine, r->sine, HEADS, 2 * HALF, 2 * HALF);
}

static void run_exp(void *context)
{
    const rows *r = context;
    r->k->exp(r->y, r->x, (int64_t)N_ROWS * WIDTH);
}

static void run_softmax(void *context)
{
    rows *r = context;
    float max;
    r->k->softmax_stats(r->x, (int64_t)N_ROWS * WIDTH, &max, &r->sum);
}

static void run_argmax(void *context)
{
    rows *r = context;
    r->sum = (double)r->k->argmax(r->x, (int64_t)N_ROWS * WIDTH);
}

static void run_quantize8(void *context)
{
    const rows *r = context;
    for (int i = 0; i < N_ROWS; i++)
        r->k->quantize_row(r->x + i * WIDTH, WIDTH, 32, r->hi, NULL, r->scale);
}

static void run_quantize16(void *context)
{
    const rows *r = context;
    for (int i = 0; i < N_ROWS; i++)
        r->k->quantize_row(r->x + i * WIDTH, WIDTH, 32, r->hi, r->lo, r->scale);
}

static void run_pack(void *context)
{
    const rows *r = context;
    for (int64_t i = 0; i < r->packed.n_tiles; i++)
        nb_xpack_tile(&r->packed, r->k, i, r->x + r->packed.tile_first[i] * WIDTH, WIDTH);
}

/* Twice from the same state, by the reference and by the kernel: everything that may be written. */
static void check(rows *r, call_fn *call, const char *name)
{
    const size_t y_bytes = (size_t)N_ROWS * WIDTH * sizeof(float);
    float *want = bench_alloc(N_ROWS * WIDTH, sizeof *want);
    int8_t codes[2][WIDTH];
    float scale[WIDTH / 32];
    double sum = 0;
    for (int i = 0; i < 2; i++) {
        memcpy(r->y, r->x, y_bytes);
        memset(r->hi, 0, WIDTH);
        memset(r->lo, 0, WIDTH);
        r->sum = 0;
        r->k = i == 0 ? &r->b->ref : &r->b->k;
        call(r);
        if (i == 0) {
            memcpy(want, r->y, y_bytes);
            memcpy(codes[0], r->hi, WIDTH);
            memcpy(codes[1], r->lo, WIDTH);
            memcpy(scale, r->scale, sizeof scale);
            sum = r->sum;
        }
    }
    if (memcmp(want, r->y, y_bytes) != 0 || memcmp(codes[0], r->hi, WIDTH) != 0 ||
        memcmp(codes[1], r->lo, WIDTH) != 0 || memcmp(scale, r->scale, sizeof scale) != 0 ||
        memcmp(&sum, &r->sum, sizeof sum) != 0)
        bench_die("%s: not what the reference gives", name);
    nb_free(want);
}

static void time_pack(rows *r, nb_compute mode, const nb_panels *like)
{
    nb_xlayout_for(&r->layout, like, mode, false);
    nb_xpack_plan(&r->packed, &r->layout, r->k, N_ROWS, r->buffer);
    const work cost = {.bytes = 4.0 * N_ROWS * WIDTH, .footprint = 8.0 * N_ROWS * WIDTH};
    char what[64];
    snprintf(what, sizeof what, "%d rows of %d, mode %s", N_ROWS, WIDTH, nb_compute_name(mode));
    bench_line(r->b, &r->b->one, "pack_tile", what, bench_time(run_pack, r), &cost);
}

void bench_small(const bench *b)
{
    rows r = {.b = b, .k = &b->k};
    r.x = bench_alloc(N_ROWS * WIDTH, sizeof *r.x);
    r.y = bench_alloc(N_ROWS * WIDTH, sizeof *r.y);
    r.gain = bench_alloc(WIDTH, sizeof *r.gain);
    r.cosine = bench_alloc(HALF, sizeof *r.cosine);
    r.sine = bench_alloc(HALF, sizeof *r.sine);
    r.hi = bench_alloc(WIDTH, 1);
    r.lo = bench_alloc(WIDTH, 1);
    r.scale = bench_alloc(WIDTH / 32, sizeof *r.scale);
    r.buffer = bench_alloc(nb_xpack_bytes(WIDTH, N_ROWS), 1);
    for (int i = 0; i < N_ROWS * WIDTH; i++)
        r.x[i] = bench_random();
    for (int i = 0; i < WIDTH; i++)
        r.gain[i] = bench_random();
    for (int i = 0; i < HALF; i++) {
        r.cosine[i] = 0.6f;
        r.sine[i] = 0.8f;
    }
    const double one = 4.0 * N_ROWS * WIDTH; /* bytes of one array */
    const struct {
        const char *name;
        call_fn *call;
        double bytes;
    } kernels[] = {
        {"rmsnorm", run_norm, 2 * one},
        {"add", run_add, 3 * one},
        {"swiglu", run_swiglu, 3 * one},
        {"rope", run_rope, 2 * one},
        {"exp", run_exp, 2 * one},
        {"softmax", run_softmax, one},
        {"argmax", run_argmax, one},
        {"quantize", run_quantize8, 1.25 * one},
        {"quantize16", run_quantize16, 1.5 * one},
    };
    for (size_t i = 0; i < sizeof kernels / sizeof *kernels; i++) {
        check(&r, kernels[i].call, kernels[i].name);
        r.k = &b->k;
        memcpy(r.y, r.x, (size_t)one); /* small numbers, whatever the check left */
        const work cost = {.bytes = kernels[i].bytes, .footprint = 2 * one};
        char what[64];
        snprintf(what, sizeof what, "%d rows of %d", N_ROWS, WIDTH);
        bench_line(b, &b->one, kernels[i].name, what, bench_time(kernels[i].call, &r), &cost);
    }
    nb_panels like;
    nb_panels_plan(&like, &(nb_mat){.fmt = &nb_format_q4_0, .n_rows = 16, .n_cols = WIDTH});
    for (int mode = NB_COMPUTE_F; mode <= NB_COMPUTE_I16; mode++)
        time_pack(&r, (nb_compute)mode, &like);
    void *const arrays[] = {r.x, r.y, r.gain, r.cosine, r.sine, r.hi, r.lo, r.scale, r.buffer};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        nb_free(arrays[i]);
}
