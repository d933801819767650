/* See histogram.h. */
#include "serve/histogram.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

void nb_histogram_init(nb_histogram *h, const double *bounds, int n)
{
    assert(n <= NB_HISTOGRAM_MAX);
    memset(h, 0, sizeof *h);
    h->n = n;
    memcpy(h->bounds, bounds, (size_t)n * sizeof *bounds);
}

void nb_histogram_add(nb_histogram *h, double value)
{
    const double x = value > 0 && isfinite(value) ? value : 0;
    int at = 0;
    while (at < h->n && x > h->bounds[at])
        at++;
    /* One writer: load and store need not be one step. */
    const unsigned long long count = atomic_load_explicit(&h->counts[at], memory_order_relaxed);
    atomic_store_explicit(&h->counts[at], count + 1, memory_order_relaxed);
    unsigned long long bits = atomic_load_explicit(&h->sum_bits, memory_order_relaxed);
    double sum;
    memcpy(&sum, &bits, sizeof sum);
    sum += x;
    memcpy(&bits, &sum, sizeof bits);
    atomic_store_explicit(&h->sum_bits, bits, memory_order_relaxed);
}

void nb_histogram_write(const nb_histogram *h, const char *name, const char *labels, nb_wire *out)
{
    char line[400];
    const char *comma = labels[0] != 0 ? "," : "";
    unsigned long long total = 0;
    for (int i = 0; i <= h->n; i++) {
        total += atomic_load_explicit(&h->counts[i], memory_order_relaxed);
        nb_wire_raw(out, name);
        nb_wire_raw(out, "_bucket{");
        nb_wire_raw(out, labels);
        if (i < h->n)
            snprintf(line, sizeof line, "%sle=\"%.9g\"} %llu\n", comma, h->bounds[i], total);
        else
            snprintf(line, sizeof line, "%sle=\"+Inf\"} %llu\n", comma, total);
        nb_wire_raw(out, line);
    }
    const unsigned long long bits = atomic_load_explicit(&h->sum_bits, memory_order_relaxed);
    double sum;
    memcpy(&sum, &bits, sizeof sum);
    const char *const tails[] = {"_sum", "_count"};
    for (int i = 0; i < 2; i++) {
        nb_wire_raw(out, name);
        nb_wire_raw(out, tails[i]);
        nb_wire_raw(out, "{");
        nb_wire_raw(out, labels);
        if (i == 0)
            snprintf(line, sizeof line, "} %.15g\n", sum);
        else
            snprintf(line, sizeof line, "} %llu\n", total);
        nb_wire_raw(out, line);
    }
}
