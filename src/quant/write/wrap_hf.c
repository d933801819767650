/* The files of a Hugging Face folder around its tensors; see wrapping.h. */
#define _POSIX_C_SOURCE 200809L
#include "quant/write/wrapping.h"

#include "quant/plan/target.h"
#include "text/tokenizer.h"

#include <assert.h>
#include <string.h>
#include <sys/stat.h>

/* The largest published tokenizer.json has 35 MB. */
#define MAX_SIDE_BYTES ((size_t)128 << 20)

/* What is copied from folder to folder, beside config.json: what readers need to make tokens, and
 * under which terms all of it is given. Nothing that somebody could run. */
static const char *const copied[] = {
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "NOTICE",
};

static nb_status no_memory(nb_err *err)
{
    return nb_fail(err, NB_MEMORY, "out of memory while writing JSON");
}

/* Room for a new file, which counts only once it is filled. */
static nb_buf *next_file(nb_wrapping *w)
{
    return &w->bytes[w->n_side];
}

static void end_file(nb_wrapping *w, const char *name)
{
    const nb_buf *b = &w->bytes[w->n_side];
    w->side[w->n_side++] = (nb_side_file){.name = name, .bytes = b->data, .len = b->len};
    w->side_bytes += (int64_t)b->len;
}

/* Takes the reference; NULL is what jansson gives when it is out of memory. */
static nb_status add_json(nb_wrapping *w, const char *name, json_t *value, nb_err *err)
{
    nb_buf *b = next_file(w);
    nb_status s = value == NULL ? no_memory(err) : nb_json_write(b, value, true, err);
    if (s == NB_OK)
        s = nb_buf_u8(b, '\n', err);
    json_decref(value);
    if (s == NB_OK)
        end_file(w, name);
    else
        nb_buf_free(b);
    return s;
}

/* ---- config.json ---- */

static const char *dtype_name(const nb_format *fmt)
{
    return fmt == &nb_format_f32 ? "float32" : fmt == &nb_format_f16 ? "float16" : "bfloat16";
}

/* Readers turn every tensor into the type that the config names: that of the largest one, but F16
 * where that is the type of all scales. */
static const nb_format *folder_type(const nb_plan *plan)
{
    const nb_format *main_format = plan->main_type == NB_F16 ? &nb_format_f16 : &nb_format_bf16;
    bool any_quantized = false;
    const nb_format *embed = main_format;
    for (int64_t i = 0; i < plan->n; i++) {
        any_quantized = any_quantized || plan->weights[i].fmt->affine;
        if (strcmp(plan->weights[i].name, "model.embed_tokens.weight") == 0 &&
            !plan->weights[i].fmt->affine)
            embed = plan->weights[i].fmt;
    }
    if (any_quantized && nb_target_turns(plan->request.layout))
        return &nb_format_f16;
    const bool widened = plan->request.dtype == NB_DTYPE_KEEP && any_quantized;
    return widened ? main_format : embed;
}

/* Takes the reference to `config`. */
static nb_status add_config(nb_wrapping *w, const nb_plan *plan, json_t *config, nb_err *err)
{
    json_t *quantization = NULL;
    if (config == NULL)
        return no_memory(err);
    nb_status s = nb_hf_quantization(&quantization, plan->weights, plan->n, err);
    if (s != NB_OK) {
        json_decref(config);
        return s;
    }
    const char *dtype = dtype_name(folder_type(plan));
    bool bad = json_object_set_new(config, "torch_dtype", json_string(dtype)) != 0;
    if (json_object_get(config, "dtype") != NULL) /* the newer spelling, where it is in use */
        bad = json_object_set_new(config, "dtype", json_string(dtype)) != 0 ||
              json_object_del(config, "torch_dtype") != 0 || bad;
    json_object_del(config, "quantization_config");
    if (quantization != NULL)
        bad = json_object_set_new(config, "quantization_config", quantization) != 0 || bad;
    if (bad) {
        json_decref(config);
        return no_memory(err);
    }
    return add_json(w, "config.json", config, err);
}

/* Older readers of GPTQ look for its words in a file of their own. */
static nb_status add_quantize_config(nb_wrapping *w, const nb_plan *plan, nb_err *err)
{
    json_t *quantization = NULL;
    if (plan->request.layout != NB_LAYOUT_GPTQ && plan->request.layout != NB_LAYOUT_GPTQ_V2)
        return NB_OK;
    NB_TRY(nb_hf_quantization(&quantization, plan->weights, plan->n, err));
    return quantization == NULL ? NB_OK : add_json(w, "quantize_config.json", quantization, err);
}

/* ---- from a folder ---- */

static nb_status copy_file(nb_wrapping *w, const nb_store *store, const char *name, nb_err *err)
{
    nb_buf path = {0};
    struct stat st;
    nb_status s = nb_buf_format(&path, err, "%s/%s", nb_store_path(store), name);
    if (s == NB_OK && lstat((const char *)path.data, &st) == 0) {
        s = nb_file_slurp(next_file(w), (const char *)path.data, MAX_SIDE_BYTES, err);
        if (s == NB_OK)
            end_file(w, name);
        else
            nb_buf_free(next_file(w));
    }
    nb_buf_free(&path);
    return s;
}

static nb_status from_folder(nb_wrapping *w, nb_store *store, const nb_plan *plan, nb_err *err)
{
    static_assert(sizeof copied / sizeof *copied + 2 <= NB_MAX_SIDE_FILES, "room for all of them");
    NB_TRY(add_config(w, plan, json_deep_copy(nb_store_config(store)), err));
    NB_TRY(add_quantize_config(w, plan, err));
    for (size_t i = 0; i < sizeof copied / sizeof *copied; i++)
        NB_TRY(copy_file(w, store, copied[i], err));
    return NB_OK;
}

/* ---- from a GGUF ---- */

/* One id, or the list of all that end generation, the model's own eos first. */
static json_t *stop_ids(const nb_tokenizer *t)
{
    const int32_t eos = nb_tokenizer_eos(t);
    json_t *list = json_array();
    int bad = list == NULL;
    if (eos >= 0)
        bad |= json_array_append_new(list, json_integer(eos));
    for (int32_t id = 0; id < nb_tokenizer_n_tokens(t); id++) {
        if (id != eos && nb_tokenizer_is_stop(t, id))
            bad |= json_array_append_new(list, json_integer(id));
    }
    if (!bad && json_array_size(list) != 1)
        return list;
    json_t *one = bad ? NULL : json_incref(json_array_get(list, 0));
    json_decref(list);
    return one;
}

static nb_status add_generation_config(nb_wrapping *w, const nb_tokenizer *t, nb_err *err)
{
    const int32_t bos = nb_tokenizer_bos(t), pad = nb_tokenizer_pad(t);
    json_t *j = json_object(), *stops = stop_ids(t);
    bool bad = j == NULL || stops == NULL;
    if (!bad && bos >= 0)
        bad = json_object_set_new(j, "bos_token_id", json_integer(bos)) != 0;
    if (!bad && json_is_array(stops) && json_array_size(stops) == 0)
        bad = false;
    else if (!bad)
        bad = json_object_set(j, "eos_token_id", stops) != 0;
    if (!bad && pad >= 0)
        bad = json_object_set_new(j, "pad_token_id", json_integer(pad)) != 0;
    json_decref(stops);
    if (bad) {
        json_decref(j);
        return no_memory(err);
    }
    return add_json(w, "generation_config.json", j, err);
}

static nb_status add_template(nb_wrapping *w, const char *text, size_t len, nb_err *err)
{
    if (text == NULL)
        return NB_OK;
    nb_buf *b = next_file(w);
    NB_TRY(nb_buf_put(b, text, len, err));
    end_file(w, "chat_template.jinja");
    return NB_OK;
}

static nb_status add_tokenizer(nb_wrapping *w, const nb_tokenizer *t, const char *template_,
                               size_t template_len, nb_err *err)
{
    nb_buf text = {0};
    json_t *tokenizer = NULL, *config = NULL;
    nb_status s = NB_OK;
    if (template_ != NULL) {
        NB_TRY_GOTO(s, nb_buf_put(&text, template_, template_len, err));
        NB_TRY_GOTO(s, nb_buf_u8(&text, 0, err));
    }
    NB_TRY_GOTO(s, nb_tokenizer_to_json(t, &tokenizer, err));
    NB_TRY_GOTO(s, add_json(w, "tokenizer.json", json_incref(tokenizer), err));
    NB_TRY_GOTO(s, nb_tokenizer_to_config(t, (const char *)text.data, &config, err));
    NB_TRY_GOTO(s, add_json(w, "tokenizer_config.json", json_incref(config), err));
    NB_TRY_GOTO(s, add_template(w, template_, template_len, err));
    s = add_generation_config(w, t, err);
done:
    json_decref(tokenizer);
    json_decref(config);
    nb_buf_free(&text);
    return s;
}

static nb_status from_gguf(nb_wrapping *w, nb_store *store, const nb_plan *plan, nb_err *err)
{
    json_t *config = NULL;
    nb_tokenizer *tokenizer = NULL;
    const char *template_ = NULL;
    size_t len = 0;
    if (nb_config_to_json(&plan->config, &config, err) != NB_OK)
        return nb_context(err, "%s", nb_store_path(store));
    NB_TRY(add_config(w, plan, config, err));
    NB_TRY(add_quantize_config(w, plan, err));
    NB_TRY(nb_store_chat_template(store, &template_, &len, err));
    NB_TRY(nb_tokenizer_open(&tokenizer, store, err));
    const nb_status s = add_tokenizer(w, tokenizer, template_, len, err);
    nb_tokenizer_close(tokenizer);
    return s;
}

nb_status nb_wrap_hf(nb_wrapping *w, nb_store *store, const nb_plan *plan, nb_err *err)
{
    return nb_store_kind_of(store) == NB_STORE_HF ? from_folder(w, store, plan, err)
                                                  : from_gguf(w, store, plan, err);
}
