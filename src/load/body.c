/* What a request says: the JSON of a completion or a chat, streamed; see load.h. */
#include "load/load.h"

#include <string.h>

static int64_t output_of(const nb_load_options *o, const nb_prompt_item *item, int64_t i)
{
    return item != NULL && item->output_tokens > 0 ? item->output_tokens
                                                   : nb_prompt_output_len(&o->plan, i);
}

static json_t *random_text(const nb_load_options *o, int64_t i, nb_status *s, nb_err *err)
{
    nb_buf text = {0};
    *s = nb_prompt_text(&text, &o->plan, o->words, i, err);
    json_t *j = *s == NB_OK ? json_stringn((const char *)text.data, text.len) : NULL;
    nb_buf_free(&text);
    return j;
}

/* Takes the reference to `text`. */
static int put_prompt(json_t *body, bool chat, json_t *text, json_t *messages)
{
    if (messages != NULL)
        return json_object_set(body, "messages", messages);
    if (!chat)
        return json_object_set_new(body, "prompt", text);
    return json_object_set_new(body, "messages",
                               json_pack("[{s:s, s:o}]", "role", "user", "content", text));
}

nb_status nb_load_body(nb_buf *out, const nb_target *target, const nb_load_options *o, int64_t i,
                       int64_t *input_asked, int64_t *output_asked, nb_err *err)
{
    const nb_prompt_item *item = o->file == NULL ? NULL : &o->file->items[i % o->file->n];
    *output_asked = output_of(o, item, i);
    *input_asked = item == NULL ? nb_prompt_input_len(&o->plan, i) : -1;
    nb_status s = NB_OK;
    json_t *text = item == NULL ? random_text(o, i, &s, err) : json_incref(item->prompt);
    NB_TRY(s);
    json_t *body = json_object();
    int bad = json_object_set_new(body, "model", json_string(target->model));
    bad |= put_prompt(body, target->chat, text, item == NULL ? NULL : item->messages);
    const bool strict = target->backend == NB_BACKEND_OPENAI;
    /* OpenAI's chat takes the new name alone; others may know the old one only. */
    if (!target->chat || !strict)
        bad |= json_object_set_new(body, "max_tokens", json_integer(*output_asked));
    if (target->chat)
        bad |= json_object_set_new(body, "max_completion_tokens", json_integer(*output_asked));
    bad |= json_object_set_new(body, "temperature", json_real(o->temperature));
    bad |= json_object_set_new(body, "stream", json_true());
    bad |= json_object_set_new(body, "stream_options", json_pack("{s:b}", "include_usage", 1));
    if (o->ignore_eos && !strict)
        bad |= json_object_set_new(body, "ignore_eos", json_true());
    if (o->extra != NULL)
        bad |= json_object_update(body, (json_t *)(uintptr_t)o->extra);
    s = bad != 0 ? nb_fail(err, NB_MEMORY, "out of memory for a request")
                 : nb_json_write(out, body, false, err);
    json_decref(body);
    return s;
}
