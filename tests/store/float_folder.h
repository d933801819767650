/* Folders of FP8 and NF4 weights, made by hand for tests. */
#ifndef NB_TESTS_FLOAT_FOLDER_H
#define NB_TESTS_FLOAT_FOLDER_H

#include "numeric/minifloat.h"
#include "store/pieces.h"

typedef struct {
    const nb_format *fmt;
    int64_t group_size, scale_rows;
    nb_float_type scale_type;
    bool nested;
    nb_act_spec act;
} kind;

#endif
