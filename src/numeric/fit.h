/* Searching for the scale of one group: the formats' grids (grid.h) are made of these. Each looks
 * at a few dozen ranges that the codes might cover, gives each its least-squares scale, and refines
 * the best ones as they will be stored. O(n) for each range; no memory, no state.
 *
 * As in "opt-RTN": a group's extremes set the first range, but the best one is usually narrower,
 * and it may be turned around, a negative scale giving the longer end of -2^(b-1) .. 2^(b-1) - 1 to
 * the side that needs it. */
#ifndef NB_NUMERIC_FIT_H
#define NB_NUMERIC_FIT_H

#include "numeric/grid.h"

/* The values to be represented and what their squared errors count. */
typedef struct {
    const float *w, *importance; /* [n]; importance NULL: all 1 */
    int64_t n;
    double floor; /* is added to every importance */
    float min, max;
    double p, px, pxx; /* sums of importance, importance * w, importance * w^2 */
} nb_fit_data;

/* What to add to importances, so that columns without any still break ties; of several groups that
 * are compared with each other, the floor is one. */
double nb_fit_floor(const float *importance, int64_t n);
void nb_fit_data_init(nb_fit_data *d, const float *w, const float *importance, int64_t n,
                      double floor);

/* Sums over a group of p u, p u^2 and p w u, u being the codes 0 .. top that are nearest to w under
 * a map: u = rne(w * inverse + base), kept in the range. */
typedef struct {
    double inverse, base;
} nb_fit_map;
typedef struct {
    double u, uu, xu;
} nb_fit_sums;
void nb_fit_scan(const nb_fit_data *d, const nb_fit_map *map, int n_maps, int top,
                 nb_fit_sums *out);

/* v as `type` stores it, or the largest number of that type with its sign. */
float nb_fit_stored(nb_float_type type, double v);

/* What searches have in common: the scale itself (i = 0) and its neighbours, as stored; the shares
 * of the full range that are tried; moves of a scale about as far as to the next one that was; and
 * the least scale, positive and negative, that clips nothing with levels from lo < 0 to hi > 0. */
#define NB_FIT_N_NEIGHBOURS 3
#define NB_FIT_N_SHARES     32
#define NB_FIT_N_FAR_MOVES  9
float nb_fit_neighbour(nb_float_type type, double scale, int i);
double nb_fit_share(int i);
double nb_fit_far_move(int i); /* a share of the scale; 0 for i = 0 */
void nb_fit_full_scales(const nb_fit_data *d, double lo, double hi, double *positive,
                        double *negative);

/* value = scale * (u + lo), u in 0 .. top. Returns a scale, other than 0 and of either sign; 0
 * where nothing can be found (all values are 0, or too small for `type`). */
float nb_fit_scale(const nb_fit_data *d, int lo, int top, nb_float_type type);

/* value = scale * (u - zero), u and zero in 0 .. top. */
float nb_fit_scale_zero(const nb_fit_data *d, int top, nb_float_type type, int *zero);

/* value = scale * u + offset, u in 0 .. top; scale >= 0. With `below`, offset <= 0. `type` rounds
 * both. */
float nb_fit_scale_offset(const nb_fit_data *d, int top, nb_float_type type, bool below,
                          float *offset);

/* value = scale * level[i], of any levels, as nb_fit_scale. */
float nb_fit_scale_table(const nb_fit_data *d, const float *level, int n_levels,
                         nb_float_type type);

#endif
