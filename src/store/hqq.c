/* See hqq.h. */
#include "store/hqq.h"

#include "numeric/codebits.h"
#include "store/compressed_tensors.h"

#include <assert.h>
#include <string.h>

const char *const nb_hqq_parts[] = {
    "scale",        "zero",          "shape",
    "nbits",        "group_size",    "axis",
    "packing",      "view_as_float", "unpack_view_dtype",
    "quant_scale",  "quant_zero",    "compute_dtype",
    "offload_meta", "channel_wise",  "encoded_state_dict",
    "optimize",     "round_zero",    "stores_quant_config",
    NULL,
};

bool nb_hqq_is_part(const char *suffix)
{
    for (const char *const *p = nb_hqq_parts; *p != NULL; p++) {
        if (strcmp(*p, suffix) == 0)
            return true;
    }
    return false;
}

/* ---- the layout of codes ---- */

/* How codes of a width share words. */
typedef struct {
    int bits, places, word_bytes;
} packing;

static packing packing_of(int64_t bits)
{
    return bits == 4   ? (packing){4, 2, 1}
           : bits == 2 ? (packing){2, 4, 1}
           : bits == 3 ? (packing){3, 10, 4}
                       : (packing){8, 1, 1};
}

static int64_t run_of(const packing *p, int64_t n_groups)
{
    return n_groups / p->places + (n_groups % p->places != 0);
}

/* Codes are taken in pieces of so many. */
#define PIECE 256

static int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* A group of the matrix, and where its codes are in the words. */
typedef struct {
    int64_t row, col, word;
    int shift;
} group_place;

static group_place place_of(const packing *p, const nb_mat *m, int64_t i)
{
    const int64_t across = nb_mat_n_groups(m), run = run_of(p, m->n_rows * across);
    return (group_place){.row = i / across,
                         .col = i % across * m->group_size,
                         .word = i % run * m->group_size,
                         .shift = p->bits * (int)(p->places - 1 - i / run)};
}

static void read_piece(uint8_t *code, const uint8_t *words, const packing *p, const group_place *at,
                       int64_t n)
{
    const int mask = (1 << p->bits) - 1;
    for (int64_t k = 0; k < n; k++) {
        uint32_t word = words[(at->word + k) * p->word_bytes];
        if (p->word_bytes == 4)
            memcpy(&word, words + 4 * (at->word + k), sizeof word);
        code[k] = (uint8_t)((int)(word >> at->shift) & mask);
    }
}

static void write_piece(uint8_t *words, const uint8_t *code, const packing *p,
                        const group_place *at, int64_t n)
{
    for (int64_t k = 0; k < n; k++) {
        uint8_t *to = words + (at->word + k) * p->word_bytes;
        if (p->word_bytes == 1) {
            *to |= (uint8_t)(code[k] << at->shift);
            continue;
        }
        uint32_t word;
        memcpy(&word, to, sizeof word);
        word |= (uint32_t)code[k] << at->shift;
        memcpy(to, &word, sizeof word);
    }
}

/* nb_mat's int8 is signed, the others are stored as these codes are. */
static void flip8(uint8_t *code, int64_t n)
{
    for (int64_t k = 0; k < n; k++)
        code[k] ^= 0x80;
}

void nb_hqq_read_codes(nb_mat *m, const void *words)
{
    const packing p = packing_of(m->fmt->bits);
    memset(m->codes, 0, (size_t)(m->n_rows * m->row_bytes));
    for (int64_t i = 0; i < m->n_rows * nb_mat_n_groups(m); i++) {
        group_place at = place_of(&p, m, i);
        uint8_t *row = nb_mat_row(m, at.row);
        for (int64_t c = 0; c < m->group_size; c += PIECE, at.word += PIECE) {
            uint8_t code[PIECE];
            const int64_t n = smaller(PIECE, m->group_size - c);
            read_piece(code, words, &p, &at, n);
            if (p.bits == 8) {
                flip8(code, n);
                memcpy(row + at.col + c, code, (size_t)n);
            } else {
                nb_codebits_put(row, p.bits, at.col + c, (const int8_t *)code, n, 0);
            }
        }
    }
}

void nb_hqq_write_codes(void *words, const nb_mat *m)
{
    const packing p = packing_of(m->fmt->bits);
    const int64_t n_groups = m->n_rows * nb_mat_n_groups(m);
    memset(words, 0, (size_t)(run_of(&p, n_groups) * m->group_size * p.word_bytes));
    for (int64_t i = 0; i < n_groups; i++) {
        group_place at = place_of(&p, m, i);
        const uint8_t *row = nb_mat_row(m, at.row);
        for (int64_t c = 0; c < m->group_size; c += PIECE, at.word += PIECE) {
            uint8_t code[PIECE];
            const int64_t n = smaller(PIECE, m->group_size - c);
            if (p.bits == 8) {
                memcpy(code, row + at.col + c, (size_t)n);
                flip8(code, n);
            } else {
                nb_codebits_get((int8_t *)code, row, p.bits, at.col + c, n, 0);
            }
            write_piece(words, code, &p, &at, n);
        }
    }
}

/* ---- describing ---- */

static nb_status wanted(const nb_st_tensor *t, nb_st_dtype dtype, const int64_t dims[2],
                        nb_err *err)
{
    char want[NB_ST_SHAPE_TEXT], found[NB_ST_SHAPE_TEXT];
    if (t->dtype == dtype && t->n_dims == 2 && t->dims[0] == dims[0] && t->dims[1] == dims[1])
        return NB_OK;
    return nb_fail(err, NB_DATA, "tensor '%.200s': wanted %s %s, found %s %s", t->name,
                   nb_st_dtype_name(dtype), nb_st_shape_text(want, 2, dims),
                   nb_st_dtype_name(t->dtype), nb_st_shape_text(found, t->n_dims, t->dims));
}

static nb_status check_words(const nb_hqq_module *h, nb_err *err)
{
    const char *name = h->codes->name;
    if (h->nbits != 8 && h->nbits != 6 && h->nbits != 5 && h->nbits != 4 && h->nbits != 3 &&
        h->nbits != 2)
        return nb_fail(err, NB_UNSUPPORTED,
                       "tensor '%.200s': nbits %lld is not supported (2 to 6 and 8 are)", name,
                       (long long)h->nbits);
    if (h->axis != 1)
        return nb_fail(err, NB_UNSUPPORTED, "tensor '%.200s': axis %lld is not supported (1 is)",
                       name, (long long)h->axis);
    int64_t all;
    if (h->shape[0] < 1 || h->shape[1] < 1 ||
        __builtin_mul_overflow(h->shape[0], h->shape[1], &all))
        return nb_fail(err, NB_DATA, "tensor '%.200s': shape [%lld, %lld]", name,
                       (long long)h->shape[0], (long long)h->shape[1]);
    if (h->group_size < 1)
        return nb_fail(err, NB_DATA, "tensor '%.200s': group_size %lld", name,
                       (long long)h->group_size);
    if (h->shape[1] % h->group_size != 0)
        return nb_fail(err, NB_UNSUPPORTED,
                       "tensor '%.200s': groups of %lld that do not end where rows of %lld columns "
                       "end are not supported",
                       name, (long long)h->group_size, (long long)h->shape[1]);
    return NB_OK;
}

nb_status nb_hqq_describe(nb_weight *w, const nb_hqq_module *h, nb_err *err)
{
    NB_TRY(check_words(h, err));
    const packing p = packing_of(h->nbits);
    const int64_t n_groups = h->shape[0] * (h->shape[1] / h->group_size);
    const nb_st_tensor *parts[] = {h->scale, h->zero};
    if (p.word_bytes == 1 && n_groups % p.places != 0)
        return nb_fail(err, NB_DATA, "tensor '%.200s': %lld groups are no whole words of %d codes",
                       h->codes->name, (long long)n_groups, p.places);
    NB_TRY(wanted(h->codes, p.word_bytes == 4 ? NB_ST_I32 : NB_ST_U8,
                  (const int64_t[]){run_of(&p, n_groups), h->group_size}, err));
    for (int i = 0; i < 2; i++) {
        if (parts[i] == NULL)
            return nb_fail(err, NB_DATA, "tensor '%.200s' has no %s", h->codes->name,
                           i == 0 ? "scale" : "zero");
        NB_TRY(nb_ct_scale_type(parts[i], &w->scale_type, err));
        NB_TRY(wanted(parts[i], h->scale->dtype, (const int64_t[]){n_groups, 1}, err));
    }
    w->n_dims = 2;
    w->n_rows = w->dims[0] = h->shape[0];
    w->n_cols = w->dims[1] = h->shape[1];
    w->fmt = nb_format_of_bits(p.bits);
    w->group_size = h->group_size;
    w->symmetric = false;
    w->float_zeros = true;
    w->layout = NB_LAYOUT_HQQ;
    return NB_OK;
}

/* ---- planning to write ---- */

static const char *torch_type(nb_float_type type)
{
    return type == NB_F16 ? "torch.float16" : type == NB_BF16 ? "torch.bfloat16" : "torch.float32";
}

static nb_hqq_part number(const char *suffix, nb_st_dtype dtype, int64_t value)
{
    return (nb_hqq_part){.kind = NB_HQQ_WORD, .suffix = suffix, .dtype = dtype, .number = value};
}

static nb_hqq_part text(const char *suffix, const char *value)
{
    return (nb_hqq_part){.kind = NB_HQQ_WORD,
                         .suffix = suffix,
                         .dtype = NB_ST_U8,
                         .n_dims = 1,
                         .dims = {(int64_t)strlen(value)},
                         .text = value};
}

/* Bytes of a part. */
static int64_t part_bytes(const nb_hqq_part *p)
{
    int64_t n = nb_st_dtype_bits(p->dtype) / 8;
    for (int d = 0; d < p->n_dims; d++)
        n *= p->dims[d];
    return n;
}

/* Readers take numbers and flags of any integer type. Two have types that make a whole number of 8
 * bytes of all these, for tensors behind them should stay aligned. */
static void plan_all(nb_hqq_part *out, const nb_weight *w)
{
    const packing p = packing_of(w->fmt->bits);
    const int64_t n_groups = w->n_rows * (w->n_cols / w->group_size);
    const nb_st_dtype floats = w->scale_type == NB_F16    ? NB_ST_F16
                               : w->scale_type == NB_BF16 ? NB_ST_BF16
                                                          : NB_ST_F32;
    const bool wide = p.word_bytes == 4;
    const nb_hqq_part all[NB_HQQ_N_PARTS] = {
        {NB_HQQ_SHAPE, ".shape", NB_ST_I64, 1, {2}, 0, NULL},
        number(".nbits", NB_ST_I32, p.bits),
        number(".group_size", NB_ST_I32, w->group_size),
        number(".axis", NB_ST_I32, 1),
        number(".round_zero", NB_ST_I32, 0),
        {NB_HQQ_CODES,
         ".W_q",
         wide ? NB_ST_I32 : NB_ST_U8,
         2,
         {run_of(&p, n_groups), w->group_size},
         0,
         NULL},
        {NB_HQQ_SCALE, ".scale", floats, 2, {n_groups, 1}, 0, NULL},
        {NB_HQQ_ZERO, ".zero", floats, 2, {n_groups, 1}, 0, NULL},
        number(".optimize", w->scale_type == NB_BF16 ? NB_ST_U8 : NB_ST_I16, 1),
        text(".packing", p.bits == 8   ? "8bit_u8"
                         : p.bits == 4 ? "4bit_u8"
                         : p.bits == 3 ? "3bit_32"
                                       : "2bit_u8"),
        text(".unpack_view_dtype", wide ? "torch.int32" : "torch.uint8"),
        text(".compute_dtype", torch_type(w->scale_type)),
        number(".view_as_float", NB_ST_U8, 0),
        number(".quant_scale", NB_ST_U8, 0),
        number(".quant_zero", NB_ST_U8, 0),
        number(".offload_meta", NB_ST_U8, 0),
        number(".encoded_state_dict", NB_ST_U8, 1),
        number(".stores_quant_config", NB_ST_U8, 1),
        number(".channel_wise", NB_ST_U8, 1),
    };
    memcpy(out, all, sizeof all);
}

nb_status nb_hqq_plan(nb_hqq_part parts[NB_HQQ_N_PARTS], const nb_weight *w, nb_err *err)
{
    assert(w->float_zeros);
    const packing p = packing_of(w->fmt->bits);
    const int64_t n_groups = w->n_rows * (w->n_cols / w->group_size);
    if (w->act.bits != 0)
        return nb_fail(err, NB_UNSUPPORTED, "HQQ has no words for activations of %d bits",
                       w->act.bits);
    if (p.word_bytes == 1 && n_groups % p.places != 0)
        return nb_fail(err, NB_UNSUPPORTED, "HQQ packs groups by %d, and there are %lld", p.places,
                       (long long)n_groups);
    plan_all(parts, w);
    return NB_OK;
}

static int64_t sum_of_parts(const nb_weight *w, bool words_only)
{
    nb_hqq_part parts[NB_HQQ_N_PARTS];
    int64_t sum = 0;
    plan_all(parts, w);
    for (int i = 0; i < NB_HQQ_N_PARTS; i++) {
        const bool word = parts[i].kind == NB_HQQ_WORD || parts[i].kind == NB_HQQ_SHAPE;
        sum += word || !words_only ? part_bytes(&parts[i]) : 0;
    }
    return sum;
}

int64_t nb_hqq_bytes(const nb_weight *w)
{
    return sum_of_parts(w, false);
}

int64_t nb_hqq_words_bytes(const nb_weight *w)
{
    return sum_of_parts(w, true);
}

/* ---- the words of config.json ---- */

static bool ends_with(const char *name, const char *end)
{
    const size_t n = strlen(name), m = strlen(end);
    return n >= m && strcmp(name + n - m, end) == 0;
}

/* Modules are told apart without the number of their block: "self_attn.q_proj". The tag of the
 * module whose weight this is, as that of all blocks. */
static const char *tag_of(const char *name, int *len)
{
    static const char blocks[] = "model.layers.";
    *len = (int)(strlen(name) - strlen(".weight"));
    if (strncmp(name, blocks, sizeof blocks - 1) != 0)
        return name;
    const char *tag = name + sizeof blocks - 1;
    tag += strspn(tag, "0123456789");
    tag += *tag == '.';
    *len -= (int)(tag - name);
    return tag;
}

static bool same_tag(const char *a, const char *b)
{
    int n, m;
    const char *left = tag_of(a, &n), *right = tag_of(b, &m);
    return n == m && memcmp(left, right, (size_t)n) == 0;
}

static nb_status agree(const nb_weight *w, const nb_weight *first, nb_err *err)
{
    if (!w->float_zeros)
        return nb_fail(err, NB_UNSUPPORTED,
                       "'%.200s' is %s without float zero points, and a folder of HQQ holds no "
                       "others",
                       w->name, w->fmt->name);
    if (!ends_with(w->name, ".weight") ||
        nb_ct_is_embedding(w->name, strlen(w->name) - strlen(".weight")))
        return nb_fail(err, NB_UNSUPPORTED, "'%.200s' is quantized, and no linear layer's weight",
                       w->name);
    const bool whole = w->group_size == w->n_cols && first->group_size == first->n_cols;
    if (w->fmt != first->fmt || (w->group_size != first->group_size && !whole))
        return nb_fail(err, NB_UNSUPPORTED,
                       "'%.200s' is %s in groups of %lld, and '%.200s' %s in groups of %lld: HQQ "
                       "has one format for all",
                       w->name, w->fmt->name, (long long)w->group_size, first->name,
                       first->fmt->name, (long long)first->group_size);
    return NB_OK;
}

static bool listed(const json_t *list, const char *tag, int len)
{
    size_t i;
    json_t *v;
    json_array_foreach(list, i, v)
    {
        if (json_string_length(v) == (size_t)len &&
            memcmp(json_string_value(v), tag, (size_t)len) == 0)
            return true;
    }
    return false;
}

/* Linears that stay floats. Skipped is a tag, and with it the modules of all blocks. */
static nb_status skip(json_t *list, const nb_weight *w, const nb_weight *plan, int64_t n,
                      nb_err *err)
{
    int len;
    const char *tag = tag_of(w->name, &len);
    if (nb_ct_is_embedding(w->name, strlen(w->name) - strlen(".weight")) || listed(list, tag, len))
        return NB_OK;
    for (int64_t i = 0; i < n; i++) {
        if (plan[i].fmt->affine && same_tag(plan[i].name, w->name))
            return nb_fail(err, NB_UNSUPPORTED,
                           "'%.200s' stays %s, and '%.200s' is quantized: HQQ leaves out a module "
                           "in all blocks or in none",
                           w->name, w->fmt->name, plan[i].name);
    }
    return json_array_append_new(list, json_stringn(tag, (size_t)len)) == 0
               ? NB_OK
               : nb_fail(err, NB_MEMORY, "out of memory while writing quantization_config");
}

static nb_status check_plan(json_t *skipped, const nb_weight *plan, int64_t n, nb_err *err)
{
    const nb_weight *first = NULL;
    bool head = false;
    for (int64_t i = 0; i < n; i++) {
        if (!plan[i].fmt->affine)
            continue;
        first = first == NULL ? &plan[i] : first;
        NB_TRY(agree(&plan[i], first, err));
        head = head || strcmp(plan[i].name, "lm_head.weight") == 0;
    }
    if (!head && json_array_append_new(skipped, json_string("lm_head")) != 0)
        return nb_fail(err, NB_MEMORY, "out of memory while writing quantization_config");
    for (int64_t i = 0; i < n; i++) {
        if (!plan[i].fmt->affine && plan[i].n_dims == 2 && ends_with(plan[i].name, ".weight"))
            NB_TRY(skip(skipped, &plan[i], plan, n, err));
    }
    return NB_OK;
}

nb_status nb_hqq_config(json_t **out, const nb_weight *plan, int64_t n_weights, nb_err *err)
{
    *out = NULL;
    int64_t i = 0;
    while (i < n_weights && !plan[i].fmt->affine)
        i++;
    if (i == n_weights)
        return NB_OK;
    json_t *skipped = json_array();
    if (skipped == NULL)
        return nb_fail(err, NB_MEMORY, "out of memory while writing quantization_config");
    if (check_plan(skipped, plan, n_weights, err) != NB_OK) {
        json_decref(skipped);
        return nb_context(err, "quantization_config");
    }
    json_t *group = plan[i].group_size == plan[i].n_cols
                        ? json_null()
                        : json_integer((json_int_t)plan[i].group_size);
    *out = json_pack("{s:{s:{s:i,s:b,s:o,s:b,s:b,s:i,s:b},s:n,s:n,s:b},s:s,s:o}", "quant_config",
                     "weight_quant_params", "nbits", plan[i].fmt->bits, "channel_wise", 1,
                     "group_size", group, "optimize", 1, "round_zero", 0, "axis", 1,
                     "view_as_float", 0, "scale_quant_params", "zero_quant_params", "offload_meta",
                     0, "quant_method", "hqq", "skip_modules", skipped);
    return *out != NULL
               ? NB_OK
               : nb_fail(err, NB_MEMORY, "out of memory while writing quantization_config");
}
