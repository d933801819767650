/* See jinja_text.h. */
#define _GNU_SOURCE
#include "text/jinja_text.h"

#include <string.h>
#include <utf8proc.h>

bool nb_jspan_equal(nb_jspan a, nb_jspan b)
{
    return a.n == b.n && (a.n == 0 || memcmp(a.p, b.p, a.n) == 0);
}

size_t nb_jtext_decode(const char *s, size_t n, uint32_t *cp)
{
    if ((unsigned char)*s < 0x80) {
        *cp = (unsigned char)*s;
        return 1;
    }
    utf8proc_int32_t value;
    const utf8proc_ssize_t len =
        utf8proc_iterate((const utf8proc_uint8_t *)s, (utf8proc_ssize_t)(n < 4 ? n : 4), &value);
    if (len <= 0 || value < 0) {
        *cp = 0xFFFD;
        return 1;
    }
    *cp = (uint32_t)value;
    return (size_t)len;
}

size_t nb_jtext_encode(uint32_t cp, char out[4])
{
    if (cp > 0x10FFFF || (cp >= 0xD800 && cp <= 0xDFFF))
        cp = 0xFFFD;
    utf8proc_uint8_t bytes[4];
    const utf8proc_ssize_t len = utf8proc_encode_char((utf8proc_int32_t)cp, bytes);
    memcpy(out, bytes, (size_t)len);
    return (size_t)len;
}

size_t nb_jtext_last(const char *s, size_t n)
{
    if ((unsigned char)s[n - 1] < 0x80)
        return 1;
    for (size_t back = 2; back <= 4 && back <= n; back++) {
        uint32_t cp;
        if (((unsigned char)s[n - back] & 0xC0) == 0xC0)
            return nb_jtext_decode(s + n - back, back, &cp) == back ? back : 1;
    }
    return 1;
}

int64_t nb_jtext_count(nb_jspan s)
{
    int64_t count = 0;
    uint32_t cp;
    for (size_t i = 0; i < s.n; count++)
        i += (unsigned char)s.p[i] < 0x80 ? 1 : nb_jtext_decode(s.p + i, s.n - i, &cp);
    return count;
}

size_t nb_jtext_offset(nb_jspan s, int64_t index)
{
    size_t i = 0;
    uint32_t cp;
    for (int64_t k = 0; k < index && i < s.n; k++)
        i += (unsigned char)s.p[i] < 0x80 ? 1 : nb_jtext_decode(s.p + i, s.n - i, &cp);
    return i;
}

bool nb_jtext_is_space(uint32_t cp)
{
    if (cp < 0x80)
        return cp == ' ' || (cp >= 9 && cp <= 13) || (cp >= 28 && cp <= 31);
    return cp == 0x85 || cp == 0xA0 || cp == 0x1680 || (cp >= 0x2000 && cp <= 0x200A) ||
           cp == 0x2028 || cp == 0x2029 || cp == 0x202F || cp == 0x205F || cp == 0x3000;
}

bool nb_jtext_is_printable(uint32_t cp)
{
    if (cp < 0x7F)
        return cp >= 0x20;
    switch (utf8proc_category((utf8proc_int32_t)cp)) {
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS:
        return false;
    default:
        return true;
    }
}

static bool strippable(const char *s, size_t n, nb_jspan chars)
{
    if (chars.p != NULL)
        return memmem(chars.p, chars.n, s, n) != NULL;
    uint32_t cp;
    nb_jtext_decode(s, n, &cp);
    return nb_jtext_is_space(cp);
}

nb_jspan nb_jtext_strip(nb_jspan s, nb_jspan chars, bool left, bool right)
{
    while (left && s.n > 0) {
        uint32_t cp;
        const size_t len = nb_jtext_decode(s.p, s.n, &cp);
        if (!strippable(s.p, len, chars))
            break;
        s.p += len;
        s.n -= len;
    }
    while (right && s.n > 0) {
        const size_t len = nb_jtext_last(s.p, s.n);
        if (!strippable(s.p + s.n - len, len, chars))
            break;
        s.n -= len;
    }
    return s;
}

int64_t nb_jtext_find(nb_jspan s, nb_jspan needle)
{
    if (needle.n == 0)
        return 0;
    /* glibc's memmem is the two-way algorithm: linear, with constant space. */
    const char *at = s.n < needle.n ? NULL : memmem(s.p, s.n, needle.p, needle.n);
    return at == NULL ? -1 : at - s.p;
}

bool nb_jtext_starts(nb_jspan s, nb_jspan prefix)
{
    return s.n >= prefix.n && (prefix.n == 0 || memcmp(s.p, prefix.p, prefix.n) == 0);
}

bool nb_jtext_ends(nb_jspan s, nb_jspan suffix)
{
    return s.n >= suffix.n &&
           (suffix.n == 0 || memcmp(s.p + s.n - suffix.n, suffix.p, suffix.n) == 0);
}
