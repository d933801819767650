/* The tokenizer as a whole: ids against the reference library on tokenizers small enough to check
 * in, decoding in pieces, files that lie, and export there and back. */
#define _GNU_SOURCE
#include "support/golden.h"
#include "support/gguf_bytes.h"
#include "support/scratch.h"

#include "base/rng.h"
#include "text/tokenizer_parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Texts may hold a zero byte, which jansson allows only when asked. */
static json_t *load_tiny(void)
{
    json_t *v = json_load_file(NIBBLE_GOLDEN "/tokenizer_tiny.json", JSON_ALLOW_NUL, NULL);
    assert_non_null(v);
    return v;
}

static nb_tokenizer *load(const json_t *v)
{
    nb_err err = {0};
    nb_tokenizer *t;
    if (nb_tokenizer_from_json(&t, v, NULL, NULL, NULL, -1, &err) != NB_OK)
        fail_msg("%s", err.text);
    return t;
}

/* The tokenizer.json of a variant: the base with members replaced. */
static json_t *variant_json(const json_t *golden, const json_t *variant)
{
    json_t *v = json_deep_copy(golden_get(golden, "base"));
    const json_t *top = json_object_get(variant, "tokenizer");
    const json_t *model = json_object_get(variant, "model");
    const json_t *extra = json_object_get(variant, "extra_vocab");
    if (top != NULL)
        json_object_update(v, (json_t *)(uintptr_t)top);
    if (model != NULL)
        json_object_update(json_object_get(v, "model"), (json_t *)(uintptr_t)model);
    if (extra != NULL)
        json_object_update(json_object_get(json_object_get(v, "model"), "vocab"),
                           (json_t *)(uintptr_t)extra);
    return v;
}

static const json_t *find_variant(const json_t *golden, const char *name)
{
    const json_t *variants = golden_get(golden, "variants");
    for (size_t i = 0; i < json_array_size(variants); i++) {
        const json_t *v = json_array_get(variants, i);
        if (strcmp(json_string_value(golden_get(v, "name")), name) == 0)
            return v;
    }
    fail_msg("no variant '%s'", name);
    return NULL;
}

static nb_tokenizer *load_variant(const char *name)
{
    json_t *golden = load_tiny();
    json_t *v = variant_json(golden, find_variant(golden, name));
    nb_tokenizer *t = load(v);
    json_decref(v);
    json_decref(golden);
    return t;
}

static nb_tokens encode(const nb_tokenizer *t, const char *text, size_t len,
                        nb_encode_options options)
{
    nb_err err = {0};
    nb_tokens out = {0};
    if (nb_tokenizer_encode(t, text, len, options, &out, &err) != NB_OK)
        fail_msg("%s", err.text);
    return out;
}

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
                      (nb_encode_options){.parse_special = true, .add_bos = true});
    }
}

/* All pre-tokenizers, NFC, every flag of added tokens, unknown tokens, ignore_merges, a BOS
 * template: the reference library's ids, and its text back. */
static void ids_are_those_of_the_reference(void **state)
{
    (void)state;
    json_t *golden = load_tiny();
    const json_t *variants = golden_get(golden, "variants");
    assert_true(json_array_size(variants) >= 18);
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

/* ---- files that lie ---- */

#define TINY_MODEL(vocab, merges)                                                                  \
    "\"model\":{\"type\":\"BPE\",\"vocab\":" vocab ",\"merges\":" merges "}"
#define TINY(added, model)                                                                         \
    "{\"version\":\"1.0\",\"added_tokens\":" added ",\"normalizer\":null,\"pre_tokenizer\":"       \
    "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true},"                      \
    "\"decoder\":{\"type\":\"ByteLevel\"}," model "}"
#define VOCAB            "{\"a\":0,\"b\":1,\"ab\":2}"
#define ADD(id, content) "[{\"id\":" id ",\"content\":\"" content "\",\"special\":true}]"

static void check_refused(const char *text, nb_status status, const char *reason)
{
    nb_err err = {0};
    nb_tokenizer *t;
    json_t *v;
    const int64_t live = nb_alloc_live();
    nb_status s = nb_json_parse(&v, text, strlen(text), &err);
    if (s == NB_OK) {
        s = nb_tokenizer_from_json(&t, v, NULL, NULL, NULL, -1, &err);
        json_decref(v);
        assert_true(s != NB_OK || t != NULL);
        assert_true(s == NB_OK || t == NULL);
        if (s == NB_OK)
            nb_tokenizer_close(t);
    }
    if (s != status || (reason != NULL && strstr(err.text, reason) == NULL))
        fail_msg("%.300s:\nexpected '%s' (%s), found '%s' (%s)", text, reason,
                 nb_status_name(status), s == NB_OK ? "" : err.text, nb_status_name(s));
    assert_int_equal(nb_alloc_live(), live);
}

static void bad_vocabularies(void **state)
{
    (void)state;
    check_refused(TINY("[]", TINY_MODEL(VOCAB, "[\"a b\"]")), NB_OK, NULL);
    check_refused(TINY("[]", TINY_MODEL("{}", "[]")), NB_DATA, "the vocabulary is empty");
    check_refused(TINY("[]", TINY_MODEL("[]", "[]")), NB_DATA, "vocab");
    check_refused(TINY("[]", TINY_MODEL("{\"a\":-1}", "[]")), NB_DATA, "'a' has id -1");
    check_refused(TINY("[]", TINY_MODEL("{\"a\":2147483647}", "[]")), NB_DATA, "id 2147483647");
    check_refused(TINY("[]", TINY_MODEL("{\"a\":4294967296}", "[]")), NB_DATA, "id 4294967296");
    check_refused(TINY("[]", TINY_MODEL("{\"a\":1e99}", "[]")), NB_DATA, "no integer");
    check_refused(TINY("[]", TINY_MODEL("{\"a\":99999999999999999999}", "[]")), NB_DATA, NULL);
    check_refused(TINY("[]", TINY_MODEL("{\"a\":0.5}", "[]")), NB_DATA, "no integer");
    check_refused(TINY("[]", TINY_MODEL("{\"a\":1.0}", "[]")), NB_DATA, "no integer");
    check_refused(TINY("[]", TINY_MODEL("{\"a\":\"0\"}", "[]")), NB_DATA, "no integer");
    check_refused(TINY("[]", TINY_MODEL("{\"a\":null}", "[]")), NB_DATA, "no integer");
    check_refused(TINY("[]", TINY_MODEL("{\"a\":0,\"b\":0}", "[]")), NB_DATA, "the same id 0");
    check_refused(TINY("[]", TINY_MODEL("{\"a\":0,\"a\":1}", "[]")), NB_DATA, "duplicate");
    check_refused(TINY("[]", TINY_MODEL("{\"\\ud800\":0}", "[]")), NB_DATA, NULL);
    check_refused(TINY("[]", TINY_MODEL("{\"\xff\":0}", "[]")), NB_DATA, NULL);
    /* A gap is fine, and is no token. */
    check_refused(TINY("[]", TINY_MODEL("{\"a\":100}", "[]")), NB_OK, NULL);
    check_refused(TINY("[]", TINY_MODEL("{\"a\":100000}", "[]")), NB_DATA, "id 100000");
}

static void bad_merges(void **state)
{
    (void)state;
    static const struct {
        const char *merges, *reason;
    } bad[] = {{"[\"ab\"]", "merge 0 'ab' is not two texts"},
               {"[\"a \"]", "is not two texts"},
               {"[\" b\"]", "is not two texts"},
               {"[\"\"]", "is not two texts"},
               {"[\"a b\",\"a c\"]", "merge 1 'a' + 'c': the right part"},
               {"[\"c a\"]", "the left part"},
               {"[\"b a\"]", "the whole"},
               {"[\"a b c\"]", "the right part"},
               {"[7]", "merge 0 is neither"},
               {"[null]", "merge 0 is neither"},
               {"[[\"a\"]]", "merge 0 is neither"},
               {"[[\"a\",\"b\",\"c\"]]", "merge 0 is neither"},
               {"[[\"a\",1]]", "merge 0 is neither"},
               {"{}", "merges"},
               {"null", "merges"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char text[1000];
        snprintf(text, sizeof text, TINY("[]", TINY_MODEL(VOCAB, "%s")), bad[i].merges);
        check_refused(text, NB_DATA, bad[i].reason);
    }
}

static void bad_added_tokens(void **state)
{
    (void)state;
#define WITH(added) TINY(added, TINY_MODEL(VOCAB, "[]"))
    check_refused(WITH(ADD("3", "<s>")), NB_OK, NULL);
    check_refused(WITH(ADD("2", "ab")), NB_OK, NULL);
    check_refused(WITH(ADD("3", "")), NB_DATA, "added_tokens[0] is empty");
    check_refused(WITH(ADD("-1", "x")), NB_DATA, "'x' has id -1");
    check_refused(WITH(ADD("2000000000", "x")), NB_DATA, "'x' has id 2000000000");
    check_refused(WITH(ADD("1.5", "x")), NB_DATA, "no integer");
    check_refused(WITH(ADD("\"3\"", "x")), NB_DATA, "no integer");
    check_refused(WITH(ADD("1", "x")), NB_DATA, "tokens 'b' and 'x' have the same id 1");
    check_refused(WITH(ADD("3", "a")), NB_DATA, "tokens 0 and 3 are both 'a'");
    check_refused(WITH("[7]"), NB_DATA, "added_tokens[0] is no object");
    check_refused(WITH("[{\"id\":3}]"), NB_DATA, "added_tokens[0]");
    check_refused(WITH("[{\"id\":3,\"content\":5}]"), NB_DATA, "added_tokens[0]");
    check_refused(WITH("[{\"id\":3,\"content\":\"x\",\"lstrip\":1}]"), NB_DATA, "lstrip");
    check_refused(WITH("[{\"id\":3,\"content\":\"x\"},{\"id\":3,\"content\":\"x\"}]"), NB_DATA,
                  "added twice");
    check_refused(WITH("[{\"id\":3,\"content\":\"x\"},{\"id\":4,\"content\":\"x\"}]"), NB_DATA,
                  "tokens 3 and 4 are both 'x'");
    check_refused(WITH("{}"), NB_DATA, "added_tokens");
#undef WITH
}

/* Each member that asks for something not done, one at a time. */
static void other_kinds_are_refused_by_name(void **state)
{
    (void)state;
    static const struct {
        const char *where, *key, *value;
        nb_status status;
        const char *reason;
    } bad[] = {
        {"", "version", "\"2.0\"", NB_UNSUPPORTED, "'2.0'"},
        {"", "version", "1", NB_DATA, "version"},
        {"", "normalizer", "{\"type\":\"NFKC\"}", NB_UNSUPPORTED, "'NFKC'"},
        {"", "normalizer", "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Lowercase\"}]}",
         NB_UNSUPPORTED, "'Lowercase'"},
        {"", "normalizer", "7", NB_DATA, "normalizer"},
        {"", "pre_tokenizer", "null", NB_UNSUPPORTED, "pre_tokenizer"},
        {"", "pre_tokenizer", "{\"type\":\"Whitespace\"}", NB_UNSUPPORTED, "'Whitespace'"},
        {"", "decoder", "{\"type\":\"Metaspace\"}", NB_UNSUPPORTED, "'Metaspace'"},
        {"", "decoder", "null", NB_DATA, "decoder"},
        {"", "post_processor", "{\"type\":\"RobertaProcessing\"}", NB_UNSUPPORTED,
         "'RobertaProcessing'"},
        {"", "post_processor",
         "{\"type\":\"TemplateProcessing\",\"single\":[{\"Sequence\":{\"id\":\"A\"}},"
         "{\"SpecialToken\":{\"id\":\"a\"}}]}",
         NB_UNSUPPORTED, "template"},
        {"", "post_processor",
         "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"a\"}},"
         "{\"Sequence\":{\"id\":\"A\"}}],\"special_tokens\":{\"a\":{\"ids\":[9]}}}",
         NB_DATA, "id 9"},
        {"model", "type", "\"Unigram\"", NB_UNSUPPORTED, "'Unigram'"},
        {"model", "byte_fallback", "true", NB_UNSUPPORTED, "byte_fallback"},
        {"model", "dropout", "0.1", NB_UNSUPPORTED, "dropout"},
        {"model", "end_of_word_suffix", "\"</w>\"", NB_UNSUPPORTED, "'</w>'"},
        {"model", "continuing_subword_prefix", "\"##\"", NB_UNSUPPORTED, "'##'"},
        {"model", "unk_token", "\"x\"", NB_DATA, "unk_token 'x'"},
        {"model", "ignore_merges", "1", NB_DATA, "ignore_merges"},
        {"", "model", "null", NB_DATA, "model"},
    };
    const char *text = TINY("[]", TINY_MODEL(VOCAB, "[]"));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        json_t *v = json_loads(text, 0, NULL);
        json_t *at = bad[i].where[0] == '\0' ? v : json_object_get(v, bad[i].where);
        json_object_set_new(at, bad[i].key, json_loads(bad[i].value, JSON_DECODE_ANY, NULL));
        char *changed = json_dumps(v, 0);
        check_refused(changed, bad[i].status, bad[i].reason);
        free(changed);
        json_decref(v);
    }
    /* Deep inside sequences. */
    char deep[4000] = "";
    for (int i = 0; i < 20; i++)
        strcat(deep, "{\"type\":\"Sequence\",\"normalizers\":[");
    strcat(deep, "{\"type\":\"NFC\"}");
    for (int i = 0; i < 20; i++)
        strcat(deep, "]}");
    json_t *v = json_loads(text, 0, NULL);
    json_object_set_new(v, "normalizer", json_loads(deep, 0, NULL));
    char *changed = json_dumps(v, 0);
    check_refused(changed, NB_DATA, "nested");
    free(changed);
    json_decref(v);
}

/* ---- the files beside tokenizer.json ---- */

static nb_tokenizer *load_with(const char *config, const char *generation, const char *model)
{
    nb_err err = {0};
    const char *added = "[{\"id\":3,\"content\":\"<s>\",\"special\":true},"
                        "{\"id\":4,\"content\":\"</s>\",\"special\":true}]";
    char text[2000];
    snprintf(text, sizeof text, TINY("%s", TINY_MODEL(VOCAB, "[]")), added);
    json_t *v = json_loads(text, 0, NULL), *c = json_loads(config, 0, NULL);
    json_t *g = json_loads(generation, 0, NULL), *m = json_loads(model, 0, NULL);
    assert_non_null(v);
    nb_tokenizer *t;
    if (nb_tokenizer_from_json(&t, v, c, g, m, -1, &err) != NB_OK)
        fail_msg("%s", err.text);
    json_decref(v);
    json_decref(c);
    json_decref(g);
    json_decref(m);
    return t;
}

static void named_tokens_and_stops(void **state)
{
    (void)state;
    nb_tokenizer *t = load_with("{\"bos_token\":\"<s>\",\"eos_token\":{\"content\":\"</s>\"},"
                                "\"pad_token\":null,\"unk_token\":\"<s>\",\"add_bos_token\":true}",
                                "{\"eos_token_id\":[2,4,77,-1,\"x\",2]}", "{\"eos_token_id\":1}");
    assert_int_equal(nb_tokenizer_bos(t), 3);
    assert_int_equal(nb_tokenizer_eos(t), 4);
    assert_int_equal(nb_tokenizer_pad(t), -1);
    assert_int_equal(t->unknown, 3);
    assert_int_equal(t->bpe.unknown, -1); /* the model itself has none */
    assert_true(nb_tokenizer_adds_bos(t));
    assert_true(nb_tokenizer_is_stop(t, 4));
    assert_true(nb_tokenizer_is_stop(t, 2));
    assert_false(nb_tokenizer_is_stop(t, 1)); /* config.json counts when there is nothing better */
    assert_false(nb_tokenizer_is_stop(t, 77));
    assert_int_equal(t->n_stops, 2);
    nb_tokens ids = encode(t, "ab", 2, (nb_encode_options){.add_bos = true});
    assert_int_equal(ids.n, 3);
    assert_int_equal(ids.ids[0], 3);
    nb_tokens_free(&ids);
    nb_tokenizer_close(t);

    t = load_with("{\"eos_token\":\"nothing\"}", "{}", "{\"eos_token_id\":1}");
    assert_int_equal(nb_tokenizer_bos(t), -1);
    assert_int_equal(nb_tokenizer_eos(t), 1);
    assert_true(nb_tokenizer_is_stop(t, 1));
    assert_false(nb_tokenizer_adds_bos(t));
    nb_tokenizer_close(t);

    t = load_with("{}", "{}", "{\"eos_token_id\":500,\"bos_token_id\":-3}");
    assert_int_equal(nb_tokenizer_eos(t), -1);
    nb_tokenizer_close(t);
}

/* Without the embedding's shape, config.json's vocab_size bounds the ids. */
static void ids_past_the_rows(void **state)
{
    (void)state;
    nb_err err = {0};
    nb_tokenizer *t;
    json_t *v = json_loads(TINY("[]", TINY_MODEL(VOCAB, "[]")), 0, NULL);
    json_t *model = json_loads("{\"vocab_size\":2}", 0, NULL);
    assert_int_equal(nb_tokenizer_from_json(&t, v, NULL, NULL, model, -1, &err), NB_DATA);
    assert_string_equal(err.text, "token 'ab' has id 2; ids from 0 to 1 were expected");
    assert_int_equal(nb_tokenizer_from_json(&t, v, NULL, NULL, model, 2, &err), NB_DATA);
    assert_int_equal(nb_tokenizer_from_json(&t, v, NULL, NULL, model, 3, &err), NB_OK);
    assert_int_equal(nb_tokenizer_n_tokens(t), 3);
    nb_tokenizer_close(t);
    json_decref(model);
    json_decref(v);
}

/* ---- special tokens in text ---- */

/* Text from a user never becomes a control token, also not through ignore_merges or merges. */
static void special_text_stays_text(void **state)
{
    (void)state;
    const char *text = "{\"version\":\"1.0\",\"added_tokens\":"
                       "[{\"id\":4,\"content\":\"ab\",\"special\":true}],\"pre_tokenizer\":"
                       "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true},"
                       "\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\","
                       "\"ignore_merges\":true,\"vocab\":{\"a\":0,\"b\":1,\"aa\":2,\"bb\":3},"
                       "\"merges\":[]}}";
    json_t *v = json_loads(text, 0, NULL);
    nb_tokenizer *t = load(v);
    nb_tokens ids = encode(t, "ab", 2, (nb_encode_options){0});
    assert_int_equal(ids.n, 2);
    assert_int_equal(ids.ids[0], 0);
    assert_int_equal(ids.ids[1], 1);
    nb_tokens_free(&ids);
    ids = encode(t, "ab", 2, (nb_encode_options){.parse_special = true});
    assert_int_equal(ids.n, 1);
    assert_int_equal(ids.ids[0], 4);
    nb_tokens_free(&ids);
    nb_tokenizer_close(t);
    json_decref(v);
}

/* Added tokens and a text made so that a search that goes back would be quadratic. */
static void hostile_added_tokens(void **state)
{
    (void)state;
    const size_t long_len = 200000, n = 1 << 20;
    char *content = malloc(long_len + 2), *text = malloc(n);
    assert_non_null(content);
    assert_non_null(text);
    memset(content, 'a', long_len);
    content[long_len] = 'c';
    content[long_len + 1] = '\0';
    memset(text, 'a', n);
    json_t *v = json_loads(TINY(ADD("3", "<s>"), TINY_MODEL(VOCAB, "[]")), 0, NULL);
    json_array_append_new(
        json_object_get(v, "added_tokens"),
        json_pack("{s:i,s:s,s:b,s:b}", "id", 4, "content", content, "special", 0, "normalized", 0));
    json_array_append_new(
        json_object_get(v, "added_tokens"),
        json_pack("{s:i,s:s,s:b,s:b}", "id", 5, "content", "aa", "special", 0, "normalized", 0));
    nb_tokenizer *t = load(v);
    nb_tokens ids = encode(t, text, n, (nb_encode_options){0});
    assert_int_equal(ids.n, n / 2);
    assert_int_equal(ids.ids[0], 5);
    nb_tokens_free(&ids);
    nb_tokenizer_close(t);
    json_decref(v);
    free(content);
    free(text);
}

/* ---- GGUF ---- */

/* What a test may change about a small GGUF. */
typedef struct {
    const char *model, *pre;
    const char *tokens[8];
    int32_t types[8];
    int n_types; /* -1: no key */
    const char *merges[4];
    int64_t eos, unknown; /* -1: no key */
    int n_rows;           /* 0: no embedding */
} gguf_spec;

static const gguf_spec good_spec = {
    .model = "gpt2",
    .pre = "smollm",
    .tokens = {"<s>", "a", "b", "ab", "Ġ", "<tool>"},
    .types = {3, 1, 1, 1, 1, 4},
    .n_types = 6,
    .merges = {"a b"},
    .eos = 0,
    .unknown = 0,
};

static int count(const char *const *list)
{
    int n = 0;
    while (list[n] != NULL)
        n++;
    return n;
}

static void put_strings(gguf_bytes *g, const char *key, const char *const *list)
{
    gb_array(g, key, 8, (uint64_t)count(list));
    for (int i = 0; list[i] != NULL; i++)
        gb_raw_string(&g->kv, list[i]);
}

static void write_gguf(const gguf_spec *spec, const char *name)
{
    gguf_bytes g = {0};
    nb_buf file = {0};
    gb_text(&g, "general.architecture", "llama");
    if (spec->model != NULL)
        gb_text(&g, "tokenizer.ggml.model", spec->model);
    if (spec->pre != NULL)
        gb_text(&g, "tokenizer.ggml.pre", spec->pre);
    put_strings(&g, "tokenizer.ggml.tokens", spec->tokens);
    if (spec->n_types >= 0) {
        gb_array(&g, "tokenizer.ggml.token_type", 5, (uint64_t)spec->n_types);
        for (int i = 0; i < spec->n_types; i++)
            gb_raw_u32(&g.kv, (uint32_t)spec->types[i]);
    }
    put_strings(&g, "tokenizer.ggml.merges", spec->merges);
    if (spec->eos >= 0)
        gb_u32(&g, "tokenizer.ggml.eos_token_id", (uint32_t)spec->eos);
    if (spec->unknown >= 0)
        gb_u32(&g, "tokenizer.ggml.unknown_token_id", (uint32_t)spec->unknown);
    const float zeros[8 * 32] = {0};
    if (spec->n_rows > 0)
        gb_tensor(&g, "token_embd.weight", 32, (uint64_t)spec->n_rows, 0, zeros,
                  (size_t)spec->n_rows * 32 * sizeof *zeros);
    gb_finish(&g, &file);
    scratch_write(name, file.data, file.len);
    nb_buf_free(&file);
    gb_free(&g);
}

static nb_status open_spec(const gguf_spec *spec, nb_tokenizer **t, nb_err *err)
{
    nb_store *store;
    write_gguf(spec, "t.gguf");
    if (nb_store_open(&store, scratch_path("t.gguf"), err) != NB_OK)
        fail_msg("%s", err->text);
    const nb_status s = nb_tokenizer_open(t, store, err);
    nb_store_close(store);
    return s;
}

static void gguf_keys(void **state)
{
    (void)state;
    nb_err err = {0};
    nb_tokenizer *t;
    gguf_spec spec = good_spec;
    spec.n_rows = 6;
    if (open_spec(&spec, &t, &err) != NB_OK)
        fail_msg("%s", err.text);
    assert_int_equal(nb_tokenizer_n_tokens(t), 6);
    assert_int_equal(nb_tokenizer_eos(t), 0);
    assert_int_equal(nb_tokenizer_bos(t), -1);
    assert_true(nb_tokenizer_is_special(t, 0));
    assert_false(nb_tokenizer_is_special(t, 5));
    const char *bytes;
    size_t len;
    assert_int_equal(nb_tokenizer_token(t, 4, &bytes, &len, &err), NB_OK);
    assert_int_equal(len, 1);
    assert_int_equal(bytes[0], ' ');
    nb_tokens ids = encode(t, "ab ba<tool>", 11, (nb_encode_options){0});
    const int32_t expected[] = {3, 4, 2, 1, 5};
    assert_int_equal(ids.n, 5);
    assert_memory_equal(ids.ids, expected, sizeof expected);
    nb_tokens_free(&ids);
    ids = encode(t, "<s>a", 4, (nb_encode_options){.parse_special = true});
    assert_int_equal(ids.n, 2);
    assert_int_equal(ids.ids[0], 0);
    nb_tokens_free(&ids);
    /* The unknown token is kept for files made from this one, and stands for no byte. */
    ids = encode(t, "aqb", 3, (nb_encode_options){0});
    assert_int_equal(ids.n, 1);
    assert_int_equal(ids.ids[0], 3);
    assert_int_equal(ids.n_left_out, 1);
    nb_tokens_free(&ids);
    json_t *v, *config;
    assert_int_equal(nb_tokenizer_to_json(t, &v, &err), NB_OK);
    assert_int_equal(nb_tokenizer_to_config(t, NULL, &config, &err), NB_OK);
    const json_t *model = json_object_get(v, "model");
    assert_true(json_is_null(golden_get(model, "unk_token")));
    assert_string_equal(json_string_value(golden_get(config, "unk_token")), "<s>");
    json_decref(v);
    json_decref(config);
    nb_tokenizer_close(t);
    spec.unknown = -1;
    assert_int_equal(open_spec(&spec, &t, &err), NB_OK);
    assert_int_equal(t->unknown, -1);
    nb_tokenizer_close(t);
}

static void check_spec(const gguf_spec *spec, nb_status status, const char *reason)
{
    nb_err err = {0};
    nb_tokenizer *t;
    const int64_t live = nb_alloc_live();
    const nb_status s = open_spec(spec, &t, &err);
    if (s == NB_OK)
        nb_tokenizer_close(t);
    if (s != status || (reason != NULL && strstr(err.text, reason) == NULL))
        fail_msg("expected '%s' (%s), found '%s' (%s)", reason, nb_status_name(status), err.text,
                 nb_status_name(s));
    const char *path = scratch_path("t.gguf");
    assert_true(s == NB_OK || strncmp(err.text, path, strlen(path)) == 0);
    assert_int_equal(nb_alloc_live(), live);
}

static void bad_gguf_keys(void **state)
{
    (void)state;
    gguf_spec s = good_spec;
    s.model = "llama";
    check_spec(&s, NB_UNSUPPORTED, "'llama'");
    s.model = NULL;
    check_spec(&s, NB_DATA, "tokenizer.ggml.model");
    static const char *const pres[] = {"default", "tekken", "", "smollm2"};
    for (int i = 0; i < 4; i++) {
        s = good_spec;
        s.pre = pres[i];
        check_spec(&s, NB_UNSUPPORTED, pres[i]);
    }
    s.pre = NULL;
    check_spec(&s, NB_UNSUPPORTED, "tokenizer.ggml.pre");
    s = good_spec;
    s.tokens[0] = NULL;
    s.n_types = 0;
    check_spec(&s, NB_DATA, "is empty");
    s = good_spec;
    s.n_types = 5;
    check_spec(&s, NB_DATA, "5 entries for 6 tokens");
    s.n_types = 7;
    check_spec(&s, NB_DATA, "7 entries for 6 tokens");
    s = good_spec;
    s.types[2] = 9;
    check_spec(&s, NB_DATA, "token 2 has type 9");
    s.types[2] = -1;
    check_spec(&s, NB_DATA, "token 2 has type -1");
    s = good_spec;
    s.tokens[2] = "a";
    check_spec(&s, NB_DATA, "tokens 1 and 2 are both 'a'");
    s.tokens[2] = "\xff";
    check_spec(&s, NB_DATA, "token 2 '\\xff' is not UTF-8");
    s = good_spec;
    s.merges[0] = "ab";
    check_spec(&s, NB_DATA, "merge 0 'ab'");
    s.merges[0] = "b a";
    check_spec(&s, NB_DATA, "merge 0 'b' + 'a'");
    s = good_spec;
    s.eos = 6;
    check_spec(&s, NB_DATA, "eos_token_id");
    s.eos = UINT32_MAX;
    check_spec(&s, NB_DATA, "eos_token_id");
    s = good_spec;
    s.unknown = 6;
    check_spec(&s, NB_DATA, "unknown_token_id");
    s = good_spec;
    s.n_rows = 7;
    check_spec(&s, NB_DATA, "6 tokens for 7 rows");
    s.n_rows = 5;
    check_spec(&s, NB_DATA, "6 tokens for 5 rows");
    s = good_spec;
    s.n_types = -1;
    check_spec(&s, NB_OK, NULL);
}

/* ---- export ---- */

static void assert_same_encoding(const nb_tokenizer *a, const nb_tokenizer *b, const char *what)
{
    json_t *golden = load_tiny();
    const json_t *texts = golden_get(golden, "texts");
    for (size_t i = 0; i < json_array_size(texts); i++) {
        const json_t *text = json_array_get(texts, i);
        for (int special = 0; special < 2; special++) {
            const nb_encode_options options = {.parse_special = special, .add_bos = special};
            nb_tokens x = encode(a, json_string_value(text), json_string_length(text), options);
            nb_tokens y = encode(b, json_string_value(text), json_string_length(text), options);
            if (x.n != y.n || x.n_left_out != y.n_left_out ||
                (x.n > 0 && memcmp(x.ids, y.ids, (size_t)x.n * sizeof *x.ids) != 0))
                fail_msg("%s: other ids for \"%s\"", what, json_string_value(text));
            nb_tokens_free(&x);
            nb_tokens_free(&y);
        }
    }
    json_decref(golden);
}

/* Every variant written as tokenizer.json and read again gives the same ids. */
static void json_export_round_trip(void **state)
{
    (void)state;
    json_t *golden = load_tiny(), *variant;
    size_t i;
    json_array_foreach(golden_get(golden, "variants"), i, variant)
    {
        const char *name = json_string_value(golden_get(variant, "name"));
        nb_err err = {0};
        nb_tokenizer *t = load_variant(name), *back;
        json_t *v, *config;
        assert_int_equal(nb_tokenizer_to_json(t, &v, &err), NB_OK);
        assert_int_equal(nb_tokenizer_to_config(t, "{{ messages }}", &config, &err), NB_OK);
        assert_string_equal(json_string_value(json_object_get(config, "chat_template")),
                            "{{ messages }}");
        assert_int_equal(nb_tokenizer_from_json(&back, v, config, NULL, NULL, -1, &err), NB_OK);
        assert_int_equal(nb_tokenizer_n_tokens(t), nb_tokenizer_n_tokens(back));
        assert_int_equal(nb_tokenizer_bos(t), nb_tokenizer_bos(back));
        assert_int_equal(nb_tokenizer_adds_bos(t), nb_tokenizer_adds_bos(back));
        assert_int_equal(t->unknown, back->unknown);
        assert_int_equal(t->bpe.unknown, back->bpe.unknown);
        assert_same_encoding(t, back, name);
        nb_tokenizer_close(back);
        nb_tokenizer_close(t);
        json_decref(v);
        json_decref(config);
    }
    json_decref(golden);
}

/* tokenizer.json to GGUF keys and back, with rows that have no token. */
static void gguf_export_round_trip(void **state)
{
    (void)state;
    static const char *const names[] = {"gpt2", "smollm", "left_out"};
    for (int i = 0; i < 3; i++) {
        nb_err err = {0};
        nb_tokenizer *t = load_variant(names[i]), *back = NULL;
        const int64_t n_rows = nb_tokenizer_n_tokens(t) + 5;
        nb_tokenizer_add_stop(t, 3);
        t->unknown = 5;
        nb_buf file = {0};
        gguf_bytes g = {0};
        int64_t n_kv = 0;
        gb_text(&g, "general.architecture", "llama");
        assert_int_equal(nb_tokenizer_to_gguf(t, n_rows, &g.kv, &n_kv, &err), NB_OK);
        g.n_kv += (uint64_t)n_kv;
        gb_finish(&g, &file);
        scratch_write("out.gguf", file.data, file.len);
        nb_buf_free(&file);
        gb_free(&g);
        nb_store *store;
        if (nb_store_open(&store, scratch_path("out.gguf"), &err) != NB_OK ||
            nb_tokenizer_open(&back, store, &err) != NB_OK)
            fail_msg("%s", err.text);
        nb_store_close(store);
        assert_int_equal(nb_tokenizer_n_tokens(back), n_rows);
        char pad[32];
        snprintf(pad, sizeof pad, "[PAD%d]", (int)n_rows - 1);
        assert_int_equal(nb_tokenizer_find(back, pad, strlen(pad)), n_rows - 1);
        assert_true(nb_tokenizer_is_stop(back, 3));
        assert_int_equal(back->unknown, 5);
        assert_same_encoding(t, back, names[i]);
        nb_tokenizer_close(back);
        nb_tokenizer_close(t);
    }
    /* What GGUF cannot say is refused. */
    static const struct {
        const char *name, *reason;
    } bad[] = {{"o200k", "no name"},
               {"nfc", "no name"},
               {"gpt2_prefix", "no name"},
               {"added", "single_word"},
               {"unknown", "'a' stands for bytes"}};
    for (int i = 0; i < 5; i++) {
        nb_err err = {0};
        nb_buf kv = {0};
        int64_t n_kv = 0;
        nb_tokenizer *t = load_variant(bad[i].name);
        assert_int_equal(nb_tokenizer_to_gguf(t, 1000, &kv, &n_kv, &err), NB_UNSUPPORTED);
        assert_non_null(strstr(err.text, bad[i].reason));
        assert_int_equal(n_kv, 0);
        assert_int_equal(kv.len, 0);
        nb_buf_free(&kv);
        nb_tokenizer_close(t);
    }
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
    s = nb_tokenizer_encode(t, "e\u0301 <s> 12", 11, (nb_encode_options){true, true}, &ids, err);
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
        cmocka_unit_test(bad_vocabularies),
        cmocka_unit_test(bad_merges),
        cmocka_unit_test(bad_added_tokens),
        cmocka_unit_test(other_kinds_are_refused_by_name),
        cmocka_unit_test(named_tokens_and_stops),
        cmocka_unit_test(ids_past_the_rows),
        cmocka_unit_test(special_text_stays_text),
        cmocka_unit_test(hostile_added_tokens),
        cmocka_unit_test(gguf_keys),
        cmocka_unit_test(bad_gguf_keys),
        cmocka_unit_test(json_export_round_trip),
        cmocka_unit_test(gguf_export_round_trip),
        cmocka_unit_test(without_memory),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
