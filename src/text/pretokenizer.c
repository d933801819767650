/* See pretokenizer.h. pretokenizer_json.c knows how they are written down. */
#include "text/pretokenizer.h"

#include "store/json_scan.h"
#include "text/unicode.h"

#include <assert.h>
#include <string.h>

/* ---- scanning ---- */

/* The class of the character at text[i] and its length; at the end NB_CHAR_OTHER and 0. */
static inline nb_char_class class_at(const uint8_t *text, size_t len, size_t i, size_t *n)
{
    if (i >= len) {
        *n = 0;
        return NB_CHAR_OTHER;
    }
    int32_t c = text[i];
    *n = 1;
    if (c >= 0x80)
        *n = nb_utf8_next(text + i, len - i, &c);
    return nb_char_class_of(c);
}

/* The end of the run of characters of one class that starts at i. */
static size_t run_end(const uint8_t *text, size_t len, size_t i, nb_char_class class)
{
    size_t n;
    while (i < len && class_at(text, len, i, &n) == class)
        i += n;
    return i;
}

/* 's 't 're 've 'm 'll 'd at the start of the text: the length, or 0. Regardless of case, the
 * long s (U+017F) is an s too. */
static size_t contraction(const uint8_t *text, size_t len, bool any_case)
{
    if (len < 2 || text[0] != '\'')
        return 0;
    const uint8_t bit = any_case ? 0x20 : 0;
    const uint8_t a = text[1] | bit, b = len > 2 ? text[2] | bit : 0;
    if (a == 's' || a == 't' || a == 'm' || a == 'd')
        return 2;
    if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l'))
        return 3;
    return any_case && len > 2 && text[1] == 0xc5 && text[2] == 0xbf ? 3 : 0;
}

/* \s+(?!\S)|\s+ on the run of spaces text[0, end): all of it at the end of the text; otherwise
 * its last character is left to what follows, unless it is the only one. */
static size_t spaces(const uint8_t *text, size_t len, size_t end)
{
    if (end == len)
        return end;
    int32_t c;
    const size_t last = nb_utf8_last(text, end, &c);
    return last < end ? end - last : end;
}

/* 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+ */
static size_t next_gpt2(const uint8_t *text, size_t len)
{
    const size_t suffix = contraction(text, len, false);
    if (suffix > 0)
        return suffix;
    size_t n, start = 0;
    nb_char_class class = class_at(text, len, 0, &n);
    if (text[0] == ' ' && len > 1) {
        const nb_char_class after = class_at(text, len, 1, &n);
        if (after != NB_CHAR_SPACE) {
            class = after;
            start = 1;
        }
    }
    const size_t end = run_end(text, len, start, class);
    return class == NB_CHAR_SPACE ? spaces(text, len, end) : end;
}

/* \s*[\r\n]+: the end of the last line break in the run of spaces text[0, end), or 0. */
static size_t last_break(const uint8_t *text, size_t end)
{
    while (end > 0 && text[end - 1] != '\r' && text[end - 1] != '\n')
        end--;
    return end;
}

/* The rest of a run that starts with [^\s\p{L}\p{N}] at i: the run and line breaks behind it. */
static size_t other_end(const uint8_t *text, size_t len, size_t i)
{
    i = run_end(text, len, i, NB_CHAR_OTHER);
    while (i < len && (text[i] == '\r' || text[i] == '\n'))
        i++;
    return i;
}

/* (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,max_digits}|
 *  ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+ */
static size_t next_llama3(const uint8_t *text, size_t len, int max_digits)
{
    const size_t suffix = contraction(text, len, true);
    if (suffix > 0)
        return suffix;
    size_t n, n_after;
    const nb_char_class class = class_at(text, len, 0, &n);
    if (class == NB_CHAR_LETTER)
        return run_end(text, len, n, NB_CHAR_LETTER);
    if (class == NB_CHAR_NUMBER) {
        size_t end = n;
        for (int k = 1; k < max_digits && class_at(text, len, end, &n) == NB_CHAR_NUMBER; k++)
            end += n;
        return end;
    }
    const nb_char_class after = class_at(text, len, n, &n_after);
    if (after == NB_CHAR_LETTER && text[0] != '\r' && text[0] != '\n')
        return run_end(text, len, n, NB_CHAR_LETTER);
    if (class == NB_CHAR_OTHER)
        return other_end(text, len, 0);
    if (text[0] == ' ' && n_after > 0 && after == NB_CHAR_OTHER)
        return other_end(text, len, 1);
    const size_t end = run_end(text, len, 0, NB_CHAR_SPACE);
    const size_t line = last_break(text, end);
    return line > 0 ? line : spaces(text, len, end);
}

static bool numeric_at(const uint8_t *text, size_t len, size_t i, size_t *n)
{
    int32_t c;
    *n = nb_utf8_next(text + i, len - i, &c);
    return nb_char_is_numeric(c);
}

static size_t next_digits(const uint8_t *text, size_t len, bool each)
{
    size_t i, n;
    const bool first = numeric_at(text, len, 0, &i);
    if (first && each)
        return i;
    while (i < len && numeric_at(text, len, i, &n) == first)
        i += n;
    return i;
}

size_t nb_split_next(nb_split_kind kind, const uint8_t *text, size_t len)
{
    switch (kind) {
    case NB_SPLIT_GPT2:
        return next_gpt2(text, len);
    case NB_SPLIT_LLAMA3:
        return next_llama3(text, len, 3);
    case NB_SPLIT_QWEN2:
        return next_llama3(text, len, 1);
    case NB_SPLIT_EACH_DIGIT:
    case NB_SPLIT_DIGIT_RUNS:
        return next_digits(text, len, kind == NB_SPLIT_EACH_DIGIT);
    case NB_SPLIT_REGEX:
    case NB_SPLIT_PREFIX_SPACE:
        break;
    }
    assert(false); /* the others are not scanned */
    return len;
}

/* ---- the steps ---- */

/* Steps of regular expression matching allowed: a first amount, and so many for each byte of text
 * and regular expression. Patterns of real tokenizers need about ten. */
#define BUDGET_FIRST    ((int64_t)1 << 16)
#define BUDGET_PER_BYTE 64

typedef struct {
    const nb_pretokenizer *p;
    nb_piece_fn *piece;
    void *context;
    int64_t budget;
} cutting;

static nb_status cut(cutting *c, int step, const uint8_t *text, size_t len, nb_err *err);

static nb_status cut_prefixed(cutting *c, int step, const uint8_t *text, size_t len, nb_err *err)
{
    if (text[0] == ' ')
        return cut(c, step + 1, text, len, err);
    nb_buf b = {0};
    nb_status s;
    NB_TRY_GOTO(s, nb_buf_reserve(&b, len + 1, err));
    b.data[0] = ' ';
    memcpy(b.data + 1, text, len);
    s = cut(c, step + 1, b.data, len + 1, err);
done:
    nb_buf_free(&b);
    return s;
}

/* For a regular expression, which needs UTF-8: a copy where U+FFFD stands for each byte that is
 * none. Empty when the text is UTF-8 as it is. */
static nb_status replaced(nb_buf *out, const uint8_t *text, size_t len, nb_err *err)
{
    if (nb_utf8_valid((const char *)text, len))
        return NB_OK;
    for (size_t i = 0; i < len;) {
        int32_t c;
        const size_t n = nb_utf8_next(text + i, len - i, &c);
        NB_TRY(c < 0 ? nb_buf_text(out, "\xef\xbf\xbd", err) : nb_buf_put(out, text + i, n, err));
        i += n;
    }
    return NB_OK;
}

/* How many bytes of the text became n bytes of the copy. */
static size_t original_bytes(const uint8_t *text, size_t len, size_t n)
{
    size_t i = 0;
    for (size_t copied = 0; copied < n;) {
        int32_t c;
        const size_t one = nb_utf8_next(text + i, len - i, &c);
        copied += c < 0 ? 3 : one;
        i += one;
    }
    return i;
}

typedef struct {
    cutting *c;
    int step;
    const uint8_t *text; /* what is still to be cut, of the original */
    size_t len;
    bool copied;
} regex_rest;

/* Passes on the next n bytes of the searched text. */
static nb_status pass_on(regex_rest *r, size_t n, nb_err *err)
{
    if (n == 0)
        return NB_OK;
    const size_t here = r->copied ? original_bytes(r->text, r->len, n) : n;
    NB_TRY(cut(r->c, r->step + 1, r->text, here, err));
    r->text += here;
    r->len -= here;
    return NB_OK;
}

static nb_status cut_regex(cutting *c, int step, const uint8_t *text, size_t len, nb_err *err)
{
    nb_buf copy = {0};
    nb_splitsearch search = {0};
    nb_status s;
    NB_TRY_GOTO(s, replaced(&copy, text, len, err));
    const bool copied = copy.len > 0;
    const size_t searched_len = copied ? copy.len : len;
    NB_TRY_GOTO(s, nb_splitsearch_init(&search, c->p->steps[step].regex, copied ? copy.data : text,
                                       searched_len, &c->budget, err));
    regex_rest rest = {c, step, text, len, copied};
    size_t done_to = 0;
    for (;;) {
        bool found;
        size_t begin, end;
        NB_TRY_GOTO(s, nb_splitsearch_next(&search, &found, &begin, &end, err));
        if (!found)
            break;
        NB_TRY_GOTO(s, pass_on(&rest, begin - done_to, err));
        NB_TRY_GOTO(s, pass_on(&rest, end - begin, err));
        done_to = end;
    }
    s = pass_on(&rest, searched_len - done_to, err);
done:
    nb_splitsearch_free(&search);
    nb_buf_free(&copy);
    return s;
}

static nb_status cut(cutting *c, int step, const uint8_t *text, size_t len, nb_err *err)
{
    if (len == 0)
        return NB_OK;
    if (step == c->p->n_steps)
        return c->piece(c->context, text, len, err);
    const nb_split_kind kind = c->p->steps[step].kind;
    if (kind == NB_SPLIT_PREFIX_SPACE)
        return cut_prefixed(c, step, text, len, err);
    if (kind == NB_SPLIT_REGEX)
        return cut_regex(c, step, text, len, err);
    for (size_t i = 0; i < len;) {
        const size_t n = nb_split_next(kind, text + i, len - i);
        NB_TRY(cut(c, step + 1, text + i, n, err));
        i += n;
    }
    return NB_OK;
}

nb_status nb_pretokenize(const nb_pretokenizer *p, const char *text, size_t len, nb_piece_fn *piece,
                         void *context, nb_err *err)
{
    cutting c = {p, piece, context, 0};
    int64_t n_regex = 0;
    for (int i = 0; i < p->n_steps; i++)
        n_regex += p->steps[i].kind == NB_SPLIT_REGEX;
    const int64_t bytes = len > (size_t)1 << 40 ? (int64_t)1 << 40 : (int64_t)len;
    c.budget = BUDGET_FIRST + n_regex * BUDGET_PER_BYTE * bytes;
    return cut(&c, 0, (const uint8_t *)text, len, err);
}
