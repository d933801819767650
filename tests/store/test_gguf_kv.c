/* Typed access to pairs: every type against every getter, ranges, alignment, and the encoders
 * against the parser. */
#define _GNU_SOURCE
#include "support/golden.h"
#include "support/gguf_bytes.h"
#include "support/scratch.h"

#include "store/gguf_file.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static nb_gguf *open_pairs(gguf_bytes *g)
{
    nb_buf bytes = {0};
    gb_finish(g, &bytes);
    scratch_write("pairs.gguf", bytes.data, bytes.len);
    nb_buf_free(&bytes);
    gb_free(g);
    nb_file file;
    nb_gguf *out = NULL;
    nb_err err = {0};
    assert_int_equal(nb_file_open(&file, scratch_path("pairs.gguf"), &err), NB_OK);
    if (nb_gguf_open(&out, &file, &err) != NB_OK)
        fail_msg("%s", err.text);
    nb_file_close(&file);
    return out;
}

static const char *const type_keys[] = {"t.u8",  "t.i8",  "t.u16",  "t.i16",  "t.u32",
                                        "t.i32", "t.f32", "t.bool", "t.text", "t.array",
                                        "t.u64", "t.i64", "t.f64"};
static const char *const type_names[] = {"a u8",   "an i8",  "a u16",  "an i16",   "a u32",
                                         "an i32", "an f32", "a bool", "a string", "an array of u8",
                                         "a u64",  "an i64", "an f64"};

/* One key of every type, each with the value 1. */
static nb_gguf *one_of_each(void)
{
    gguf_bytes g = {0};
    for (uint32_t t = 0; t < 13; t++) {
        static const size_t width[13] = {1, 1, 2, 2, 4, 4, 0, 1, 0, 0, 8, 8, 0};
        const float f = 1.0f;
        const double d = 1.0;
        const uint64_t one = 1;
        if (t == NB_GGUF_ARRAY) {
            gb_array(&g, type_keys[t], 0, 1);
            gb_raw_u8(&g.kv, 1);
            continue;
        }
        gb_key(&g, type_keys[t], t);
        if (t == NB_GGUF_STRING)
            gb_raw_string(&g.kv, "1");
        else if (t == NB_GGUF_F32)
            gb_raw(&g.kv, &f, sizeof f);
        else if (t == NB_GGUF_F64)
            gb_raw(&g.kv, &d, sizeof d);
        else
            gb_raw(&g.kv, &one, width[t]);
    }
    return open_pairs(&g);
}

static void check_getter(nb_status s, bool expected, uint32_t type, const nb_err *err)
{
    assert_int_equal(s, expected ? NB_OK : NB_DATA);
    char reason[100];
    snprintf(reason, sizeof reason, "key '%s' is %s, expected ", type_keys[type], type_names[type]);
    if (!expected && strncmp(err->text, reason, strlen(reason)) != 0)
        fail_msg("expected '%s...' and got: %s", reason, err->text);
}

static void every_type_against_every_getter(void **state)
{
    (void)state;
    nb_gguf *g = one_of_each();
    assert_int_equal(nb_gguf_n_kv(g), 13);
    assert_null(nb_gguf_kv_at(g, -1));
    assert_null(nb_gguf_kv_at(g, 13));
    for (uint32_t t = 0; t < 13; t++) {
        const char *key = type_keys[t];
        assert_int_equal(nb_gguf_find(g, key)->type, t);
        assert_ptr_equal(nb_gguf_find(g, key), nb_gguf_kv_at(g, t));
        const bool is_int = t <= NB_GGUF_I32 || t == NB_GGUF_U64 || t == NB_GGUF_I64;
        nb_err err = {0};
        int64_t i = 7, n = 7;
        double d = 7;
        bool b = false;
        nb_text text = {0};
        nb_text *texts = NULL;
        nb_arena arena = {0};
        const int32_t *ints = NULL;
        const float *floats = NULL;
        check_getter(nb_gguf_int(g, key, true, 1, 1, &i, &err), is_int, t, &err);
        assert_int_equal(i, is_int ? 1 : 7);
        const bool is_number = t == NB_GGUF_F32 || t == NB_GGUF_F64;
        check_getter(nb_gguf_number(g, key, true, &d, &err), is_number, t, &err);
        assert_true(d == (is_number ? 1.0 : 7.0));
        check_getter(nb_gguf_bool(g, key, true, &b, &err), t == NB_GGUF_BOOL, t, &err);
        assert_int_equal(b, t == NB_GGUF_BOOL);
        check_getter(nb_gguf_text(g, key, true, &text, &err), t == NB_GGUF_STRING, t, &err);
        assert_int_equal(text.len, t == NB_GGUF_STRING ? 1 : 0);
        check_getter(nb_gguf_texts(g, key, true, &arena, &texts, &n, &err), false, t, &err);
        check_getter(nb_gguf_i32s(g, key, true, &ints, &n, &err), false, t, &err);
        check_getter(nb_gguf_f32s(g, key, true, &floats, &n, &err), false, t, &err);
        assert_null(texts);
        assert_int_equal(n, 7);
    }
    nb_gguf_close(g);
}

static void missing_keys(void **state)
{
    (void)state;
    nb_gguf *g = one_of_each();
    nb_err err = {0};
    int64_t i = 7;
    assert_int_equal(nb_gguf_int(g, "t.u", false, 0, 1, &i, &err), NB_OK);
    assert_int_equal(i, 7);
    assert_int_equal(nb_gguf_int(g, "t.u", true, 0, 1, &i, &err), NB_DATA);
    assert_string_equal(err.text, "key 't.u' is missing");
    static const char *const absent[] = {"", "a", "t.u88", "t.u32 ", "zzz", "T.U8"};
    for (size_t k = 0; k < sizeof absent / sizeof *absent; k++)
        assert_null(nb_gguf_find(g, absent[k]));
    nb_gguf_close(g);
}

static void integers_in_their_range(void **state)
{
    (void)state;
    gguf_bytes g = {0};
    gb_key(&g, "i8", NB_GGUF_I8);
    gb_raw_u8(&g.kv, 0x80);
    gb_key(&g, "u8", NB_GGUF_U8);
    gb_raw_u8(&g.kv, 0x80);
    gb_key(&g, "i32", NB_GGUF_I32);
    gb_raw_u32(&g.kv, 0xffffffffu);
    gb_u32(&g, "u32", 0xffffffffu);
    gb_key(&g, "i64", NB_GGUF_I64);
    gb_raw_u64(&g.kv, (uint64_t)1 << 63);
    gb_key(&g, "u64", NB_GGUF_U64);
    gb_raw_u64(&g.kv, UINT64_MAX);
    gb_key(&g, "bool", NB_GGUF_BOOL);
    gb_raw_u8(&g.kv, 2);
    nb_gguf *file = open_pairs(&g);
    nb_err err = {0};
    static const struct {
        const char *key;
        int64_t value;
    } cases[] = {{"i8", -128}, {"u8", 128}, {"i32", -1}, {"u32", 4294967295}, {"i64", INT64_MIN}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const int64_t v = cases[i].value;
        int64_t out = 0;
        assert_int_equal(nb_gguf_int(file, cases[i].key, true, v, v, &out, &err), NB_OK);
        assert_int_equal(out, v);
        assert_int_equal(nb_gguf_int(file, cases[i].key, true, v + 1, INT64_MAX, &out, &err),
                         NB_DATA);
        if (v > INT64_MIN)
            assert_int_equal(nb_gguf_int(file, cases[i].key, true, INT64_MIN, v - 1, &out, &err),
                             NB_DATA);
        assert_int_equal(out, v);
    }
    int64_t out = 7;
    assert_int_equal(nb_gguf_int(file, "u64", true, INT64_MIN, INT64_MAX, &out, &err), NB_DATA);
    assert_non_null(strstr(err.text, "key 'u64' is 18446744073709551615, expected"));
    assert_int_equal(nb_gguf_int(file, "i8", true, 0, 10, &out, &err), NB_DATA);
    assert_string_equal(err.text, "key 'i8' is -128, expected 0 to 10");
    assert_int_equal(out, 7);
    bool b = false;
    assert_int_equal(nb_gguf_bool(file, "bool", true, &b, &err), NB_DATA);
    assert_non_null(strstr(err.text, "key 'bool' is the bool 2"));
    nb_gguf_close(file);
}

/* Arrays stand anywhere in the file; what the getters lend is aligned all the same, and moving
 * them there harms nothing around them. */
static void arrays_are_aligned(void **state)
{
    (void)state;
    static const char *const keys[] = {"a", "ab", "abc", "abcd", "abcde", "abcdef", "abcdefg"};
    gguf_bytes g = {0};
    for (int k = 0; k < 7; k++) {
        gb_array(&g, keys[k], k % 2 == 0 ? NB_GGUF_I32 : NB_GGUF_F32, 3);
        for (int i = 0; i < 3; i++) {
            const int32_t v = 10 * k + i;
            const float f = (float)v;
            gb_raw(&g.kv, k % 2 == 0 ? (const void *)&v : &f, 4);
        }
        char text[20];
        snprintf(text, sizeof text, "text.%d", k);
        gb_text(&g, text, keys[k]);
        snprintf(text, sizeof text, "wide.%d", k);
        gb_array(&g, text, NB_GGUF_F64, 1);
        gb_raw_u64(&g.kv, 0x3ff0000000000000u);
    }
    gb_array(&g, "none", NB_GGUF_I32, 0);
    gb_array(&g, "none.f", NB_GGUF_F32, 0);
    nb_gguf *file = open_pairs(&g);
    nb_err err = {0};
    for (int k = 0; k < 7; k++) {
        const int32_t *ints = NULL;
        const float *floats = NULL;
        int64_t n = 0;
        if (k % 2 == 0)
            assert_int_equal(nb_gguf_i32s(file, keys[k], true, &ints, &n, &err), NB_OK);
        else
            assert_int_equal(nb_gguf_f32s(file, keys[k], true, &floats, &n, &err), NB_OK);
        assert_int_equal(n, 3);
        assert_int_equal(((uintptr_t)ints | (uintptr_t)floats) % 4, 0);
        for (int i = 0; i < 3; i++)
            assert_true((k % 2 == 0 ? (double)ints[i] : (double)floats[i]) == 10 * k + i);
        char key[20];
        snprintf(key, sizeof key, "text.%d", k);
        nb_text text;
        assert_int_equal(nb_gguf_text(file, key, true, &text, &err), NB_OK);
        assert_int_equal(text.len, strlen(keys[k]));
        assert_memory_equal(text.text, keys[k], text.len);
        snprintf(key, sizeof key, "wide.%d", k);
        assert_memory_equal(nb_gguf_find(file, key)->data, "\0\0\0\0\0\0\xf0\x3f", 8);
    }
    const int32_t *ints = NULL;
    int64_t n = 7;
    assert_int_equal(nb_gguf_i32s(file, "none", true, &ints, &n, &err), NB_OK);
    assert_non_null(ints);
    assert_int_equal(n, 0);
    /* One integer type is not the other. */
    const float *floats = NULL;
    assert_int_equal(nb_gguf_f32s(file, "a", true, &floats, &n, &err), NB_DATA);
    assert_string_equal(err.text, "key 'a' is an array of i32, expected an array of f32");
    nb_gguf_close(file);
}

/* A header of megabytes is parsed in several pieces, and says the same as if it were small. */
static void long_headers(void **state)
{
    (void)state;
    gguf_bytes g = {0};
    enum { N = 100000 };
    gb_array(&g, "tokens", NB_GGUF_STRING, N);
    char token[32];
    for (int i = 0; i < N; i++) {
        snprintf(token, sizeof token, "token-%d", i);
        gb_raw_string(&g.kv, token);
    }
    gb_array(&g, "types", NB_GGUF_I32, N);
    for (uint32_t i = 0; i < N; i++)
        gb_raw_u32(&g.kv, i);
    gb_u32(&g, "last", 12345);
    nb_gguf *file = open_pairs(&g);
    nb_err err = {0};
    nb_arena arena = {0};
    nb_text *texts;
    int64_t n = 0, last = 0;
    assert_int_equal(nb_gguf_texts(file, "tokens", true, &arena, &texts, &n, &err), NB_OK);
    assert_int_equal(n, N);
    for (int i = 0; i < N; i++) {
        const int len = snprintf(token, sizeof token, "token-%d", i);
        if (texts[i].len != (size_t)len || memcmp(texts[i].text, token, (size_t)len) != 0)
            fail_msg("token %d is '%.*s'", i, (int)texts[i].len, texts[i].text);
    }
    const int32_t *types;
    assert_int_equal(nb_gguf_i32s(file, "types", true, &types, &n, &err), NB_OK);
    for (int32_t i = 0; i < N; i++) {
        if (types[i] != i)
            fail_msg("type %d is %d", i, types[i]);
    }
    assert_int_equal(nb_gguf_int(file, "last", true, 12345, 12345, &last, &err), NB_OK);
    nb_arena_free(&arena);
    nb_gguf_close(file);
}

/* The file that was parsed is the file that was opened. */
static void a_header_that_changes_is_noticed(void **state)
{
    (void)state;
    gguf_bytes g = {0};
    gb_u32(&g, "some.key", 1);
    nb_gguf_close(open_pairs(&g));
    nb_file file;
    nb_err err = {0};
    assert_int_equal(nb_file_open(&file, scratch_path("pairs.gguf"), &err), NB_OK);
    FILE *f = fopen(scratch_path("pairs.gguf"), "ab");
    assert_non_null(f);
    assert_int_equal(fputc(0, f), 0);
    assert_int_equal(fclose(f), 0);
    nb_gguf *out = NULL;
    assert_int_equal(nb_gguf_open(&out, &file, &err), NB_DATA);
    assert_non_null(strstr(err.text, "pairs.gguf: changed while reading"));
    assert_null(out);
    nb_file_close(&file);
}

/* What the encoders write is byte for byte what formats.md says. */
static void encoders_write_the_layout(void **state)
{
    (void)state;
    gguf_bytes g = {0};
    gb_u32(&g, "a.u32", 7);
    gb_f32(&g, "a.f32", 0.5f);
    gb_key(&g, "a.bool", NB_GGUF_BOOL);
    gb_raw_u8(&g.kv, 1);
    gb_text(&g, "a.text", "some text");
    gb_array(&g, "texts", NB_GGUF_STRING, 2);
    gb_raw_string(&g.kv, "one");
    gb_raw_string(&g.kv, "");
    gb_array(&g, "ints", NB_GGUF_I32, 2);
    gb_raw_u32(&g.kv, 1);
    gb_raw_u32(&g.kv, 0xffffffffu);
    gb_array(&g, "floats", NB_GGUF_F32, 1);
    gb_raw_u32(&g.kv, 0x3f000000);
    gb_array(&g, "nothing", NB_GGUF_F32, 0);

    nb_buf kv = {0};
    nb_err err = {0};
    const nb_text texts[2] = {{"one", 3}, {"", 0}};
    assert_int_equal(nb_gguf_put_u32(&kv, "a.u32", 7, &err), NB_OK);
    assert_int_equal(nb_gguf_put_f32(&kv, "a.f32", 0.5f, &err), NB_OK);
    assert_int_equal(nb_gguf_put_bool(&kv, "a.bool", true, &err), NB_OK);
    assert_int_equal(nb_gguf_put_text(&kv, "a.text", "some text, cut", 9, &err), NB_OK);
    assert_int_equal(nb_gguf_put_texts(&kv, "texts", texts, 2, &err), NB_OK);
    assert_int_equal(nb_gguf_put_i32s(&kv, "ints", (const int32_t[]){1, -1}, 2, &err), NB_OK);
    assert_int_equal(nb_gguf_put_f32s(&kv, "floats", (const float[]){0.5f}, 1, &err), NB_OK);
    assert_int_equal(nb_gguf_put_f32s(&kv, "nothing", NULL, 0, &err), NB_OK);
    assert_int_equal(kv.len, g.kv.len);
    assert_memory_equal(kv.data, g.kv.data, kv.len);

    /* A call that fails leaves nothing behind. */
    const size_t before = kv.len;
    kv.limit = before + 20;
    assert_int_equal(nb_gguf_put_text(&kv, "a.key", "a text that does not fit", 24, &err),
                     NB_LIMIT);
    assert_int_equal(nb_gguf_put_texts(&kv, "k", texts, 2, &err), NB_LIMIT);
    assert_int_equal(nb_gguf_put_i32s(&kv, "k", (const int32_t[]){1, -1}, 2, &err), NB_LIMIT);
    assert_int_equal(nb_gguf_put_u32(&kv, "a.longer.key", 1, &err), NB_LIMIT);
    assert_int_equal(kv.len, before);
    nb_buf_free(&kv);
    gb_free(&g);
}

/* Spans of exactly their size, cut and broken everywhere: a sanitizer sees a read past the end. */
static void pairs_of_a_span(void **state)
{
    (void)state;
    nb_buf kv = {0};
    nb_err err = {0};
    const nb_text texts[2] = {{"one", 3}, {"", 0}};
    assert_int_equal(nb_gguf_put_u32(&kv, "general.alignment", 64, &err), NB_OK);
    assert_int_equal(nb_gguf_put_texts(&kv, "texts", texts, 2, &err), NB_OK);
    assert_int_equal(nb_gguf_put_f32s(&kv, "floats", (const float[]){0.5f}, 1, &err), NB_OK);
    for (size_t n = 0; n <= kv.len; n++) {
        uint8_t *span = malloc(n == 0 ? 1 : n);
        assert_non_null(span);
        memcpy(span, kv.data, n);
        nb_gguf *g = NULL;
        const nb_status s = nb_gguf_open_pairs(&g, span, n, 3, &err);
        assert_int_equal(s, n == kv.len ? NB_OK : NB_DATA);
        if (s == NB_OK)
            assert_int_equal(g->alignment, 64);
        nb_gguf_close(g);
        for (size_t at = 0; n == kv.len && at < n; at++) {
            for (int bit = 0; bit < 8; bit++) {
                span[at] ^= (uint8_t)(1 << bit);
                g = NULL;
                (void)nb_gguf_open_pairs(&g, span, n, 3, &err);
                nb_gguf_close(g);
                span[at] ^= (uint8_t)(1 << bit);
            }
        }
        free(span);
    }
    nb_gguf *g = NULL;
    assert_int_equal(nb_gguf_open_pairs(&g, kv.data, kv.len, 2, &err), NB_DATA);
    assert_non_null(strstr(err.text, "bytes follow the last of 2 keys"));
    assert_int_equal(nb_gguf_open_pairs(&g, kv.data, kv.len, 4, &err), NB_DATA);
    assert_int_equal(nb_gguf_open_pairs(&g, kv.data, kv.len, -1, &err), NB_DATA);
    assert_null(g);
    nb_buf_free(&kv);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_type_against_every_getter),
        cmocka_unit_test(missing_keys),
        cmocka_unit_test(integers_in_their_range),
        cmocka_unit_test(arrays_are_aligned),
        cmocka_unit_test(long_headers),
        cmocka_unit_test(encoders_write_the_layout),
        cmocka_unit_test(a_header_that_changes_is_noticed),
        cmocka_unit_test(pairs_of_a_span),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
