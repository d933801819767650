/* Numbers by layer as inline SVG: one line a series, on a linear or a logarithmic scale. */
#ifndef NB_REPORT_SERIES_H
#define NB_REPORT_SERIES_H

#include "base/bytes.h"

#define NB_SERIES_MAX 7

typedef struct {
    const char *label; /* what is shown, for the axis and for those who do not see the plot */
    const char *const *names; /* [n_series] */
    const double *values;     /* [n_series][n]; NAN: nothing there */
    int n_series;
    int64_t n;
    bool is_log; /* values of 0 and less are left out then */
} nb_series;

/* Nothing when there is nothing to show. */
nb_status nb_svg_series(const nb_series *s, nb_buf *out, nb_err *err);

#endif
