/* SHA-256 against the published examples, and against itself for every way of cutting the input. */
#include "support/golden.h"

#include "base/rng.h"
#include "base/sha256_compress.h"

#include <stdlib.h>
#include <string.h>

/* FIPS 180-4 example values: nothing, one block, two blocks, a million bytes. */
static void published_examples(void **state)
{
    (void)state;
    char hex[NB_SHA256_HEX];
    nb_sha256_hex("", 0, hex);
    assert_string_equal(hex, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    nb_sha256_hex("abc", 3, hex);
    assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    const char *two = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
    nb_sha256_hex(two, strlen(two), hex);
    assert_string_equal(hex, "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    char *million = malloc(1000000);
    assert_non_null(million);
    memset(million, 'a', 1000000);
    nb_sha256_hex(million, 1000000, hex);
    assert_string_equal(hex, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    free(million);
}

/* A download arrives in pieces of any size: no cut may change the digest, at any length around
 * the block and padding boundaries. */
static void cuts_do_not_matter(void **state)
{
    (void)state;
    uint8_t data[260];
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)(i * 37 + 11);
    for (size_t n = 0; n <= 200; n++) {
        char whole[NB_SHA256_HEX], pieces[NB_SHA256_HEX];
        nb_sha256_hex(data, n, whole);
        for (size_t cut = 0; cut <= n; cut++) {
            nb_sha256 s;
            nb_sha256_init(&s);
            nb_sha256_update(&s, data, cut);
            nb_sha256_update(&s, data + cut, n - cut);
            uint8_t digest[NB_SHA256_BYTES];
            nb_sha256_final(&s, digest);
            nb_sha256_hex_of(digest, pieces);
            assert_string_equal(whole, pieces);
        }
    }
}

/* Instructions made for it give what C gives: from any state, any number of blocks, at any address.
 */
static void instructions_agree_with_c(void **state)
{
    (void)state;
    if (!nb_sha256_has_x86())
        skip();
    uint8_t data[64 * 9 + 16];
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)(256 * nb_rng_uniform(1, 0, i));
    for (uint64_t round = 0; round < 300; round++) {
        uint32_t want[8], got[8];
        for (uint64_t i = 0; i < 8; i++)
            want[i] = got[i] = (uint32_t)(0x1p32 * nb_rng_uniform(2, round, i));
        const size_t n = round % 10, at = round % 17;
        nb_sha256_compress_c(want, data + at, n);
        nb_sha256_compress_x86(got, data + at, n);
        assert_memory_equal(got, want, sizeof want);
    }
}

/* The digest of the digests of the first 300 lengths, computed with an independent program
 * (Python's hashlib): a padding mistake at one length cannot hide. */
static void every_padding_length(void **state)
{
    (void)state;
    uint8_t data[300];
    nb_sha256 all;
    nb_sha256_init(&all);
    for (size_t n = 0; n < sizeof data; n++) {
        data[n] = (uint8_t)(n * 7 + 3);
        nb_sha256 one;
        nb_sha256_init(&one);
        nb_sha256_update(&one, data, n);
        uint8_t digest[NB_SHA256_BYTES];
        nb_sha256_final(&one, digest);
        nb_sha256_update(&all, digest, sizeof digest);
    }
    uint8_t digest[NB_SHA256_BYTES];
    nb_sha256_final(&all, digest);
    char hex[NB_SHA256_HEX];
    nb_sha256_hex_of(digest, hex);
    assert_string_equal(hex, "7b074096cabb18dd0d1b468a173cb2f97f80e952525bca29542e606fd6d0753a");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(published_examples),
        cmocka_unit_test(instructions_agree_with_c),
        cmocka_unit_test(cuts_do_not_matter),
        cmocka_unit_test(every_padding_length),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
