/* What a verb prints: results on standard output, everything else on standard error.
 *
 * Results are either JSON (one object a line) or text and tables for people. Progress and colour
 * appear only on a terminal, colour never under NO_COLOR. A failed write to standard output is
 * remembered and ends the program with exit code 3. */
#ifndef NB_CLI_OUT_H
#define NB_CLI_OUT_H

#include "base/bytes.h"
#include "base/clock.h"
#include "base/json.h"

typedef struct {
    bool json;         /* --json was given */
    bool quiet;        /* --quiet was given */
    bool progress;     /* draw progress: standard error is a terminal, not quiet */
    bool colour;       /* standard output takes colour */
    bool line_is_open; /* a progress line stands on the terminal */
    int write_errno;   /* of the first failed write to standard output; 0: none */
} nb_out;

/* Ignores SIGPIPE and SIGXFSZ, catches SIGINT, SIGTERM and SIGHUP, and makes sure that descriptors
 * 0 to 2 are open, so that a file opened later cannot become "standard output". Called once, by
 * main. */
void nb_out_init(nb_out *out);
/* Flushes; NB_IO when any write to standard output failed. */
nb_status nb_out_finish(nb_out *out, nb_err *err);

/* True once a signal asked the program to end. Verbs poll it and return nb_fail_interrupted(). */
bool nb_interrupted(void);
nb_status nb_fail_interrupted(nb_err *err);
/* For a conversation on a terminal, where Ctrl-C ends an answer and not the program: true when
 * that was the signal, which is then forgotten. */
bool nb_interrupt_forgive(void);

/* ---- results, on standard output ---- */
void nb_out_text(nb_out *out, const char *format, ...) __attribute__((format(printf, 2, 3)));
void nb_out_bytes(nb_out *out, const void *bytes, size_t n);
/* Prints one line and takes the reference to `object`; NULL (jansson was out of memory) is
 * NB_MEMORY. Keys keep their order of insertion. */
nb_status nb_out_json(nb_out *out, json_t *object, nb_err *err);
/* A JSON string from bytes that may be anything: what is not UTF-8 becomes U+FFFD. */
json_t *nb_json_any_text(const char *text, size_t len);
/* Flushes what was printed so far, so that a reader sees it now. */
void nb_out_flush(nb_out *out);

/* ---- for people, on standard error; silent under --quiet ---- */
void nb_out_note(nb_out *out, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* As a note, but also under --quiet: "nibble: warning: ...". */
void nb_out_warn(nb_out *out, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* A progress line with the time left, redrawn at most ten times a second. */
typedef struct {
    const char *label;   /* "scoring"; borrowed until the end */
    const char *unit;    /* "windows"; "bytes" prints sizes */
    int64_t total;       /* 0: unknown */
    double start, drawn; /* seconds of the monotonic clock */
    int64_t first;       /* where this run began: what was done before has no speed */
    bool begun;
} nb_progress;
void nb_progress_begin(nb_out *out, nb_progress *p, const char *label, const char *unit,
                       int64_t total);
/* As begin, for work that continues at `first`. */
void nb_progress_begin_at(nb_out *out, nb_progress *p, const char *label, const char *unit,
                          int64_t first, int64_t total);
void nb_progress_update(nb_out *out, nb_progress *p, int64_t done);
/* Removes the line. */
void nb_progress_end(nb_out *out, nb_progress *p);

/* ---- tables for people ---- */

/* Columns as wide as their widest cell; numbers to the right. Cells are copied and made safe for
 * a terminal: control characters are shown as \xNN. `{0}` is empty. */
typedef struct {
    nb_buf cells; /* zero-terminated, one after the other */
    int n_columns;
    int64_t n_cells;
    uint64_t right; /* bit c: column c is aligned to the right */
} nb_table;
/* `heads` has one title a column; a title that starts with '>' is aligned to the right. */
nb_status nb_table_begin(nb_table *t, const char *const *heads, int n_columns, nb_err *err);
nb_status nb_table_cell(nb_table *t, nb_err *err, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* Prints the table and frees it. */
nb_status nb_table_print(nb_table *t, nb_out *out, nb_err *err);
void nb_table_free(nb_table *t);

/* "98.4 MB" (powers of 1000), in a buffer of the caller's. */
typedef struct {
    char text[24];
} nb_human;
nb_human nb_human_bytes(int64_t bytes);
/* "3.2 s", "1:05", "2:03:04". */
nb_human nb_human_seconds(double seconds);
/* "135 M", "1.5 B": counts of parameters or tokens. */
nb_human nb_human_count(int64_t n);

#endif
