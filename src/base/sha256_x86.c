/* SHA-256 by the SHA extensions of x86: an instruction takes two rounds, others make four words of
 * the schedule. The state is kept as these want it, a b e f and c d g h. */
#include "base/sha256_compress.h"

#if defined(__x86_64__)

#include <cpuid.h>
#include <immintrin.h>

#define SHA __attribute__((target("sha,sse4.1,ssse3")))

bool nb_sha256_has_x86(void)
{
    unsigned a, b, c, d;
    const unsigned wanted = bit_SSSE3 | bit_SSE4_1;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & wanted) != wanted)
        return false;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_SHA) != 0;
}

/* Words 4 i to 4 i + 3 of the schedule (FIPS 180-4, 6.2.2) from the 16 before them: the oldest four
 * are w[i % 4], and are replaced. */
SHA static __m128i next_words(__m128i w[4], int i)
{
    const __m128i last = w[(i + 3) % 4];
    const __m128i t = _mm_add_epi32(_mm_sha256msg1_epu32(w[i % 4], w[(i + 1) % 4]),
                                    _mm_alignr_epi8(last, w[(i + 2) % 4], 4));
    return _mm_sha256msg2_epu32(t, last);
}

SHA void nb_sha256_compress_x86(uint32_t h[8], const uint8_t *blocks, size_t n)
{
    const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
    const __m128i dcba = _mm_loadu_si128((const __m128i *)(const void *)h);
    const __m128i hgfe = _mm_loadu_si128((const __m128i *)(const void *)(h + 4));
    const __m128i cdab = _mm_shuffle_epi32(dcba, 0xb1), efgh = _mm_shuffle_epi32(hgfe, 0x1b);
    __m128i abef = _mm_alignr_epi8(cdab, efgh, 8), cdgh = _mm_blend_epi16(efgh, cdab, 0xf0);
    for (; n > 0; n--, blocks += 64) {
        const __m128i abef_before = abef, cdgh_before = cdgh;
        __m128i w[4];
        for (int i = 0; i < 16; i++) {
            if (i < 4)
                w[i] = _mm_shuffle_epi8(
                    _mm_loadu_si128((const __m128i *)(const void *)(blocks + 16 * i)), big_endian);
            else
                w[i % 4] = next_words(w, i);
            const __m128i k =
                _mm_loadu_si128((const __m128i *)(const void *)(nb_sha256_constant + 4 * i));
            const __m128i sum = _mm_add_epi32(w[i % 4], k);
            cdgh = _mm_sha256rnds2_epu32(cdgh, abef, sum);
            abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(sum, 0x0e));
        }
        abef = _mm_add_epi32(abef, abef_before);
        cdgh = _mm_add_epi32(cdgh, cdgh_before);
    }
    const __m128i feba = _mm_shuffle_epi32(abef, 0x1b), dchg = _mm_shuffle_epi32(cdgh, 0xb1);
    _mm_storeu_si128((__m128i *)(void *)h, _mm_blend_epi16(feba, dchg, 0xf0));
    _mm_storeu_si128((__m128i *)(void *)(h + 4), _mm_alignr_epi8(dchg, feba, 8));
}

#else

bool nb_sha256_has_x86(void)
{
    return false;
}

void nb_sha256_compress_x86(uint32_t h[8], const uint8_t *blocks, size_t n)
{
    nb_sha256_compress_c(h, blocks, n);
}

#endif
