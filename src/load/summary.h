/* What a load comes to: rates, latencies and failures, by the definitions of `vllm bench serve`. */
#ifndef NB_LOAD_SUMMARY_H
#define NB_LOAD_SUMMARY_H

#include "load/load.h"
#include "load/stats.h"

/* Bounds that a good request keeps, in seconds; 0: none. */
typedef struct {
    double ttft, tpot, e2el;
} nb_goodput;

/* Reads "ttft:200,tpot:50,e2el:2000": milliseconds, each at most once. NB_USAGE otherwise. */
nb_status nb_goodput_parse(nb_goodput *out, const char *text, nb_err *err);

#define NB_STATUS_MAX 1000

/* Counts and rates are of requests that succeeded, unless said; latencies are milliseconds. */
typedef struct {
    int64_t n, completed, failed, aborted; /* n: all that began */
    int64_t fates[NB_N_FATES], flaws[NB_N_FLAWS];
    int64_t flawed;                      /* completed, with a flaw at least */
    int64_t statuses[NB_STATUS_MAX];     /* of HTTP, other than 200 */
    int64_t input_tokens, output_tokens; /* input: as told, else as asked */
    int64_t cached_tokens;               /* -1: no answer told */
    double duration;
    double request_rate, output_rate, total_rate; /* a second */
    double good_rate;                             /* -1: no bounds were given */
    double peak_output_rate;                      /* tokens of the best whole second */
    int64_t peak_concurrency;
    nb_stats ttft, tpot, itl, e2el;
    nb_stats late; /* starts, behind their plan: of all */
    double busy;   /* share of the time in which the client was not waiting */
    double cpu_us; /* processor time of the client by token of output; 0 without tokens */
} nb_summary;

nb_status nb_summary_of(nb_summary *out, const nb_load_result *result, const nb_goodput *bounds,
                        nb_err *err);

#endif
