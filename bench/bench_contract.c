/* What the arithmetic contract costs: the kernels, which keep its order, against the same tiles
 * without it.
 *
 *   bench_contract
 *
 * The order-free tiles may add in any order and fold scales as they like. Floats: one chain over
 * the whole row instead of one for each 128 columns, cut over k where few tokens leave the FMA
 * units waiting, totals in registers. Integers: sums have no order to give up, and two scales that
 * change with every segment leave nothing to fold; where the activations have one scale a token, it
 * is multiplied in once at the end instead of once a segment.
 *
 * Both run on one core, in turns, on weights that stay in the second-level cache; best of RUNS. */
#define _GNU_SOURCE
#include "base/rng.h"
#include "kernel/gemm.h"
#include "numeric/minifloat.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#if defined(__x86_64__)

#include <immintrin.h>

#define RUNS 25
#define AVX512                                                                                     \
    __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))
#define INLINE  static inline __attribute__((always_inline)) AVX512
#define MAX_SUM 24
#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif

/* ---- the tiles without an order ---- */

/* One panel by T tokens, S sums each. */
INLINE void free_tile_f(float *y, int64_t ldy, const nb_panels *w, int64_t p, const nb_xtile *x,
                        const int T, const int S)
{
    const float *wk = (const float *)(const void *)(w->codes + p * w->panel_bytes), *xk = x->f;
    __m512 acc[MAX_SUM];
    UNROLL
    for (int i = 0; i < S * T; i++)
        acc[i] = _mm512_setzero_ps();
    for (int64_t k = 0; k < w->n_cols; k += S, wk += S * NB_PANEL_ROWS, xk += S * T) {
        UNROLL
        for (int s = 0; s < S; s++) {
            const __m512 v = _mm512_loadu_ps(wk + s * NB_PANEL_ROWS);
            UNROLL
            for (int t = 0; t < T; t++)
                acc[s * T + t] = _mm512_fmadd_ps(v, _mm512_set1_ps(xk[s * T + t]), acc[s * T + t]);
        }
    }
    UNROLL
    for (int t = 0; t < T; t++) {
        UNROLL
        for (int s = 1; s < S; s++)
            acc[t] = _mm512_add_ps(acc[t], acc[s * T + t]);
        _mm512_storeu_ps(y + t * ldy + p * NB_PANEL_ROWS, acc[t]);
    }
}

INLINE __m512i dot_bcst(__m512i acc, __m512i w, const int8_t *x)
{
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(w), "m"(*(const int32_t(*)[1])x));
    return acc;
}

/* 4-bit codes with BF16 scales; `fold`: one activation scale a token. */
INLINE void free_tile_i(float *y, int64_t ldy, const nb_panels *w, int64_t p, const nb_xtile *x,
                        const bool fold, const int T, const int S)
{
    const __m512i low = _mm512_set1_epi8(15);
    const uint8_t *codes = w->codes + p * w->panel_bytes;
    const uint16_t *scale = (const uint16_t *)w->scales + p * w->n_segs * NB_PANEL_ROWS;
    const int8_t *hi = x->hi;
    __m512 total[NB_TILE_MAX];
    UNROLL
    for (int t = 0; t < T; t++)
        total[t] = _mm512_setzero_ps();
    for (int64_t s = 0; s < w->n_segs; s++) {
        __m512i acc[MAX_SUM];
        UNROLL
        for (int t = 0; t < T; t++)
            acc[t] = _mm512_set1_epi32(x->start[s * T + t]);
        UNROLL
        for (int t = T; t < S * T; t++)
            acc[t] = _mm512_setzero_si512();
        for (int64_t g = 0; g < w->seg_len / 8; g++, codes += 64, hi += 8 * T) {
            const __m512i both = _mm512_loadu_si512(codes);
            const __m512i a = _mm512_and_si512(both, low);
            const __m512i b = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
            UNROLL
            for (int t = 0; t < T; t++)
                acc[t] = dot_bcst(acc[t], a, hi + 4 * t);
            UNROLL
            for (int t = 0; t < T; t++)
                acc[(S - 1) * T + t] = dot_bcst(acc[(S - 1) * T + t], b, hi + 4 * (T + t));
        }
        UNROLL
        for (int t = 0; S == 2 && t < T; t++)
            acc[t] = _mm512_add_epi32(acc[t], acc[T + t]);
        const __m512 sw = _mm512_castsi512_ps(_mm512_slli_epi32(
            _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(scale + s * NB_PANEL_ROWS))),
            16));
        UNROLL
        for (int t = 0; t < T; t++) {
            const __m512 sums = _mm512_cvtepi32_ps(acc[t]);
            const __m512 by = fold ? sw : _mm512_mul_ps(sw, _mm512_set1_ps(x->scale[s * T + t]));
            total[t] = _mm512_fmadd_ps(sums, by, total[t]);
        }
    }
    UNROLL
    for (int t = 0; t < T; t++)
        _mm512_storeu_ps(y + t * ldy + p * NB_PANEL_ROWS,
                         fold ? _mm512_mul_ps(total[t], _mm512_set1_ps(x->scale[t])) : total[t]);
}

typedef void free_fn(float *y, int64_t ldy, const nb_panels *w, const nb_xtile *x);
#define DEFINE(T, SF, SI)                                                                          \
    AVX512 static void free_f_##T(float *y, int64_t ldy, const nb_panels *w, const nb_xtile *x)    \
    {                                                                                              \
        for (int64_t p = 0; p < w->n_panels; p++)                                                  \
            free_tile_f(y, ldy, w, p, x, T, SF);                                                   \
    }                                                                                              \
    AVX512 static void free_i_##T(float *y, int64_t ldy, const nb_panels *w, const nb_xtile *x)    \
    {                                                                                              \
        for (int64_t p = 0; p < w->n_panels; p++)                                                  \
            free_tile_i(y, ldy, w, p, x, false, T, SI);                                            \
    }                                                                                              \
    AVX512 static void fold_i_##T(float *y, int64_t ldy, const nb_panels *w, const nb_xtile *x)    \
    {                                                                                              \
        for (int64_t p = 0; p < w->n_panels; p++)                                                  \
            free_tile_i(y, ldy, w, p, x, true, T, SI);                                             \
    }
DEFINE(1, 8, 2)
DEFINE(4, 2, 2)
DEFINE(8, 1, 1)
DEFINE(12, 1, 1)

/* ---- the comparison ---- */

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *need(int64_t bytes)
{
    void *p = aligned_alloc(64, (size_t)(bytes + 63) / 64 * 64);
    if (p == NULL) {
        fputs("bench_contract: out of memory\n", stderr);
        exit(1);
    }
    return p;
}

static uint64_t counter;

static float random_f32(void)
{
    return (float)(nb_rng_uniform(1, 2, counter++) * 2 - 1);
}

static nb_panels random_panels(int64_t n_rows, int64_t n_cols, int64_t group)
{
    nb_panels p = {.kind = group > 0 ? NB_PANEL_U4 : NB_PANEL_F32,
                   .n_rows = n_rows,
                   .n_cols = n_cols,
                   .k_pad = n_cols,
                   .n_panels = n_rows / NB_PANEL_ROWS,
                   .scale_type = NB_BF16};
    p.panel_bytes = group > 0 ? n_cols * NB_PANEL_ROWS / 2 : n_cols * NB_PANEL_ROWS * 4;
    p.codes = need(p.n_panels * p.panel_bytes);
    if (group == 0) {
        for (int64_t i = 0; i < n_rows * n_cols; i++)
            nb_float_put(p.codes, NB_F32, i, random_f32());
        return p;
    }
    p.seg_len = group;
    p.n_segs = n_cols / group;
    p.zero_const = 8;
    p.scales = need(n_rows * p.n_segs * 2);
    for (int64_t i = 0; i < p.n_panels * p.panel_bytes; i++)
        p.codes[i] = (uint8_t)(int)(128 + 127 * random_f32());
    for (int64_t i = 0; i < n_rows * p.n_segs; i++)
        nb_float_put(p.scales, NB_BF16, i, 0.01f * (1.5f + random_f32()));
    return p;
}

/* Seconds of one product: the kernel's without `other`. */
static double time_product(const nb_kernels *k, const nb_panels *w, const nb_xtile *x,
                           free_fn *other, float *y, float *scratch, int reps)
{
    static const int64_t first = 0;
    const double start = now();
    for (int i = 0; i < reps; i++) {
        if (other != NULL)
            other(y, w->n_rows, w, x);
        else if (x->f != NULL)
            k->gemm_f(y, w->n_rows, w, 0, w->n_panels, x, &first, 1, scratch);
        else
            k->gemm_i(y, w->n_rows, w, 0, w->n_panels, x);
    }
    return (now() - start) / reps;
}

/* One line of the table. False if the two do not compute the same product. */
static bool compare(const nb_kernels *k, nb_pool *pool, const nb_panels *w, bool per_token,
                    int64_t n_tok, free_fn *other, const char *what)
{
    const nb_compute mode = w->n_segs > 0 ? NB_COMPUTE_I8 : NB_COMPUTE_F;
    nb_xlayout layout;
    nb_xlayout_for(&layout, w, mode, per_token);
    nb_xpacked packed;
    void *buffer = need(nb_xpack_bytes(w->n_cols, n_tok));
    float *x = need(4 * n_tok * w->n_cols), *ours = need(4 * n_tok * w->n_rows),
          *theirs = need(4 * n_tok * w->n_rows), *scratch = need(4 * NB_GEMM_SCRATCH);
    for (int64_t i = 0; i < n_tok * w->n_cols; i++)
        x[i] = random_f32();
    nb_xpack(&packed, &layout, k, pool, x, w->n_cols, n_tok, buffer);
    const nb_xtile *tile = packed.tiles;

    const double once = time_product(k, w, tile, NULL, ours, scratch, 1);
    const int reps = once < 0.001 ? (int)(0.001 / once) + 1 : 1;
    double kept = 1e9, given_up = 1e9;
    for (int r = 0; r < RUNS; r++) {
        kept = fmin(kept, time_product(k, w, tile, NULL, ours, scratch, reps));
        given_up = fmin(given_up, time_product(k, w, tile, other, theirs, scratch, reps));
    }
    double worst = 0, largest = 0;
    for (int64_t i = 0; i < n_tok * w->n_rows; i++) {
        worst = fmax(worst, fabs((double)ours[i] - (double)theirs[i]));
        largest = fmax(largest, fabs((double)ours[i]));
    }
    const double gop = 2e-9 * (double)(w->n_rows * w->n_cols * n_tok);
    printf("%5lld x %-5lld %-20s %4lld %10.1f %10.1f %8.3f\n", (long long)w->n_rows,
           (long long)w->n_cols, what, (long long)n_tok, gop / kept, gop / given_up,
           kept / given_up);
    free(buffer);
    free(x);
    free(ours);
    free(theirs);
    free(scratch);
    if (worst > 1e-5 * largest)
        fprintf(stderr, "bench_contract: the products differ by %g of %g\n", worst, largest);
    return worst <= 1e-5 * largest;
}

int main(void)
{
    static const int64_t shapes[][2] = {{192, 576}, {1536, 576}, {128, 2048}};
    static const struct {
        int64_t n_tok;
        free_fn *f, *i, *folded;
    } tiles[] = {{1, free_f_1, free_i_1, fold_i_1},
                 {4, free_f_4, free_i_4, fold_i_4},
                 {8, free_f_8, free_i_8, fold_i_8},
                 {12, free_f_12, free_i_12, fold_i_12}};
    nb_kernels k;
    nb_kernels_init(&k, NB_ISA_AVX2 | NB_ISA_AVX512);
    nb_pool *pool;
    nb_err err;
    if ((k.isa & NB_ISA_AVX512) == 0 || nb_pool_open(&pool, 1, &err) != NB_OK) {
        puts("bench_contract: needs AVX-512 VNNI");
        return 0;
    }
    printf("%-13s %-20s %4s %10s %10s %8s\n", "", "", "tok", "contract", "order-free", "time");
    bool same = true;
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        static const int64_t groups[] = {0, 32, 64};
        for (size_t g = 0; g < sizeof groups / sizeof *groups; g++) {
            nb_panels w = random_panels(shapes[s][0], shapes[s][1], groups[g]);
            for (size_t t = 0; t < sizeof tiles / sizeof *tiles; t++) {
                const int64_t n = tiles[t].n_tok;
                char what[64];
                if (groups[g] == 0) {
                    same = compare(&k, pool, &w, false, n, tiles[t].f, "f32") && same;
                    continue;
                }
                snprintf(what, sizeof what, "4-bit g%d i8", (int)groups[g]);
                same = compare(&k, pool, &w, false, n, tiles[t].i, what) && same;
                snprintf(what, sizeof what, "4-bit g%d i8 token", (int)groups[g]);
                same = compare(&k, pool, &w, true, n, tiles[t].folded, what) && same;
            }
            free(w.codes);
            free(w.scales);
        }
    }
    nb_pool_close(pool);
    return same ? 0 : 1;
}

#else

int main(void)
{
    puts("bench_contract: the order-free tiles are written for AVX-512 only");
    return 0;
}

#endif
