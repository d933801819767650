/* See sha256.h. */
#include "base/sha256_compress.h"

#include <stdatomic.h>
#include <string.h>

const uint32_t nb_sha256_constant[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static uint32_t rotate_right(uint32_t x, int n)
{
    return x >> n | x << (32 - n);
}

static void compress_one(uint32_t h[8], const uint8_t *block)
{
    uint32_t w[64];
    for (int i = 0; i < 16; i++) {
        const uint8_t *p = block + 4 * i;
        w[i] = (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
    }
    for (int i = 16; i < 64; i++) {
        const uint32_t a = w[i - 15], b = w[i - 2];
        const uint32_t s0 = rotate_right(a, 7) ^ rotate_right(a, 18) ^ a >> 3;
        const uint32_t s1 = rotate_right(b, 17) ^ rotate_right(b, 19) ^ b >> 10;
        w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    uint32_t v[8];
    memcpy(v, h, sizeof v);
    for (int i = 0; i < 64; i++) {
        const uint32_t a = v[0], e = v[4];
        const uint32_t s1 = rotate_right(e, 6) ^ rotate_right(e, 11) ^ rotate_right(e, 25);
        const uint32_t choose = (e & v[5]) ^ (~e & v[6]);
        const uint32_t t1 = v[7] + s1 + choose + nb_sha256_constant[i] + w[i];
        const uint32_t s0 = rotate_right(a, 2) ^ rotate_right(a, 13) ^ rotate_right(a, 22);
        const uint32_t majority = (a & v[1]) ^ (a & v[2]) ^ (v[1] & v[2]);
        memmove(v + 1, v, 7 * sizeof *v);
        v[4] += t1;
        v[0] = t1 + s0 + majority;
    }
    for (int i = 0; i < 8; i++)
        h[i] += v[i];
}

void nb_sha256_compress_c(uint32_t h[8], const uint8_t *blocks, size_t n)
{
    for (size_t i = 0; i < n; i++)
        compress_one(h, blocks + 64 * i);
}

static void compress(uint32_t h[8], const uint8_t *blocks, size_t n)
{
    static atomic_int has; /* 0: not known yet; 1: no; 2: yes */
    int known = atomic_load_explicit(&has, memory_order_relaxed);
    if (known == 0) {
        known = nb_sha256_has_x86() ? 2 : 1;
        atomic_store_explicit(&has, known, memory_order_relaxed);
    }
    if (known == 2)
        nb_sha256_compress_x86(h, blocks, n);
    else
        nb_sha256_compress_c(h, blocks, n);
}

void nb_sha256_init(nb_sha256 *s)
{
    *s = (nb_sha256){.h = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c,
                           0x1f83d9ab, 0x5be0cd19}};
}

void nb_sha256_update(nb_sha256 *s, const void *bytes, size_t n)
{
    const uint8_t *p = bytes;
    const size_t waiting = s->n_bytes % 64;
    s->n_bytes += n;
    if (waiting > 0) {
        const size_t take = n < 64 - waiting ? n : 64 - waiting;
        if (take > 0)
            memcpy(s->block + waiting, p, take);
        if (waiting + take < 64)
            return;
        compress(s->h, s->block, 1);
        p += take;
        n -= take;
    }
    compress(s->h, p, n / 64);
    if (n % 64 > 0)
        memcpy(s->block, p + n / 64 * 64, n % 64);
}

void nb_sha256_final(nb_sha256 *s, uint8_t digest[NB_SHA256_BYTES])
{
    const uint64_t n_bits = s->n_bytes * 8;
    const size_t used = s->n_bytes % 64;
    /* One bit, zeros up to 56 bytes into the last block, then the length in bits. */
    uint8_t tail[72] = {0x80};
    const size_t n_zero = (used < 56 ? 56 : 120) - used;
    for (int i = 0; i < 8; i++)
        tail[n_zero + (size_t)i] = (uint8_t)(n_bits >> (56 - 8 * i));
    nb_sha256_update(s, tail, n_zero + 8);
    for (int i = 0; i < 32; i++)
        digest[i] = (uint8_t)(s->h[i / 4] >> (24 - 8 * (i % 4)));
}

void nb_sha256_hex_of(const uint8_t digest[NB_SHA256_BYTES], char hex[NB_SHA256_HEX])
{
    for (int i = 0; i < NB_SHA256_BYTES; i++) {
        hex[2 * i] = "0123456789abcdef"[digest[i] >> 4];
        hex[2 * i + 1] = "0123456789abcdef"[digest[i] & 15];
    }
    hex[NB_SHA256_HEX - 1] = '\0';
}

void nb_sha256_hex(const void *bytes, size_t n, char hex[NB_SHA256_HEX])
{
    nb_sha256 s;
    nb_sha256_init(&s);
    nb_sha256_update(&s, bytes, n);
    uint8_t digest[NB_SHA256_BYTES];
    nb_sha256_final(&s, digest);
    nb_sha256_hex_of(digest, hex);
}
