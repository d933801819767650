/* See pattern.h. */
#include "quant/recipe/pattern.h"

#include <string.h>

nb_status nb_pattern_check(const char *pattern, nb_err *err)
{
    const size_t n = strlen(pattern);
    bool open = false;
    if (n == 0)
        return nb_fail(err, NB_USAGE, "a pattern of no characters matches nothing");
    if (n > NB_PATTERN_MAX)
        return nb_fail(err, NB_USAGE, "a pattern of %zu characters; at most %d are taken", n,
                       NB_PATTERN_MAX);
    for (const char *c = pattern; *c != 0; c++) {
        if ((unsigned char)*c <= ' ' || *c == 127 || strchr("=\"#", *c) != NULL)
            return nb_fail(err, NB_USAGE, "pattern '%.200s': no name of a tensor has a '%c'",
                           pattern, *c);
        if (open ? *c == '{' : *c == '}')
            return nb_fail(err, NB_USAGE, "pattern '%.200s': a '%c' %s", pattern, *c,
                           open ? "inside braces" : "without the other half");
        open = open ? *c != '}' : *c == '{';
    }
    if (open)
        return nb_fail(err, NB_USAGE, "pattern '%.200s': a '{' without the other half", pattern);
    return NB_OK;
}

bool nb_pattern_is_wild(const char *pattern)
{
    return strpbrk(pattern, "*?{") != NULL;
}

/* The places of a pattern at which a match may stand after some characters of the name: a set of
 * offsets, moved on character by character. Trying one way after the other instead takes time that
 * grows with a power of the number of stars. */
typedef struct {
    const char *pattern;
    bool at[NB_PATTERN_MAX + 1];
} places;

/* Past the closing brace of the braces that `i` is in. */
static size_t after_braces(const char *pattern, size_t i)
{
    while (pattern[i] != '}')
        i++;
    return i + 1;
}

/* Marks all places that are reached from marked ones without a character. Places only lead to later
 * ones, so one pass is enough. */
static void close_over(places *p, size_t n)
{
    bool inside = false;
    for (size_t i = 0; i < n; i++) {
        const char c = p->pattern[i];
        if (p->at[i]) {
            if (c == '*')
                p->at[i + 1] = true;
            if (c == '{') {
                p->at[i + 1] = true; /* and the beginning of every further alternative */
                for (size_t j = i + 1; p->pattern[j] != '}'; j++)
                    p->at[j + 1] = p->at[j + 1] || p->pattern[j] == ',';
            }
            if (inside && (c == ',' || c == '}')) {
                const size_t after = after_braces(p->pattern, i);
                p->at[after] = true;
            }
        }
        inside = inside ? c != '}' : c == '{';
    }
}

bool nb_pattern_matches(const char *pattern, const char *name)
{
    const size_t n = strlen(pattern);
    places now, next;
    if (!nb_pattern_is_wild(pattern))
        return strcmp(pattern, name) == 0;
    now.pattern = next.pattern = pattern;
    memset(now.at, 0, n + 1);
    now.at[0] = true;
    close_over(&now, n);
    for (; *name != 0; name++) {
        bool inside = false, any = false;
        memset(next.at, 0, n + 1);
        for (size_t i = 0; i < n; i++) {
            const char c = pattern[i];
            const bool marks = c == '{' || (inside && (c == ',' || c == '}'));
            if (now.at[i] && !marks && (c == '*' || c == '?' || c == *name)) {
                next.at[c == '*' ? i : i + 1] = true;
                any = true;
            }
            inside = inside ? c != '}' : c == '{';
        }
        if (!any)
            return false;
        close_over(&next, n);
        memcpy(now.at, next.at, n + 1);
    }
    return now.at[n];
}
