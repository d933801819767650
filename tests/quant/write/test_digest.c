/* The name of a model's content is what common tools say it is. */
#include "quant/write/digest.h"

#include "base/alloc.h"
#include "support/golden.h"
#include "support/scratch.h"

#include <stdio.h>
#include <string.h>

static nb_err err;

/* What sha256sum makes of the texts below. */
#define HEX_A "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb" /* a */
#define HEX_B "3e23e8160039594a33894f6564e1b1348bbd7a0088d42c4acb73eeaed59c009d" /* b */

static void digest_is(const char *name, const char *text)
{
    char got[NB_SHA256_HEX], want[NB_SHA256_HEX];
    assert_int_equal(nb_model_digest(scratch_path(name), got, &err), NB_OK);
    nb_sha256_hex(text, strlen(text), want);
    assert_string_equal(got, want);
}

static void of_a_file_it_is_its_own(void **state)
{
    (void)state;
    scratch_text("one.gguf", "a");
    char got[NB_SHA256_HEX];
    assert_int_equal(nb_model_digest(scratch_path("one.gguf"), got, &err), NB_OK);
    assert_string_equal(got, HEX_A);
    scratch_text("empty", "");
    digest_is("empty", "");
    /* longer than the pieces that it is read in */
    static char large[(3 << 20) + 5];
    memset(large, 'x', sizeof large - 1);
    scratch_text("large", large);
    digest_is("large", large);
}

/* Of a folder, that of the files which make the model: not the report, nor hidden files, nor
 * others; in the order of bytes, whatever the locale. */
static void of_a_folder_it_is_that_of_the_list(void **state)
{
    (void)state;
    scratch_mkdir("hf");
    digest_is("hf", "");
    scratch_text("hf/b.safetensors", "b");
    scratch_text("hf/Z.json", "a");
    scratch_text("hf/chat_template.jinja", "b");
    static const char *const others[] = {"nibble-report.json", "README.md",
                                         ".hidden.json",       ".json",
                                         "x.json.bak",         "nibble-report.json.jinja"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        char name[64];
        snprintf(name, sizeof name, "hf/%s", others[i]);
        scratch_text(name, "noise");
    }
    digest_is("hf", HEX_A "  Z.json\n" HEX_B "  b.safetensors\n" HEX_B "  chat_template.jinja\n");
}

/* Another content, another name of a file, one file more: another digest. */
static void each_file_counts(void **state)
{
    (void)state;
    scratch_mkdir("counts");
    char seen[4][NB_SHA256_HEX];
    for (int i = 0; i < 4; i++) {
        scratch_text("counts/a.json", i == 1 ? "b" : "a");
        if (i == 2)
            scratch_text("counts/b.json", "");
        if (i == 3)
            assert_int_equal(rename(scratch_path("counts/b.json"), scratch_path("counts/c.json")),
                             0);
        assert_int_equal(nb_model_digest(scratch_path("counts"), seen[i], &err), NB_OK);
        for (int j = 0; j < i; j++)
            assert_string_not_equal(seen[i], seen[j]);
    }
}

/* The other files of a split GGUF hold weights as well. */
static void of_a_split_file_it_is_that_of_all_files(void **state)
{
    (void)state;
    scratch_mkdir("split");
    scratch_text("split/m-00001-of-00003.gguf", "a");
    char alone[NB_SHA256_HEX];
    assert_int_equal(nb_model_digest(scratch_path("split/m-00001-of-00003.gguf"), alone, &err),
                     NB_OK);
    assert_string_equal(alone, HEX_A); /* only called like one */
    scratch_text("split/m-00002-of-00003.gguf", "b");
    scratch_text("split/m-00003-of-00003.gguf", "a");
    digest_is("split/m-00001-of-00003.gguf",
              HEX_A "  m-00001-of-00003.gguf\n" HEX_B "  m-00002-of-00003.gguf\n" HEX_A
                    "  m-00003-of-00003.gguf\n");
    assert_int_equal(remove(scratch_path("split/m-00003-of-00003.gguf")), 0);
    assert_int_equal(nb_model_digest(scratch_path("split/m-00001-of-00003.gguf"), alone, &err),
                     NB_DATA);
    assert_non_null(strstr(err.text, "m-00003-of-00003.gguf"));
    static const char *const names[] = {"m-00001-of-0000x.gguf", "-00001-of-00003.gguf",
                                        "m-00002-of-00003.gguf"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        scratch_text(names[i], "b");
        assert_int_equal(nb_model_digest(scratch_path(names[i]), alone, &err), NB_OK);
        assert_string_equal(alone, HEX_B);
    }
}

static void what_cannot_be_read_is_named(void **state)
{
    (void)state;
    char hex[NB_SHA256_HEX];
    assert_int_equal(nb_model_digest(scratch_path("none"), hex, &err), NB_DATA);
    assert_non_null(strstr(err.text, "none"));
    scratch_mkdir("odd");
    scratch_mkdir("odd/a.json");
    assert_int_equal(nb_model_digest(scratch_path("odd"), hex, &err), NB_DATA);
    assert_non_null(strstr(err.text, "odd/a.json"));
}

static void memory_that_fails_leaves_nothing(void **state)
{
    (void)state;
    char hex[NB_SHA256_HEX];
    scratch_mkdir("alloc");
    scratch_text("alloc/a.json", "a");
    scratch_text("alloc/b.json", "a");
    const int64_t live = nb_alloc_live();
    int64_t n = 1;
    for (;; n++) {
        nb_alloc_fail_at(n);
        const nb_status s = nb_model_digest(scratch_path("alloc"), hex, &err);
        nb_alloc_fail_at(0);
        assert_int_equal(nb_alloc_live(), live);
        if (s == NB_OK)
            break;
        assert_int_equal(s, NB_MEMORY);
    }
    assert_true(n > 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(of_a_file_it_is_its_own),
        cmocka_unit_test(of_a_folder_it_is_that_of_the_list),
        cmocka_unit_test(each_file_counts),
        cmocka_unit_test(of_a_split_file_it_is_that_of_all_files),
        cmocka_unit_test(what_cannot_be_read_is_named),
        cmocka_unit_test(memory_that_fails_leaves_nothing),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
