/* Three rules that call for somebody: memory, quantization error, latency. Whether one holds is a
 * metric; that it begins or ends to hold is a line of the log, and a message to a webhook. */
#ifndef NB_SERVE_ALERTS_H
#define NB_SERVE_ALERTS_H

#include "serve/metrics.h"
#include "serve/webhook.h"

typedef struct {
    double memory;       /* share of what this process may have; 0: off */
    double error;        /* relative; 0: off */
    double latency_s;    /* of the slowest twentieth of the requests of the last minute; 0: off */
    const char *webhook; /* URL; NULL: none */
} nb_alert_rules;

/* One line, without its end. */
typedef void nb_alert_log(void *context, const char *line);

typedef struct {
    nb_alert_rules rules;
    nb_metrics *metrics;
    nb_webhook *webhook;
    nb_alert_log *log;
    void *context;
    char model[200];
} nb_alerts;

nb_status nb_alerts_open(nb_alerts *a, const nb_alert_rules *rules, nb_metrics *metrics,
                         const char *model, nb_alert_log *log, void *context, nb_err *err);
void nb_alerts_close(nb_alerts *a); /* `{0}` is fine */
/* Looks at all rules; `now` is nb_clock's. */
void nb_alerts_check(nb_alerts *a, double now);

/* The share of memory in use, out of what is resident and what is still to be had. */
double nb_alerts_memory(int64_t resident, int64_t available);

#endif
