/* See bpe.h. */
#include "text/bpe.h"

#include "text/unicode.h"

#include <assert.h>
#include <string.h>

/* Pieces up to this many bytes are merged by scanning for the lowest rank: O(n^2), but without
 * the heap's memory. English pieces have five bytes. */
#define MAX_SCANNED 48
#define MAX_BYTES   ((size_t)1 << 30)

/* A pair's place: vector multiply-shift with secret odd multipliers, universal over pairs. */
static size_t pair_hash(const nb_bpe *b, int32_t left, int32_t right)
{
    const uint64_t h = (uint64_t)(uint32_t)left * b->key[0] + (uint64_t)(uint32_t)right * b->key[1];
    return (size_t)((h + b->key[2]) >> 32);
}

static nb_merge *slot_of(const nb_bpe *b, int32_t left, int32_t right)
{
    for (size_t i = pair_hash(b, left, right);; i++) {
        nb_merge *m = &b->slots[i & b->mask];
        if (m->rank == NB_NO_RANK || (m->left == left && m->right == right))
            return m;
    }
}

nb_status nb_bpe_init(nb_bpe *b, const nb_vocab *vocab, int64_t max_merges, nb_err *err)
{
    *b = (nb_bpe){.unknown = -1, .max_merges = max_merges};
    for (int i = 0; i < 3; i++)
        b->key[i] = nb_hash_key();
    for (int byte = 0; byte < 256; byte++) {
        uint8_t utf8[4];
        const size_t n = nb_utf8_put(nb_byte_char((uint8_t)byte), utf8);
        b->byte_id[byte] = nb_vocab_find(vocab, (const char *)utf8, n);
    }
    size_t n_slots = 16;
    while (n_slots < 2 * (size_t)max_merges)
        n_slots *= 2;
    b->mask = n_slots - 1;
    nb_status s;
    NB_TRY_GOTO(s, NB_ALLOC(&b->merges, max_merges, err));
    NB_TRY_GOTO(s, NB_ALLOC(&b->slots, n_slots, err));
    for (size_t i = 0; i < n_slots; i++)
        b->slots[i].rank = NB_NO_RANK;
    return NB_OK;
done:
    nb_bpe_free(b);
    return s;
}

void nb_bpe_free(nb_bpe *b)
{
    nb_free(b->merges);
    nb_free(b->slots);
    *b = (nb_bpe){0};
}

/* The id of left and right written together. Real tokens are short; a longer pair is looked up
 * through an allocation. */
static nb_status find_joined(const nb_vocab *vocab, nb_text left, nb_text right, int32_t *id,
                             nb_err *err)
{
    char small[256], *joined = small, *large = NULL;
    const size_t len = left.len + right.len;
    if (len > sizeof small) {
        NB_TRY(NB_ALLOC(&large, len, err));
        joined = large;
    }
    memcpy(joined, left.text, left.len);
    memcpy(joined + left.len, right.text, right.len);
    *id = nb_vocab_find(vocab, joined, len);
    nb_free(large);
    return NB_OK;
}

nb_status nb_bpe_add(nb_bpe *b, const nb_vocab *vocab, nb_text left, nb_text right, nb_err *err)
{
    assert(b->n_merges < b->max_merges);
    nb_merge m = {.left = nb_vocab_find(vocab, left.text, left.len),
                  .right = nb_vocab_find(vocab, right.text, right.len),
                  .merged = -1,
                  .rank = (uint32_t)b->n_merges};
    /* Long texts are joined only when both parts are tokens: the work stays below the size of the
     * file, because a token can be long but not both long and absent. */
    if (m.left >= 0 && m.right >= 0)
        NB_TRY(find_joined(vocab, left, right, &m.merged, err));
    if (m.merged < 0)
        return nb_fail(err, NB_DATA, "merge %lld '%.*s' + '%.*s': %s is no token",
                       (long long)b->n_merges, nb_quoted(left.len), left.text, nb_quoted(right.len),
                       right.text,
                       m.left < 0    ? "the left part"
                       : m.right < 0 ? "the right part"
                                     : "the whole");
    b->merges[b->n_merges++] = m;
    *slot_of(b, m.left, m.right) = m;
    return NB_OK;
}

static inline nb_merge pair_merge(const nb_bpe *b, int32_t left, int32_t right)
{
    return *slot_of(b, left, right);
}

/* ---- a short piece ---- */

/* Merges ids[0, n) in place and returns how many are left. */
static int merge_scanned(const nb_bpe *b, int32_t *ids, int n)
{
    nb_merge pair[MAX_SCANNED]; /* of i and i + 1 */
    for (int i = 0; i + 1 < n; i++)
        pair[i] = pair_merge(b, ids[i], ids[i + 1]);
    while (n > 1) {
        int best = 0;
        for (int i = 1; i + 1 < n; i++)
            if (pair[i].rank < pair[best].rank)
                best = i;
        if (pair[best].rank == NB_NO_RANK)
            break;
        ids[best] = pair[best].merged;
        n--;
        memmove(ids + best + 1, ids + best + 2, (size_t)(n - best - 1) * sizeof *ids);
        if (best + 1 < n) {
            memmove(pair + best + 1, pair + best + 2, (size_t)(n - best - 2) * sizeof *pair);
            pair[best] = pair_merge(b, ids[best], ids[best + 1]);
        }
        if (best > 0)
            pair[best - 1] = pair_merge(b, ids[best - 1], ids[best]);
    }
    return n;
}

/* ---- a long piece ---- */

/* Symbols are a linked list over the places of their first bytes. */
typedef struct {
    int32_t id; /* -1: merged into the one before */
    int32_t prev, next;
    uint32_t rank; /* of the pair that starts here, as last pushed */
} symbol;

/* Rank in the high half, place in the low one: the smallest number is the next merge. */
typedef uint64_t candidate;

typedef struct {
    candidate *at;
    size_t n;
} heap;

static void heap_push(heap *h, candidate c)
{
    size_t i = h->n++;
    while (i > 0 && h->at[(i - 1) / 2] > c) {
        h->at[i] = h->at[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    h->at[i] = c;
}

static candidate heap_pop(heap *h)
{
    const candidate top = h->at[0], last = h->at[--h->n];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < h->n; i = child) {
        if (child + 1 < h->n && h->at[child + 1] < h->at[child])
            child++;
        if (h->at[child] >= last)
            break;
        h->at[i] = h->at[child];
    }
    h->at[i] = last;
    return top;
}

/* The pair that starts at i has changed: an older candidate there no longer has its rank. */
static void push_pair(const nb_bpe *b, heap *h, symbol *s, int32_t i)
{
    s[i].rank = NB_NO_RANK;
    if (s[i].next < 0)
        return;
    s[i].rank = pair_merge(b, s[i].id, s[s[i].next].id).rank;
    if (s[i].rank != NB_NO_RANK)
        heap_push(h, (candidate)s[i].rank << 32 | (uint32_t)i);
}

/* Merges ids[0, n) in place. Each merge takes one candidate and adds two at most, and there are
 * fewer than n merges: the heap never holds more than 2n. */
static nb_status merge_heaped(const nb_bpe *b, nb_bpe_scratch *scratch, int32_t *ids, int32_t *n,
                              nb_err *err)
{
    const size_t count = (size_t)*n;
    scratch->work.len = 0;
    NB_TRY(nb_buf_reserve(&scratch->work, count * (sizeof(symbol) + 2 * sizeof(candidate)), err));
    heap h = {.at = (candidate *)(void *)scratch->work.data};
    symbol *s = (symbol *)(void *)(h.at + 2 * count);
    for (int32_t i = 0; i < *n; i++)
        s[i] = (symbol){.id = ids[i], .prev = i - 1, .next = i + 1 < *n ? i + 1 : -1};
    for (int32_t i = 0; i < *n; i++)
        push_pair(b, &h, s, i);
    while (h.n > 0) {
        const candidate c = heap_pop(&h);
        const int32_t i = (int32_t)(uint32_t)c;
        if (s[i].id < 0 || s[i].rank != (uint32_t)(c >> 32))
            continue;
        const int32_t gone = s[i].next;
        s[i].id = pair_merge(b, s[i].id, s[gone].id).merged;
        s[i].next = s[gone].next;
        s[gone].id = -1;
        if (s[i].next >= 0)
            s[s[i].next].prev = i;
        push_pair(b, &h, s, i);
        if (s[i].prev >= 0)
            push_pair(b, &h, s, s[i].prev);
    }
    int32_t left = 0;
    for (int32_t i = 0; i >= 0; i = s[i].next)
        ids[left++] = s[i].id;
    *n = left;
    return NB_OK;
}

/* ---- pieces met before ---- */

#define CACHED_BYTES 21
#define CACHED_IDS   10

/* One cache line: a short piece and its ids. An entry is overwritten by the next piece that
 * hashes to it, so the cache has a fixed size. */
typedef struct {
    uint8_t len, n_ids, n_left_out;
    uint8_t text[CACHED_BYTES];
    int32_t ids[CACHED_IDS];
} cached;
static_assert(sizeof(cached) == 64, "an entry fills a cache line");

nb_status nb_bpe_scratch_init(nb_bpe_scratch *s, size_t text_len, nb_err *err)
{
    *s = (nb_bpe_scratch){0};
    size_t n = 16;
    while (n < 16384 && n * 16 < text_len)
        n *= 2;
    s->cache_mask = n - 1;
    return nb_alloc(&s->cache, n, sizeof(cached), err);
}

void nb_bpe_scratch_free(nb_bpe_scratch *s)
{
    nb_free(s->cache);
    nb_buf_free(&s->work);
    *s = (nb_bpe_scratch){0};
}

static cached *cache_entry(nb_bpe_scratch *s, const uint8_t *bytes, size_t len)
{
    uint64_t h = len;
    for (size_t i = 0; i < len; i++)
        h = (h ^ bytes[i]) * 0x100000001b3u;
    return (cached *)s->cache + ((h ^ h >> 29) & s->cache_mask);
}

/* ---- one piece ---- */

/* The ids of the bytes, appended to out: where merging starts. */
static nb_status start_ids(const nb_bpe *b, const uint8_t *bytes, size_t len, nb_tokens *out,
                           nb_err *err)
{
    bool after_unknown = false;
    for (size_t i = 0; i < len; i++) {
        int32_t id = b->byte_id[bytes[i]];
        const bool unknown = id < 0;
        if (unknown && b->unknown < 0) {
            out->n_left_out++;
            continue;
        }
        if (unknown)
            id = b->unknown;
        if (!(unknown && after_unknown && b->fuse_unknown))
            NB_TRY(nb_tokens_push(out, id, err));
        after_unknown = unknown;
    }
    return NB_OK;
}

static nb_status merge_piece(const nb_bpe *b, nb_bpe_scratch *scratch, const uint8_t *bytes,
                             size_t len, nb_tokens *out, nb_err *err)
{
    const int64_t first = out->n;
    NB_TRY(start_ids(b, bytes, len, out, err));
    int32_t n = (int32_t)(out->n - first);
    if (n < 2)
        return NB_OK;
    if (n <= MAX_SCANNED)
        n = merge_scanned(b, out->ids + first, n);
    else
        NB_TRY(merge_heaped(b, scratch, out->ids + first, &n, err));
    out->n = first + n;
    return NB_OK;
}

nb_status nb_bpe_encode(const nb_bpe *b, nb_bpe_scratch *scratch, const uint8_t *bytes, size_t len,
                        nb_tokens *out, nb_err *err)
{
    if (len == 0)
        return NB_OK;
    if (len > MAX_BYTES)
        return nb_fail(err, NB_LIMIT, "a piece of %zu bytes: the limit is %zu", len, MAX_BYTES);
    if (len > CACHED_BYTES || scratch->cache == NULL)
        return merge_piece(b, scratch, bytes, len, out, err);
    cached *c = cache_entry(scratch, bytes, len);
    if (c->len == len && memcmp(c->text, bytes, len) == 0) {
        for (int i = 0; i < c->n_ids; i++)
            NB_TRY(nb_tokens_push(out, c->ids[i], err));
        out->n_left_out += c->n_left_out;
        return NB_OK;
    }
    const int64_t first = out->n, left_out = out->n_left_out;
    NB_TRY(merge_piece(b, scratch, bytes, len, out, err));
    if (out->n - first <= CACHED_IDS) {
        c->len = (uint8_t)len;
        c->n_ids = (uint8_t)(out->n - first);
        c->n_left_out = (uint8_t)(out->n_left_out - left_out);
        memcpy(c->text, bytes, len);
        for (int i = 0; i < c->n_ids; i++)
            c->ids[i] = out->ids[first + i];
    }
    return NB_OK;
}
