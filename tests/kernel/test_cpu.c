/* Names and masks of instruction sets, and that the CPU is asked rightly. */
#include "support/golden.h"
#include "kernel/cpu.h"

#include <stdio.h>
#include <string.h>

static void names_give_masks_and_back(void **state)
{
    (void)state;
    nb_err err = {0};
    static const char *const names[] = {"scalar", "avx2", "avx512", "amx", "neon"};
    for (int i = 0; i < 5; i++) {
        unsigned mask = 99;
        assert_int_equal(nb_isa_parse(names[i], &mask, &err), NB_OK);
        assert_string_equal(nb_isa_name(mask), names[i]);
    }
    unsigned mask;
    assert_int_equal(nb_isa_parse("avx512", &mask, &err), NB_OK);
    assert_true(mask & NB_ISA_AVX2); /* it allows everything below */
    assert_int_equal(nb_isa_parse("amx", &mask, &err), NB_OK);
    assert_int_equal(mask, NB_ISA_AVX2 | NB_ISA_AVX512 | NB_ISA_AMX);
    assert_int_equal(nb_isa_parse("auto", &mask, &err), NB_OK);
    assert_int_equal(mask, NB_ISA_ALL);
}

/* What the machine lacks is refused by name, and never silently replaced. */
static void only_what_the_machine_has_can_be_chosen(void **state)
{
    (void)state;
    static const char *const names[] = {"scalar", "avx2", "avx512", "amx", "neon", "auto", "sse"};
    int n_refused = 0;
    for (int i = 0; i < 7; i++) {
        nb_err err = {0};
        unsigned wanted = 99, mask = 99;
        const bool known = nb_isa_parse(names[i], &wanted, &err) == NB_OK;
        const bool here = known && (wanted == NB_ISA_ALL || (wanted & ~nb_cpu_isa()) == 0);
        assert_int_equal(nb_isa_choose(names[i], &mask, &err), here ? NB_OK : NB_USAGE);
        assert_int_equal(mask, here ? wanted : 99);
        if (known && !here) {
            char text[64];
            snprintf(text, sizeof text, "this machine has no %s: its best is %s", names[i],
                     nb_isa_name(nb_cpu_isa()));
            assert_string_equal(err.text, text);
            n_refused++;
        }
    }
    assert_true(n_refused > 0); /* no machine has both avx2 and neon */
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
        assert_non_null(strstr(err.text, "scalar, avx2, avx512, amx, neon, auto"));
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
    assert_true((isa & NB_ISA_AMX) == 0 || (isa & NB_ISA_AVX512) != 0);
}

/* The kernel lists what it found and enabled. */
static void amx_is_what_the_kernel_lists(void **state)
{
    (void)state;
    FILE *f = fopen("/proc/cpuinfo", "r");
    if (f == NULL)
        skip();
    static char line[1 << 16];
    bool tile = false, int8 = false;
    while (fgets(line, sizeof line, f) != NULL) {
        tile = tile || (strncmp(line, "flags", 5) == 0 && strstr(line, " amx_tile") != NULL);
        int8 = int8 || (strncmp(line, "flags", 5) == 0 && strstr(line, " amx_int8") != NULL);
    }
    fclose(f);
    assert_int_equal((nb_cpu_isa() & NB_ISA_AMX) != 0, tile && int8);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_give_masks_and_back),
        cmocka_unit_test(only_what_the_machine_has_can_be_chosen),
        cmocka_unit_test(unknown_names_are_refused),
        cmocka_unit_test(the_machine_agrees_with_the_compiler),
        cmocka_unit_test(amx_is_what_the_kernel_lists),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
