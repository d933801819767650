/* Which scheme to begin with: a tree of purpose, accuracy and memory; see advise.h.
 *
 * The order is 8 bits before 4, quantizing a trained model before training a quantized one, and
 * nothing at all where nothing is needed. */
#include "quant/advise/advise.h"

#include <math.h>
#include <string.h>

#define SERVER_BATCH 8 /* sequences from which on a step is bound by computing */

const char *nb_leaf_name(nb_leaf leaf)
{
    static const char *const names[NB_N_LEAVES] = {
        "keep",  "8-bit", "8-bit-server", "4-bit",     "4-bit-first", "3-bit",
        "2-bit", "nodes", "train-full",   "train-qat", "train-qlora", "train-nodes",
    };
    return names[leaf];
}

static const nb_candidate *find(const nb_candidate *c, const char *scheme)
{
    for (int i = 0; i < NB_N_CANDIDATES; i++) {
        if (strcmp(c[i].scheme, scheme) == 0)
            return &c[i];
    }
    return NULL;
}

/* ---- the cache ---- */

static nb_kv_format advise_kv(nb_advice *out, int64_t ctx)
{
    const bool is_long = ctx > 8192;
    out->kv = is_long ? "int8" : "f16";
    out->kv_because = is_long      ? "more than 8K tokens: an INT8 cache saves about half of it"
                      : ctx < 1024 ? "less than 1K tokens: there is nothing to save in the cache"
                      : ctx < 2048 ? "less than 2K tokens: an INT8 cache saves little, take care"
                                   : "2K to 8K tokens: --kv int8 is worth a try where memory is "
                                     "short";
    return is_long ? NB_KV_INT8 : NB_KV_F16;
}

/* ---- what fits ---- */

typedef struct {
    const nb_advise_shape *shape;
    const nb_candidate *candidates;
    const nb_advise_source *source;
    const nb_advise_request *request;
    nb_kv_format kv;
} question;

static bool has_room(const question *q, const nb_candidate *c)
{
    return c->possible && nb_advise_memory(q->shape, c, q->request->ctx, q->request->batch,
                                           q->kv) <= q->request->memory;
}

bool nb_advise_gains(const nb_advise_source *source, const nb_candidate *c)
{
    return source == NULL || !source->quantized ||
           (double)c->bytes < 0.95 * (double)source->as.bytes;
}

static bool fits(const question *q, const nb_candidate *c)
{
    return has_room(q, c) && nb_advise_gains(q->source, c);
}

/* Of the names the first that fits, else the first whose groups divide the rows: the last of a list
 * of four bits always does, since a GGUF keeps floats where blocks do not. */
static const nb_candidate *choose(const question *q, const char *const *names)
{
    const nb_candidate *possible = NULL, *c = NULL;
    for (; *names != NULL; names++) {
        c = find(q->candidates, *names);
        if (fits(q, c))
            return c;
        if (possible == NULL && c->possible)
            possible = c;
    }
    return possible != NULL ? possible : c;
}

static const nb_candidate *of_bits(const question *q, int bits)
{
    static const char *const four[] = {"W4A16:g32,asym", "W4A16:g64", "W4A16:g128", "IQ4_NL", NULL};
    static const char *const three[] = {"W3A16:g64,asym", "W3A16:g128", NULL};
    static const char *const two[] = {"W2A16:g32,asym", NULL};
    return choose(q, bits == 4 ? four : bits == 3 ? three : two);
}

/* Machines of this memory that share the layers: the cache is shared with them, what each needs
 * for itself is not. */
static int64_t nodes_of(const question *q, const nb_candidate *c)
{
    const double own = (double)nb_advise_activation_bytes(q->shape, q->request->batch) + 32e6;
    const double room = (double)q->request->memory - own;
    const double all =
        (double)nb_advise_memory(q->shape, c, q->request->ctx, q->request->batch, q->kv) - own;
    const double n = room > 0 ? all / room : 1e9;
    return n >= 1e9 ? 1000000000 : (int64_t)n + ((double)(int64_t)n < n);
}

/* ---- the tree ---- */

static void answer(nb_advice *out, nb_leaf leaf, const char *scheme, const char *method,
                   const char *because)
{
    out->leaf = leaf;
    out->scheme = scheme;
    out->method = method;
    out->because = because;
}

static void by_bits(nb_advice *out, const question *q)
{
    const nb_accuracy accuracy = q->request->accuracy;
    const nb_candidate *w8 = find(q->candidates, "W8A16"), *w8a8 = find(q->candidates, "W8A8");
    const nb_candidate *w4 = of_bits(q, 4), *w3 = of_bits(q, 3), *w2 = of_bits(q, 2);
    const bool small = accuracy == NB_ACCURACY_SMALL, balanced = accuracy == NB_ACCURACY_BALANCED;
    if (accuracy == NB_ACCURACY_EXACT && out->fits_16)
        answer(out, NB_LEAF_KEEP, "", "", "16 bits fit, and nothing may be lost: do not quantize");
    else if (!small && !balanced && q->request->batch >= SERVER_BATCH &&
             accuracy != NB_ACCURACY_EXACT && fits(q, w8a8))
        answer(out, NB_LEAF_8_BIT_SERVER, w8a8->scheme, "rtn",
               "many sequences at once are bound by computing: 8-bit weights and activations");
    else if (!small && !balanced && fits(q, w8))
        answer(out, NB_LEAF_8_BIT, w8->scheme, "rtn",
               "8 bits first: half the bytes, hardly any loss, no calibration needed");
    else if (small && fits(q, w3))
        answer(out, NB_LEAF_3_BIT, w3->scheme, "autoround",
               "as small as it may be and still be used: 3 bits, optimized with calibration text");
    else if (balanced && fits(q, w8) && fits(q, w4))
        answer(out, NB_LEAF_4_BIT_FIRST, w4->scheme, "gptq",
               "a balance was asked for: 4 bits decode about twice as fast as 8");
    else if (fits(q, w4))
        answer(out, NB_LEAF_4_BIT, w4->scheme, "gptq",
               "8 bits do not fit: 4 bits with calibration text");
    else if (fits(q, w3))
        answer(out, NB_LEAF_3_BIT, w3->scheme, "autoround",
               "4 bits do not fit: 3 bits, optimized with calibration text; measure the loss");
    else if (fits(q, w2))
        answer(out, NB_LEAF_2_BIT, w2->scheme, "autoround",
               "only 2 bits fit: expect visible loss; a smaller model at 4 bits may do better");
    else
        answer(out, NB_LEAF_NODES, "", "",
               "nothing fits: a smaller model, a shorter context, more memory or more machines");
}

/* What is quantized already is only made smaller, where it has to be or was asked to be: what it
 * has lost stays lost, and larger codes would bring nothing back. */
static void for_inference(nb_advice *out, const question *q)
{
    const nb_accuracy accuracy = q->request->accuracy;
    const bool kept = accuracy == NB_ACCURACY_EXACT || accuracy == NB_ACCURACY_HIGH;
    by_bits(out, q);
    if (out->fits_source && (kept || out->leaf == NB_LEAF_NODES))
        answer(out, NB_LEAF_KEEP, "", "",
               "it is quantized already, and fits: quantizing again only loses");
    else if (q->source != NULL && q->source->quantized && out->scheme[0] != 0)
        out->because = out->fits_source
                           ? "smaller than what it is now, as was asked for; quantize the original "
                             "if there is one: what is lost already stays lost"
                           : "it is quantized already, and does not fit; quantize the original if "
                             "there is one: what is lost already stays lost";
}

/* Bytes a parameter: AdamW in mixed precision keeps weight, gradient, master copy and two moments;
 * QAT keeps the same; QLoRA a frozen 4-bit base and adapters of about one hundredth. */
#define FULL_BYTES 16.0

static void for_training(nb_advice *out, const question *q)
{
    const double params = (double)nb_advise_params(q->shape);
    const double act = (double)nb_advise_activation_bytes(q->shape, q->request->batch) *
                       (double)q->shape->n_layers;
    const double memory = (double)q->request->memory;
    const nb_candidate *nf4 = find(q->candidates, "NF4");
    const bool full = FULL_BYTES * params + act <= memory;
    const bool few_bits = q->request->accuracy >= NB_ACCURACY_BALANCED;
    if (full && few_bits)
        answer(out, NB_LEAF_TRAIN_QAT, of_bits(q, 4)->scheme, "",
               "the result shall have 4 bits: train with fake quantization (QAT), and compare "
               "with quantizing afterwards");
    else if (full)
        answer(out, NB_LEAF_TRAIN_FULL, "W8A16", "rtn",
               "full training fits: train in 16 bits, quantize to 8 afterwards");
    else if (nf4->possible && (double)nf4->bytes + 0.01 * FULL_BYTES * params + act <= memory)
        answer(out, NB_LEAF_TRAIN_QLORA, "NF4", "rtn",
               "full training does not fit: a frozen NF4 base with adapters (QLoRA)");
    else
        answer(out, NB_LEAF_TRAIN_NODES, "", "",
               "not even a 4-bit base with adapters fits: a smaller model, or more machines");
}

/* ---- weights and cache together ---- */

static void decide(nb_advice *out, question *q)
{
    const nb_candidate *bf16 = find(q->candidates, "BF16");
    out->fits_16 = has_room(q, bf16);
    out->fits_source = q->source != NULL && q->source->quantized && has_room(q, &q->source->as);
    out->nodes_16 = nodes_of(q, bf16);
    out->nodes_4 = nodes_of(q, of_bits(q, 4));
    if (q->request->purpose == NB_FOR_TRAINING)
        for_training(out, q);
    else
        for_inference(out, q);
    out->loss = nb_advise_loss_of(out->scheme, out->method[0] != 0 ? out->method : "rtn");
}

/* What an answer loses; nothing that fits is the worst. */
static double loss_of(const nb_advice *a)
{
    return a->leaf == NB_LEAF_NODES ? INFINITY : a->leaf == NB_LEAF_KEEP ? 0 : a->loss.kl;
}

/* What an INT8 cache may cost by itself. */
#define CACHE_LOSS 0.005

void nb_advise_decide(nb_advice *out, const nb_advise_shape *s,
                      const nb_candidate candidates[NB_N_CANDIDATES],
                      const nb_advise_source *source, const nb_advise_request *request)
{
    *out = (nb_advice){0};
    question q = {.shape = s, .candidates = candidates, .source = source, .request = request};
    q.kv = advise_kv(out, request->ctx);
    decide(out, &q);
    if (q.kv == NB_KV_INT8 || request->purpose == NB_FOR_TRAINING)
        return;
    nb_advice with = {.kv = "int8",
                      .kv_because = "it makes room for weights that lose less: beside an F16 cache "
                                    "these would not fit"};
    q.kv = NB_KV_INT8;
    decide(&with, &q);
    if (loss_of(&with) + CACHE_LOSS < loss_of(out))
        *out = with;
}
