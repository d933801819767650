/* nibble: fit a language model into a few bits per weight, measure what that cost, run it.
 *
 * This is the public interface of libnibble. Handles are opaque; every fallible call returns an
 * nb_status and writes one line of explanation into the caller's nb_err. Nothing here prints,
 * exits or aborts because of data. */
#ifndef NIBBLE_H
#define NIBBLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(NIBBLE_SHARED_BUILD)
#define NB_API __attribute__((visibility("default")))
#else
#define NB_API
#endif

#define NIBBLE_VERSION "0.1.0"

/* X(enumerator, short name, exit code of the command-line program) */
#define NB_STATUS_LIST(X)                                                                          \
    X(NB_OK, "ok", 0)                                                                              \
    X(NB_DATA, "bad data", 1)           /* a file or request says something impossible */          \
    X(NB_UNSUPPORTED, "unsupported", 1) /* well formed, but not something nibble does */           \
    X(NB_USAGE, "wrong usage", 2)       /* flags or arguments */                                   \
    X(NB_IO, "i/o failure", 3)          /* open, read, write, rename, network */                   \
    X(NB_MEMORY, "out of memory", 4)                                                               \
    X(NB_LIMIT, "over a limit", 4) /* a stated maximum: context, memory budget */                  \
    X(NB_INTERRUPTED, "interrupted", 5)

typedef enum {
#define X(id, text, exit_code) id,
    NB_STATUS_LIST(X)
#undef X
} nb_status;

/* The message that travels with a status: one line, printable ASCII, already escaped. */
typedef struct {
    nb_status status;
    char text[1000];
} nb_err;

NB_API const char *nb_version(void);
NB_API const char *nb_status_name(nb_status status);

#ifdef __cplusplus
}
#endif
#endif
