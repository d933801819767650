/* See tiny_model.h. */
#include "support/tiny_model.h"

#include "base/rng.h"
#include "support/golden.h"
#include "support/scratch.h"
#include "support/st_bytes.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- weights ---- */

typedef struct {
    const tiny_model *how;
    json_t *header;
    float *data;
    size_t n, cap;
} weights;

/* Appends a tensor: rows * cols numbers around `centre`. */
static void put_tensor(weights *w, const char *name, int rows, int cols, float centre, float scale)
{
    const size_t n = (size_t)rows * (size_t)(cols > 0 ? cols : 1);
    while (w->n + n > w->cap) {
        w->cap = 2 * w->cap + 4096;
        w->data = realloc(w->data, w->cap * sizeof(float));
        assert_non_null(w->data);
    }
    for (size_t i = 0; i < n; i++) {
        uint32_t r[4];
        nb_philox(w->how->seed, 0x74696e79, w->n + i, r);
        /* A sum of uniforms, of variance 1. */
        double sum = 0;
        for (int k = 0; k < 4; k++)
            sum += (double)r[k] * 0x1p-32 - 0.5;
        w->data[w->n + i] = centre + scale * (float)(sum * sqrt(3.0));
    }
    json_t *shape = cols > 0 ? json_pack("[i, i]", rows, cols) : json_pack("[i]", rows);
    json_object_set_new(w->header, name,
                        json_pack("{s:s, s:o, s:[I, I]}", "dtype", "F32", "shape", shape,
                                  "data_offsets", (json_int_t)(4 * w->n),
                                  (json_int_t)(4 * (w->n + n))));
    w->n += n;
}

static void put_matrix(weights *w, const char *name, int rows, int cols)
{
    put_tensor(w, name, rows, cols, 0, 1 / sqrtf((float)cols));
}

static void put_gain(weights *w, const char *name, int n, float centre)
{
    put_tensor(w, name, n, 0, centre, 0.1f * centre);
}

static void put_layer(weights *w, int layer, const tiny_model *m)
{
    const int head_dim = m->d_model / m->n_heads, kv = m->n_kv_heads * head_dim;
    const struct {
        const char *name;
        int rows, cols;
    } all[] = {
        {"input_layernorm", m->d_model, 0},           {"self_attn.q_proj", m->d_model, m->d_model},
        {"self_attn.k_proj", kv, m->d_model},         {"self_attn.v_proj", kv, m->d_model},
        {"self_attn.o_proj", m->d_model, m->d_model}, {"post_attention_layernorm", m->d_model, 0},
        {"mlp.gate_proj", m->d_ff, m->d_model},       {"mlp.up_proj", m->d_ff, m->d_model},
        {"mlp.down_proj", m->d_model, m->d_ff},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        char name[96];
        snprintf(name, sizeof name, "model.layers.%d.%s.weight", layer, all[i].name);
        if (all[i].cols > 0)
            put_matrix(w, name, all[i].rows, all[i].cols);
        else
            put_gain(w, name, all[i].rows, m->subnormal && layer == 0 && i == 0 ? 3e36f : 1);
        if (m->biases && all[i].cols > 0) {
            snprintf(name, sizeof name, "model.layers.%d.%s.bias", layer, all[i].name);
            put_tensor(w, name, all[i].rows, 0, 0, 0.2f);
        }
    }
    for (int i = 0; m->qk_norm && i < 2; i++) {
        char name[96];
        snprintf(name, sizeof name, "model.layers.%d.self_attn.%c_norm.weight", layer, "qk"[i]);
        put_gain(w, name, head_dim, 1);
    }
}

static void write_weights(const char *folder, const tiny_model *m)
{
    weights w = {.how = m, .header = json_object()};
    put_tensor(&w, "model.embed_tokens.weight", m->n_vocab, m->d_model, 0,
               m->subnormal ? 1e-39f : 1);
    for (int i = 0; i < m->n_layers; i++)
        put_layer(&w, i, m);
    put_gain(&w, "model.norm.weight", m->d_model, 1);
    size_t head = 0;
    if (!m->tied) {
        head = w.n;
        /* Logits of variance 4: some tokens are likely, none is certain. */
        put_tensor(&w, "lm_head.weight", m->n_vocab, m->d_model, 0, 2 / sqrtf((float)m->d_model));
    }
    const size_t row = (size_t)m->d_model;
    if (m->never_ends)
        memset(w.data + head + TINY_EOS * row, 0, row * sizeof(float));
    if (m->nan_head)
        w.data[head + 7 * row] = NAN;
    char name[300];
    snprintf(name, sizeof name, "%s/model.safetensors", folder);
    char *header = json_dumps(w.header, JSON_COMPACT);
    assert_non_null(header);
    st_write(name, header, w.data, w.n * sizeof(float));
    free(header);
    free(w.data);
    json_decref(w.header);
}

/* ---- tokenizer ---- */

static const char *const specials[] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};

/* The UTF-8 of the character that stands for a byte (GPT-2's alphabet). */
static const char *byte_char(int b, char room[3])
{
    int c = b;
    const bool plain = (b > 32 && b < 127) || (b > 160 && b != 173);
    if (!plain)
        c = 256 + (b <= 32 ? b : b <= 160 ? b - 94 : 67);
    if (c < 0x80) {
        room[0] = (char)c;
        room[1] = 0;
    } else {
        room[0] = (char)(0xc0 | c >> 6);
        room[1] = (char)(0x80 | (c & 0x3f));
        room[2] = 0;
    }
    return room;
}

static json_t *make_vocab(json_t *merges)
{
    json_t *vocab = json_object();
    for (int i = 0; i < 3; i++)
        json_object_set_new(vocab, specials[i], json_integer(i));
    char room[3];
    for (int b = 0; b < 256; b++)
        json_object_set_new(vocab, byte_char(b, room), json_integer(TINY_BYTE(b)));
    static const char *const pairs[][2] = {{"t", "h"}, {"th", "e"}, {"i", "n"},
                                           {"a", "n"}, {"an", "d"}, {"\xc4\xa0", "the"}};
    for (int i = 0; i < TINY_VOCAB - 259; i++) {
        char joined[16];
        snprintf(joined, sizeof joined, "%s%s", pairs[i][0], pairs[i][1]);
        json_object_set_new(vocab, joined, json_integer(259 + i));
        snprintf(joined, sizeof joined, "%s %s", pairs[i][0], pairs[i][1]);
        json_array_append_new(merges, json_string(joined));
    }
    return vocab;
}

static json_t *make_tokenizer(const tiny_model *m)
{
    json_t *added = json_array(), *merges = json_array();
    for (int i = 0; i < 3; i++)
        json_array_append_new(added, json_pack("{s:i, s:s, s:b, s:b, s:b, s:b, s:b}", "id", i,
                                               "content", specials[i], "single_word", 0, "lstrip",
                                               0, "rstrip", 0, "normalized", 0, "special", 1));
    json_t *level = json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space", 0,
                              "trim_offsets", 1, "use_regex", 1);
    json_t *post = json_null();
    if (m->adds_bos)
        post = json_pack("{s:s, s:[{s:{s:s, s:i}}, {s:{s:s, s:i}}], s:[{s:{s:s, s:i}}, {s:{s:s, "
                         "s:i}}, {s:{s:s, s:i}}, {s:{s:s, s:i}}], s:{s:{s:s, s:[i], s:[s]}}}",
                         "type", "TemplateProcessing", "single", "SpecialToken", "id", specials[0],
                         "type_id", 0, "Sequence", "id", "A", "type_id", 0, "pair", "SpecialToken",
                         "id", specials[0], "type_id", 0, "Sequence", "id", "A", "type_id", 0,
                         "SpecialToken", "id", specials[0], "type_id", 1, "Sequence", "id", "B",
                         "type_id", 1, "special_tokens", specials[0], "id", specials[0], "ids", 0,
                         "tokens", specials[0]);
    assert_non_null(post);
    json_t *vocab = make_vocab(merges);
    json_t *model =
        json_pack("{s:s, s:n, s:n, s:n, s:n, s:b, s:b, s:b, s:o, s:o}", "type", "BPE", "dropout",
                  "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", 0,
                  "byte_fallback", 0, "ignore_merges", 0, "vocab", vocab, "merges", merges);
    return json_pack("{s:s, s:n, s:n, s:o, s:n, s:O, s:o, s:o, s:o}", "version", "1.0",
                     "truncation", "padding", "added_tokens", added, "normalizer", "pre_tokenizer",
                     level, "post_processor", post, "decoder", level, "model", model);
}

/* ---- the folder ---- */

static void write_json(const char *folder, const char *file, json_t *value)
{
    assert_non_null(value);
    char name[300];
    snprintf(name, sizeof name, "%s/%s", folder, file);
    char *text = json_dumps(value, JSON_INDENT(1));
    assert_non_null(text);
    scratch_text(name, text);
    free(text);
    json_decref(value);
}

static json_t *make_config(const tiny_model *m)
{
    return json_pack(
        "{s:[s], s:s, s:s, s:b, s:b, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:f, s:f, s:b, s:i, "
        "s:i}",
        "architectures", m->qk_norm ? "Qwen3ForCausalLM" : "LlamaForCausalLM", "model_type",
        m->qk_norm ? "qwen3" : "llama", "hidden_act", "silu", "attention_bias", m->biases,
        "mlp_bias", m->biases, "head_dim", m->d_model / m->n_heads, "hidden_size", m->d_model,
        "intermediate_size", m->d_ff, "num_hidden_layers", m->n_layers, "num_attention_heads",
        m->n_heads, "num_key_value_heads", m->n_kv_heads, "max_position_embeddings", m->n_ctx,
        "vocab_size", m->n_vocab, "rms_norm_eps", 1e-5, "rope_theta", 10000.0,
        "tie_word_embeddings", m->tied, "bos_token_id", 0, "eos_token_id", TINY_EOS);
}

static const char chat_template[] =
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + "
    "'\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

const char *tiny_model_write(const char *name, const tiny_model *how)
{
    tiny_model m = *how;
    const struct {
        int *value, preset;
    } presets[] = {{&m.n_layers, 2}, {&m.d_model, 64}, {&m.n_heads, 4},         {&m.n_kv_heads, 2},
                   {&m.d_ff, 128},   {&m.n_ctx, 256},  {&m.n_vocab, TINY_VOCAB}};
    for (size_t i = 0; i < sizeof presets / sizeof *presets; i++)
        *presets[i].value = *presets[i].value != 0 ? *presets[i].value : presets[i].preset;
    scratch_mkdir(name);
    write_json(name, "config.json", make_config(&m));
    write_json(name, "tokenizer.json", make_tokenizer(&m));
    json_t *config = json_pack("{s:s, s:s, s:s}", "tokenizer_class", "PreTrainedTokenizerFast",
                               "bos_token", specials[0], "eos_token", specials[TINY_EOS]);
    if (!m.no_template)
        json_object_set_new(config, "chat_template", json_string(chat_template));
    write_json(name, "tokenizer_config.json", config);
    json_t *generation = json_loads(
        m.generation_config != NULL ? m.generation_config : "{\"eos_token_id\": 2}", 0, NULL);
    write_json(name, "generation_config.json", generation);
    write_weights(name, &m);
    return scratch_path(name);
}
