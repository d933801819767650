/* See allocate.h. A knapsack with one choice an item, by dynamic programming over the bytes above
 * the least: best[b] is the least loss of the items so far with b units to spend. */
#include "quant/mix/allocate.h"

#include "base/alloc.h"

#include <assert.h>
#include <math.h>
#include <string.h>

/* Bytes of the table of picks: what it costs to know all ways back. */
#define MAX_CELLS ((int64_t)64 << 20)
/* States that are enough to tell a hundred-thousandth of the range apart. */
#define MAX_STATES ((int64_t)1 << 20)

/* An item's choices that no other one beats: by bytes ascending, losses strictly falling. */
typedef struct {
    int n;
    int of[NB_ALLOCATE_MAX_CHOICES]; /* indices of the item's choices */
} front;

typedef struct {
    const nb_item *items;
    int64_t n;
    front *fronts;
    int64_t least_bytes, most_bytes; /* sums over the fronts' ends */
    int64_t unit, n_states;
    double *best; /* [n_states] */
    uint8_t *way; /* [n][n_states]: which of its front an item takes */
} solver;

static void make_front(const nb_item *item, front *f)
{
    bool used[NB_ALLOCATE_MAX_CHOICES] = {0};
    assert(item->n >= 1 && item->n <= NB_ALLOCATE_MAX_CHOICES);
    f->n = 0;
    for (int round = 0; round < item->n; round++) {
        int next = -1;
        for (int i = 0; i < item->n; i++) {
            const nb_choice *c = &item->choice[i], *b = next < 0 ? NULL : &item->choice[next];
            if (!used[i] &&
                (b == NULL || c->bytes < b->bytes || (c->bytes == b->bytes && c->loss < b->loss)))
                next = i;
        }
        used[next] = true;
        if (f->n == 0 || item->choice[next].loss < item->choice[f->of[f->n - 1]].loss)
            f->of[f->n++] = next;
    }
}

static const nb_choice *at(const solver *s, int64_t i, int k)
{
    return &s->items[i].choice[s->fronts[i].of[k]];
}

static int64_t extra(const solver *s, int64_t i, int k)
{
    return at(s, i, k)->bytes - at(s, i, 0)->bytes;
}

static int64_t gcd(int64_t a, int64_t b)
{
    while (b != 0) {
        const int64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

/* Rounded up, so that what is planned with fits. */
static int64_t units(const solver *s, int64_t i, int k)
{
    return (extra(s, i, k) + s->unit - 1) / s->unit;
}

/* Chooses the unit for a room of `range` bytes above the least. */
static void choose_unit(solver *s, int64_t range)
{
    int64_t most = MAX_CELLS / (s->n > 0 ? s->n : 1);
    most = most < MAX_STATES ? most : MAX_STATES;
    most = most > 16 ? most : 16;
    s->unit = 0;
    for (int64_t i = 0; i < s->n; i++) {
        for (int k = 1; k < s->fronts[i].n; k++)
            s->unit = gcd(extra(s, i, k), s->unit);
    }
    s->unit = s->unit > 0 ? s->unit : 1;
    if (range / s->unit >= most)
        s->unit = range / most + 1;
    s->n_states = range / s->unit + 1;
}

static nb_status prepare(solver *s, nb_err *err)
{
    NB_TRY(NB_ALLOC(&s->fronts, s->n, err));
    for (int64_t i = 0; i < s->n; i++) {
        make_front(&s->items[i], &s->fronts[i]);
        s->least_bytes += at(s, i, 0)->bytes;
        s->most_bytes += at(s, i, s->fronts[i].n - 1)->bytes;
    }
    return NB_OK;
}

/* Fills best and way. In place: an item's states are gone through from the richest down, and each
 * looks at poorer ones only. */
static nb_status sweep(solver *s, nb_err *err)
{
    NB_TRY(NB_ALLOC(&s->best, s->n_states, err));
    NB_TRY(nb_alloc((void **)&s->way, (size_t)(s->n > 0 ? s->n : 1), (size_t)s->n_states, err));
    for (int64_t i = 0; i < s->n; i++) {
        uint8_t *way = s->way + i * s->n_states;
        int64_t more[NB_ALLOCATE_MAX_CHOICES];
        double losses[NB_ALLOCATE_MAX_CHOICES];
        const int n = s->fronts[i].n;
        for (int k = 0; k < n; k++) {
            more[k] = units(s, i, k);
            losses[k] = at(s, i, k)->loss;
        }
        for (int64_t b = s->n_states - 1; b >= 0; b--) {
            double least = s->best[b] + losses[0];
            for (int k = 1; k < n && more[k] <= b; k++) {
                const double loss = s->best[b - more[k]] + losses[k];
                if (loss < least) {
                    least = loss;
                    way[b] = (uint8_t)k;
                }
            }
            s->best[b] = least;
        }
    }
    return NB_OK;
}

/* The front positions that lead to state b. */
static void trace(const solver *s, int64_t b, int *picked)
{
    for (int64_t i = s->n - 1; i >= 0; i--) {
        picked[i] = s->way[i * s->n_states + b];
        b -= units(s, i, picked[i]);
    }
}

/* Spends what rounding has left: always the step that takes most loss away. */
static void fill(const solver *s, int64_t left, int *picked)
{
    for (;;) {
        int64_t best_item = -1;
        int best_k = 0;
        double best_gain = 0;
        for (int64_t i = 0; i < s->n; i++) {
            for (int k = picked[i] + 1; k < s->fronts[i].n; k++) {
                const double gain = at(s, i, picked[i])->loss - at(s, i, k)->loss;
                if (extra(s, i, k) - extra(s, i, picked[i]) <= left && gain > best_gain) {
                    best_item = i;
                    best_k = k;
                    best_gain = gain;
                }
            }
        }
        if (best_item < 0)
            return;
        left -= extra(s, best_item, best_k) - extra(s, best_item, picked[best_item]);
        picked[best_item] = best_k;
    }
}

/* Gives back what rounding has taken: always the step that frees most bytes within the bound. */
static void drain(const solver *s, double bound, int *picked)
{
    for (;;) {
        int64_t best_item = -1, best_gain = 0;
        int best_k = 0;
        double sum = 0;
        for (int64_t i = 0; i < s->n; i++)
            sum += at(s, i, picked[i])->loss;
        for (int64_t i = 0; i < s->n; i++) {
            for (int k = 0; k < picked[i]; k++) {
                const double more = at(s, i, k)->loss - at(s, i, picked[i])->loss;
                const int64_t gain = extra(s, i, picked[i]) - extra(s, i, k);
                if (sum + more <= bound && gain > best_gain) {
                    best_item = i;
                    best_k = k;
                    best_gain = gain;
                }
            }
        }
        if (best_item < 0)
            return;
        picked[best_item] = best_k;
    }
}

static void finish(solver *s, int *picked, bool done)
{
    for (int64_t i = 0; i < s->n && done; i++)
        picked[i] = s->fronts[i].of[picked[i]];
    nb_free(s->fronts);
    nb_free(s->best);
    nb_free(s->way);
}

static nb_status solve_bytes(solver *s, int64_t budget, int *picked, nb_err *err)
{
    NB_TRY(prepare(s, err));
    if (s->least_bytes > budget)
        return nb_fail(err, NB_LIMIT, "%lld bytes are too few: the least is %lld",
                       (long long)budget, (long long)s->least_bytes);
    const int64_t most = s->most_bytes < budget ? s->most_bytes : budget;
    choose_unit(s, most - s->least_bytes);
    NB_TRY(sweep(s, err));
    trace(s, s->n_states - 1, picked);
    int64_t left = budget - s->least_bytes;
    for (int64_t i = 0; i < s->n; i++)
        left -= extra(s, i, picked[i]);
    fill(s, left, picked);
    return NB_OK;
}

static nb_status solve_loss(solver *s, double bound, int *picked, nb_err *err)
{
    NB_TRY(prepare(s, err));
    double least = 0;
    for (int64_t i = 0; i < s->n; i++) {
        picked[i] = s->fronts[i].n - 1;
        least += at(s, i, picked[i])->loss;
    }
    if (!(least <= bound))
        return nb_fail(err, NB_LIMIT, "a loss of %.4g cannot be reached: the least is %.4g", bound,
                       least);
    /* Rounding up may cost each item a unit: with that, the best of all is among the states. */
    choose_unit(s, s->most_bytes - s->least_bytes);
    s->n_states += s->n;
    NB_TRY(sweep(s, err));
    int64_t b = 0;
    while (b < s->n_states && !(s->best[b] <= bound))
        b++;
    if (b < s->n_states) /* else sums in another order differ in their last bit: all at its best */
        trace(s, b, picked);
    drain(s, bound, picked);
    return NB_OK;
}

nb_status nb_allocate_bytes(const nb_item *items, int64_t n_items, int64_t budget, int *picked,
                            nb_err *err)
{
    solver s = {.items = items, .n = n_items};
    const nb_status status = solve_bytes(&s, budget, picked, err);
    finish(&s, picked, status == NB_OK);
    return status;
}

nb_status nb_allocate_loss(const nb_item *items, int64_t n_items, double bound, int *picked,
                           nb_err *err)
{
    solver s = {.items = items, .n = n_items};
    const nb_status status = solve_loss(&s, bound, picked, err);
    finish(&s, picked, status == NB_OK);
    return status;
}

int64_t nb_allocated_bytes(const nb_item *items, int64_t n_items, const int *picked)
{
    int64_t sum = 0;
    for (int64_t i = 0; i < n_items; i++)
        sum += items[i].choice[picked[i]].bytes;
    return sum;
}

double nb_allocated_loss(const nb_item *items, int64_t n_items, const int *picked)
{
    double sum = 0;
    for (int64_t i = 0; i < n_items; i++)
        sum += items[i].choice[picked[i]].loss;
    return sum;
}
