/* safetensors headers: the golden files, one file for every way to be wrong, what must be
 * accepted, sizes that must stay linear, mutations, and failures of memory and disk. */
#include "store/safetensors.h"
#include "base/rng.h"
#include "support/golden.h"
#include "support/scratch.h"
#include "support/st_bytes.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static nb_status open_it(nb_safetensors *st, nb_arena *arena, const char *name, nb_err *err)
{
    return nb_st_open(st, arena, scratch_path(name), err);
}

/* Opens and closes; everything must be freed again. */
static nb_status try_open(const char *name, nb_err *err)
{
    const int64_t live = nb_alloc_live();
    nb_safetensors st;
    nb_arena arena = {0};
    const nb_status s = open_it(&st, &arena, name, err);
    nb_st_close(&st);
    nb_arena_free(&arena);
    assert_int_equal(nb_alloc_live(), live);
    return s;
}

static void expect_refused(const char *name, nb_status status, const char *reason)
{
    nb_err err = {0};
    const nb_status s = try_open(name, &err);
    if (s != status || strstr(err.text, reason) == NULL)
        fail_msg("status %d, wanted %d with '%s': %s", s, status, reason, err.text);
    if (strncmp(err.text, scratch_path(name), strlen(scratch_path(name))) != 0)
        fail_msg("the message does not begin with the file: %s", err.text);
}

/* ---- golden files ---- */

static void write_golden(const json_t *object, const char *key)
{
    size_t n;
    uint8_t *bytes = golden_hex(object, key, &n);
    scratch_write("golden", bytes, n);
    free(bytes);
}

static void golden_good(void **state)
{
    (void)state;
    json_t *golden = golden_load("safetensors_files.json");
    nb_safetensors st;
    nb_arena arena = {0};
    nb_err err;

    write_golden(golden, "good");
    assert_int_equal(open_it(&st, &arena, "golden", &err), NB_OK);
    assert_int_equal(st.n_tensors, 3);
    float a[2];
    assert_string_equal(st.tensors[0].name, "a");
    assert_int_equal(st.tensors[0].dtype, NB_ST_F32);
    assert_int_equal(nb_st_read(&st, &st.tensors[0], a, &err), NB_OK);
    assert_true(a[0] == 1.0f && a[1] == -2.5f);
    assert_string_equal(st.tensors[1].name, "b");
    assert_int_equal(st.tensors[1].dtype, NB_ST_F8_E4M3);
    assert_int_equal(st.tensors[1].n_dims, 2);
    assert_int_equal(st.tensors[1].dims[0], 2);
    assert_int_equal(st.tensors[1].dims[1], 2);
    uint8_t c[2];
    assert_string_equal(st.tensors[2].name, "c");
    assert_int_equal(nb_st_read(&st, &st.tensors[2], c, &err), NB_OK);
    assert_int_equal(c[0], 0x21);
    assert_int_equal(c[1], 0x43);
    nb_st_close(&st);

    write_golden(golden, "good_scalar_and_empty");
    assert_int_equal(open_it(&st, &arena, "golden", &err), NB_OK);
    assert_int_equal(st.n_tensors, 2);
    assert_int_equal(st.tensors[0].n_dims, 0);
    assert_int_equal(st.tensors[0].bytes, 4);
    assert_int_equal(st.tensors[1].bytes, 0);
    nb_st_close(&st);

    write_golden(golden, "good_f4");
    assert_int_equal(open_it(&st, &arena, "golden", &err), NB_OK);
    assert_int_equal(st.tensors[0].bytes, 2);
    nb_st_close(&st);
    nb_arena_free(&arena);
    json_decref(golden);
}

static void golden_rejects(void **state)
{
    (void)state;
    static const struct {
        const char *key, *reason;
        nb_status status;
    } cases[] = {
        {"hole", "begins at byte 9, and the one before ends at 8", NB_DATA},
        {"overlap", "begins at byte 7, and the one before ends at 8", NB_DATA},
        {"size_mismatch", "tensor 'a': F32 [3] needs 12 bytes and has 8", NB_DATA},
        {"trailing_bytes", "15 bytes of data, and the tensors end at 14", NB_DATA},
        {"short_data", "tensor 'c' ends at byte 14 of 13", NB_DATA},
        {"end_before_start", "tensor 'c': data_offsets [12, 11] end before they begin", NB_DATA},
        {"metadata_value_not_string", "__metadata__: byte", NB_DATA},
        {"unknown_dtype", "tensor 'c': dtype 'X9' is not known", NB_UNSUPPORTED},
        {"f4_odd_count", "no whole bytes", NB_DATA},
        {"header_len_past_eof", "a header of 1048576 bytes is announced", NB_DATA},
        {"header_len_over_100MB", "a header of 100000001 bytes is announced", NB_DATA},
        {"bad_json", "header: tensor 'a': byte 8", NB_DATA},
        {"shorter_than_8", "4 bytes are too short", NB_DATA},
    };
    json_t *golden = golden_load("safetensors_files.json");
    const json_t *rejects = golden_get(golden, "rejects");
    assert_int_equal(json_object_size(rejects), sizeof cases / sizeof *cases);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_golden(rejects, cases[i].key);
        expect_refused("golden", cases[i].status, cases[i].reason);
    }
    json_decref(golden);
}

/* ---- every way to be wrong ---- */

#define U8_2 "\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]"

/* Two bytes of data behind each of these headers. */
static void wrong_headers(void **state)
{
    (void)state;
    static const struct {
        const char *header, *reason;
    } cases[] = {
        {"[]", "no JSON object"},
        {"  {}", "no JSON object"},
        {"\"a\"", "no JSON object"},
        {"{", "no JSON object"},
        {"{ ", "the JSON ends where a string was expected"},
        {"{\"a\"", "the JSON ends where ':' was expected"},
        {"{\"a\":{" U8_2 "}", "the JSON ends where '}' was expected"},
        {"{\"a\":{" U8_2 "}}x", "found 'x', expected the end"},
        {"{\"a\":{" U8_2 "}}{}", "found '{', expected the end"},
        {"{\"a\":{" U8_2 "},}", "expected a string"},
        {"{\"a\":{" U8_2 ",}}", "expected a string"},
        {"{a:{" U8_2 "}}", "expected a string"},
        {"{\"a\":[]}", "expected '{'"},
        {"{\"a\":null}", "expected '{'"},
        {"{\"a\":{}}", "expected a string"},
        {"{}", "2 bytes of data, and the tensors end at 0"},
        {"{\"\":{" U8_2 "}}", "a tensor without a name"},
        {"{\"a\\nb\":{" U8_2 "}}", "a control character in its name"},
        {"{\"a\\u007f\":{" U8_2 "}}", "a control character in its name"},
        {"{\"a\\u0000\":{" U8_2 "}}", "a zero inside a string"},
        {"{\"a\\ud800\":{" U8_2 "}}", "a lone surrogate"},
        {"{\"a\xff\":{" U8_2 "}}", "not UTF-8"},
        {"{\"a\":{" U8_2 "},\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[2,2]}}",
         "tensor 'a' is there twice"},
        {"{\"a\":{" U8_2 "},\"\\u0061\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[2,2]}}",
         "tensor 'a' is there twice"},
        {"{\"a\":{" U8_2 ",\"dtype\":\"U8\"}}", "key 'dtype' is there twice"},
        {"{\"a\":{\"shape\":[2],\"data_offsets\":[0,2]}}", "key 'dtype' is missing"},
        {"{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,2]}}", "key 'shape' is missing"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[2]}}", "key 'data_offsets' is missing"},
        /* dtype */
        {"{\"a\":{\"dtype\":7,\"shape\":[2],\"data_offsets\":[0,2]}}", "expected a string"},
        {"{\"a\":{\"dtype\":null,\"shape\":[2],\"data_offsets\":[0,2]}}", "expected a string"},
        {"{\"a\":{\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":[0,2]}}", "needs 4 bytes"},
        /* shape */
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[-2],\"data_offsets\":[0,2]}}", "a whole number"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[2.0],\"data_offsets\":[0,2]}}", "a whole number"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[\"2\"],\"data_offsets\":[0,2]}}", "a whole number"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[null],\"data_offsets\":[0,2]}}", "a whole number"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":null,\"data_offsets\":[0,2]}}", "expected '['"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":2,\"data_offsets\":[0,2]}}", "expected '['"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[2,],\"data_offsets\":[0,2]}}", "a whole number"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[9223372036854775807,2],\"data_offsets\":[0,2]}}",
         "is too large"},
        /* 2^32 * 2^32 * 16 bits wraps to 0; 2^62 * 2 * 2 * 8 + ... cannot come out right either. */
        {"{\"a\":{\"dtype\":\"U16\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}",
         "is too large"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[18446744073709551618],\"data_offsets\":[0,2]}}",
         "above 2^63 - 1"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[2305843009213693953,2],\"data_offsets\":[0,2]}}",
         "is too large"},
        /* data_offsets */
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[2,0]}}",
         "end before they begin"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,3]}}", "ends at byte 3 of 2"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,18446744073709551618]}}",
         "above 2^63 - 1"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[-1,1]}}", "a whole number"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2.0]}}", "a whole number"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0]}}", "expected ','"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,1,2]}}", "expected ']'"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[\"0\",\"2\"]}}",
         "a whole number"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":{}}}", "expected '['"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}", "begins at byte 1"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", "the tensors end at 1"},
        {"{\"a\":{" U8_2 "},\"b\":{" U8_2 "}}", "begins at byte 0, and the one before ends at 2"},
        {"{\"a\":{" U8_2 "},\"e\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[1,1]}}",
         "begins at byte 1"},
        /* __metadata__ */
        {"{\"__metadata__\":[],\"a\":{" U8_2 "}}", "__metadata__: byte"},
        {"{\"__metadata__\":null,\"a\":{" U8_2 "}}", "__metadata__: byte"},
        {"{\"__metadata__\":{\"k\":1},\"a\":{" U8_2 "}}", "__metadata__: byte"},
        {"{\"__metadata__\":{\"k\":[]},\"a\":{" U8_2 "}}", "__metadata__: byte"},
        {"{\"__metadata__\":{\"k\":\"\",\"k\":\"\"},\"a\":{" U8_2 "}}", "key 'k' is there twice"},
        {"{\"__metadata__\":{},\"__metadata__\":{},\"a\":{" U8_2 "}}",
         "key '__metadata__' is there twice"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        st_write("wrong", cases[i].header, NULL, 2);
        expect_refused("wrong", NB_DATA, cases[i].reason);
    }
    static const struct {
        const char *header, *reason;
    } unsupported[] = {
        {"{\"a\":{\"dtype\":\"u8\",\"shape\":[2],\"data_offsets\":[0,2]}}", "dtype 'u8'"},
        {"{\"a\":{\"dtype\":\"\",\"shape\":[2],\"data_offsets\":[0,2]}}", "dtype ''"},
        {"{\"a\":{\"dtype\":\"F7\",\"shape\":[2],\"data_offsets\":[0,2]}}", "dtype 'F7'"},
        {"{\"a\":{" U8_2 ",\"stride\":[1]}}", "key 'stride' is not known"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,2],\"data_offsets\":[0,2]}}",
         "more than 4 dimensions"},
    };
    for (size_t i = 0; i < sizeof unsupported / sizeof *unsupported; i++) {
        st_write("wrong", unsupported[i].header, NULL, 2);
        expect_refused("wrong", NB_UNSUPPORTED, unsupported[i].reason);
    }
}

static void wrong_lengths(void **state)
{
    (void)state;
    static const char header[] = "{\"a\":{" U8_2 "}}";
    static const struct {
        uint64_t announced;
        const char *reason;
    } cases[] = {
        {0, "no JSON object"},
        {1, "no JSON object"},
        {sizeof header - 2, "header: byte"},
        {sizeof header + 2, "a header of"},
        {157286400, "a header of 157286400 bytes is announced"},
        {(uint64_t)1 << 63, "a header of 9223372036854775808 bytes"},
        {UINT64_MAX - 7, "a header of 18446744073709551608 bytes"},
        {UINT64_MAX, "a header of 18446744073709551615 bytes"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        st_write_raw("wrong", cases[i].announced, header, sizeof header - 1, NULL, 2);
        expect_refused("wrong", NB_DATA, cases[i].reason);
    }
    scratch_write("wrong", "", 0);
    expect_refused("wrong", NB_DATA, "0 bytes are too short");
    scratch_write("wrong", "\2\0\0\0\0\0\0\0", 8);
    expect_refused("wrong", NB_DATA, "a header of 2 bytes");
    /* A zero in the header, and one that is cut inside a multi-byte character. */
    st_write_raw("wrong", 4, "{\"\0\"", 4, NULL, 0);
    expect_refused("wrong", NB_DATA, "a control character in a string");
    st_write("wrong", "{\"\xe2\x82", NULL, 0);
    expect_refused("wrong", NB_DATA, "not UTF-8");
}

static void other_formats_are_named(void **state)
{
    (void)state;
    scratch_write("wrong", "GGUF\3\0\0\0\0\0\0\0\0\0\0\0", 16);
    expect_refused("wrong", NB_UNSUPPORTED, "seems to be a GGUF file");
    scratch_write("wrong", "PK\3\4\24\0\0\0\0\0", 10);
    expect_refused("wrong", NB_UNSUPPORTED, "seems to be a ZIP archive");
    scratch_text("wrong", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n");
    expect_refused("wrong", NB_UNSUPPORTED, "seems to be a Git LFS pointer");
}

static char *repeated(const char *start, const char *piece, size_t times, const char *end)
{
    const size_t n = strlen(start), m = strlen(piece), e = strlen(end);
    char *text = malloc(n + m * times + e + 1);
    assert_non_null(text);
    memcpy(text, start, n);
    for (size_t i = 0; i < times; i++)
        memcpy(text + n + i * m, piece, m);
    memcpy(text + n + m * times, end, e + 1);
    return text;
}

static void deep_and_wide_headers(void **state)
{
    (void)state;
    char *deep = repeated("{\"a\":", "{\"a\":", 200000, "1");
    st_write("wrong", deep, NULL, 0);
    free(deep);
    expect_refused("wrong", NB_UNSUPPORTED, "key 'a' is not known");
    deep = repeated("{\"a\":{\"shape\":", "[", 200000, "");
    st_write("wrong", deep, NULL, 0);
    free(deep);
    expect_refused("wrong", NB_DATA, "expected a whole number");
    char *wide =
        repeated("{\"a\":{\"dtype\":\"U8\",\"shape\":[1", ",1", 5001, "],\"data_offsets\":[0,1]}}");
    st_write("wrong", wide, NULL, 1);
    free(wide);
    expect_refused("wrong", NB_UNSUPPORTED, "more than 4 dimensions");
    char *name = repeated("{\"", "n", 300000, "\":{\"dtype\":\"U9\"}}");
    st_write("wrong", name, NULL, 0);
    free(name);
    expect_refused("wrong", NB_UNSUPPORTED, "dtype 'U9'"); /* the reason survives the long name */
}

/* ---- what must be accepted ---- */

static void harmless_files(void **state)
{
    (void)state;
    static const char *const headers[] = {
        "{\"a\":{" U8_2 "}}",
        "{\"a\":{" U8_2 "}} \n\t\r  ",
        "{ \"a\" : { \"data_offsets\" : [ 0 , 2 ] , \"shape\" : [ 2 ] , \"dtype\" : \"U8\" } }",
        "{\"\\u0061\":{\"\\u0064type\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}",
        "{\"a\":{\"dtype\":\"U8\",\"shape\":[1,2,1,1],\"data_offsets\":[0,2]}}",
        "{\"__metadata__\":{},\"a\":{" U8_2 "}}",
        "{\"a\":{" U8_2 "},\"__metadata__\":{\"format\":\"pt\",\"x\":\"\\\"\"}}",
        ("{\"e\":{\"dtype\":\"F64\",\"shape\":[3,0],\"data_offsets\":[2,2]},\"a\":{" U8_2 "},"
         "\"f\":{\"dtype\":\"F64\",\"shape\":[0],\"data_offsets\":[2,2]}}"),
        ("{\"b\":{\"dtype\":\"I8\",\"shape\":[],\"data_offsets\":[1,2]},"
         "\"a\":{\"dtype\":\"BOOL\",\"shape\":[1],\"data_offsets\":[0,1]}}"),
    };
    nb_err err;
    for (size_t i = 0; i < sizeof headers / sizeof *headers; i++) {
        st_write("good", headers[i], "\5\6", 2);
        nb_safetensors st;
        nb_arena arena = {0};
        if (open_it(&st, &arena, "good", &err) != NB_OK)
            fail_msg("header %zu: %s", i, err.text);
        assert_string_equal(st.tensors[0].name, "a");
        uint8_t byte[2] = {0};
        assert_int_equal(nb_st_read(&st, &st.tensors[0], byte, &err), NB_OK);
        assert_int_equal(byte[0], 5);
        nb_st_close(&st);
        nb_arena_free(&arena);
    }
    st_write("good", "{}", NULL, 0);
    assert_int_equal(try_open("good", &err), NB_OK);
}

static void every_dtype_has_its_size(void **state)
{
    (void)state;
    nb_err err;
#define X(id, text, bits)                                                                          \
    {                                                                                              \
        char header[200];                                                                          \
        snprintf(header, sizeof header,                                                            \
                 "{\"a\":{\"dtype\":\"%s\",\"shape\":[8],\"data_offsets\":[0,%d]}}", text, bits);  \
        st_write("good", header, NULL, bits);                                                      \
        assert_int_equal(try_open("good", &err), NB_OK);                                           \
        assert_string_equal(nb_st_dtype_name(id), text);                                           \
    }
    NB_ST_DTYPES(X)
#undef X
}

static void sixty_thousand_tensors(void **state)
{
    (void)state;
    enum { N = 60000 };
    static nb_st_tensor tensors[N];
    static char names[N][40];
    nb_buf file = {0};
    nb_err err;
    for (int i = 0; i < N; i++) {
        snprintf(names[i], sizeof names[i], "model.layers.%d.w%d.weight", i * 7919 % N, i % 7);
        tensors[i] =
            (nb_st_tensor){.name = names[i], .dtype = NB_ST_F16, .n_dims = 1, .dims = {i % 3}};
    }
    int64_t data = 0;
    assert_int_equal(nb_st_write_header(&file, tensors, N, &data, &err), NB_OK);
    assert_int_equal(data, N * 2);
    assert_int_equal(file.len % 8, 0);
    assert_int_equal(nb_buf_reserve(&file, (size_t)data, &err), NB_OK);
    memset(file.data + file.len, 7, (size_t)data);
    scratch_write("many", file.data, file.len + (size_t)data);
    nb_buf_free(&file);

    nb_safetensors st;
    nb_arena arena = {0};
    assert_int_equal(open_it(&st, &arena, "many", &err), NB_OK);
    assert_int_equal(st.n_tensors, N);
    nb_st_close(&st);
    nb_arena_free(&arena);
}

/* ---- writing ---- */

static void a_header_written_is_read_back(void **state)
{
    (void)state;
    nb_st_tensor tensors[] = {
        {.name = "plain", .dtype = NB_ST_BF16, .n_dims = 2, .dims = {3, 5}},
        {.name = "a \"quoted\\name\" \xc3\xa9", .dtype = NB_ST_I64, .n_dims = 1, .dims = {2}},
        {.name = "scalar", .dtype = NB_ST_F32},
        {.name = "none", .dtype = NB_ST_U8, .n_dims = 4, .dims = {4, 0, 2, 1}},
    };
    enum { N = 4 };
    nb_err err;
    for (int64_t n = 0; n <= N; n++) {
        nb_buf file = {0};
        int64_t data = -1;
        assert_int_equal(nb_buf_text(&file, "x", &err), NB_OK); /* what was there stays */
        assert_int_equal(nb_st_write_header(&file, tensors, n, &data, &err), NB_OK);
        assert_int_equal(data, n == 0 ? 0 : n == 1 ? 30 : n == 2 ? 46 : 50);
        uint64_t len;
        memcpy(&len, file.data + 1, 8);
        assert_int_equal(len + 9, file.len);
        assert_int_equal(len % 8, 0);
        assert_non_null(
            strstr((const char *)file.data + 9, "\"__metadata__\":{\"format\":\"pt\"}"));
        nb_safetensors st = NB_SAFETENSORS_CLOSED;
        nb_arena arena = {0};
        if (nb_st_parse(&st, &arena, (const char *)file.data + 9, (size_t)len, data, &err) != NB_OK)
            fail_msg("%s", err.text);
        assert_int_equal(st.n_tensors, n);
        for (int64_t i = 0; i < n; i++) {
            const nb_st_tensor *t = &tensors[i];
            int64_t k = 0;
            while (k < n && strcmp(st.tensors[k].name, t->name) != 0)
                k++;
            assert_true(k < n);
            assert_int_equal(st.tensors[k].dtype, t->dtype);
            assert_int_equal(st.tensors[k].n_dims, t->n_dims);
            assert_memory_equal(st.tensors[k].dims, t->dims, sizeof t->dims);
            assert_int_equal(st.tensors[k].begin, t->begin);
            assert_int_equal(st.tensors[k].bytes, t->bytes);
        }
        nb_st_close(&st);
        nb_arena_free(&arena);
        nb_buf_free(&file);
    }
}

static void what_does_not_fit_is_not_written(void **state)
{
    (void)state;
    nb_st_tensor huge[] = {
        {.name = "a", .dtype = NB_ST_U8, .n_dims = 1, .dims = {INT64_MAX / 8}},
        {.name = "b", .dtype = NB_ST_U8, .n_dims = 2, .dims = {INT64_MAX, 2}},
    };
    nb_buf file = {0};
    int64_t data = 5;
    nb_err err;
    assert_int_equal(nb_st_write_header(&file, huge, 2, &data, &err), NB_DATA);
    assert_int_equal(data, 5);
    nb_buf_free(&file);
}

/* ---- failures ---- */

static const char walked[] =
    "{\"__metadata__\":{\"format\":\"pt\",\"a\":\"b\"},\"a\":{" U8_2
    "},\"b\":{\"dtype\":\"F32\",\"shape\":[2,1],\"data_offsets\":[2,10]},"
    "\"c.weight\":{\"dtype\":\"BF16\",\"shape\":[3],\"data_offsets\":[10,16]}}";

static void every_allocation_may_fail(void **state)
{
    (void)state;
    st_write("walk", walked, NULL, 16);
    nb_err err;
    int64_t n = 1;
    for (;; n++) {
        nb_alloc_fail_at(n);
        const nb_status s = try_open("walk", &err);
        nb_alloc_fail_at(0);
        if (s == NB_OK)
            break;
        assert_int_equal(s, NB_MEMORY);
        assert_true(n < 1000);
    }
    assert_true(n > 3);
}

static void every_read_may_fail(void **state)
{
    (void)state;
    st_write("walk", walked, NULL, 16);
    nb_err err;
    int64_t n = 1;
    for (;; n++) {
        nb_file_fail_at(n, EIO);
        const nb_status s = try_open("walk", &err);
        nb_file_fail_at(0, 0);
        if (s == NB_OK)
            break;
        assert_int_equal(s, NB_IO);
        nb_file_fail_at(n, EINTR); /* is no failure */
        assert_int_equal(try_open("walk", &err), NB_OK);
        nb_file_fail_at(0, 0);
    }
    assert_int_equal(n, 3);
}

/* Every cut of a good file, and thousands of changed ones: refused, or fully consistent. */
static void cuts_and_mutations(void **state)
{
    (void)state;
    const size_t len = sizeof walked - 1;
    static const char bytes[] = "{}[]\",:0129-.ea\\u\x80\xff\0 ";
    char text[sizeof walked];
    nb_err err;
    int n_good = 0, n_bad = 0;
    for (uint64_t i = 0; i < 6000 + len; i++) {
        size_t n = len;
        memcpy(text, walked, sizeof walked);
        if (i < len) {
            n = i;
        } else {
            uint32_t r[4];
            nb_philox(1, 0, i, r);
            for (uint32_t k = 0; k <= r[0] % 3; k++)
                text[r[1 + k] % len] = bytes[r[1 + k] / len % (sizeof bytes - 1)];
        }
        nb_safetensors st = NB_SAFETENSORS_CLOSED;
        nb_arena arena = {0};
        /* A copy of exactly this size, so that reading past it is seen. */
        char *exact = malloc(n + 1);
        assert_non_null(exact);
        memcpy(exact, text, n);
        if (nb_st_parse(&st, &arena, exact, n, 16, &err) == NB_OK) {
            int64_t end = 0;
            for (int64_t t = 0; t < st.n_tensors; t++) {
                assert_int_equal(st.tensors[t].begin, end);
                end += st.tensors[t].bytes;
            }
            assert_int_equal(end, 16);
            n_good++;
        } else {
            assert_int_equal(st.n_tensors, 0);
            n_bad++;
        }
        free(exact);
        nb_st_close(&st);
        nb_arena_free(&arena);
    }
    assert_true(n_good > 20 && n_bad > 1000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_good),
        cmocka_unit_test(golden_rejects),
        cmocka_unit_test(wrong_headers),
        cmocka_unit_test(wrong_lengths),
        cmocka_unit_test(other_formats_are_named),
        cmocka_unit_test(deep_and_wide_headers),
        cmocka_unit_test(harmless_files),
        cmocka_unit_test(every_dtype_has_its_size),
        cmocka_unit_test(sixty_thousand_tensors),
        cmocka_unit_test(a_header_written_is_read_back),
        cmocka_unit_test(what_does_not_fit_is_not_written),
        cmocka_unit_test(every_allocation_may_fail),
        cmocka_unit_test(every_read_may_fail),
        cmocka_unit_test(cuts_and_mutations),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
