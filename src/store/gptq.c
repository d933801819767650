/* See gptq.h. */
#include "store/gptq.h"

#include "numeric/codebits.h"

#include <string.h>

/* ---- the words ---- */

static nb_status parse_bits(nb_qweight_spec *spec, const json_t *config, nb_err *err)
{
    int64_t bits = 0;
    const char *key = json_object_get(config, "w_bit") != NULL ? "w_bit" : "bits";
    NB_TRY(nb_json_int(config, key, true, 1, 64, &bits, err));
    if (nb_format_of_bits(bits) == NULL)
        return nb_fail(err, NB_UNSUPPORTED, "bits %lld is not supported (2, 3, 4 and 8 are)",
                       (long long)bits);
    spec->bits = (int)bits;
    key = json_object_get(config, "q_group_size") != NULL ? "q_group_size" : "group_size";
    NB_TRY(nb_json_int(config, key, true, -1, INT64_MAX, &spec->group_size, err));
    if (spec->group_size == 0)
        return nb_fail(err, NB_DATA, "%s is 0", key);
    return NB_OK;
}

/* Newer programs spell it both ways. Files that name none are of version 1. */
static nb_status parse_format(nb_qweight_spec *spec, const json_t *config, nb_err *err)
{
    const char *format = "gptq";
    const char *key = json_is_string(json_object_get(config, "checkpoint_format"))
                          ? "checkpoint_format"
                          : "format";
    NB_TRY(nb_json_text(config, key, false, &format, err));
    if (strcmp(format, "gptq") == 0)
        spec->layout = NB_LAYOUT_GPTQ;
    else if (strcmp(format, "gptq_v2") == 0)
        spec->layout = NB_LAYOUT_GPTQ_V2;
    else
        return nb_fail(err, NB_UNSUPPORTED, "%s '%.50s' is not supported (gptq and gptq_v2 are)",
                       key, format);
    return NB_OK;
}

/* Rules of their own for some modules: those that are not quantized at all are seen by what the
 * folder holds of them. */
static nb_status check_dynamic(const json_t *config, nb_err *err)
{
    json_t *dynamic = NULL;
    NB_TRY(nb_json_object(config, "dynamic", false, &dynamic, err));
    void *it = json_object_iter(dynamic);
    for (; it != NULL; it = json_object_iter_next(dynamic, it)) {
        const char *key = json_object_iter_key(it);
        if (strncmp(key, "-:", 2) != 0)
            return nb_fail(
                err, NB_UNSUPPORTED,
                "dynamic: '%.100s' has a quantization of its own, which is not supported", key);
    }
    return NB_OK;
}

nb_status nb_gptq_parse(nb_qweight_spec *spec, const json_t *config, nb_err *err)
{
    bool marlin = false;
    const char *words = "int32";
    *spec = (nb_qweight_spec){.symmetric = true};
    NB_TRY(parse_bits(spec, config, err));
    NB_TRY(parse_format(spec, config, err));
    NB_TRY(nb_json_bool(config, "sym", false, &spec->symmetric, err));
    NB_TRY(nb_json_bool(config, "desc_act", false, &spec->reorders, err));
    NB_TRY(nb_json_bool(config, "is_marlin_format", false, &marlin, err));
    NB_TRY(nb_json_text(config, "pack_dtype", false, &words, err));
    if (marlin)
        return nb_fail(err, NB_UNSUPPORTED, "is_marlin_format is not supported");
    if (strcmp(words, "int32") != 0)
        return nb_fail(err, NB_UNSUPPORTED, "pack_dtype '%.50s' is not supported (int32 is)",
                       words);
    return check_dynamic(config, err);
}

/* "-:^model\\.layers\\.0\\.gate$": this module is not quantized. */
static bool skip_module(json_t *dynamic, const char *name)
{
    nb_buf pattern = {0};
    nb_err err;
    bool fine = nb_buf_text(&pattern, "-:^", &err) == NB_OK;
    for (; *name != 0 && fine; name++) {
        if (*name == '.')
            fine = nb_buf_u8(&pattern, '\\', &err) == NB_OK;
        fine = fine && nb_buf_u8(&pattern, (uint8_t)*name, &err) == NB_OK;
    }
    fine = fine && nb_buf_put(&pattern, "$", 2, &err) == NB_OK &&
           json_object_set_new(dynamic, (const char *)pattern.data, json_object()) == 0;
    nb_buf_free(&pattern);
    return fine;
}

/* Keys that say how codes were found are left out: whoever chose them knows, this file does not. */
json_t *nb_gptq_config(const nb_qweight_spec *spec, bool lm_head, const json_t *loose)
{
    const char *format = spec->layout == NB_LAYOUT_GPTQ ? "gptq" : "gptq_v2";
    json_t *config =
        json_pack("{s:s,s:i,s:I,s:b,s:b,s:b,s:s,s:s,s:s}", "quant_method", "gptq", "bits",
                  spec->bits, "group_size", (json_int_t)spec->group_size, "desc_act", 0, "sym",
                  (int)spec->symmetric, "lm_head", (int)lm_head, "checkpoint_format", format,
                  "format", format, "pack_dtype", "int32");
    const size_t n_loose = json_array_size(loose);
    bool fine = config != NULL &&
                (n_loose == 0 || json_object_set_new(config, "dynamic", json_object()) == 0);
    json_t *dynamic = json_object_get(config, "dynamic");
    for (size_t i = 0; i < n_loose && fine; i++)
        fine = skip_module(dynamic, json_string_value(json_array_get(loose, i)));
    if (fine)
        return config;
    json_decref(config);
    return NULL;
}

/* ---- the bits ---- */

/* Signed bytes are nb_mat's codes of 8 bits; the file's are unsigned. */
static void flip_signs(uint8_t *codes, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        codes[i] ^= 0x80;
}

void nb_gptq_read_codes(uint8_t *codes, const uint32_t *words, int64_t n_rows, int64_t n_cols,
                        int bits)
{
    nb_qweight_turn(codes, words, nb_codebits_words(n_cols, bits), n_rows, sizeof *words);
    if (bits == 8)
        flip_signs(codes, n_rows * n_cols);
}

void nb_gptq_write_codes(uint32_t *words, const uint8_t *codes, int64_t n_rows, int64_t n_cols,
                         int bits)
{
    nb_qweight_turn(words, codes, n_rows, nb_codebits_words(n_cols, bits), sizeof *words);
    if (bits == 8)
        flip_signs((uint8_t *)words, n_rows * n_cols);
}

#define PIECE 32

nb_status nb_gptq_read_zeros(int8_t *zeros, const uint32_t *words, int64_t n_rows, int64_t n_groups,
                             int bits, int less, nb_err *err)
{
    const int half = 1 << (bits - 1), most = 2 * half - 1;
    for (int64_t g = 0; g < n_groups; g++) {
        const uint8_t *string = (const uint8_t *)(words + g * nb_codebits_words(n_rows, bits));
        for (int64_t r = 0; r < n_rows; r += PIECE) {
            int8_t stored[PIECE];
            const int64_t n = n_rows - r < PIECE ? n_rows - r : PIECE;
            nb_codebits_get(stored, string, bits, r, n, 0);
            for (int64_t i = 0; i < n; i++) {
                const int u = (uint8_t)stored[i];
                if (u + less > most)
                    return nb_fail(err, NB_DATA,
                                   "group %lld, output %lld: the stored zero point %d overflows "
                                   "with the 1 that this version adds; programs disagree on it",
                                   (long long)g, (long long)(r + i), u);
                zeros[(r + i) * n_groups + g] = (int8_t)(u + less - half);
            }
        }
    }
    return NB_OK;
}

nb_status nb_gptq_write_zeros(uint32_t *words, const nb_mat *m, int less, nb_err *err)
{
    const int bits = m->fmt->bits, half = 1 << (bits - 1);
    const int64_t n_groups = nb_mat_n_groups(m), n_words = nb_codebits_words(m->n_rows, bits);
    memset(words, 0, (size_t)(n_groups * n_words) * sizeof *words);
    for (int64_t g = 0; g < n_groups; g++) {
        uint8_t *string = (uint8_t *)(words + g * n_words);
        for (int64_t r = 0; r < m->n_rows; r += PIECE) {
            int8_t stored[PIECE];
            const int64_t n = m->n_rows - r < PIECE ? m->n_rows - r : PIECE;
            for (int64_t i = 0; i < n; i++) {
                const int zero = m->zeros == NULL ? 0 : m->zeros[(r + i) * n_groups + g];
                if (zero + half < less)
                    return nb_fail(
                        err, NB_UNSUPPORTED,
                        "row %lld has a zero point of 0, for which GPTQ version 1 has no "
                        "place; gptq_v2 has",
                        (long long)(r + i));
                stored[i] = (int8_t)(zero + half - less);
            }
            nb_codebits_put(string, bits, r, stored, n, 0);
        }
    }
    return NB_OK;
}
