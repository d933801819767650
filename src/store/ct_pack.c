/* See ct_pack.h. */
#include "store/ct_pack.h"

#include <string.h>

int64_t nb_ct_n_words(int64_t n, int bits)
{
    const int64_t per_word = 32 / bits;
    return n / per_word + (n % per_word != 0);
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

void nb_ct_clear_padding4(uint8_t *codes, int64_t n_rows, int64_t n_cols)
{
    const int64_t stride = 4 * nb_ct_n_words(n_cols, 4);
    for (int64_t r = 0; r < n_rows && n_cols % 8 != 0; r++) {
        uint8_t *row = codes + r * stride;
        if (n_cols % 2 != 0)
            row[n_cols / 2] &= 0x0f;
        const int64_t used = n_cols / 2 + n_cols % 2;
        memset(row + used, 0, (size_t)(stride - used));
    }
}

nb_status nb_ct_pack4_row(uint8_t *out, const int8_t *codes, int64_t n_cols, nb_err *err)
{
    memset(out, 0, (size_t)(4 * nb_ct_n_words(n_cols, 4)));
    for (int64_t c = 0; c < n_cols; c++) {
        if (codes[c] < -8 || codes[c] > 7)
            return nb_fail(err, NB_DATA, "code %d at column %lld, not in [-8, 7]", codes[c],
                           (long long)c);
        out[c / 2] |= (uint8_t)((codes[c] + 8) << 4 * (c % 2));
    }
    return NB_OK;
}

void nb_ct_unpack_zeros(int8_t *zeros, const uint32_t *words, int64_t n_rows, int64_t n_groups,
                        int bits)
{
    const int64_t per_word = 32 / bits;
    const uint32_t mask = (1u << bits) - 1;
    const int offset = 1 << (bits - 1);
    for (int64_t r = 0; r < n_rows; r++) {
        const uint32_t *word = words + r / per_word * n_groups;
        const int shift = (int)(r % per_word) * bits;
        for (int64_t g = 0; g < n_groups; g++)
            zeros[r * n_groups + g] = (int8_t)((int)(word[g] >> shift & mask) - offset);
    }
}

void nb_ct_pack_zeros(uint32_t *words, const int8_t *zeros, int64_t n_rows, int64_t n_groups,
                      int bits)
{
    const int64_t per_word = 32 / bits;
    const int offset = 1 << (bits - 1);
    memset(words, 0, (size_t)(nb_ct_n_words(n_rows, bits) * n_groups) * sizeof *words);
    for (int64_t r = 0; r < n_rows; r++) {
        uint32_t *word = words + r / per_word * n_groups;
        const int shift = (int)(r % per_word) * bits;
        for (int64_t g = 0; g < n_groups; g++)
            word[g] |= (uint32_t)(zeros[r * n_groups + g] + offset) << shift;
    }
}
