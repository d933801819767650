/* See probe.h. Results come in slices, in any order: so each element is hashed with its column, and
 * a row's hash is the XOR of its elements'. */
#include "eval/probe.h"

#include "numeric/minifloat.h"

#include <assert.h>

nb_status nb_probe_init(nb_probe *p, int64_t n_layers, int64_t n_tokens, int64_t input, nb_err *err)
{
    *p = (nb_probe){.n_layers = n_layers, .n_tokens = n_tokens, .input = input};
    return nb_alloc((void **)&p->hash, (size_t)((n_layers + 1) * NB_N_OPS),
                    (size_t)n_tokens * sizeof *p->hash, err);
}

void nb_probe_free(nb_probe *p)
{
    nb_free(p->hash);
    *p = (nb_probe){0};
}

/* The finalizer of MurmurHash3. The sign of a zero counts here, unlike in the hash of the logits:
 * kernels promise equal bits. A NaN's encoding does not: processors choose it. */
static uint64_t element(int64_t column, float value)
{
    uint32_t bits = nb_f32_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        bits = 0x7fc00000u;
    uint64_t h = ((uint64_t)column << 32 | bits) + 0x9e3779b97f4a7c15ull;
    h = (h ^ h >> 33) * 0xff51afd7ed558ccdull;
    h = (h ^ h >> 33) * 0xc4ceb9fe1a85ec53ull;
    return h ^ h >> 33;
}

static int64_t place_of(const nb_probe *p, int64_t layer, int64_t op, int64_t token)
{
    return (layer * NB_N_OPS + op) * p->n_tokens + token;
}

static void see(void *context, int64_t layer, nb_op op, int64_t input, int64_t position,
                int64_t column, const float *values, int64_t n)
{
    const nb_probe *p = context;
    if (input != p->input || position >= p->n_tokens)
        return;
    assert(layer <= p->n_layers && op < NB_N_OPS);
    uint64_t h = 0;
    for (int64_t i = 0; i < n; i++)
        h ^= element(column + i, values[i]);
    atomic_fetch_xor_explicit(&p->hash[place_of(p, layer, op, position)], h, memory_order_relaxed);
}

nb_watcher nb_probe_watcher(nb_probe *p)
{
    return (nb_watcher){see, p};
}

bool nb_probe_part(const nb_probe *a, const nb_probe *b, int64_t n_tokens, nb_place *out)
{
    assert(a->n_layers == b->n_layers && n_tokens <= a->n_tokens && n_tokens <= b->n_tokens);
    for (int64_t layer = 0; layer <= a->n_layers; layer++) {
        for (int op = 0; op < NB_N_OPS; op++) {
            for (int64_t token = 0; token < n_tokens; token++) {
                if (atomic_load(&a->hash[place_of(a, layer, op, token)]) !=
                    atomic_load(&b->hash[place_of(b, layer, op, token)])) {
                    *out = (nb_place){layer, token, (nb_op)op};
                    return true;
                }
            }
        }
    }
    return false;
}
