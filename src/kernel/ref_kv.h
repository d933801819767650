/* Private to ref_*.c: what a cell of the cache holds, by the definition. */
#ifndef NB_KERNEL_REF_KV_H
#define NB_KERNEL_REF_KV_H

#include "kernel/kernel.h"

/* Dimension d of the key (the value) of a KV head at position p, for a query that sees the sealed
 * form of the first n_sealed pages. */
float nb_ref_key(const nb_kv_view *kv, int head, int64_t n_sealed, int64_t p, int64_t d);
float nb_ref_value(const nb_kv_view *kv, int head, int64_t n_sealed, int64_t p, int64_t d);
/* int8: the code of a key, and the scale of all of a head's at a position. */
int nb_ref_key_code(const nb_kv_view *kv, int head, int64_t p, int64_t d);
float nb_ref_key_scale(const nb_kv_view *kv, int head, int64_t p);

#endif
