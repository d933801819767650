/* The parser of server-sent events: where the stream is cut does not matter, what it holds is
 * bounded, and it agrees with a second one that reads the whole at once. */
#include "support/golden.h"

#include "base/rng.h"
#include "load/sse.h"

#include <string.h>

/* Events as one text: each is preceded by '<' and followed by '>'. */
static nb_status gather(void *context, const char *data, size_t len, nb_err *err)
{
    nb_buf *out = context;
    assert_non_null(data);
    NB_TRY(nb_buf_put(out, "<", 1, err));
    NB_TRY(nb_buf_put(out, data, len, err));
    return nb_buf_put(out, ">", 1, err);
}

/* Feeds the text in pieces: all at once (cut 0), of `cut` bytes each, or by `seed`. */
static nb_status parse(nb_buf *out, bool *is_open, const char *text, size_t len, size_t cut,
                       uint64_t seed, nb_err *err)
{
    nb_sse sse = {.event = gather, .context = out};
    nb_status s = NB_OK;
    for (size_t at = 0; at < len && s == NB_OK;) {
        size_t n = cut == 0 ? len : cut;
        if (seed != 0)
            n = (size_t)(20 * nb_rng_uniform(seed, 1, at)); /* 0 too */
        n = n < len - at ? n : len - at;
        s = nb_sse_feed(&sse, text + at, n, err);
        at += n;
        if (n == 0 && s == NB_OK) {
            s = nb_sse_feed(&sse, text + at, 1, err);
            at++;
        }
    }
    *is_open = nb_sse_is_open(&sse);
    nb_sse_free(&sse);
    return s;
}

/* By the specification's own steps: the text is split into lines, then each line is looked at. */
static void slow_parse(nb_buf *out, const char *text, size_t len)
{
    nb_err err = {0};
    nb_buf data = {0};
    bool has_data = false;
    size_t at = len >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0 ? 3 : 0;
    while (at < len) {
        size_t end = at;
        while (end < len && text[end] != '\r' && text[end] != '\n')
            end++;
        if (end == len)
            break; /* no end of line: not a line */
        const size_t n = end - at;
        size_t name = 0;
        while (name < n && text[at + name] != ':')
            name++;
        if (n == 0) {
            if (has_data && data.len > 0) {
                data.len--; /* the last LF */
                assert_int_equal(gather(out, (const char *)data.data, data.len, &err), NB_OK);
            }
            has_data = false;
            data.len = 0;
        } else if (name == 4 && memcmp(text + at, "data", 4) == 0) {
            size_t value = name < n ? name + 1 : n;
            value += value < n && text[at + value] == ' ';
            has_data = true;
            assert_int_equal(nb_buf_put(&data, text + at + value, n - value, &err), NB_OK);
            assert_int_equal(nb_buf_put(&data, "\n", 1, &err), NB_OK);
        }
        at = end + 1;
        if (text[end] == '\r' && at < len && text[at] == '\n')
            at++;
    }
    nb_buf_free(&data);
}

static void check_parse(const char *text, size_t len, const char *want, bool want_open, size_t cut,
                        uint64_t seed)
{
    nb_err err = {0};
    nb_buf out = {0};
    bool is_open;
    assert_int_equal(parse(&out, &is_open, text, len, cut, seed, &err), NB_OK);
    assert_int_equal(out.len, strlen(want));
    if (out.len > 0)
        assert_memory_equal(out.data, want, out.len);
    assert_int_equal(is_open, want_open);
    nb_buf_free(&out);
}

/* What the specification says of each kind of line, cut at every width. */
static void events_are_those_of_the_specification(void **state)
{
    (void)state;
    static const struct {
        const char *text, *want;
        bool open;
    } rows[] = {
        {"", "", false},
        {"data: a\n\n", "<a>", false},
        {"data:a\n\ndata:  b\n\n", "<a>< b>", false},
        {"data: a\r\n\r\ndata: b\r\rdata: c\n\n", "<a><b><c>", false},
        {"data: a\r\n\ndata: b\n\r\n", "<a><b>", false},
        {"data: a\ndata: b\ndata:\ndata: c\n\n", "<a\nb\n\nc>", false},
        {"data\n\n", "<>", false},
        {"data:\n\n", "<>", false},
        {"data: \n\n", "<>", false},
        {": ping\n\n: pong\n\ndata: a\n: x\n\n", "<a>", false},
        {"event: e\nid: 7\nretry: 10\ndata: a\n\n", "<a>", false},
        {"event: e\n\n", "", false},
        {"datum: a\ndat: b\ndata2: c\n data: d\nDATA: e\n\n", "", false},
        {"\xef\xbb\xbf"
         "data: a\n\n",
         "<a>", false},
        {"data: a\n\n\xef\xbb\xbf"
         "data: b\n\n",
         "<a>", false},
        {"\n\n\ndata: a\n\n\n\n", "<a>", false},
        {"data: a\n", "", true},
        {"data: a", "", true},
        {"data: a\n\ndata: [DONE]", "<a>", true},
        {"data: a\n\n\r", "<a>", false},
        {"data: {\"x\": \"data: y\"}\n\n", "<{\"x\": \"data: y\"}>", false},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const size_t len = strlen(rows[i].text);
        for (size_t cut = 0; cut <= len; cut++)
            check_parse(rows[i].text, len, rows[i].want, rows[i].open, cut, 0);
    }
}

/* A zero byte is a byte like others. */
static void zero_bytes_are_kept(void **state)
{
    (void)state;
    static const char text[] = "data: a\0b\n\n";
    nb_err err = {0};
    nb_buf out = {0};
    bool is_open;
    assert_int_equal(parse(&out, &is_open, text, sizeof text - 1, 1, 0, &err), NB_OK);
    assert_int_equal(out.len, 5);
    assert_memory_equal(out.data, "<a\0b>", 5);
    nb_buf_free(&out);
}

/* Random streams of the characters that matter, cut at random, against the slow parser. */
static void random_streams_agree_with_the_definition(void **state)
{
    (void)state;
    static const char *const parts[] = {"data", ":",      " ",    "\n", "\r",           "\r\n",
                                        "x",    "data: ", "\n\n", "id", "\xef\xbb\xbf", ": c"};
    enum { N_PARTS = sizeof parts / sizeof *parts };
    int64_t n_events = 0;
    for (uint64_t round = 1; round <= 20000; round++) {
        char text[200];
        size_t len = 0;
        const int n = 1 + (int)(24 * nb_rng_uniform(round, 2, 0));
        for (int i = 0; i < n; i++) {
            const char *part = parts[(int)(N_PARTS * nb_rng_uniform(round, 3, (uint64_t)i))];
            memcpy(text + len, part, strlen(part));
            len += strlen(part);
        }
        nb_err err = {0};
        nb_buf want = {0}, got = {0};
        bool is_open;
        slow_parse(&want, text, len);
        assert_int_equal(parse(&got, &is_open, text, len, 0, round, &err), NB_OK);
        assert_int_equal(got.len, want.len);
        if (want.len > 0)
            assert_memory_equal(got.data, want.data, want.len);
        n_events += want.len > 0;
        nb_buf_free(&want);
        nb_buf_free(&got);
    }
    assert_true(n_events > 2000);
}

/* A line or an event of a million bytes and no end is refused; one of exactly the bound passes. */
static void what_is_held_is_bounded(void **state)
{
    (void)state;
    static char piece[4096];
    memset(piece, 'x', sizeof piece);
    for (int kind = 0; kind < 3; kind++) { /* a line; a comment; lines of one event */
        nb_err err = {0};
        nb_buf out = {0};
        nb_sse sse = {.event = gather, .context = &out};
        nb_status s = nb_sse_feed(&sse, kind == 1 ? ":" : "data: ", kind == 1 ? 1 : 6, &err);
        size_t fed = 0;
        while (s == NB_OK && fed < 4 * NB_SSE_EVENT_MAX) {
            s = nb_sse_feed(&sse, piece, sizeof piece, &err);
            if (s == NB_OK && kind == 2)
                s = nb_sse_feed(&sse, "\ndata:", 6, &err);
            fed += sizeof piece;
        }
        assert_int_equal(s, NB_LIMIT);
        assert_in_range(fed, NB_SSE_EVENT_MAX - sizeof piece, NB_SSE_EVENT_MAX + sizeof piece);
        assert_true(sse.line.cap <= NB_SSE_EVENT_MAX && sse.data.cap <= NB_SSE_EVENT_MAX);
        nb_sse_free(&sse);
        nb_buf_free(&out);
    }
    nb_err err = {0};
    nb_buf out = {0}, whole = {0};
    bool is_open;
    assert_int_equal(nb_buf_text(&whole, "data:", &err), NB_OK);
    while (whole.len < NB_SSE_EVENT_MAX)
        assert_int_equal(nb_buf_put(&whole, "y", 1, &err), NB_OK);
    assert_int_equal(nb_buf_text(&whole, "\n\n", &err), NB_OK);
    for (size_t cut = 0; cut <= 65536; cut += 65536) {
        assert_int_equal(parse(&out, &is_open, (const char *)whole.data, whole.len, cut, 0, &err),
                         NB_OK);
        assert_int_equal(out.len, NB_SSE_EVENT_MAX - 5 + 2);
        out.len = 0;
    }
    /* In one piece the bound is the same: a byte more is too long. */
    whole.len -= 2;
    assert_int_equal(nb_buf_text(&whole, "y\n\n", &err), NB_OK);
    assert_int_equal(parse(&out, &is_open, (const char *)whole.data, whole.len, 0, 0, &err),
                     NB_LIMIT);
    nb_buf_free(&whole);
    nb_buf_free(&out);
}

static nb_status refuse(void *context, const char *data, size_t len, nb_err *err)
{
    (void)data, (void)len;
    ++*(int *)context;
    return nb_fail(err, NB_DATA, "no");
}

/* What the event function says ends the parse at once, and comes out unchanged. */
static void refusal_of_an_event_ends_the_parse(void **state)
{
    (void)state;
    nb_err err = {0};
    int calls = 0;
    nb_sse sse = {.event = refuse, .context = &calls};
    const char text[] = "data: a\n\ndata: b\n\n";
    assert_int_equal(nb_sse_feed(&sse, text, sizeof text - 1, &err), NB_DATA);
    assert_string_equal(err.text, "no");
    assert_int_equal(calls, 1);
    nb_sse_free(&sse);
}

/* Every allocation may fail; nothing leaks. */
static void memory_may_run_out(void **state)
{
    (void)state;
    const char text[] = "data: first\ndata: second\n\ndata: third\n\n";
    int failed = 0;
    for (int64_t n = 1;; n++) {
        const int64_t before = nb_alloc_live();
        nb_err err = {0};
        nb_buf out = {0};
        bool is_open;
        nb_alloc_fail_at(n);
        const nb_status s = parse(&out, &is_open, text, sizeof text - 1, 3, 0, &err);
        nb_alloc_fail_at(0);
        nb_buf_free(&out);
        assert_int_equal(nb_alloc_live(), before);
        if (s == NB_OK)
            break;
        assert_int_equal(s, NB_MEMORY);
        failed++;
    }
    assert_true(failed >= 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(events_are_those_of_the_specification),
        cmocka_unit_test(zero_bytes_are_kept),
        cmocka_unit_test(random_streams_agree_with_the_definition),
        cmocka_unit_test(what_is_held_is_bounded),
        cmocka_unit_test(refusal_of_an_event_ends_the_parse),
        cmocka_unit_test(memory_may_run_out),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
