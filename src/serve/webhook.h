/* Messages to a URL, as POSTs of JSON, from a thread of its own: who sends never waits, and what
 * cannot be delivered in time is dropped. */
#ifndef NB_SERVE_WEBHOOK_H
#define NB_SERVE_WEBHOOK_H

#include "base/status.h"

typedef struct nb_webhook nb_webhook;

/* http:// and https:// only; NB_UNSUPPORTED in a build without libcurl. */
nb_status nb_webhook_open(nb_webhook **out, const char *url, nb_err *err);
/* Drops what waits, and ends a delivery in progress. NULL is fine. */
void nb_webhook_close(nb_webhook *w);
/* Copies. False: it was dropped, because too many wait or it is too long. */
bool nb_webhook_post(nb_webhook *w, const char *json, size_t len);
/* Delivered so far; for tests. */
int64_t nb_webhook_n_sent(nb_webhook *w);

#endif
