/* See pace.h. */
#include "quant/pass/pace.h"

#include "base/alloc.h"
#include "base/clock.h"
#include "kernel/matmul.h"

#define PRODUCT_ROWS 1024
#define PRODUCT_COLS 768

nb_status nb_pace_measure(const nb_kernels *kernels, nb_pool *pool, double *flops_per_second,
                          nb_err *err)
{
    const int64_t m = PRODUCT_ROWS, n = PRODUCT_COLS;
    const int n_threads = nb_pool_n_threads(pool);
    float *a = NULL, *b = NULL, *c = NULL;
    uint8_t *scratch = NULL;
    nb_status s;
    NB_TRY_GOTO(s, NB_ALLOC(&a, m * n, err));
    NB_TRY_GOTO(s, NB_ALLOC(&b, n * n, err));
    NB_TRY_GOTO(s, NB_ALLOC(&c, m * n, err));
    NB_TRY_GOTO(s, NB_ALLOC(&scratch, nb_matmul_scratch_bytes(m, n, n, n_threads), err));
    const nb_matmul_job product = {
        .c = c, .ldc = n, .m = m, .n = n, .depth = n, .a = {a, n, 1}, .b = {b, 1, n}};
    double best = 1e9;
    for (int i = 0; i < 5; i++) {
        const double start = nb_clock();
        nb_matmul(kernels, pool, &product, scratch);
        const double took = nb_clock() - start;
        best = took < best ? took : best;
    }
    *flops_per_second = 2.0 * (double)(m * n * n) / best;
done:
    nb_free(a);
    nb_free(b);
    nb_free(c);
    nb_free(scratch);
    return s;
}
