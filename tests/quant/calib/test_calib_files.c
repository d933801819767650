/* Files of calibration sets: each kind gives the ids it says; and what is wrong is told by file and
 * line. */
#include "base/rng.h"
#include "quant/calib/calib_world.h"
#include "quant/calib/doc.h"
#include "quant/calib/score.h"
#include "quant/calib/set.h"
#include "support/golden.h"
#include "support/scratch.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

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

/* ---- what is wrong ---- */

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
        {"s.jsonl", "{\"text\": \"\"}\n{\"text\": \"\"}\n{\"text\": \"\"}\n", NULL,
         "s.jsonl: nothing to calibrate with", NB_DATA},
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
        cmocka_unit_test(the_width_of_ids_is_looked_at),
        cmocka_unit_test(ids_need_no_tokenizer),
        cmocka_unit_test(lines_hold_texts_and_conversations),
        cmocka_unit_test(conversations_can_be_plain),
        cmocka_unit_test(ids_come_from_arrays),
        cmocka_unit_test(bad_files_are_refused_by_line),
        cmocka_unit_test(bad_arrays_are_refused),
        cmocka_unit_test(bad_options_are_refused),
        cmocka_unit_test(long_lines_are_refused),
        cmocka_unit_test(damaged_files_end_well),
        cmocka_unit_test(whatever_fails_nothing_leaks),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
