/* See mixture.h. */
#include "quant/mix/mixture.h"

#include "quant/plan/bytes.h"

#include <stdio.h>
#include <string.h>

static nb_status init(nb_mixture *m, nb_err *err)
{
    const nb_sensitivity *t = m->table;
    NB_TRY(NB_ARENA_ALLOC(&m->arena, &m->items, t->n_linears, err));
    NB_TRY(NB_ARENA_ALLOC(&m->arena, &m->candidate, t->n_linears, err));
    NB_TRY(NB_ARENA_ALLOC(&m->arena, &m->picked, t->n_linears, err));
    for (int64_t i = 0; i < t->n_linears; i++) {
        nb_choice *choices;
        int *candidates, n = 0;
        NB_TRY(NB_ARENA_ALLOC(&m->arena, &choices, t->n_candidates, err));
        NB_TRY(NB_ARENA_ALLOC(&m->arena, &candidates, t->n_candidates, err));
        for (int c = 0; c < t->n_candidates; c++) {
            const int64_t at = nb_sensitivity_at(t, i, c);
            if (t->to[at] == NULL)
                continue;
            candidates[n] = c;
            choices[n++] = (nb_choice){nb_weight_payload(t->to[at]), t->kl[at]};
        }
        m->items[i] = (nb_item){choices, n};
        m->candidate[i] = candidates;
    }
    return NB_OK;
}

nb_status nb_mixture_init(nb_mixture *m, const nb_sensitivity *table, nb_err *err)
{
    *m = (nb_mixture){.table = table};
    const nb_status s = init(m, err);
    if (s != NB_OK)
        nb_mixture_free(m);
    return s;
}

void nb_mixture_free(nb_mixture *m)
{
    nb_arena_free(&m->arena);
    *m = (nb_mixture){0};
}

/* ---- choosing ---- */

nb_status nb_mixture_by_bytes(nb_mixture *m, int64_t bytes, nb_err *err)
{
    return nb_allocate_bytes(m->items, m->table->n_linears, bytes, m->picked, err);
}

nb_status nb_mixture_by_kl(nb_mixture *m, double kl, nb_err *err)
{
    return nb_allocate_loss(m->items, m->table->n_linears, kl, m->picked, err);
}

void nb_mixture_all(nb_mixture *m, int candidate)
{
    for (int64_t i = 0; i < m->table->n_linears; i++) {
        for (int k = 0; k < m->items[i].n; k++) {
            if (m->candidate[i][k] == candidate)
                m->picked[i] = k;
        }
    }
}

int nb_mixture_of(const nb_mixture *m, int64_t linear)
{
    return m->candidate[linear][m->picked[linear]];
}

int64_t nb_mixture_bytes(const nb_mixture *m)
{
    return nb_allocated_bytes(m->items, m->table->n_linears, m->picked);
}

static double bpw_of(const nb_mixture *m, int64_t bytes)
{
    return 8.0 * (double)bytes / (double)m->table->n_params;
}

double nb_mixture_bpw(const nb_mixture *m)
{
    return bpw_of(m, nb_mixture_bytes(m));
}

double nb_mixture_kl(const nb_mixture *m)
{
    return nb_allocated_loss(m->items, m->table->n_linears, m->picked);
}

int64_t nb_mixture_uniform_bytes(const nb_mixture *m, int candidate)
{
    int64_t sum = 0;
    for (int64_t i = 0; i < m->table->n_linears; i++) {
        const nb_weight *to = m->table->to[nb_sensitivity_at(m->table, i, candidate)];
        sum += to != NULL ? nb_weight_payload(to) : 0;
    }
    return sum;
}

int nb_mixture_uniform(const nb_mixture *m, int64_t bytes)
{
    const nb_sensitivity *t = m->table;
    int best = -1;
    int64_t best_bytes = -1;
    for (int c = 0; c < t->n_candidates; c++) {
        int64_t sum = 0;
        bool fits = true;
        for (int64_t i = 0; i < t->n_linears && fits; i++) {
            const nb_weight *to = t->to[nb_sensitivity_at(t, i, c)];
            fits = to != NULL;
            sum += fits ? nb_weight_payload(to) : 0;
        }
        if (fits && sum <= bytes && sum > best_bytes) {
            best = c;
            best_bytes = sum;
        }
    }
    return best;
}

/* ---- writing down ---- */

/* What it costs, and what the next smaller choice would have cost: the reason for not taking it. */
static void reason_of(const nb_mixture *m, int64_t i, char *out, size_t size)
{
    const nb_item *item = &m->items[i];
    const nb_choice *mine = &item->choice[m->picked[i]];
    int below = -1;
    for (int k = 0; k < item->n; k++) {
        const nb_choice *c = &item->choice[k];
        if (c->bytes < mine->bytes && (below < 0 || c->bytes > item->choice[below].bytes))
            below = k;
    }
    const int n = snprintf(out, size, "KL +%.2g", mine->loss);
    if (below >= 0)
        snprintf(out + n, size - (size_t)n, "; +%.2g as %s", item->choice[below].loss,
                 m->table->scheme[m->candidate[i][below]].name);
}

nb_status nb_mixture_recipe(const nb_mixture *m, const nb_method *method, nb_recipe *out,
                            nb_err *err)
{
    for (int64_t i = 0; i < m->table->n_linears; i++) {
        const char *whole = m->table->from[i]->name;
        char name[128], reason[160];
        snprintf(name, sizeof name, "%.*s", (int)(strlen(whole) - strlen(".weight")), whole);
        reason_of(m, i, reason, sizeof reason);
        NB_TRY(
            nb_recipe_add(out, name, &m->table->scheme[nb_mixture_of(m, i)], method, reason, err));
    }
    return NB_OK;
}

nb_status nb_mixture_measure(const nb_mixture *m, nb_swapped *s, double *kl, nb_err *err)
{
    const nb_sensitivity *t = m->table;
    nb_status status = NB_OK;
    for (int64_t i = 0; i < t->n_linears && status == NB_OK; i++)
        status =
            nb_swapped_set(s, i / NB_N_LINEARS, (nb_linear_id)(i % NB_N_LINEARS),
                           t->to[nb_sensitivity_at(t, i, nb_mixture_of(m, i))], &t->method, err);
    if (status == NB_OK)
        status = nb_swapped_kl(s, 0, kl, err);
    nb_swapped_restore_all(s);
    return status;
}
