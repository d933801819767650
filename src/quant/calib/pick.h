/* A random order of documents in bounded memory: of all that are offered, those with the smallest
 * keys stay, and come out by ascending key. The key of a document is Philox(seed, 0x63616c6962
 * ("calib"), its number): neither the other documents nor their number change it. */
#ifndef NB_QUANT_CALIB_PICK_H
#define NB_QUANT_CALIB_PICK_H

#include "quant/calib/source.h"

#define NB_CALIB_PICKED ((int64_t)1 << 18)

typedef struct {
    uint64_t key;
    int64_t number; /* among all that were offered; breaks ties */
    nb_calib_span span;
    int file;
} nb_calib_ticket;

/* `{0}` with a seed is empty. Freeing `tickets` frees all. */
typedef struct {
    uint64_t seed;
    int64_t n_offered;
    int64_t most;   /* tickets that stay; 0: NB_CALIB_PICKED */
    nb_buf tickets; /* of nb_calib_ticket */
} nb_calib_picker;

nb_status nb_calib_pick_offer(nb_calib_picker *p, int file, nb_calib_span span, nb_err *err);
/* Sorts; the tickets are *out [*n], valid until the next call. */
void nb_calib_pick_draw(nb_calib_picker *p, const nb_calib_ticket **out, int64_t *n);

#endif
