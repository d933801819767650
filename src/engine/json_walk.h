/* A walk through the JSON that a schema admits, byte by byte.
 *
 * A pushdown automaton: frames link to the frame that goes on after them, and are never changed, so
 * a walk can be tried and taken back by forgetting the newest. Where alternatives begin alike, they
 * are walked side by side: the state is a set of frames. Whatever is admitted can be completed: no
 * byte leads to a dead end.
 *
 * Between any two parts of JSON there may be NB_JSON_MAX_SPACE bytes of white space; after the
 * value none. */
#ifndef NB_ENGINE_JSON_WALK_H
#define NB_ENGINE_JSON_WALK_H

#include "engine/json_schema.h"

#define NB_JSON_MAX_SPACE  20
#define NB_JSON_MAX_TOPS   32 /* alternatives side by side; more are dropped, never made up */
#define NB_JSON_MAX_FRAMES 8192

typedef struct {
    int16_t parent; /* what goes on after it; -1: nothing, the value is complete */
    int16_t node;
    uint8_t state, space, depth, negative;
    int32_t len;
    union {
        struct {
            int32_t a, b;
        };
        int64_t value;
    };
} nb_json_frame;

/* Frames that the next byte may go to; -1: the end. */
typedef struct {
    int n;
    int16_t top[NB_JSON_MAX_TOPS];
} nb_json_set;

typedef struct {
    const nb_json_schema *schema; /* borrowed */
    nb_json_frame *frame;         /* [NB_JSON_MAX_FRAMES] */
    int32_t n_frames;
    int16_t *moved; /* scratch for nb_json_take */
    nb_json_set now;
} nb_json_walk;

/* At the beginning of a value; without a schema it is room to copy to. Takes 200 KiB; nothing is
 * allocated later. */
nb_status nb_json_walk_init(nb_json_walk *w, const nb_json_schema *schema, nb_err *err);
void nb_json_walk_free(nb_json_walk *w);
void nb_json_walk_begin(nb_json_walk *w);
/* The same place of the same schema. */
void nb_json_walk_copy(nb_json_walk *to, const nb_json_walk *from);

/* Goes on by some bytes; false, and nowhere, when the schema does not admit them here. */
bool nb_json_take(nb_json_walk *w, const char *bytes, size_t len);
bool nb_json_may_end(const nb_json_walk *w);  /* what was taken is a whole value */
bool nb_json_must_end(const nb_json_walk *w); /* and nothing may follow */

/* ---- for json_mask.c ---- */

/* Where `from` leads by one byte; new frames are added to w->frame. */
void nb_json_step(nb_json_walk *w, const nb_json_set *from, uint8_t c, nb_json_set *to);

/* Is the frame in a name that is not declared but begins like those that are, text[a, b) in `len`
 * bytes, at the border of a character? */
bool nb_json_in_further_name(const nb_json_frame *f);
/* Narrows text[*a, *b), which agree in `len` bytes, to those that go on with c. */
void nb_json_narrow(const nb_json_spelling *text, int32_t len, uint8_t c, int32_t *a, int32_t *b);

/* States inside a string; the others are json_walk.c's own. */
typedef enum {
    NB_JSON_S_DEAD,
    NB_JSON_S_CLOSED,
    NB_JSON_S_BODY,
    NB_JSON_S_ESCAPE,
    NB_JSON_S_HEX_1, /* after \u; \u0000 is no text that every library takes */
    NB_JSON_S_ZERO_2,
    NB_JSON_S_ZERO_3,
    NB_JSON_S_ZERO_4,
    NB_JSON_S_D_2, /* after \ud: half of a pair, or not */
    NB_JSON_S_HEX_2,
    NB_JSON_S_HEX_3,
    NB_JSON_S_HEX_4,
    NB_JSON_S_HIGH_3, /* the first half of a pair; the second has to follow */
    NB_JSON_S_HIGH_4,
    NB_JSON_S_LOW_SLASH,
    NB_JSON_S_LOW_U,
    NB_JSON_S_LOW_1,
    NB_JSON_S_LOW_2,
    NB_JSON_S_LOW_3,
    NB_JSON_S_TAIL_1, /* bytes of a character of UTF-8 that are still to come */
    NB_JSON_S_TAIL_2,
    NB_JSON_S_TAIL_3,
    NB_JSON_S_AFTER_E0,
    NB_JSON_S_AFTER_ED,
    NB_JSON_S_AFTER_F0,
    NB_JSON_S_AFTER_F4,
    NB_JSON_S_LAST
} nb_json_string_state;
nb_json_string_state nb_json_string_next(nb_json_string_state state, uint8_t c);

#endif
