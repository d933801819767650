/* Merging against the shortest statement of it, the byte alphabet, and merges made to hurt. */
#include "support/golden.h"

#include "base/rng.h"
#include "text/bpe.h"
#include "text/unicode.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static nb_text text_of(const char *s)
{
    return (nb_text){s, strlen(s)};
}

/* A vocabulary of `letters`, and of what `merges` ("a b" each) make. */
typedef struct {
    nb_vocab vocab;
    nb_bpe bpe;
} fixture;

static fixture build(const char *letters, const char *const *merges, int n_merges)
{
    fixture f;
    nb_err err = {0};
    int64_t id = 0;
    assert_int_equal(nb_vocab_init(&f.vocab, 1024, 1 << 16, &err), NB_OK);
    for (const char *c = letters; *c != '\0'; c++)
        assert_int_equal(nb_vocab_put(&f.vocab, id++, (nb_text){c, 1}, false, &err), NB_OK);
    char joined[64];
    for (int i = 0; i < n_merges; i++) {
        const char *space = strchr(merges[i], ' ');
        snprintf(joined, sizeof joined, "%.*s%s", (int)(space - merges[i]), merges[i], space + 1);
        if (nb_vocab_find(&f.vocab, joined, strlen(joined)) < 0)
            assert_int_equal(nb_vocab_put(&f.vocab, id++, text_of(joined), false, &err), NB_OK);
    }
    assert_int_equal(nb_bpe_init(&f.bpe, &f.vocab, n_merges, &err), NB_OK);
    for (int i = 0; i < n_merges; i++) {
        const char *space = strchr(merges[i], ' ');
        const nb_text left = {merges[i], (size_t)(space - merges[i])};
        if (nb_bpe_add(&f.bpe, &f.vocab, left, text_of(space + 1), &err) != NB_OK)
            fail_msg("%s", err.text);
    }
    return f;
}

static void fixture_free(fixture *f)
{
    nb_bpe_free(&f->bpe);
    nb_vocab_free(&f->vocab);
}

/* The tokens of `text` with | between them. */
static void check_tokens(const fixture *f, const char *text, const char *expected)
{
    nb_err err = {0};
    nb_bpe_scratch scratch = {0};
    nb_tokens out = {0};
    char got[4096] = "";
    if (nb_bpe_encode(&f->bpe, &scratch, (const uint8_t *)text, strlen(text), &out, &err) != NB_OK)
        fail_msg("%s", err.text);
    for (int64_t i = 0; i < out.n; i++) {
        const nb_text t = f->vocab.text[out.ids[i]];
        snprintf(got + strlen(got), sizeof got - strlen(got), "%s%.*s", i > 0 ? "|" : "",
                 (int)t.len, t.text);
    }
    assert_string_equal(got, expected);
    nb_tokens_free(&out);
    nb_bpe_scratch_free(&scratch);
}

static void lowest_rank_first_then_leftmost(void **state)
{
    (void)state;
    static const char *const merges[] = {"b c", "a b", "a bc", "abc abc", "a a"};
    fixture f = build("abcd", merges, 5);
    check_tokens(&f, "", "");
    check_tokens(&f, "d", "d");
    check_tokens(&f, "ab", "ab");
    check_tokens(&f, "abc", "abc"); /* b c outranks a b */
    check_tokens(&f, "abd", "ab|d");
    check_tokens(&f, "aaa", "aa|a"); /* the left pair of two equals */
    check_tokens(&f, "abcabc", "abcabc");
    check_tokens(&f, "aabcabcab", "a|abcabc|ab");
    fixture_free(&f);
}

/* Of a pair that is listed twice, the later rank counts, as in the reference library. */
static void last_of_equal_merges_counts(void **state)
{
    (void)state;
    static const char *const twice[] = {"a b", "b c", "a b"};
    fixture f = build("abc", twice, 3);
    check_tokens(&f, "abc", "a|bc");
    fixture_free(&f);
    f = build("abc", twice, 2);
    check_tokens(&f, "abc", "ab|c");
    fixture_free(&f);
}

/* The definition: find the lowest rank, leftmost, until there is none. */
static int64_t merge_naively(const nb_bpe *b, int32_t *ids, int64_t n)
{
    for (;;) {
        int64_t best = -1;
        int64_t best_rank = INT64_MAX, rank;
        int32_t merged = -1;
        for (int64_t i = 0; i + 1 < n; i++) {
            rank = -1;
            int32_t to = -1;
            for (int64_t k = 0; k < b->n_merges; k++) {
                if (b->merges[k].left == ids[i] && b->merges[k].right == ids[i + 1]) {
                    rank = k;
                    to = b->merges[k].merged;
                }
            }
            if (rank >= 0 && rank < best_rank) {
                best = i;
                best_rank = rank;
                merged = to;
            }
        }
        if (best < 0)
            return n;
        ids[best] = merged;
        memmove(ids + best + 1, ids + best + 2, (size_t)(n - best - 2) * sizeof *ids);
        n--;
    }
}

/* Random merges over three letters, random texts of 1 to 200 letters: the scan, the heap and the
 * cache all give what the definition gives. */
static void every_path_equals_the_definition(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 60; seed++) {
        char names[40][40];
        const char *merges[40];
        char known[44][20] = {"a", "b", "c"};
        int n_known = 3, n_merges = 0;
        for (uint64_t i = 0; n_merges < 40 && i < 200; i++) {
            uint32_t w[4];
            nb_philox(seed, 0, i, w);
            const char *left = known[w[0] % (uint32_t)n_known];
            const char *right = known[w[1] % (uint32_t)n_known];
            if (strlen(left) + strlen(right) > 12)
                continue;
            snprintf(names[n_merges], sizeof names[0], "%s %s", left, right);
            merges[n_merges] = names[n_merges];
            char joined[20] = "";
            strcat(strcat(joined, left), right);
            memcpy(known[n_known++], joined, sizeof joined);
            n_merges++;
        }
        fixture f = build("abc", merges, n_merges);
        nb_bpe_scratch scratch;
        nb_err err = {0};
        assert_int_equal(nb_bpe_scratch_init(&scratch, 1000, &err), NB_OK);
        for (uint64_t t = 0; t < 80; t++) {
            uint8_t text[200];
            int32_t ids[200];
            const size_t len = t < 40 ? 1 + t % 20 : 20 + t * 2;
            for (size_t i = 0; i < len; i++) {
                uint32_t w[4];
                nb_philox(seed, 1 + t % 30, i, w);
                text[i] = (uint8_t)('a' + w[0] % (t % 3 + 1));
                ids[i] = f.bpe.byte_id[text[i]];
            }
            const int64_t n = merge_naively(&f.bpe, ids, (int64_t)len);
            nb_tokens out = {0};
            for (int again = 0; again < 2; again++) {
                out.n = 0;
                assert_int_equal(nb_bpe_encode(&f.bpe, &scratch, text, len, &out, &err), NB_OK);
                assert_int_equal(out.n, n);
                assert_memory_equal(out.ids, ids, (size_t)n * sizeof *ids);
            }
            nb_tokens_free(&out);
        }
        nb_bpe_scratch_free(&scratch);
        fixture_free(&f);
    }
}

/* The alphabet of bytes, against the published one, and back. */
static void byte_alphabet(void **state)
{
    (void)state;
    json_t *golden = golden_load("byte_level_alphabet.json");
    const json_t *points = golden_get(golden, "code_points");
    assert_int_equal(json_array_size(points), 256);
    for (int b = 0; b < 256; b++) {
        const int32_t c = nb_byte_char((uint8_t)b);
        assert_int_equal(c, json_integer_value(json_array_get(points, (size_t)b)));
        assert_int_equal(nb_byte_of_char(c), b);
    }
    int n = 0;
    for (int32_t c = -1; c < 0x110000; c++)
        n += nb_byte_of_char(c) >= 0;
    assert_int_equal(n, 256);
    json_decref(golden);
}

/* Encodes twice, so that a cached piece is met too; each time some bytes are left out. */
static void check_left_out(const fixture *f, const char *text, const char *expected,
                           int64_t n_left_out)
{
    nb_err err = {0};
    nb_bpe_scratch scratch;
    nb_tokens out = {0};
    check_tokens(f, text, expected);
    assert_int_equal(nb_bpe_scratch_init(&scratch, 1000, &err), NB_OK);
    for (int i = 1; i <= 2; i++) {
        assert_int_equal(
            nb_bpe_encode(&f->bpe, &scratch, (const uint8_t *)text, strlen(text), &out, &err),
            NB_OK);
        assert_int_equal(out.n_left_out, i * n_left_out);
    }
    nb_tokens_free(&out);
    nb_bpe_scratch_free(&scratch);
}

/* Without an unknown token they are as if they had never been there: what stood on both sides
 * merges. Expected values are those of Hugging Face tokenizers 0.23.3. */
static void bytes_left_out(void **state)
{
    (void)state;
    static const char *const merges[] = {"a b"};
    fixture f = build("abc", merges, 1);
    check_left_out(&f, "abc", "ab|c", 0);
    check_left_out(&f, "axb", "ab", 1);
    check_left_out(&f,
                   "a\xc3\xa9"
                   "b",
                   "ab", 2);
    check_left_out(&f, "xaybz", "ab", 3);
    check_left_out(&f, "x", "", 1);
    check_left_out(&f, "xyz", "", 3);
    check_left_out(&f, "bxa", "b|a", 1);
    char text[300], tokens[300] = "";
    memset(text, 'x', sizeof text);
    text[sizeof text - 1] = '\0';
    check_left_out(&f, text, "", 299);
    text[0] = 'a';
    text[298] = 'b';
    check_left_out(&f, text, "ab", 297);
    /* Long enough for the heap after the bytes are gone. */
    for (int i = 0; i < 90; i++) {
        text[3 * i] = "axb"[i % 3];
        text[3 * i + 1] = "xbx"[i % 3];
        text[3 * i + 2] = "bxa"[i % 3];
    }
    text[270] = '\0';
    for (int i = 0; i < 30; i++)
        strcat(tokens, i == 0 ? "ab|b|b|a" : "|ab|b|b|a");
    check_left_out(&f, text, tokens, 120);
    fixture_free(&f);
}

static void bytes_without_a_token(void **state)
{
    (void)state;
    fixture f = build("ab", NULL, 0);
    nb_err err = {0};
    nb_tokens out = {0};
    nb_bpe_scratch scratch = {0};
    const uint8_t text[] = "a\x80\x81"
                           "b";
    f.bpe.unknown = 7;
    assert_int_equal(nb_bpe_encode(&f.bpe, &scratch, text, 4, &out, &err), NB_OK);
    assert_int_equal(out.n, 4);
    assert_int_equal(out.ids[2], 7);
    f.bpe.fuse_unknown = true;
    out.n = 0;
    assert_int_equal(nb_bpe_encode(&f.bpe, &scratch, text, 4, &out, &err), NB_OK);
    assert_int_equal(out.n, 3);
    assert_int_equal(out.ids[1], 7);
    assert_int_equal(out.ids[2], 1);
    assert_int_equal(out.n_left_out, 0);
    nb_tokens_free(&out);
    fixture_free(&f);
}

static void bad_merges_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *left, *right, *reason;
    } bad[] = {{"x", "a", "the left part is no token"},
               {"a", "x", "the right part is no token"},
               {"b", "a", "the whole is no token"},
               {"", "a", "the left part is no token"}};
    static const char *const merges[] = {"a b"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        fixture f = build("ab", merges, 1);
        f.bpe.n_merges = 0;
        nb_err err = {0};
        const nb_text left = text_of(bad[i].left), right = text_of(bad[i].right);
        assert_int_equal(nb_bpe_add(&f.bpe, &f.vocab, left, right, &err), NB_DATA);
        assert_non_null(strstr(err.text, bad[i].reason));
        fixture_free(&f);
    }
}

static void bad_tokens_are_refused(void **state)
{
    (void)state;
    nb_err err = {0};
    nb_vocab v;
    assert_int_equal(nb_vocab_init(&v, 10, 100, &err), NB_OK);
    assert_int_equal(nb_vocab_put(&v, 3, text_of("abc"), false, &err), NB_OK);
    assert_int_equal(nb_vocab_put(&v, 3, text_of("x"), false, &err), NB_DATA);
    assert_string_equal(err.text, "tokens 'abc' and 'x' have the same id 3");
    assert_int_equal(nb_vocab_put(&v, 4, text_of("abc"), false, &err), NB_DATA);
    assert_string_equal(err.text, "tokens 3 and 4 are both 'abc'");
    assert_int_equal(nb_vocab_put(&v, 10, text_of("x"), false, &err), NB_DATA);
    assert_int_equal(nb_vocab_put(&v, -1, text_of("x"), false, &err), NB_DATA);
    assert_int_equal(nb_vocab_put(&v, 5, text_of("\xc3"), false, &err), NB_DATA);
    assert_string_equal(err.text, "token 5 '\\xc3' is not UTF-8");
    assert_int_equal(nb_vocab_put(&v, 6, text_of(""), false, &err), NB_OK);
    assert_int_equal(nb_vocab_find(&v, "", 0), -1);
    assert_int_equal(nb_vocab_find(&v, "abc", 3), 3);
    assert_int_equal(nb_vocab_find(&v, "ab", 2), -1);
    assert_int_equal(v.n_tokens, 2);
    /* Byte characters become bytes; a text with any other character stands for itself. */
    assert_int_equal(nb_vocab_put(&v, 7, text_of("Ġé\u0143"), false, &err), NB_OK);
    assert_int_equal(v.bytes[7].len, 3);
    assert_memory_equal(v.bytes[7].text, " \xe9\xad", 3);
    assert_int_equal(nb_vocab_put(&v, 8, text_of("Ġ你"), false, &err), NB_OK);
    assert_int_equal(v.bytes[8].len, strlen("Ġ你"));
    assert_int_equal(nb_vocab_put(&v, 9, text_of("Ġx"), true, &err), NB_OK);
    assert_memory_equal(v.bytes[9].text, "Ġx", 3);
    nb_vocab_free(&v);
}

/* 112,000 times the same merge, and a megabyte of one letter: near linear, or the time limit of
 * this test is over. */
static void hostile_sizes(void **state)
{
    (void)state;
    static const char *const pair[] = {"a a", "aa aa", "aaaa aaaa"};
    fixture f = build("ab", pair, 3);
    nb_bpe many;
    nb_err err = {0};
    assert_int_equal(nb_bpe_init(&many, &f.vocab, 112000, &err), NB_OK);
    for (int i = 0; i < 112000; i++)
        assert_int_equal(nb_bpe_add(&many, &f.vocab, text_of("a"), text_of("a"), &err), NB_OK);
    const size_t n = (1 << 20) + 5;
    uint8_t *text = malloc(n);
    assert_non_null(text);
    memset(text, 'a', n);
    nb_tokens out = {0};
    nb_bpe_scratch scratch = {0};
    assert_int_equal(nb_bpe_encode(&f.bpe, &scratch, text, n, &out, &err), NB_OK);
    assert_int_equal(out.n, (1 << 17) + 2); /* eights, one four, one one */
    out.n = 0;
    assert_int_equal(nb_bpe_encode(&many, &scratch, text, n, &out, &err), NB_OK);
    assert_int_equal(out.n, (1 << 19) + 3);
    nb_bpe_scratch_free(&scratch);
    nb_tokens_free(&out);
    free(text);
    nb_bpe_free(&many);
    fixture_free(&f);
}

static void without_memory(void **state)
{
    (void)state;
    const int64_t live = nb_alloc_live();
    nb_status s = NB_MEMORY;
    uint8_t text[200];
    memset(text, 'a', sizeof text);
    for (int64_t k = 1; s == NB_MEMORY; k++) {
        nb_err err = {0};
        nb_vocab v = {0};
        nb_bpe b = {0};
        nb_bpe_scratch scratch = {0};
        nb_tokens out = {0};
        nb_alloc_fail_at(k);
        s = nb_vocab_init(&v, 4, 1000, &err);
        if (s == NB_OK)
            s = nb_vocab_put(&v, 0, text_of("a"), false, &err);
        if (s == NB_OK)
            s = nb_vocab_put(&v, 1, text_of("aa"), false, &err);
        if (s == NB_OK)
            s = nb_bpe_init(&b, &v, 1, &err);
        if (s == NB_OK)
            s = nb_bpe_add(&b, &v, text_of("a"), text_of("a"), &err);
        if (s == NB_OK)
            s = nb_bpe_scratch_init(&scratch, 10, &err);
        if (s == NB_OK)
            s = nb_bpe_encode(&b, &scratch, text, sizeof text, &out, &err);
        nb_alloc_fail_at(0);
        nb_tokens_free(&out);
        nb_bpe_scratch_free(&scratch);
        nb_bpe_free(&b);
        nb_vocab_free(&v);
        assert_int_equal(nb_alloc_live(), live);
        assert_true(k > 7 || s == NB_MEMORY);
    }
    assert_int_equal(s, NB_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lowest_rank_first_then_leftmost),
        cmocka_unit_test(last_of_equal_merges_counts),
        cmocka_unit_test(every_path_equals_the_definition),
        cmocka_unit_test(byte_alphabet),
        cmocka_unit_test(bytes_left_out),
        cmocka_unit_test(bytes_without_a_token),
        cmocka_unit_test(bad_merges_are_refused),
        cmocka_unit_test(bad_tokens_are_refused),
        cmocka_unit_test(hostile_sizes),
        cmocka_unit_test(without_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
