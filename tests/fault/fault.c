/* Planted faults: what `nibble verify` has to find. Built only with -DNIBBLE_PLANT_FAULT=NAME,
 * which picks one of them; scripts/check_faults.sh builds each and expects its operation to be
 * named.
 *
 * Each is a mistake that somebody could make, on one of the axes that must not show: the
 * instruction set, the threads, the cut of a text, what else is in the batch. */
#define _GNU_SOURCE
#include "kernel/gemm.h"

#include <assert.h>
#include <math.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define FAULT __attribute__((unused)) static void

static nb_kernels sound; /* the table last asked for, without the fault */

/* ---- the instruction set ---- */

/* The squares of one lane are rounded before they are added: no FMA. */
static void rmsnorm(float *y, const float *x, const float *g, int64_t n, float eps)
{
    float lane[16] = {0};
    for (int64_t i = 0; i < n; i++)
        lane[i % 16] = i % 16 == 5 ? lane[5] + x[i] * x[i] : fmaf(x[i], x[i], lane[i % 16]);
    for (int half = 8; half >= 1; half /= 2)
        for (int j = 0; j < half; j++)
            lane[j] += lane[j + half];
    const float r = 1.0f / sqrtf(lane[0] / (float)n + eps);
    for (int64_t i = 0; i < n; i++)
        y[i] = x[i] * r * g[i];
}

FAULT plant_rmsnorm_lane(nb_kernels *k)
{
    if (k->isa != NB_ISA_SCALAR)
        k->rmsnorm = rmsnorm;
}

/* Chains of 64 columns where the contract has 128. */
static void gemm_f(float *y, int64_t ldy, const nb_panels *w, int64_t begin, int64_t end,
                   const nb_xtile *tiles, const int64_t *tile_first, int64_t n_tiles,
                   float *scratch)
{
    static _Thread_local float weights[1 << 16];
    (void)scratch;
    assert(w->n_cols <= 1 << 16);
    for (int64_t r = begin * NB_PANEL_ROWS; r < end * NB_PANEL_ROWS && r < w->n_rows; r++) {
        nb_panels_row(w, r, weights);
        for (int64_t i = 0; i < n_tiles; i++) {
            for (int t = 0; t < tiles[i].n_tok; t++) {
                float total = 0;
                for (int64_t cut = 0; cut < w->n_cols; cut += 64) {
                    float sum = 0;
                    for (int64_t c = cut; c < w->n_cols && c < cut + 64; c++)
                        sum = fmaf(weights[c], tiles[i].f[c * tiles[i].n_tok + t], sum);
                    total += sum;
                }
                y[(tile_first[i] + t) * ldy + r] = total;
            }
        }
    }
}

FAULT plant_gemm_f_chunk(nb_kernels *k)
{
    if (k->isa == NB_ISA_AVX2)
        k->gemm_f = gemm_f;
}

/* ---- threads ---- */

/* Threads other than the program's first are off by one bit. The first one waits a little, so that
 * some chunk is sure to be another's. */
static void swiglu(float *y, const float *g, const float *u, int64_t n)
{
    sound.swiglu(y, g, u, n);
    if (syscall(SYS_gettid) == getpid())
        nanosleep(&(struct timespec){.tv_nsec = 50000}, NULL);
    else
        y[0] = nextafterf(y[0], INFINITY);
}

FAULT plant_swiglu_thread(nb_kernels *k)
{
    k->swiglu = swiglu;
}

/* ---- the cut of a text ---- */

/* Every query sees one cell too many: in a prompt it is there already, in decode it is not. */
static nb_attn_args ahead(const nb_attn_args *a)
{
    nb_attn_args more = *a;
    if ((a->pos0 + a->n_q) % NB_KV_PAGE != 0) /* else the page may not be there */
        more.pos0++;
    return more;
}

static void attention_ahead(const nb_attn_args *a)
{
    const nb_attn_args more = ahead(a);
    sound.attention(&more);
}

static void splits_ahead(const nb_attn_args *a, int64_t begin, int64_t end, float *parts)
{
    const nb_attn_args more = ahead(a);
    sound.attn_splits(&more, begin, end, parts);
}

FAULT plant_attention_cell(nb_kernels *k)
{
    k->attention = attention_ahead;
    k->attn_splits = splits_ahead;
}

/* ---- what else is in the batch ---- */

#define PAGES 4096

/* As if the pages of a sequence lay one after the other: right for whoever is alone. */
static nb_attn_args in_a_row(const nb_attn_args *a, int32_t table[PAGES])
{
    nb_attn_args wrong = *a;
    const int64_t n = (a->pos0 + a->n_q + NB_KV_PAGE - 1) / NB_KV_PAGE;
    assert(n <= PAGES);
    for (int64_t i = 0; i < n; i++)
        table[i] = a->kv.table[0] + (int32_t)i;
    wrong.kv.table = table;
    return wrong;
}

static void attention_in_a_row(const nb_attn_args *a)
{
    int32_t table[PAGES];
    const nb_attn_args wrong = in_a_row(a, table);
    sound.attention(&wrong);
}

static void splits_in_a_row(const nb_attn_args *a, int64_t begin, int64_t end, float *parts)
{
    int32_t table[PAGES];
    const nb_attn_args wrong = in_a_row(a, table);
    sound.attn_splits(&wrong, begin, end, parts);
}

FAULT plant_attention_pages(nb_kernels *k)
{
    k->attention = attention_in_a_row;
    k->attn_splits = splits_in_a_row;
}

/* ---- which one ---- */

#define GLUE_(a, b) a##b
#define GLUE(a, b)  GLUE_(a, b)

void nb_kernels_plant_fault(nb_kernels *k)
{
    sound = *k;
    GLUE(plant_, NIBBLE_PLANT_FAULT)(k);
}
