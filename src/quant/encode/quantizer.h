/* A quantizer chooses codes for weights: format and encoder are separate choices. To add one: a
 * const nb_quantizer in its own file, and a line in quantizers.def.
 *
 * There are three kinds. Those without data work on any rows of one matrix (encode_rows). Those
 * with data work on a group of linear layers that read the same inputs (q, k and v, say), with the
 * statistics of these inputs that they asked for (encode_group), or on all layers of a block, with
 * its inputs and outputs (tune_block). */
#ifndef NB_QUANT_ENCODE_QUANTIZER_H
#define NB_QUANT_ENCODE_QUANTIZER_H

#include "numeric/grid.h"
#include "quant/inputs/stats.h"
#include "quant/weight/rows.h"

/* Modifiers of a method, "act-order,shrink=0.3": parsed once by its own table. */
#define NB_METHOD_MAX_OPTIONS 16
#define NB_METHOD_MAX_WORD    24
typedef struct {
    char name[NB_METHOD_MAX_WORD];
    char value[NB_METHOD_MAX_WORD]; /* "" for a bare word */
} nb_method_option;

typedef struct {
    const struct nb_quantizer *quantizer;
    nb_method_option options[NB_METHOD_MAX_OPTIONS]; /* in the order of names */
    int n_options;
} nb_method;

/* Rows of one matrix in full precision; all values are finite. */
typedef struct {
    const nb_method *method;
    const float *weight;     /* [n_rows][n_cols] */
    const float *importance; /* [n_cols], NULL: none */
    int64_t n_rows, n_cols;
} nb_quant_job;

#define NB_GROUP_LINEARS 3
typedef struct {
    const nb_method *method;
    const nb_input_stats *stats;
    nb_algebra *la;
    int n;
    struct {
        const char *name;
        const float *weight; /* [n_rows][n_cols], finite; NULL: */
        nb_rows rows;        /* gives them */
        int64_t n_rows;
        nb_mat *out;           /* planned: format, groups and room; filled by the call */
        const nb_sym *outputs; /* sum of g g^T (guide.h), by which rows may make up for each other's
                                  errors; NULL: none */
    } linear[NB_GROUP_LINEARS];
} nb_group_job;

/* What is told of each linear of a group. Losses are relative: tr(E H E^T) / tr(W H W^T), on the
 * tokens that chose and on those held out (NaN: none). */
typedef struct {
    double loss[NB_GROUP_LINEARS], held_loss[NB_GROUP_LINEARS];
    char note[120]; /* what was chosen: "shrink 0.3" */
    bool fell_back; /* what was gathered is of no use: rounded to nearest, and the note says why */
} nb_group_result;

struct nb_block_job;
struct nb_block_result;

typedef struct nb_quantizer {
    const char *name;
    const char *source;  /* the paper it comes from */
    const char *summary; /* one line for --help */
    unsigned needs;      /* of nb_stat, with the default options */
    bool by_outputs;     /* encode_group takes linear[].outputs */
    /* Checks options, and says what these options need. NULL: takes none. */
    nb_status (*check)(const nb_method *method, unsigned *needs, nb_err *err);
    /* Fills codes, scales and zero points of `out`, which has the job's shape. Called by several
     * threads at once, for different rows. NULL: needs data. */
    nb_status (*encode_rows)(const nb_quant_job *job, nb_mat *out, nb_err *err);
    /* Fills all matrices of the group; runs on the pool. NULL: needs none. */
    nb_status (*encode_group)(const nb_group_job *job, nb_group_result *result, nb_err *err);
    /* Fills all matrices of a block (autoround.h); runs on the pool. NULL: works by groups. */
    nb_status (*tune_block)(const struct nb_block_job *job, struct nb_block_result *result,
                            nb_err *err);
} nb_quantizer;

/* All of them, ending with NULL. */
extern const nb_quantizer *const nb_quantizers[];

/* "gptq" or "gptq:act-order,shrink=0.3". NB_USAGE lists the names; options are checked by the
 * quantizer, which refuses those that it does not know. */
nb_status nb_method_parse(nb_method *out, const char *text, nb_err *err);
/* The same for a quantizer that is not in the list, with its options alone: "a,b=1" or "". */
nb_status nb_method_of(nb_method *out, const nb_quantizer *quantizer, const char *options,
                       nb_err *err);
/* The value of an option, "" for a bare word, NULL when it was not given. */
const char *nb_method_option_of(const nb_method *method, const char *name);
/* A number in [low, high], or `preset` when the option was not given. */
nb_status nb_method_number(const nb_method *method, const char *name, double preset, double low,
                           double high, double *out, nb_err *err);
/* What this method with these options needs: a mask of nb_stat. */
unsigned nb_method_needs(const nb_method *method);
bool nb_method_same(const nb_method *a, const nb_method *b);
/* NB_USAGE for an option that is not in `known`, which ends with NULL; the message lists those. */
nb_status nb_method_only(const nb_method *method, const char *const *known, nb_err *err);
/* As it was given, options sorted: for reports and records. */
nb_status nb_method_spell(const nb_method *method, nb_buf *out, nb_err *err);

#endif
