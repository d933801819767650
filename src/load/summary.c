/* See summary.h. */
#include "load/summary.h"

#include <math.h>
#include <string.h>

/* ---- goodput ---- */

/* A decimal number, all of text[0, n); < 0: it is none. */
static double read_ms(const char *text, size_t n)
{
    double value = 0, unit = 0;
    for (size_t i = 0; i < n; i++) {
        if (text[i] == '.' && unit == 0 && n > 1) {
            unit = 1;
            continue;
        }
        if (text[i] < '0' || text[i] > '9')
            return -1;
        unit *= 0.1;
        value = unit == 0 ? 10 * value + (text[i] - '0') : value + unit * (text[i] - '0');
    }
    return n == 0 || !(value > 0) || value > 1e12 ? -1 : value;
}

nb_status nb_goodput_parse(nb_goodput *out, const char *text, nb_err *err)
{
    nb_goodput g = {0};
    for (const char *at = text;; at++) {
        double *which = strncmp(at, "ttft:", 5) == 0   ? &g.ttft
                        : strncmp(at, "tpot:", 5) == 0 ? &g.tpot
                        : strncmp(at, "e2el:", 5) == 0 ? &g.e2el
                                                       : NULL;
        const size_t n = which == NULL ? 0 : strcspn(at + 5, ",");
        const double ms = which == NULL || *which != 0 ? -1 : read_ms(at + 5, n);
        if (ms < 0)
            return nb_fail(err, NB_USAGE,
                           "'%.200s': milliseconds like ttft:200,tpot:50,e2el:2000, each at most "
                           "once",
                           text);
        *which = 1e-3 * ms;
        at += 5 + n;
        if (*at == 0)
            break;
    }
    *out = g;
    return NB_OK;
}

static bool is_good(const nb_load_record *r, const nb_goodput *g)
{
    const double tpot = r->tpot < 0 ? 0 : r->tpot; /* one token has none, and keeps any bound */
    return (g->ttft == 0 || r->ttft <= g->ttft) && (g->tpot == 0 || tpot <= g->tpot) &&
           (g->e2el == 0 || r->e2el <= g->e2el);
}

/* ---- latencies ---- */

typedef double pick_fn(const nb_load_record *r);

static double pick_ttft(const nb_load_record *r)
{
    return r->ttft;
}

static double pick_tpot(const nb_load_record *r)
{
    return r->tpot;
}

static double pick_e2el(const nb_load_record *r)
{
    return r->e2el;
}

static double pick_late(const nb_load_record *r)
{
    return r->start > r->planned ? r->start - r->planned : 0;
}

static nb_stats stats_of(const nb_load_result *result, pick_fn *pick, bool all, double *room)
{
    int64_t n = 0;
    for (int64_t i = 0; i < result->n; i++) {
        const nb_load_record *r = &result->records[i];
        if ((all || r->fate == NB_FATE_OK) && pick(r) >= 0)
            room[n++] = 1e3 * pick(r);
    }
    return nb_stats_of(room, n);
}

static nb_stats itl_of(const nb_load_result *result, double *room)
{
    int64_t n = 0;
    for (int64_t i = 0; i < result->n; i++) {
        const nb_load_record *r = &result->records[i];
        for (int64_t k = 0; r->fate == NB_FATE_OK && k < r->n_gaps; k++)
            room[n++] = 1e3 * r->gaps[k];
    }
    return nb_stats_of(room, n);
}

/* Events with tokens, by the second of the run in which they came; the most of them. */
static double peak_of(const nb_load_result *result, double *seconds, int64_t n_seconds)
{
    double most = 0;
    for (int64_t i = 0; i < result->n; i++) {
        const nb_load_record *r = &result->records[i];
        if (r->fate != NB_FATE_OK)
            continue;
        double t = r->start + r->ttft;
        for (int64_t k = 0; k <= r->n_gaps; k++) {
            const int64_t s = (int64_t)floor(t);
            if (s >= 0 && s < n_seconds && ++seconds[s] > most)
                most = seconds[s];
            if (k < r->n_gaps)
                t += r->gaps[k];
        }
    }
    return most;
}

static nb_status add_latencies(nb_summary *s, const nb_load_result *result, nb_err *err)
{
    int64_t n_room = result->n, n_gaps = 0;
    for (int64_t i = 0; i < result->n; i++)
        n_gaps += result->records[i].n_gaps;
    const int64_t n_seconds = (int64_t)ceil(s->duration) + 1;
    n_room = n_room > n_gaps ? n_room : n_gaps;
    double *room, *seconds;
    NB_TRY(NB_ALLOC(&room, n_room, err));
    const nb_status status = NB_ALLOC(&seconds, n_seconds, err);
    if (status == NB_OK) {
        s->ttft = stats_of(result, pick_ttft, false, room);
        s->tpot = stats_of(result, pick_tpot, false, room);
        s->e2el = stats_of(result, pick_e2el, false, room);
        s->late = stats_of(result, pick_late, true, room);
        s->itl = itl_of(result, room);
        s->peak_output_rate = peak_of(result, seconds, n_seconds);
    }
    nb_free(seconds);
    nb_free(room);
    return status;
}

/* ---- counts ---- */

static void count(nb_summary *s, const nb_load_record *r)
{
    s->n++;
    s->fates[r->fate]++;
    s->aborted += r->fate == NB_FATE_ABORTED;
    if (r->status != 200 && r->status > 0 && r->status < NB_STATUS_MAX)
        s->statuses[r->status]++;
    if (r->fate != NB_FATE_OK)
        return;
    s->completed++;
    s->flawed += r->flaws != 0;
    for (int i = 0; i < NB_N_FLAWS; i++)
        s->flaws[i] += r->flaws >> i & 1;
    s->input_tokens += r->input_tokens >= 0 ? r->input_tokens
                       : r->input_asked > 0 ? r->input_asked
                                            : 0;
    s->output_tokens += r->output_tokens;
    if (r->cached_tokens >= 0)
        s->cached_tokens = (s->cached_tokens < 0 ? 0 : s->cached_tokens) + r->cached_tokens;
}

nb_status nb_summary_of(nb_summary *out, const nb_load_result *result, const nb_goodput *bounds,
                        nb_err *err)
{
    nb_summary s = {.cached_tokens = -1,
                    .good_rate = -1,
                    .duration = result->duration,
                    .peak_concurrency = result->peak_concurrency};
    int64_t good = 0;
    for (int64_t i = 0; i < result->n; i++) {
        count(&s, &result->records[i]);
        good += bounds != NULL && result->records[i].fate == NB_FATE_OK &&
                is_good(&result->records[i], bounds);
    }
    s.failed = s.n - s.completed - s.aborted;
    if (s.duration > 0) {
        s.request_rate = (double)s.completed / s.duration;
        s.output_rate = (double)s.output_tokens / s.duration;
        s.total_rate = (double)(s.input_tokens + s.output_tokens) / s.duration;
        s.busy = 1 - result->idle / s.duration;
        if (bounds != NULL)
            s.good_rate = (double)good / s.duration;
    }
    if (s.output_tokens > 0)
        s.cpu_us = 1e6 * result->cpu / (double)s.output_tokens;
    NB_TRY(add_latencies(&s, result, err));
    *out = s;
    return NB_OK;
}
