/* Characters: UTF-8 exhaustively, classes of every code point against the reference library, and
 * normalization, which must stay linear on text made to hurt. */
#include "support/golden.h"

#include "base/rng.h"
#include "base/sha256.h"
#include "text/unicode.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#define N_POINTS 0x110000

/* Every scalar value survives encoding, forwards and backwards, and nothing else decodes. */
static void utf8_round_trip_of_every_code_point(void **state)
{
    (void)state;
    for (int32_t c = 0; c < N_POINTS; c++) {
        uint8_t text[6] = "?????";
        int32_t back;
        if (c >= 0xd800 && c < 0xe000) {
            const uint8_t surrogate[] = {0xed, (uint8_t)(0x80 | (c >> 6 & 0x3f)),
                                         (uint8_t)(0x80 | (c & 0x3f))};
            assert_int_equal(nb_utf8_next(surrogate, 3, &back), 1);
            assert_int_equal(back, -1);
            continue;
        }
        const size_t n = nb_utf8_put(c, text + 1);
        assert_int_equal(nb_utf8_next(text + 1, 5, &back), n);
        assert_int_equal(back, c);
        assert_int_equal(nb_utf8_last(text, n + 1, &back), n);
        assert_int_equal(back, c);
        for (size_t cut = 1; cut < n; cut++) {
            assert_int_equal(nb_utf8_next(text + 1, cut, &back), 1);
            assert_int_equal(back, -1);
        }
    }
}

/* All three-byte texts: what decodes is exactly what encoding can give, in its shortest form. */
static void utf8_refuses_everything_else(void **state)
{
    (void)state;
    int64_t n_valid[4] = {0};
    for (uint32_t v = 0; v < 1u << 24; v++) {
        const uint8_t text[3] = {(uint8_t)v, (uint8_t)(v >> 8), (uint8_t)(v >> 16)};
        int32_t c;
        const size_t n = nb_utf8_next(text, 3, &c);
        if (c < 0) {
            assert_int_equal(n, 1);
            continue;
        }
        uint8_t again[4];
        assert_int_equal(nb_utf8_put(c, again), n);
        assert_memory_equal(text, again, n);
        n_valid[n]++;
    }
    assert_int_equal(n_valid[1], 128 << 16);
    assert_int_equal(n_valid[2], 1920 << 8);
    assert_int_equal(n_valid[3], 0x10000 - 0x800 - 0x800);
    const uint8_t beyond[] = {0xf4, 0x90, 0x80, 0x80}, overlong[] = {0xf0, 0x8f, 0xbf, 0xbf};
    int32_t c;
    assert_int_equal(nb_utf8_next(beyond, 4, &c), 1);
    assert_int_equal(c, -1);
    assert_int_equal(nb_utf8_next(overlong, 4, &c), 1);
    assert_int_equal(c, -1);
}

typedef int property_fn(int32_t c);

static int class_property(int32_t c)
{
    return (int)nb_char_class_of(c);
}

static int numeric_property(int32_t c)
{
    return nb_char_is_numeric(c);
}

static int word_property(int32_t c)
{
    return nb_char_is_word(c);
}

static void check_property(const json_t *golden, const char *key, property_fn *property)
{
    uint8_t *of = malloc(N_POINTS);
    assert_non_null(of);
    for (int32_t c = 0; c < N_POINTS; c++)
        of[c] = c >= 0xd800 && c < 0xe000 ? 0 : (uint8_t)property(c);
    char hex[NB_SHA256_HEX];
    nb_sha256_hex(of, N_POINTS, hex);
    assert_string_equal(hex, json_string_value(golden_get(golden, key)));
    free(of);
}

/* One wrong class is a wrong id in some language: all 1,112,064 are compared. */
static void classes_are_those_of_the_reference(void **state)
{
    (void)state;
    /* A later Unicode has letters that the reference does not know: then compare again. */
    if (strtod(utf8proc_unicode_version(), NULL) >= 17) {
        print_message("SKIP: the vectors are of Unicode 16, utf8proc is of %s\n",
                      utf8proc_unicode_version());
        skip();
    }
    json_t *golden = golden_load("unicode_classes.json");
    check_property(golden, "class", class_property);
    check_property(golden, "numeric", numeric_property);
    check_property(golden, "word", word_property);
    json_decref(golden);
}

static void check_nfc(const char *text, const char *expected)
{
    nb_err err = {0};
    nb_buf b = {0};
    assert_int_equal(nb_nfc(&b, text, strlen(text), &err), NB_OK);
    assert_int_equal(b.len, strlen(expected));
    if (b.len > 0)
        assert_memory_equal(b.data, expected, b.len);
    nb_buf_free(&b);
}

static void nfc_of_known_texts(void **state)
{
    (void)state;
    check_nfc("", "");
    check_nfc("plain", "plain");
    check_nfc("e\u0301", "\u00e9");
    check_nfc("xe\u0301y", "x\u00e9y");
    check_nfc("o\u0308\u0323", "\u1ecd\u0308"); /* marks change places */
    check_nfc("\u212b\u2126", "\u00c5\u03a9");  /* singletons */
    check_nfc("\u0958", "\u0915\u093c");        /* excluded from composition */
    check_nfc("\u1112\u1161\u11ab", "\ud55c");  /* Hangul */
    check_nfc("\u1100\u1161", "\uac00");        /* two of three */
    check_nfc("\u0344", "\u0308\u0301");        /* a mark that is two */
    check_nfc("e\u0301\xff"
              "e\u0301",
              "\u00e9\xff\u00e9");           /* a byte that is no UTF-8 */
    check_nfc("e\xff\u0301", "e\xff\u0301"); /* composes with nothing */
    check_nfc("\xcc\x81\xcc", "\u0301\xcc");
    check_nfc("\u0301a", "\u0301a");
}

/* A random text of letters, marks, Hangul and stray bytes. */
static size_t random_text(uint8_t *out, size_t max, uint64_t seed, bool strays)
{
    static const int32_t some[] = {'a',    'e',    'o',    0xe9,   0x301,  0x308,   0x323,  0x31b,
                                   0x345,  0x1100, 0x1161, 0x11ab, 0xac00, 0x915,   0x93c,  0x958,
                                   0x1f80, 0x3b1,  0x3b9,  ' ',    0x20,   0x1d15e, 0x4e00, 0x5d0};
    size_t n = 0;
    for (uint64_t i = 0; n + 4 <= max; i++) {
        uint32_t w[4];
        nb_philox(seed, 7, i, w);
        if (strays && w[1] % 13 == 0)
            out[n++] = (uint8_t)(0x80 | w[2]);
        else
            n += nb_utf8_put(some[w[0] % (sizeof some / sizeof *some)], out + n);
    }
    return n;
}

/* Against utf8proc's own whole-text normalization, and twice is the same as once. */
static void nfc_of_random_texts(void **state)
{
    (void)state;
    nb_err err = {0};
    for (uint64_t seed = 0; seed < 2000; seed++) {
        uint8_t text[80];
        const size_t n = random_text(text, 64, seed, false);
        text[n] = '\0';
        nb_buf once = {0}, twice = {0};
        assert_int_equal(nb_nfc(&once, (const char *)text, n, &err), NB_OK);
        assert_int_equal(nb_nfc(&twice, (const char *)once.data, once.len, &err), NB_OK);
        utf8proc_uint8_t *whole = utf8proc_NFC(text);
        assert_int_equal(once.len, strlen((const char *)whole));
        assert_memory_equal(once.data, whole, once.len);
        assert_int_equal(twice.len, once.len);
        assert_memory_equal(twice.data, once.data, once.len);
        free(whole);
        nb_buf_free(&once);
        nb_buf_free(&twice);
    }
}

/* Bytes that are no UTF-8 come out as often as they went in. */
static void nfc_keeps_stray_bytes(void **state)
{
    (void)state;
    nb_err err = {0};
    for (uint64_t seed = 0; seed < 500; seed++) {
        uint8_t text[80];
        const size_t n = random_text(text, 64, seed, true);
        nb_buf b = {0};
        assert_int_equal(nb_nfc(&b, (const char *)text, n, &err), NB_OK);
        int64_t strays[2] = {0};
        for (int side = 0; side < 2; side++) {
            const uint8_t *p = side == 0 ? text : b.data;
            const size_t len = side == 0 ? n : b.len;
            for (size_t i = 0; i < len;) {
                int32_t c;
                i += nb_utf8_next(p + i, len - i, &c);
                strays[side] += c < 0;
            }
        }
        assert_int_equal(strays[0], strays[1]);
        nb_buf_free(&b);
    }
}

/* A letter under a million marks in the worst order: sorting them by insertion would take hours. */
static void nfc_is_linear(void **state)
{
    (void)state;
    const size_t n = 1000000;
    char *text = malloc(2 * n + 1);
    assert_non_null(text);
    text[0] = 'a';
    for (size_t i = 0; i < n; i++)
        memcpy(text + 1 + 2 * i, i < n / 2 ? "\u0345" : "\u0323", 2);
    nb_err err = {0};
    nb_buf b = {0};
    assert_int_equal(nb_nfc(&b, text, 2 * n + 1, &err), NB_OK);
    assert_int_equal(b.len, 2 * n + 1); /* a and the dot below are one: 3 bytes for 1 + 2 */
    assert_memory_equal(b.data, "\u1ea1\u0323", 5);
    assert_memory_equal(b.data + b.len - 2, "\u0345", 2);
    nb_buf_free(&b);
    free(text);
}

static void nfc_without_memory(void **state)
{
    (void)state;
    char text[4000];
    for (size_t i = 0; i < sizeof text; i += 4)
        memcpy(text + i, i % 8 == 0 ? "\u0345\u0323" : "e\u0301y", 4);
    const int64_t live = nb_alloc_live();
    nb_status s = NB_MEMORY;
    for (int64_t k = 1; s == NB_MEMORY; k++) {
        nb_err err = {0};
        nb_buf b = {0};
        nb_alloc_fail_at(k);
        s = nb_nfc(&b, text, sizeof text, &err);
        nb_alloc_fail_at(0);
        nb_buf_free(&b);
        assert_int_equal(nb_alloc_live(), live);
        assert_true(k > 2 || s == NB_MEMORY);
    }
    assert_int_equal(s, NB_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(utf8_round_trip_of_every_code_point),
        cmocka_unit_test(utf8_refuses_everything_else),
        cmocka_unit_test(classes_are_those_of_the_reference),
        cmocka_unit_test(nfc_of_known_texts),
        cmocka_unit_test(nfc_of_random_texts),
        cmocka_unit_test(nfc_keeps_stray_bytes),
        cmocka_unit_test(nfc_is_linear),
        cmocka_unit_test(nfc_without_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
