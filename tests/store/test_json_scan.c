/* JSON piece by piece: strings, numbers, punctuation; UTF-8 against an independent definition. */
#include "store/json_scan.h"
#include "support/golden.h"

#include <string.h>

static nb_status scan_text(const char *json, size_t len, nb_buf *out, nb_err *err)
{
    nb_scan s = {.text = json, .len = len};
    const nb_status status = nb_scan_text(&s, out, err);
    if (status == NB_OK)
        assert_int_equal(s.pos, len);
    return status;
}

static void strings(void **state)
{
    (void)state;
    static const struct {
        const char *json, *text; /* NULL: refused */
    } cases[] = {
        {"\"\"", ""},
        {" \t\r\n\"a b\"", "a b"},
        {"\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"", "\"\\/\b\f\n\r\t"},
        {"\"\\u0041\\u00e9\\u20AC\\ud83d\\ude00\"", "A\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80"},
        {"\"\\uffff\\u07ff\\u0800\"", "\xef\xbf\xbf\xdf\xbf\xe0\xa0\x80"},
        {"\"\xc3\xa9\xf4\x8f\xbf\xbf\"", "\xc3\xa9\xf4\x8f\xbf\xbf"},
        {"\"", NULL},
        {"\"a", NULL},
        {"\"\\", NULL},
        {"\"\\x41\"", NULL},
        {"\"\\u12\"", NULL},
        {"\"\\u12g4\"", NULL},
        {"\"\\u0000\"", NULL},
        {"\"\\ud83d\"", NULL},
        {"\"\\ud83dx\"", NULL},
        {"\"\\ud83d\\u0041\"", NULL},
        {"\"\\ude00\"", NULL},
        {"\"a\nb\"", NULL},
        {"\"a\x1f\"", NULL},
        {"\"\x80\"", NULL},
        {"\"\xc3\"", NULL},
        {"\"\xed\xa0\x80\"", NULL},
        {"\"\xc0\x80\"", NULL},
        {"\"\xf4\x90\x80\x80\"", NULL},
        {"a", NULL},
        {"", NULL},
        {"\0\"\"", NULL},
    };
    nb_buf out = {0};
    nb_err err;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const nb_status s = scan_text(cases[i].json, strlen(cases[i].json), &out, &err);
        if (cases[i].text == NULL) {
            assert_int_equal(s, NB_DATA);
            continue;
        }
        if (s != NB_OK)
            fail_msg("case %zu: %s", i, err.text);
        assert_int_equal(out.len, strlen(cases[i].text));
        assert_string_equal((const char *)out.data, cases[i].text);
    }
    assert_int_equal(scan_text("\"\0\"", 3, &out, &err), NB_DATA);
    nb_buf_free(&out);
}

static void counts(void **state)
{
    (void)state;
    static const struct {
        const char *json;
        int64_t value; /* -1: refused */
    } cases[] = {
        {"0", 0},
        {" 7", 7},
        {"10,", 10},
        {"9223372036854775807", INT64_MAX},
        {"9223372036854775808", -1},
        {"18446744073709551616", -1},
        {"99999999999999999999999999999", -1},
        {"-1", -1},
        {"-0", -1},
        {"+1", -1},
        {"01", -1},
        {"00", -1},
        {"1.0", -1},
        {"1e3", -1},
        {"1E3", -1},
        {"\"1\"", -1},
        {"null", -1},
        {"true", -1},
        {"", -1},
        {"]", -1},
        {".5", -1},
    };
    nb_err err;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        nb_scan s = {.text = cases[i].json, .len = strlen(cases[i].json)};
        int64_t v = -1;
        const nb_status status = nb_scan_count(&s, &v, &err);
        if (status != (cases[i].value < 0 ? NB_DATA : NB_OK))
            fail_msg("'%s' gave status %d", cases[i].json, status);
        if (status == NB_OK)
            assert_int_equal(v, cases[i].value);
    }
}

static void punctuation_and_end(void **state)
{
    (void)state;
    nb_err err;
    nb_scan s = {.text = " { \n:}  ", .len = 8};
    assert_false(nb_scan_take(&s, '}'));
    assert_int_equal(nb_scan_expect(&s, '{', &err), NB_OK);
    assert_int_equal(nb_scan_end(&s, &err), NB_DATA);
    assert_int_equal(nb_scan_expect(&s, '}', &err), NB_DATA);
    assert_string_equal(err.text, "byte 4: found ':', expected '}'");
    assert_true(nb_scan_take(&s, ':'));
    assert_true(nb_scan_take(&s, '}'));
    assert_int_equal(nb_scan_end(&s, &err), NB_OK);
    assert_int_equal(nb_scan_expect(&s, '}', &err), NB_DATA);
    assert_false(nb_scan_take(&s, 0));
    s = (nb_scan){.text = "\0\x80", .len = 2};
    assert_int_equal(nb_scan_expect(&s, ':', &err), NB_DATA);
    assert_string_equal(err.text, "byte 0: found 0x00, expected ':'");
    s.pos = 1;
    assert_int_equal(nb_scan_end(&s, &err), NB_DATA);
    assert_string_equal(err.text, "byte 1: found 0x80, expected the end");
}

/* RFC 3629 as arithmetic: decode by the lead byte's class, then ask about value and length. */
static bool valid_by_value(const uint8_t *p, size_t len)
{
    size_t i = 0;
    while (i < len) {
        const size_t n = p[i] < 0x80       ? 1
                         : p[i] >> 5 == 6  ? 2
                         : p[i] >> 4 == 14 ? 3
                         : p[i] >> 3 == 30 ? 4
                                           : 0;
        if (n == 0 || n > len - i)
            return false;
        uint32_t v = n == 1 ? p[i] : p[i] & (0x7fu >> n);
        for (size_t k = 1; k < n; k++) {
            if (p[i + k] >> 6 != 2)
                return false;
            v = v << 6 | (p[i + k] & 0x3f);
        }
        static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
        if (v < least[n] || v > 0x10ffff || (v >= 0xd800 && v <= 0xdfff))
            return false;
        i += n;
    }
    return true;
}

static void utf8_of_every_three_bytes(void **state)
{
    (void)state;
    int64_t n_valid = 0;
    for (uint32_t v = 0; v < 1u << 24; v++) {
        const uint8_t p[3] = {(uint8_t)(v >> 16), (uint8_t)(v >> 8), (uint8_t)v};
        const bool valid = nb_utf8_valid((const char *)p, 3);
        if (valid != valid_by_value(p, 3))
            fail_msg("%02x %02x %02x", p[0], p[1], p[2]);
        n_valid += valid;
    }
    assert_true(n_valid > 128 * 128 * 128);
}

static void utf8_of_four_bytes_at_the_limits(void **state)
{
    (void)state;
    static const uint8_t edge[] = {0x00, 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0, 0xff};
    for (int lead = 0xee; lead < 256; lead++) {
        for (int second = 0; second < 256; second++) {
            for (size_t i = 0; i < 100; i++) {
                const uint8_t p[4] = {(uint8_t)lead, (uint8_t)second, edge[i / 10], edge[i % 10]};
                assert_int_equal(nb_utf8_valid((const char *)p, 4), valid_by_value(p, 4));
            }
        }
    }
}

static void a_failed_allocation_is_a_status(void **state)
{
    (void)state;
    nb_buf out = {0};
    nb_err err;
    nb_alloc_fail_at(1);
    assert_int_equal(scan_text("\"abc\"", 5, &out, &err), NB_MEMORY);
    nb_alloc_fail_at(0);
    nb_buf_free(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(strings),
        cmocka_unit_test(counts),
        cmocka_unit_test(punctuation_and_end),
        cmocka_unit_test(utf8_of_every_three_bytes),
        cmocka_unit_test(utf8_of_four_bytes_at_the_limits),
        cmocka_unit_test(a_failed_allocation_is_a_status),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
