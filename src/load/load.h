/* Load on a server: requests that arrive in an open loop (at a rate, whatever the server does) or a
 * closed one (a number of them always in flight), on one thread, and what became of each. */
#ifndef NB_LOAD_LOAD_H
#define NB_LOAD_LOAD_H

#include "load/prompt_file.h"
#include "load/streamed.h"
#include "load/target.h"

/* Told of progress, ten times a second at least; false ends the run, and requests in flight are
 * NB_FATE_ABORTED. `ended` of `total` (0: not known). */
typedef bool nb_load_step_fn(void *context, int64_t ended, int64_t total);

typedef struct {
    double rate;         /* arrivals a second; 0: all as soon as may be */
    double burstiness;   /* of arrivals; 1: Poisson */
    int64_t concurrency; /* the most in flight; 0: no bound */
    int64_t requests;    /* the most in all; 0: as many as begin within the duration */
    double duration;     /* seconds in which requests begin; 0: no bound */
    nb_prompt_plan plan; /* seeds arrivals too */
    const nb_words *words;
    const nb_prompt_file *file; /* prompts in its order, again and again; NULL: random ones */
    bool ignore_eos;
    double temperature;
    const json_t *extra; /* fields for every request, over those made here; NULL: none */
    nb_load_step_fn *step;
    void *context;
} nb_load_options;

/* One request. Seconds; start is since the run's. */
typedef struct {
    int64_t index;
    double planned, start;   /* when it was to begin (closed loops: when it did), and when it did */
    double ttft, tpot, e2el; /* -1: there is none */
    double *gaps;            /* [n_gaps], between events that carry tokens */
    int64_t n_gaps;
    int64_t input_asked, output_asked;                  /* input: -1 for texts of a file */
    int64_t input_tokens, cached_tokens, output_tokens; /* input, cached: -1 when not told */
    nb_fate fate;
    int status;         /* of HTTP; 0: none */
    double retry_after; /* -1: not told */
    unsigned flaws;
    char *message; /* NULL: none */
} nb_load_record;

typedef struct {
    nb_load_record *records; /* in the order in which they ended */
    int64_t n, room;
    double duration; /* from the first possible start to the last end */
    double idle;     /* of that, asleep */
    double cpu;      /* seconds of processor that the client took */
    int64_t peak_concurrency;
    bool interrupted; /* the step function ended the run */
} nb_load_result;

/* Puts the load on the target. What the server does is in the records; only troubles of our own
 * are a status. Free the result in any case. */
nb_status nb_load_run(nb_load_result *out, const nb_target *target, const nb_load_options *options,
                      nb_err *err);
void nb_load_result_free(nb_load_result *result);

/* The body of request i, as JSON, appended to `out`; the tokens that it asks for. */
nb_status nb_load_body(nb_buf *out, const nb_target *target, const nb_load_options *options,
                       int64_t i, int64_t *input_asked, int64_t *output_asked, nb_err *err);

#endif
