/* Patterns over names, as shells have them for files:
 *
 *   *        any run of characters, dots among them, also none
 *   ?        one character
 *   {a,b,c}  one of these; they may be empty and hold * and ?, but no further braces
 *
 * Everything else stands for itself. */
#ifndef NB_QUANT_RECIPE_PATTERN_H
#define NB_QUANT_RECIPE_PATTERN_H

#include "base/status.h"

#define NB_PATTERN_MAX 4096 /* characters of a pattern */

/* NB_USAGE says what is wrong: a brace without its other half, a brace inside braces, no character
 * at all, one that no name has (blanks, '=', '"', '#', control characters), or too many of them. */
nb_status nb_pattern_check(const char *pattern, nb_err *err);
/* Whether the pattern, which has been checked, covers the whole name. Takes time in proportion to
 * the product of their lengths. */
bool nb_pattern_matches(const char *pattern, const char *name);
/* Whether it has characters that do not stand for themselves. */
bool nb_pattern_is_wild(const char *pattern);

#endif
