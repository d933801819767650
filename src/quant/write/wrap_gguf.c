/* The keys of a GGUF around its tensors; see wrapping.h. */
#include "quant/write/wrapping.h"

#include "quant/recipe/preset.h"
#include "store/json_scan.h"
#include "text/tokenizer.h"

#include <string.h>

/* ---- general.* ---- */

/* What general.file_type says of files that are mostly of one type (formats.md 8.7). */
static uint32_t file_type_of(const nb_format *fmt)
{
    static const struct {
        const nb_format *fmt;
        uint32_t type;
    } types[] = {
        {&nb_format_f32, 0},     {&nb_format_f16, 1},   {&nb_format_q4_0, 2},
        {&nb_format_q4_1, 3},    {&nb_format_q8_0, 7},  {&nb_format_q5_0, 8},
        {&nb_format_q5_1, 9},    {&nb_format_q2_k, 10}, {&nb_format_q3_k, 12},
        {&nb_format_q4_k, 15},   {&nb_format_q5_k, 17}, {&nb_format_q6_k, 18},
        {&nb_format_iq4_nl, 25}, {&nb_format_bf16, 32},
    };
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        if (types[i].fmt == fmt)
            return types[i].type;
    }
    return 1024; /* "guessed" */
}

/* The type of most parameters that are in the blocks, where every model has its largest part but
 * the tiniest, whose embedding is larger. */
static const nb_format *most_common(const nb_plan *plan, bool *any_quantized)
{
    const nb_format *best = &nb_format_f32;
    int64_t most = 0;
    *any_quantized = false;
    for (const nb_format *const *f = nb_formats; *f != NULL; f++) {
        int64_t n = 0;
        for (int64_t i = 0; i < plan->n; i++) {
            const nb_weight *w = &plan->weights[i];
            const bool in_block = strncmp(w->name, "model.layers.", 13) == 0;
            if (w->fmt == *f && w->n_dims > 1 && in_block)
                n += w->n_rows * w->n_cols;
            *any_quantized = *any_quantized || w->fmt->block_len > 1;
        }
        if (n > most) {
            most = n;
            best = *f;
        }
    }
    return best;
}

static nb_status put_types(nb_wrapping *w, const nb_plan *plan, nb_err *err)
{
    bool any_quantized;
    const nb_format *most = most_common(plan, &any_quantized);
    const nb_preset *preset = plan->request.preset;
    const uint32_t type = preset != NULL ? preset->file_type : file_type_of(most);
    NB_TRY(nb_gguf_put_u32(&w->kv, "general.file_type", type, err));
    w->n_kv++;
    if (!any_quantized)
        return NB_OK;
    w->n_kv++;
    return nb_gguf_put_u32(&w->kv, "general.quantization_version", 2, err);
}

/* ---- from a GGUF ---- */

static bool text_is(nb_text t, const char *s)
{
    return t.len == strlen(s) && memcmp(t.text, s, t.len) == 0;
}

/* Keys about the file and not about the model. */
static bool is_about_file(nb_text key)
{
    return text_is(key, "general.file_type") || text_is(key, "general.quantization_version") ||
           text_is(key, "split.no") || text_is(key, "split.count") ||
           text_is(key, "split.tensors.count");
}

/* A pair as it was, byte for byte. */
static nb_status put_raw(nb_buf *kv, const nb_gguf_kv *pair, nb_err *err)
{
    NB_TRY(nb_buf_u64(kv, pair->key.len, err));
    NB_TRY(nb_buf_put(kv, pair->key.text, pair->key.len, err));
    NB_TRY(nb_buf_u32(kv, (uint32_t)pair->type, err));
    if (pair->type == NB_GGUF_ARRAY) {
        NB_TRY(nb_buf_u32(kv, (uint32_t)pair->elem, err));
        NB_TRY(nb_buf_u64(kv, pair->count, err));
    }
    return nb_buf_put(kv, pair->data, pair->data_bytes, err);
}

static nb_status from_gguf(nb_wrapping *w, const nb_gguf *g, const nb_plan *plan, nb_err *err)
{
    for (int64_t i = 0; i < nb_gguf_n_kv(g); i++) {
        const nb_gguf_kv *pair = nb_gguf_kv_at(g, i);
        if (is_about_file(pair->key))
            continue;
        NB_TRY(put_raw(&w->kv, pair, err));
        w->n_kv++;
    }
    return put_types(w, plan, err);
}

/* ---- from a folder ---- */

/* The last part of the folder's name, which is what people call the model, unless it is no name. */
static nb_status put_name(nb_wrapping *w, const char *path, const char *otherwise, nb_err *err)
{
    size_t end = strlen(path);
    while (end > 1 && path[end - 1] == '/')
        end--;
    size_t begin = end;
    while (begin > 0 && path[begin - 1] != '/')
        begin--;
    nb_text name = {.text = path + begin, .len = end - begin};
    if (name.len == 0 || name.text[0] == '.' || !nb_utf8_valid(name.text, name.len))
        name = (nb_text){.text = otherwise, .len = strlen(otherwise)};
    w->n_kv++;
    return nb_gguf_put_text(&w->kv, "general.name", name.text, name.len, err);
}

static nb_status from_folder(nb_wrapping *w, nb_store *store, const nb_plan *plan, nb_err *err)
{
    const char *template_;
    size_t len;
    if (nb_config_to_gguf(&plan->config, &w->kv, &w->n_kv, err) != NB_OK)
        return nb_context(err, "%s/config.json", nb_store_path(store));
    w->n_kv++;
    NB_TRY(nb_gguf_put_text(&w->kv, "general.type", "model", 5, err));
    NB_TRY(put_name(w, nb_store_path(store), plan->config.arch->name, err));
    NB_TRY(put_types(w, plan, err));
    nb_tokenizer *t;
    NB_TRY(nb_tokenizer_open(&t, store, err));
    nb_status s = nb_tokenizer_to_gguf(t, plan->config.vocab_size, &w->kv, &w->n_kv, err);
    nb_tokenizer_close(t);
    if (s != NB_OK)
        return nb_context(err, "%s/tokenizer.json", nb_store_path(store));
    NB_TRY(nb_store_chat_template(store, &template_, &len, err));
    if (template_ == NULL)
        return NB_OK;
    w->n_kv++;
    return nb_gguf_put_text(&w->kv, "tokenizer.chat_template", template_, len, err);
}

nb_status nb_wrap_gguf(nb_wrapping *w, nb_store *store, const nb_plan *plan, nb_err *err)
{
    const nb_config *c = &plan->config;
    w->n_heads = c->arch->gguf_permuted ? c->n_heads : 0;
    w->n_kv_heads = c->arch->gguf_permuted ? c->n_kv_heads : 0;
    return nb_store_kind_of(store) == NB_STORE_GGUF ? from_gguf(w, nb_store_gguf(store), plan, err)
                                                    : from_folder(w, store, plan, err);
}
