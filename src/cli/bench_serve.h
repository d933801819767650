/* Inside nibble bench serve: what was asked for, and how results are printed. */
#ifndef NB_CLI_BENCH_SERVE_H
#define NB_CLI_BENCH_SERVE_H

#include "cli/out.h"
#include "load/summary.h"

typedef struct {
    nb_target target;
    nb_load_options load;
    nb_words words;
    nb_prompt_file file;
    json_t *extra; /* of --body */
    nb_goodput bounds;
    bool has_bounds;
    nb_load_result result;
    nb_summary summary;
} nb_bench_serve;

/* One object with --json, else lines and a table. */
nb_status nb_bench_serve_print(const nb_bench_serve *b, nb_out *out, nb_err *err);
/* Appends one object a request, as JSON lines, in the order in which they ended. */
nb_status nb_bench_serve_lines(nb_buf *to, const nb_load_result *result, nb_err *err);

#endif
