/* Activations before they are packed: FP8 (A7), rounded to the numbers that their codes would mean,
 * and codes of 8 bits under a scale that was chosen before (A3). The same sequence
 * of adds, multiplies and integer steps everywhere, in pieces of a constant length that compilers
 * turn into vector code; next to the product that follows it costs little. */
#include "kernel/gemm.h"
#include "numeric/minifloat.h"

#include <string.h>

#define PIECE 32
#define TOP   448.0f

static uint32_t max_bits(const float *restrict x)
{
    uint32_t most[8] = {0};
    for (int i = 0; i < PIECE; i += 8)
        for (int l = 0; l < 8; l++) {
            const uint32_t b = nb_f32_bits(x[i + l]) & 0x7fffffffu;
            most[l] = b > most[l] ? b : most[l];
        }
    for (int l = 1; l < 8; l++)
        most[0] = most[l] > most[0] ? most[l] : most[0];
    return most[0];
}

static void round_piece(float *y, const float *x, float inverse, float scale)
{
    for (int i = 0; i < PIECE; i++)
        y[i] = nb_e4m3_to_f32(nb_e4m3_from_f32(x[i] * inverse)) * scale;
}

/* Clamped before it is rounded, which is the same, since 127 is a whole number, and then adding
 * 1.5 * 2^23 rounds to the nearest even: rintf would be a call for each number. */
static void code_piece(float *y, const float *x, float inverse)
{
    const float most = 127.0f, shift = 0x1.8p23f;
    for (int i = 0; i < PIECE; i++) {
        const float v = x[i] * inverse;
        const float above = v > -most ? v : -most;
        y[i] = ((above < most ? above : most) + shift) - shift;
    }
}

/* The columns of one scale. */
static bool round_group(float *y, const float *x, int64_t n, float given, bool integer)
{
    uint32_t bits = 0;
    for (int64_t c = 0; c < n; c += PIECE) {
        float padded[PIECE] = {0};
        const int64_t len = n - c < PIECE ? n - c : PIECE;
        memcpy(padded, x + c, (size_t)len * sizeof *x);
        const uint32_t b = max_bits(padded);
        bits = b > bits ? b : bits;
    }
    const float absmax = nb_f32_from_bits(bits);
    const bool bad = bits >= 0x7f800000u, none = given == 0 && absmax < 0x1p-100f;
    if (bad || none) {
        for (int64_t c = 0; c < n; c++)
            y[c] = nb_f32_from_bits(bad ? 0x7fc00000u : 0);
        return !bad;
    }
    const float scale = given != 0 ? given : absmax / TOP;
    const float inverse = given != 0 ? 1.0f / given : TOP / absmax;
    for (int64_t c = 0; c < n; c += PIECE) {
        float padded[PIECE] = {0};
        const int64_t len = n - c < PIECE ? n - c : PIECE;
        memcpy(padded, x + c, (size_t)len * sizeof *x);
        if (integer)
            code_piece(padded, padded, inverse);
        else
            round_piece(padded, padded, inverse, scale);
        memcpy(y + c, padded, (size_t)len * sizeof *y);
    }
    return true;
}

bool nb_round_row(float *y, const float *x, int64_t n, const nb_xround *how)
{
    const int64_t group = how->group > 0 ? how->group : n;
    bool finite = true;
    for (int64_t c = 0; c < n; c += group)
        finite =
            round_group(y + c, x + c, n - c < group ? n - c : group, how->scale, how->integer) &&
            finite;
    return finite;
}
