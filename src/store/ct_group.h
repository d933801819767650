/* One entry of compressed-tensors' config_groups: how the weights and inputs of some modules are
 * quantized (formats.md section 4). What nibble does not read is refused by its name. */
#ifndef NB_STORE_CT_GROUP_H
#define NB_STORE_CT_GROUP_H

#include "base/json.h"
#include "store/store.h"

typedef enum {
    NB_CT_PACKED, /* weight_packed, weight_scale, weight_shape */
    NB_CT_INT8,   /* weight (I8, also for narrower codes), weight_scale */
    NB_CT_FP8     /* weight (F8_E4M3), weight_scale */
} nb_ct_layout;

typedef enum { NB_CT_TENSOR, NB_CT_CHANNEL, NB_CT_GROUP, NB_CT_BLOCK } nb_ct_strategy;

/* One entry of config_groups. */
typedef struct {
    const char *name;
    nb_ct_layout layout;
    int bits; /* 2, 3, 4 or 8 */
    bool symmetric;
    nb_ct_strategy strategy;
    int64_t group_size; /* NB_CT_GROUP; NB_CT_BLOCK: columns of a block */
    int64_t block_rows; /* NB_CT_BLOCK */
    nb_act_spec act;
} nb_ct_group;

/* "pack-quantized" and so on. */
nb_status nb_ct_layout_parse(nb_ct_layout *out, const char *format, nb_err *err);

/* All but the name. `format` is that of the file, which the entry may replace by its own. */
nb_status nb_ct_group_parse(nb_ct_group *group, const json_t *scheme, const char *format,
                            nb_err *err);

#endif
