/* See jinja_lex.h. The rules are those of Jinja 3's lexer with the settings of transformers. */
#include "text/jinja_lex.h"

#include <string.h>

typedef struct {
    const char *s; /* the template, newlines normalised, its single last newline dropped */
    size_t n, pos;
    size_t line_pos; /* `line` counts the newlines before this */
    int32_t line;
    bool line_start; /* what came before `pos` ended with a newline, or is nothing */
    nb_arena *arena;
    nb_buf *tokens;
    nb_err *err;
} lexer;

static int32_t line_at(lexer *x, size_t pos)
{
    for (; x->line_pos < pos; x->line_pos++)
        x->line += x->s[x->line_pos] == '\n';
    return x->line;
}

#define LEX_FAIL(x, ...) (nb_fail((x)->err, NB_DATA, __VA_ARGS__), lex_context(x))

static nb_status lex_context(lexer *x)
{
    return nb_context(x->err, "line %d", line_at(x, x->pos));
}

static nb_status push(lexer *x, nb_jtoken_kind kind, uint16_t op, nb_jspan text)
{
    const nb_jtoken token = {
        .text = text, .line = line_at(x, x->pos), .op = op, .kind = (uint8_t)kind};
    return nb_buf_put(x->tokens, &token, sizeof token, x->err);
}

static bool at(const lexer *x, size_t pos, const char *what)
{
    const size_t n = strlen(what);
    return x->n - pos >= n && memcmp(x->s + pos, what, n) == 0;
}

static size_t skip_space(const lexer *x, size_t pos)
{
    while (pos < x->n) {
        uint32_t cp;
        const size_t len = nb_jtext_decode(x->s + pos, x->n - pos, &cp);
        if (!nb_jtext_is_space(cp))
            break;
        pos += len;
    }
    return pos;
}

/* Text before a tag: "-" strips all white space; a block or comment tag that is first on its line
 * loses the indentation unless it says "+". */
static nb_status push_data(lexer *x, size_t begin, size_t end, char sign, bool may_lstrip)
{
    nb_jspan text = {x->s + begin, end - begin};
    if (sign == '-') {
        text = nb_jtext_strip(text, (nb_jspan){0}, false, true);
    } else if (sign != '+' && may_lstrip) {
        size_t cut = text.n;
        while (cut > 0 && text.p[cut - 1] != '\n') {
            const size_t len = nb_jtext_last(text.p, cut);
            uint32_t cp;
            nb_jtext_decode(text.p + cut - len, len, &cp);
            if (!nb_jtext_is_space(cp))
                break;
            cut -= len;
        }
        if (cut > 0 ? text.p[cut - 1] == '\n' : x->line_start)
            text.n = cut;
    }
    return text.n == 0 ? NB_OK : push(x, NB_JTOK_DATA, 0, text);
}

/* Moves past the end of a tag; true when `mark` ("%}" or "#}") ends here. */
static bool block_end(lexer *x, const char *mark, bool trim_newline)
{
    size_t p = x->pos;
    if (p < x->n && (x->s[p] == '-' || x->s[p] == '+') && at(x, p + 1, mark)) {
        p = x->s[p] == '-' ? skip_space(x, p + 3) : p + 3;
    } else if (at(x, p, mark)) {
        p += 2;
        if (trim_newline && p < x->n && x->s[p] == '\n')
            p++;
    } else {
        return false;
    }
    x->pos = p;
    x->line_start = x->s[p - 1] == '\n';
    return true;
}

static nb_status lex_comment(lexer *x)
{
    for (size_t p = x->pos; p < x->n; p++) {
        const char *hash = memchr(x->s + p, '#', x->n - p);
        if (hash == NULL)
            break;
        p = (size_t)(hash - x->s);
        if (!at(x, p, "#}"))
            continue;
        /* The sign belongs to the end, unless it is the one that the comment began with. */
        const bool sign = p > x->pos && (x->s[p - 1] == '-' || x->s[p - 1] == '+');
        x->pos = sign ? p - 1 : p;
        block_end(x, "#}", true);
        return NB_OK;
    }
    return LEX_FAIL(x, "Missing end of comment tag");
}

/* After "{%" and a sign at x->pos: is this WORD and the end of the block? Moves past it if so. */
static bool word_block(lexer *x, const char *word, bool trim_newline)
{
    const size_t before = x->pos;
    const size_t p = skip_space(x, before);
    if (!at(x, p, word))
        return false;
    x->pos = skip_space(x, p + strlen(word));
    if (block_end(x, "%}", trim_newline))
        return true;
    x->pos = before;
    return false;
}

static char sign_at(const lexer *x, size_t pos)
{
    return pos < x->n && (x->s[pos] == '-' || x->s[pos] == '+') ? x->s[pos] : 0;
}

static nb_status lex_raw(lexer *x)
{
    const size_t begin = x->pos;
    const bool line_start = x->line_start;
    for (size_t p = begin; p < x->n; p++) {
        const char *brace = memchr(x->s + p, '{', x->n - p);
        if (brace == NULL)
            break;
        p = (size_t)(brace - x->s);
        if (!at(x, p, "{%"))
            continue;
        const char sign = sign_at(x, p + 2);
        x->pos = p + 2 + (sign != 0);
        if (word_block(x, "endraw", true)) {
            const bool after = x->line_start;
            x->line_start = line_start;
            const nb_status s = push_data(x, begin, p, sign, true);
            x->line_start = after;
            return s;
        }
    }
    x->pos = begin;
    return LEX_FAIL(x, "Missing end of raw directive");
}

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* One escape of Python's at s[0] == '\\'. Returns the bytes read, 0 if it is malformed. */
static size_t unescape(const char *s, size_t n, char *out, size_t *n_out)
{
    static const char NAMED[] = "\\\\''\"\"a\ab\bf\fn\nr\rt\tv\v";
    *n_out = 0;
    if (s[1] == '\n') /* a line continued */
        return 2;
    for (size_t i = 0; NAMED[i] != 0; i += 2)
        if (s[1] == NAMED[i]) {
            out[(*n_out)++] = NAMED[i + 1];
            return 2;
        }
    size_t digits = s[1] == 'x' ? 2 : s[1] == 'u' ? 4 : s[1] == 'U' ? 8 : 0;
    uint32_t cp = 0;
    if (digits > 0) {
        if (n < 2 + digits)
            return 0;
        for (size_t i = 0; i < digits; i++) {
            const int v = hex_value(s[2 + i]);
            if (v < 0 || cp > 0x10FFFFF)
                return 0;
            cp = cp << 4 | (uint32_t)v;
        }
        if (cp > 0x10FFFF)
            return 0;
        *n_out = nb_jtext_encode(cp, out);
        return 2 + digits;
    }
    while (digits < 3 && 1 + digits < n && s[1 + digits] >= '0' && s[1 + digits] <= '7')
        cp = cp << 3 | (uint32_t)(s[1 + digits++] - '0');
    if (digits > 0) {
        *n_out = nb_jtext_encode(cp, out);
        return 1 + digits;
    }
    if (s[1] == 'N')
        return 0;           /* names of characters are not known here */
    out[(*n_out)++] = '\\'; /* an unknown escape stays as it is */
    return 1;
}

static nb_status lex_text(lexer *x)
{
    const char quote = x->s[x->pos];
    const size_t begin = x->pos + 1;
    size_t end = begin;
    bool escaped = false;
    for (; end < x->n && x->s[end] != quote; end++)
        if (x->s[end] == '\\') {
            escaped = true;
            end++;
        }
    if (end >= x->n)
        return LEX_FAIL(x, "unexpected char '%c': the string does not end", quote);
    nb_jspan text = {x->s + begin, end - begin};
    if (escaped) {
        /* No escape grows: the longest is \U with 8 digits, for 4 bytes. An octal one of a
         * high character is 4 characters for 2 bytes. */
        char *out;
        NB_TRY(nb_arena_text(x->arena, &out, text.p, text.n, x->err));
        size_t n = 0;
        for (size_t i = 0; i < text.n;) {
            if (text.p[i] != '\\') {
                out[n++] = text.p[i++];
                continue;
            }
            size_t wrote;
            char piece[4];
            const size_t read = unescape(text.p + i, text.n - i, piece, &wrote);
            if (read == 0)
                return LEX_FAIL(x, "a string has an escape that means nothing");
            memcpy(out + n, piece, wrote);
            n += wrote;
            i += read;
        }
        text = (nb_jspan){out, n};
    }
    NB_TRY(push(x, NB_JTOK_TEXT, 0, text));
    x->pos = end + 1;
    return NB_OK;
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool is_name(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || is_digit(c) || c == '_' ||
           (unsigned char)c >= 0x80;
}

/* The end of digits that single underscores may separate; `pos` itself if there are none. */
static size_t digits_end(const lexer *x, size_t pos, int base)
{
    size_t p = pos;
    for (; p < x->n; p++) {
        const size_t q = p > pos && x->s[p] == '_' ? p + 1 : p;
        const int v = q < x->n ? hex_value(x->s[q]) : -1;
        if (v < 0 || v >= base)
            break;
        p = q;
    }
    return p;
}

static nb_status lex_number(lexer *x)
{
    const size_t begin = x->pos;
    size_t end;
    nb_jtoken_kind kind = NB_JTOK_INT;
    const char second = begin + 1 < x->n ? (char)(x->s[begin + 1] | 0x20) : 0;
    const int base = second == 'x' ? 16 : second == 'o' ? 8 : second == 'b' ? 2 : 10;
    if (x->s[begin] == '0' && base != 10) {
        const size_t from = begin + 2 + (begin + 2 < x->n && x->s[begin + 2] == '_');
        end = digits_end(x, from, base);
        if (end == from)
            return LEX_FAIL(x, "a number without digits");
    } else {
        end = digits_end(x, begin, 10);
        const bool after_dot = begin > 0 && x->s[begin - 1] == '.';
        if (!after_dot && end < x->n && x->s[end] == '.' && digits_end(x, end + 1, 10) > end + 1) {
            end = digits_end(x, end + 1, 10);
            kind = NB_JTOK_FLOAT;
        }
        if (!after_dot && end < x->n && (x->s[end] == 'e' || x->s[end] == 'E')) {
            size_t p = end + 1;
            p += p < x->n && (x->s[p] == '+' || x->s[p] == '-');
            if (digits_end(x, p, 10) > p) {
                end = digits_end(x, p, 10);
                kind = NB_JTOK_FLOAT;
            }
        }
    }
    NB_TRY(push(x, kind, 0, (nb_jspan){x->s + begin, end - begin}));
    x->pos = end;
    return NB_OK;
}

/* An operator, and the brackets that are open after it: "}}" inside braces ends no tag. */
static nb_status lex_operator(lexer *x, int64_t *open)
{
    static const char TWO[][3] = {"//", "**", "==", "!=", ">=", "<="};
    const char c = x->s[x->pos];
    for (size_t i = 0; i < sizeof TWO / sizeof TWO[0]; i++)
        if (at(x, x->pos, TWO[i])) {
            NB_TRY(
                push(x, NB_JTOK_OP, NB_JOP2(TWO[i][0], TWO[i][1]), (nb_jspan){x->s + x->pos, 2}));
            x->pos += 2;
            return NB_OK;
        }
    if (c == 0 || strchr("+-/*%~[](){}><=.:|,;", c) == NULL)
        return LEX_FAIL(x, "unexpected char '%c'", c);
    if (strchr("([{", c) != NULL)
        ++*open;
    if (strchr(")]}", c) != NULL && --*open < 0)
        return LEX_FAIL(x, "unexpected '%c'", c);
    NB_TRY(push(x, NB_JTOK_OP, NB_JOP1(c), (nb_jspan){x->s + x->pos, 1}));
    x->pos++;
    return NB_OK;
}

static bool print_end(lexer *x)
{
    if (at(x, x->pos, "-}}"))
        x->pos = skip_space(x, x->pos + 3);
    else if (at(x, x->pos, "}}"))
        x->pos += 2;
    else
        return false;
    x->line_start = x->s[x->pos - 1] == '\n';
    return true;
}

static nb_status lex_tag(lexer *x, bool block)
{
    int64_t open = 0;
    while (x->pos < x->n) {
        const size_t before = x->pos;
        if (open == 0 && (block ? block_end(x, "%}", true) : print_end(x))) {
            const size_t after = x->pos;
            x->pos = before;
            const nb_jtoken_kind kind = block ? NB_JTOK_BLOCK_END : NB_JTOK_PRINT_END;
            const nb_status s = push(x, kind, 0, (nb_jspan){0});
            x->pos = after;
            return s;
        }
        x->pos = skip_space(x, x->pos);
        if (x->pos > before)
            continue;
        const char c = x->s[x->pos];
        if (is_digit(c)) {
            NB_TRY(lex_number(x));
        } else if (is_name(c)) {
            size_t end = x->pos;
            while (end < x->n && is_name(x->s[end]))
                end++;
            NB_TRY(push(x, NB_JTOK_NAME, 0, (nb_jspan){x->s + x->pos, end - x->pos}));
            x->pos = end;
        } else if (c == '\'' || c == '"') {
            NB_TRY(lex_text(x));
        } else {
            NB_TRY(lex_operator(x, &open));
        }
    }
    return NB_OK; /* the parser says what is missing */
}

/* Newlines become "\n", and a single one at the end is dropped. */
static nb_status normalise(lexer *x, const char *text, size_t len)
{
    char *s;
    NB_TRY(nb_arena_text(x->arena, &s, text, len, x->err));
    size_t n = 0;
    for (size_t i = 0; i < len; i++) {
        if (text[i] == '\r' && i + 1 < len && text[i + 1] == '\n')
            continue;
        s[n++] = text[i] == '\r' ? '\n' : text[i];
    }
    if (n > 0 && s[n - 1] == '\n')
        n--;
    x->s = s;
    x->n = n;
    return NB_OK;
}

nb_status nb_jinja_lex(const char *text, size_t len, nb_arena *arena, nb_buf *tokens, nb_err *err)
{
    lexer x = {.line = 1, .line_start = true, .arena = arena, .tokens = tokens, .err = err};
    NB_TRY(normalise(&x, text, len));
    while (x.pos < x.n) {
        const size_t begin = x.pos;
        size_t tag = begin;
        while (tag < x.n && !at(&x, tag, "{%") && !at(&x, tag, "{{") && !at(&x, tag, "{#"))
            tag++;
        if (tag == x.n) {
            NB_TRY(push(&x, NB_JTOK_DATA, 0, (nb_jspan){x.s + begin, tag - begin}));
            x.pos = tag;
            break;
        }
        const char kind = x.s[tag + 1], sign = sign_at(&x, tag + 2);
        NB_TRY(push_data(&x, begin, tag, sign, kind != '{'));
        x.pos = tag + 2 + (sign != 0);
        x.line_start = false;
        if (kind == '#') {
            NB_TRY(lex_comment(&x));
        } else if (kind == '%' && word_block(&x, "raw", false)) {
            NB_TRY(lex_raw(&x));
        } else {
            const bool block = kind == '%';
            NB_TRY(push(&x, block ? NB_JTOK_BLOCK_BEGIN : NB_JTOK_PRINT_BEGIN, 0, (nb_jspan){0}));
            NB_TRY(lex_tag(&x, block));
        }
    }
    return push(&x, NB_JTOK_END, 0, (nb_jspan){0});
}
