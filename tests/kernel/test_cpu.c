/* Names and masks of instruction sets, and that the CPU is asked rightly. */
#include "support/golden.h"
#include "kernel/cpu.h"

#include <string.h>

static void names_give_masks_and_back(void **state)
{
    (void)state;
    nb_err err = {0};
    static const char *const names[] = {"scalar", "avx2", "avx512", "neon"};
    for (int i = 0; i < 4; i++) {
        unsigned mask = 99;
        assert_int_equal(nb_isa_parse(names[i], &mask, &err), NB_OK);
        assert_string_equal(nb_isa_name(mask), names[i]);
    }
    unsigned mask;
    assert_int_equal(nb_isa_parse("avx512", &mask, &err), NB_OK);
    assert_true(mask & NB_ISA_AVX2); /* it allows everything below */
    assert_int_equal(nb_isa_parse("auto", &mask, &err), NB_OK);
    assert_int_equal(mask, NB_ISA_ALL);
}

static void unknown_names_are_refused(void **state)
{
    (void)state;
    static const char *const names[] = {"", "AVX2", "avx", "avx5122", "sve"};
    for (int i = 0; i < 5; i++) {
        nb_err err = {0};
        unsigned mask = 99;
        assert_int_equal(nb_isa_parse(names[i], &mask, &err), NB_USAGE);
        assert_int_equal(mask, 99);
        assert_non_null(strstr(err.text, "scalar, avx2, avx512, neon, auto"));
    }
}

/* The compiler's run-time library asks CPUID and XGETBV by its own code. */
static void the_machine_agrees_with_the_compiler(void **state)
{
    (void)state;
    const unsigned isa = nb_cpu_isa();
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
    assert_int_equal((isa & NB_ISA_AVX2) != 0, avx2);
    assert_int_equal((isa & NB_ISA_AVX512) != 0, avx512);
#elif defined(__aarch64__)
    /* The kernel lets programs read the registers themselves: field DP of ID_AA64ISAR0_EL1. */
    uint64_t id;
    __asm__("mrs %0, ID_AA64ISAR0_EL1" : "=r"(id));
    assert_int_equal(isa, (id >> 44 & 15) != 0 ? NB_ISA_NEON : NB_ISA_SCALAR);
#else
    assert_int_equal(isa, NB_ISA_SCALAR);
#endif
    assert_true((isa & NB_ISA_AVX512) == 0 || (isa & NB_ISA_AVX2) != 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_give_masks_and_back),
        cmocka_unit_test(unknown_names_are_refused),
        cmocka_unit_test(the_machine_agrees_with_the_compiler),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
