/* The paged KV cache: pages of NB_KV_PAGE positions for all layers, handed out to sequences.
 * Kwon et al., arXiv:2309.06180. A sequence wastes less than one page. */
#ifndef NB_MODEL_KV_H
#define NB_MODEL_KV_H

#include "kernel/kernel.h"
#include "model/config.h"

/* The format of that name ("fp8_e4m3" is "fp8"); false if there is none. */
bool nb_kv_format_named(const char *name, nb_kv_format *out);
/* FP8 whose scales the cache finds itself, also where the model has static ones. */
#define NB_KV_FP8_DYNAMIC "fp8:dynamic"

typedef struct {
    const nb_config *config;
    nb_kv_format cell;
    size_t page_bytes;
    int64_t n_pages, n_free;
    uint8_t *arena;
    int32_t *free_pages; /* a stack */
    /* packed formats: pages of F16 for positions not sealed yet. The stack gives out again what
     * came back last, so that only as many become resident as are in use at once. */
    size_t recent_bytes;
    int64_t n_recent, n_recent_free;
    uint8_t *recent;
    int32_t *free_recent;
} nb_kv_pool;

/* Bytes of a page: keys and values of NB_KV_PAGE positions in all layers. */
size_t nb_kv_page_bytes(const nb_config *c, nb_kv_format cell);

/* Room for n_pages pages, and for as many of `recent`; memory becomes resident as pages are used.
 */
nb_status nb_kv_pool_init(nb_kv_pool *pool, const nb_config *c, nb_kv_format cell, int64_t n_pages,
                          nb_err *err);
/* The same with n_recent pages of `recent`. */
nb_status nb_kv_pool_init_recent(nb_kv_pool *pool, const nb_config *c, nb_kv_format cell,
                                 int64_t n_pages, int64_t n_recent, nb_err *err);
void nb_kv_pool_free(nb_kv_pool *pool);

static inline int64_t nb_kv_pages_for(int64_t n_positions)
{
    return (n_positions + NB_KV_PAGE - 1) / NB_KV_PAGE;
}

/* Pages of `recent` that n_seqs sequences have at most, of which a step computes step_tokens
 * tokens; 0 for formats without. */
int64_t nb_kv_recent_pages(nb_kv_format cell, int64_t n_seqs, int64_t step_tokens);
/* Bytes of one: as a page of F16. */
size_t nb_kv_recent_page_bytes(const nb_config *c);

/* One sequence: `n` positions are filled, in the pages of `table`. Packed formats: pages from
 * n_sealed on, and the first NB_KV_FIRST, also have one of `recent`. */
typedef struct {
    nb_kv_pool *pool;
    int64_t n;
    int64_t n_table, cap, n_sealed;
    int32_t *table, *recent;
    int64_t pinned; /* not 0: the owner will truncate to this again */
    bool lent;      /* `table` is kept elsewhere, and so is what is free */
} nb_kv_seq;

/* A sequence of at most max_positions. */
nb_status nb_kv_seq_init(nb_kv_seq *seq, nb_kv_pool *pool, int64_t max_positions, nb_err *err);
/* The same where somebody else hands out pages: table [cap] has them when nb_kv_seq_reserve is told
 * of more positions. Only `recent` is the sequence's own. */
nb_status nb_kv_seq_init_lent(nb_kv_seq *seq, nb_kv_pool *pool, const int32_t *table, int64_t cap,
                              nb_err *err);
/* Makes room for positions [0, n). NB_LIMIT when the sequence or the pool is full; then nothing
 * has changed. */
nb_status nb_kv_seq_reserve(nb_kv_seq *seq, int64_t n, nb_err *err);
/* Forgets positions from n on and gives their pages back. With packed formats everything is
 * forgotten, so that seq->n is 0, where a query at n would see positions as they were before they
 * were sealed, and those are gone: n is less than what the last nb_kv_seq_reserve found in seq->n,
 * or pinned. */
void nb_kv_seq_truncate(nb_kv_seq *seq, int64_t n);
void nb_kv_seq_free(nb_kv_seq *seq);

/* The kernels' view of one layer of a sequence; with the config's static scales, where the cache is
 * FP8 and there are some. */
nb_kv_view nb_kv_seq_view(const nb_kv_seq *seq, int64_t layer);

#endif
