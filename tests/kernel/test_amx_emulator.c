/* The tile instructions against plain loops: the emulator where the processor has none, else the
 * processor, so that both are held to one reading of the manual. */
#include "support/amx_emulator.h"
#include "support/check.h"
#include "support/golden.h"

#include <stdio.h>
#include <string.h>

#if defined(__x86_64__)
#include "kernel/amx_tile.h"
#include "kernel/cpu.h"

static uint64_t counter;

static uint32_t random_u32(void)
{
    return (uint32_t)check_pick(11, counter++, (int64_t)1 << 32);
}

typedef struct {
    int rows, row_bytes;
} tile_shape;

static void configure(tile_shape c, tile_shape a, tile_shape b)
{
    tile_shapes s = {.palette = 1};
    const tile_shape all[8] = {c, {16, 64}, {16, 64}, {16, 64}, a, {16, 64}, b, {16, 64}};
    for (int i = 0; i < 8; i++) {
        s.rows[i] = (uint8_t)all[i].rows;
        s.row_bytes[i] = (uint16_t)all[i].row_bytes;
    }
    TILE_SHAPES(&s);
}

/* c += a * b with tiles of every shape, from memory whose end bites, with strides of both signs. */
static void instructions_do_what_the_manual_says(void **state)
{
    (void)state;
    if (amx_begin(nb_cpu_isa()) == AMX_ABSENT)
        skip();
    check_run run = {.name = "tdpbssd"};
    for (int round = 0; round < 300; round++) {
        const int m = 1 + (int)check_pick(1, (uint64_t)round, 16);
        const int n = 1 + (int)check_pick(2, (uint64_t)round, 16);
        const int k = 1 + (int)check_pick(3, (uint64_t)round, 16);
        const int64_t extra = check_pick(4, (uint64_t)round, 3) * 5;
        const int64_t lda = 4 * k + extra, ldb = 4 * n + extra, ldc = 4 * n + extra;
        int8_t *a = check_alloc((size_t)(lda * (m - 1) + 4 * k));
        int8_t *b = check_alloc((size_t)(ldb * (k - 1) + 4 * n));
        const size_t c_bytes = (size_t)(ldc * (m - 1) + 4 * n);
        uint8_t *c = check_alloc(c_bytes), *want = check_alloc(c_bytes);
        for (int64_t i = 0; i < lda * (m - 1) + 4 * k; i++)
            a[i] = (int8_t)random_u32();
        for (int64_t i = 0; i < ldb * (k - 1) + 4 * n; i++)
            b[i] = (int8_t)random_u32();
        for (size_t i = 0; i < c_bytes; i++)
            c[i] = want[i] = (uint8_t)random_u32();
        const bool from_zero = round % 3 == 0;
        for (int r = 0; r < m; r++) {
            for (int i = 0; i < n; i++) {
                uint32_t sum = 0;
                if (!from_zero)
                    memcpy(&sum, want + r * ldc + 4 * i, 4);
                for (int j = 0; j < 4 * k; j++)
                    sum += (uint32_t)(a[r * lda + j] * b[j / 4 * ldb + 4 * i + j % 4]);
                memcpy(want + r * ldc + 4 * i, &sum, 4);
            }
        }
        configure((tile_shape){m, 4 * n}, (tile_shape){m, 4 * k}, (tile_shape){k, 4 * n});
        if (from_zero)
            TILE_ZERO(0);
        else
            TILE_LOAD(0, c, ldc);
        TILE_LOAD(4, a, lda);
        TILE_LOAD(6, b, ldb);
        TILE_DOT(0, 4, 6);
        TILE_STORE(0, c, ldc);
        check_same_bytes(&run, "random shapes", c, want, c_bytes);
        check_guard(&run, "random shapes", c);
        /* The last row first. */
        TILE_LOAD(4, a + lda * (m - 1), -lda);
        TILE_ZERO(0);
        TILE_DOT(0, 4, 6);
        TILE_STORE(0, c + ldc * (m - 1), -ldc);
        if (from_zero)
            check_same_bytes(&run, "negative strides", c, want, c_bytes);
        check_free(a);
        check_free(b);
        check_free(c);
        check_free(want);
    }
    TILE_RELEASE();
    amx_end();
    check_finish(&run);
}

/* Signs: every pair of byte values that matters, and all four multiplies. */
static void signs_are_those_of_the_instruction(void **state)
{
    (void)state;
    if (amx_begin(nb_cpu_isa()) == AMX_ABSENT)
        skip();
    static const uint8_t values[] = {0, 1, 127, 128, 129, 255};
    configure((tile_shape){1, 4}, (tile_shape){1, 4}, (tile_shape){1, 4});
    for (int i = 0; i < 6; i++) {
        for (int j = 0; j < 6; j++) {
            const uint8_t a[4] = {values[i], 0, 0, values[i]}, b[4] = {values[j], 7, 7, values[j]};
            const int ua = values[i], sa = (int8_t)values[i], ub = values[j],
                      sb = (int8_t)values[j];
            int32_t c[4];
            TILE_LOAD(4, a, 4);
            TILE_LOAD(6, b, 4);
#define PRODUCT(name, at)                                                                          \
    TILE_ZERO(0);                                                                                  \
    __asm__ volatile(name " %%tmm6, %%tmm4, %%tmm0" ::);                                           \
    TILE_STORE(0, at, 4)
            PRODUCT("tdpbssd", &c[0]);
            PRODUCT("tdpbsud", &c[1]);
            PRODUCT("tdpbusd", &c[2]);
            PRODUCT("tdpbuud", &c[3]);
            assert_int_equal(c[0], 2 * sa * sb);
            assert_int_equal(c[1], 2 * sa * ub);
            assert_int_equal(c[2], 2 * ua * sb);
            assert_int_equal(c[3], 2 * ua * ub);
        }
    }
    TILE_RELEASE();
    amx_end();
}

/* Addresses as compilers write them: registers whose numbers have special meanings in the encoding,
 * displacements of both sizes, scaled indices. */
static void addresses_are_decoded(void **state)
{
    (void)state;
    if (amx_begin(nb_cpu_isa()) == AMX_ABSENT)
        skip();
    static uint8_t memory[4096];
    for (size_t i = 0; i < sizeof memory; i++)
        memory[i] = (uint8_t)random_u32();
    uint8_t got[128];
    configure((tile_shape){2, 64}, (tile_shape){2, 64}, (tile_shape){16, 64});
#define LOADED_FROM(address, base, index, clobber_1, clobber_2, first, stride)                     \
    __asm__ volatile("mov %0, %%" base "; mov %1, %%" index "; tileloadd " address                 \
                     ", %%tmm4" ::"r"((uint8_t *)memory),                                          \
                     "r"((int64_t)100)                                                             \
                     : clobber_1, clobber_2, "memory");                                            \
    TILE_STORE(4, got, 64);                                                                        \
    assert_memory_equal(got, memory + (first), 64);                                                \
    assert_memory_equal(got + 64, memory + (first) + (stride), 64);                                \
    TILE_ZERO(4)
    LOADED_FROM("(%%r13,%%r14,1)", "r13", "r14", "r13", "r14", 0, 100);
    LOADED_FROM("5(%%r13,%%r12,2)", "r13", "r12", "r13", "r12", 5, 200);
    LOADED_FROM("1000(%%r12,%%r9,4)", "r12", "r9", "r12", "r9", 1000, 400);
    LOADED_FROM("(%%r12,%%r8,8)", "r12", "r8", "r12", "r8", 0, 800);
    LOADED_FROM("127(%%r15,%%r11,1)", "r15", "r11", "r15", "r11", 127, 100);
    LOADED_FROM("128(%%r10,%%r15,1)", "r10", "r15", "r10", "r15", 128, 100);
    TILE_RELEASE();
    /* Relative to RIP, too. */
    static const tile_shapes shapes = {.palette = 1, .rows = {[3] = 1}, .row_bytes = {[3] = 8}};
    TILE_SHAPES(&shapes);
    memset(got, 1, sizeof got);
    TILE_ZERO(3);
    TILE_STORE(3, got, 64);
    for (int i = 0; i < 10; i++)
        assert_int_equal(got[i], i >= 8);
    TILE_RELEASE();
    amx_end();
}

/* Each thing that the processor would refuse, and what the emulator says of it. */
static void what_the_processor_refuses_is_a_fault(void **state)
{
    (void)state;
    static const struct {
        const char *says;
        tile_shapes shapes;
        tile_shape c, a, b; /* where shapes.palette is 0: of registers 0, 4 and 6 */
        bool twice;
    } cases[] = {
        {"palette", .shapes = {.palette = 2}},
        {"reserved", .shapes = {.palette = 1, .start_row = 1}},
        {"reserved", .shapes = {.palette = 1, .reserved = {[13] = 1}}},
        {"reserved", .shapes = {.palette = 1, .rows = {[8] = 1}}},
        {"reserved", .shapes = {.palette = 1, .row_bytes = {[8] = 1}}},
        {"shape", .shapes = {.palette = 1, .rows = {17}, .row_bytes = {64}}},
        {"shape", .shapes = {.palette = 1, .rows = {16}, .row_bytes = {65}}},
        {"shape", .shapes = {.palette = 1, .rows = {[7] = 16}}},
        {"shape", .shapes = {.palette = 1, .row_bytes = {[7] = 4}}},
        {"do not fit", .c = {16, 64}, .a = {15, 64}, .b = {16, 64}},
        {"do not fit", .c = {16, 64}, .a = {16, 60}, .b = {16, 64}},
        {"do not fit", .c = {16, 64}, .a = {16, 64}, .b = {15, 64}},
        {"do not fit", .c = {16, 64}, .a = {16, 64}, .b = {16, 60}},
        {"do not fit", .c = {16, 60}, .a = {16, 64}, .b = {16, 64}},
        {"do not fit", .c = {16, 63}, .a = {16, 64}, .b = {16, 63}},
        {"do not fit", .c = {16, 64}, .a = {16, 63}, .b = {15, 64}},
        {"without a shape", .c = {16, 64}, .a = {0, 0}, .b = {16, 64}},
        {"without a shape", .c = {0, 0}, .a = {16, 64}, .b = {16, 64}},
        {"twice", .c = {16, 64}, .a = {16, 64}, .b = {16, 64}, .twice = true},
    };
    static const uint8_t memory[16 * 64];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (amx_begin(nb_cpu_isa()) != AMX_EMULATED) {
            printf("SKIP: here the processor itself would refuse\n");
            skip();
        }
        if (cases[i].shapes.palette != 0) {
            TILE_SHAPES(&cases[i].shapes);
        } else {
            configure(cases[i].c, cases[i].a, cases[i].b);
            assert_null(amx_fault());
            if (cases[i].twice) /* tdpbssd tmm0, tmm4, tmm4, which assemblers refuse as well */
                __asm__ volatile(".byte 0xc4, 0xe2, 0x5b, 0x5e, 0xc4");
            else
                TILE_DOT(0, 4, 6);
        }
        if (amx_fault() == NULL || strstr(amx_fault(), cases[i].says) == NULL)
            fail_msg("case %zu should say '%s': %s", i, cases[i].says,
                     amx_fault() != NULL ? amx_fault() : "nothing");
        amx_expect_fault();
        amx_end();
    }
    /* Nothing works before a configuration, nor after its release. */
    for (int i = 0; i < 5; i++) {
        amx_begin(nb_cpu_isa());
        configure((tile_shape){16, 64}, (tile_shape){16, 64}, (tile_shape){16, 64});
        TILE_RELEASE();
        assert_null(amx_fault());
        uint8_t out[16 * 64];
        if (i == 0)
            TILE_LOAD(1, memory, 64);
        else if (i == 1)
            TILE_STORE(1, out, 64);
        else if (i == 2)
            TILE_ZERO(1);
        else if (i == 3)
            TILE_DOT(0, 4, 6);
        else {
            TILE_SHAPES(&(tile_shapes){0}); /* palette 0: the initial state */
            TILE_ZERO(1);
        }
        assert_non_null(amx_fault());
        assert_non_null(strstr(amx_fault(), "no configuration"));
        amx_expect_fault();
        amx_end();
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(instructions_do_what_the_manual_says),
        cmocka_unit_test(signs_are_those_of_the_instruction),
        cmocka_unit_test(addresses_are_decoded),
        cmocka_unit_test(what_the_processor_refuses_is_a_fault),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
#else
int main(void)
{
    printf("SKIP: not x86-64\n");
    return 77;
}
#endif
