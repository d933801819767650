/* The tokenizer as a whole: ids against the reference library on tokenizers small enough to check
 * in, and decoding in pieces. */
#include "base/rng.h"
#include "support/golden.h"
#include "support/scratch.h"
#include "text/tiny_tokenizer.h"
#include "text/tokenizer_parts.h"

#include <stdio.h>
#include <string.h>

static void print_ids(char *out, size_t size, const nb_tokens *t)
{
    size_t n = 0;
    out[0] = '\0';
    for (int64_t i = 0; i < t->n && n + 16 < size; i++)
        n += (size_t)snprintf(out + n, size - n, "%d ", t->ids[i]);
}

static void check_ids(const nb_tokenizer *t, const char *name, const json_t *text,
                      const json_t *expected, nb_encode_options options)
{
    nb_tokens got = encode(t, json_string_value(text), json_string_length(text), options);
    bool same = got.n == (int64_t)json_array_size(expected);
    for (int64_t i = 0; i < got.n && same; i++)
        same = got.ids[i] == json_integer_value(json_array_get(expected, (size_t)i));
    if (!same) {
        char ids[400];
        char *wanted = json_dumps(expected, JSON_COMPACT);
        print_ids(ids, sizeof ids, &got);
        fail_msg("%s on \"%s\" (special %d): got %s, expected %.300s", name,
                 json_string_value(text), options.parse_special, ids, wanted);
    }
    nb_tokens_free(&got);
}

static void check_decoded(const nb_tokenizer *t, const char *name, const json_t *ids,
                          const json_t *expected)
{
    if (json_is_null(expected))
        return; /* the reference breaks these texts: scripts/make_tokenizer_vectors.py */
    nb_err err = {0};
    nb_tokens list = {0};
    for (size_t i = 0; i < json_array_size(ids); i++)
        assert_int_equal(
            nb_tokens_push(&list, (int32_t)json_integer_value(json_array_get(ids, i)), &err),
            NB_OK);
    nb_buf out = {0};
    nb_decoder d = {0};
    assert_int_equal(nb_tokenizer_decode(t, &d, list.ids, list.n, false, true, &out, &err), NB_OK);
    if (out.len != json_string_length(expected) ||
        (out.len > 0 && memcmp(out.data, json_string_value(expected), out.len) != 0))
        fail_msg("%s decodes to \"%.*s\", expected \"%s\"", name, (int)out.len,
                 (const char *)out.data, json_string_value(expected));
    nb_buf_free(&out);
    nb_tokens_free(&list);
}

static void check_variant(const nb_tokenizer *t, const json_t *golden, const json_t *variant)
{
    const char *name = json_string_value(golden_get(variant, "name"));
    const json_t *texts = golden_get(golden, "texts"), *ids = golden_get(variant, "ids");
    const json_t *special = json_object_get(variant, "ids_special");
    assert_true(json_array_size(texts) > 30);
    for (size_t i = 0; i < json_array_size(texts); i++) {
        const json_t *text = json_array_get(texts, i);
        check_ids(t, name, text, json_array_get(ids, i), (nb_encode_options){0});
        check_decoded(t, name, json_array_get(ids, i),
                      json_array_get(golden_get(variant, "decoded"), i));
        if (special != NULL)
            check_ids(t, name, text, json_array_get(special, i),
                      (nb_encode_options){.parse_special = true, .add_bos = true, .add_end = true});
    }
}

/* All pre-tokenizers, NFC, every flag of added tokens, unknown tokens, ignore_merges,
 * templates of what goes before and after: the reference library's ids, and its text back. */
static void ids_are_those_of_the_reference(void **state)
{
    (void)state;
    json_t *golden = load_tiny();
    const json_t *variants = golden_get(golden, "variants");
    assert_true(json_array_size(variants) >= 20);
    for (size_t i = 0; i < json_array_size(variants); i++) {
        const json_t *variant = json_array_get(variants, i);
        json_t *v = variant_json(golden, variant);
        nb_tokenizer *t = load(v);
        check_variant(t, golden, variant);
        nb_tokenizer_close(t);
        json_decref(v);
    }
    json_decref(golden);
}

/* The spelling of merges before 2024 means the same. */
static void old_spelling_of_merges(void **state)
{
    (void)state;
    json_t *golden = load_tiny();
    const json_t *variant = find_variant(golden, "smollm");
    json_t *v = variant_json(golden, variant);
    json_t *old = json_array(), *pair;
    size_t i;
    json_array_foreach(json_object_get(json_object_get(v, "model"), "merges"), i, pair)
    {
        char line[200];
        snprintf(line, sizeof line, "%s %s", json_string_value(json_array_get(pair, 0)),
                 json_string_value(json_array_get(pair, 1)));
        json_array_append_new(old, json_string(line));
    }
    json_object_set_new(json_object_get(v, "model"), "merges", old);
    nb_tokenizer *t = load(v);
    check_variant(t, golden, variant);
    nb_tokenizer_close(t);
    json_decref(v);
    json_decref(golden);
}

/* A planted fault: without one merge some text must come out otherwise, or the vectors prove
 * nothing. */
static void vectors_catch_a_lost_merge(void **state)
{
    (void)state;
    json_t *golden = load_tiny();
    const json_t *variant = find_variant(golden, "gpt2");
    json_t *v = variant_json(golden, variant);
    json_array_remove(json_object_get(json_object_get(v, "model"), "merges"), 5);
    nb_tokenizer *t = load(v);
    const json_t *texts = golden_get(golden, "texts");
    int n_different = 0;
    for (size_t i = 0; i < json_array_size(texts); i++) {
        const json_t *text = json_array_get(texts, i);
        nb_tokens got =
            encode(t, json_string_value(text), json_string_length(text), (nb_encode_options){0});
        n_different +=
            got.n != (int64_t)json_array_size(json_array_get(golden_get(variant, "ids"), i));
        nb_tokens_free(&got);
    }
    assert_true(n_different > 0);
    nb_tokenizer_close(t);
    json_decref(v);
    json_decref(golden);
}

/* ---- any bytes ---- */

static size_t random_bytes(uint8_t *out, size_t n, uint64_t seed)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t w[4];
        nb_philox(seed, 11, i, w);
        /* Half of it ASCII, so that there are words between the rubbish. */
        out[i] = (uint8_t)(w[0] % 2 == 0 ? w[1] : 32 + w[1] % 95);
    }
    return n;
}

/* The bytes of the tokens are the bytes of the text, whatever the text. */
static void tokens_spell_any_bytes(void **state)
{
    (void)state;
    static const char *const names[] = {"smollm", "llama3", "o200k", "added"};
    for (int k = 0; k < 4; k++) {
        nb_tokenizer *t = load_variant(names[k]);
        for (uint64_t seed = 0; seed < 100; seed++) {
            uint8_t text[300];
            const size_t n = random_bytes(text, 1 + seed * 2, seed);
            nb_tokens ids = encode(t, (const char *)text, n, (nb_encode_options){0});
            size_t at = 0;
            for (int64_t i = 0; i < ids.n; i++) {
                nb_err err = {0};
                const char *bytes;
                size_t len;
                assert_int_equal(nb_tokenizer_token(t, ids.ids[i], &bytes, &len, &err), NB_OK);
                assert_true(at + len <= n);
                assert_memory_equal(text + at, bytes, len);
                at += len;
            }
            assert_int_equal(at, n);
            nb_tokens_free(&ids);
        }
        nb_tokenizer_close(t);
    }
}

/* Bytes without a token are counted over all that a list was filled with, unless an unknown token
 * stands for them. */
static void left_out_bytes_are_counted(void **state)
{
    (void)state;
    nb_err err = {0};
    nb_tokenizer *t = load_variant("left_out");
    nb_tokens out = encode(t, "Hello world", 11, (nb_encode_options){0});
    assert_int_equal(out.n_left_out, 0);
    const int64_t before = out.n;
    assert_int_equal(nb_tokenizer_encode(t, "?!", 2, (nb_encode_options){0}, &out, &err), NB_OK);
    assert_int_equal(out.n, before);
    assert_int_equal(out.n_left_out, 2);
    assert_int_equal(nb_tokenizer_encode(t, "a!", 2, (nb_encode_options){0}, &out, &err), NB_OK);
    assert_int_equal(out.n, before + 1);
    assert_int_equal(out.n_left_out, 3);
    nb_tokens_free(&out);
    nb_tokenizer_close(t);
    static const char *const names[] = {"unknown", "unknown_fused"};
    for (int i = 0; i < 2; i++) {
        t = load_variant(names[i]);
        out = encode(t, "?!", 2, (nb_encode_options){0});
        assert_int_equal(out.n, 1); /* two of the token "a" merge, one fused is "a" itself */
        assert_int_equal(out.n_left_out, 0);
        nb_tokens_free(&out);
        nb_tokenizer_close(t);
    }
}

/* A failed encoding appends nothing and counts nothing. */
static void failure_leaves_the_output(void **state)
{
    (void)state;
    nb_tokenizer *t = load_variant("left_out");
    char text[600];
    for (size_t i = 0; i < sizeof text; i++)
        text[i] = "a !"[i % 3];
    nb_tokens out = encode(t, "abc!", 4, (nb_encode_options){0});
    const int64_t before = out.n;
    nb_status s = NB_MEMORY;
    int64_t k = 0;
    while (s == NB_MEMORY) {
        nb_err err = {0};
        nb_alloc_fail_at(++k);
        s = nb_tokenizer_encode(t, text, sizeof text, (nb_encode_options){0}, &out, &err);
        nb_alloc_fail_at(0);
        assert_true(s == NB_OK || (out.n == before && out.n_left_out == 1));
    }
    assert_int_equal(s, NB_OK);
    assert_true(k > 2);
    assert_int_equal(out.n_left_out, 201);
    nb_tokens_free(&out);
    nb_tokenizer_close(t);
}

/* ---- decoding ---- */

/* In one piece, token by token and byte by byte: the same text, and always UTF-8. */
static void decoding_in_pieces(void **state)
{
    (void)state;
    nb_tokenizer *t = load_variant("gpt2");
    for (uint64_t seed = 0; seed < 300; seed++) {
        nb_err err = {0};
        int32_t ids[60];
        for (uint64_t i = 0; i < 60; i++) {
            uint32_t w[4];
            nb_philox(seed, 13, i, w);
            /* Mostly single bytes above 127, which make and break sequences. */
            ids[i] = (int32_t)(w[0] % 4 == 0 ? w[1] % (uint32_t)nb_tokenizer_n_tokens(t)
                                             : 94 + w[1] % 94);
        }
        nb_buf whole = {0}, pieces = {0};
        nb_decoder d = {0};
        assert_int_equal(nb_tokenizer_decode(t, &d, ids, 60, true, true, &whole, &err), NB_OK);
        assert_int_equal(d.n_pending, 0);
        for (int i = 0; i < 60; i++) {
            assert_int_equal(nb_tokenizer_decode(t, &d, ids + i, 1, true, false, &pieces, &err),
                             NB_OK);
            json_t *valid = json_stringn((const char *)pieces.data, pieces.len);
            assert_true(pieces.len == 0 || valid != NULL);
            json_decref(valid);
        }
        assert_int_equal(nb_tokenizer_decode(t, &d, NULL, 0, true, true, &pieces, &err), NB_OK);
        assert_int_equal(whole.len, pieces.len);
        assert_memory_equal(whole.data, pieces.data, whole.len);
        nb_buf_free(&whole);
        nb_buf_free(&pieces);
    }
    nb_tokenizer_close(t);
}

static void check_decode_bytes(const nb_tokenizer *t, const char *bytes, bool final,
                               const char *expected, int n_pending)
{
    nb_err err = {0};
    nb_decoder d = {0};
    nb_buf out = {0};
    for (const char *b = bytes; *b != '\0'; b++) {
        const int32_t id = t->bpe.byte_id[(uint8_t)*b];
        assert_int_equal(nb_tokenizer_decode(t, &d, &id, 1, true, false, &out, &err), NB_OK);
    }
    assert_int_equal(nb_tokenizer_decode(t, &d, NULL, 0, true, final, &out, &err), NB_OK);
    assert_int_equal(out.len, strlen(expected));
    if (out.len > 0)
        assert_memory_equal(out.data, expected, out.len);
    assert_int_equal(d.n_pending, n_pending);
    nb_buf_free(&out);
}

#define BAD "\xef\xbf\xbd"

/* One U+FFFD for each longest beginning of a sequence, as the Unicode Standard's table 3-8. */
static void broken_sequences(void **state)
{
    (void)state;
    nb_tokenizer *t = load_variant("gpt2");
    check_decode_bytes(t, "\xe2\x82\xac", false, "\u20ac", 0);
    check_decode_bytes(t, "\xe2\x82", false, "", 2);
    check_decode_bytes(t, "\xe2\x82", true, BAD, 0);
    check_decode_bytes(t, "\xf0\x9f\x99", true, BAD, 0);
    check_decode_bytes(t, "\xe2\x82x", false, BAD "x", 0);
    check_decode_bytes(t, "\x80\xff", false, BAD BAD, 0);
    check_decode_bytes(t, "\xc0\xaf", false, BAD BAD, 0);
    check_decode_bytes(t, "\xe0\x9f\x80", false, BAD BAD BAD, 0);
    check_decode_bytes(t, "\xed\xa0\x80", false, BAD BAD BAD, 0);
    check_decode_bytes(t, "\xf4\x91\x92\x93", false, BAD BAD BAD BAD, 0);
    check_decode_bytes(t, "\xf0\x80\x80\x41", false, BAD BAD BAD "A", 0);
    check_decode_bytes(t, "\xe1\x80\xe2\xf0\x91\x92\xf1\xbf\x41", false, BAD BAD BAD BAD "A", 0);
    check_decode_bytes(t, "\xc3\xc3\xa9", false, BAD "\u00e9", 0);
    nb_tokenizer_close(t);
}

static void ids_that_do_not_exist(void **state)
{
    (void)state;
    nb_tokenizer *t = load_variant("added");
    nb_err err = {0};
    nb_buf out = {0};
    nb_decoder d = {.pending = {0xe2}, .n_pending = 1};
    const int64_t n = nb_tokenizer_n_tokens(t);
    const int32_t bad[] = {-1, (int32_t)n, INT32_MAX, INT32_MIN};
    for (int i = 0; i < 4; i++) {
        const int32_t ids[] = {65, bad[i]};
        const char *bytes;
        size_t len;
        assert_int_equal(nb_tokenizer_decode(t, &d, ids, 2, true, true, &out, &err), NB_DATA);
        assert_int_equal(out.len, 0);
        assert_int_equal(d.n_pending, 1);
        assert_int_equal(nb_tokenizer_token(t, bad[i], &bytes, &len, &err), NB_DATA);
        assert_false(nb_tokenizer_is_special(t, bad[i]));
        assert_false(nb_tokenizer_is_stop(t, bad[i]));
    }
    nb_buf_free(&out);
    /* Special tokens are left out unless asked for; their text is their content. */
    const int32_t s = nb_tokenizer_find(t, "<s>", 3);
    assert_true(s >= 0 && nb_tokenizer_is_special(t, s));
    const int32_t tool = nb_tokenizer_find(t, "<tool>", 6);
    assert_true(tool >= 0 && !nb_tokenizer_is_special(t, tool));
    const int32_t ids[] = {s, tool};
    for (int with = 0; with < 2; with++) {
        nb_decoder start = {0};
        const char *expected = with ? "<s><tool>" : "<tool>";
        assert_int_equal(nb_tokenizer_decode(t, &start, ids, 2, with, true, &out, &err), NB_OK);
        assert_int_equal(out.len, strlen(expected));
        assert_memory_equal(out.data, expected, out.len);
        nb_buf_free(&out);
    }
    nb_tokenizer_close(t);
}

/* ---- memory ---- */

static nb_status whole_life(const json_t *v, nb_err *err)
{
    nb_tokenizer *t;
    nb_tokens ids = {0};
    nb_buf text = {0}, kv = {0};
    nb_decoder d = {0};
    int64_t n_kv = 0;
    char many[200];
    memset(many, 'a', sizeof many);
    nb_status s = nb_tokenizer_from_json(&t, v, NULL, NULL, NULL, -1, err);
    if (s != NB_OK)
        return s;
    s = nb_tokenizer_encode(t, "e\u0301 <s> 12", 11, (nb_encode_options){true, true, true}, &ids,
                            err);
    if (s == NB_OK)
        s = nb_tokenizer_encode(t, many, sizeof many, (nb_encode_options){0}, &ids, err);
    if (s == NB_OK)
        s = nb_tokenizer_decode(t, &d, ids.ids, ids.n, true, true, &text, err);
    if (s == NB_OK)
        s = nb_tokenizer_to_gguf(t, 500, &kv, &n_kv, err);
    nb_buf_free(&kv);
    nb_buf_free(&text);
    nb_tokens_free(&ids);
    nb_tokenizer_close(t);
    return s;
}

/* Loading, encoding, decoding and writing with the first, second, third ... allocation failing. */
static void without_memory(void **state)
{
    (void)state;
    json_t *v = json_loads(
        "{\"version\":\"1.0\",\"added_tokens\":[{\"id\":4,\"content\":\"<s>\",\"special\":true},"
        "{\"id\":5,\"content\":\"<t>\",\"normalized\":true}],\"normalizer\":{\"type\":\"NFC\"},"
        "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\","
        "\"pattern\":{\"Regex\":\"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?"
        "\\\\p{L}+|\\\\p{N}| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|"
        "\\\\s+(?!\\\\S)|\\\\s+\"},\"behavior\":\"Isolated\",\"invert\":false},"
        "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}]},"
        "\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\","
        "\"vocab\":{\"a\":0,\"b\":1,\"aa\":2,\"u\":3},\"merges\":[\"a a\"]}}",
        0, NULL);
    assert_non_null(v);
    const int64_t live = nb_alloc_live();
    nb_status s = NB_MEMORY;
    int64_t k = 0;
    while (s == NB_MEMORY) {
        nb_err err = {0};
        nb_alloc_fail_at(++k);
        s = whole_life(v, &err);
        nb_alloc_fail_at(0);
        if (s != NB_OK && s != NB_MEMORY)
            fail_msg("allocation %d failing: %s", (int)k, err.text);
        assert_int_equal(nb_alloc_live(), live);
    }
    assert_true(k > 20);
    json_decref(v);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ids_are_those_of_the_reference),
        cmocka_unit_test(old_spelling_of_merges),
        cmocka_unit_test(vectors_catch_a_lost_merge),
        cmocka_unit_test(tokens_spell_any_bytes),
        cmocka_unit_test(left_out_bytes_are_counted),
        cmocka_unit_test(failure_leaves_the_output),
        cmocka_unit_test(decoding_in_pieces),
        cmocka_unit_test(broken_sequences),
        cmocka_unit_test(ids_that_do_not_exist),
        cmocka_unit_test(without_memory),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
