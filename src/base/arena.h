/* Bump allocation for things that die together: names, tables, parsed headers.
 *
 * Memory comes in chunks; nothing is freed alone. `{0}` is a valid empty arena. An arena may have
 * a stated maximum, so that a hostile file cannot make it grow without bound. */
#ifndef NB_BASE_ARENA_H
#define NB_BASE_ARENA_H

#include "base/alloc.h"

typedef struct nb_arena_chunk nb_arena_chunk;

typedef struct {
    nb_arena_chunk *head;
    size_t used;  /* bytes handed out, all chunks */
    size_t limit; /* 0: none */
} nb_arena;

/* `count` zeroed elements, aligned to 16 bytes. NB_MEMORY, or NB_LIMIT past the arena's limit. */
nb_status nb_arena_alloc(nb_arena *arena, void **out, size_t count, size_t size, nb_err *err);
#define NB_ARENA_ALLOC(arena, out, count, err)                                                     \
    nb_arena_alloc((arena), (void **)(out), (size_t)(count), sizeof **(out), (err))

/* A copy of text[0, len) with a terminating zero. */
nb_status nb_arena_text(nb_arena *arena, char **out, const char *text, size_t len, nb_err *err);
/* A formatted, zero-terminated text. */
nb_status nb_arena_format(nb_arena *arena, char **out, nb_err *err, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

void nb_arena_free(nb_arena *arena);

#endif
