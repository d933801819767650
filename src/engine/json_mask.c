/* See json_mask.h. */
#include "engine/json_mask.h"

#include <string.h>

static void allow(const nb_trie *t, int32_t token, uint64_t *mask)
{
    for (; token >= 0; token = t->same[token])
        mask[token / 64] |= 1ull << (token % 64);
}

/* ---- inside a string, once a vocabulary ---- */

typedef struct {
    uint8_t state[NB_TRIE_MAX_BYTES + 1];
    int32_t chars[NB_TRIE_MAX_BYTES + 1];
} string_path;

/* Visits what fits into a string: tokens that leave it open go into v (if its arrays are there),
 * and where it is closed a closer. Returns the number of closers. */
static int64_t visit_strings(nb_json_vocab *v)
{
    const nb_trie *t = v->trie;
    string_path p = {.state = {NB_JSON_S_BODY}};
    int64_t n_closers = 0;
    for (int32_t i = 0; i < t->n_nodes;) {
        const nb_trie_node *n = &t->node[i];
        const nb_json_string_state at = (nb_json_string_state)p.state[n->depth],
                                   next = nb_json_string_next(at, n->byte);
        if (next == NB_JSON_S_DEAD || next == NB_JSON_S_CLOSED) {
            if (next == NB_JSON_S_CLOSED) {
                if (v->closer != NULL)
                    v->closer[n_closers] = (nb_json_closer){i, p.chars[n->depth]};
                n_closers++;
            }
            i = n->skip;
            continue;
        }
        p.state[n->depth + 1] = (uint8_t)next;
        p.chars[n->depth + 1] = p.chars[n->depth] + (at == NB_JSON_S_BODY);
        if (v->inside != NULL) {
            allow(t, n->token, v->inside);
            for (int32_t id = n->token; id >= 0; id = t->same[id])
                v->chars[id] = (uint8_t)p.chars[n->depth + 1];
        }
        i++;
    }
    return n_closers;
}

nb_status nb_json_vocab_init(nb_json_vocab *v, const nb_trie *trie, nb_err *err)
{
    *v = (nb_json_vocab){.trie = trie};
    v->n_closers = visit_strings(v);
    nb_status s = NB_ALLOC(&v->inside, (trie->n_ids + 63) / 64, err);
    if (s == NB_OK)
        s = NB_ALLOC(&v->chars, trie->n_ids, err);
    if (s == NB_OK)
        s = NB_ALLOC(&v->closer, v->n_closers, err);
    if (s == NB_OK)
        visit_strings(v);
    else
        nb_json_vocab_free(v);
    return s;
}

void nb_json_vocab_free(nb_json_vocab *v)
{
    nb_free(v->inside);
    nb_free(v->chars);
    nb_free(v->closer);
    *v = (nb_json_vocab){0};
}

/* ---- spelling ---- */

static nb_status need(const nb_json_vocab *v, int byte, nb_err *err)
{
    if (v->trie->has_byte[byte])
        return NB_OK;
    return nb_fail(err, NB_UNSUPPORTED,
                   "this vocabulary has no token for the byte 0x%02x alone: JSON as the schema "
                   "admits it could not always be completed",
                   (unsigned)byte);
}

nb_status nb_json_vocab_spells(const nb_json_vocab *v, const nb_json_schema *schema, nb_err *err)
{
    for (int c = 0x20; c < 0x7f; c++)
        NB_TRY(need(v, c, err));
    for (int c = 0x80; c < 0xc0; c++) /* the rest of a character, once a token began one */
        NB_TRY(need(v, c, err));
    for (int32_t i = 0; i < schema->n_nodes; i++) {
        const nb_json_node *node = &schema->node[i];
        for (int32_t k = 0; k < node->n_texts; k++) {
            for (int32_t b = 0; b < node->text[k].len; b++)
                NB_TRY(need(v, (uint8_t)node->text[k].bytes[b], err));
        }
    }
    return NB_OK;
}

/* ---- masks ---- */

#define MAX_BARRED 256

/* Allows the tokens below nodes [from, to) that `start` leads through; the first of these nodes
 * comes after `depth` bytes. Frames made on the way are forgotten. */
static void walk_trie(const nb_json_vocab *v, nb_json_walk *w, const nb_json_set *start,
                      int32_t from, int32_t to, int depth, uint64_t *mask)
{
    const nb_trie *t = v->trie;
    nb_json_set set[NB_TRIE_MAX_BYTES + 1];
    int32_t n_frames[NB_TRIE_MAX_BYTES + 1];
    set[depth] = *start;
    n_frames[depth] = w->n_frames;
    for (int32_t i = from; i < to;) {
        const nb_trie_node *n = &t->node[i];
        w->n_frames = n_frames[n->depth];
        nb_json_step(w, &set[n->depth], n->byte, &set[n->depth + 1]);
        if (set[n->depth + 1].n == 0) {
            i = n->skip;
            continue;
        }
        n_frames[n->depth + 1] = w->n_frames;
        allow(t, n->token, mask);
        i++;
    }
    w->n_frames = n_frames[depth];
}

/* The tokens that end a string and go on with frame `parent`. The string has `chars` characters and
 * is of `node`; closers in the subtrees `barred`, ascending, are passed over. */
static void mask_closers(const nb_json_vocab *v, nb_json_walk *w, int16_t parent, int32_t chars,
                         const nb_json_node *node, const int32_t *barred, int n_barred,
                         uint64_t *mask)
{
    const nb_trie *t = v->trie;
    const nb_json_set after = {.n = 1, .top = {parent}};
    for (int64_t k = 0, at = 0; k < v->n_closers; k++) {
        const nb_json_closer *c = &v->closer[k];
        while (at < n_barred && t->node[barred[at]].skip <= c->node)
            at++;
        if ((at < n_barred && barred[at] <= c->node) || chars + c->chars < node->min ||
            chars + c->chars > node->max)
            continue;
        const nb_trie_node *n = &t->node[c->node];
        allow(t, n->token, mask);
        if (parent >= 0 && n->skip > c->node + 1)
            walk_trie(v, w, &after, c->node + 1, n->skip, n->depth + 1, mask);
    }
}

/* The tokens that go on in a string of which f is the frame, at the border of a character. */
static void mask_string(const nb_json_vocab *v, nb_json_walk *w, const nb_json_frame *f,
                        uint64_t *mask)
{
    const nb_trie *t = v->trie;
    const nb_json_node *node = &w->schema->node[f->node];
    const int64_t left = node->max - f->a;
    if (left >= NB_TRIE_MAX_BYTES) {
        for (int64_t k = 0; k < (t->n_ids + 63) / 64; k++)
            mask[k] |= v->inside[k];
    } else {
        for (int64_t id = 0; id < t->n_ids; id++) {
            const uint64_t bit = v->inside[id / 64] >> (id % 64) & 1;
            mask[id / 64] |= (bit & (v->chars[id] <= left)) << (id % 64);
        }
    }
    mask_closers(v, w, f->parent, f->a, node, NULL, 0, mask);
}

/* What a name that is not declared must not be: an escape while it agrees with one that is, and the
 * end of one that is. The places in the trie where that happens, whole subtrees, go into `barred`;
 * false when there are too many. */
static bool find_barred(const nb_json_vocab *v, const nb_json_walk *w, const nb_json_frame *f,
                        int32_t *barred, int *n_barred)
{
    const nb_trie *t = v->trie;
    const nb_json_spelling *text = w->schema->node[f->node].text;
    int32_t a[NB_TRIE_MAX_BYTES + 1], b[NB_TRIE_MAX_BYTES + 1];
    a[0] = f->a;
    b[0] = f->b;
    *n_barred = 0;
    for (int32_t i = 0; i < t->n_nodes;) {
        const nb_trie_node *n = &t->node[i];
        int32_t low = a[n->depth], high = b[n->depth];
        nb_json_narrow(text, f->len + n->depth, n->byte, &low, &high);
        if (n->byte == '\\' || (n->byte == '"' && low < high)) {
            if (*n_barred == MAX_BARRED)
                return false;
            barred[(*n_barred)++] = i;
            i = n->skip;
        } else if (low == high) {
            i = n->skip; /* it differs: any string may follow */
        } else {
            a[n->depth + 1] = low;
            b[n->depth + 1] = high;
            i++;
        }
    }
    return true;
}

/* The tokens that go on in such a name: those of any string but for what is barred. The mask is
 * still empty. */
static bool mask_name(const nb_json_vocab *v, nb_json_walk *w, const nb_json_frame *f,
                      uint64_t *mask)
{
    const nb_trie *t = v->trie;
    int32_t barred[MAX_BARRED];
    int n_barred;
    if (!find_barred(v, w, f, barred, &n_barred))
        return false;
    memcpy(mask, v->inside, (size_t)((t->n_ids + 63) / 64) * sizeof *mask);
    for (int k = 0; k < n_barred; k++) {
        for (int32_t i = barred[k]; i < t->node[barred[k]].skip; i++) {
            for (int32_t id = t->node[i].token; id >= 0; id = t->same[id])
                mask[id / 64] &= ~(1ull << (id % 64));
        }
    }
    const nb_json_node *any = &w->schema->node[w->schema->any_string];
    mask_closers(v, w, f->parent, 0, any, barred, n_barred, mask);
    return true;
}

void nb_json_mask(const nb_json_vocab *v, nb_json_walk *w, uint64_t *mask)
{
    memset(mask, 0, (size_t)((v->trie->n_ids + 63) / 64) * sizeof *mask);
    nb_json_set rest = {0}; /* a set's mask is the union of its members' */
    bool empty = true;
    for (int i = 0; i < w->now.n; i++) { /* the first of them writes the mask: it is empty */
        const int16_t at = w->now.top[i];
        const bool name = at >= 0 && nb_json_in_further_name(&w->frame[at]);
        const nb_json_frame f = name ? w->frame[at] : (nb_json_frame){0};
        if (name && empty && mask_name(v, w, &f, mask))
            empty = false;
        else if (name)
            rest.top[rest.n++] = at;
    }
    for (int i = 0; i < w->now.n; i++) {
        const int16_t at = w->now.top[i];
        if (at >= 0 && w->frame[at].state == NB_JSON_S_BODY) {
            const nb_json_frame f = w->frame[at];
            mask_string(v, w, &f, mask);
        } else if (at >= 0 && !nb_json_in_further_name(&w->frame[at])) {
            rest.top[rest.n++] = at;
        }
    }
    if (rest.n > 0)
        walk_trie(v, w, &rest, 0, v->trie->n_nodes, 0, mask);
}
