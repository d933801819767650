/* See splitregex.h. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "text/splitregex.h"

#include "text/unicode.h"

#include <pcre2.h>
#include <string.h>

#define MAX_PATTERN ((size_t)64 << 10)
#define MAX_DEPTH   64 /* of groups inside groups */

struct nb_splitregex {
    pcre2_code *code;
};

/* ---- translation ---- */

typedef struct {
    const char *p;
    size_t len, pos;
    int depth;
    nb_buf out;
} translation;

/* White_Space spelled out: PCRE2 counts U+180E among \s, Oniguruma does not. */
#define SPACES                                                                                     \
    "\\t-\\r \\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}"       \
    "\\x{3000}"

static nb_status refuse(const translation *t, size_t at, nb_err *err)
{
    const size_t left = t->len - at;
    return nb_fail(err, NB_UNSUPPORTED, "regular expression: '%.*s' at byte %zu is not supported",
                   (int)(left < 12 ? left : 12), t->p + at, at);
}

/* Copies p[pos, end). */
static nb_status copy_to(translation *t, size_t end, nb_err *err)
{
    NB_TRY(nb_buf_put(&t->out, t->p + t->pos, end - t->pos, err));
    t->pos = end;
    return NB_OK;
}

static bool is_hex(char c)
{
    return (c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'f');
}

/* \p{...}, \x{...}: copied with their braces. */
static nb_status braced(translation *t, size_t escape, nb_err *err)
{
    const size_t open = escape + 2;
    if (open >= t->len || t->p[open] != '{')
        return refuse(t, escape, err);
    const char *close = memchr(t->p + open, '}', t->len - open);
    if (close == NULL)
        return refuse(t, escape, err);
    return copy_to(t, (size_t)(close - t->p) + 1, err);
}

/* The escape at pos: those that mean the same in both libraries. */
static nb_status escape(translation *t, bool in_class, nb_err *err)
{
    const size_t at = t->pos;
    if (at + 1 >= t->len)
        return refuse(t, at, err);
    const char c = t->p[at + 1];
    const bool letter = ((c | 0x20) >= 'a' && (c | 0x20) <= 'z') || (c >= '0' && c <= '9');
    if (!letter && (uint8_t)c < 0x80)
        return copy_to(t, at + 2, err); /* escaped punctuation is itself */
    switch (c) {
    case 'n':
    case 'r':
    case 't':
    case 'f':
    case 'd':
    case 'D':
    case 'w':
    case 'W':
        return copy_to(t, at + 2, err);
    case 's':
        t->pos += 2;
        return nb_buf_text(&t->out, in_class ? SPACES : "[" SPACES "]", err);
    case 'S':
        if (in_class)
            return copy_to(t, at + 2, err);
        t->pos += 2;
        return nb_buf_text(&t->out, "[^" SPACES "]", err);
    case 'b':
    case 'B':
    case 'A':
    case 'z':
        return in_class ? refuse(t, at, err) : copy_to(t, at + 2, err);
    case 'p':
    case 'P':
        return braced(t, at, err);
    case 'x':
        if (at + 2 < t->len && t->p[at + 2] == '{')
            return braced(t, at, err);
        if (at + 3 < t->len && is_hex(t->p[at + 2]) && is_hex(t->p[at + 3]) && t->p[at + 2] < '8')
            return copy_to(t, at + 4, err);
        return refuse(t, at, err);
    case 'u':
        if (at + 5 >= t->len)
            return refuse(t, at, err);
        for (size_t i = at + 2; i < at + 6; i++)
            if (!is_hex(t->p[i]))
                return refuse(t, at, err);
        t->pos += 6;
        return nb_buf_format(&t->out, err, "\\x{%.4s}", t->p + at + 2);
    default:
        return refuse(t, at, err);
    }
}

static nb_status class_body(translation *t, nb_err *err)
{
    const size_t open = t->pos;
    size_t first = open + 1; /* where a ] would be an ordinary character */
    if (first < t->len && t->p[first] == '^')
        first++;
    if (first < t->len && t->p[first] == ']')
        return refuse(t, open, err);
    NB_TRY(copy_to(t, first, err));
    while (t->pos < t->len && t->p[t->pos] != ']') {
        const char c = t->p[t->pos];
        /* Nested classes and intersections are Oniguruma's alone. */
        if (c == '[' || (c == '&' && t->pos + 1 < t->len && t->p[t->pos + 1] == '&'))
            return refuse(t, t->pos, err);
        NB_TRY(c == '\\' ? escape(t, true, err) : copy_to(t, t->pos + 1, err));
    }
    return t->pos < t->len ? copy_to(t, t->pos + 1, err) : refuse(t, open, err);
}

/* Groups without names: (, (?:, (?i:, (?-i:, (?>, (?=, (?!, (?<=, (?<!. Everything else, verbs
 * and comments too, is refused. Oniguruma's (?m:) is PCRE2's (?s:), so no other option passes. */
static nb_status open_group(translation *t, nb_err *err)
{
    static const char *const known[] = {
        "(?:", "(?i:", "(?-i:", "(?>", "(?=", "(?!", "(?<=", "(?<!", NULL};
    const char *p = t->p + t->pos;
    const size_t left = t->len - t->pos;
    if (++t->depth > MAX_DEPTH)
        return nb_fail(err, NB_DATA, "regular expression: more than %d nested groups", MAX_DEPTH);
    if (left > 1 && p[1] == '*')
        return refuse(t, t->pos, err);
    if (left < 2 || p[1] != '?')
        return copy_to(t, t->pos + 1, err);
    for (int i = 0; known[i] != NULL; i++) {
        const size_t n = strlen(known[i]);
        if (left >= n && memcmp(p, known[i], n) == 0)
            return copy_to(t, t->pos + n, err);
    }
    return refuse(t, t->pos, err);
}

static nb_status translate(translation *t, nb_err *err)
{
    while (t->pos < t->len) {
        const char c = t->p[t->pos];
        if (c == '\\')
            NB_TRY(escape(t, false, err));
        else if (c == '[')
            NB_TRY(class_body(t, err));
        else if (c == '(')
            NB_TRY(open_group(t, err));
        else {
            t->depth -= c == ')';
            NB_TRY(copy_to(t, t->pos + 1, err));
        }
        /* {2}+ repeats the repetition in Ruby's syntax and is possessive in Perl's. */
        if (c == '}' && t->pos < t->len && t->p[t->pos] == '+')
            return refuse(t, t->pos - 1, err);
    }
    return NB_OK;
}

nb_status nb_splitregex_compile(nb_splitregex **out, const char *pattern, nb_err *err)
{
    *out = NULL;
    translation t = {.p = pattern, .len = strlen(pattern)};
    nb_splitregex *r = NULL;
    nb_status s = NB_OK;
    if (t.len > MAX_PATTERN)
        return nb_fail(err, NB_DATA, "a regular expression of %zu bytes: the limit is %zu", t.len,
                       MAX_PATTERN);
    NB_TRY_GOTO(s, translate(&t, err));
    NB_TRY_GOTO(s, NB_ALLOC(&r, 1, err));
    int code = 0;
    PCRE2_SIZE offset = 0;
    /* Callouts count the steps; optimisations that would work without being counted are off.
     * ^ and $ match at every line in Oniguruma. */
    r->code = pcre2_compile((PCRE2_SPTR)(t.out.len > 0 ? (const char *)t.out.data : ""), t.out.len,
                            PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_AUTO_CALLOUT |
                                PCRE2_NO_AUTO_POSSESS | PCRE2_NO_START_OPTIMIZE |
                                PCRE2_NO_DOTSTAR_ANCHOR | PCRE2_NEVER_BACKSLASH_C,
                            &code, &offset, NULL);
    if (r->code == NULL) {
        char text[128] = "";
        pcre2_get_error_message(code, (PCRE2_UCHAR *)text, sizeof text);
        s = nb_fail(err, NB_DATA, "regular expression '%.80s': %s", pattern, text);
    }
done:
    nb_buf_free(&t.out);
    if (s == NB_OK)
        *out = r;
    else
        nb_splitregex_free(r);
    return s;
}

void nb_splitregex_free(nb_splitregex *r)
{
    if (r == NULL)
        return;
    pcre2_code_free(r->code);
    nb_free(r);
}

/* ---- searching ---- */

/* Memory that matching may take for backtracking, in KiB. */
#define HEAP_LIMIT_KIB (64u << 10)

typedef struct {
    pcre2_match_context *match;
    pcre2_match_data *data;
    int64_t *budget;
    PCRE2_SIZE last_position;
} search_state;

/* Called before every item of the pattern: it costs one step, and one for each byte that the
 * item before it ran over. */
static int count_step(pcre2_callout_block *block, void *context)
{
    search_state *st = context;
    const PCRE2_SIZE at = block->current_position, last = st->last_position;
    st->last_position = at;
    *st->budget -= 1 + (int64_t)(at > last ? at - last : last - at);
    return *st->budget < 0 ? PCRE2_ERROR_CALLOUT : 0;
}

nb_status nb_splitsearch_init(nb_splitsearch *s, const nb_splitregex *regex, const uint8_t *text,
                              size_t len, int64_t *budget, nb_err *err)
{
    *s = (nb_splitsearch){
        .regex = regex, .text = text, .len = len, .last_end = SIZE_MAX, .budget = budget};
    search_state *st;
    NB_TRY(NB_ALLOC(&st, 1, err));
    s->state = st;
    st->budget = budget;
    st->match = pcre2_match_context_create(NULL);
    st->data = pcre2_match_data_create_from_pattern(regex->code, NULL);
    if (st->match == NULL || st->data == NULL) {
        nb_splitsearch_free(s);
        return nb_fail(err, NB_MEMORY, "out of memory for matching a regular expression");
    }
    pcre2_set_callout(st->match, count_step, st);
    pcre2_set_heap_limit(st->match, HEAP_LIMIT_KIB);
    /* Long text is no offence: what one match may do by itself grows with it. */
    const size_t matches = ((size_t)1 << 20) + (len < (size_t)1 << 27 ? len : (size_t)1 << 27) * 16;
    pcre2_set_match_limit(st->match, (uint32_t)matches);
    return NB_OK;
}

void nb_splitsearch_free(nb_splitsearch *s)
{
    search_state *st = s->state;
    if (st != NULL) {
        pcre2_match_data_free(st->data);
        pcre2_match_context_free(st->match);
        nb_free(st);
    }
    *s = (nb_splitsearch){0};
}

nb_status nb_splitsearch_next(nb_splitsearch *s, bool *found, size_t *begin, size_t *end,
                              nb_err *err)
{
    search_state *st = s->state;
    *found = false;
    while (s->from <= s->len) {
        st->last_position = s->from;
        const int n = pcre2_match(s->regex->code, s->text, s->len, s->from, PCRE2_NO_UTF_CHECK,
                                  st->data, st->match);
        if (n == PCRE2_ERROR_NOMATCH)
            return NB_OK;
        if (n < 0) {
            char text[128] = "";
            pcre2_get_error_message(n, (PCRE2_UCHAR *)text, sizeof text);
            return nb_fail(err, n == PCRE2_ERROR_NOMEMORY ? NB_MEMORY : NB_LIMIT,
                           "the pre-tokenizer's regular expression takes too long on this text "
                           "(%s)",
                           n == PCRE2_ERROR_CALLOUT ? "step limit" : text);
        }
        const PCRE2_SIZE *range = pcre2_get_ovector_pointer(st->data);
        /* An empty match right behind the last one is passed over. */
        if (range[0] == range[1] && range[0] == s->last_end) {
            int32_t c;
            s->from += s->from < s->len ? nb_utf8_next(s->text + s->from, s->len - s->from, &c) : 1;
            continue;
        }
        *found = true;
        *begin = range[0];
        *end = range[1];
        s->from = s->last_end = range[1];
        return NB_OK;
    }
    return NB_OK;
}
