/* See embeddings.h. */
#include "serve/embeddings.h"

#include <math.h>
#include <string.h>

/* ---- requests ---- */

static nb_status read_format(nb_ask *ask, const nb_fields *f)
{
    const char *format = "float";
    size_t len = 0;
    NB_TRY(nb_field_text(f, "encoding_format", &format, &len));
    ask->as_base64 = strcmp(format, "base64") == 0;
    if (!ask->as_base64 && strcmp(format, "float") != 0)
        return nb_field_refuse(f, "encoding_format",
                               "is '%.40s': 'float' and 'base64' are possible", format);
    return NB_OK;
}

/* The room is looked at here, for there is no answer that would need some. */
static nb_status check_size(const nb_ask *ask, const nb_fields *f, const nb_served *m)
{
    if (ask->n_prompts > NB_ASK_MAX_NUMBERS / ask->dimensions)
        return nb_field_refuse(f, "input", "asks for %lld vectors of %lld numbers: up to %lld fit",
                               (long long)ask->n_prompts, (long long)ask->dimensions,
                               (long long)(NB_ASK_MAX_NUMBERS / ask->dimensions));
    for (int64_t i = 0; i < ask->n_prompts; i++)
        if (ask->prompts[i].tokens.n > m->n_room)
            return nb_ask_no_room(f, "input", m, "'input' has %lld tokens at %lld",
                                  (long long)ask->prompts[i].tokens.n, (long long)i);
    return NB_OK;
}

nb_status nb_embeddings_read(nb_ask *ask, const nb_served *m, nb_problem *why)
{
    if (!json_is_object(ask->json))
        return nb_refuse(why, 400, NULL, "the body is %s, not an object",
                         nb_json_type_name(ask->json));
    const nb_fields f = {ask->json, "", why};
    NB_TRY(nb_ask_model(&f, m));
    NB_TRY(read_format(ask, &f));
    ask->dimensions = m->d_model;
    NB_TRY(nb_field_int(&f, "dimensions", 1, m->d_model, &ask->dimensions));
    NB_TRY(nb_ask_salt(ask, &f));
    NB_TRY(nb_field_int(&f, "priority", -NB_SCHED_MAX_PRIORITY, NB_SCHED_MAX_PRIORITY,
                        &ask->priority));
    const char *user = NULL;
    size_t len = 0;
    NB_TRY(nb_field_text(&f, "user", &user, &len));
    bool add_special = true;
    NB_TRY(nb_field_bool(&f, "add_special_tokens", &add_special));
    const json_t *input = nb_field(&f, "input");
    if (input == NULL)
        return nb_field_refuse(&f, "input", "is missing");
    ask->no_answer = true;
    ask->pooling = m->pooling;
    const nb_encode_options how = {.add_bos = add_special, .add_end = add_special};
    NB_TRY(nb_ask_prompts(ask, &f, "input", m, input, how));
    return check_size(ask, &f, m);
}

/* ---- answers ---- */

/* The first n numbers, scaled to a length of 1; binary64, in ascending order. Zeros stay. */
static void normalize(const float *x, int64_t n, float *out)
{
    double sum = 0;
    for (int64_t k = 0; k < n; k++)
        sum += (double)x[k] * (double)x[k];
    const double length = sqrt(sum);
    for (int64_t k = 0; k < n; k++)
        out[k] = length > 0 ? (float)((double)x[k] / length) : 0;
}

static void write_vector(const nb_ask *ask, const nb_choice *c, float *room, nb_wire *out)
{
    const int64_t n = ask->dimensions;
    normalize(c->pooled, n, room);
    if (ask->as_base64) {
        nb_wire_base64(out, room, (size_t)n * sizeof *room);
        return;
    }
    for (int64_t k = 0; k < n; k++) {
        nb_wire_raw(out, k > 0 ? "," : "[");
        nb_wire_real(out, (double)room[k]);
    }
    nb_wire_raw(out, "]");
}

void nb_embeddings_write(const nb_ask *ask, const nb_served *m, const nb_reply *r, nb_wire *out)
{
    float *room = NULL;
    nb_err err;
    if (out->status == NB_OK)
        out->status = NB_ALLOC(&room, ask->dimensions, &err);
    if (out->status != NB_OK)
        return;
    int64_t n_tokens = 0;
    nb_wire_raw(out, "{\"id\":\"");
    nb_wire_raw(out, ask->id);
    nb_wire_raw(out, "\",\"object\":\"list\",\"created\":");
    nb_wire_int(out, ask->created);
    nb_wire_raw(out, ",\"model\":");
    nb_wire_string(out, m->name, strlen(m->name));
    nb_wire_raw(out, ",\"data\":[");
    for (int64_t i = 0; i < r->n_choices; i++) {
        nb_wire_raw(out, i > 0 ? ",{\"object\":\"embedding\",\"index\":"
                               : "{\"object\":\"embedding\",\"index\":");
        nb_wire_int(out, i);
        nb_wire_raw(out, ",\"embedding\":");
        write_vector(ask, &r->choices[i], room, out);
        nb_wire_raw(out, "}");
        n_tokens += ask->prompts[i].tokens.n;
    }
    nb_wire_raw(out, "],\"usage\":{\"prompt_tokens\":");
    nb_wire_int(out, n_tokens);
    nb_wire_raw(out, ",\"total_tokens\":");
    nb_wire_int(out, n_tokens);
    nb_wire_raw(out, "}}");
    nb_free(room);
}
