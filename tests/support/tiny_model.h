/* A tiny random llama in a Hugging Face folder, with a byte-level tokenizer and a chat template:
 * enough for every part of the library that wants a model, made in milliseconds. The same options
 * always give the same bytes. Written without the library's own writers, so that a mistake in one
 * shows against the other. */
#ifndef NB_TESTS_TINY_MODEL_H
#define NB_TESTS_TINY_MODEL_H

#include <stdbool.h>
#include <stdint.h>

/* Tokens: 0 <|endoftext|>, 1 <|im_start|>, 2 <|im_end|> (ends generation), then the 256 bytes in
 * order, then a few merges. */
#define TINY_EOS     2
#define TINY_BYTE(b) (3 + (b))
#define TINY_VOCAB   (3 + 256 + 6)

/* `{0}` is a good model; zeros mean the values in brackets. */
typedef struct {
    uint64_t seed;                  /* of the weights */
    int n_layers, d_model, n_heads; /* [2, 64, 4] */
    int n_kv_heads, d_ff, n_ctx;    /* [2, 128, 256] */
    int n_vocab;                    /* [TINY_VOCAB]; rows past that have no token */
    bool biases;                    /* all linear layers of the blocks have one */
    bool qk_norm;                   /* as in Qwen3, whose config it then has; not with biases */
    bool tied;                      /* logits use the embedding; else a head of their own */
    bool no_template;               /* no chat template */
    bool adds_bos;                  /* the tokenizer puts <|endoftext|> first */
    bool never_ends;                /* the row of token 2 in the head is 0 */
    bool nan_head;                  /* the head holds a NaN in the row of token 7 */
    bool subnormal;                 /* embeddings are; the first norm brings them back to size */
    const char *generation_config;  /* JSON [{"eos_token_id": 2}] */
} tiny_model;

/* Writes the folder `name` into the scratch folder (scratch.h); its path stays valid until the
 * eighth call from now. */
const char *tiny_model_write(const char *name, const tiny_model *how);

#endif
