/* A scheme names the number formats of a quantized model: "W4A16", "W8A8", "W4A16:g32,asym",
 * "Q4_0". Wn is the width of the weights, An that of the activations that meet them; modifiers
 * after the colon are gN or channel (how many columns share a scale) and sym or asym, or
 * zero=float: asymmetric, with zero points that are floats like the scales, as HQQ has them; where
 * activations are quantized, too, static: one scale for all tokens, chosen by calibration, in place
 * of one for each token.
 *
 * Float codes: "FP8" (E4M3, a scale for each row of the weights and each token), "FP8:tensor" (one
 * for each matrix), "FP8_BLOCK" (for blocks of 128 x 128, and of 128 columns of a token), each of
 * them also static; "NF4" (groups of 64, or gN, whose scales are codes
 * themselves unless "single" is given). */
#ifndef NB_QUANT_RECIPE_SCHEME_H
#define NB_QUANT_RECIPE_SCHEME_H

#include "store/store.h"

/* Group sizes that are no number of columns. */
#define NB_GROUP_CHANNEL 0  /* one scale a row */
#define NB_GROUP_CHOOSE  -1 /* the largest usual one that divides every row */
#define NB_ROWS_ALL      -1 /* scale_rows: one scale a matrix */

typedef struct {
    char name[32];           /* as nibble spells it, modifiers included */
    const nb_format *fmt;    /* of the weights */
    nb_store_kind container; /* the only one that holds it */
    int64_t group_size;      /* affine only */
    bool symmetric;          /* affine only */
    bool float_zeros;        /* affine only, not symmetric */
    int64_t scale_rows;      /* FP8: rows that share scales; 0: each has its own */
    bool nested;             /* NF4: scales are codes themselves */
    nb_act_spec act;
} nb_scheme;

/* Letters may be of either case; W4A16_ASYM and INT8 are other names of W4A16:asym and W8A8.
 * NB_USAGE says which schemes and modifiers there are; NB_UNSUPPORTED what a known one lacks. */
nb_status nb_scheme_parse(nb_scheme *out, const char *text, nb_err *err);

/* "hf", "gguf". */
const char *nb_container_name(nb_store_kind kind);

/* Refuses by name what a container cannot hold, and says what comes nearest. */
nb_status nb_scheme_check_container(const nb_scheme *scheme, nb_store_kind kind, nb_err *err);

#endif
