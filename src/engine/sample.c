/* See sample.h. */
#include "engine/sample.h"

#include "base/fpenv.h"
#include "base/rng.h"
#include "kernel/math.h"

#include <assert.h>
#include <math.h>
#include <string.h>

/* ---- how ---- */

static nb_status in_range(const char *name, double v, double low, double high, nb_err *err)
{
    if (v >= low && v <= high)
        return NB_OK;
    return nb_fail(err, NB_USAGE, "%s is %g: it must lie in [%g, %g]", name, v, low, high);
}

static nb_status check_bias(const nb_sampling *how, int64_t n_ids, nb_err *err)
{
    if (how->n_bias < 0 || how->n_bias > n_ids)
        return nb_fail(err, NB_USAGE, "logit_bias has %lld entries for a vocabulary of %lld",
                       (long long)how->n_bias, (long long)n_ids);
    for (int64_t i = 0; i < how->n_bias; i++) {
        const nb_logit_bias *b = &how->bias[i];
        if (b->id < 0 || b->id >= n_ids)
            return nb_fail(err, NB_USAGE,
                           "logit_bias: token id %d is outside the vocabulary of %lld", b->id,
                           (long long)n_ids);
        if (!isfinite(b->value))
            return nb_fail(err, NB_USAGE, "logit_bias: the value of token %d is not finite", b->id);
    }
    return NB_OK;
}

nb_status nb_sampling_check(const nb_sampling *how, int64_t n_ids, nb_err *err)
{
    NB_TRY(check_bias(how, n_ids, err));
    if (how->temperature != 0)
        NB_TRY(in_range("temperature (if not 0)", how->temperature, 1e-3, 1e3, err));
    if (how->top_k < 0)
        return nb_fail(err, NB_USAGE, "top_k is %lld: it must not be negative",
                       (long long)how->top_k);
    NB_TRY(in_range("top_p", how->top_p, 0, 1, err));
    NB_TRY(in_range("min_p", how->min_p, 0, 1, err));
    if (how->repetition_penalty != 0)
        NB_TRY(in_range("repetition_penalty (if not 0)", how->repetition_penalty, 1e-3, 1e3, err));
    NB_TRY(in_range("frequency_penalty", how->frequency_penalty, -1e3, 1e3, err));
    return in_range("presence_penalty", how->presence_penalty, -1e3, 1e3, err);
}

static nb_status read_config(const json_t *config, nb_sampling *how, nb_err *err)
{
    bool sample = false;
    NB_TRY(nb_json_number(config, "repetition_penalty", false, &how->repetition_penalty, err));
    NB_TRY(nb_json_bool(config, "do_sample", false, &sample, err));
    if (sample) {
        how->temperature = 1;
        how->top_k = 50;
        NB_TRY(nb_json_number(config, "temperature", false, &how->temperature, err));
        NB_TRY(nb_json_int(config, "top_k", false, 0, INT32_MAX, &how->top_k, err));
        NB_TRY(nb_json_number(config, "top_p", false, &how->top_p, err));
        NB_TRY(nb_json_number(config, "min_p", false, &how->min_p, err));
    }
    return nb_sampling_check(how, 0, err);
}

nb_status nb_sampling_read(const nb_store *store, nb_sampling *out, nb_err *err)
{
    nb_sampling how = {0};
    const json_t *config = nb_store_generation_config(store);
    if (config != NULL && read_config(config, &how, err) != NB_OK) {
        err->status = NB_DATA;
        return nb_context(err, "%s: generation_config.json", nb_store_path(store));
    }
    *out = how;
    return NB_OK;
}

/* ---- memory ---- */

nb_status nb_sampler_init(nb_sampler *s, const nb_kernels *kernels, int64_t n, nb_err *err)
{
    *s = (nb_sampler){.kernels = kernels, .n = n};
    nb_status status = NB_ALLOC(&s->logit, n, err);
    if (status == NB_OK)
        status = NB_ALLOC(&s->weight, n, err);
    if (status == NB_OK)
        status = NB_ALLOC(&s->id, n, err);
    if (status == NB_OK)
        status = NB_ALLOC(&s->n_made, n, err);
    if (status == NB_OK)
        status = NB_ALLOC(&s->seen, n, err);
    if (status != NB_OK)
        nb_sampler_free(s);
    return status;
}

void nb_sampler_free(nb_sampler *s)
{
    nb_free(s->logit);
    nb_free(s->weight);
    nb_free(s->id);
    nb_free(s->n_made);
    nb_free(s->seen);
    *s = (nb_sampler){0};
}

void nb_sampler_begin(nb_sampler *s, const int32_t *prompt, int64_t n_prompt)
{
    memset(s->n_made, 0, (size_t)s->n * sizeof *s->n_made);
    memset(s->seen, 0, (size_t)s->n);
    for (int64_t i = 0; i < n_prompt; i++) {
        if (prompt[i] >= 0 && prompt[i] < s->n)
            s->seen[prompt[i]] = 1;
    }
}

void nb_sampler_made(nb_sampler *s, int32_t id)
{
    if (id >= 0 && id < s->n)
        s->n_made[id]++;
}

/* ---- the row ---- */

/* What is NaN or +Inf stays, to be found: a model that computes such a thing is broken, whether or
 * not the token may come. */
static void exclude(float *logit)
{
    if (*logit < INFINITY)
        *logit = -INFINITY;
}

static void exclude_all_but(nb_sampler *s, const nb_allowed *allowed)
{
    if (allowed->mask != NULL) {
        for (int64_t i = 0; i < s->n; i++) {
            if ((allowed->mask[i / 64] >> (i % 64) & 1) == 0)
                exclude(&s->logit[i]);
        }
    }
    for (int64_t i = 0; i < allowed->n_banned; i++) {
        if (allowed->banned[i] >= 0 && allowed->banned[i] < s->n)
            exclude(&s->logit[allowed->banned[i]]);
    }
}

static void add_bias(nb_sampler *s, const nb_sampling *how)
{
    for (int64_t i = 0; i < how->n_bias; i++) {
        const double v = how->bias[i].value;
        float *logit = &s->logit[how->bias[i].id];
        *logit = (float)((double)*logit + (v < -100 ? -100 : v > 100 ? 100 : v));
    }
}

/* Keskar et al., arXiv:1909.05858, section 4.1, for repetition; frequency and presence as in the
 * OpenAI API. */
static void penalize(nb_sampler *s, const nb_sampling *how)
{
    const double r = how->repetition_penalty != 0 ? how->repetition_penalty : 1;
    if (r == 1 && how->frequency_penalty == 0 && how->presence_penalty == 0)
        return;
    for (int64_t i = 0; i < s->n; i++) {
        const int32_t made = s->n_made[i];
        if (made == 0 && !s->seen[i])
            continue;
        double v = (double)s->logit[i];
        v = v > 0 ? v / r : v * r;
        if (made > 0)
            v -= how->frequency_penalty * (double)made + how->presence_penalty;
        s->logit[i] = (float)v;
    }
}

/* Copies the row; excludes, applies bias and penalties, finds the largest logit (the lowest id on
 * ties). */
static nb_status take_row(nb_sampler *s, const nb_sampling *how, const nb_allowed *allowed,
                          const float *logits, int64_t *best, nb_err *err)
{
    memcpy(s->logit, logits, (size_t)s->n * sizeof *logits);
    exclude_all_but(s, allowed);
    add_bias(s, how);
    penalize(s, how);
    float max = -INFINITY;
    *best = -1;
    for (int64_t i = 0; i < s->n; i++) {
        const float v = s->logit[i];
        if (v != v || v == INFINITY)
            return nb_fail(err, NB_DATA, "the logit of token %lld is %s", (long long)i,
                           v != v ? "NaN" : "infinite");
        if (v > max) {
            max = v;
            *best = i;
        }
    }
    if (*best < 0)
        return nb_fail(err, NB_DATA, "no token%s has a finite logit",
                       allowed->mask != NULL || allowed->n_banned > 0 ? " that may come next" : "");
    return NB_OK;
}

/* ---- selection by radix ---- */

/* Ascending like the float; the zeros are equal. */
static uint32_t order_key(float v)
{
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    if (v == 0)
        bits = 0;
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/* Candidates above `key` stay, and the first n_equal of those at it. */
typedef struct {
    uint32_t key;
    int64_t n_equal;
} cut;

/* The fewest candidates, by falling logit and rising id, that together reach `want` > 0: of counts
 * when w is NULL, else of weights. Three passes over the 11, 11 and 10 bits of the key, from the
 * top; each finds the bucket in which the sum reaches `want`. */
static cut find_cut(const float *logit, const float *w, int64_t n, double want)
{
    static const struct {
        int shift, bits;
    } digit[] = {{21, 11}, {10, 11}, {0, 10}};
    double above = 0, mass[1 << 11];
    uint32_t prefix = 0, mask = 0;
    for (int d = 0; d < 3; d++) {
        const uint32_t last = (1u << digit[d].bits) - 1;
        memset(mass, 0, sizeof mass);
        for (int64_t i = 0; i < n; i++) {
            const uint32_t key = order_key(logit[i]);
            if ((key & mask) == prefix)
                mass[key >> digit[d].shift & last] += w != NULL ? (double)w[i] : 1.0;
        }
        uint32_t b = last;
        while (b > 0 && above + mass[b] < want)
            above += mass[b--];
        prefix |= b << digit[d].shift;
        mask |= last << digit[d].shift;
    }
    cut c = {.key = prefix};
    for (int64_t i = 0; i < n && above < want; i++) {
        if (order_key(logit[i]) == prefix) {
            above += w != NULL ? (double)w[i] : 1.0;
            c.n_equal++;
        }
    }
    return c;
}

static void apply_cut(nb_sampler *s, cut c, bool with_weights)
{
    int64_t kept = 0;
    for (int64_t i = 0; i < s->n_kept; i++) {
        const uint32_t key = order_key(s->logit[i]);
        if (key < c.key || (key == c.key && c.n_equal-- <= 0))
            continue;
        s->id[kept] = s->id[i];
        s->logit[kept] = s->logit[i];
        if (with_weights)
            s->weight[kept] = s->weight[i];
        kept++;
    }
    s->n_kept = kept;
}

static double total_weight(const nb_sampler *s)
{
    double total = 0;
    for (int64_t i = 0; i < s->n_kept; i++)
        total += (double)s->weight[i];
    return total;
}

/* ---- filters, in order ---- */

static void filter_top_k(nb_sampler *s, int64_t k)
{
    if (k > 0 && k < s->n_kept)
        apply_cut(s, find_cut(s->logit, NULL, s->n_kept, (double)k), false);
}

/* weight = exp((logit - max) / temperature); the largest is exactly 1. */
static void weigh(nb_sampler *s, float max, double temperature)
{
    const double inverse = 1 / temperature;
    for (int64_t i = 0; i < s->n_kept; i++)
        s->weight[i] = (float)((double)(s->logit[i] - max) * inverse);
    s->kernels->exp(s->weight, s->weight, s->n_kept);
}

static void filter_top_p(nb_sampler *s, double p)
{
    if (p > 0 && p < 1)
        apply_cut(s, find_cut(s->logit, s->weight, s->n_kept, p * total_weight(s)), true);
}

static void filter_min_p(nb_sampler *s, double p)
{
    int64_t kept = 0;
    for (int64_t i = 0; i < s->n_kept; i++) {
        if ((double)s->weight[i] < p)
            continue;
        s->id[kept] = s->id[i];
        s->weight[kept++] = s->weight[i];
    }
    s->n_kept = kept;
}

static int32_t draw(const nb_sampler *s, double uniform)
{
    const double target = uniform * total_weight(s);
    double sum = 0;
    int64_t last = 0;
    for (int64_t i = 0; i < s->n_kept; i++) {
        sum += (double)s->weight[i];
        if (sum > target)
            return s->id[i];
        if (s->weight[i] > 0)
            last = i;
    }
    return s->id[last]; /* the product above was rounded up to the whole */
}

static nb_status sample(nb_sampler *s, const nb_sampling *how, const nb_allowed *allowed,
                        const float *logits, int64_t position, int32_t *id, nb_err *err)
{
    int64_t best;
    NB_TRY(take_row(s, how, allowed, logits, &best, err));
    if (how->temperature == 0) {
        *id = (int32_t)best;
        return NB_OK;
    }
    const float max = s->logit[best];
    s->n_kept = s->n;
    for (int64_t i = 0; i < s->n; i++)
        s->id[i] = (int32_t)i;
    filter_top_k(s, how->top_k);
    weigh(s, max, how->temperature);
    filter_top_p(s, how->top_p);
    if (how->min_p > 0)
        filter_min_p(s, how->min_p);
    *id = draw(s, nb_rng_uniform(how->seed, how->choice, (uint64_t)position));
    return NB_OK;
}

nb_status nb_sample_among(nb_sampler *s, const nb_sampling *how, const nb_allowed *allowed,
                          const float *logits, int64_t position, int32_t *id, nb_err *err)
{
    assert(position >= 0);
    const uint64_t env = nb_fpenv_enter();
    const nb_status status = sample(s, how, allowed, logits, position, id, err);
    nb_fpenv_leave(env);
    return status;
}

nb_status nb_sample(nb_sampler *s, const nb_sampling *how, const float *logits, int64_t position,
                    int32_t *id, nb_err *err)
{
    return nb_sample_among(s, how, &(nb_allowed){0}, logits, position, id, err);
}

/* ---- what the model thought ---- */

/* Puts a token among the `n` likeliest of top[0, k), which are sorted; ids come in rising order. */
static void insert_top(nb_logprob *top, int n, nb_logprob t)
{
    int at = n;
    for (; at > 0 && top[at - 1].logprob < t.logprob; at--)
        top[at] = top[at - 1];
    top[at] = t;
}

/* The k largest logits, k <= s->n: a cut by radix, and then only those are sorted. */
static void find_top(const nb_sampler *s, const float *logits, int k, nb_logprob *top)
{
    cut c = find_cut(logits, NULL, s->n, (double)k);
    int n = 0;
    for (int64_t i = 0; i < s->n && n < k; i++) {
        const uint32_t key = order_key(logits[i]);
        if (key < c.key || (key == c.key && c.n_equal-- <= 0))
            continue;
        insert_top(top, n++, (nb_logprob){(int32_t)i, logits[i]});
    }
}

static void fill_logprobs(nb_sampler *s, const float *logits, int32_t chosen, int n_top,
                          nb_logprob *out)
{
    float max = -INFINITY;
    for (int64_t i = 0; i < s->n; i++)
        max = logits[i] > max ? logits[i] : max;
    for (int64_t i = 0; i < s->n; i++)
        s->weight[i] = logits[i] - max;
    s->kernels->exp(s->weight, s->weight, s->n);
    double total = 0;
    for (int64_t i = 0; i < s->n; i++)
        total += (double)s->weight[i];
    const int found = n_top < s->n ? n_top : (int)s->n;
    out[0] = (nb_logprob){chosen, logits[chosen]};
    if (found > 0)
        find_top(s, logits, found, out + 1);
    const double log_total = nb_log64(total);
    for (int i = 0; i <= found; i++)
        out[i].logprob = (float)((double)out[i].logprob - (double)max - log_total);
    for (int i = found + 1; i <= n_top; i++)
        out[i] = (nb_logprob){-1, -INFINITY};
}

void nb_logprobs(nb_sampler *s, const float *logits, int32_t chosen, int n_top, nb_logprob *out)
{
    assert(chosen >= 0 && chosen < s->n && n_top >= 0 && n_top <= NB_MAX_LOGPROBS);
    const uint64_t env = nb_fpenv_enter();
    fill_logprobs(s, logits, chosen, n_top, out);
    nb_fpenv_leave(env);
}
