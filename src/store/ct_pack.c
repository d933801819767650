/* See ct_pack.h. */
#include "store/ct_pack.h"

#include "numeric/codebits.h"

#include <string.h>

int64_t nb_ct_n_words(int64_t n, int bits)
{
    return nb_codebits_words(n, bits);
}

void nb_ct_unpack8(uint8_t *codes, int64_t n_rows, int64_t n_cols)
{
    /* A row never moves up, so earlier rows do not overwrite later ones. */
    const int64_t stride = 4 * nb_ct_n_words(n_cols, 8);
    for (int64_t r = 0; r < n_rows; r++) {
        for (int64_t c = 0; c < n_cols; c++)
            codes[r * n_cols + c] = codes[r * stride + c] ^ 0x80;
    }
}

void nb_ct_pack8_row(uint8_t *words, const int8_t *codes, int64_t n_cols)
{
    for (int64_t c = 0; c < n_cols; c++)
        words[c] = (uint8_t)codes[c] ^ 0x80;
    memset(words + n_cols, 0, (size_t)(4 * nb_ct_n_words(n_cols, 8) - n_cols));
}

void nb_ct_clear_padding(uint8_t *codes, int64_t n_rows, int64_t n_cols, int bits)
{
    const int64_t stride = 4 * nb_ct_n_words(n_cols, bits);
    for (int64_t r = 0; r < n_rows && n_cols * bits % 32 != 0; r++)
        nb_codebits_clear_rest(codes + r * stride, bits, n_cols);
}

nb_status nb_ct_pack_row(uint8_t *out, const int8_t *codes, int64_t n_cols, int bits, nb_err *err)
{
    const int half = 1 << (bits - 1);
    for (int64_t c = 0; c < n_cols; c++) {
        if (codes[c] < -half || codes[c] >= half)
            return nb_fail(err, NB_DATA, "code %d at column %lld, not in [%d, %d]", codes[c],
                           (long long)c, -half, half - 1);
    }
    memset(out, 0, (size_t)(4 * nb_ct_n_words(n_cols, bits)));
    nb_codebits_put(out, bits, 0, codes, n_cols, half);
    return NB_OK;
}

/* Where code i of a column of words lies: the word, the bit of it, and whether in the next one
 * too. */
typedef struct {
    int64_t word;
    int shift;
    bool split;
} place;

static place place_of(int64_t i, int bits)
{
    place p = {.word = i / 32 * bits + i % 32 * bits / 32, .shift = (int)(i % 32 * bits % 32)};
    p.split = p.shift + bits > 32;
    return p;
}

void nb_ct_unpack_zeros(int8_t *zeros, const uint32_t *words, int64_t n_rows, int64_t n_groups,
                        int bits)
{
    const uint32_t mask = (1u << bits) - 1;
    const int offset = 1 << (bits - 1);
    for (int64_t r = 0; r < n_rows; r++) {
        const place at = place_of(r, bits);
        const uint32_t *word = words + at.word * n_groups;
        for (int64_t g = 0; g < n_groups; g++) {
            uint32_t u = word[g] >> at.shift;
            if (at.split)
                u |= word[g + n_groups] << (32 - at.shift);
            zeros[r * n_groups + g] = (int8_t)((int)(u & mask) - offset);
        }
    }
}

void nb_ct_pack_zeros(uint32_t *words, const int8_t *zeros, int64_t n_rows, int64_t n_groups,
                      int bits)
{
    const int offset = 1 << (bits - 1);
    memset(words, 0, (size_t)(nb_ct_n_words(n_rows, bits) * n_groups) * sizeof *words);
    for (int64_t r = 0; r < n_rows; r++) {
        const place at = place_of(r, bits);
        uint32_t *word = words + at.word * n_groups;
        for (int64_t g = 0; g < n_groups; g++) {
            const uint32_t u = (uint32_t)(zeros[r * n_groups + g] + offset);
            word[g] |= u << at.shift;
            if (at.split)
                word[g + n_groups] |= u >> (32 - at.shift);
        }
    }
}
