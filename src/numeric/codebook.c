/* Codes that are places in a table of values, not numbers themselves.
 *
 * iq4_nl: 32 codes of 4 bits under an f16 scale; 4.5 bits per weight. The table is denser around
 * zero, where most weights are. The codes lie as in q4_0 (block.c):
 *
 *   byte   0    1 | 2  ...  17
 *        [   d    ][   low    ]              value[j] = d * table[code[j]]
 *
 * Table values have 7 bits and d has 11, so the product is exact in binary32. Read only: choosing
 * d and the codes is a search. */
#include "numeric/format.h"
#include "numeric/minifloat.h"

#include <assert.h>

#define BLOCK 32

typedef struct {
    uint16_t d;
    uint8_t low[16];
} iq4_nl_block;
static_assert(sizeof(iq4_nl_block) == 18, "a block is 18 bytes, with no padding");

static const int8_t iq4_nl_table[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                        1,    13,   25,  38,  53,  69,  89,  113};

static void iq4_nl_decode_row(const nb_mat *m, int64_t r, float *y)
{
    assert(m->n_cols % BLOCK == 0);
    const iq4_nl_block *b = nb_mat_row(m, r);
    for (int64_t c = 0; c < m->n_cols; c += BLOCK, b++) {
        const float d = nb_f16_to_f32(b->d);
        for (int j = 0; j < 16; j++) {
            y[c + j] = d * (float)iq4_nl_table[b->low[j] & 15];
            y[c + j + 16] = d * (float)iq4_nl_table[b->low[j] >> 4];
        }
    }
}

static void iq4_nl_int_form(const nb_mat *m, nb_int_form *form)
{
    (void)m;
    *form = (nb_int_form){
        .segment_len = BLOCK,
        .code_hi = 15,
        .scale_type = NB_F16,
        .table = iq4_nl_table,
    };
}

static void places(int8_t *restrict code, const uint8_t *restrict low)
{
    for (int j = 0; j < 16; j++)
        code[j] = (int8_t)(low[j] & 15);
    for (int j = 0; j < 16; j++)
        code[j + 16] = (int8_t)(low[j] >> 4);
}

static void iq4_nl_int_row(const nb_mat *m, int64_t r, const nb_int_row *out)
{
    assert(m->n_cols % BLOCK == 0);
    const iq4_nl_block *b = nb_mat_row(m, r);
    const int64_t n_blocks = m->n_cols / BLOCK;
    for (int64_t i = 0; i < n_blocks; i++) {
        places(out->code + i * BLOCK, b[i].low);
        out->scale[i] = nb_f16_to_f32(b[i].d);
    }
}

const nb_format nb_format_iq4_nl = {
    .name = "iq4_nl",
    .ggml_type = 20,
    .block_len = BLOCK,
    .block_bytes = sizeof(iq4_nl_block),
    .bits = 4,
    .decode_row = iq4_nl_decode_row,
    .int_form = iq4_nl_int_form,
    .int_row = iq4_nl_int_row,
};
