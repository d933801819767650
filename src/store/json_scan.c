/* See json_scan.h. */
#include "store/json_scan.h"

/* Length of the well-formed UTF-8 sequence at p; 0 when there is none. */
static size_t utf8_sequence(const uint8_t *p, size_t left)
{
    const uint8_t c = p[0];
    if (c < 0x80)
        return 1;
    size_t n;
    uint8_t lo = 0x80, hi = 0xbf; /* limits of the second byte: Unicode, table 3-7 */
    if (c >= 0xc2 && c <= 0xdf) {
        n = 2;
    } else if (c >= 0xe0 && c <= 0xef) {
        n = 3;
        lo = c == 0xe0 ? 0xa0 : lo;
        hi = c == 0xed ? 0x9f : hi;
    } else if (c >= 0xf0 && c <= 0xf4) {
        n = 4;
        lo = c == 0xf0 ? 0x90 : lo;
        hi = c == 0xf4 ? 0x8f : hi;
    } else {
        return 0;
    }
    if (left < n || p[1] < lo || p[1] > hi)
        return 0;
    for (size_t i = 2; i < n; i++) {
        if ((p[i] & 0xc0) != 0x80)
            return 0;
    }
    return n;
}

bool nb_utf8_valid(const char *text, size_t len)
{
    for (size_t i = 0; i < len;) {
        const size_t n = utf8_sequence((const uint8_t *)text + i, len - i);
        if (n == 0)
            return false;
        i += n;
    }
    return true;
}

static void skip_space(nb_scan *s)
{
    while (s->pos < s->len) {
        const char c = s->text[s->pos];
        if (c != ' ' && c != '\n' && c != '\r' && c != '\t')
            break;
        s->pos++;
    }
}

bool nb_scan_take(nb_scan *s, char c)
{
    skip_space(s);
    if (s->pos == s->len || s->text[s->pos] != c)
        return false;
    s->pos++;
    return true;
}

/* What comes next is not `wanted`. */
static nb_status unexpected(const nb_scan *s, const char *wanted, nb_err *err)
{
    if (s->pos == s->len)
        return nb_fail(err, NB_DATA, "byte %zu: the JSON ends where %s was expected", s->pos,
                       wanted);
    const char c = s->text[s->pos];
    if (c > 0x20 && c < 0x7f)
        return nb_fail(err, NB_DATA, "byte %zu: found '%c', expected %s", s->pos, c, wanted);
    return nb_fail(err, NB_DATA, "byte %zu: found 0x%02x, expected %s", s->pos, (uint8_t)c, wanted);
}

nb_status nb_scan_expect(nb_scan *s, char c, nb_err *err)
{
    if (nb_scan_take(s, c))
        return NB_OK;
    return unexpected(s, (const char[]){'\'', c, '\'', 0}, err);
}

nb_status nb_scan_end(nb_scan *s, nb_err *err)
{
    skip_space(s);
    return s->pos == s->len ? NB_OK : unexpected(s, "the end", err);
}

static nb_status hex4(nb_scan *s, uint32_t *out, nb_err *err)
{
    uint32_t v = 0;
    for (int i = 0; i < 4; i++) {
        const char c = s->pos < s->len ? s->text[s->pos] : 0;
        uint32_t digit;
        if (c >= '0' && c <= '9')
            digit = (uint32_t)(c - '0');
        else if (c >= 'a' && c <= 'f')
            digit = (uint32_t)(c - 'a' + 10);
        else if (c >= 'A' && c <= 'F')
            digit = (uint32_t)(c - 'A' + 10);
        else
            return unexpected(s, "a hexadecimal digit", err);
        v = v << 4 | digit;
        s->pos++;
    }
    *out = v;
    return NB_OK;
}

/* After the backslash and the u: one code point, of one escape or of a pair. */
static nb_status unicode_escape(nb_scan *s, nb_buf *out, nb_err *err)
{
    const size_t at = s->pos;
    uint32_t c, low;
    NB_TRY(hex4(s, &c, err));
    if (c >= 0xd800 && c <= 0xdbff && s->len - s->pos >= 2 && s->text[s->pos] == '\\' &&
        s->text[s->pos + 1] == 'u') {
        s->pos += 2;
        NB_TRY(hex4(s, &low, err));
        if (low < 0xdc00 || low > 0xdfff)
            return nb_fail(err, NB_DATA, "byte %zu: a lone surrogate", at);
        c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
    }
    if (c >= 0xd800 && c <= 0xdfff)
        return nb_fail(err, NB_DATA, "byte %zu: a lone surrogate", at);
    if (c == 0)
        return nb_fail(err, NB_DATA, "byte %zu: a zero inside a string", at);
    uint8_t bytes[4];
    size_t n = 0;
    if (c < 0x80) {
        bytes[n++] = (uint8_t)c;
    } else if (c < 0x800) {
        bytes[n++] = (uint8_t)(0xc0 | c >> 6);
        bytes[n++] = (uint8_t)(0x80 | (c & 0x3f));
    } else if (c < 0x10000) {
        bytes[n++] = (uint8_t)(0xe0 | c >> 12);
        bytes[n++] = (uint8_t)(0x80 | (c >> 6 & 0x3f));
        bytes[n++] = (uint8_t)(0x80 | (c & 0x3f));
    } else {
        bytes[n++] = (uint8_t)(0xf0 | c >> 18);
        bytes[n++] = (uint8_t)(0x80 | (c >> 12 & 0x3f));
        bytes[n++] = (uint8_t)(0x80 | (c >> 6 & 0x3f));
        bytes[n++] = (uint8_t)(0x80 | (c & 0x3f));
    }
    return nb_buf_put(out, bytes, n, err);
}

static nb_status escape(nb_scan *s, nb_buf *out, nb_err *err)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    const char c = s->pos < s->len ? s->text[s->pos] : 0;
    if (c == 'u') {
        s->pos++;
        return unicode_escape(s, out, err);
    }
    for (size_t i = 0; i + 1 < sizeof from; i++) {
        if (c == from[i]) {
            s->pos++;
            return nb_buf_u8(out, (uint8_t)to[i], err);
        }
    }
    return unexpected(s, "an escape", err);
}

nb_status nb_scan_text(nb_scan *s, nb_buf *out, nb_err *err)
{
    out->len = 0;
    if (!nb_scan_take(s, '"'))
        return unexpected(s, "a string", err);
    for (;;) {
        const size_t begin = s->pos;
        while (s->pos < s->len && s->text[s->pos] != '"' && s->text[s->pos] != '\\') {
            const uint8_t *p = (const uint8_t *)s->text + s->pos;
            const size_t n = utf8_sequence(p, s->len - s->pos);
            if (n == 0)
                return nb_fail(err, NB_DATA, "byte %zu: not UTF-8", s->pos);
            if (*p < 0x20)
                return nb_fail(err, NB_DATA, "byte %zu: a control character in a string", s->pos);
            s->pos += n;
        }
        NB_TRY(nb_buf_put(out, s->text + begin, s->pos - begin, err));
        if (s->pos == s->len)
            return unexpected(s, "the end of a string", err);
        if (s->text[s->pos++] == '"')
            break;
        NB_TRY(escape(s, out, err));
    }
    NB_TRY(nb_buf_u8(out, 0, err));
    out->len--;
    return NB_OK;
}

nb_status nb_scan_count(nb_scan *s, int64_t *out, nb_err *err)
{
    skip_space(s);
    const size_t begin = s->pos;
    int64_t v = 0;
    while (s->pos < s->len && s->text[s->pos] >= '0' && s->text[s->pos] <= '9') {
        if (__builtin_mul_overflow(v, 10, &v) ||
            __builtin_add_overflow(v, s->text[s->pos] - '0', &v))
            return nb_fail(err, NB_DATA, "byte %zu: a number above 2^63 - 1", begin);
        s->pos++;
    }
    if (s->pos == begin || (s->text[begin] == '0' && s->pos > begin + 1))
        return unexpected(s, "a whole number", err);
    if (s->pos < s->len) {
        const char c = s->text[s->pos];
        if (c == '.' || c == 'e' || c == 'E')
            return unexpected(s, "a whole number", err);
    }
    *out = v;
    return NB_OK;
}
