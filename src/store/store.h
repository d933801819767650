/* Tensors at rest: open any container, list its weights, read one; or write one.
 *
 * Names and row order are Hugging Face's whatever the container: a GGUF's `blk.0.attn_q.weight`
 * is listed as `model.layers.0.self_attn.q_proj.weight`, and the rows of q and k that llama-family
 * GGUF files store interleaved are put back when they are read. Quantized linears of
 * compressed-tensors folders (weight_packed, weight_scale, ...) are one weight, `....weight`.
 *
 * Opening validates everything that can be known without reading tensor data. Reading is by
 * pread: no mapping is kept. Errors name the file: "FILE: reason". */
#ifndef NB_STORE_STORE_H
#define NB_STORE_STORE_H

#include "base/file.h"
#include "base/json.h"
#include "numeric/format.h"
#include "store/gguf.h"

typedef struct nb_store nb_store;

typedef enum { NB_STORE_HF, NB_STORE_GGUF } nb_store_kind;

/* What a file says about the activations that meet a weight. */
typedef struct {
    int bits;           /* 0: not quantized (16-bit floats); 8 */
    bool per_token;     /* one scale a token; else unspecified (the kernels choose groups) */
    bool is_float;      /* codes are E4M3: x becomes fl(code * scale), in mode f */
    int64_t group_size; /* is_float: columns that share a scale; 0: all of a token */
    bool is_static;     /* one scale for all tokens: */
    float scale;        /* 0: not known yet, and each token takes its own */
} nb_act_spec;

/* How a Hugging Face folder lays out a quantized weight: compressed-tensors, GPTQ with zero points
 * less one (version 1) or as they are, AWQ, bitsandbytes (nf4 only), HQQ (float zero points only).
 */
typedef enum {
    NB_LAYOUT_CT,
    NB_LAYOUT_GPTQ,
    NB_LAYOUT_GPTQ_V2,
    NB_LAYOUT_AWQ,
    NB_LAYOUT_BNB,
    NB_LAYOUT_HQQ
} nb_layout;

/* What a Hugging Face folder says about the key-value cache: nothing; E4M3 with scales that are
 * weights of the folder; E4M3 with scales that the cache finds itself. */
typedef enum { NB_KV_SCHEME_NONE, NB_KV_SCHEME_STATIC, NB_KV_SCHEME_DYNAMIC } nb_kv_scheme;

#define NB_MAX_DIMS 4

/* One weight, described. Also the plan of a weight to be written. */
typedef struct {
    const char *name;      /* Hugging Face name */
    const char *file_name; /* name inside the container (of the codes) */
    int n_dims;
    int64_t dims[NB_MAX_DIMS]; /* row-major: dims[n_dims - 1] runs fastest */
    int64_t n_rows, n_cols;    /* as a matrix: n_cols is the last dimension */
    const nb_format *fmt;
    int64_t group_size;       /* affine only */
    bool symmetric;           /* affine only */
    bool float_zeros;         /* affine only, not symmetric: zero points of scale_type */
    nb_float_type scale_type; /* affine only */
    int64_t scale_rows;       /* fp8 only: as nb_mat's */
    bool nested;              /* nf4 only: scales are codes themselves */
    nb_act_spec act;
    nb_layout layout; /* affine only, of folders */
    bool reordered;   /* codes in the file, whose groups are no runs of columns (GPTQ's g_idx): read
                         as the f32 values that they mean */
    int64_t bytes;    /* everything in the file that belongs to it */
} nb_weight;

/* `path` is a .gguf file (or the first of a split one) or a Hugging Face folder. */
nb_status nb_store_open(nb_store **out, const char *path, nb_err *err);
void nb_store_close(nb_store *store); /* NULL is fine */

nb_store_kind nb_store_kind_of(const nb_store *store);
const char *nb_store_path(const nb_store *store);
int64_t nb_store_n_weights(const nb_store *store);
const nb_weight *nb_store_weight(const nb_store *store, int64_t i);
const nb_weight *nb_store_find(const nb_store *store, const char *name); /* NULL: none */
int64_t nb_store_file_bytes(const nb_store *store); /* size of the tensor files */
nb_kv_scheme nb_store_kv_scheme(const nb_store *store);
/* Whether a weight is no weight but a static scale of the cache (kv_scheme.h), which is listed as
 * model.layers.N.self_attn.k_scale, v_scale, or kv_scale for both. */
bool nb_weight_is_kv_scale(const nb_weight *w);

/* Hugging Face folders: parsed JSON files, NULL when the folder has none. Borrowed. */
const json_t *nb_store_config(const nb_store *store);
const json_t *nb_store_generation_config(const nb_store *store);
const json_t *nb_store_tokenizer_config(const nb_store *store);
/* GGUF: the key-value pairs, NULL for a folder. Borrowed. */
const nb_gguf *nb_store_gguf(const nb_store *store);
/* The chat template: chat_template.jinja, then tokenizer_config.json (a string, or "default" of a
 * list), or the GGUF key. *len = 0 and *text = NULL when there is none. Borrowed. */
nb_status nb_store_chat_template(nb_store *store, const char **text, size_t *len, nb_err *err);

/* A weight's bytes in memory. `{0}` is empty; reuse it for the next weight, free it at the end. */
typedef struct {
    nb_mat mat; /* points into the buffers below */
    nb_buf codes, scales, zeros, scratch;
    nb_buf nested_codes, nested_steps;
    nb_buf values; /* f32, of a weight whose NaN and infinities are taken for zeros */
} nb_loaded;

/* Reads one weight. Fails with NB_DATA / NB_IO if the file changed since it was opened. */
nb_status nb_store_read(nb_store *store, const nb_weight *weight, nb_loaded *out, nb_err *err);
void nb_loaded_free(nb_loaded *loaded);
/* Whether rows of a weight can be read without the others: the plain formats of folders, and all of
 * GGUF but the q and k whose rows a file stores interleaved. */
bool nb_store_reads_rows(const nb_store *store, const nb_weight *weight);
/* Rows [row, row + n) of such a weight, as a matrix of n rows. */
nb_status nb_store_read_rows(nb_store *store, const nb_weight *weight, int64_t row, int64_t n,
                             nb_loaded *out, nb_err *err);
/* From now on reads of a weight, whole or by rows, give f32 values with 0 in place of NaN and
 * infinities; off: again what the file holds. */
nb_status nb_store_zero_nonfinite(nb_store *store, const nb_weight *weight, bool on, nb_err *err);

/* ---- writing ---- */

/* A file of a Hugging Face folder that is not a tensor file: "config.json" and its content. */
typedef struct {
    const char *name;
    const void *bytes;
    size_t len;
} nb_side_file;

typedef struct nb_sink nb_sink;

/* Starts a Hugging Face folder (temporary beside the target). Weights are planned first, in the
 * order in which they will be put; side files are written as they are. Shards above
 * `shard_bytes` (0: 5 GB, as save_pretrained). Affine weights are written in their layout.
 * With path NULL, here and below, nothing is written: the plan is checked and can be asked for its
 * size, and the sink can only be aborted. */
nb_status nb_sink_open_hf(nb_sink **out, const char *path, bool force, const nb_weight *plan,
                          int64_t n_weights, const nb_side_file *side, int64_t n_side,
                          int64_t shard_bytes, nb_err *err);
/* Starts a GGUF: `kv` holds n_kv encoded pairs (nb_gguf_put_* of gguf.h). Names are translated to
 * GGUF's; weights must have a ggml type. `permute` names how many heads the rows of q and k have
 * when the architecture stores them interleaved (0, 0: not at all). */
nb_status nb_sink_open_gguf(nb_sink **out, const char *path, bool force, const nb_weight *plan,
                            int64_t n_weights, const nb_buf *kv, int64_t n_kv, int64_t n_heads,
                            int64_t n_kv_heads, nb_err *err);
/* Puts weight `index`; indexes ascend from 0 without a gap. The matrix must be as planned. */
nb_status nb_sink_put(nb_sink *sink, int64_t index, const nb_mat *mat, nb_err *err);
/* All weights were put: *path, which the sink owns, is the whole output under a temporary name. It
 * can be read there, and a folder can be given further files, until it is committed or aborted. */
nb_status nb_sink_finish(nb_sink *sink, const char **path, nb_err *err);
/* Other values for a weight of plain numbers that was put, once the output is whole: what can only
 * be known from it. A folder's only. */
nb_status nb_sink_amend(nb_sink *sink, int64_t index, const nb_mat *mat, nb_err *err);
/* All weights were put: sync, rename, close. Frees the sink also on failure. */
nb_status nb_sink_commit(nb_sink *sink, nb_err *err);
void nb_sink_abort(nb_sink *sink); /* NULL is fine */
/* Bytes that the planned output's tensor files will have. */
int64_t nb_sink_planned_bytes(const nb_sink *sink);

/* The quantization_config that describes the plan, in the words of the weights' layout, which is
 * one for all: NULL in *out when no weight is affine and none is a scale of the cache.
 * NB_UNSUPPORTED says what it has no words for. */
nb_status nb_hf_quantization(json_t **out, const nb_weight *plan, int64_t n_weights, nb_err *err);
/* The same of compressed-tensors. Weights sharing (bits, group, symmetry, activations) share a
 * config group; unquantized 2-D linears go to `ignore`, embeddings are never named. Free with
 * json_decref. */
nb_status nb_ct_config(json_t **out, const nb_weight *plan, int64_t n_weights, nb_err *err);

#endif
