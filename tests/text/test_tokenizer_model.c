/* The tokenizer of the real model, SmolLM2-135M-Instruct, on long texts: counts and hashes of ids
 * by the reference library (scripts/make_tokenizer_vectors.py).
 *
 * The file is NIBBLE_MODEL, or where `nibble pull` leaves it; without it the test is skipped. */
#define _GNU_SOURCE
#include "support/golden.h"
#include "support/real_model.h"

#include "base/sha256.h"
#include "text/tokenizer_parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static nb_tokenizer *model;

/* Long texts that are made here, exactly as the script makes them. */
static uint64_t generator;

static uint32_t below(uint32_t n)
{
    generator = generator * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((generator >> 33) % n);
}

static void put(nb_buf *b, const void *bytes, size_t n)
{
    nb_err err = {0};
    assert_int_equal(nb_buf_put(b, bytes, n, &err), NB_OK);
}

static void put_char(nb_buf *b, int32_t c)
{
    uint8_t utf8[4] = {(uint8_t)c};
    size_t n = 1;
    if (c >= 0x10000) {
        utf8[0] = (uint8_t)(0xf0 | c >> 18);
        utf8[n++] = (uint8_t)(0x80 | (c >> 12 & 0x3f));
        utf8[n++] = (uint8_t)(0x80 | (c >> 6 & 0x3f));
        utf8[n++] = (uint8_t)(0x80 | (c & 0x3f));
    } else if (c >= 0x800) {
        utf8[0] = (uint8_t)(0xe0 | c >> 12);
        utf8[n++] = (uint8_t)(0x80 | (c >> 6 & 0x3f));
        utf8[n++] = (uint8_t)(0x80 | (c & 0x3f));
    } else if (c >= 0x80) {
        utf8[0] = (uint8_t)(0xc0 | c >> 6);
        utf8[n++] = (uint8_t)(0x80 | (c & 0x3f));
    }
    put(b, utf8, n);
}

static void random_bytes(nb_buf *b)
{
    generator = 1;
    for (int i = 0; i < 1000000; i++) {
        const uint8_t byte = (uint8_t)below(256);
        put(b, &byte, 1);
    }
}

static void random_latin1(nb_buf *b)
{
    generator = 1;
    for (int i = 0; i < 1000000; i++)
        put_char(b, (int32_t)below(256));
}

/* The bytes of the longest beginning of a character at p; *whole when it is one. */
static size_t beginning(const uint8_t *p, size_t left, bool *whole)
{
    const uint8_t b = p[0];
    const size_t n = b < 0x80 ? 1 : b < 0xc2 ? 0 : b < 0xe0 ? 2 : b < 0xf0 ? 3 : b < 0xf5 ? 4 : 0;
    size_t i = 1;
    for (; i < n && i < left; i++) {
        const int lo = i > 1 ? 0x80 : b == 0xe0 ? 0xa0 : b == 0xf0 ? 0x90 : 0x80;
        const int hi = i > 1 ? 0xbf : b == 0xed ? 0x9f : b == 0xf4 ? 0x8f : 0xbf;
        if (p[i] < lo || p[i] > hi)
            break;
    }
    *whole = i == n;
    return i;
}

/* Random bytes as UTF-8, with U+FFFD where they are none: what decoding an arbitrary file does. */
static void random_replaced(nb_buf *b)
{
    nb_buf raw = {0};
    random_bytes(&raw);
    for (size_t i = 0; i < raw.len;) {
        bool whole;
        const size_t n = beginning(raw.data + i, raw.len - i, &whole);
        put(b, whole ? (const char *)raw.data + i : "\xef\xbf\xbd", whole ? n : 3);
        i += n;
    }
    nb_buf_free(&raw);
}

static void mixed_scripts(nb_buf *b)
{
    static const int32_t ranges[][2] = {
        {0x61, 0x7a},       {0x41, 0x5a},       {0x30, 0x39},       {0x21, 0x7e},
        {0xc0, 0x17f},      {0x300, 0x36f},     {0x391, 0x3c9},     {0x410, 0x44f},
        {0x5d0, 0x5ea},     {0x621, 0x64a},     {0x660, 0x669},     {0x905, 0x939},
        {0x966, 0x96f},     {0xe01, 0xe30},     {0x10d0, 0x10f0},   {0x1100, 0x11ff},
        {0x1e00, 0x1eff},   {0x2000, 0x206f},   {0x2150, 0x218b},   {0x2200, 0x22ff},
        {0x3041, 0x3096},   {0x30a1, 0x30fa},   {0x4e00, 0x9fff},   {0xac00, 0xd7a3},
        {0xe000, 0xe0ff},   {0xff01, 0xff5e},   {0x10400, 0x1044f}, {0x1d400, 0x1d7ff},
        {0x1f300, 0x1f64f}, {0x20000, 0x2a6df}, {0x10d40, 0x10d85}, {0x0, 0x10ffff}};
    static const char *const between[] = {
        " ",  " ",   " ",  "",       "\n",     "  ",           "\t",           "\r\n",
        "'s", "'LL", " '", "\u00a0", "\n\n  ", "<|im_start|>", " <|im_end|> ", "_"};
    generator = 2;
    while (b->len < 1000000) {
        const int32_t *range = ranges[below(sizeof ranges / sizeof *ranges)];
        for (uint32_t n = 1 + below(12); n > 0; n--) {
            const int32_t c = range[0] + (int32_t)below((uint32_t)(range[1] - range[0] + 1));
            put_char(b, c >= 0xd800 && c < 0xe000 ? 0xfffd : c);
        }
        const char *text = between[below(sizeof between / sizeof *between)];
        put(b, text, strlen(text));
    }
}

/* False: a text of the data folder that is not here. */
static bool make_text(const char *name, nb_buf *b)
{
    static const struct {
        const char *name;
        void (*make)(nb_buf *b);
    } made[] = {{"random bytes, latin-1", random_latin1},
                {"random bytes, replaced", random_replaced},
                {"mixed scripts", mixed_scripts}};
    for (size_t i = 0; i < sizeof made / sizeof *made; i++) {
        if (strcmp(name, made[i].name) == 0) {
            made[i].make(b);
            return true;
        }
    }
    char path[1024];
    nb_err err = {0};
    snprintf(path, sizeof path, "%s/%s", NIBBLE_DATA_DIR, name);
    if (access(path, R_OK) != 0)
        return false;
    if (nb_file_slurp(b, path, (size_t)1 << 30, &err) != NB_OK)
        fail_msg("%s", err.text);
    return true;
}

static nb_tokens encode(const nb_tokenizer *t, const nb_buf *text, bool parse_special)
{
    nb_err err = {0};
    nb_tokens ids = {0};
    if (nb_tokenizer_encode(t, (const char *)text->data, text->len,
                            (nb_encode_options){.parse_special = parse_special}, &ids,
                            &err) != NB_OK)
        fail_msg("%s", err.text);
    return ids;
}

static void hash_ids(const nb_tokens *ids, char hex[NB_SHA256_HEX])
{
    nb_sha256 s;
    uint8_t digest[NB_SHA256_BYTES];
    nb_sha256_init(&s);
    for (int64_t i = 0; i < ids->n; i++) {
        char text[16];
        const int n = snprintf(text, sizeof text, i > 0 ? " %d" : "%d", ids->ids[i]);
        nb_sha256_update(&s, text, (size_t)n);
    }
    nb_sha256_final(&s, digest);
    nb_sha256_hex_of(digest, hex);
}

/* The model's vocabulary under another pre-tokenizer, through its own tokenizer.json. */
static nb_tokenizer *under_chain(const char *chain)
{
    nb_err err = {0};
    nb_tokenizer *t;
    json_t *v, *steps;
    nb_pretokenizer p = {0};
    const char *name = strcmp(chain, "gpt2") == 0     ? "gpt-2"
                       : strcmp(chain, "llama3") == 0 ? "llama-bpe"
                                                      : chain;
    const nb_split_family *family = nb_split_family_by_name(name, strlen(name));
    assert_non_null(family);
    for (int i = 0; i < family->n_steps; i++)
        assert_int_equal(nb_pretokenizer_add(&p, family->steps[i], NULL, &err), NB_OK);
    assert_int_equal(nb_pretokenizer_to_json(&p, &steps, &err), NB_OK);
    assert_int_equal(nb_tokenizer_to_json(model, &v, &err), NB_OK);
    json_object_set_new(v, "pre_tokenizer", steps);
    if (nb_tokenizer_from_json(&t, v, NULL, NULL, NULL, -1, &err) != NB_OK)
        fail_msg("%s", err.text);
    json_decref(v);
    nb_pretokenizer_free(&p);
    return t;
}

static size_t skip_left_out(const nb_tokenizer *t, const nb_buf *text, size_t at, int64_t *n)
{
    for (; at < text->len && t->bpe.byte_id[text->data[at]] < 0; at++)
        ++*n;
    return at;
}

/* The tokens spell the text but for the bytes that the vocabulary lacks, and those were counted. */
static void check_spelling(const nb_tokenizer *t, const nb_tokens *ids, const nb_buf *text)
{
    int64_t n_left_out = 0;
    size_t at = skip_left_out(t, text, 0, &n_left_out);
    for (int64_t i = 0; i < ids->n; i++) {
        nb_err err = {0};
        const char *bytes;
        size_t len;
        assert_int_equal(nb_tokenizer_token(t, ids->ids[i], &bytes, &len, &err), NB_OK);
        for (size_t k = 0; k < len; k++) {
            if (at >= text->len || text->data[at] != (uint8_t)bytes[k])
                fail_msg("token %lld does not spell byte %zu", (long long)i, at);
            at = skip_left_out(t, text, at + 1, &n_left_out);
        }
    }
    assert_int_equal(at, text->len);
    assert_int_equal(ids->n_left_out, n_left_out);
}

/* Every row of the vectors whose text is here: the count, the hash, and the text back. */
static void ids_of_long_texts(void **state)
{
    (void)state;
    json_t *golden = golden_load("tokenizer_smollm2.json"), *row;
    size_t i, n_compared = 0;
    json_array_foreach(golden_get(golden, "rows"), i, row)
    {
        const char *name = json_string_value(golden_get(row, "text"));
        const char *chain = json_string_value(golden_get(row, "chain"));
        nb_buf text = {0};
        if (!make_text(name, &text)) {
            print_message("%s is not in %s\n", name, NIBBLE_DATA_DIR);
            continue;
        }
        nb_tokenizer *t = strcmp(chain, "smollm") == 0 ? model : under_chain(chain);
        nb_tokens ids = encode(t, &text, json_is_true(golden_get(row, "parse_special")));
        char hex[NB_SHA256_HEX];
        hash_ids(&ids, hex);
        if (ids.n != json_integer_value(golden_get(row, "n")) ||
            strcmp(hex, json_string_value(golden_get(row, "sha256"))) != 0)
            fail_msg("%s, %s: %lld ids with hash %s", name, chain, (long long)ids.n, hex);
        check_spelling(t, &ids, &text);
        nb_tokens_free(&ids);
        nb_buf_free(&text);
        if (t != model)
            nb_tokenizer_close(t);
        n_compared++;
    }
    assert_true(n_compared >= 24);
    json_decref(golden);
}

/* What the keys of this file say. */
static void keys_of_the_model(void **state)
{
    (void)state;
    assert_int_equal(nb_tokenizer_n_tokens(model), 49152);
    assert_int_equal(nb_tokenizer_bos(model), 1);
    assert_int_equal(nb_tokenizer_eos(model), 2);
    assert_false(nb_tokenizer_adds_bos(model));
    assert_int_equal(nb_tokenizer_find(model, "<|im_end|>", 10), 2);
    assert_true(nb_tokenizer_is_special(model, 2));
    assert_true(nb_tokenizer_is_stop(model, 2));
    /* The unknown token is named, and stands for nothing. */
    assert_int_equal(model->unknown, 0);
    assert_int_equal(model->bpe.unknown, -1);
}

/* Raw random bytes, mostly no UTF-8. */
static void raw_bytes(void **state)
{
    (void)state;
    nb_buf text = {0};
    random_bytes(&text);
    nb_tokens ids = encode(model, &text, false);
    check_spelling(model, &ids, &text);
    assert_true(ids.n_left_out > 0);
    nb_tokens_free(&ids);
    nb_buf_free(&text);
}

/* A megabyte of one character: linear, or the time limit of this test is over. */
static void one_character(void **state)
{
    (void)state;
    static const char letters[] = {'a', ' ', '\n', '-', '1', 'A', '\t', '\xff'};
    for (size_t i = 0; i < sizeof letters; i++) {
        nb_buf text = {0};
        nb_err err = {0};
        assert_int_equal(nb_buf_reserve(&text, 1 << 20, &err), NB_OK);
        memset(text.data, letters[i], 1 << 20);
        text.len = 1 << 20;
        nb_tokens ids = encode(model, &text, false);
        check_spelling(model, &ids, &text);
        nb_tokens_free(&ids);
        nb_buf_free(&text);
    }
}

static int open_model(void)
{
    const char *path = real_model_path();
    nb_err err = {0};
    nb_store *store;
    if (nb_store_open(&store, path, &err) != NB_OK) {
        printf("%s\n", err.text);
        return 1;
    }
    const nb_status s = nb_tokenizer_open(&model, store, &err);
    nb_store_close(store);
    if (s != NB_OK)
        printf("%s\n", err.text);
    return s == NB_OK ? 0 : 1;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ids_of_long_texts),
        cmocka_unit_test(keys_of_the_model),
        cmocka_unit_test(raw_bytes),
        cmocka_unit_test(one_character),
    };
    const int status = open_model();
    if (status != 0)
        return status;
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    nb_tokenizer_close(model);
    return failed;
}
