/* What /metrics tells, in Prometheus's text format: vLLM's names, so that dashboards made for it
 * work, and nibble's own. No sample is ever NaN or Inf, counters end in _total, label values are
 * escaped. Reading takes no lock that a step of the engine holds. */
#ifndef NB_SERVE_METRICS_H
#define NB_SERVE_METRICS_H

#include "serve/histogram.h"
#include "serve/served.h"

/* Why requests were refused. X(enumerator, label) */
#define NB_REJECT_LIST(X)                                                                          \
    X(NB_REJECT_MALFORMED, "malformed")     /* of HTTP or JSON, or a field */                      \
    X(NB_REJECT_AUTH, "auth")               /* no key, or a wrong one; another site's page */      \
    X(NB_REJECT_NOT_FOUND, "not_found")     /* route, method or model */                           \
    X(NB_REJECT_TOO_LARGE, "too_large")     /* body */                                             \
    X(NB_REJECT_TIMEOUT, "timeout")         /* sent too slowly */                                  \
    X(NB_REJECT_OVERLOAD, "overload")       /* the queue is full */                                \
    X(NB_REJECT_UNAVAILABLE, "unavailable") /* stopping, out of memory */
typedef enum {
#define X(id, label) id,
    NB_REJECT_LIST(X)
#undef X
        NB_N_REJECTS
} nb_reject;

/* X(enumerator, label): the alert rules */
#define NB_ALERT_LIST(X)                                                                           \
    X(NB_ALERT_MEMORY, "memory")                         /* share of memory in use */              \
    X(NB_ALERT_QUANTIZATION_ERROR, "quantization_error") /* the worst of the model's report */     \
    X(NB_ALERT_LATENCY, "latency")                       /* the slowest twentieth of requests */
typedef enum {
#define X(id, label) id,
    NB_ALERT_LIST(X)
#undef X
        NB_N_ALERTS
} nb_alert_rule;
const char *nb_alert_name(nb_alert_rule rule);

/* A number of the model's report: relative error of what one layer's weights of one kind became. */
typedef struct {
    char layer[32], kind[64];
    double value;
} nb_layer_error;

#define NB_LATENCY_WINDOW 1024 /* requests */

typedef struct {
    char labels[400]; /* model_name="...",engine="0" */
    nb_histogram first_token, next_token, whole, queued, prefill, decode, inference;
    nb_histogram prompt_tokens, generation_tokens, params_n, params_max_tokens, step_tokens, step;
    atomic_llong rejects[NB_N_REJECTS], disconnects, requests, connections;
    atomic_int alerts[NB_N_ALERTS];
    /* The last requests' whole latency and when they ended, as bits of doubles; a ring. */
    atomic_ullong latency[NB_LATENCY_WINDOW], ended[NB_LATENCY_WINDOW];
    atomic_ullong n_ended;
    double started;               /* seconds of the calendar */
    const nb_layer_error *errors; /* [n_errors], borrowed */
    int64_t n_errors;
    int64_t n_blocks, block_len;
} nb_metrics;

/* Of zeros; what was counted already stays. */
void nb_metrics_init(nb_metrics *m, const nb_served *served);
/* What the engine tells goes here. */
nb_engine_observer nb_metrics_observer(nb_metrics *m);
void nb_metrics_reject(nb_metrics *m, nb_reject reason);

/* The p95 of whole latencies of requests that ended in the last `window` seconds; negative when
 * these were fewer than 20. */
double nb_metrics_p95(const nb_metrics *m, double now, double window);
double nb_metrics_worst_error(const nb_metrics *m); /* 0: no report */
int64_t nb_process_resident(void);                  /* bytes; 0: unknown */

/* Appends everything. */
void nb_metrics_write(const nb_metrics *m, const nb_engine *engine, nb_wire *out);

#endif
