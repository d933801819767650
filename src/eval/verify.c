/* See verify.h. */
#include "eval/verify.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

/* ---- which ways ---- */

static const struct {
    int64_t cut;
    bool decode;
} cuts[] = {{0, false}, {64, false}, {7, false}, {1, false}, {1, true}};
static const int batches[] = {1, 2, 7, 32};
enum { N_CUTS = sizeof cuts / sizeof *cuts, N_BATCHES = sizeof batches / sizeof *batches };

typedef struct {
    const nb_verify_plan *plan;
    const nb_verify_isa *isa;
    nb_way *out;
    int n;
} listing;

static void add(listing *l, int64_t cut, int64_t batch, int64_t threads, bool flush)
{
    const int64_t n = l->isa->n_tokens;
    const bool single = cuts[cut].cut == 1 && !l->plan->full && n > NB_VERIFY_STEPS;
    assert(l->n < NB_VERIFY_MAX_WAYS);
    if (l->out != NULL)
        l->out[l->n] = (nb_way){.isa = l->isa->name,
                                .mask = l->isa->mask,
                                .threads = l->plan->threads[threads % l->plan->n_threads],
                                .lead = single ? n - NB_VERIFY_STEPS : 0,
                                .cut = cuts[cut].cut,
                                .decode = cuts[cut].decode,
                                .batch = batches[batch % N_BATCHES],
                                .flush = flush};
    l->n++;
}

int nb_verify_ways(const nb_verify_plan *plan, int isa, int64_t cell, bool in_depth, nb_way *out)
{
    listing l = {.plan = plan, .isa = &plan->isas[isa], .out = out};
    const bool slow = l.isa->slow && !plan->full;
    if (isa == 0)
        add(&l, 0, 0, 0, false); /* what all are compared with */
    if (plan->full) {
        for (int64_t i = 0; i < (int64_t)N_CUTS * N_BATCHES * plan->n_threads; i++)
            add(&l, i / N_BATCHES % N_CUTS, i % N_BATCHES, i / N_BATCHES / N_CUTS, false);
    } else if (slow && plan->n_isas > 1) { /* another way in each cell, never beside many */
        add(&l, cell % N_CUTS, cell % 2, cell / 2 + 1, false);
    } else if (in_depth && !slow) { /* a Latin square: every pair of two axes' values */
        for (int64_t i = 0; i < N_CUTS * N_BATCHES; i++)
            add(&l, i / N_BATCHES, i % N_BATCHES, i / N_BATCHES + i % N_BATCHES, false);
    } else { /* every value of every axis, but not beside many where it is slow */
        for (int64_t i = 0; i < N_CUTS; i++)
            add(&l, i, (i + cell) % (slow ? 2 : N_BATCHES), i + 2 * cell + 1, false);
    }
    if (isa == 0)
        add(&l, 0, 0, 1, true);
    return l.n;
}

/* ---- where two ways part ---- */

/* A way on a model. */
typedef struct {
    nb_way way;
    nb_way_job job;
} side;

static bool same_logits(const uint64_t *a, const uint64_t *b, int64_t n, int64_t *token)
{
    for (*token = 0; *token < n; ++*token) {
        if (a[*token] != b[*token])
            return false;
    }
    return true;
}

/* Gives sides[1] each axis' value of sides[0] where they differ all the same. `want` are the hashes
 * of sides[0], `got` has room for those of sides[1]. */
static nb_status narrow(side sides[2], const uint64_t *want, uint64_t *got, nb_err *err)
{
    enum { N_AXES = 5 };
    for (int axis = 0; axis < N_AXES; axis++) {
        const nb_way *a = &sides[0].way;
        const nb_way b = sides[1].way;
        nb_way try = b;
        switch (axis) {
        case 0:
            try.flush = a->flush;
            break;
        case 1:
            try.batch = a->batch;
            break;
        case 2:
            try.lead = a->lead;
            try.cut = a->cut;
            try.decode = a->decode;
            break;
        case 3:
            try.threads = a->threads;
            break;
        default:
            try.isa = a->isa;
            try.mask = a->mask;
            break;
        }
        const bool same = try.flush == b.flush && try.batch == b.batch && try.lead == b.lead &&
                          try.cut == b.cut && try.decode == b.decode && try.threads == b.threads &&
                          try.mask == b.mask;
        if (same)
            continue;
        int64_t token;
        NB_TRY(nb_way_run(&try, &sides[1].job, NULL, got, err));
        if (!same_logits(want, got, sides[1].job.n_tokens, &token))
            sides[1].way = try;
    }
    return NB_OK;
}

/* Runs both sides once more with each operation observed. hash [2][n]: room for their hashes. */
static nb_status locate(const side sides[2], uint64_t *const hash[2], nb_difference *d, nb_err *err)
{
    const int64_t n = sides[1].job.n_tokens;
    nb_probe probes[2] = {{0}, {0}};
    nb_status s = NB_OK;
    for (int i = 0; s == NB_OK && i < 2; i++)
        s = nb_way_run(&sides[i].way, &sides[i].job, &probes[i], hash[i], err);
    if (s == NB_OK) {
        int64_t token;
        if (nb_probe_part(&probes[0], &probes[1], n, &d->place)) {
            d->found = true;
            d->token = d->place.token;
        } else if (!same_logits(hash[0], hash[1], n, &token)) {
            d->found = d->in_logits = true;
            d->token = token;
        }
    }
    for (int i = 0; i < 2; i++)
        nb_probe_free(&probes[i]);
    return s;
}

nb_place_text nb_difference_place(const nb_difference *d)
{
    nb_place_text out;
    const long long token = (long long)d->token;
    if (d->in_logits)
        snprintf(out.text, sizeof out.text, "logits, token %lld", token);
    else if (d->found)
        snprintf(out.text, sizeof out.text, "layer %lld, %s, token %lld", (long long)d->place.layer,
                 nb_op_name(d->place.op), token);
    else
        snprintf(out.text, sizeof out.text,
                 "token %lld (but not again when the operations were observed)", token);
    return out;
}

/* ---- a cell ---- */

/* Runs `way`; fills out->difference if its logits are not `want`. */
static nb_status check(const nb_way *reference, const nb_way_job *job, const nb_way *way,
                       int64_t n_tokens, uint64_t *want, uint64_t *got, nb_verify_result *out,
                       nb_err *err)
{
    side sides[2] = {{*reference, *job}, {*way, *job}};
    sides[1].job.n_tokens = n_tokens;
    nb_difference d = {.differ = true};
    NB_TRY(nb_way_run(way, &sides[1].job, NULL, got, err));
    if (same_logits(want, got, n_tokens, &d.token))
        return NB_OK;
    NB_TRY(narrow(sides, want, got, err));
    NB_TRY(locate(sides, (uint64_t *const[]){want, got}, &d, err));
    d.ways[0] = sides[0].way;
    d.ways[1] = sides[1].way;
    out->difference = d;
    return NB_OK;
}

static nb_status run_cell(const nb_verify_plan *plan, const nb_way_job *job, int64_t cell,
                          bool in_depth, bool (*on_way)(void *context), void *context, nb_way *ways,
                          uint64_t *want, uint64_t *got, nb_verify_result *out, nb_err *err)
{
    nb_way reference;
    for (int i = 0; i < plan->n_isas; i++) {
        const int64_t n = plan->isas[i].n_tokens;
        assert(n <= job->n_tokens);
        const int n_ways = nb_verify_ways(plan, i, cell, in_depth, ways);
        for (int k = 0; k < n_ways; k++) {
            if (i == 0 && k == 0) {
                reference = ways[0];
                NB_TRY(nb_way_run(&reference, job, NULL, want, err));
                for (int64_t t = 0; t < job->n_tokens; t++)
                    out->hash ^= want[t];
            } else {
                NB_TRY(check(&reference, job, &ways[k], n, want, got, out, err));
            }
            out->n_ways[i]++;
            if (out->difference.differ)
                return NB_OK;
            if (on_way != NULL && !on_way(context))
                return nb_fail(err, NB_INTERRUPTED, "interrupted");
        }
    }
    return NB_OK;
}

nb_status nb_verify_cell(const nb_verify_plan *plan, const nb_way_job *job, int64_t cell,
                         bool in_depth, bool (*on_way)(void *context), void *context,
                         nb_verify_result *out, nb_err *err)
{
    assert(plan->n_isas > 0 && plan->n_isas <= NB_VERIFY_MAX_ISAS);
    assert(plan->n_threads > 0 && plan->n_threads <= NB_VERIFY_MAX_THREADS);
    nb_way *ways = NULL;
    uint64_t *hash = NULL;
    nb_verify_result result = {0};
    nb_status s = NB_ALLOC(&ways, NB_VERIFY_MAX_WAYS, err);
    if (s == NB_OK)
        s = NB_ALLOC(&hash, 2 * job->n_tokens, err);
    if (s == NB_OK)
        s = run_cell(plan, job, cell, in_depth, on_way, context, ways, hash, hash + job->n_tokens,
                     &result, err);
    nb_free(ways);
    nb_free(hash);
    if (s == NB_OK)
        *out = result;
    return s;
}

/* ---- two models ---- */

nb_status nb_verify_pair(const nb_way *way, const nb_way_job jobs[2], uint64_t hash[2],
                         nb_difference *out, nb_err *err)
{
    const nb_config *a = &jobs[0].model->config, *b = &jobs[1].model->config;
    const int64_t n = jobs[0].n_tokens;
    assert(jobs[1].n_tokens == n);
    if (a->n_layers != b->n_layers || a->d_model != b->d_model || a->vocab_size != b->vocab_size)
        return nb_fail(err, NB_DATA,
                       "%lld layers, %lld wide, of %lld tokens, and the other has %lld, %lld, %lld",
                       (long long)a->n_layers, (long long)a->d_model, (long long)a->vocab_size,
                       (long long)b->n_layers, (long long)b->d_model, (long long)b->vocab_size);
    const side sides[2] = {{*way, jobs[0]}, {*way, jobs[1]}};
    uint64_t *rows;
    NB_TRY(NB_ALLOC(&rows, 2 * n, err));
    nb_difference d = {.ways = {*way, *way}};
    nb_status s = NB_OK;
    for (int i = 0; s == NB_OK && i < 2; i++)
        s = nb_way_run(way, &jobs[i], NULL, rows + i * n, err);
    if (s == NB_OK) {
        for (int i = 0; i < 2; i++) {
            hash[i] = 0;
            for (int64_t t = 0; t < n; t++)
                hash[i] ^= rows[i * n + t];
        }
        d.differ = !same_logits(rows, rows + n, n, &d.token);
        if (d.differ)
            s = locate(sides, (uint64_t *const[]){rows, rows + n}, &d, err);
    }
    nb_free(rows);
    if (s == NB_OK)
        *out = d;
    return s;
}
