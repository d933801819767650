/* The web page in the program: found by its path alone, sent with what keeps it to itself, and not
 * sent again to whoever has it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/sha256.h"
#include "serve/page.h"

static const char *header(const nb_page *page, const char *name)
{
    for (int i = 0; i < page->n_headers; i++) {
        if (strcmp(page->headers[i].name, name) == 0)
            return page->headers[i].value;
    }
    fail_msg("there is no header %s", name);
    return NULL;
}

/* No other path leads to it, and none leads out of it. */
static void page_is_at_one_path(void **state)
{
    (void)state;
    static const char *const others[] = {
        "",           "//", "/.", "/../", "/index.html", "/ui/", "/ui/page.js", "/?x",
        "/%2e%2e/..", " /", "/ ", "x"};
    assert_non_null(nb_page_find("/"));
    assert_string_equal(nb_page_find("/")->path, "/");
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        if (nb_page_find(others[i]) != NULL)
            fail_msg("'%s' leads to a page", others[i]);
    }
}

/* A header of two lines would be two headers; a character that is no ASCII may be anything. */
static void headers_are_single_lines(void **state)
{
    (void)state;
    const nb_page *page = nb_page_find("/");
    assert_true(page->n_headers > 0);
    for (int i = 0; i < page->n_headers; i++) {
        for (const char *p = page->headers[i].value; *p != 0; p++)
            assert_true(*p >= 0x20 && *p < 0x7f);
        for (int j = 0; j < i; j++)
            assert_string_not_equal(page->headers[i].name, page->headers[j].name);
    }
    assert_string_equal(header(page, "Content-Type"), "text/html; charset=utf-8");
    assert_string_equal(header(page, "X-Content-Type-Options"), "nosniff");
    assert_string_equal(header(page, "ETag"), page->etag);
}

/* The tag is of these bytes: half of their SHA-256. */
static void tag_is_of_the_bytes(void **state)
{
    (void)state;
    const nb_page *page = nb_page_find("/");
    char hex[NB_SHA256_HEX], tag[40];
    nb_sha256_hex(page->bytes, page->len, hex);
    snprintf(tag, sizeof tag, "\"%.32s\"", hex);
    assert_string_equal(page->etag, tag);
}

/* 44 characters of base64 for 32 bytes (RFC 4648). */
static void base64(const uint8_t *in, char out[45])
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    uint8_t bytes[33] = {0};
    memcpy(bytes, in, 32);
    for (int i = 0; i < 11; i++) {
        const uint32_t v = (uint32_t)bytes[3 * i] << 16 | (uint32_t)bytes[3 * i + 1] << 8 |
                           (uint32_t)bytes[3 * i + 2];
        for (int j = 0; j < 4; j++)
            out[4 * i + j] = digits[v >> (18 - 6 * j) & 63];
    }
    out[43] = '=';
    out[44] = 0;
}

/* 'sha256-...' of what stands between <style...> and </style>. */
static void hash_of(const nb_page *page, const char *element, char out[64])
{
    char open[16], close[16];
    snprintf(open, sizeof open, "<%s", element);
    snprintf(close, sizeof close, "</%s>", element);
    char *text = malloc(page->len + 1);
    assert_non_null(text);
    memcpy(text, page->bytes, page->len);
    text[page->len] = 0;
    char *from = strstr(text, open);
    assert_non_null(from);
    from = strchr(from, '>') + 1;
    const char *to = strstr(from, close);
    assert_non_null(to);
    assert_null(strstr(to, open)); /* there is one */
    assert_true(to - from > 1000);
    nb_sha256 sha;
    uint8_t digest[NB_SHA256_BYTES];
    char coded[45];
    nb_sha256_init(&sha);
    nb_sha256_update(&sha, from, (size_t)(to - from));
    nb_sha256_final(&sha, digest);
    base64(digest, coded);
    snprintf(out, 64, "%s-src 'sha256-%s';", element, coded);
    free(text);
}

/* A browser runs the page's own script and nothing else. With a wrong hash it would run nothing. */
static void policy_names_what_is_there(void **state)
{
    (void)state;
    const nb_page *page = nb_page_find("/");
    const char *policy = header(page, "Content-Security-Policy");
    char hash[64];
    hash_of(page, "script", hash);
    assert_non_null(strstr(policy, hash));
    hash_of(page, "style", hash);
    assert_non_null(strstr(policy, hash));
    assert_ptr_equal(strstr(policy, "default-src 'none';"), policy);
    assert_null(strstr(policy, "unsafe"));
    assert_null(strstr(policy, "http"));
    assert_null(strchr(policy, '*'));
    assert_non_null(strstr(policy, "frame-ancestors 'none';"));
    assert_non_null(strstr(policy, "trusted-types 'none'"));
}

static void same_page_is_not_sent_again(void **state)
{
    (void)state;
    const nb_page *page = nb_page_find("/");
    char text[256];
    static const struct {
        const char *format; /* %s: the tag */
        bool same;
    } cases[] = {
        {"%s", true},
        {"W/%s", true},
        {"  %s  ", true},
        {"\"a\", %s", true},
        {"\"a\",W/\"b\" ,\t%s, \"c\"", true},
        {", ,%s", true},
        {"\"a,b\",%s", true},
        {"*", true},
        {" * ", true},
        {"", false},
        {"\"\"", false},
        {"\"a\"", false},
        {"w/%s", false},
        {"W/W/%s", false},
        {"* , %s", false},
        {"*x", false},
        {"x%s", false},
        {"\"a\" %s", false},
        {"\"unclosed, %s", false},
        {"\"", false},
        {"W/", false},
        {",", false},
        {",,,,", false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *at = strstr(cases[i].format, "%s");
        if (at != NULL)
            snprintf(text, sizeof text, "%.*s%s%s", (int)(at - cases[i].format), cases[i].format,
                     page->etag, at + 2);
        else
            snprintf(text, sizeof text, "%s", cases[i].format);
        if (nb_page_same(page, text) != cases[i].same)
            fail_msg("If-None-Match: %s", text);
    }
    assert_false(nb_page_same(page, NULL));

    /* Any tag but this one, cut or changed at any place, is another page. */
    const size_t len = strlen(page->etag);
    for (size_t cut = 0; cut < len; cut++) {
        snprintf(text, sizeof text, "%.*s", (int)cut, page->etag);
        assert_false(nb_page_same(page, text));
        snprintf(text, sizeof text, "%s", page->etag);
        text[cut] = text[cut] == 'x' ? 'y' : 'x';
        assert_false(nb_page_same(page, text));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(page_is_at_one_path),         cmocka_unit_test(headers_are_single_lines),
        cmocka_unit_test(tag_is_of_the_bytes),         cmocka_unit_test(policy_names_what_is_there),
        cmocka_unit_test(same_page_is_not_sent_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
