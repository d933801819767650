/* See codebits.h. */
#include "numeric/codebits.h"

#include <string.h>

int64_t nb_codebits_bytes(int64_t n, int bits)
{
    int64_t bytes;
    return __builtin_mul_overflow(nb_codebits_words(n, bits), 4, &bytes) ? -1 : bytes;
}

/* Eight codes fill `bits` whole bytes: they go through one 64-bit number. The width is a constant
 * where this is called, and all loops are unrolled. */
static inline void get8(int8_t *code, const uint8_t *byte, int bits, int offset)
{
    uint64_t v = 0;
    for (int i = 0; i < bits; i++)
        v |= (uint64_t)byte[i] << 8 * i;
    for (int i = 0; i < 8; i++)
        code[i] = (int8_t)((int)(v >> i * bits & ((1u << bits) - 1)) - offset);
}

static inline void put8(uint8_t *byte, int bits, const int8_t *code, int offset)
{
    uint64_t v = 0;
    for (int i = 0; i < 8; i++)
        v |= (uint64_t)(uint8_t)(code[i] + offset) << i * bits;
    for (int i = 0; i < bits; i++)
        byte[i] = (uint8_t)(v >> 8 * i);
}

static void get_eights(int8_t *code, const uint8_t *byte, int bits, int64_t n, int offset)
{
    switch (bits) {
    case 2:
        for (int64_t i = 0; i < n; i++)
            get8(code + 8 * i, byte + 2 * i, 2, offset);
        return;
    case 3:
        for (int64_t i = 0; i < n; i++)
            get8(code + 8 * i, byte + 3 * i, 3, offset);
        return;
    case 4:
        for (int64_t i = 0; i < n; i++)
            get8(code + 8 * i, byte + 4 * i, 4, offset);
        return;
    default:
        for (int64_t i = 0; i < n; i++)
            get8(code + 8 * i, byte + bits * i, bits, offset);
    }
}

static void put_eights(uint8_t *byte, int bits, const int8_t *code, int64_t n, int offset)
{
    switch (bits) {
    case 2:
        for (int64_t i = 0; i < n; i++)
            put8(byte + 2 * i, 2, code + 8 * i, offset);
        return;
    case 3:
        for (int64_t i = 0; i < n; i++)
            put8(byte + 3 * i, 3, code + 8 * i, offset);
        return;
    case 4:
        for (int64_t i = 0; i < n; i++)
            put8(byte + 4 * i, 4, code + 8 * i, offset);
        return;
    default:
        for (int64_t i = 0; i < n; i++)
            put8(byte + bits * i, bits, code + 8 * i, offset);
    }
}

/* One code, which may lie in two bytes; only bytes that it has bits in are touched. */
static int get1(const uint8_t *string, int bits, int64_t at)
{
    const int64_t first = at * bits;
    const uint8_t *byte = string + first / 8;
    const int shift = (int)(first % 8);
    int v = *byte >> shift;
    if (shift + bits > 8)
        v |= byte[1] << (8 - shift);
    return v & ((1 << bits) - 1);
}

static void put1(uint8_t *string, int bits, int64_t at, int code)
{
    const int64_t first = at * bits;
    uint8_t *byte = string + first / 8;
    const int shift = (int)(first % 8), mask = (1 << bits) - 1;
    byte[0] = (uint8_t)((byte[0] & ~(mask << shift)) | code << shift);
    if (shift + bits > 8)
        byte[1] = (uint8_t)((byte[1] & ~(mask >> (8 - shift))) | code >> (8 - shift));
}

static int64_t until_eight(int64_t at, int64_t n)
{
    const int64_t ragged = (8 - at % 8) % 8;
    return ragged < n ? ragged : n;
}

void nb_codebits_get(int8_t *code, const uint8_t *string, int bits, int64_t at, int64_t n,
                     int offset)
{
    int64_t i = 0;
    for (const int64_t ragged = until_eight(at, n); i < ragged; i++)
        code[i] = (int8_t)(get1(string, bits, at + i) - offset);
    const int64_t eights = (n - i) / 8;
    get_eights(code + i, string + (at + i) / 8 * bits, bits, eights, offset);
    for (i += 8 * eights; i < n; i++)
        code[i] = (int8_t)(get1(string, bits, at + i) - offset);
}

void nb_codebits_put(uint8_t *string, int bits, int64_t at, const int8_t *code, int64_t n,
                     int offset)
{
    int64_t i = 0;
    for (const int64_t ragged = until_eight(at, n); i < ragged; i++)
        put1(string, bits, at + i, (uint8_t)(code[i] + offset));
    const int64_t eights = (n - i) / 8;
    put_eights(string + (at + i) / 8 * bits, bits, code + i, eights, offset);
    for (i += 8 * eights; i < n; i++)
        put1(string, bits, at + i, (uint8_t)(code[i] + offset));
}

void nb_codebits_clear_rest(uint8_t *string, int bits, int64_t n)
{
    const int64_t used = n * bits, end = nb_codebits_bytes(n, bits);
    if (used % 8 != 0)
        string[used / 8] &= (uint8_t)((1 << used % 8) - 1);
    const int64_t whole = used / 8 + (used % 8 != 0);
    memset(string + whole, 0, (size_t)(end - whole));
}
