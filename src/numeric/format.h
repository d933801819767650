/* What the bits of a matrix mean: nb_format, and nb_mat, the one description of a matrix.
 *
 * Every reader makes nb_mats, every writer takes them, every quantizer produces them, every kernel
 * packs from them. A format is a const description in its own file, plus one line in formats.def.
 *
 * Four families:
 *   plain    f32 f16 bf16                      codes: the numbers themselves
 *   block    q4_0 q4_1 q5_0 q5_1 q8_0 iq4_nl, q2_k q3_k q4_k q5_k q6_k
 *                                              codes: ggml blocks, scales inside the block
 *   affine   int8 int4 int3 int2               codes, scales and zero points in three arrays
 *   float-coded  fp8_e4m3 fp8_e5m2 nf4         codes into a table of numbers, and scales: stored as
 *                                              affine formats are (and `affine` is set), but
 *                                              without zero points and without an integer form
 */
#ifndef NB_NUMERIC_FORMAT_H
#define NB_NUMERIC_FORMAT_H

#include "base/status.h"

/* How one floating-point number is stored. */
typedef enum { NB_F32, NB_F16, NB_BF16 } nb_float_type;

static inline size_t nb_float_bytes(nb_float_type t)
{
    return t == NB_F32 ? 4 : 2;
}
const char *nb_float_name(nb_float_type t); /* "f32", "f16", "bf16" */

typedef struct nb_format nb_format;

/* Scales that are codes themselves (nf4): scale i is fl(fl(map[code[i]] * step[i / 256]) + offset),
 * with the map of nf4.h. */
#define NB_NESTED_BLOCK 256
typedef struct {
    uint8_t *code; /* [n_rows][n_groups]; NULL: scales are stored as they are */
    float *step;   /* [ceil(n_rows * n_groups / 256)] */
    float offset;
} nb_nested;

/* A matrix [n_rows = outputs, n_cols = inputs]; a vector is one row. Bytes are borrowed.
 *
 * affine: value = scale[r][g] * (code[r][c] - zero[r][g]), g = c / group_size. Codes are signed.
 *   With float_zeros, zero points are floats and count from the lowest code, as HQQ has them:
 *   value = fma(scale, u, m), u = code + 2^(bits - 1) and m = fl(-scale * zero).
 *   int8  one byte a code, row_bytes = n_cols
 *   int4  two codes a byte, column 2j in the low nibble, stored as code + 8 (offset binary);
 *         row_bytes = 4 * ceil(n_cols / 8), padding bits zero. These are the bytes of
 *         compressed-tensors' weight_packed (formats.md 4.4).
 *   int3, int2  the same with codes + 4 of 3 bits, + 2 of 2 bits (codebits.h);
 *         row_bytes = 4 * ceil(n_cols * bits / 32)
 *   group_size is n_cols for one scale a row; otherwise it divides n_cols.
 *
 * float-coded: value = fl(scale[r][g] * level[code[r][c]]).
 *   fp8_e4m3, fp8_e5m2  one byte a code, row_bytes = n_cols. With scale_rows, blocks of so many
 *         rows and group_size columns share a scale (the last ones may be smaller), as the file
 *         stores it; `scales` repeats it for each row all the same.
 *   nf4   two codes a byte, column 2j in the HIGH nibble, as bitsandbytes has it; group_size
 *         divides n_cols, scale_type is f32. `scales` holds what `nested` means, where it is used.
 *
 * Codes and scales need the alignment of their elements: 4 for f32, 2 for f16, bf16 and blocks. */
typedef struct {
    const nb_format *fmt;
    int64_t n_rows, n_cols;
    void *codes; /* row r starts at byte r * row_bytes */
    int64_t row_bytes;
    /* affine only */
    int64_t group_size;
    nb_float_type scale_type;
    void *scales;      /* [n_rows][n_groups] in scale_type */
    int8_t *zeros;     /* [n_rows][n_groups]; NULL when symmetric (all zero points 0), or: */
    void *float_zeros; /* [n_rows][n_groups] in scale_type; NULL: none */
    /* float-coded only */
    int64_t scale_rows; /* 0 or 1: each row has its own scales */
    nb_nested nested;
} nb_mat;

/* The integer form of a row, for integer kernels and lossless conversion:
 *   value[c] = scale[s] * (code[c] - zero[s]) + min[s],   s = c / segment_len.
 * With a table, code[c] is a place in it, and table[code[c]] stands for the code above. */
typedef struct {
    int64_t segment_len;      /* columns that share a scale (the last segment may be shorter) */
    int code_lo, code_hi;     /* every code lies between these */
    bool has_zero, has_min;   /* whether zero / min are ever other than 0 */
    nb_float_type scale_type; /* the narrowest type that holds every scale and min exactly */
    const int8_t *table;      /* NULL, or 16 codes; then code_lo is 0 and code_hi is 15 */
} nb_int_form;

/* A row's codes and parameters; the caller provides the arrays. */
typedef struct {
    int8_t *code;  /* [n_cols] */
    float *scale;  /* [n_segments] */
    int16_t *zero; /* [n_segments]; written only if the form has_zero */
    float *min;    /* [n_segments]; written only if the form has_min */
} nb_int_row;

struct nb_format {
    const char *name; /* "q4_0", as users write it */
    int ggml_type;    /* type id in GGUF; -1: none */
    int block_len;    /* columns per block; 1 for plain and affine */
    int block_bytes;  /* bytes per block; 0 for affine */
    int bits;         /* width of one code */
    bool affine;

    /* y[0, n_cols) = the values of row r, each one correctly rounded as formats.md 8.6 says
     * (fl(scale * (code - zero)), or one fused multiply-add where a minimum is added). */
    void (*decode_row)(const nb_mat *m, int64_t r, float *y);

    /* Round to nearest: writes row r of m (codes; scales and zeros too) from x[0, n_cols).
     * Block formats follow ggml's reference quantizers bit for bit (formats.md 8.6); affine ones
     * follow compressed-tensors (formats.md 1.7), choosing codes with the scale as stored.
     * x is finite. NULL: the format is read only. */
    void (*encode_row)(nb_mat *m, int64_t r, const float *x);

    /* Fills *form for a matrix of this shape. NULL: there is no integer form. */
    void (*int_form)(const nb_mat *m, nb_int_form *form);
    void (*int_row)(const nb_mat *m, int64_t r, const nb_int_row *out);

    /* Float-coded formats: what codes stand for, [1 << bits]; NULL elsewhere. */
    const float *levels;
    void (*code_row)(const nb_mat *m, int64_t r, uint8_t *code);
    /* Where rows share what is stored of their scales (nb_mat_shares), encode_row takes the stored
     * ones, which are chosen before: survey_row for every row, in any order, several threads at
     * once, then settle. NULL: rows share nothing. */
    void (*survey_row)(nb_mat *m, int64_t r, const float *x);
    void (*settle)(nb_mat *m);

    /* For encoders that choose codes one by one (grid.h). NULL: there is no grid. */
    const struct nb_grid_form *grid;
};

/* All formats, ending with NULL. */
extern const nb_format *const nb_formats[];
#define X(id) extern const nb_format nb_format_##id;
#include "numeric/formats.def"
#undef X

/* NULL when there is none. */
const nb_format *nb_format_by_name(const char *name);
const nb_format *nb_format_by_ggml(int64_t ggml_type);
/* The integers of this width (int4, ...). */
const nb_format *nb_format_of_bits(int64_t bits);

/* Bytes of a row of codes; NB_UNSUPPORTED ("576 columns are no whole blocks of 256") if they do
 * not fill blocks. */
nb_status nb_format_row_bytes(const nb_format *fmt, int64_t n_cols, int64_t *out, nb_err *err);

static inline int64_t nb_mat_n_groups(const nb_mat *m)
{
    return m->group_size > 0 ? (m->n_cols + m->group_size - 1) / m->group_size : 0;
}

static inline bool nb_mat_shares(const nb_mat *m)
{
    return m->scale_rows > 1 || m->nested.code != NULL;
}
/* Blocks of rows that share their scales. */
static inline int64_t nb_mat_n_scale_rows(const nb_mat *m)
{
    return m->scale_rows > 1 ? (m->n_rows + m->scale_rows - 1) / m->scale_rows : m->n_rows;
}

/* Everything that belongs to the matrix: codes, scales, zero points (integers at the code's width).
 */
int64_t nb_mat_bytes(const nb_mat *m);

/* The arrays that a matrix consists of, in a fixed order: for storing it whole. Nested scales bring
 * their codes, steps and offset; the offset lies in *m itself. */
#define NB_MAT_MAX_ARRAYS 8
typedef struct {
    int n;
    struct {
        void *data;
        size_t bytes;
    } array[NB_MAT_MAX_ARRAYS];
} nb_mat_arrays;
void nb_mat_list_arrays(nb_mat *m, nb_mat_arrays *out);

static inline void *nb_mat_row(const nb_mat *m, int64_t r)
{
    return (uint8_t *)m->codes + r * m->row_bytes;
}

/* First value of the matrix that is not finite once decoded: true and its place.
 * scratch: [n_cols]. */
bool nb_mat_find_nonfinite(const nb_mat *m, float *scratch, int64_t *row, int64_t *col);

#endif
