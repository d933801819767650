/* See awq.h. */
#include "store/awq.h"

#include <string.h>
#include <strings.h>

/* ---- the words ---- */

nb_status nb_awq_parse(nb_qweight_spec *spec, const json_t *config, nb_err *err)
{
    int64_t bits = 0;
    bool zero_point = true;
    const char *version = "gemm";
    const char *bits_key = json_object_get(config, "w_bit") != NULL ? "w_bit" : "bits";
    const char *group_key =
        json_object_get(config, "q_group_size") != NULL ? "q_group_size" : "group_size";
    const char *version_key =
        json_is_string(json_object_get(config, "version")) ? "version" : "format";
    *spec = (nb_qweight_spec){.layout = NB_LAYOUT_AWQ, .bits = 4};
    NB_TRY(nb_json_int(config, bits_key, true, 1, 64, &bits, err));
    NB_TRY(nb_json_int(config, group_key, true, -1, INT64_MAX, &spec->group_size, err));
    NB_TRY(nb_json_bool(config, "zero_point", false, &zero_point, err));
    NB_TRY(nb_json_bool(config, "sym", false, &spec->symmetric, err));
    NB_TRY(nb_json_text(config, version_key, false, &version, err));
    if (bits != 4)
        return nb_fail(err, NB_UNSUPPORTED, "%s %lld is not supported (4 is)", bits_key,
                       (long long)bits);
    if (spec->group_size == 0)
        return nb_fail(err, NB_DATA, "%s is 0", group_key);
    if (!zero_point)
        return nb_fail(err, NB_UNSUPPORTED, "zero_point false is not supported");
    if (strcasecmp(version, "gemm") != 0)
        return nb_fail(err, NB_UNSUPPORTED, "%s '%.50s' is not supported (gemm is)", version_key,
                       version);
    return NB_OK;
}

/* The layout has zero points whether it needs them or not. That they all mean 0 is said by a key
 * that its readers do not ask for. */
json_t *nb_awq_config(const nb_qweight_spec *spec, const json_t *loose)
{
    json_t *config =
        json_pack("{s:s,s:i,s:I,s:b,s:s}", "quant_method", "awq", "bits", 4, "group_size",
                  (json_int_t)spec->group_size, "zero_point", 1, "version", "gemm");
    bool bad = json_object_set_new(config, "modules_to_not_convert", json_deep_copy(loose)) != 0;
    if (!bad && spec->symmetric)
        bad = json_object_set_new(config, "sym", json_true()) != 0;
    if (!bad)
        return config;
    json_decref(config);
    return NULL;
}

/* ---- the bits ---- */

/* The output, of a word's eight, that nibble i belongs to. */
static const int output_of[8] = {0, 2, 4, 6, 1, 3, 5, 7};

/* Eight words of eight nibbles, transposed: blocks of 4, of 2 and of 1 change places across the
 * diagonal. */
static void turn_nibbles(uint32_t v[8])
{
    static const uint32_t mask[] = {0x0f0f0f0f, 0x00ff00ff, 0x0000ffff};
    for (int step = 2; step >= 0; step--) {
        const int s = 1 << step;
        for (int k = 0; k < 8; k++) {
            if (k & s)
                continue;
            const uint32_t t = (v[k] >> 4 * s ^ v[k + s]) & mask[step];
            v[k + s] ^= t;
            v[k] ^= t << 4 * s;
        }
    }
}

/* Words of nb_mat's rows that are filled together: a line of a cache. */
#define LINE_WORDS 16

void nb_awq_read_codes(uint8_t *codes, const uint32_t *words, int64_t n_rows, int64_t n_cols)
{
    uint32_t *out = (uint32_t *)(void *)codes;
    const int64_t across = n_rows / 8, n_words = n_cols / 8;
    for (int64_t first = 0; first < n_words; first += LINE_WORDS) {
        const int64_t end = first + LINE_WORDS < n_words ? first + LINE_WORDS : n_words;
        for (int64_t c = 0; c < across; c++) {
            for (int64_t w = first; w < end; w++) {
                uint32_t v[8];
                for (int k = 0; k < 8; k++)
                    v[k] = words[(8 * w + k) * across + c];
                turn_nibbles(v);
                for (int i = 0; i < 8; i++)
                    out[(8 * c + output_of[i]) * n_words + w] = v[i];
            }
        }
    }
}

void nb_awq_write_codes(uint32_t *words, const uint8_t *codes, int64_t n_rows, int64_t n_cols)
{
    const uint32_t *in = (const uint32_t *)(const void *)codes;
    const int64_t across = n_rows / 8, n_words = n_cols / 8;
    for (int64_t first = 0; first < n_words; first += LINE_WORDS) {
        const int64_t end = first + LINE_WORDS < n_words ? first + LINE_WORDS : n_words;
        for (int64_t c = 0; c < across; c++) {
            for (int64_t w = first; w < end; w++) {
                uint32_t v[8];
                for (int i = 0; i < 8; i++)
                    v[i] = in[(8 * c + output_of[i]) * n_words + w];
                turn_nibbles(v);
                for (int k = 0; k < 8; k++)
                    words[(8 * w + k) * across + c] = v[k];
            }
        }
    }
}

void nb_awq_read_zeros(int8_t *zeros, const uint32_t *words, int64_t n_rows, int64_t n_groups)
{
    for (int64_t g = 0; g < n_groups; g++)
        for (int64_t c = 0; c < n_rows / 8; c++) {
            const uint32_t word = words[g * (n_rows / 8) + c];
            for (int i = 0; i < 8; i++)
                zeros[(8 * c + output_of[i]) * n_groups + g] =
                    (int8_t)((int)(word >> 4 * i & 15) - 8);
        }
}

void nb_awq_write_zeros(uint32_t *words, const int8_t *zeros, int64_t n_rows, int64_t n_groups)
{
    for (int64_t g = 0; g < n_groups; g++)
        for (int64_t c = 0; c < n_rows / 8; c++) {
            uint32_t word = 0;
            for (int i = 0; i < 8; i++) {
                const int z = zeros == NULL ? 0 : zeros[(8 * c + output_of[i]) * n_groups + g];
                word |= (uint32_t)(z + 8) << 4 * i;
            }
            words[g * (n_rows / 8) + c] = word;
        }
}
