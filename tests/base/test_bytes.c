/* The reader never leaves its span, and the buffer never passes its maximum. */
#include "support/golden.h"

#include "base/bytes.h"

#include <stdlib.h>
#include <string.h>

/* For every length of span and every position, each read either fits or is refused whole. */
static void reads_stay_inside_the_span(void **state)
{
    (void)state;
    for (size_t size = 0; size <= 12; size++) {
        /* A block of exactly this size: the address sanitizer sees one byte too many. */
        uint8_t *bytes = malloc(size + (size == 0));
        assert_non_null(bytes);
        for (size_t i = 0; i < size; i++)
            bytes[i] = (uint8_t)(i * 17 + 1);
        for (size_t pos = 0; pos <= size; pos++) {
            for (size_t width = 1; width <= 8; width *= 2) {
                nb_reader r = {.data = bytes, .size = size, .pos = pos};
                nb_err err = {0};
                uint8_t v8 = 0;
                uint16_t v16 = 0;
                uint32_t v32 = 0;
                uint64_t v = 0;
                nb_status s;
                if (width == 1)
                    s = nb_read_u8(&r, &v8, &err), v = v8;
                else if (width == 2)
                    s = nb_read_u16(&r, &v16, &err), v = v16;
                else if (width == 4)
                    s = nb_read_u32(&r, &v32, &err), v = v32;
                else
                    s = nb_read_u64(&r, &v, &err);
                if (width > size - pos) {
                    assert_int_equal(s, NB_DATA);
                    assert_int_equal(r.pos, pos);
                    assert_int_equal(v, 0);
                    continue;
                }
                assert_int_equal(s, NB_OK);
                assert_int_equal(r.pos, pos + width);
                assert_int_equal(nb_reader_left(&r), size - pos - width);
                uint64_t want = 0;
                for (size_t k = 0; k < width; k++)
                    want |= (uint64_t)bytes[pos + k] << 8 * k;
                assert_true(v == want);
            }
        }
        free(bytes);
    }
}

/* Lengths from a file: one too many, near 2^63 and 2^64, where a sum with the position wraps. */
static void announced_lengths_are_checked(void **state)
{
    (void)state;
    const uint8_t bytes[16] = {0};
    const uint64_t lengths[] = {13,        UINT32_MAX,     (uint64_t)1 << 32, (uint64_t)1 << 63,
                                INT64_MAX, UINT64_MAX - 3, UINT64_MAX};
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        nb_reader r = {.data = bytes, .size = sizeof bytes, .pos = 4};
        nb_err err = {0};
        const uint8_t *span = NULL;
        assert_int_equal(nb_read_span(&r, &span, lengths[i], &err), NB_DATA);
        assert_null(span);
        assert_int_equal(r.pos, 4);
    }
    nb_reader r = {.data = bytes, .size = sizeof bytes, .pos = 4};
    nb_err err = {0};
    const uint8_t *span;
    assert_int_equal(nb_read_span(&r, &span, UINT64_MAX, &err), NB_DATA);
    assert_string_equal(err.text,
                        "18446744073709551615 bytes are announced at byte 4, and 12 are left");
    assert_int_equal(nb_read_span(&r, &span, 12, &err), NB_OK);
    assert_ptr_equal(span, bytes + 4);
    assert_int_equal(nb_read_span(&r, &span, 0, &err), NB_OK);
    assert_int_equal(nb_read_span(&r, &span, 1, &err), NB_DATA);
}

static void a_buffer_grows_and_keeps_its_bytes(void **state)
{
    (void)state;
    nb_buf b = {0};
    nb_err err = {0};
    for (uint32_t i = 0; i < 20000; i++)
        assert_int_equal(nb_buf_u32(&b, i, &err), NB_OK);
    assert_int_equal(b.len, 80000);
    for (uint32_t i = 0; i < 20000; i++)
        assert_memory_equal(b.data + 4 * i, &i, 4);
    /* Geometric growth: appending is linear in all, and no more than half is spare. */
    assert_true(b.cap <= b.len + b.len / 2 + 4);
    nb_buf_free(&b);

    assert_int_equal(nb_buf_u8(&b, 0xfe, &err), NB_OK);
    assert_int_equal(nb_buf_u64(&b, 0x0807060504030201, &err), NB_OK);
    assert_int_equal(nb_buf_put(&b, NULL, 0, &err), NB_OK);
    assert_int_equal(nb_buf_text(&b, "xy", &err), NB_OK);
    assert_int_equal(nb_buf_format(&b, &err, "%s-%d", "z", 42), NB_OK);
    assert_int_equal(b.len, 15);
    assert_memory_equal(b.data, "\xfe\1\2\3\4\5\6\7\10xyz-42", 15);
    nb_buf_free(&b);
    assert_int_equal(nb_alloc_live(), 0);
}

/* A stated maximum is exact, the buffer is as before after a refusal, and takes what still fits. */
static void the_maximum_is_exact(void **state)
{
    (void)state;
    nb_buf b = {.limit = 10};
    nb_err err = {0};
    assert_int_equal(nb_buf_put(&b, "12345678901", 11, &err), NB_LIMIT);
    assert_int_equal(b.len, 0);
    assert_int_equal(nb_buf_put(&b, "12345678", 8, &err), NB_OK);
    assert_true(b.cap <= 10);
    assert_int_equal(nb_buf_u32(&b, 1, &err), NB_LIMIT);
    assert_int_equal(nb_buf_reserve(&b, SIZE_MAX, &err), NB_MEMORY);
    assert_int_equal(nb_buf_format(&b, &err, "ab"), NB_LIMIT);
    assert_int_equal(b.len, 8);
    assert_int_equal(nb_buf_format(&b, &err, "a"), NB_OK);
    assert_int_equal(nb_buf_put(&b, "x", 1, &err), NB_OK);
    assert_int_equal(b.len, 10);
    assert_memory_equal(b.data, "12345678ax", 10);
    nb_buf_free(&b);
    assert_int_equal(b.limit, 10);
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    int failures = 0;
    for (int64_t n = 1; n < 8; n++) {
        nb_buf b = {0};
        nb_err err = {0};
        nb_alloc_fail_at(n);
        size_t kept = 0;
        for (int i = 0; i < 5; i++) {
            char piece[300];
            memset(piece, 'a' + i, sizeof piece);
            if (nb_buf_put(&b, piece, sizeof piece, &err) == NB_OK)
                kept++;
            else
                failures++;
        }
        nb_alloc_fail_at(0);
        assert_int_equal(b.len, kept * 300);
        nb_buf_free(&b);
        assert_int_equal(nb_alloc_live(), 0);
    }
    assert_true(failures >= 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_stay_inside_the_span),
        cmocka_unit_test(announced_lengths_are_checked),
        cmocka_unit_test(a_buffer_grows_and_keeps_its_bytes),
        cmocka_unit_test(the_maximum_is_exact),
        cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
