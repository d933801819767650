/* See fit_scan.h. A search takes a hundred scans of its group, and they are most of its time. */
#include "numeric/fit_scan.h"

#include <string.h>

static void chunk_load(nb_fit_chunk *k, const nb_fit_data *d, int64_t c)
{
    const int n = (int)(d->n - c < NB_FIT_CHUNK ? d->n - c : NB_FIT_CHUNK);
    for (int i = 0; i < n; i++) {
        k->x[i] = (double)d->w[c + i];
        k->p[i] = d->importance == NULL ? 1 : (double)d->importance[c + i] + d->floor;
        k->px[i] = k->p[i] * k->x[i];
    }
    k->n = (n + NB_FIT_LANES - 1) / NB_FIT_LANES * NB_FIT_LANES;
    for (int i = n; i < k->n; i++)
        k->x[i] = k->p[i] = k->px[i] = 0;
}

/* Adding 1.5 * 2^52 rounds to nearest even, as long as the number is small: it is kept in the range
 * of codes before. */
static inline void sums_of_lanes(double *restrict u, double *restrict uu, double *restrict xu,
                                 const double *restrict x, const double *restrict p,
                                 const double *restrict px, double inverse, double base, double top)
{
    for (int l = 0; l < NB_FIT_LANES; l++) {
        double v = x[l] * inverse + base;
        v = v > 0 ? v : 0;
        v = v < top ? v : top;
        v = (v + 0x1.8p52) - 0x1.8p52;
        const double pu = p[l] * v;
        u[l] += pu;
        uu[l] += pu * v;
        xu[l] += px[l] * v;
    }
}

static double folded(const double *lane)
{
    return ((lane[0] + lane[4]) + (lane[2] + lane[6])) +
           ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

void nb_fit_chunk_c(const nb_fit_chunk *k, const nb_fit_map *map, int n_maps, double top,
                    nb_fit_sums *out)
{
    for (int m = 0; m < n_maps; m++) {
        double u[NB_FIT_LANES] = {0}, uu[NB_FIT_LANES] = {0}, xu[NB_FIT_LANES] = {0};
        for (int i = 0; i < k->n; i += NB_FIT_LANES)
            sums_of_lanes(u, uu, xu, k->x + i, k->p + i, k->px + i, map[m].inverse, map[m].base,
                          top);
        out[m].u += folded(u);
        out[m].uu += folded(uu);
        out[m].xu += folded(xu);
    }
}

/* The operating system's consent to wide registers is part of what is asked here. The sets are
 * those that the files with these prefixes are compiled for. */
nb_fit_chunk_fn *nb_fit_chunk_at(int i)
{
#if defined(__x86_64__)
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
    if (avx512 && i-- == 0)
        return nb_fit_chunk_avx512;
    if (avx2 && i-- == 0)
        return nb_fit_chunk_avx2;
#endif
    return i == 0 ? nb_fit_chunk_c : NULL;
}

void nb_fit_scan(const nb_fit_data *d, const nb_fit_map *map, int n_maps, int top, nb_fit_sums *out)
{
    nb_fit_chunk_fn *const scan = nb_fit_chunk_at(0);
    memset(out, 0, (size_t)n_maps * sizeof *out);
    for (int64_t c = 0; c < d->n; c += NB_FIT_CHUNK) {
        nb_fit_chunk k;
        chunk_load(&k, d, c);
        scan(&k, map, n_maps, (double)top, out);
    }
}
