/* Calibration sets: the windows are those of the whole text, whatever it is read in pieces of, and
 * which documents are taken is a function of the seed. */
#include "base/rng.h"
#include "quant/calib/calib_world.h"
#include "quant/calib/doc.h"
#include "quant/calib/pick.h"
#include "quant/calib/set.h"
#include "support/golden.h"
#include "support/scratch.h"
#include "support/tiny_model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Words, numbers, punctuation, spaces, empty lines, letters beyond ASCII: malloc'd. */
static char *make_text(size_t n, uint64_t seed)
{
    static const char *const bits[] = {
        "the", " of", " a", "\n", "\n\n",         "  ",      "12",  ". ",   "it's", "\xC3\xA9",
        "e",   " x",  "\t", "!?", "\xE4\xB8\xAD", " in the", " on", "    ", "\r\n", "her"};
    char *text = malloc(n + 16);
    assert_non_null(text);
    size_t at = 0;
    for (uint64_t i = 0; at < n; i++) {
        uint32_t r[4];
        nb_philox(seed, 1, i, r);
        const char *bit = bits[r[0] % (sizeof bits / sizeof *bits)];
        memcpy(text + at, bit, strlen(bit));
        at += strlen(bit);
    }
    text[at] = 0;
    return text;
}

/* ---- windows ---- */

/* A text is read and encoded in pieces, and nobody can tell: the windows are those of all its ids
 * in a row. */
static void windows_are_those_of_the_whole_text(void **state)
{
    (void)state;
    char *text = make_text(600000, 7);
    /* Moved until a cut after 64 KiB would go through a token. */
    nb_tokens whole = {0};
    const size_t at = 65536, len = strlen(text);
    for (bool differs = false; !differs;) {
        nb_tokens parts = {0};
        memmove(text + 1, text, len - 1);
        text[0] = 'x';
        whole.n = 0;
        encode(&whole, text, len);
        encode(&parts, text, at);
        encode(&parts, text + at, len - at);
        differs = parts.n != whole.n;
        nb_tokens_free(&parts);
    }
    scratch_text("t.txt", text);
    const int64_t length = 1000, n = whole.n / length;
    assert_true(n > 100);
    nb_calib_set set = set_of("t.txt", (nb_calib_options){.n_samples = n + 5, .length = length});
    assert_int_equal(set.n, n);
    assert_int_equal(set.n_tokens, n * length);
    assert_int_equal(set.longest, whole.n);
    assert_true(set.packed);
    assert_memory_equal(set.ids.ids, whole.ids, (size_t)(n * length) * sizeof(int32_t));
    assert_true(has_note(&set, "were asked for"));
    int64_t n_held = 0;
    for (int64_t i = 0; i < set.n; i++) {
        assert_int_equal(set.seq[i].held, i % 8 == 7);
        n_held += set.seq[i].held;
        expect_ids(&set.seq[i], whole.ids + i * length, length);
    }
    assert_int_equal(set.n_held, n_held);
    assert_int_equal(set.n_held_tokens, n_held * length);
    char hex[NB_SHA256_HEX];
    nb_sha256_hex(text, strlen(text), hex);
    assert_string_equal(set.files[0].sha256, hex);
    assert_int_equal(set.files[0].bytes, strlen(text));
    nb_calib_set_free(&set);
    nb_tokens_free(&whole);
    free(text);
}

/* With a tokenizer that adds BOS, each sequence has one, and the ids between are all there. */
static void bos_starts_each_sequence(void **state)
{
    (void)state;
    close_tokenizer();
    open_tokenizer(&(tiny_model){.adds_bos = true});
    const int32_t bos = nb_tokenizer_bos(tokenizer);
    assert_true(bos >= 0);
    char *text = make_text(5000, 8);
    scratch_text("t.txt", text);
    nb_tokens whole = {0};
    encode(&whole, text, strlen(text));
    nb_calib_set set = set_of("t.txt", (nb_calib_options){.n_samples = 9, .length = 50});
    assert_int_equal(set.n, 9);
    for (int64_t i = 0; i < set.n; i++) {
        assert_int_equal(set.seq[i].n, 50);
        assert_int_equal(set.seq[i].ids[0], bos);
        assert_memory_equal(set.seq[i].ids + 1, whole.ids + 49 * i, 49 * sizeof(int32_t));
    }
    nb_calib_set_free(&set);
    nb_tokens_free(&whole);
    free(text);
    /* A document that brings its own gets no second one. */
    char line[64];
    snprintf(line, sizeof line, "[%d, 65, 66]\n[65, 66]\n", bos);
    scratch_text("i.jsonl", line);
    set = set_of("i.jsonl", (nb_calib_options){.pack = NB_CALIB_PACK_NONE});
    assert_int_equal(set.n, 2);
    expect_ids(&set.seq[0], (const int32_t[]){bos, 65, 66}, 3);
    expect_ids(&set.seq[1], (const int32_t[]){bos, 65, 66}, 3);
    nb_calib_set_free(&set);
    close_tokenizer();
    open_tokenizer(&(tiny_model){0});
}

static void documents_are_joined_or_stand_alone(void **state)
{
    (void)state;
    scratch_text("d.txt", "abc\n##\nde\n##\n\n##\nfghijklmnop");
    nb_calib_options o = {.split = "\n##\n", .pack = NB_CALIB_PACK_NONE, .length = 6};
    nb_calib_set set = set_of("d.txt", o);
    assert_int_equal(set.n, 3); /* the empty one is none */
    assert_false(set.packed);
    expect_text(&set.seq[0], "abc");
    expect_text(&set.seq[1], "de");
    expect_text(&set.seq[2], "fghijk");
    assert_int_equal(set.n_documents, 3);
    assert_true(set.seq[2].held && !set.seq[1].held);
    assert_true(has_note(&set, "1 of 3 documents are longer than 6 tokens"));
    nb_calib_set_free(&set);
    o.pack = NB_CALIB_PACK_AUTO;
    o.length = 20;
    set = set_of("d.txt", o);
    assert_int_equal(set.n, 1);
    nb_tokens want = {0};
    encode(&want, "abc", 3);
    encode(&want, "\n\n", 2);
    encode(&want, "de", 2);
    encode(&want, "\n\n", 2);
    encode(&want, "fghijklmnop", 11);
    assert_true(want.n >= 18);
    expect_ids(&set.seq[0], want.ids, want.n < 20 ? want.n : 20);
    nb_tokens_free(&want);
    nb_calib_set_free(&set);
    /* An empty line stands between texts only. */
    scratch_text("m.jsonl", "[5, 6]\n{\"text\": \"a\"}\n[7]\n");
    set = set_of("m.jsonl", (nb_calib_options){0});
    expect_ids(&set.seq[0], (const int32_t[]){5, 6, TINY_BYTE('a'), 7}, 4);
    nb_calib_set_free(&set);
}

/* A separator is found wherever it lies, across the borders of the blocks of a file too. */
static void separators_are_found_at_every_place(void **state)
{
    (void)state;
    const size_t n = ((size_t)1 << 20) + 40;
    char *text = malloc(n + 1);
    assert_non_null(text);
    for (size_t at = ((size_t)1 << 20) - 6; at < ((size_t)1 << 20) + 6; at++) {
        memset(text, 'a', n);
        text[n] = 0;
        memcpy(text + at, "<cut>", 5);
        scratch_text("s.txt", text);
        nb_calib_source s;
        nb_calib_span span;
        bool more;
        nb_err err = {0};
        assert_int_equal(nb_calib_source_open(&s, scratch_path("s.txt"),
                                              &(nb_calib_source_options){.split = "<cut>"}, &err),
                         NB_OK);
        assert_int_equal(nb_calib_source_next(&s, &span, &more, &err), NB_OK);
        assert_true(more && span.offset == 0 && span.len == (int64_t)at);
        assert_int_equal(nb_calib_source_next(&s, &span, &more, &err), NB_OK);
        assert_true(more && span.offset == (int64_t)at + 5 && span.len == (int64_t)(n - at - 5));
        assert_int_equal(nb_calib_source_next(&s, &span, &more, &err), NB_OK);
        assert_false(more);
        nb_calib_source_close(&s);
    }
    free(text);
}

/* File i of k may fill the windows up to (i + 1) / k, so the first one does not fill all. */
static void files_share_the_windows(void **state)
{
    (void)state;
    char *a = make_text(20000, 1), *b = make_text(20000, 2);
    scratch_text("a.txt", a);
    scratch_text("b.txt", b);
    const char *paths[] = {scratch_path("a.txt"), scratch_path("b.txt")};
    nb_calib_options o = {.paths = paths, .n_paths = 2, .n_samples = 5, .length = 64};
    nb_calib_set set = set_of(NULL, o);
    nb_tokens of_a = {0}, of_b = {0};
    encode(&of_a, a, strlen(a));
    encode(&of_b, b, strlen(b));
    assert_int_equal(set.n, 5);
    expect_ids(&set.seq[1], of_a.ids + 64, 64);
    nb_tokens blank = {0};
    encode(&blank, "\n\n", 2);
    assert_memory_equal(set.seq[2].ids, blank.ids, (size_t)blank.n * sizeof(int32_t));
    assert_memory_equal(set.seq[2].ids + blank.n, of_b.ids, 40 * sizeof(int32_t));
    assert_int_equal(set.n_files, 2);
    assert_int_equal(set.files[1].n_documents, 1);
    assert_int_equal(set.n_notes, 0);
    nb_calib_set_free(&set);
    /* The second file cannot fill its share of 1,000, and that is said. */
    o.n_samples = 2000;
    set = set_of(NULL, o);
    assert_true(has_note(&set, "b.txt: "));
    assert_int_equal(set.n, (of_a.n + of_b.n + blank.n) / 64);
    nb_calib_set_free(&set);
    nb_tokens_free(&of_a);
    nb_tokens_free(&of_b);
    nb_tokens_free(&blank);
    free(a);
    free(b);
}

static void every_eighth_is_held_out(void **state)
{
    (void)state;
    for (int64_t n = 1; n < 40; n++) {
        int64_t n_held = 0;
        for (int64_t i = 0; i < n; i++)
            n_held += nb_calib_is_held(i, n);
        assert_int_equal(n_held, n < 2 ? 0 : n < 8 ? 1 : n / 8);
    }
}

/* ---- order ---- */

/* The order is that of keys anybody can compute, and the sets of two seeds differ. */
static void random_order_is_a_function_of_the_seed(void **state)
{
    (void)state;
    nb_buf text = {0};
    nb_err err = {0};
    for (int i = 0; i < 50; i++)
        assert_int_equal(nb_buf_format(&text, &err, "{\"text\": \"document %d\"}\n\n", i), NB_OK);
    scratch_write("r.jsonl", text.data, text.len);
    nb_buf_free(&text);
    char first_hash[NB_SHA256_HEX] = "";
    for (uint64_t seed = 0; seed < 3; seed++) {
        nb_calib_set set =
            set_of("r.jsonl",
                   (nb_calib_options){
                       .random = true, .seed = seed, .n_samples = 20, .pack = NB_CALIB_PACK_NONE});
        assert_int_equal(set.n, 20);
        bool taken[50] = {0};
        for (int64_t k = 0; k < 20; k++) {
            int best = -1;
            uint64_t least = 0;
            for (int i = 0; i < 50; i++) {
                uint32_t w[4];
                nb_philox(seed, 0x63616c6962, (uint64_t)i, w);
                const uint64_t key = (uint64_t)w[1] << 32 | w[0];
                if (!taken[i] && (best < 0 || key < least)) {
                    best = i;
                    least = key;
                }
            }
            taken[best] = true;
            char want[32];
            snprintf(want, sizeof want, "document %d", best);
            expect_text(&set.seq[k], want);
        }
        assert_string_not_equal(set.sha256, first_hash);
        memcpy(first_hash, set.sha256, sizeof first_hash);
        nb_calib_set_free(&set);
    }
}

/* Of more documents than are kept, those with the smallest keys stay: as if all had been sorted. */
static void picking_in_bounded_memory_is_exact(void **state)
{
    (void)state;
    nb_calib_picker few = {.seed = 3, .most = 5}, all = {.seed = 3, .most = 1000};
    nb_err err = {0};
    for (int i = 0; i < 1000; i++) {
        const nb_calib_span span = {i, 1};
        assert_int_equal(nb_calib_pick_offer(&few, 0, span, &err), NB_OK);
        assert_int_equal(nb_calib_pick_offer(&all, 0, span, &err), NB_OK);
    }
    const nb_calib_ticket *a, *b;
    int64_t n_a, n_b;
    nb_calib_pick_draw(&few, &a, &n_a);
    nb_calib_pick_draw(&all, &b, &n_b);
    assert_int_equal(n_a, 5);
    assert_int_equal(n_b, 1000);
    for (int i = 0; i < 5; i++)
        assert_int_equal(a[i].number, b[i].number);
    for (int i = 1; i < 1000; i++)
        assert_true(b[i - 1].key <= b[i].key);
    nb_buf_free(&few.tickets);
    nb_buf_free(&all.tickets);
}

/* Pieces of a text are all of it, each about as long as asked for. */
static void random_pieces_make_up_the_text(void **state)
{
    (void)state;
    char *text = make_text(200000, 5);
    scratch_text("p.txt", text);
    const int64_t n = (int64_t)strlen(text);
    nb_calib_source s;
    nb_err err = {0};
    assert_int_equal(nb_calib_source_open(&s, scratch_path("p.txt"),
                                          &(nb_calib_source_options){.piece_text = 400}, &err),
                     NB_OK);
    int64_t at = 0, n_pieces = 0;
    for (;;) {
        nb_calib_span span;
        bool more;
        assert_int_equal(nb_calib_source_next(&s, &span, &more, &err), NB_OK);
        if (!more)
            break;
        assert_int_equal(span.offset, at);
        at += span.len;
        assert_true(span.len <= 800 && (span.len >= 400 || at == n));
        assert_true(at == n || text[at - 1] == '\n');
        n_pieces++;
    }
    assert_int_equal(at, n);
    assert_true(n_pieces > 200);
    nb_calib_source_close(&s);
    nb_calib_set set =
        set_of("p.txt", (nb_calib_options){.random = true, .length = 100, .n_samples = 16});
    assert_int_equal(set.n, 16);
    assert_true(set.n_documents > 3);
    nb_calib_set_free(&set);
    free(text);
}

/* ---- kinds of files ---- */

/* The hash is over what the header says it is over. */
static void the_hash_is_of_ids_and_cuts(void **state)
{
    (void)state;
    scratch_text("h.jsonl", "[1, 258]\n[7]\n");
    nb_calib_set set = set_of("h.jsonl", (nb_calib_options){.pack = NB_CALIB_PACK_NONE});
    static const uint8_t bytes[] = {2, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1, 0,
                                    0, 0, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0};
    char hex[NB_SHA256_HEX];
    nb_sha256_hex(bytes, sizeof bytes, hex);
    assert_string_equal(set.sha256, hex);
    nb_calib_set_free(&set);
    set = set_of("h.jsonl", (nb_calib_options){.pack = NB_CALIB_PACK_ALL});
    assert_int_equal(set.n_tokens, 3);
    assert_string_not_equal(set.sha256, hex); /* the same ids, cut otherwise */
    nb_calib_set_free(&set);
}

/* ---- what is wrong ---- */

static void odd_texts_work(void **state)
{
    (void)state;
    static const struct {
        const char *name, *bytes;
        size_t n;
        int64_t n_ids;
        const char *note;
    } cases[] = {
        {"one.txt", "x", 1, 1, "1 sequence, 1 tokens; 128 sequences"},
        {"space.txt", " \n \n", 4, 4, "were asked for"},
        {"mark.txt",
         "\xEF\xBB\xBF"
         "a",
         4, 1, "were asked for"},
        {"zero.txt", "a\0b", 3, 3, "were asked for"},
        {"binary.txt", "a\nb\n\xff\xfe", 6, 6, "binary.txt: line 3: no UTF-8"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        scratch_write(cases[i].name, cases[i].bytes, cases[i].n);
        nb_calib_set set = set_of(cases[i].name, (nb_calib_options){0});
        assert_int_equal(set.n, 1);
        assert_int_equal(set.seq[0].n, cases[i].n_ids);
        assert_int_equal(set.n_held, 0);
        if (!has_note(&set, cases[i].note))
            fail_msg("%s: no note '%s', but '%s'", cases[i].name, cases[i].note, set.notes[0]);
        nb_calib_set_free(&set);
    }
}

/* ---- cutting ---- */

/* A cut lies between 1 and len, never inside a character of a sound text, and at a lone space
 * between letters wherever there is one. */
static void cuts_fall_between_words(void **state)
{
    (void)state;
    assert_int_equal(nb_calib_cut("ab cd ef", 8, 1), 2);
    assert_int_equal(nb_calib_cut("ab cd ef", 8, 3), 5);
    assert_int_equal(nb_calib_cut("ab  cd", 6, 1), 6); /* two spaces: nowhere safe */
    assert_int_equal(nb_calib_cut("ab\n\ncd", 6, 1), 4);
    assert_int_equal(nb_calib_cut("x", 1, 0), 1);
    assert_int_equal(nb_calib_cut("\xE4\xB8\xAD\xE4\xB8", 5, 2), 3); /* not inside a character */
    assert_int_equal(nb_calib_cut("\xE4\xB8\xAD\xE4\xB8\xAD", 6, 2), 6);
    assert_int_equal(nb_calib_cut("\x80\x80\x80\x80\x80\x80", 6, 2), 6); /* no text at all */
    for (uint64_t i = 0; i < 20000; i++) {
        static const char alphabet[] = "ab \n\xC3\xA9\x80";
        char text[12];
        uint32_t r[4];
        nb_philox(9, 9, i, r);
        const size_t len = 1 + r[3] % sizeof text;
        for (size_t k = 0; k < len; k++)
            text[k] = alphabet[(r[k % 3] >> (k / 3 * 4)) % (sizeof alphabet - 1)];
        const size_t cut = nb_calib_cut(text, len, r[3] / 16 % len);
        assert_true(cut >= 1 && cut <= len);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(windows_are_those_of_the_whole_text),
        cmocka_unit_test(bos_starts_each_sequence),
        cmocka_unit_test(documents_are_joined_or_stand_alone),
        cmocka_unit_test(separators_are_found_at_every_place),
        cmocka_unit_test(files_share_the_windows),
        cmocka_unit_test(every_eighth_is_held_out),
        cmocka_unit_test(random_order_is_a_function_of_the_seed),
        cmocka_unit_test(picking_in_bounded_memory_is_exact),
        cmocka_unit_test(random_pieces_make_up_the_text),
        cmocka_unit_test(the_hash_is_of_ids_and_cuts),
        cmocka_unit_test(odd_texts_work),
        cmocka_unit_test(cuts_fall_between_words),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
