/* Attention of a block that trains: forward through the cache, as the model does it, and backward.
 * Private to backward.c. */
#ifndef NB_MODEL_BACK_ATTN_H
#define NB_MODEL_BACK_ATTN_H

#include "model/backward.h"

/* Floats of scratch for one thread. */
int64_t nb_back_attn_scratch(const nb_config *c, int64_t len);
/* Bytes of the pages of one sequence. */
size_t nb_back_attn_page_bytes(const nb_config *c);
int64_t nb_back_attn_n_pages(int64_t len);

/* QK-norm and RoPE of t->q and t->k in place (kept before in t->raw_q, t->raw_k with QK-norm), and
 * t->att from them and t->v. */
void nb_back_attn_forward(nb_block_train *t, const nb_block_weights *w, int64_t n_seq, int64_t len);
/* From t->d_att: gradients of q into t->att, of k and v into t->d_k, t->d_v; those of q and k are
 * of what left the products, before QK-norm and RoPE. */
void nb_back_attn_backward(nb_block_train *t, const nb_block_weights *w, int64_t n_seq, int64_t len,
                           const nb_block_grads *grads);

#endif
