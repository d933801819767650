/* Regular expressions of tokenizer.json (Oniguruma's syntax) run by PCRE2 under a budget.
 *
 * A pattern is translated; what the two libraries read differently is refused by name. Every step
 * of matching is counted, so that a catastrophic pattern ends in NB_LIMIT, not in a hang. */
#ifndef NB_TEXT_SPLITREGEX_H
#define NB_TEXT_SPLITREGEX_H

#include "base/bytes.h"

typedef struct nb_splitregex nb_splitregex;

/* NB_UNSUPPORTED: syntax that is not translated. NB_DATA: no regular expression at all. */
nb_status nb_splitregex_compile(nb_splitregex **out, const char *pattern, nb_err *err);
void nb_splitregex_free(nb_splitregex *r); /* NULL is fine */

/* One search through one text; `{0}` is empty. Not shared between threads. */
typedef struct {
    const nb_splitregex *regex;
    const uint8_t *text; /* valid UTF-8 */
    size_t len, from;
    size_t last_end; /* of the last match; SIZE_MAX: none yet */
    int64_t *budget; /* steps left; shared by all searches of one encoding */
    void *state;
} nb_splitsearch;

nb_status nb_splitsearch_init(nb_splitsearch *s, const nb_splitregex *regex, const uint8_t *text,
                              size_t len, int64_t *budget, nb_err *err);
/* The next match, which may be empty: *found is false at the end. */
nb_status nb_splitsearch_next(nb_splitsearch *s, bool *found, size_t *begin, size_t *end,
                              nb_err *err);
void nb_splitsearch_free(nb_splitsearch *s);

#endif
