/* See unicode.h. Properties come from utf8proc, plus the characters that it may not know yet. */
#include "text/unicode.h"

#include <string.h>
#include <utf8proc.h>

/* Characters of Unicode 16 that utf8proc before 2.10 calls unassigned: letters, decimal digits
 * and marks. Compared on every code point with the reference tokenizers' regular expressions. */
static const struct {
    int32_t first, last;
    utf8proc_category_t category;
} newer[] = {
    {0x0897, 0x0897, UTF8PROC_CATEGORY_MN},   {0x1c89, 0x1c8a, UTF8PROC_CATEGORY_LO},
    {0xa7cb, 0xa7cd, UTF8PROC_CATEGORY_LO},   {0xa7da, 0xa7dc, UTF8PROC_CATEGORY_LO},
    {0x105c0, 0x105f3, UTF8PROC_CATEGORY_LO}, {0x10d40, 0x10d49, UTF8PROC_CATEGORY_ND},
    {0x10d4a, 0x10d65, UTF8PROC_CATEGORY_LO}, {0x10d69, 0x10d6d, UTF8PROC_CATEGORY_MN},
    {0x10d6f, 0x10d85, UTF8PROC_CATEGORY_LO}, {0x10ec2, 0x10ec4, UTF8PROC_CATEGORY_LO},
    {0x10efc, 0x10efc, UTF8PROC_CATEGORY_MN}, {0x11380, 0x11389, UTF8PROC_CATEGORY_LO},
    {0x1138b, 0x1138b, UTF8PROC_CATEGORY_LO}, {0x1138e, 0x1138e, UTF8PROC_CATEGORY_LO},
    {0x11390, 0x113b5, UTF8PROC_CATEGORY_LO}, {0x113b7, 0x113b7, UTF8PROC_CATEGORY_LO},
    {0x113b8, 0x113c0, UTF8PROC_CATEGORY_MC}, {0x113c2, 0x113c2, UTF8PROC_CATEGORY_MC},
    {0x113c5, 0x113c5, UTF8PROC_CATEGORY_MC}, {0x113c7, 0x113ca, UTF8PROC_CATEGORY_MC},
    {0x113cc, 0x113d0, UTF8PROC_CATEGORY_MC}, {0x113d1, 0x113d1, UTF8PROC_CATEGORY_LO},
    {0x113d2, 0x113d2, UTF8PROC_CATEGORY_MN}, {0x113d3, 0x113d3, UTF8PROC_CATEGORY_LO},
    {0x113e1, 0x113e2, UTF8PROC_CATEGORY_MN}, {0x116d0, 0x116e3, UTF8PROC_CATEGORY_ND},
    {0x11bc0, 0x11be0, UTF8PROC_CATEGORY_LO}, {0x11bf0, 0x11bf9, UTF8PROC_CATEGORY_ND},
    {0x11f5a, 0x11f5a, UTF8PROC_CATEGORY_MN}, {0x13460, 0x143fa, UTF8PROC_CATEGORY_LO},
    {0x16100, 0x1611d, UTF8PROC_CATEGORY_LO}, {0x1611e, 0x1612f, UTF8PROC_CATEGORY_MN},
    {0x16130, 0x16139, UTF8PROC_CATEGORY_ND}, {0x16d40, 0x16d6c, UTF8PROC_CATEGORY_LO},
    {0x16d70, 0x16d79, UTF8PROC_CATEGORY_ND}, {0x18cff, 0x18cff, UTF8PROC_CATEGORY_LO},
    {0x1ccf0, 0x1ccf9, UTF8PROC_CATEGORY_ND}, {0x1e5d0, 0x1e5ed, UTF8PROC_CATEGORY_LO},
    {0x1e5ee, 0x1e5ef, UTF8PROC_CATEGORY_MN}, {0x1e5f0, 0x1e5f0, UTF8PROC_CATEGORY_LO},
    {0x1e5f1, 0x1e5fa, UTF8PROC_CATEGORY_ND}, {0x2ebf0, 0x2ee5d, UTF8PROC_CATEGORY_LO},
};

static utf8proc_category_t category_of(int32_t c)
{
    const utf8proc_category_t category = utf8proc_category(c);
    if (category != UTF8PROC_CATEGORY_CN)
        return category;
    size_t lo = 0, hi = sizeof newer / sizeof *newer;
    while (lo < hi) {
        const size_t mid = (lo + hi) / 2;
        if (c > newer[mid].last)
            lo = mid + 1;
        else
            hi = mid;
    }
    const bool found = lo < sizeof newer / sizeof *newer && c >= newer[lo].first;
    return found ? newer[lo].category : UTF8PROC_CATEGORY_CN;
}

size_t nb_utf8_next(const uint8_t *p, size_t len, int32_t *c)
{
    const uint8_t b = p[0];
    *c = -1;
    if (b < 0x80) {
        *c = b;
        return 1;
    }
    if (b < 0xc2 || b > 0xf4)
        return 1;
    const size_t n = b < 0xe0 ? 2 : b < 0xf0 ? 3 : 4;
    if (len < n)
        return 1;
    /* Only the second byte has a range that depends on the first. */
    const uint8_t lo = b == 0xe0 ? 0xa0 : b == 0xf0 ? 0x90 : 0x80;
    const uint8_t hi = b == 0xed ? 0x9f : b == 0xf4 ? 0x8f : 0xbf;
    if (p[1] < lo || p[1] > hi)
        return 1;
    int32_t v = (int32_t)(b & (0x7f >> n)) << 6 | (p[1] & 0x3f);
    for (size_t i = 2; i < n; i++) {
        if ((p[i] & 0xc0) != 0x80)
            return 1;
        v = v << 6 | (p[i] & 0x3f);
    }
    *c = v;
    return n;
}

size_t nb_utf8_last(const uint8_t *text, size_t len, int32_t *c)
{
    for (size_t n = 1; n <= 4 && n <= len; n++) {
        if ((text[len - n] & 0xc0) == 0x80)
            continue;
        if (nb_utf8_next(text + len - n, n, c) == n)
            return n;
        break;
    }
    *c = -1;
    return 1;
}

size_t nb_utf8_put(int32_t c, uint8_t out[4])
{
    return (size_t)utf8proc_encode_char(c, out);
}

static bool is_space(int32_t c)
{
    if (c < 0x80)
        return c == ' ' || (c >= '\t' && c <= '\r');
    return c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 ||
           c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

nb_char_class nb_char_class_of(int32_t c)
{
    if (c >= 0 && c < 0x80) {
        const int32_t lower = c | 0x20;
        if (lower >= 'a' && lower <= 'z')
            return NB_CHAR_LETTER;
        if (c >= '0' && c <= '9')
            return NB_CHAR_NUMBER;
        return is_space(c) ? NB_CHAR_SPACE : NB_CHAR_OTHER;
    }
    if (c < 0)
        return NB_CHAR_OTHER;
    const utf8proc_category_t category = category_of(c);
    if (category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO)
        return NB_CHAR_LETTER;
    if (category >= UTF8PROC_CATEGORY_ND && category <= UTF8PROC_CATEGORY_NO)
        return NB_CHAR_NUMBER;
    return is_space(c) ? NB_CHAR_SPACE : NB_CHAR_OTHER;
}

bool nb_char_is_numeric(int32_t c)
{
    /* Unicode 17: Tolong Siki digits and three numerals of Yangqin notation. */
    return nb_char_class_of(c) == NB_CHAR_NUMBER || (c >= 0x11de0 && c <= 0x11de9) ||
           (c >= 0x16ff4 && c <= 0x16ff6);
}

bool nb_char_is_word(int32_t c)
{
    if (c < 0)
        return false;
    switch (category_of(c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
        return true;
    default:
        break;
    }
    /* Join controls, and the letters in circles and squares that are Alphabetic by decree. */
    return c == 0x200c || c == 0x200d || (c >= 0x24b6 && c <= 0x24e9) ||
           (c >= 0x1f130 && c <= 0x1f149) || (c >= 0x1f150 && c <= 0x1f169) ||
           (c >= 0x1f170 && c <= 0x1f189);
}

/* ---- normalization form C ---- */

/* Characters below U+0300 are composed already, have combining class 0 and never combine with
 * what stands before them: a segment to be normalized may end before any of them. In UTF-8 they
 * are the ones whose first byte is below 0xcc. */
#define FIRST_MARK      0x300
#define FIRST_MARK_LEAD 0xcc

static uint8_t combining_class(int32_t c)
{
    return (uint8_t)utf8proc_get_property(c)->combining_class;
}

static nb_status put_char(nb_buf *b, int32_t c, nb_err *err)
{
    return nb_buf_put(b, &c, sizeof c, err);
}

/* Sorts c[0, n), all of combining class above 0, by class; stable. Counting sort, because text
 * from outside may be one base letter under a million marks. */
static void sort_marks(int32_t *c, int32_t *scratch, size_t n)
{
    size_t start[257] = {0};
    for (size_t i = 0; i < n; i++)
        start[combining_class(c[i]) + 1]++;
    for (int k = 0; k < 256; k++)
        start[k + 1] += start[k];
    for (size_t i = 0; i < n; i++)
        scratch[start[combining_class(c[i])]++] = c[i];
    memcpy(c, scratch, n * sizeof *c);
}

static nb_status sort_all_marks(int32_t *c, size_t n, nb_err *err)
{
    int32_t *scratch = NULL;
    for (size_t i = 0; i < n; i++) {
        size_t end = i;
        bool sorted = true;
        for (uint8_t last = 0; end < n && combining_class(c[end]) != 0; end++) {
            sorted = sorted && combining_class(c[end]) >= last;
            last = combining_class(c[end]);
        }
        if (!sorted) {
            if (scratch == NULL)
                NB_TRY(NB_ALLOC(&scratch, n, err));
            sort_marks(c + i, scratch, end - i);
        }
        i = end; /* c[end] has class 0 and starts no run */
    }
    nb_free(scratch);
    return NB_OK;
}

static nb_status compose(nb_buf *out, nb_buf *decomposed, nb_err *err)
{
    int32_t *c = (int32_t *)(void *)decomposed->data;
    size_t n = decomposed->len / sizeof *c;
    NB_TRY(sort_all_marks(c, n, err));
    const utf8proc_ssize_t left = utf8proc_normalize_utf32(
        c, (utf8proc_ssize_t)n, (utf8proc_option_t)(UTF8PROC_COMPOSE | UTF8PROC_STABLE));
    n = left < 0 ? 0 : (size_t)left;
    for (size_t i = 0; i < n; i++) {
        uint8_t utf8[4];
        NB_TRY(nb_buf_put(out, utf8, nb_utf8_put(c[i], utf8), err));
    }
    return NB_OK;
}

/* Appends the canonical decomposition of the segment that starts at text[0]: it ends before a
 * character below U+0300 that follows one above, or before a byte that is no UTF-8. */
static nb_status decompose_segment(nb_buf *out, const uint8_t *text, size_t len, size_t *used,
                                   nb_err *err)
{
    size_t i = 0;
    bool marked = false;
    while (i < len) {
        int32_t c, parts[32];
        const size_t n = nb_utf8_next(text + i, len - i, &c);
        if (c < 0 || (marked && c < FIRST_MARK))
            break;
        marked = marked || c >= FIRST_MARK;
        const utf8proc_ssize_t n_parts =
            utf8proc_decompose_char(c, parts, 32, UTF8PROC_DECOMPOSE, NULL);
        for (utf8proc_ssize_t k = 0; k < n_parts && k < 32; k++)
            NB_TRY(put_char(out, parts[k], err));
        i += n;
    }
    *used = i;
    return NB_OK;
}

nb_status nb_nfc(nb_buf *out, const char *chars, size_t len, nb_err *err)
{
    const uint8_t *text = (const uint8_t *)chars;
    nb_buf decomposed = {0};
    nb_status s = NB_OK;
    for (size_t i = 0; i < len;) {
        size_t end = i;
        while (end < len && text[end] < FIRST_MARK_LEAD)
            end++;
        /* The last plain character may combine with the mark that comes now. */
        int32_t last;
        if (end > i && end < len)
            end -= nb_utf8_last(text + i, end - i, &last);
        if (end > i)
            NB_TRY_GOTO(s, nb_buf_put(out, text + i, end - i, err));
        i = end;
        if (i == len)
            break;
        size_t used;
        decomposed.len = 0;
        NB_TRY_GOTO(s, decompose_segment(&decomposed, text + i, len - i, &used, err));
        if (used > 0)
            NB_TRY_GOTO(s, compose(out, &decomposed, err));
        else
            NB_TRY_GOTO(s, nb_buf_put(out, text + i, 1, err)); /* no UTF-8 */
        i += used > 0 ? used : 1;
    }
done:
    nb_buf_free(&decomposed);
    return s;
}
