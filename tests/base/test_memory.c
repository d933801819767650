/* How much memory is left: what the system and a control group say, and what is made of files that
 * are missing or strange. */
#define _DEFAULT_SOURCE
#include "support/golden.h"
#include "base/memory.h"

#include <stdlib.h>
#include <unistd.h>

static char folder[] = "/tmp/nibble-memory-XXXXXX";

static const char *const names[] = {"meminfo", "memory.max", "memory.current", "memory.stat"};

/* Writes the four files; NULL: no such file. */
static void put(const char *const texts[4])
{
    for (int i = 0; i < 4; i++) {
        char path[128];
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        unlink(path);
        FILE *f = texts[i] != NULL ? fopen(path, "w") : NULL;
        if (f == NULL)
            continue;
        fputs(texts[i], f);
        fclose(f);
    }
}

static void the_smaller_of_system_and_group(void **state)
{
    (void)state;
    static const char meminfo[] =
        "MemTotal:    9000 kB\nMemFree:  10 kB\nMemAvailable:   4000 kB\n";
    static const struct {
        const char *texts[4];
        int64_t want;
    } rows[] = {
        {{meminfo, NULL, NULL, NULL}, 4000 * 1024},
        {{meminfo, "max\n", "5\n", NULL}, 4000 * 1024},
        {{meminfo, "1000000\n", "400000\n", NULL}, 600000},
        {{meminfo, "1000000\n", "400000\n", "anon 7\ninactive_file 300000\n"}, 900000},
        {{meminfo, "1000000\n", "400000\n", "inactive_file 500000\n"}, 600000},
        {{meminfo, "1000\n", "4000\n", NULL}, 0},
        {{meminfo, "1000\n", NULL, NULL}, 4000 * 1024},
        {{meminfo, "99999999999\n", "0\n", NULL}, 4000 * 1024},
        {{NULL, "1000\n", "1\n", NULL}, 999},
        {{NULL, NULL, NULL, NULL}, INT64_MAX},
        {{"MemAvailable: lots\n", "", "x", NULL}, INT64_MAX},
        {{"MemAvailable: -5 kB\n", "-1\n", "0\n", NULL}, INT64_MAX},
        {{"MemAvailable: 9223372036854775807 kB\n", NULL, NULL, NULL}, INT64_MAX},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        put(rows[i].texts);
        assert_int_equal(nb_memory_available_in(folder, folder), rows[i].want);
    }
    put((const char *const[4]){NULL, NULL, NULL, NULL});
}

static void this_machine_has_some(void **state)
{
    (void)state;
    assert_true(nb_memory_available() > 1 << 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_smaller_of_system_and_group),
        cmocka_unit_test(this_machine_has_some),
    };
    if (mkdtemp(folder) == NULL)
        return 1;
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    rmdir(folder);
    return failed;
}
