/* See siphash.h. */
#include "base/siphash.h"

#include <string.h>

static uint64_t load_le(const uint8_t *p)
{
    uint64_t x = 0;
    for (int i = 0; i < 8; i++)
        x |= (uint64_t)p[i] << (8 * i);
    return x;
}

static uint64_t rotate(uint64_t x, int n)
{
    return x << n | x >> (64 - n);
}

static void rounds(uint64_t v[4], int n)
{
    for (int i = 0; i < n; i++) {
        v[0] += v[1];
        v[2] += v[3];
        v[1] = rotate(v[1], 13) ^ v[0];
        v[3] = rotate(v[3], 16) ^ v[2];
        v[0] = rotate(v[0], 32);
        v[2] += v[1];
        v[0] += v[3];
        v[1] = rotate(v[1], 17) ^ v[2];
        v[3] = rotate(v[3], 21) ^ v[0];
        v[2] = rotate(v[2], 32);
    }
}

static void absorb(uint64_t v[4], uint64_t word)
{
    v[3] ^= word;
    rounds(v, 2);
    v[0] ^= word;
}

void nb_siphash_begin(nb_siphash *h, const uint8_t key[16])
{
    const uint64_t k0 = load_le(key), k1 = load_le(key + 8);
    /* "somepseudorandomlygeneratedbytes"; 0xee tells the long output from the short one. */
    *h = (nb_siphash){.v = {k0 ^ 0x736f6d6570736575u, k1 ^ 0x646f72616e646f6du ^ 0xee,
                            k0 ^ 0x6c7967656e657261u, k1 ^ 0x7465646279746573u}};
}

void nb_siphash_put(nb_siphash *h, const void *data, size_t n)
{
    const uint8_t *at = data;
    const size_t held = (size_t)(h->n_bytes % 8);
    h->n_bytes += n;
    if (held > 0) {
        const size_t take = n < 8 - held ? n : 8 - held;
        if (take > 0)
            memcpy(h->tail + held, at, take);
        if (held + take < 8)
            return;
        absorb(h->v, load_le(h->tail));
        at += take;
        n -= take;
    }
    for (; n >= 8; at += 8, n -= 8)
        absorb(h->v, load_le(at));
    if (n > 0)
        memcpy(h->tail, at, n);
}

nb_sip128 nb_siphash_end(nb_siphash *h)
{
    const size_t held = (size_t)(h->n_bytes % 8);
    memset(h->tail + held, 0, 8 - held);
    absorb(h->v, load_le(h->tail) | h->n_bytes << 56);
    nb_sip128 out;
    uint64_t *v = h->v;
    v[2] ^= 0xee;
    rounds(v, 4);
    out.lo = v[0] ^ v[1] ^ v[2] ^ v[3];
    v[1] ^= 0xdd;
    rounds(v, 4);
    out.hi = v[0] ^ v[1] ^ v[2] ^ v[3];
    return out;
}
