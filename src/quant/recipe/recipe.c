/* See recipe.h. */
#include "quant/recipe/recipe.h"

#include "quant/recipe/pattern.h"
#include "quant/weight/roles.h"

#include <stdio.h>
#include <string.h>

void nb_recipe_free(nb_recipe *r)
{
    nb_free(r->rule);
    nb_arena_free(&r->arena);
    *r = (nb_recipe){0};
}

/* ---- adding ---- */

/* Recipes of thousands of rules have a handful of schemes and methods: one of each is kept. */
static nb_status share_scheme(nb_recipe *r, const nb_scheme *scheme, const nb_scheme **out,
                              nb_err *err)
{
    nb_scheme *copy;
    for (int64_t i = r->n - 1; i >= 0; i--) {
        *out = r->rule[i].scheme;
        if (*out != NULL && strcmp((*out)->name, scheme->name) == 0)
            return NB_OK;
    }
    NB_TRY(NB_ARENA_ALLOC(&r->arena, &copy, 1, err));
    *copy = *scheme;
    *out = copy;
    return NB_OK;
}

static nb_status share_method(nb_recipe *r, const nb_method *method, const nb_method **out,
                              nb_err *err)
{
    nb_method *copy;
    for (int64_t i = r->n - 1; i >= 0; i--) {
        *out = r->rule[i].method;
        if (*out != NULL && nb_method_same(*out, method))
            return NB_OK;
    }
    NB_TRY(NB_ARENA_ALLOC(&r->arena, &copy, 1, err));
    *copy = *method;
    *out = copy;
    return NB_OK;
}

static nb_status check_reason(const char *because, nb_err *err)
{
    const size_t n = strlen(because);
    if (n > NB_RECIPE_MAX_REASON)
        return nb_fail(err, NB_USAGE, "a reason of %zu characters; at most %d are taken", n,
                       NB_RECIPE_MAX_REASON);
    for (const char *c = because; *c != 0; c++) {
        if ((unsigned char)*c < ' ' || *c == 127)
            return nb_fail(err, NB_USAGE,
                           "a reason is one line of text, and has a control character");
    }
    return NB_OK;
}

static nb_status more_room(nb_recipe *r, nb_err *err)
{
    nb_rule *more;
    const int64_t cap = r->cap == 0 ? 16 : 2 * r->cap;
    if (r->n == NB_RECIPE_MAX_RULES)
        return nb_fail(err, NB_LIMIT, "a recipe has at most %d rules", NB_RECIPE_MAX_RULES);
    NB_TRY(NB_ALLOC(&more, cap, err));
    if (r->n > 0)
        memcpy(more, r->rule, (size_t)r->n * sizeof *more);
    nb_free(r->rule);
    r->rule = more;
    r->cap = cap;
    return NB_OK;
}

nb_status nb_recipe_add(nb_recipe *r, const char *pattern, const nb_scheme *scheme,
                        const nb_method *method, const char *because, nb_err *err)
{
    nb_rule rule = {0};
    char *text;
    NB_TRY(nb_pattern_check(pattern, err));
    if (because != NULL)
        NB_TRY(check_reason(because, err));
    if (r->n == r->cap)
        NB_TRY(more_room(r, err));
    NB_TRY(nb_arena_text(&r->arena, &text, pattern, strlen(pattern), err));
    rule.pattern = text;
    if (because != NULL) {
        NB_TRY(nb_arena_text(&r->arena, &text, because, strlen(because), err));
        rule.because = text;
    }
    if (scheme != NULL) {
        NB_TRY(share_scheme(r, scheme, &rule.scheme, err));
        NB_TRY(share_method(r, method, &rule.method, err));
    }
    r->rule[r->n++] = rule;
    return NB_OK;
}

/* ---- reading ---- */

/* A line as words: what blanks separate, and '=' by itself. */
typedef struct {
    const char *at;
} words;

static bool is_blank(char c)
{
    return c == ' ' || c == '\t';
}

static void skip_blanks(words *w)
{
    while (is_blank(*w->at))
        w->at++;
}

static bool at_end(words *w)
{
    skip_blanks(w);
    return *w->at == 0 || *w->at == '#';
}

/* Copies the next word into out[size]. A scheme or a method may hold '=', a pattern may not. */
static nb_status next_word(words *w, const char *what, bool stops_at_equals, char *out, size_t size,
                           nb_err *err)
{
    size_t n = 0;
    if (at_end(w))
        return nb_fail(err, NB_USAGE, "the line ends where %s should be", what);
    while (w->at[n] != 0 && !is_blank(w->at[n]) && !(stops_at_equals && w->at[n] == '='))
        n++;
    if (n >= size)
        return nb_fail(err, NB_USAGE, "%s of %zu characters; at most %zu are taken", what, n,
                       size - 1);
    memcpy(out, w->at, n);
    out[n] = 0;
    w->at += n;
    return NB_OK;
}

/* A text in double quotes; \" and \\ stand for themselves. */
static nb_status next_quoted(words *w, char *out, size_t size, nb_err *err)
{
    size_t n = 0;
    skip_blanks(w);
    if (*w->at != '"')
        return nb_fail(err, NB_USAGE, "after 'because' comes a reason in double quotes");
    for (w->at++; *w->at != '"'; w->at++) {
        if (*w->at == '\\' && (w->at[1] == '"' || w->at[1] == '\\'))
            w->at++;
        if (*w->at == 0)
            return nb_fail(err, NB_USAGE, "a reason without its second quote");
        if (n + 1 >= size)
            return nb_fail(err, NB_USAGE, "a reason has at most %d characters",
                           NB_RECIPE_MAX_REASON);
        out[n++] = *w->at;
    }
    w->at++;
    out[n] = 0;
    return NB_OK;
}

/* What follows the scheme, in any number of each kind but once. */
static nb_status read_rest(words *w, bool keep, nb_method *method, char *reason, size_t size,
                           bool *has_reason, nb_err *err)
{
    bool has_method = false;
    char word[512];
    *has_reason = false;
    while (!at_end(w)) {
        NB_TRY(next_word(w, "a word", false, word, sizeof word, err));
        if (strcmp(word, "because") == 0 && !*has_reason) {
            NB_TRY(next_quoted(w, reason, size, err));
            *has_reason = true;
        } else if (strcmp(word, "method") == 0 && !has_method && !*has_reason) {
            if (keep)
                return nb_fail(err, NB_USAGE, "what is kept has no method");
            NB_TRY(next_word(w, "a method", false, word, sizeof word, err));
            NB_TRY(nb_method_parse(method, word, err));
            has_method = true;
        } else {
            return nb_fail(err, NB_USAGE,
                           "'%.60s' is one too many: PATTERN = SCHEME [method METHOD] [because "
                           "\"REASON\"], or PATTERN = keep [because \"REASON\"]",
                           word);
        }
    }
    return NB_OK;
}

static nb_status read_rule(nb_recipe *r, const char *line, const nb_method *method, nb_err *err)
{
    words w = {line};
    char pattern[NB_PATTERN_MAX + 1], word[512], reason[NB_RECIPE_MAX_REASON + 1];
    nb_scheme scheme = {0};
    nb_method own = *method;
    bool has_reason;
    NB_TRY(next_word(&w, "a pattern", true, pattern, sizeof pattern, err));
    skip_blanks(&w);
    if (*w.at != '=')
        return nb_fail(err, NB_USAGE, "after the pattern '%.200s' comes '= SCHEME' or '= keep'",
                       pattern);
    w.at++;
    NB_TRY(next_word(&w, "a scheme", false, word, sizeof word, err));
    const bool keep = strcmp(word, "keep") == 0;
    if (!keep)
        NB_TRY(nb_scheme_parse(&scheme, word, err));
    NB_TRY(read_rest(&w, keep, &own, reason, sizeof reason, &has_reason, err));
    return nb_recipe_add(r, pattern, keep ? NULL : &scheme, keep ? NULL : &own,
                         has_reason ? reason : NULL, err);
}

#define MAX_LINE ((size_t)8192)

static nb_status read_line(nb_recipe *r, const char *text, size_t len, const nb_method *method,
                           nb_err *err)
{
    char line[MAX_LINE + 1];
    if (len > 0 && text[len - 1] == '\r')
        len--;
    if (len > MAX_LINE)
        return nb_fail(err, NB_USAGE, "a line of %zu bytes; at most %zu are taken", len, MAX_LINE);
    if (memchr(text, 0, len) != NULL)
        return nb_fail(err, NB_USAGE, "a zero byte: recipes are text");
    memcpy(line, text, len);
    line[len] = 0;
    words w = {line};
    return at_end(&w) ? NB_OK : read_rule(r, line, method, err);
}

static nb_status read_lines(nb_recipe *r, const char *text, size_t len, const nb_method *method,
                            nb_err *err)
{
    int64_t number = 0;
    for (size_t at = 0; at < len;) {
        const char *end = memchr(text + at, '\n', len - at);
        const size_t n = end == NULL ? len - at : (size_t)(end - text) - at;
        const int64_t before = r->n;
        number++;
        if (read_line(r, text + at, n, method, err) != NB_OK)
            return nb_context(err, "%s:%lld", r->name, (long long)number);
        if (r->n > before)
            r->rule[before].line = number;
        at += n + 1;
    }
    if (r->n == 0)
        return nb_fail(err, NB_USAGE, "%s: a recipe without a rule", r->name);
    return NB_OK;
}

nb_status nb_recipe_parse(nb_recipe *r, const char *text, size_t len, const char *name,
                          const nb_method *method, nb_err *err)
{
    char *copy = NULL;
    *r = (nb_recipe){0};
    nb_status s = nb_arena_text(&r->arena, &copy, name, strlen(name), err);
    r->name = copy;
    const size_t mark = len >= 3 && memcmp(text, "\xEF\xBB\xBF", 3) == 0 ? 3 : 0;
    if (s == NB_OK)
        s = read_lines(r, text + mark, len - mark, method, err);
    if (s != NB_OK)
        nb_recipe_free(r);
    return s;
}

/* ---- printing ---- */

static nb_status print_reason(const char *because, nb_buf *out, nb_err *err)
{
    NB_TRY(nb_buf_text(out, " because \"", err));
    for (const char *c = because; *c != 0; c++) {
        if (*c == '"' || *c == '\\')
            NB_TRY(nb_buf_u8(out, '\\', err));
        NB_TRY(nb_buf_put(out, c, 1, err));
    }
    return nb_buf_u8(out, '"', err);
}

nb_status nb_recipe_print(const nb_recipe *r, nb_buf *out, nb_err *err)
{
    for (int64_t i = 0; i < r->n; i++) {
        const nb_rule *rule = &r->rule[i];
        NB_TRY(nb_buf_format(out, err, "%s = %s", rule->pattern,
                             rule->scheme != NULL ? rule->scheme->name : "keep"));
        if (rule->method != NULL) {
            NB_TRY(nb_buf_text(out, " method ", err));
            NB_TRY(nb_method_spell(rule->method, out, err));
        }
        if (rule->because != NULL)
            NB_TRY(print_reason(rule->because, out, err));
        NB_TRY(nb_buf_u8(out, '\n', err));
    }
    return NB_OK;
}

/* ---- what rules are about ---- */

/* The name that patterns see; false where there is no such weight for rules. */
static bool name_of(const nb_weight *w, char *out, size_t size)
{
    static const char end[] = ".weight";
    const size_t n = strlen(w->name), n_end = sizeof end - 1;
    if (n <= n_end || n - n_end >= size || strcmp(w->name + n - n_end, end) != 0)
        return false;
    memcpy(out, w->name, n - n_end);
    out[n - n_end] = 0;
    return true;
}

static bool decides(const nb_rule *rule, const char *name, nb_role role)
{
    const bool named = role == NB_ROLE_EMBED || role == NB_ROLE_HEAD;
    if (role != NB_ROLE_LINEAR && !named)
        return false;
    return named ? strcmp(rule->pattern, name) == 0 : nb_pattern_matches(rule->pattern, name);
}

#define MAX_NAME 512

const nb_rule *nb_recipe_find(const nb_recipe *r, const nb_weight *w)
{
    char name[MAX_NAME];
    const nb_role role = nb_role_of(w);
    if (!name_of(w, name, sizeof name))
        return NULL;
    for (int64_t i = r->n - 1; i >= 0; i--) {
        if (decides(&r->rule[i], name, role))
            return &r->rule[i];
    }
    return NULL;
}

const nb_rule *nb_recipe_main(const nb_recipe *r)
{
    for (int64_t i = 0; i < r->n; i++) {
        if (r->rule[i].scheme != NULL)
            return &r->rule[i];
    }
    return NULL;
}

nb_status nb_rule_context(const nb_recipe *r, const nb_rule *rule, nb_err *err)
{
    if (rule->line > 0)
        return nb_context(err, "%s:%lld", r->name, (long long)rule->line);
    return err->status;
}

nb_status nb_recipe_check_container(const nb_recipe *r, nb_store_kind kind, nb_err *err)
{
    const nb_rule *main_rule = nb_recipe_main(r);
    if (main_rule == NULL)
        return nb_fail(err, NB_USAGE,
                       "%s: the recipe keeps everything as it is: nibble convert does that",
                       r->name != NULL ? r->name : "");
    for (int64_t i = 0; i < r->n; i++) {
        const nb_rule *rule = &r->rule[i];
        if (rule->scheme == NULL)
            continue;
        if (rule->scheme->container != main_rule->scheme->container) {
            nb_fail(err, NB_USAGE,
                    "scheme %s is for %s, and %s before it for %s: one output cannot be both",
                    rule->scheme->name, nb_container_name(rule->scheme->container),
                    main_rule->scheme->name, nb_container_name(main_rule->scheme->container));
            return nb_rule_context(r, rule, err);
        }
        if (nb_scheme_check_container(rule->scheme, kind, err) != NB_OK)
            return nb_rule_context(r, rule, err);
    }
    return NB_OK;
}

nb_status nb_recipe_check_matches(const nb_recipe *r, const nb_store *store, nb_err *err)
{
    char name[MAX_NAME];
    for (int64_t i = 0; i < r->n; i++) {
        bool any = false;
        for (int64_t j = 0; j < nb_store_n_weights(store) && !any; j++) {
            const nb_weight *w = nb_store_weight(store, j);
            any = name_of(w, name, sizeof name) && decides(&r->rule[i], name, nb_role_of(w));
        }
        if (any)
            continue;
        nb_fail(err, NB_USAGE,
                "'%.200s' matches no linear layer of a block of %s, nor is it its embedding or "
                "head",
                r->rule[i].pattern, nb_store_path(store));
        return nb_rule_context(r, &r->rule[i], err);
    }
    return NB_OK;
}
