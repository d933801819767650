/* See calib/score.h. */
#include "quant/calib/score.h"

#include "kernel/math.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define RUN      8
#define MAX_RUNS ((int64_t)1 << 20) /* that are remembered */

/* Past these, a set deserves a word. 262,144 tokens of web text, an encyclopedia and source code,
 * in a vocabulary of 49,152, have 5, 4 and 3 % unseen and 5, 10 and 25 % repeated; of 32,768 tokens
 * of web text, 22 % are unseen. */
#define FEW_TOKENS    65536
#define MUCH_UNSEEN   0.1
#define MUCH_REPEATED 0.4
#define MUCH_ONE      0.25

static void say(nb_calib_score *s, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void say(nb_calib_score *s, const char *format, ...)
{
    if (s->n_words == NB_CALIB_MAX_WORDS)
        return;
    va_list args;
    va_start(args, format);
    vsnprintf(s->words[s->n_words++], sizeof s->words[0], format, args);
    va_end(args);
}

/* ---- counts of ids ---- */

typedef struct {
    int64_t *chosen, *held; /* [n_ids] */
    int64_t n_ids;
} counts;

static nb_status count_ids(counts *c, const nb_calib_set *set, const nb_calib_set *other,
                           nb_calib_score *out, nb_err *err)
{
    NB_TRY(NB_ALLOC(&c->chosen, c->n_ids, err));
    NB_TRY(NB_ALLOC(&c->held, c->n_ids, err));
    const nb_calib_set *sets[] = {set, other};
    for (int k = 0; k < 2; k++) {
        for (int64_t i = 0; sets[k] != NULL && i < sets[k]->n; i++) {
            const nb_calib_seq *seq = &sets[k]->seq[i];
            const bool chooses = k == 0 && !seq->held;
            if (k == 0 && seq->held && other != NULL)
                continue;
            *(chooses ? &out->n_tokens : &out->n_held) += seq->n;
            for (int64_t t = 0; t < seq->n; t++)
                (chooses ? c->chosen : c->held)[seq->ids[t]]++;
        }
    }
    return NB_OK;
}

static void compare_ids(const counts *c, nb_calib_score *out)
{
    const double half = 0.5 * (double)out->vocab_size;
    int64_t most = 0, n_unseen = 0;
    double kl = 0;
    for (int64_t id = 0; id < c->n_ids; id++) {
        out->n_distinct += c->chosen[id] > 0;
        if (c->chosen[id] > most) {
            most = c->chosen[id];
            out->most_common_id = (int32_t)id;
        }
        if (c->chosen[id] == 0)
            n_unseen += c->held[id];
        const double q = ((double)c->held[id] + 0.5) / ((double)out->n_held + half);
        const double p = ((double)c->chosen[id] + 0.5) / ((double)out->n_tokens + half);
        kl += q * nb_log64(q / p);
    }
    out->most_common = out->n_tokens > 0 ? (double)most / (double)out->n_tokens : (double)NAN;
    out->unseen = out->n_held > 0 ? (double)n_unseen / (double)out->n_held : (double)NAN;
    out->unigram_kl = out->n_held > 0 && out->n_tokens > 0 ? kl : (double)NAN;
}

/* The share of bytes that are not ASCII, over all tokens of the set. */
static nb_status look_at_scripts(const nb_calib_set *set, const nb_tokenizer *tokenizer,
                                 int64_t n_ids, nb_calib_score *out, nb_err *err)
{
    int64_t n_bytes = 0, n_other = 0, *all;
    NB_TRY(NB_ALLOC(&all, n_ids, err));
    for (int64_t i = 0; i < set->n; i++)
        for (int64_t t = 0; t < set->seq[i].n; t++)
            all[set->seq[i].ids[t]]++;
    for (int64_t id = 0; id < n_ids; id++) {
        const char *bytes;
        size_t len;
        nb_err ignored; /* an id may be padding of the embedding */
        if (all[id] == 0 ||
            nb_tokenizer_token(tokenizer, (int32_t)id, &bytes, &len, &ignored) != NB_OK)
            continue;
        int64_t other = 0;
        for (size_t k = 0; k < len; k++)
            other += (unsigned char)bytes[k] >= 0x80;
        n_bytes += all[id] * (int64_t)len;
        n_other += all[id] * other;
    }
    nb_free(all);
    out->other_script = n_bytes > 0 ? (double)n_other / (double)n_bytes : (double)NAN;
    return NB_OK;
}

/* ---- runs ---- */

static uint64_t mix(uint64_t h)
{
    h = (h ^ h >> 32) * UINT64_C(0xd6e8feb86659fd93);
    h = (h ^ h >> 32) * UINT64_C(0xd6e8feb86659fd93);
    return h ^ h >> 32;
}

static uint64_t hash_run(const int32_t *ids)
{
    uint64_t h = 0;
    for (int i = 0; i < RUN; i++)
        h = mix(h ^ (uint64_t)(uint32_t)ids[i]);
    return h == 0 ? 1 : h; /* 0 is an empty place of the table */
}

/* Which runs are looked at is decided by their hash, so all occurrences of one are, or none. */
static nb_status count_runs(const nb_calib_set *set, nb_calib_score *out, nb_err *err)
{
    int64_t n_runs = 0, n_seen = 0, n_repeated = 0;
    for (int64_t i = 0; i < set->n; i++)
        if (!set->seq[i].held && set->seq[i].n >= RUN)
            n_runs += set->seq[i].n - RUN + 1;
    uint64_t every = 1, size = 1024;
    while ((int64_t)(every * MAX_RUNS) < n_runs)
        every *= 2;
    while ((int64_t)size < 2 * (n_runs / (int64_t)every))
        size *= 2;
    uint64_t *table;
    NB_TRY(NB_ALLOC(&table, size, err));
    for (int64_t i = 0; i < set->n; i++) {
        const nb_calib_seq *seq = &set->seq[i];
        for (int64_t t = 0; !seq->held && t + RUN <= seq->n; t++) {
            const uint64_t h = hash_run(seq->ids + t);
            if ((h >> 40) % every != 0)
                continue;
            uint64_t at = h & (size - 1);
            while (table[at] != 0 && table[at] != h)
                at = (at + 1) & (size - 1);
            n_repeated += table[at] == h;
            n_seen++;
            /* A full table would never end the search above. Distinct runs are at most as many as
             * were seen, and `every` makes that about MAX_RUNS; past half, nothing new is kept. */
            if (table[at] == 0 && (uint64_t)(n_seen - n_repeated) < size / 2)
                table[at] = h;
        }
    }
    nb_free(table);
    out->repeated = n_seen > 0 ? (double)n_repeated / (double)n_seen : (double)NAN;
    return NB_OK;
}

/* ---- words ---- */

static void write_words(const nb_calib_set *set, nb_calib_score *s)
{
    if (s->most_common > MUCH_ONE)
        say(s, "one token, id %d, makes up %.0f %% of the set", s->most_common_id,
            100 * s->most_common);
    if (s->n_tokens < FEW_TOKENS)
        say(s, "too few tokens: %lld; %d or more are usual", (long long)s->n_tokens, FEW_TOKENS);
    if (s->repeated > MUCH_REPEATED)
        say(s, "%.0f %% of all runs of %d tokens repeat an earlier one", 100 * s->repeated, RUN);
    if (s->unseen > MUCH_UNSEEN)
        say(s,
            "%.1f %% of held-out tokens are not in the part that chooses: more text, or more even",
            100 * s->unseen);
    if (s->n_held == 0)
        say(s, "no tokens are held out: choices cannot be judged on text that did not make them");
    if (set->n > 0 && !set->packed && set->n_tokens < set->n * set->length / 4)
        say(s, "sequences have %lld tokens on average of %lld asked for; packing would fill them",
            (long long)(set->n_tokens / set->n), (long long)set->length);
}

nb_status nb_calib_score_set(nb_calib_score *out, const nb_calib_set *set,
                             const nb_calib_set *other, const nb_tokenizer *tokenizer, nb_err *err)
{
    nb_calib_score s = {.vocab_size = tokenizer != NULL ? nb_tokenizer_n_tokens(tokenizer) : 0,
                        .longest_document = set->longest};
    counts c = {.n_ids = s.vocab_size};
    const nb_calib_set *sets[] = {set, other};
    for (int k = 0; k < 2; k++)
        for (int64_t i = 0; sets[k] != NULL && i < sets[k]->ids.n; i++)
            if (sets[k]->ids.ids[i] >= c.n_ids) /* rows of the embedding without a token */
                c.n_ids = (int64_t)sets[k]->ids.ids[i] + 1;
    s.vocab_size = c.n_ids;
    nb_status status = count_ids(&c, set, other, &s, err);
    if (status == NB_OK) {
        compare_ids(&c, &s);
        if (tokenizer != NULL)
            status = look_at_scripts(set, tokenizer, c.n_ids, &s, err);
    }
    if (status == NB_OK)
        status = count_runs(set, &s, err);
    nb_free(c.chosen);
    nb_free(c.held);
    if (status != NB_OK)
        return status;
    if (tokenizer == NULL)
        s.vocab_size = 0; /* not known */
    write_words(set, &s);
    *out = s;
    return NB_OK;
}

/* ---- activations ---- */

typedef struct {
    double sum;
    int64_t n, n_one_sided;
} ratios;

static void add_ratio(ratios *r, double a, double b)
{
    if ((a > 0) != (b > 0)) {
        r->n_one_sided++;
        return;
    }
    r->n++;
    if (a > 0)
        r->sum += fabs(nb_log64(a / b));
}

static nb_calib_coverage finish_ratios(const ratios *r)
{
    return (nb_calib_coverage){.log_ratio = r->n > 0 ? r->sum / (double)r->n : (double)NAN,
                               .moments = (double)NAN,
                               .n_one_sided = r->n_one_sided};
}

nb_calib_coverage nb_calib_coverage_of_squares(const double *a, int64_t n_a, const double *b,
                                               int64_t n_b, int64_t n)
{
    ratios r = {0};
    for (int64_t i = 0; i < n; i++)
        add_ratio(&r, a[i] / (double)n_a, b[i] / (double)n_b);
    return finish_ratios(&r);
}

nb_calib_coverage nb_calib_coverage_of_moments(const nb_sym *a, int64_t n_a, const nb_sym *b,
                                               int64_t n_b)
{
    ratios r = {0};
    const int64_t n = a->n;
    double trace_a = 0, trace_b = 0, difference = 0, size = 0;
    for (int64_t i = 0; i < n; i++) {
        const double x = nb_sym_row(a, i)[i], y = nb_sym_row(b, i)[i];
        add_ratio(&r, x / (double)n_a, y / (double)n_b);
        trace_a += x;
        trace_b += y;
    }
    nb_calib_coverage out = finish_ratios(&r);
    if (!(trace_a > 0) || !(trace_b > 0))
        return out;
    for (int64_t i = 0; i < n; i++) {
        const double *x = nb_sym_row(a, i), *y = nb_sym_row(b, i);
        for (int64_t j = i; j < n; j++) {
            const double u = x[j] / trace_a, v = y[j] / trace_b, weight = i == j ? 1 : 2;
            difference += weight * ((u - v) * (u - v));
            size += weight * (v * v);
        }
    }
    out.moments = sqrt(difference / size);
    return out;
}
