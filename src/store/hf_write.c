/* Writes Hugging Face folders: model.safetensors or shards with their index, and the side files,
 * all in a temporary folder that gets its name at the end. Tensors are laid out when the sink is
 * opened, so each put only streams bytes; quantized weights are written as their layout says:
 * compressed-tensors, or GPTQ and AWQ, which qweight.h knows. */
#include "numeric/nf4.h"
#include "store/bnb.h"
#include "store/compressed_tensors.h"
#include "store/container.h"
#include "store/ct_pack.h"
#include "store/hqq.h"
#include "store/qweight.h"

#include <stdio.h>
#include <string.h>

#define DEFAULT_SHARD_BYTES ((int64_t)5000000000)
#define CHUNK_BYTES         ((size_t)1 << 20)
#define MAX_PARTS           NB_HQQ_N_PARTS /* tensors of one weight: nobody has more */

/* What a tensor of the file holds of its weight. */
typedef enum {
    PART_PLAIN,
    PART_PACKED,
    PART_INT8,
    PART_SHAPE,
    PART_ZERO,
    PART_SCALE,
    PART_INPUT_SCALE,
    PART_NESTED, /* of NF4: codes and steps of nested scales, */
    PART_STEPS,
    PART_MAP, /* the two tables, */
    PART_NESTED_MAP,
    PART_STATE,                 /* and the text that explains them */
    PART_TURNED,                /* of GPTQ and AWQ: PART_TURNED + nb_qweight_kind */
    PART_HQQ = PART_TURNED + 8, /* and of HQQ: PART_HQQ + the index of a nb_hqq_part */
} part_kind;

typedef struct {
    int64_t first, n; /* tensors */
    nb_buf header;
} shard;

typedef struct {
    nb_outdir dir;
    nb_outfile file; /* of the shard that is being written */
    nb_st_tensor *tensors;
    part_kind *kinds;    /* of the tensors */
    int64_t *first_part; /* weight i is tensors [first_part[i], first_part[i + 1]) */
    shard *shards;
    int64_t n_tensors, n_shards, current;
    nb_buf chunk;
} hf_out;

/* ---- the plan ---- */

/* Integer activations with 8-bit codes: readers want the codes unpacked. */
static bool is_int8(const nb_weight *w)
{
    return w->fmt->bits == 8 && w->act.bits != 0;
}

static nb_status add_part(nb_sink *sink, const nb_weight *w, const char *suffix, part_kind kind,
                          nb_st_dtype dtype, int n_dims, const int64_t *dims, nb_err *err)
{
    hf_out *hf = sink->state;
    nb_st_tensor *t = &hf->tensors[hf->n_tensors];
    *t = (nb_st_tensor){.name = w->name, .dtype = dtype, .n_dims = n_dims};
    if (suffix != NULL) {
        const int module = (int)(strlen(w->name) - strlen(".weight"));
        char *name;
        NB_TRY(nb_arena_format(&sink->arena, &name, err, "%.*s%s", module, w->name, suffix));
        t->name = name;
    }
    memcpy(t->dims, dims, (size_t)n_dims * sizeof *dims);
    hf->kinds[hf->n_tensors++] = kind;
    return NB_OK;
}

static nb_status float_dtype(const char *name, nb_st_dtype *out, nb_err *err)
{
    if (strcmp(name, "f32") == 0)
        *out = NB_ST_F32;
    else if (strcmp(name, "f16") == 0)
        *out = NB_ST_F16;
    else if (strcmp(name, "bf16") == 0)
        *out = NB_ST_BF16;
    else
        return nb_fail(err, NB_UNSUPPORTED, "format %s has no place in a Hugging Face folder",
                       name);
    return NB_OK;
}

static nb_status plan_turned(nb_sink *sink, const nb_weight *w, nb_err *err)
{
    nb_qweight_part parts[NB_QWEIGHT_MAX_PARTS];
    int n;
    NB_TRY(nb_qweight_plan(parts, &n, w, err));
    for (int i = 0; i < n; i++)
        NB_TRY(add_part(sink, w, parts[i].suffix, (part_kind)(PART_TURNED + (int)parts[i].kind),
                        parts[i].dtype, parts[i].n_dims, parts[i].dims, err));
    return NB_OK;
}

static nb_status plan_input_scale(nb_sink *sink, const nb_weight *w, nb_err *err)
{
    return !w->act.is_static ? NB_OK
                             : add_part(sink, w, ".input_scale", PART_INPUT_SCALE, NB_ST_F32, 1,
                                        (const int64_t[]){1}, err);
}

static nb_status plan_fp8(nb_sink *sink, const nb_weight *w, nb_err *err)
{
    const int64_t rows = w->scale_rows > 1 ? w->scale_rows : 1;
    const int64_t n = (w->n_rows + rows - 1) / rows;
    const int64_t n_groups = (w->n_cols + w->group_size - 1) / w->group_size;
    const bool one = rows >= w->n_rows && w->group_size == w->n_cols && rows > 1;
    const nb_st_dtype codes = w->fmt == &nb_format_fp8_e5m2 ? NB_ST_F8_E5M2 : NB_ST_F8_E4M3;
    nb_st_dtype dtype;
    NB_TRY(float_dtype(nb_float_name(w->scale_type), &dtype, err));
    NB_TRY(add_part(sink, w, ".weight_scale", PART_SCALE, dtype, one ? 1 : 2,
                    (const int64_t[]){n, n_groups}, err));
    NB_TRY(plan_input_scale(sink, w, err));
    return add_part(sink, w, NULL, PART_PLAIN, codes, 2, (const int64_t[]){w->n_rows, w->n_cols},
                    err);
}

static nb_status plan_nf4(nb_sink *sink, const nb_weight *w, nb_err *err)
{
    const int64_t all = w->n_rows * w->n_cols, n = all / w->group_size;
    NB_TRY(
        add_part(sink, w, ".weight.quant_map", PART_MAP, NB_ST_F32, 1, (const int64_t[]){16}, err));
    if (w->nested) {
        NB_TRY(add_part(sink, w, ".weight.nested_quant_map", PART_NESTED_MAP, NB_ST_F32, 1,
                        (const int64_t[]){256}, err));
        NB_TRY(add_part(sink, w, ".weight.nested_absmax", PART_STEPS, NB_ST_F32, 1,
                        (const int64_t[]){(n + NB_NESTED_BLOCK - 1) / NB_NESTED_BLOCK}, err));
    }
    NB_TRY(add_part(sink, w, ".weight.absmax", w->nested ? PART_NESTED : PART_SCALE,
                    w->nested ? NB_ST_U8 : NB_ST_F32, 1, (const int64_t[]){n}, err));
    NB_TRY(add_part(sink, w, NULL, PART_PLAIN, NB_ST_U8, 2, (const int64_t[]){all / 2, 1}, err));
    return add_part(sink, w, "." NB_BNB_STATE, PART_STATE, NB_ST_U8, 1,
                    (const int64_t[]){nb_bnb_state_bytes(w)}, err);
}

static nb_status plan_hqq(nb_sink *sink, const nb_weight *w, nb_err *err)
{
    nb_hqq_part parts[NB_HQQ_N_PARTS];
    NB_TRY(nb_hqq_plan(parts, w, err));
    for (int i = 0; i < NB_HQQ_N_PARTS; i++)
        NB_TRY(add_part(sink, w, parts[i].suffix, (part_kind)(PART_HQQ + i), parts[i].dtype,
                        parts[i].n_dims, parts[i].dims, err));
    return NB_OK;
}

/* The largest elements first, so that tensors stay aligned as long as shapes are even. */
static nb_status plan_weight(nb_sink *sink, const nb_weight *w, nb_err *err)
{
    nb_st_dtype dtype;
    if (!w->fmt->affine) {
        NB_TRY(float_dtype(w->fmt->name, &dtype, err));
        return add_part(sink, w, NULL, PART_PLAIN, dtype, w->n_dims, w->dims, err);
    }
    const size_t len = strlen(w->name), end = strlen(".weight");
    if (len < end || strcmp(w->name + len - end, ".weight") != 0 || w->n_dims != 2)
        return nb_fail(err, NB_UNSUPPORTED, "only a module's two-dimensional weight is quantized");
    if (w->fmt->levels != NULL)
        return w->fmt == &nb_format_nf4 ? plan_nf4(sink, w, err) : plan_fp8(sink, w, err);
    if (w->float_zeros)
        return plan_hqq(sink, w, err);
    if (nb_qweight_is(w->layout))
        return plan_turned(sink, w, err);
    const int bits = w->fmt->bits;
    const int64_t n = w->n_rows, k = w->n_cols, n_groups = k / w->group_size;
    NB_TRY(float_dtype(nb_float_name(w->scale_type), &dtype, err));
    if (is_int8(w)) {
        NB_TRY(plan_input_scale(sink, w, err));
        NB_TRY(add_part(sink, w, NULL, PART_INT8, NB_ST_I8, 2, (const int64_t[]){n, k}, err));
        if (!w->symmetric)
            NB_TRY(add_part(sink, w, ".weight_zero_point", PART_ZERO, NB_ST_I8, 2,
                            (const int64_t[]){n, n_groups}, err));
    } else {
        NB_TRY(add_part(sink, w, ".weight_shape", PART_SHAPE, NB_ST_I64, 1, (const int64_t[]){2},
                        err));
        NB_TRY(add_part(sink, w, ".weight_packed", PART_PACKED, NB_ST_I32, 2,
                        (const int64_t[]){n, nb_ct_n_words(k, bits)}, err));
        if (!w->symmetric)
            NB_TRY(add_part(sink, w, ".weight_zero_point", PART_ZERO, NB_ST_I32, 2,
                            (const int64_t[]){nb_ct_n_words(n, bits), n_groups}, err));
        NB_TRY(plan_input_scale(sink, w, err));
    }
    return add_part(sink, w, ".weight_scale", PART_SCALE, dtype, 2, (const int64_t[]){n, n_groups},
                    err);
}

static int64_t part_bytes(const nb_st_tensor *t)
{
    int64_t n = nb_st_dtype_bits(t->dtype) / 8;
    for (int i = 0; i < t->n_dims; i++)
        n *= t->dims[i];
    return n;
}

/* Weights in order; a new shard where one more would make it too large. */
static nb_status plan_shards(nb_sink *sink, int64_t shard_bytes, nb_err *err)
{
    hf_out *hf = sink->state;
    int64_t filled = 0;
    NB_TRY(NB_ARENA_ALLOC(&sink->arena, &hf->shards, sink->n_weights + 1, err));
    hf->n_shards = 1;
    for (int64_t i = 0; i < sink->n_weights; i++) {
        const int64_t first = hf->first_part[i], end = hf->first_part[i + 1];
        int64_t bytes = 0;
        for (int64_t t = first; t < end; t++)
            bytes += part_bytes(&hf->tensors[t]);
        shard *last = &hf->shards[hf->n_shards - 1];
        if (last->n > 0 && bytes > shard_bytes - filled) {
            last = &hf->shards[hf->n_shards++];
            last->first = first;
            filled = 0;
        }
        last->n += end - first;
        filled += bytes;
    }
    for (int64_t s = 0; s < hf->n_shards; s++) {
        shard *p = &hf->shards[s];
        int64_t data_bytes = 0;
        NB_TRY(nb_st_write_header(&p->header, hf->tensors + p->first, p->n, &data_bytes, err));
        sink->planned_bytes += (int64_t)p->header.len + data_bytes;
    }
    return NB_OK;
}

static nb_status plan_all(nb_sink *sink, int64_t shard_bytes, nb_err *err)
{
    hf_out *hf = sink->state;
    const int64_t n = sink->n_weights;
    NB_TRY(NB_ARENA_ALLOC(&sink->arena, &hf->tensors, MAX_PARTS * n, err));
    NB_TRY(NB_ARENA_ALLOC(&sink->arena, &hf->kinds, MAX_PARTS * n, err));
    NB_TRY(NB_ARENA_ALLOC(&sink->arena, &hf->first_part, n + 1, err));
    for (int64_t i = 0; i < n; i++) {
        if (plan_weight(sink, &sink->plan[i], err) != NB_OK)
            return nb_context(err, "weight '%.200s'", sink->plan[i].name);
        hf->first_part[i + 1] = hf->n_tensors;
    }
    return plan_shards(sink, shard_bytes > 0 ? shard_bytes : DEFAULT_SHARD_BYTES, err);
}

/* ---- files ---- */

#define NAME_BYTES 64
static const char *shard_name(const hf_out *hf, int64_t s, char out[NAME_BYTES])
{
    if (hf->n_shards == 1)
        snprintf(out, NAME_BYTES, "model.safetensors");
    else
        snprintf(out, NAME_BYTES, "model-%05lld-of-%05lld.safetensors", (long long)s + 1,
                 (long long)hf->n_shards);
    return out;
}

static nb_status create(const hf_out *hf, nb_outfile *file, const char *name, nb_err *err)
{
    nb_buf path = {0};
    nb_status s = nb_buf_format(&path, err, "%s/%s", hf->dir.temporary, name);
    if (s == NB_OK)
        s = nb_outfile_open(file, (const char *)path.data, false, err);
    nb_buf_free(&path);
    return s;
}

static nb_status write_file(const hf_out *hf, const char *name, const void *bytes, size_t len,
                            nb_err *err)
{
    nb_outfile file = NB_OUTFILE_CLOSED;
    NB_TRY(create(hf, &file, name, err));
    const nb_status s = nb_outfile_write(&file, bytes, len, err);
    if (s == NB_OK)
        return nb_outfile_commit(&file, err);
    nb_outfile_abort(&file);
    return s;
}

static nb_status write_side_files(const hf_out *hf, const nb_side_file *side, int64_t n,
                                  nb_err *err)
{
    for (int64_t i = 0; i < n; i++) {
        const char *name = side[i].name;
        if (name[0] == 0 || name[0] == '.' || strchr(name, '/') != NULL ||
            strstr(name, ".safetensors") != NULL)
            return nb_fail(err, NB_USAGE, "'%.200s' is no name of a side file", name);
        NB_TRY(write_file(hf, name, side[i].bytes, side[i].len, err));
    }
    return NB_OK;
}

static nb_status start_shard(hf_out *hf, nb_err *err)
{
    char name[NAME_BYTES];
    const nb_buf *header = &hf->shards[hf->current].header;
    NB_TRY(create(hf, &hf->file, shard_name(hf, hf->current, name), err));
    return nb_outfile_write(&hf->file, header->data, header->len, err);
}

/* model.safetensors.index.json, as save_pretrained writes it. */
static nb_status write_index(const hf_out *hf, nb_err *err)
{
    nb_buf text = {0};
    int64_t total = 0;
    for (int64_t i = 0; i < hf->n_tensors; i++)
        total += hf->tensors[i].bytes;
    json_t *index =
        json_pack("{s:{s:I},s:{}}", "metadata", "total_size", (json_int_t)total, "weight_map");
    json_t *map = json_object_get(index, "weight_map");
    bool bad = map == NULL;
    for (int64_t s = 0; s < hf->n_shards && !bad; s++) {
        char name[NAME_BYTES];
        shard_name(hf, s, name);
        const shard *p = &hf->shards[s];
        for (int64_t t = p->first; t < p->first + p->n && !bad; t++)
            bad = json_object_set_new(map, hf->tensors[t].name, json_string(name)) != 0;
    }
    nb_status s = bad ? nb_fail(err, NB_MEMORY, "out of memory while writing the index")
                      : nb_json_write(&text, index, true, err);
    if (s == NB_OK)
        s = write_file(hf, "model.safetensors.index.json", text.data, text.len, err);
    json_decref(index);
    nb_buf_free(&text);
    return s;
}

/* ---- putting ---- */

static nb_status put_packed8(hf_out *hf, const nb_mat *m, nb_err *err)
{
    const size_t row = (size_t)(4 * nb_ct_n_words(m->n_cols, 8));
    hf->chunk.len = 0;
    for (int64_t r = 0; r < m->n_rows; r++) {
        NB_TRY(nb_buf_reserve(&hf->chunk, row, err));
        nb_ct_pack8_row(hf->chunk.data + hf->chunk.len, nb_mat_row(m, r), m->n_cols);
        hf->chunk.len += row;
        if (hf->chunk.len >= CHUNK_BYTES || r + 1 == m->n_rows) {
            NB_TRY(nb_outfile_write(&hf->file, hf->chunk.data, hf->chunk.len, err));
            hf->chunk.len = 0;
        }
    }
    return NB_OK;
}

static nb_status put_zeros(hf_out *hf, const nb_mat *m, const nb_st_tensor *t, nb_err *err)
{
    if (t->dtype == NB_ST_I8)
        return nb_outfile_write(&hf->file, m->zeros, (size_t)t->bytes, err);
    hf->chunk.len = 0;
    NB_TRY(nb_buf_reserve(&hf->chunk, (size_t)t->bytes, err));
    nb_ct_pack_zeros((uint32_t *)hf->chunk.data, m->zeros, m->n_rows, nb_mat_n_groups(m),
                     m->fmt->bits);
    return nb_outfile_write(&hf->file, hf->chunk.data, (size_t)t->bytes, err);
}

/* Of rows that share their scales, the first one's. */
static nb_status put_scales(hf_out *hf, const nb_mat *m, const nb_st_tensor *t, nb_err *err)
{
    if (m->scale_rows <= 1)
        return nb_outfile_write(&hf->file, m->scales, (size_t)t->bytes, err);
    const size_t row = (size_t)nb_mat_n_groups(m) * nb_float_bytes(m->scale_type);
    for (int64_t r = 0; r < m->n_rows; r += m->scale_rows)
        NB_TRY(nb_outfile_write(&hf->file, (const uint8_t *)m->scales + (size_t)r * row, row, err));
    return NB_OK;
}

static nb_status put_state(hf_out *hf, const nb_weight *w, const nb_mat *m, nb_err *err)
{
    hf->chunk.len = 0;
    NB_TRY(nb_bnb_state(&hf->chunk, w, m->nested.offset, err));
    return nb_outfile_write(&hf->file, hf->chunk.data, hf->chunk.len, err);
}

static nb_status put_turned(hf_out *hf, const nb_weight *w, const nb_mat *m, nb_qweight_kind kind,
                            const nb_st_tensor *t, nb_err *err)
{
    hf->chunk.len = 0;
    NB_TRY(nb_buf_reserve(&hf->chunk, (size_t)t->bytes, err));
    uint32_t *words = (uint32_t *)(void *)hf->chunk.data;
    switch (kind) {
    case NB_QWEIGHT_CODES:
        nb_qweight_write_codes(words, w, m);
        break;
    case NB_QWEIGHT_ZEROS:
        if (nb_qweight_write_zeros(words, w, m, err) != NB_OK)
            return nb_context(err, "weight '%.200s'", w->name);
        break;
    case NB_QWEIGHT_ORDER:
        for (int64_t k = 0; k < m->n_cols; k++)
            words[k] = (uint32_t)(k / m->group_size);
        break;
    case NB_QWEIGHT_SCALES:
        nb_qweight_turn(words, m->scales, m->n_rows, nb_mat_n_groups(m),
                        nb_float_bytes(m->scale_type));
        break;
    }
    return nb_outfile_write(&hf->file, words, (size_t)t->bytes, err);
}

static nb_status put_hqq(hf_out *hf, const nb_weight *w, const nb_mat *m, int i,
                         const nb_st_tensor *t, nb_err *err)
{
    nb_hqq_part parts[NB_HQQ_N_PARTS];
    NB_TRY(nb_hqq_plan(parts, w, err));
    const nb_hqq_part *p = &parts[i];
    switch (p->kind) {
    case NB_HQQ_SCALE:
        return nb_outfile_write(&hf->file, m->scales, (size_t)t->bytes, err);
    case NB_HQQ_ZERO:
        return nb_outfile_write(&hf->file, m->float_zeros, (size_t)t->bytes, err);
    case NB_HQQ_SHAPE:
        return nb_outfile_write(&hf->file, (const int64_t[]){m->n_rows, m->n_cols}, 16, err);
    case NB_HQQ_WORD: /* small numbers, whose first bytes are the low ones */
        return nb_outfile_write(&hf->file, p->text != NULL ? p->text : (const void *)&p->number,
                                (size_t)t->bytes, err);
    case NB_HQQ_CODES:
        break;
    }
    hf->chunk.len = 0;
    NB_TRY(nb_buf_reserve(&hf->chunk, (size_t)t->bytes, err));
    nb_hqq_write_codes(hf->chunk.data, m);
    return nb_outfile_write(&hf->file, hf->chunk.data, (size_t)t->bytes, err);
}

static nb_status put_part(hf_out *hf, const nb_weight *w, const nb_mat *m, part_kind kind,
                          const nb_st_tensor *t, nb_err *err)
{
    if (kind >= PART_HQQ)
        return put_hqq(hf, w, m, (int)kind - PART_HQQ, t, err);
    if (kind >= PART_TURNED)
        return put_turned(hf, w, m, (nb_qweight_kind)((int)kind - PART_TURNED), t, err);
    switch (kind) {
    case PART_SHAPE:
        return nb_outfile_write(&hf->file, (const int64_t[]){m->n_rows, m->n_cols}, 16, err);
    case PART_ZERO:
        return put_zeros(hf, m, t, err);
    case PART_SCALE:
        return put_scales(hf, m, t, err);
    case PART_INPUT_SCALE:
        return nb_outfile_write(&hf->file, &w->act.scale, sizeof w->act.scale, err);
    case PART_NESTED:
        return nb_outfile_write(&hf->file, m->nested.code, (size_t)t->bytes, err);
    case PART_STEPS:
        return nb_outfile_write(&hf->file, m->nested.step, (size_t)t->bytes, err);
    case PART_MAP:
        return nb_outfile_write(&hf->file, nb_nf4_levels, (size_t)t->bytes, err);
    case PART_NESTED_MAP:
        return nb_outfile_write(&hf->file, nb_nf4_map, (size_t)t->bytes, err);
    case PART_STATE:
        return put_state(hf, w, m, err);
    case PART_PACKED:
        if (m->fmt->bits == 8)
            return put_packed8(hf, m, err);
        break; /* fewer bits: nb_mat has the bytes of the file */
    case PART_PLAIN:
    case PART_INT8:
    case PART_TURNED:
    case PART_HQQ:
        break;
    }
    return nb_outfile_write(&hf->file, m->codes, (size_t)t->bytes, err);
}

static nb_status hf_put(nb_sink *sink, int64_t index, const nb_mat *mat, nb_err *err)
{
    hf_out *hf = sink->state;
    const int64_t first = hf->first_part[index], end = hf->first_part[index + 1];
    const shard *now = &hf->shards[hf->current];
    if (first == now->first + now->n) {
        NB_TRY(nb_outfile_commit(&hf->file, err));
        hf->current++;
        NB_TRY(start_shard(hf, err));
    }
    for (int64_t t = first; t < end; t++)
        NB_TRY(put_part(hf, &sink->plan[index], mat, hf->kinds[t], &hf->tensors[t], err));
    return NB_OK;
}

static nb_status hf_finish(nb_sink *sink, const char **path, nb_err *err)
{
    hf_out *hf = sink->state;
    NB_TRY(nb_outfile_commit(&hf->file, err));
    if (hf->n_shards > 1)
        NB_TRY(write_index(hf, err));
    *path = hf->dir.temporary;
    return NB_OK;
}

static nb_status hf_amend(nb_sink *sink, int64_t index, const nb_mat *mat, nb_err *err)
{
    const hf_out *hf = sink->state;
    char name[NAME_BYTES];
    nb_buf path = {0};
    const int64_t t = hf->first_part[index]; /* the only one, of plain numbers */
    int64_t s = 0;
    while (t >= hf->shards[s].first + hf->shards[s].n)
        s++;
    const nb_st_tensor *tensor = &hf->tensors[t];
    nb_status status =
        nb_buf_format(&path, err, "%s/%s", hf->dir.temporary, shard_name(hf, s, name));
    if (status == NB_OK)
        status = nb_file_amend((const char *)path.data,
                               (int64_t)hf->shards[s].header.len + tensor->begin, mat->codes,
                               (size_t)tensor->bytes, err);
    nb_buf_free(&path);
    return status;
}

static nb_status hf_commit(nb_sink *sink, nb_err *err)
{
    hf_out *hf = sink->state;
    return nb_outdir_commit(&hf->dir, err);
}

/* Committed files and folders are closed ones, which abort leaves alone. */
static void hf_abort(nb_sink *sink)
{
    hf_out *hf = sink->state;
    nb_outfile_abort(&hf->file);
    nb_outdir_abort(&hf->dir);
    for (int64_t s = 0; s < hf->n_shards; s++)
        nb_buf_free(&hf->shards[s].header);
    nb_buf_free(&hf->chunk);
    sink->state = NULL; /* its memory is the arena's */
}

static const nb_sink_kind hf_sink = {
    .put = hf_put, .finish = hf_finish, .amend = hf_amend, .commit = hf_commit, .abort = hf_abort};

static nb_status open_all(nb_sink *sink, const char *path, bool force, const nb_side_file *side,
                          int64_t n_side, int64_t shard_bytes, nb_err *err)
{
    hf_out *hf;
    NB_TRY(NB_ARENA_ALLOC(&sink->arena, &hf, 1, err));
    hf->dir = NB_OUTDIR_CLOSED;
    hf->file = NB_OUTFILE_CLOSED;
    sink->state = hf;
    NB_TRY(plan_all(sink, shard_bytes, err));
    if (path == NULL)
        return NB_OK;
    NB_TRY(nb_outdir_open(&hf->dir, path, force, err));
    NB_TRY(write_side_files(hf, side, n_side, err));
    return start_shard(hf, err);
}

nb_status nb_sink_open_hf(nb_sink **out, const char *path, bool force, const nb_weight *plan,
                          int64_t n_weights, const nb_side_file *side, int64_t n_side,
                          int64_t shard_bytes, nb_err *err)
{
    nb_sink *sink;
    *out = NULL;
    NB_TRY(nb_sink_new(&sink, &hf_sink, plan, n_weights, err));
    const nb_status s = open_all(sink, path, force, side, n_side, shard_bytes, err);
    if (s != NB_OK) {
        nb_sink_abort(sink);
        return s;
    }
    *out = sink;
    return NB_OK;
}

nb_status nb_hf_quantization(json_t **out, const nb_weight *plan, int64_t n_weights, nb_err *err)
{
    bool kv = false;
    for (int64_t i = 0; i < n_weights; i++)
        kv = kv || nb_weight_is_kv_scale(&plan[i]);
    for (int64_t i = 0; i < n_weights; i++) {
        const bool nf4 = plan[i].fmt == &nb_format_nf4;
        const bool turned = plan[i].fmt->affine && nb_qweight_is(plan[i].layout);
        if (kv && (nf4 || plan[i].float_zeros || turned))
            return nb_fail(err, NB_UNSUPPORTED,
                           "static scales of the KV cache go into folders of compressed-tensors, "
                           "and '%.200s' is laid out as %s",
                           plan[i].name,
                           nf4                   ? "by bitsandbytes"
                           : plan[i].float_zeros ? "by HQQ"
                                                 : "by GPTQ or AWQ");
        if (nf4)
            return nb_bnb_config(out, plan, n_weights, err);
        if (plan[i].float_zeros)
            return nb_hqq_config(out, plan, n_weights, err);
        if (turned)
            return nb_qweight_config(out, plan, n_weights, err);
    }
    return nb_ct_config(out, plan, n_weights, err);
}
