/* Statuses and the message that travels with one.
 *
 * What comes from outside (files, requests, flags, memory) returns a status; what only we can get
 * wrong is an assert. `err` is never NULL. Messages say what was found and what was expected;
 * each caller adds where it was: the user reads "FILE: tensor 'x' ends at byte 912 of 880". */
#ifndef NB_BASE_STATUS_H
#define NB_BASE_STATUS_H

#include "nibble.h"

/* Writes the formatted message into err (control bytes and non-ASCII are shown as \xNN, so that
 * names from a hostile file can be quoted) and returns `status`. */
nb_status nb_fail(nb_err *err, nb_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* As nb_fail with NB_IO, and appends ": " and the text of the system error `errnum`.
 * ENOMEM becomes NB_MEMORY. */
nb_status nb_fail_errno(nb_err *err, int errnum, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Puts "formatted: " before the message already in err; returns err->status. */
nb_status nb_context(nb_err *err, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The exit code of the command-line program for a status. */
int nb_status_exit_code(nb_status status);

/* The only macro that returns; it looks like shouting so that you see the exit. */
#define NB_TRY(call)                                                                               \
    do {                                                                                           \
        const nb_status nb_try_status_ = (call);                                                   \
        if (nb_try_status_ != NB_OK)                                                               \
            return nb_try_status_;                                                                 \
    } while (0)

/* For functions with something to undo: jumps to `done` with `status` set. */
#define NB_TRY_GOTO(status, call)                                                                  \
    do {                                                                                           \
        (status) = (call);                                                                         \
        if ((status) != NB_OK)                                                                     \
            goto done;                                                                             \
    } while (0)

#endif
