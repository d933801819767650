/* Calibration text on its way through a model, one block at a time: the hidden states of all its
 * tokens lie on disk, before and after the block, and in between where a block is taken in parts.
 *
 * There are one or two streams. Stream 0 meets the weights of slot 0 of the frame, the ones that
 * are being quantized; stream 1 those of slot 1, the full-precision ones. Everything is computed by
 * the model's own forward pass. */
#ifndef NB_QUANT_PASS_STREAMS_H
#define NB_QUANT_PASS_STREAMS_H

#include "model/forward.h"
#include "quant/calib/set.h"
#include "quant/inputs/stats.h"
#include "quant/pass/guide.h"
#include "quant/transform/transform.h"
#include "quant/weight/workdir.h"

/* Told of every piece of work that is done, in floating-point operations. False stops with
 * NB_INTERRUPTED. */
typedef bool nb_streams_progress(void *context, double flops);

/* Told of the keys, after RoPE, and the values of n tokens of a sequence,
 * [n][n_kv_heads][head_dim]; `last`: these are its last. */
typedef nb_status nb_streams_heads(void *context, const float *k, const float *v, int64_t n,
                                   bool last, nb_err *err);

typedef struct {
    nb_spill x[2], att, act;
    uint64_t hash; /* of what the block wrote so far */
} nb_stream;

typedef struct {
    const char *path; /* of the model, for messages */
    nb_model frame;
    nb_work work;
    nb_kv_pool kv;
    nb_kv_seq seq;
    nb_algebra *la;
    const nb_calib_seq *seqs;
    int64_t n_seqs, n_tokens, max_rows;
    int64_t *first_row; /* of each sequence in the files */
    int n_streams;
    nb_stream stream[2];
    float *other;                /* [max_rows]: stream 1 at a point, until stream 0 is there too */
    const nb_guide *guide;       /* what tokens count in statistics; NULL: all alike */
    float *weights;              /* [max_rows] */
    int64_t layer;               /* reads x[layer % 2], writes the other */
    nb_streams_heads *see_heads; /* in sweeps; NULL: nobody */
    void *heads_context;
    nb_streams_progress *progress;
    void *context;
} nb_streams;

/* Rows of a step; a multiple of 128, so that sums over tokens are cut in the same places. */
#define NB_STREAMS_ROWS 2048

/* Bytes in memory, and on disk. `reach`: whether blocks are taken in parts. */
int64_t nb_streams_memory(const nb_config *c, int64_t max_len, int64_t max_rows, int n_streams,
                          int n_threads);
int64_t nb_streams_disk(const nb_config *c, int64_t n_tokens, int n_streams, bool in_parts);

/* Sequences are borrowed. */
nb_status nb_streams_open(nb_streams *s, nb_store *store, const nb_calib_seq *seqs, int64_t n_seqs,
                          int n_streams, bool in_parts, int64_t max_rows, const nb_workdir *dir,
                          nb_algebra *la, nb_err *err);
void nb_streams_close(nb_streams *s);

/* Fills x[0] of all streams with the embeddings of the tokens. */
nb_status nb_streams_embed(nb_streams *s, nb_store *store, nb_err *err);
/* Hash of what stream i has to read at the current layer. */
nb_status nb_streams_check(nb_streams *s, int i, uint64_t *hash, nb_err *err);

/* Takes all streams to a point of the current block, from the point before: there their rows go
 * into `stats` (NULL: nowhere), those of stream 1 as x0. The linears that lie before the point must
 * be in the slots. */
nb_status nb_streams_to_point(nb_streams *s, nb_point point, nb_input_stats *stats, nb_err *err);
/* The statistics of a point that stream 0 has been taken to, from what lies on disk: the same sums,
 * with no weights in memory beside them. With `held`, those of stats->held_later. */
nb_status nb_streams_gather(nb_streams *s, nb_point point, nb_input_stats *stats, bool held,
                            nb_err *err);
/* From the last point to the end of the block. */
nb_status nb_streams_to_end(nb_streams *s, nb_err *err);
/* Takes stream i alone through the whole block, with statistics at all points where stats[point] is
 * not NULL. With `keep` its results are written, else only looked at. */
nb_status nb_streams_sweep(nb_streams *s, int i, nb_input_stats *const stats[NB_N_POINTS],
                           bool keep, nb_err *err);
/* The next block is current: once all streams are at the end of this one. */
void nb_streams_next(nb_streams *s);

/* Operations of one token in a part of a block. */
double nb_part_flops(const nb_config *c, nb_block_part part, double mean_context);

#endif
