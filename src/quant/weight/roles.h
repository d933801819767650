/* What a weight is for, by its name; and whether a model's weights are those its config asks for.
 */
#ifndef NB_QUANT_WEIGHT_ROLES_H
#define NB_QUANT_WEIGHT_ROLES_H

#include "model/config.h"

typedef enum {
    NB_ROLE_LINEAR, /* q, k, v, o, gate, up, down of a block */
    NB_ROLE_EMBED,  /* the token embedding */
    NB_ROLE_HEAD,   /* the output, when it is not the embedding */
    NB_ROLE_VECTOR, /* norms, biases: one dimension or none */
    NB_ROLE_OTHER,
} nb_role;

nb_role nb_role_of(const nb_weight *w);

/* NB_DATA names a weight that is missing or has another shape than the config says. */
nb_status nb_roles_check(const nb_store *store, const nb_config *c, nb_err *err);

#endif
