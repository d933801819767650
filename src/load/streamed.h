/* One streamed answer of an OpenAI-compatible server: when its tokens came, what it says of itself,
 * and whether it keeps the rules of such streams. */
#ifndef NB_LOAD_STREAMED_H
#define NB_LOAD_STREAMED_H

#include "load/sse.h"

/* How a request ended: X(enumerator, name). The first is the only success. */
#define NB_FATE_LIST(X)                                                                            \
    X(NB_FATE_OK, "ok")                                                                            \
    X(NB_FATE_CONNECT, "connect")         /* no connection, or it broke before an answer */        \
    X(NB_FATE_STATUS, "status")           /* another status than 200, redirects included */        \
    X(NB_FATE_NOT_STREAM, "not_a_stream") /* 200, but not an event stream */                       \
    X(NB_FATE_BROKEN, "broken_stream")    /* not UTF-8, not JSON, or past a bound */               \
    X(NB_FATE_ERROR_EVENT, "error_event") /* the server tells of an error inside the stream */     \
    X(NB_FATE_CUT, "cut_stream")          /* ended before its end */                               \
    X(NB_FATE_EMPTY, "empty_stream")      /* ended well, without a token */                        \
    X(NB_FATE_TIMEOUT, "timeout")         /* ours */                                               \
    X(NB_FATE_ABORTED, "aborted")         /* by us, because the run was interrupted */

typedef enum {
#define X(id, name) id,
    NB_FATE_LIST(X)
#undef X
        NB_N_FATES
} nb_fate;
const char *nb_fate_name(nb_fate fate);

/* Rules that a stream broke without losing the numbers: X(enumerator, name). */
#define NB_FLAW_LIST(X)                                                                            \
    X(NB_FLAW_NO_FINISH, "no_finish_reason")                                                       \
    X(NB_FLAW_TWO_FINISH, "second_finish_reason")                                                  \
    X(NB_FLAW_AFTER_FINISH, "token_after_finish")                                                  \
    X(NB_FLAW_NO_DONE, "no_done")                                                                  \
    X(NB_FLAW_AFTER_DONE, "event_after_done")                                                      \
    X(NB_FLAW_OPEN_END, "unfinished_event") /* the stream ends inside one */                       \
    X(NB_FLAW_CUT_AFTER_DONE, "cut_after_done")                                                    \
    X(NB_FLAW_NO_USAGE, "no_usage") /* tokens are those counted here: events with text */          \
    X(NB_FLAW_UNKNOWN_EVENT, "unknown_event") /* JSON, but neither choices, usage nor error */     \
    X(NB_FLAW_LENGTH, "wrong_length") /* not the tokens asked for, although ignore_eos was sent */

typedef enum {
#define X(id, name) id,
    NB_FLAW_LIST(X)
#undef X
        NB_N_FLAWS
} nb_flaw;
const char *nb_flaw_name(nb_flaw flaw);

#define NB_STREAMED_MESSAGE 240

/* Times are seconds of one clock; the caller tells them. */
typedef struct {
    nb_sse sse;
    double now;
    double first; /* when the first token came; < 0: none */
    double token; /* the latest */
    double last;  /* the latest event of the choice, which may be its end */
    nb_buf gaps;  /* double: seconds between events that carry tokens */
    int64_t n_token_events, max_events;
    int64_t n_bytes;
    int64_t prompt_tokens, cached_tokens, output_tokens; /* by the server's usage; -1: not told */
    int n_finish;
    bool done;      /* [DONE] came */
    unsigned flaws; /* bit i: nb_flaw i */
    nb_fate fate;
    char message[NB_STREAMED_MESSAGE]; /* of a fate other than OK; any bytes of the server's */
} nb_streamed;

/* Makes the stream ready for a new answer; buffers are kept. More than max_events events with
 * tokens are NB_FATE_BROKEN. A zeroed struct may be begun. */
void nb_streamed_begin(nb_streamed *s, int64_t max_events);
/* Body bytes that came at `now`. Anything but NB_OK ends the answer: NB_MEMORY is ours, for others
 * the fate says what the server did. */
nb_status nb_streamed_feed(nb_streamed *s, const char *bytes, size_t n, double now, nb_err *err);
/* The body ended: by its own framing (`whole`), or because the connection did. */
void nb_streamed_end(nb_streamed *s, bool whole);
/* Ends with a fate and a message of the caller's; the first fate of a stream stays. */
void nb_streamed_fail(nb_streamed *s, nb_fate fate, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
void nb_streamed_free(nb_streamed *s);

/* Tokens of the answer: as the server counts, else as events count. */
static inline int64_t nb_streamed_n_tokens(const nb_streamed *s)
{
    return s->output_tokens >= 0 ? s->output_tokens : s->n_token_events;
}

#endif
