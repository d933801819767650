/* Calibration sets: the windows are those of the whole text, whatever it is read in pieces of; each
 * kind of file gives the ids it says; and what is wrong is told by file and line. */
#include "quant/calib_score.h"
#include "quant/calib_set.h"

#include "base/rng.h"
#include "quant/calib_doc.h"
#include "quant/calib_pick.h"
#include "support/golden.h"
#include "support/scratch.h"
#include "support/tiny_model.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The tiny model's tokenizer and template. */
static nb_store *store;
static nb_tokenizer *tokenizer;
static const char *template_text;
static size_t n_template;

static void open_tokenizer(const tiny_model *how)
{
    static int n_written;
    char name[16];
    nb_err err = {0};
    snprintf(name, sizeof name, "model%d", n_written++);
    if (nb_store_open(&store, tiny_model_write(name, how), &err) != NB_OK ||
        nb_store_chat_template(store, &template_text, &n_template, &err) != NB_OK ||
        nb_tokenizer_open(&tokenizer, store, &err) != NB_OK)
        fail_msg("%s", err.text);
}

static void close_tokenizer(void)
{
    nb_tokenizer_close(tokenizer);
    nb_store_close(store);
    tokenizer = NULL;
    store = NULL;
}

static int setup(void **state)
{
    if (scratch_setup(state) != 0)
        return 1;
    open_tokenizer(&(tiny_model){0});
    return 0;
}

static int teardown(void **state)
{
    close_tokenizer();
    return scratch_teardown(state);
}

static nb_status open_set(nb_calib_set *set, nb_calib_options o, nb_err *err)
{
    return nb_calib_set_open(set, tokenizer, template_text, n_template, &o, err);
}

/* A set of one file of the scratch folder. */
static nb_calib_set set_of(const char *name, nb_calib_options o)
{
    const char *path = scratch_path(name);
    nb_calib_set set;
    nb_err err = {0};
    if (o.paths == NULL) {
        o.paths = &path;
        o.n_paths = 1;
    }
    if (open_set(&set, o, &err) != NB_OK)
        fail_msg("%s", err.text);
    return set;
}

static void encode(nb_tokens *out, const char *text, size_t len)
{
    nb_err err = {0};
    assert_int_equal(nb_tokenizer_encode(tokenizer, text, len, (nb_encode_options){0}, out, &err),
                     NB_OK);
}

static void expect_ids(const nb_calib_seq *seq, const int32_t *ids, int64_t n)
{
    assert_int_equal(seq->n, n);
    assert_memory_equal(seq->ids, ids, (size_t)n * sizeof *ids);
}

static void expect_text(const nb_calib_seq *seq, const char *text)
{
    nb_tokens want = {0};
    encode(&want, text, strlen(text));
    expect_ids(seq, want.ids, want.n);
    nb_tokens_free(&want);
}

static bool has_note(const nb_calib_set *set, const char *part)
{
    for (int i = 0; i < set->n_notes; i++)
        if (strstr(set->notes[i], part) != NULL)
            return true;
    return false;
}

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

typedef struct {
    const char *line;
    const char *messages[4]; /* role, content, ...: a conversation; else messages[1] is a text */
    const char *field;
} line_case;

static void expect_document(const nb_calib_seq *seq, const line_case *c)
{
    if (c->messages[0] == NULL) {
        expect_text(seq, c->messages[1]);
        return;
    }
    nb_message m[2];
    int64_t n = 0;
    for (; n < 2 && c->messages[2 * n] != NULL; n++)
        m[n] = (nb_message){.role = c->messages[2 * n],
                            .content = c->messages[2 * n + 1],
                            .len = strlen(c->messages[2 * n + 1])};
    nb_jinja *j;
    nb_tokens want = {0};
    nb_err err = {0};
    assert_int_equal(nb_jinja_parse(&j, template_text, n_template, &err), NB_OK);
    assert_int_equal(nb_chat_encode(tokenizer, j, m, n, false, &want, &err), NB_OK);
    expect_ids(seq, want.ids, want.n);
    nb_tokens_free(&want);
    nb_jinja_free(j);
}

static void lines_hold_texts_and_conversations(void **state)
{
    (void)state;
    static const line_case cases[] = {
        {"{\"text\": \"plain \\u00e9\"}", {NULL, "plain \xC3\xA9"}, NULL},
        {"{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}, {\"role\": \"assistant\", "
         "\"content\": \"<|im_end|> ho\"}]}",
         {"user", "hi", "assistant", "<|im_end|> ho"},
         NULL},
        {"{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": "
         "\"a\"}, {\"type\": \"text\", \"text\": \"b\"}]}, {\"role\": \"assistant\", \"content\": "
         "null}]}",
         {"user", "ab", "assistant", ""},
         NULL},
        {"{\"conversations\": [{\"from\": \"human\", \"value\": \"q\"}, {\"from\": \"gpt\", "
         "\"value\": \"a\"}]}",
         {"user", "q", "assistant", "a"},
         NULL},
        {"{\"prompt\": \"p\", \"completion\": \"c\"}", {"user", "p", "assistant", "c"}, NULL},
        {"{\"instruction\": \"i\", \"input\": \"\", \"output\": \"o\"}",
         {"user", "i", "assistant", "o"},
         NULL},
        {"{\"instruction\": \"i\", \"input\": \"x\", \"response\": \"o\"}",
         {"user", "i\n\nx", "assistant", "o"},
         NULL},
        {"{\"text\": \"no\", \"body\": \"yes\"}", {NULL, "yes"}, "body"},
        {"{\"text\": \"no\", \"talk\": [{\"role\": \"user\", \"content\": \"yes\"}]}",
         {"user", "yes"},
         "talk"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        scratch_text("l.jsonl", cases[i].line);
        nb_calib_set set = set_of("l.jsonl", (nb_calib_options){.field = cases[i].field});
        assert_int_equal(set.n, 1);
        assert_int_equal(set.packed, cases[i].messages[0] == NULL);
        expect_document(&set.seq[0], &cases[i]);
        nb_calib_set_free(&set);
    }
}

/* Without a template, or where it is not wanted, conversations are what was said. */
static void conversations_can_be_plain(void **state)
{
    (void)state;
    scratch_text("l.jsonl", "{\"prompt\": \"p\", \"completion\": \"c\"}\n");
    nb_calib_set set = set_of("l.jsonl", (nb_calib_options){.plain_chat = true});
    expect_text(&set.seq[0], "p\n\nc");
    assert_false(has_note(&set, "template"));
    nb_calib_set_free(&set);
    const char *path = scratch_path("l.jsonl");
    nb_err err = {0};
    assert_int_equal(nb_calib_set_open(&set, tokenizer, NULL, 0,
                                       &(nb_calib_options){.paths = &path, .n_paths = 1}, &err),
                     NB_OK);
    expect_text(&set.seq[0], "p\n\nc");
    assert_true(has_note(&set, "1 conversation was taken as text"));
    nb_calib_set_free(&set);
}

static void put_npy(const char *name, const char *header, const void *data, size_t n)
{
    uint8_t file[4096];
    const size_t len = strlen(header);
    memcpy(file, "\x93NUMPY\x01\x00", 8);
    file[8] = (uint8_t)len;
    file[9] = (uint8_t)(len >> 8);
    memcpy(file + 10, header, len);
    memcpy(file + 10 + len, data, n);
    scratch_write(name, file, 10 + len + n);
}

static void ids_come_from_arrays(void **state)
{
    (void)state;
    static const uint16_t ids[] = {5, 6, 7, 8, 9, 10};
    scratch_write("i.bin", ids, sizeof ids);
    nb_calib_set set = set_of("i.bin", (nb_calib_options){.length = 4, .n_samples = 2});
    assert_int_equal(set.n, 1);
    assert_int_equal(set.files[0].kind, NB_CALIB_IDS);
    expect_ids(&set.seq[0], (const int32_t[]){5, 6, 7, 8}, 4);
    nb_calib_set_free(&set);
    put_npy("i.npy", "{'descr': '<u2', 'fortran_order': False, 'shape': (2, 3), }\n", ids,
            sizeof ids);
    set = set_of("i.npy", (nb_calib_options){.pack = NB_CALIB_PACK_NONE});
    assert_int_equal(set.n, 2);
    expect_ids(&set.seq[0], (const int32_t[]){5, 6, 7}, 3);
    expect_ids(&set.seq[1], (const int32_t[]){8, 9, 10}, 3);
    nb_calib_set_free(&set);
    static const int64_t wide[] = {1, 2, 3};
    put_npy("w.npy", "{'descr': '<i8', 'fortran_order': False, 'shape': (3,), }", wide,
            sizeof wide);
    set = set_of("w.npy", (nb_calib_options){0});
    expect_ids(&set.seq[0], (const int32_t[]){1, 2, 3}, 3);
    nb_calib_set_free(&set);
    scratch_text("i.jsonl", "[1, 2]\n{\"input_ids\": [3]}\n{\"tokens\": [4]}\n");
    set = set_of("i.jsonl", (nb_calib_options){0});
    expect_ids(&set.seq[0], (const int32_t[]){1, 2, 3, 4}, 4);
    nb_calib_set_free(&set);
    /* A vocabulary above 65,536 takes four bytes an id. */
    static const uint32_t four[] = {70000, 3};
    scratch_write("f.bin", four, sizeof four);
    set = set_of("f.bin", (nb_calib_options){.vocab_size = 80000});
    expect_ids(&set.seq[0], (const int32_t[]){70000, 3}, 2);
    nb_calib_set_free(&set);
}

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

/* 16-bit ids whose every second one is 0 are 32-bit ones in disguise, unless they are few. */
static void the_width_of_ids_is_looked_at(void **state)
{
    (void)state;
    uint16_t ids[32];
    for (int n = 14; n <= 32; n += 2) {
        for (int planted = 0; planted < 2; planted++) {
            for (int i = 0; i < n; i++)
                ids[i] = (uint16_t)(i % 2 == 0 ? 1 + i : 0);
            ids[n - 1] = (uint16_t)planted; /* one other value is enough */
            scratch_write("w.bin", ids, (size_t)n * sizeof *ids);
            const char *path = scratch_path("w.bin");
            nb_calib_set set;
            nb_err err = {0};
            const nb_status s =
                open_set(&set, (nb_calib_options){.paths = &path, .n_paths = 1}, &err);
            assert_int_equal(s, n < 16 || planted ? NB_OK : NB_DATA);
            if (s != NB_OK)
                assert_non_null(strstr(err.text, "w.bin: every second id is 0"));
            nb_calib_set_free(&set);
        }
    }
    memset(ids, 0, sizeof ids); /* nothing but padding says nothing */
    scratch_write("z.bin", ids, sizeof ids);
    nb_calib_set set = set_of("z.bin", (nb_calib_options){.length = 4});
    nb_calib_set_free(&set);
}

static void ids_need_no_tokenizer(void **state)
{
    (void)state;
    const uint16_t ids[] = {5, 6, 7, 8, 9, 10};
    scratch_write("i.bin", ids, sizeof ids);
    scratch_text("i.jsonl", "{\"input_ids\": [1, 2, 3]}\n{\"text\": \"a\"}\n");
    scratch_text("t.txt", "some text");
    static const struct {
        const char *name, *want;
        int64_t vocab;
    } cases[] = {{"i.bin", NULL, 20},
                 {"i.bin", "outside the vocabulary of 7", 7},
                 {"i.jsonl", "i.jsonl: line 2: a text, and the model has no tokenizer", 20},
                 {"t.txt", "t.txt: line 1: a text, and the model has no tokenizer", 20}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *path = scratch_path(cases[i].name);
        const nb_calib_options o = {.paths = &path, .n_paths = 1, .vocab_size = cases[i].vocab};
        static const char template_[] = "{{ nothing";
        nb_calib_set set;
        nb_err err = {0};
        const nb_status s =
            nb_calib_set_open(&set, NULL, template_, sizeof template_ - 1, &o, &err);
        assert_int_equal(s, cases[i].want == NULL ? NB_OK : NB_DATA);
        if (cases[i].want != NULL && strstr(err.text, cases[i].want) == NULL)
            fail_msg("'%s', not '%s'", err.text, cases[i].want);
        nb_calib_score score;
        if (s == NB_OK) {
            assert_int_equal(set.n_tokens, 6);
            assert_int_equal(nb_calib_score_set(&score, &set, NULL, NULL, &err), NB_OK);
            assert_int_equal(score.vocab_size, 0);
            assert_int_equal(score.n_distinct, 6);
        }
        nb_calib_set_free(&set);
    }
}

static void bad_files_are_refused_by_line(void **state)
{
    (void)state;
    static const struct {
        const char *name, *text, *field, *want;
        nb_status status;
    } cases[] = {
        {"e.txt", "", NULL, "e.txt: an empty file", NB_DATA},
        {"b.jsonl", "\n \t\n\r\n", NULL, "b.jsonl: nothing to calibrate with", NB_DATA},
        {"t.jsonl", "{\"text\": \"\"}\n", NULL, "nothing to calibrate with", NB_DATA},
        {"j.jsonl", "{\"text\": \"a\"}\n\n{\"text\":", NULL, "j.jsonl: line 3: ", NB_DATA},
        {"u.jsonl", "{\"text\": \"\xff\"}\n", NULL, "u.jsonl: line 1: ", NB_DATA},
        {"n.jsonl", "{\"words\": \"a\"}\n", NULL, "line 1: none of messages", NB_DATA},
        {"f.jsonl", "{\"text\": \"a\"}\n", "body", "line 1: no member 'body'", NB_DATA},
        {"v.jsonl", "{\"text\": 5}\n", NULL, "line 1: 'text' is no text", NB_DATA},
        {"s.jsonl", "\"a text\"\n", NULL, "line 1: no JSON object", NB_DATA},
        {"p.jsonl", "{\"prompt\": \"a\"}\n", NULL, "'completion' is missing", NB_DATA},
        {"m.jsonl", "{\"messages\": []}\n", NULL, "m.jsonl: nothing to calibrate", NB_DATA},
        {"r.jsonl", "{\"messages\": [{\"content\": \"a\"}]}", NULL, "message 0 has no role",
         NB_DATA},
        {"h.jsonl", "{\"text\": \"a\"}\n{\"messages\": [{\"role\": \"user\"}]}", NULL,
         "h.jsonl: line 2: message 0 has no content", NB_DATA},
        {"c.jsonl", "{\"messages\": [{\"role\": \"user\", \"content\": 7}]}", NULL,
         "content of message 0 is no text", NB_DATA},
        {"g.jsonl", "{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"image\"}]}]}",
         NULL, "of type 'image'", NB_UNSUPPORTED},
        {"i.jsonl", "[1, 2]\n[1, 1.5]\n", NULL, "i.jsonl: line 2: entry 1", NB_DATA},
        {"x.jsonl", "[1]\n[1, -2]\n", NULL, "x.jsonl: line 2: entry 1", NB_DATA},
        {"y.jsonl", "[4294967297]\n", NULL, "y.jsonl: line 1: entry 0", NB_DATA},
        {"o.jsonl", "[1]\n[1, 265]\n", NULL,
         "o.jsonl: line 2: token id 265 is outside the vocabulary of 265", NB_DATA},
        {"o.bin", "ab\x01\x01\xff\xff", NULL, "o.bin: id 0: token id 25185", NB_DATA},
        {"q.bin", "abc", NULL, "q.bin: 3 bytes are no whole ids of 2", NB_DATA},
        {"a.npy", "\x93NUMP", NULL, "a.npy: not an array of NumPy's", NB_DATA},
        {"d.npy", "\x93NUMPY\x01\x01\x05\x01xx", NULL, "d.npy", NB_DATA},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        scratch_text(cases[i].name, cases[i].text);
        const char *path = scratch_path(cases[i].name);
        nb_calib_options o = {.paths = &path, .n_paths = 1, .field = cases[i].field};
        for (int random = 0; random < 2; random++) {
            nb_calib_set set;
            nb_err err = {0};
            o.random = random != 0;
            assert_int_equal(open_set(&set, o, &err), cases[i].status);
            if (strstr(err.text, cases[i].want) == NULL)
                fail_msg("'%s', not '%s'", err.text, cases[i].want);
            assert_null(set.seq);
        }
    }
}

static void bad_arrays_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *header, *want;
        nb_status status;
    } cases[] = {
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", "type '<f4'", NB_UNSUPPORTED},
        {"{'descr': '>u2', 'fortran_order': False, 'shape': (4,), }", "type '>u2'", NB_UNSUPPORTED},
        {"{'descr': '<u2', 'fortran_order': True, 'shape': (2, 2), }", "Fortran", NB_UNSUPPORTED},
        {"{'descr': '<u2', 'fortran_order': False, 'shape': (1, 2, 2), }", "shape", NB_UNSUPPORTED},
        {"{'descr': '<u2', 'fortran_order': False, 'shape': (), }", "shape", NB_UNSUPPORTED},
        {"{'descr': '<u2', 'fortran_order': False, 'shape': (5,), }", "8 bytes follow", NB_DATA},
        {"{'descr': '<u2', 'fortran_order': False, 'shape': (0, 4), }", "8 bytes follow", NB_DATA},
        {"{'descr': '<u2', 'fortran_order': False, 'shape': (999999999999999, "
         "999999999999999), }",
         "8 bytes follow", NB_DATA},
        {"{'descr': '<u2', 'fortran_order': False, 'shape': (99999999999999999999,), }", "shape",
         NB_UNSUPPORTED},
        {"{'descr': '<u2', 'shape': (4,), }", "lacks", NB_DATA},
        {"", "lacks", NB_DATA},
        {"{'descr': '<u2', 'fortran_order': False, 'shape': (4,), }", "id 2: token id 300",
         NB_DATA},
    };
    static const uint16_t ids[] = {1, 2, 300, 4};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        put_npy("b.npy", cases[i].header, ids, sizeof ids);
        const char *path = scratch_path("b.npy");
        nb_calib_set set;
        nb_err err = {0};
        assert_int_equal(open_set(&set, (nb_calib_options){.paths = &path, .n_paths = 1}, &err),
                         cases[i].status);
        if (strstr(err.text, cases[i].want) == NULL)
            fail_msg("'%s', not '%s'", err.text, cases[i].want);
    }
}

static void bad_options_are_refused(void **state)
{
    (void)state;
    scratch_text("ok.txt", "fine");
    const char *paths[] = {scratch_path("ok.txt"), scratch_path("missing.txt")};
    const nb_calib_options cases[] = {
        {.paths = paths, .n_paths = 0},
        {.paths = paths, .n_paths = 1, .n_samples = -1},
        {.paths = paths, .n_paths = 1, .n_samples = NB_CALIB_MAX_SEQUENCES + 1},
        {.paths = paths, .n_paths = 1, .length = 1},
        {.paths = paths, .n_paths = 1, .length = NB_CALIB_MAX_LENGTH + 1},
        {.paths = paths, .n_paths = 1, .length = 1 << 20, .n_samples = 1 << 20},
        {.paths = paths, .n_paths = 1, .split = ""},
    };
    nb_calib_set set;
    nb_err err = {0};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(open_set(&set, cases[i], &err), NB_USAGE);
    assert_int_equal(open_set(&set, (nb_calib_options){.paths = paths, .n_paths = 2}, &err),
                     NB_DATA);
    assert_non_null(strstr(err.text, "missing.txt"));
}

/* A line of more than 16 MiB is not read. */
static void long_lines_are_refused(void **state)
{
    (void)state;
    const size_t n = (size_t)NB_CALIB_MAX_LINE + 100;
    char *text = malloc(n);
    assert_non_null(text);
    memset(text, ' ', n);
    memcpy(text, "[1]\n", 4);
    scratch_write("long.jsonl", text, n);
    free(text);
    const char *path = scratch_path("long.jsonl");
    nb_calib_set set;
    nb_err err = {0};
    assert_int_equal(open_set(&set, (nb_calib_options){.paths = &path, .n_paths = 1}, &err),
                     NB_DATA);
    assert_non_null(strstr(err.text, "long.jsonl: line 2: 16777312 bytes"));
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

/* ---- failures ---- */

static void whatever_fails_nothing_leaks(void **state)
{
    (void)state;
    scratch_text("w.jsonl",
                 "{\"messages\": [{\"role\": \"user\", \"content\": [\"a\", \"b\"]}]}\n[1, 2]\n"
                 "{\"text\": \"some words\"}\n{\"instruction\": \"i\", \"input\": \"x\", "
                 "\"output\": \"o\"}\n");
    scratch_text("w.txt", "a few words of text");
    const char *paths[] = {scratch_path("w.jsonl"), scratch_path("w.txt")};
    const int64_t live = nb_alloc_live();
    for (int random = 0; random < 2; random++) {
        const nb_calib_options o = {
            .paths = paths, .n_paths = 2, .random = random != 0, .length = 30};
        int64_t n = 1;
        for (;; n++) {
            nb_calib_set set;
            nb_err err = {0};
            nb_alloc_fail_at(n);
            const nb_status s = open_set(&set, o, &err);
            nb_alloc_fail_at(0);
            nb_calib_set_free(&set);
            assert_int_equal(nb_alloc_live(), live);
            if (s == NB_OK)
                break;
            assert_int_equal(s, NB_MEMORY);
        }
        assert_true(n > 20);
        for (n = 1;; n++) {
            nb_calib_set set;
            nb_err err = {0};
            nb_file_fail_at(n, EIO);
            const nb_status s = open_set(&set, o, &err);
            nb_file_fail_at(0, 0);
            nb_calib_set_free(&set);
            assert_int_equal(nb_alloc_live(), live);
            if (s == NB_OK)
                break;
            assert_int_equal(s, NB_IO);
        }
        assert_true(n > 5);
    }
}

/* Good files with a few bytes changed: whatever comes of it, it is an answer, and nothing leaks. */
static void damaged_files_end_well(void **state)
{
    (void)state;
    static const char lines[] =
        "{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": "
        "\"a\"}]}, "
        "{\"from\": \"gpt\", \"value\": \"b\"}]}\n[1, 2]\n{\"instruction\": \"i\", \"input\": "
        "\"x\", \"output\": \"o\"}\n{\"input_ids\": [5, 6]}\n{\"text\": \"\\u00e9\"}\n";
    static const char array[] = "\x93NUMPY\x01\x00\x3c\x00{'descr': '<u2', 'fortran_order': False, "
                                "'shape': (2, 3), }\n1\x00"
                                "2\x00"
                                "3\x00"
                                "4\x00"
                                "5\x00"
                                "6\x00";
    static const struct {
        const char *name, *bytes;
        size_t n;
    } files[] = {{"x.jsonl", lines, sizeof lines - 1}, {"x.npy", array, sizeof array - 1}};
    int n_fine = 0, n_bad = 0;
    const int64_t live = nb_alloc_live();
    for (uint64_t i = 0; i < 600; i++) {
        char bytes[sizeof lines + sizeof array];
        uint32_t r[4];
        nb_philox(77, 1, i, r);
        const size_t f = i % 2, n = files[f].n;
        memcpy(bytes, files[f].bytes, n);
        for (uint32_t k = 0; k < r[3] % 3; k++) {
            static const char alphabet[] = "0123456789{}[]\":,\n' (<";
            bytes[r[k] % n] =
                r[3] & 64 ? (char)(r[k] >> 24) : alphabet[(r[k] >> 20) % (sizeof alphabet - 1)];
        }
        scratch_write(files[f].name, bytes, r[3] & 128 ? n : n - (r[2] >> 8) % n);
        const char *path = scratch_path(files[f].name);
        nb_calib_set set;
        nb_err err = {0};
        const nb_status s = open_set(
            &set, (nb_calib_options){.paths = &path, .n_paths = 1, .random = i % 4 > 1}, &err);
        assert_true(s == NB_OK || s == NB_DATA || s == NB_UNSUPPORTED);
        assert_true(s == NB_OK ? set.n_tokens > 0 : err.text[0] != 0);
        *(s == NB_OK ? &n_fine : &n_bad) += 1;
        nb_calib_set_free(&set);
        assert_int_equal(nb_alloc_live(), live);
    }
    assert_true(n_fine > 50 && n_bad > 50);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(windows_are_those_of_the_whole_text),
        cmocka_unit_test(bos_starts_each_sequence),
        cmocka_unit_test(the_width_of_ids_is_looked_at),
        cmocka_unit_test(ids_need_no_tokenizer),
        cmocka_unit_test(documents_are_joined_or_stand_alone),
        cmocka_unit_test(separators_are_found_at_every_place),
        cmocka_unit_test(files_share_the_windows),
        cmocka_unit_test(every_eighth_is_held_out),
        cmocka_unit_test(random_order_is_a_function_of_the_seed),
        cmocka_unit_test(picking_in_bounded_memory_is_exact),
        cmocka_unit_test(random_pieces_make_up_the_text),
        cmocka_unit_test(lines_hold_texts_and_conversations),
        cmocka_unit_test(conversations_can_be_plain),
        cmocka_unit_test(ids_come_from_arrays),
        cmocka_unit_test(the_hash_is_of_ids_and_cuts),
        cmocka_unit_test(odd_texts_work),
        cmocka_unit_test(bad_files_are_refused_by_line),
        cmocka_unit_test(bad_arrays_are_refused),
        cmocka_unit_test(bad_options_are_refused),
        cmocka_unit_test(long_lines_are_refused),
        cmocka_unit_test(cuts_fall_between_words),
        cmocka_unit_test(damaged_files_end_well),
        cmocka_unit_test(whatever_fails_nothing_leaks),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
