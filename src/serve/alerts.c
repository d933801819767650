/* See alerts.h. */
#include "serve/alerts.h"

#include "base/memory.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#define LATENCY_WINDOW_S 60

nb_status nb_alerts_open(nb_alerts *a, const nb_alert_rules *rules, nb_metrics *metrics,
                         const char *model, nb_alert_log *log, void *context, nb_err *err)
{
    *a = (nb_alerts){.rules = *rules, .metrics = metrics, .log = log, .context = context};
    snprintf(a->model, sizeof a->model, "%s", model);
    return rules->webhook != NULL ? nb_webhook_open(&a->webhook, rules->webhook, err) : NB_OK;
}

void nb_alerts_close(nb_alerts *a)
{
    nb_webhook_close(a->webhook);
    *a = (nb_alerts){0};
}

double nb_alerts_memory(int64_t resident, int64_t available)
{
    if (resident <= 0 || available == INT64_MAX)
        return 0; /* the system tells nothing */
    return (double)resident / ((double)resident + (double)(available > 0 ? available : 0));
}

static void tell(nb_alerts *a, nb_alert_rule rule, bool holds, double value, double limit)
{
    char line[300];
    snprintf(line, sizeof line, "alert %s: %s: %.6g, the limit is %.6g", nb_alert_name(rule),
             holds ? "begins" : "is over", value, limit);
    if (a->log != NULL)
        a->log(a->context, line);
    if (a->webhook == NULL)
        return;
    nb_wire w = {0};
    nb_wire_raw(&w, "{\"alert\":\"");
    nb_wire_raw(&w, nb_alert_name(rule));
    nb_wire_raw(&w, holds ? "\",\"state\":\"firing\",\"value\":"
                          : "\",\"state\":\"resolved\","
                            "\"value\":");
    nb_wire_real(&w, value);
    nb_wire_raw(&w, ",\"limit\":");
    nb_wire_real(&w, limit);
    nb_wire_raw(&w, ",\"model\":");
    nb_wire_string(&w, a->model, strlen(a->model));
    nb_wire_raw(&w, ",\"time\":");
    nb_wire_int(&w, (int64_t)time(NULL));
    nb_wire_raw(&w, "}");
    if (w.status == NB_OK)
        nb_webhook_post(a->webhook, (const char *)w.buf.data, w.buf.len);
    nb_wire_free(&w);
}

/* `value` below 0 is not known: the rule stays as it is. */
static void check(nb_alerts *a, nb_alert_rule rule, double value, double limit)
{
    if (limit <= 0 || value < 0)
        return;
    const int holds = value > limit;
    if (atomic_exchange(&a->metrics->alerts[rule], holds) != holds)
        tell(a, rule, holds != 0, value, limit);
}

void nb_alerts_check(nb_alerts *a, double now)
{
    check(a, NB_ALERT_MEMORY, nb_alerts_memory(nb_process_resident(), nb_memory_available()),
          a->rules.memory);
    check(a, NB_ALERT_QUANTIZATION_ERROR, nb_metrics_worst_error(a->metrics), a->rules.error);
    check(a, NB_ALERT_LATENCY, nb_metrics_p95(a->metrics, now, LATENCY_WINDOW_S),
          a->rules.latency_s);
}
