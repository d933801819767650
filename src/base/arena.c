/* See arena.h. */
#include "base/arena.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define CHUNK_BYTES ((size_t)64 << 10)

struct nb_arena_chunk {
    nb_arena_chunk *next;
    size_t used, size;
    _Alignas(16) unsigned char bytes[];
};

nb_status nb_arena_alloc(nb_arena *arena, void **out, size_t count, size_t size, nb_err *err)
{
    *out = NULL;
    size_t bytes, rounded, total;
    if (!nb_mul_size(count, size, &bytes) || !nb_add_size(bytes, 15, &rounded) ||
        !nb_add_size(arena->used, rounded & ~(size_t)15, &total))
        return nb_fail(err, NB_MEMORY, "%zu elements of %zu bytes do not fit in memory", count,
                       size);
    rounded &= ~(size_t)15;
    if (arena->limit != 0 && total > arena->limit)
        return nb_fail(err, NB_LIMIT, "more than %zu bytes of tables", arena->limit);
    nb_arena_chunk *chunk = arena->head;
    if (chunk == NULL || chunk->size - chunk->used < rounded) {
        const size_t want = rounded > CHUNK_BYTES ? rounded : CHUNK_BYTES;
        size_t whole;
        if (!nb_add_size(want, sizeof *chunk, &whole))
            return nb_fail(err, NB_MEMORY, "%zu bytes do not fit in memory", want);
        void *p;
        NB_TRY(nb_alloc(&p, 1, whole, err));
        chunk = p;
        chunk->size = want;
        /* A big block goes behind a half-empty chunk, which stays in use. */
        if (arena->head != NULL && rounded > CHUNK_BYTES) {
            chunk->next = arena->head->next;
            arena->head->next = chunk;
        } else {
            chunk->next = arena->head;
            arena->head = chunk;
        }
    }
    *out = chunk->bytes + chunk->used;
    chunk->used += rounded;
    arena->used += rounded;
    return NB_OK;
}

nb_status nb_arena_text(nb_arena *arena, char **out, const char *text, size_t len, nb_err *err)
{
    size_t with_zero;
    if (!nb_add_size(len, 1, &with_zero))
        return nb_fail(err, NB_MEMORY, "a text of %zu bytes does not fit in memory", len);
    NB_TRY(nb_arena_alloc(arena, (void **)out, with_zero, 1, err));
    if (len > 0)
        memcpy(*out, text, len);
    (*out)[len] = 0;
    return NB_OK;
}

nb_status nb_arena_format(nb_arena *arena, char **out, nb_err *err, const char *format, ...)
{
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    const int len = vsnprintf(NULL, 0, format, args);
    va_end(args);
    nb_status s = nb_arena_alloc(arena, (void **)out, (size_t)(len < 0 ? 0 : len) + 1, 1, err);
    if (s == NB_OK)
        vsnprintf(*out, (size_t)len + 1, format, again);
    va_end(again);
    return s;
}

void nb_arena_free(nb_arena *arena)
{
    for (nb_arena_chunk *c = arena->head; c != NULL;) {
        nb_arena_chunk *next = c->next;
        nb_free(c);
        c = next;
    }
    *arena = (nb_arena){.limit = arena->limit};
}
