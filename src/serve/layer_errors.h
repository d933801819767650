/* The errors of a quantized model's layers, out of the nibble-report.json beside it. */
#ifndef NB_SERVE_LAYER_ERRORS_H
#define NB_SERVE_LAYER_ERRORS_H

#include "base/json.h"
#include "serve/metrics.h"

/* MODEL/nibble-report.json of a folder, MODEL.nibble-report.json of a file. Where there is none
 * `text` stays empty, and *n is 0, as where it has no such numbers; NB_DATA when it is no report.
 * Free *out with nb_free. */
nb_status nb_layer_errors_load(const char *model, nb_buf *text, nb_layer_error **out, int64_t *n,
                               nb_err *err);
/* The same of a report that was parsed. */
nb_status nb_layer_errors_read(const json_t *report, nb_layer_error **out, int64_t *n, nb_err *err);

#endif
