/* What the header parser accepts and refuses: the golden files, and for every way in which a file
 * can lie about itself (counts, lengths, types, names, shapes, offsets) one file that does. */
#define _GNU_SOURCE
#include "support/golden.h"
#include "support/gguf_bytes.h"
#include "support/scratch.h"

#include "store/store.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static nb_status open_file(const char *path, nb_err *err)
{
    nb_store *store = NULL;
    const nb_status s = nb_store_open(&store, path, err);
    if (s == NB_OK)
        nb_store_close(store);
    else
        assert_null(store);
    return s;
}

static void check_message(const nb_err *err, const char *path, const char *reason)
{
    const size_t n = strlen(path);
    if (strncmp(err->text, path, n) != 0 || strncmp(err->text + n, ": ", 2) != 0)
        fail_msg("the message does not name the file: %s", err->text);
    if (strstr(err->text, reason) == NULL)
        fail_msg("expected '%s' in: %s", reason, err->text);
    for (const char *p = err->text; *p != 0; p++)
        assert_true(*p >= 0x20 && *p < 0x7f);
}

/* These bytes are refused in one line that names the file and gives the reason, and nothing stays
 * allocated. */
static void refused(const void *bytes, size_t n, const char *reason)
{
    scratch_write("hostile.gguf", bytes, n);
    const char *path = scratch_path("hostile.gguf");
    const int64_t live = nb_alloc_live();
    nb_err err = {0};
    const nb_status s = open_file(path, &err);
    if (s != NB_DATA && s != NB_UNSUPPORTED)
        fail_msg("status '%s', expected a refusal with '%s': %s", nb_status_name(s), reason,
                 err.text);
    assert_int_equal(err.status, s);
    check_message(&err, path, reason);
    assert_int_equal(nb_alloc_live(), live);
}

static void accepted(const void *bytes, size_t n)
{
    scratch_write("good.gguf", bytes, n);
    const char *path = scratch_path("good.gguf");
    const int64_t live = nb_alloc_live();
    nb_err err = {0};
    if (open_file(path, &err) != NB_OK)
        fail_msg("%s", err.text);
    assert_int_equal(nb_alloc_live(), live);
}

/* Finishes, opens, and frees g. */
static void refused_file(gguf_bytes *g, const char *reason)
{
    nb_buf bytes = {0};
    gb_finish(g, &bytes);
    refused(bytes.data, bytes.len, reason);
    nb_buf_free(&bytes);
    gb_free(g);
}

static void accepted_file(gguf_bytes *g)
{
    nb_buf bytes = {0};
    gb_finish(g, &bytes);
    accepted(bytes.data, bytes.len);
    nb_buf_free(&bytes);
    gb_free(g);
}

static const float two_floats[2] = {1.0f, 2.0f};

/* A file with one pair, to which a test adds its lie. */
static gguf_bytes begin(void)
{
    gguf_bytes g = {0};
    gb_text(&g, "general.architecture", "llama");
    return g;
}

static void whole_file(nb_buf *out)
{
    gguf_bytes g = begin();
    gb_tensor(&g, "output_norm.weight", 2, 0, 0, two_floats, sizeof two_floats);
    gb_finish(&g, out);
    gb_free(&g);
}

/* ---- golden ---- */

static void golden_verdicts_are_ours(void **state)
{
    (void)state;
    json_t *golden = golden_load("gguf_files.json");
    size_t n;
    uint8_t *good = golden_hex(golden, "good", &n);
    accepted(good, n);
    free(good);
    static const char *const reasons[][2] = {
        {"magic", "not a GGUF file"},
        {"version_1", "GGUF version 1"},
        {"version_4", "GGUF version 4"},
        {"gap_in_offsets", "its offset is "},
        {"offset_not_running_sum", "its offset is "},
        {"duplicate_tensor_name", "is there twice"},
        {"row_not_multiple_of_block", "no whole Q8_0 blocks"},
        {"type_out_of_range", "which ggml does not have"},
        {"removed_type_4", "type 4, which ggml does not have"},
        {"truncated_by_1_incl_padding", "past the end of the file"},
        {"alignment_not_power_of_two", "'general.alignment' is "},
        {"name_64_bytes", "a tensor name of 64 bytes"},
        {"duplicate_key", "is there twice"},
        {"empty_key", "an empty key"},
        {"nested_array", "an array of arrays"},
    };
    const json_t *rejects = golden_get(golden, "rejects");
    assert_int_equal(json_object_size(rejects), sizeof reasons / sizeof *reasons);
    for (size_t i = 0; i < sizeof reasons / sizeof *reasons; i++) {
        const json_t *entry = golden_get(rejects, reasons[i][0]);
        assert_false(json_boolean_value(golden_get(entry, "ggml_accepts")));
        uint8_t *bytes = golden_hex(entry, "hex", &n);
        refused(bytes, n, reasons[i][1]);
        free(bytes);
    }
    uint8_t *bytes = golden_hex(golden_get(golden, "good_without_trailing_padding"), "hex", &n);
    refused(bytes, n, "past the end of the file");
    free(bytes);
    json_decref(golden);
}

/* ---- H1, H2: the front ---- */

static void files_that_are_too_short(void **state)
{
    (void)state;
    nb_buf good = {0};
    whole_file(&good);
    for (size_t n = 0; n < 24; n++)
        refused(good.data, n, "too short");
    nb_buf_free(&good);
}

static void files_of_other_kinds_are_named(void **state)
{
    (void)state;
#define BYTES(text) text, sizeof(text) - 1
    static const struct {
        const char *bytes;
        size_t n;
        const char *reason;
    } cases[] = {
        {BYTES("\x10\0\0\0\0\0\0\0{\"a\":{\"dtype\":\"F32\""), "safetensors"},
        {BYTES("PK\x03\x04 and so on, and so on, and so on"), "ZIP"},
        {BYTES("\x80\x02}q\0(X\x05\0\0\0 and so on and so on"), "pickle"},
        {BYTES("<!DOCTYPE html><html><head><title>404"), "web page"},
        {BYTES("FUGG\0\0\0\3\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"), "swapped"},
        {BYTES("tjgg\1\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"), "before GGUF"},
        {BYTES("\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"), "not a GGUF file"},
        {BYTES("GGUF\0\0\0\3\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"), "big-endian"},
        {BYTES("GGUF\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"), "version 0, expected 2 or 3"},
        {BYTES("GGUF\1\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"), "version 1, expected 2 or 3"},
        {BYTES("GGUF\4\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"), "version 4, expected 2 or 3"},
    };
#undef BYTES
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        refused(cases[i].bytes, cases[i].n, cases[i].reason);
}

static void version_2_has_the_same_layout(void **state)
{
    (void)state;
    gguf_bytes g = begin();
    g.version = 2;
    gb_tensor(&g, "output_norm.weight", 2, 0, 0, two_floats, sizeof two_floats);
    accepted_file(&g);
}

/* ---- H3, H4: counts ---- */

static void absurd_counts(void **state)
{
    (void)state;
    static const uint64_t counts[] = {(uint64_t)1 << 40, ((uint64_t)1 << 58) + 1, (uint64_t)1 << 63,
                                      UINT64_MAX, 1000};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        gguf_bytes g = begin();
        g.n_kv = counts[i];
        refused_file(&g, "keys are announced, too many");
        g = begin();
        g.n_tensors = counts[i];
        refused_file(&g, "tensors are announced, too many");
    }
}

static void counts_that_are_off_by_one(void **state)
{
    (void)state;
    for (int which = 0; which < 4; which++) {
        gguf_bytes g = begin();
        gb_u32(&g, "llama.block_count", 1);
        gb_tensor(&g, "output_norm.weight", 2, 0, 0, two_floats, sizeof two_floats);
        gb_tensor(&g, "output_norm.bias", 2, 0, 0, two_floats, sizeof two_floats);
        if (which == 0)
            g.n_kv++;
        else if (which == 1)
            g.n_kv--;
        else if (which == 2)
            g.n_tensors++;
        if (which == 3) {
            g.n_tensors--; /* the last info is read as data: harmless */
            accepted_file(&g);
        } else {
            refused_file(&g, "");
        }
    }
}

/* ---- H5 - H8: pairs ---- */

static void lengths_past_the_end(void **state)
{
    (void)state;
    static const uint64_t lengths[] = {200, (uint64_t)4 << 30, (uint64_t)1 << 63, UINT64_MAX,
                                       UINT64_MAX - 7};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        gguf_bytes g = begin(); /* of a key */
        gb_raw_u64(&g.kv, lengths[i]);
        gb_raw_string(&g.kv, "some bytes");
        g.n_kv++;
        refused_file(&g, "key 2 of 2: ");
        g = begin(); /* of a value */
        gb_key(&g, "a.text", 8);
        gb_raw_u64(&g.kv, lengths[i]);
        gb_raw_string(&g.kv, "some bytes");
        refused_file(&g, "key 'a.text': ");
        g = begin(); /* of an element */
        gb_array(&g, "some.texts", 8, 2);
        gb_raw_string(&g.kv, "one");
        gb_raw_u64(&g.kv, lengths[i]);
        refused_file(&g, "key 'some.texts': ");
        g = begin(); /* of a tensor's name */
        gb_raw_u64(&g.infos, lengths[i]);
        gb_raw(&g.infos, "0123456789012345678901234567890123456789", 40);
        g.n_tensors++;
        refused_file(&g, "tensor 1 of 1: ");
    }
}

static void keys_empty_binary_twice_or_long(void **state)
{
    (void)state;
    gguf_bytes g = begin();
    gb_u32(&g, "", 1);
    refused_file(&g, "key 2 of 2: an empty key");
    g = begin();
    gb_u32(&g, "a\x1b[31mb\n", 1);
    refused_file(&g, "a\\x1b[31mb\\x0a' has byte 0x1b");
    g = begin();
    gb_u32(&g, "caf\xc3\xa9", 1);
    refused_file(&g, "has byte 0xc3");
    g = begin();
    gb_u32(&g, "twice", 1);
    gb_u32(&g, "between", 1);
    gb_f32(&g, "twice", 1.0f);
    refused_file(&g, "key 'twice' is there twice");
    char *longest = malloc(300001);
    assert_non_null(longest);
    memset(longest, 'k', 300000);
    longest[300000] = 0;
    g = begin();
    gb_u32(&g, longest, 1);
    refused_file(&g, "a key of 300000 bytes");
    longest[65535] = 0;
    g = begin();
    gb_u32(&g, longest, 1);
    accepted_file(&g);
    /* A prefix is another key. */
    g = begin();
    gb_u32(&g, "ab", 1);
    gb_u32(&g, "abc", 1);
    gb_u32(&g, "a", 1);
    accepted_file(&g);
    free(longest);
}

static void value_types(void **state)
{
    (void)state;
    static const uint32_t types[] = {13, 255, 0x80000000u, 0x80000004u, 0xffffffffu};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        gguf_bytes g = begin();
        gb_key(&g, "odd", types[i]);
        gb_raw_u64(&g.kv, 0);
        refused_file(&g, "key 'odd': value type ");
        g = begin();
        gb_array(&g, "odd", types[i], 1);
        gb_raw_u64(&g.kv, 0);
        refused_file(&g, "key 'odd': value type ");
    }
}

/* Nesting is refused at the first level, so depth costs nothing. */
static void arrays_of_arrays(void **state)
{
    (void)state;
    gguf_bytes g = begin();
    gb_array(&g, "deep", 9, 1);
    for (int i = 0; i < 30000; i++) {
        gb_raw_u32(&g.kv, 9);
        gb_raw_u64(&g.kv, 1);
    }
    refused_file(&g, "key 'deep': an array of arrays");
}

static void array_counts_that_wrap(void **state)
{
    (void)state;
    static const uint64_t counts[] = {((uint64_t)1 << 62) + 1, ((uint64_t)1 << 61) + 1,
                                      (uint64_t)1 << 30, UINT64_MAX, 100};
    static const uint32_t elems[] = {4, 12, 8, 6};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        for (size_t e = 0; e < sizeof elems / sizeof *elems; e++) {
            gguf_bytes g = begin();
            gb_array(&g, "many", elems[e], counts[i]);
            gb_raw_u64(&g.kv, 0);
            refused_file(&g, "are announced, and ");
        }
    }
}

/* ---- H9: alignment ---- */

static void alignments(void **state)
{
    (void)state;
    static const uint32_t bad[] = {0, 3, 33, 1u << 31, 1u << 21, 0xffffffffu};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        gguf_bytes g = begin();
        gb_u32(&g, "general.alignment", bad[i]);
        gb_tensor(&g, "output_norm.weight", 2, 0, 0, two_floats, sizeof two_floats);
        refused_file(&g, "'general.alignment' is ");
    }
    gguf_bytes g = begin();
    gb_key(&g, "general.alignment", 5);
    gb_raw_u32(&g.kv, 32);
    refused_file(&g, "'general.alignment' is of type 5");
    g = begin();
    gb_text(&g, "general.alignment", "32");
    refused_file(&g, "'general.alignment' is of type 8");
    static const uint32_t good[] = {1, 8, 64, 4096};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        g = begin();
        g.alignment = good[i];
        gb_u32(&g, "general.alignment", good[i]);
        gb_tensor(&g, "a", 2, 0, 0, two_floats, sizeof two_floats);
        gb_tensor(&g, "b", 1, 0, 0, two_floats, 4);
        accepted_file(&g);
    }
}

/* ---- H18 - H20: shapes and types ---- */

static void one_info(const char *name, uint32_t n_dims, const uint64_t *ne, uint32_t type,
                     uint64_t offset, const char *reason)
{
    gguf_bytes g = begin();
    gb_info(&g, name, n_dims, ne, type, offset);
    gb_raw(&g.data, two_floats, sizeof two_floats);
    gb_raw(&g.data, (uint8_t[56]){0}, 56);
    refused_file(&g, reason);
}

static void shapes(void **state)
{
    (void)state;
    const uint64_t two[5] = {2, 1, 1, 1, 1};
    one_info("t", 0, two, 0, 0, "tensor 't': 0 dimensions");
    one_info("t", 5, two, 0, 0, "tensor 't': 5 dimensions");
    gguf_bytes g = begin();
    gb_raw_string(&g.infos, "t");
    gb_raw_u32(&g.infos, 0xffffffffu);
    gb_raw(&g.infos, (uint8_t[64]){0}, 64);
    g.n_tensors++;
    refused_file(&g, "tensor 't': 4294967295 dimensions");

    one_info("t", 1, (uint64_t[]){0}, 0, 0, "dimension 0 is 0");
    one_info("t", 2, (uint64_t[]){2, 0}, 0, 0, "dimension 1 is 0");
    one_info("t", 1, (uint64_t[]){(uint64_t)1 << 63}, 0, 0, "dimension 0 is -9223372036854775808");
    one_info("t", 1, (uint64_t[]){UINT64_MAX}, 0, 0, "dimension 0 is -1");
    /* Products that wrap, to anything and to exactly the right number. */
    one_info("t", 2, (uint64_t[]){(uint64_t)1 << 32, (uint64_t)1 << 32}, 0, 0, "more than 2^63");
    one_info("t", 3, (uint64_t[]){((uint64_t)1 << 62) + 1, 4, 1}, 0, 0, "more than 2^63");
    one_info("t", 4, (uint64_t[]){1 << 16, 1 << 16, 1 << 16, 1 << 15}, 0, 0, "more than 2^63");
    one_info("t", 1, (uint64_t[]){((uint64_t)1 << 62) + 2}, 0, 0, "more than 2^63 bytes");
    one_info("t", 1, (uint64_t[]){(uint64_t)1 << 60}, 0, 0, "past the end of the file");
    one_info("t", 2, (uint64_t[]){1 << 20, 1 << 20}, 0, 0, "past the end of the file");
}

static void types(void **state)
{
    (void)state;
    const uint64_t ne[1] = {256};
    static const uint32_t unknown[] = {4,  5,  31, 32, 33,          36,
                                       37, 38, 43, 97, 0x7fffffffu, 0xffffffffu};
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++)
        one_info("t", 1, ne, unknown[i], 0, "which ggml does not have");
    one_info("t", 1, ne, 0xffffffffu, 0, "tensor 't': type -1");
    /* Those that ggml has and nibble does not are refused by ggml's name for them. */
    static const struct {
        uint32_t id;
        const char *name;
    } foreign[] = {
        {17, "tensor 't': it is IQ2_XS, which is not supported"},
        {28, "F64"},
        {24, "I8"},
        {26, "I32"},
        {10, "Q2_K"},
        {23, "IQ4_XS"},
        {42, "Q2_0"},
    };
    for (size_t i = 0; i < sizeof foreign / sizeof *foreign; i++) {
        if (nb_format_by_ggml(foreign[i].id) == NULL)
            one_info("t", 1, ne, foreign[i].id, 0, foreign[i].name);
    }
    one_info("t", 1, (uint64_t[]){33}, 8, 0, "rows of 33 are no whole Q8_0 blocks of 32");
    one_info("t", 2, (uint64_t[]){16, 2}, 2, 0, "rows of 16 are no whole Q4_0 blocks of 32");
    one_info("t", 1, (uint64_t[]){32}, 12, 0, "rows of 32 are no whole Q4_K blocks of 256");
}

/* ---- H21, H24: places ---- */

static void offsets(void **state)
{
    (void)state;
    const uint64_t ne[1] = {2};
    one_info("t", 1, ne, 0, 1 << 20, "past the end of the file");
    one_info("t", 1, ne, 0, UINT64_MAX, "past the end of the file");
    one_info("t", 1, ne, 0, UINT64_MAX - 7, "past the end of the file");
    one_info("t", 1, ne, 0, (uint64_t)1 << 63, "past the end of the file");
    one_info("t", 1, ne, 0, 4, "its offset is 4, expected 0");
    one_info("t", 1, ne, 0, 32, "its offset is 32, expected 0");
    gguf_bytes g = begin(); /* overlapping */
    gb_info(&g, "a", 1, ne, 0, 0);
    gb_info(&g, "b", 1, ne, 0, 0);
    gb_raw(&g.data, (uint8_t[64]){0}, 64);
    refused_file(&g, "tensor 'b': its offset is 0, expected 32");
    g = begin(); /* not padded */
    gb_info(&g, "a", 1, ne, 0, 0);
    gb_info(&g, "b", 1, ne, 0, 8);
    gb_raw(&g.data, (uint8_t[64]){0}, 64);
    refused_file(&g, "tensor 'b': its offset is 8, expected 32");
}

/* Every proper prefix of a file is refused; the whole file, and one with a tail, are not. */
static void every_truncation(void **state)
{
    (void)state;
    nb_buf good = {0};
    whole_file(&good);
    for (size_t n = 0; n < good.len; n++)
        refused(good.data, n, "");
    refused(good.data, good.len - 1, "tensor 'output_norm.weight' ends, with its padding, at byte");
    accepted(good.data, good.len);
    gb_raw_u64(&good, 0);
    accepted(good.data, good.len);
    nb_buf_free(&good);
}

/* ---- H22: names ---- */

static void tensor_names(void **state)
{
    (void)state;
    const uint64_t ne[1] = {2};
    one_info("", 1, ne, 0, 0, "a tensor with an empty name");
    one_info("a\x1b[2Jb", 1, ne, 0, 0, "'a\\x1b[2Jb' has byte 0x1b");
    one_info("a\nnibble: all is well", 1, ne, 0, 0, "has byte 0x0a");
    one_info("a b", 1, ne, 0, 0, "has byte 0x20");
    char name[71] = {0};
    memset(name, 'n', 70);
    one_info(name, 1, ne, 0, 0, "a tensor name of 70 bytes");
    name[64] = 0;
    one_info(name, 1, ne, 0, 0, "a tensor name of 64 bytes");
    gguf_bytes g = begin();
    name[63] = 0;
    gb_tensor(&g, name, 2, 0, 0, two_floats, sizeof two_floats);
    accepted_file(&g);
    /* Twice, also when one of the two already has the name that the other one gets. */
    static const char *const pairs[][2] = {
        {"output_norm.weight", "output_norm.weight"},
        {"output_norm.weight", "model.norm.weight"},
    };
    for (size_t i = 0; i < 2; i++) {
        g = begin();
        gb_tensor(&g, pairs[i][0], 2, 0, 0, two_floats, sizeof two_floats);
        gb_tensor(&g, "between", 2, 0, 0, two_floats, sizeof two_floats);
        gb_tensor(&g, pairs[i][1], 2, 0, 0, two_floats, sizeof two_floats);
        refused_file(&g, "is there twice");
    }
}

/* ---- H10: what this layer itself needs to know ---- */

static void the_architecture_is_required(void **state)
{
    (void)state;
    gguf_bytes g = {0};
    gb_u32(&g, "llama.block_count", 1);
    refused_file(&g, "key 'general.architecture' is missing");
    g = (gguf_bytes){0};
    gb_u32(&g, "general.architecture", 7);
    refused_file(&g, "key 'general.architecture' is a u32, expected a string");
    g = (gguf_bytes){0};
    gb_text(&g, "general.architecture", "");
    refused_file(&g, "key 'general.architecture' is ''");
}

/* ---- H32: large, and honest ---- */

static void large_and_honest_files_open(void **state)
{
    (void)state;
    gguf_bytes g = begin();
    char name[64];
    for (int i = 0; i < 60000; i++) {
        snprintf(name, sizeof name, "some.key.%d", i);
        gb_u32(&g, name, (uint32_t)i);
    }
    const uint64_t ne[1] = {1};
    for (uint64_t i = 0; i < 60000; i++) {
        snprintf(name, sizeof name, "blk.%d.some.weight", (int)i);
        gb_info(&g, name, 1, ne, 0, 32 * i);
    }
    nb_err err = {0};
    assert_int_equal(nb_buf_reserve(&g.data, 60000 * 32, &err), NB_OK);
    memset(g.data.data, 0, 60000 * 32);
    g.data.len = 60000 * 32;
    accepted_file(&g);

    const size_t n = (size_t)8 << 20;
    char *text = malloc(n + 1);
    assert_non_null(text);
    memset(text, 't', n);
    text[n] = 0;
    g = begin();
    gb_text(&g, "long.text", text);
    gb_array(&g, "tokenizer.ggml.tokens", 8, 2);
    text[n / 2] = 0;
    gb_raw_string(&g.kv, text);
    gb_raw_string(&g.kv, "x");
    gb_tensor(&g, "output_norm.weight", 2, 0, 0, two_floats, sizeof two_floats);
    accepted_file(&g);
    free(text);
}

/* ---- H48: sparse ---- */

static void refused_sparse(gguf_bytes *g, const char *reason)
{
    const char *path = scratch_path("sparse.gguf");
    nb_buf bytes = {0};
    if (g != NULL) {
        gb_raw(&bytes, "GGUF", 4);
        gb_raw_u32(&bytes, 3);
        gb_raw_u64(&bytes, g->n_tensors);
        gb_raw_u64(&bytes, g->n_kv);
        gb_raw(&bytes, g->kv.data, g->kv.len);
        gb_free(g);
    }
    scratch_write("sparse.gguf", bytes.len == 0 ? (const void *)"" : bytes.data, bytes.len);
    nb_buf_free(&bytes);
    if (truncate(path, (off_t)6 << 30) != 0) {
        print_message("SKIP: no sparse file of 6 GiB here: %s\n", strerror(errno));
        return;
    }
    nb_err err = {0};
    assert_int_equal(open_file(path, &err), NB_DATA);
    check_message(&err, path, reason);
    assert_int_equal(unlink(path), 0);
}

/* The size of a file alone justifies nothing: counts that would fit in 6 GiB are still refused
 * before they cost memory. */
static void sparse_garbage_is_refused_soon(void **state)
{
    (void)state;
    refused_sparse(NULL, "not a GGUF file");
    gguf_bytes g = {.n_kv = (uint64_t)1 << 28};
    refused_sparse(&g, "268435456 keys are announced, and at most");
    g = (gguf_bytes){.n_tensors = (uint64_t)1 << 27};
    refused_sparse(&g, "134217728 tensors are announced, and at most");
    g = begin();
    gb_array(&g, "a.lot", 8, (uint64_t)1 << 29);
    refused_sparse(&g, "the header is longer than");
    g = begin();
    gb_array(&g, "a.lot", 0, (uint64_t)5 << 30);
    refused_sparse(&g, "the header is longer than");
    g = begin();
    gb_key(&g, "a.text", 8);
    gb_raw_u64(&g.kv, (uint64_t)5 << 30);
    refused_sparse(&g, "the header is longer than");
    g = begin();
    g.n_kv += 1000;
    refused_sparse(&g, "an empty key");
}

/* ---- H47: what is no file ---- */

static void what_is_no_file(void **state)
{
    (void)state;
    nb_err err = {0};
    assert_int_equal(mkfifo(scratch_path("fifo.gguf"), 0600), 0);
    assert_int_equal(open_file(scratch_path("fifo.gguf"), &err), NB_DATA);
    check_message(&err, scratch_path("fifo.gguf"), "not a regular file");
    assert_int_equal(open_file(scratch_path("missing.gguf"), &err), NB_DATA);
    check_message(&err, scratch_path("missing.gguf"), "No such file");
    assert_int_equal(symlink(scratch_path("missing.gguf"), scratch_path("dangling.gguf")), 0);
    assert_int_equal(open_file(scratch_path("dangling.gguf"), &err), NB_DATA);
    assert_int_equal(symlink(scratch_path("loop.gguf"), scratch_path("loop.gguf")), 0);
    assert_int_equal(open_file(scratch_path("loop.gguf"), &err), NB_DATA);
    nb_buf good = {0};
    whole_file(&good);
    scratch_write("target.gguf", good.data, good.len);
    nb_buf_free(&good);
    assert_int_equal(symlink(scratch_path("target.gguf"), scratch_path("link.gguf")), 0);
    /* A link to a file is how caches look. */
    assert_int_equal(open_file(scratch_path("link.gguf"), &err), NB_OK);
}

/* All of the above in one process: no file took memory out of proportion. */
static void hostile_files_took_little_memory(void **state)
{
    (void)state;
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED
#endif
#endif
#if defined(SANITIZED) || defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    skip(); /* sanitizers keep what was freed */
#else
    struct rusage usage;
    assert_int_equal(getrusage(RUSAGE_SELF, &usage), 0);
    assert_in_range(usage.ru_maxrss, 1, 64 << 10);
#endif
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_verdicts_are_ours),
        cmocka_unit_test(files_that_are_too_short),
        cmocka_unit_test(files_of_other_kinds_are_named),
        cmocka_unit_test(version_2_has_the_same_layout),
        cmocka_unit_test(absurd_counts),
        cmocka_unit_test(counts_that_are_off_by_one),
        cmocka_unit_test(lengths_past_the_end),
        cmocka_unit_test(keys_empty_binary_twice_or_long),
        cmocka_unit_test(value_types),
        cmocka_unit_test(arrays_of_arrays),
        cmocka_unit_test(array_counts_that_wrap),
        cmocka_unit_test(alignments),
        cmocka_unit_test(shapes),
        cmocka_unit_test(types),
        cmocka_unit_test(offsets),
        cmocka_unit_test(every_truncation),
        cmocka_unit_test(tensor_names),
        cmocka_unit_test(the_architecture_is_required),
        cmocka_unit_test(sparse_garbage_is_refused_soon),
        cmocka_unit_test(what_is_no_file),
        cmocka_unit_test(hostile_files_took_little_memory),
        cmocka_unit_test(large_and_honest_files_open),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
