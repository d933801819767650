/* Prompts from a file: one JSON object a line, or one array of them. An object has `prompt`, a
 * text, or `messages`, a conversation, or `conversations` as ShareGPT has them, of which the turns
 * before the first answer are asked; beside it, optionally, `output_tokens` (or `max_tokens`). */
#ifndef NB_LOAD_PROMPT_FILE_H
#define NB_LOAD_PROMPT_FILE_H

#include "base/json.h"

#define NB_PROMPT_FILE_MAX ((size_t)1 << 30)

typedef struct {
    json_t *prompt;        /* a string, or NULL */
    json_t *messages;      /* an array, or NULL */
    int64_t output_tokens; /* 0: not said */
} nb_prompt_item;

typedef struct {
    nb_prompt_item *items;
    int64_t n;
    json_t *all; /* holds what items point to */
} nb_prompt_file;

/* Reads "-" or a file. NB_DATA names the line, or the number of the object in an array. Messages
 * are refused unless `chat`. */
nb_status nb_prompt_file_read(nb_prompt_file *out, const char *path, bool chat, nb_err *err);
void nb_prompt_file_free(nb_prompt_file *file);

#endif
