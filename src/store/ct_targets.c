/* See ct_targets.h. */
#include "store/ct_targets.h"

#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

/* Regular expressions come from the file. A match stops after so many steps, which is fewer the
 * more matches there are, so that a folder cannot keep us busy. */
#define MAX_PATTERN_BYTES 4096
#define MAX_MATCHES       1000000
#define MAX_STEPS         100000000
#define MIN_STEPS         1000
#define MAX_HEAP_KIB      4096

struct nb_ct_regex {
    const char *pattern;
    int64_t value;
    pcre2_code *code;
    pcre2_match_data *data;
    pcre2_match_context *limits;
};

/* ---- regular expressions ---- */

static nb_status compile_regex(nb_ct_regex *regex, uint32_t max_steps, nb_err *err)
{
    if (strlen(regex->pattern) > MAX_PATTERN_BYTES)
        return nb_fail(err, NB_UNSUPPORTED, "a regular expression of more than %d bytes",
                       MAX_PATTERN_BYTES);
    int code;
    PCRE2_SIZE at;
    /* Python's re.match: anchored at the start, free at the end. */
    regex->code =
        pcre2_compile((PCRE2_SPTR)regex->pattern, PCRE2_ZERO_TERMINATED,
                      PCRE2_ANCHORED | PCRE2_UTF | PCRE2_NEVER_BACKSLASH_C, &code, &at, NULL);
    if (regex->code == NULL) {
        PCRE2_UCHAR text[128];
        pcre2_get_error_message(code, text, sizeof text);
        return nb_fail(err, code == PCRE2_ERROR_HEAP_FAILED ? NB_MEMORY : NB_DATA,
                       "regular expression '%.200s': %s at byte %zu", regex->pattern,
                       (const char *)text, (size_t)at);
    }
    regex->data = pcre2_match_data_create_from_pattern(regex->code, NULL);
    regex->limits = pcre2_match_context_create(NULL);
    if (regex->data == NULL || regex->limits == NULL)
        return nb_fail(err, NB_MEMORY, "out of memory: a regular expression");
    pcre2_set_match_limit(regex->limits, max_steps);
    pcre2_set_depth_limit(regex->limits, max_steps);
    pcre2_set_heap_limit(regex->limits, MAX_HEAP_KIB);
    return NB_OK;
}

static nb_status regex_matches(const nb_ct_regex *regex, const char *module, bool *out, nb_err *err)
{
    const int n = pcre2_match(regex->code, (PCRE2_SPTR)module, strlen(module), 0, 0, regex->data,
                              regex->limits);
    *out = n >= 0;
    if (n >= 0 || n == PCRE2_ERROR_NOMATCH)
        return NB_OK;
    PCRE2_UCHAR text[128];
    pcre2_get_error_message(n, text, sizeof text);
    return nb_fail(err, n == PCRE2_ERROR_NOMEMORY ? NB_MEMORY : NB_DATA,
                   "regular expression '%.200s' on '%.200s': %s", regex->pattern, module,
                   (const char *)text);
}

/* ---- lists ---- */

/* How many strings of a list (NULL: none) are regular expressions, how many are not. */
nb_status nb_ct_targets_count(const json_t *list, int64_t *n_names, int64_t *n_regexes, nb_err *err)
{
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *text = json_string_value(json_array_get(list, i));
        if (text == NULL)
            return nb_fail(err, NB_DATA, "entry %zu is not a string", i);
        *(strncmp(text, "re:", 3) == 0 ? n_regexes : n_names) += 1;
    }
    return NB_OK;
}

/* Adds the strings of a list, which stand for `value`. Room was made for them. */
nb_status nb_ct_targets_add(nb_ct_targets *t, nb_arena *arena, const json_t *list, int64_t value,
                            nb_err *err)
{
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *text = json_string_value(json_array_get(list, i));
        if (strcmp(text, "Linear") == 0 && t->linear < 0)
            t->linear = value;
        char *copy;
        NB_TRY(nb_arena_text(arena, &copy, text, strlen(text), err));
        if (strncmp(copy, "re:", 3) == 0)
            t->regexes[t->n_regexes++] = (nb_ct_regex){.pattern = copy + 3, .value = value};
        else
            t->names[t->n_names++] = (nb_name){.name = copy, .value = value};
    }
    return NB_OK;
}

nb_status nb_ct_targets_alloc(nb_ct_targets *t, nb_arena *arena, int64_t n_names, int64_t n_regexes,
                              nb_err *err)
{
    *t = (nb_ct_targets){.linear = -1};
    NB_TRY(NB_ARENA_ALLOC(arena, &t->names, n_names, err));
    return NB_ARENA_ALLOC(arena, &t->regexes, n_regexes, err);
}

nb_status nb_ct_targets_finish(nb_ct_targets *t, uint32_t max_steps, nb_err *err)
{
    nb_names_sort(t->names, t->n_names);
    for (int64_t i = 0; i < t->n_regexes; i++)
        NB_TRY(compile_regex(&t->regexes[i], max_steps, err));
    return NB_OK;
}

/* The first value whose target matches; -1: none. */
nb_status nb_ct_targets_find(const nb_ct_targets *t, const char *module, int64_t *out, nb_err *err)
{
    const nb_name *exact = nb_names_find(t->names, t->n_names, module);
    *out = exact != NULL ? exact->value : -1;
    for (int64_t i = 0; i < t->n_regexes && *out < 0; i++) {
        bool matches;
        NB_TRY(regex_matches(&t->regexes[i], module, &matches, err));
        if (matches)
            *out = t->regexes[i].value;
    }
    if (*out < 0 && !nb_ct_is_embedding(module, strlen(module)))
        *out = t->linear;
    return NB_OK;
}

void nb_ct_targets_free(nb_ct_targets *t)
{
    for (int64_t i = 0; i < t->n_regexes; i++) {
        pcre2_code_free(t->regexes[i].code);
        pcre2_match_data_free(t->regexes[i].data);
        pcre2_match_context_free(t->regexes[i].limits);
    }
    t->n_regexes = 0;
}

bool nb_ct_is_embedding(const char *module, size_t len)
{
    static const char *const names[] = {"wte", "wpe", "tok_embeddings", "word_embeddings"};
    size_t begin = len;
    while (begin > 0 && module[begin - 1] != '.')
        begin--;
    const char *last = module + begin;
    const size_t n = len - begin;
    if (n >= 5 && memcmp(last, "embed", 5) == 0)
        return true;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (n == strlen(names[i]) && memcmp(last, names[i], n) == 0)
            return true;
    }
    return false;
}

/* The steps one match may take, when every module may meet every expression. */
nb_status nb_ct_targets_steps(int64_t n_regexes, int64_t n_modules, uint32_t *steps, nb_err *err)
{
    *steps = MAX_STEPS;
    if (n_regexes == 0 || n_modules == 0)
        return NB_OK;
    if (n_regexes > MAX_MATCHES / n_modules)
        return nb_fail(err, NB_UNSUPPORTED,
                       "%lld regular expressions for %lld tensors are too many",
                       (long long)n_regexes, (long long)n_modules);
    const int64_t share = MAX_STEPS / (n_regexes * n_modules);
    *steps = share < MIN_STEPS ? MIN_STEPS : (uint32_t)share;
    return NB_OK;
}
