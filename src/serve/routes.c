/* The table of routes, and the small ones. A route is a line here, and a path in openapi.json. */
#include "serve/serving.h"

#include "base/clock.h"
#include "serve/embeddings.h"
#include "serve/openai.h"
#include "serve/openapi.h"
#include "serve/sglang.h"
#include "serve/tokens.h"

#include <string.h>

static nb_status answer_static(nb_call *c, int http, const char *type, const char *text, size_t len)
{
    c->http = http;
    c->type = type;
    c->is_static = true;
    c->text = text;
    c->text_len = len;
    return NB_OK;
}

/* ---- about the server ---- */

/* Alive, which is all that is asked: empty, as vLLM's. */
static nb_status get_health(nb_call *c)
{
    return answer_static(c, 200, "text/plain; charset=utf-8", "", 0);
}

static nb_status get_ready(nb_call *c)
{
    const int state = atomic_load(&c->server->state);
    if (state == NB_SERVER_SERVING)
        return answer_static(c, 200, "text/plain; charset=utf-8", "ready\n", 6);
    c->head->why.retry_after_s = 1;
    return nb_refuse(&c->head->why, 503, NULL, "%s",
                     state == NB_SERVER_LOADING ? "the model is being loaded"
                                                : "the server is stopping");
}

static nb_status get_metrics(nb_call *c)
{
    c->http = 200;
    c->type = "text/plain; version=0.0.4; charset=utf-8";
    nb_metrics_write(&c->server->metrics, c->server->served->engine, &c->out);
    return NB_OK;
}

static nb_status get_openapi(nb_call *c)
{
    return answer_static(c, 200, "application/json", (const char *)nb_openapi_json,
                         nb_openapi_json_len);
}

static nb_status get_version(nb_call *c)
{
    c->http = 200;
    nb_wire_raw(&c->out, "{\"version\":");
    nb_wire_string(&c->out, nb_version(), strlen(nb_version()));
    nb_wire_raw(&c->out, "}");
    return NB_OK;
}

static nb_status get_page(nb_call *c)
{
    c->page = nb_page_find(c->head->path);
    if (c->page == NULL)
        return nb_refuse(&c->head->why, 404, NULL, "there is no page");
    const char *known =
        MHD_lookup_connection_value(c->connection, MHD_HEADER_KIND, "If-None-Match");
    if (nb_page_same(c->page, known))
        return answer_static(c, 304, NULL, "", 0);
    return answer_static(c, 200, NULL, (const char *)c->page->bytes, c->page->len);
}

/* The report of how the model was quantized, as it lies beside it. */
static nb_status get_report(nb_call *c)
{
    const nb_served *m = c->server->served;
    if (m->report == NULL)
        return nb_refuse(&c->head->why, 404, NULL, "the model has no nibble-report.json");
    return answer_static(c, 200, "application/json", m->report, m->report_len);
}

/* ---- models ---- */

/* By one of its names. */
static void write_model(const nb_served *m, const char *name, nb_wire *out)
{
    nb_wire_raw(out, "{\"id\":");
    nb_wire_string(out, name, strlen(name));
    nb_wire_raw(out, ",\"object\":\"model\",\"created\":");
    nb_wire_int(out, m->created);
    nb_wire_raw(out, ",\"owned_by\":\"nibble\",\"max_model_len\":");
    nb_wire_int(out, m->n_room);
    nb_wire_raw(out, "}");
}

static nb_status get_models(nb_call *c)
{
    const nb_served *m = c->server->served;
    c->http = 200;
    nb_wire_raw(&c->out, "{\"object\":\"list\",\"data\":[");
    write_model(m, m->name, &c->out);
    for (int i = 0; i < m->n_listed; i++) {
        nb_wire_raw(&c->out, ",");
        write_model(m, m->aliases[i], &c->out);
    }
    nb_wire_raw(&c->out, "]}");
    return NB_OK;
}

static int hex_digit(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

/* %XX in a name; false when one is broken or a zero. */
static bool unescape(const char *from, char *to, size_t size)
{
    size_t n = 0;
    for (const char *p = from; *p != 0 && n + 1 < size; p++) {
        char c = *p;
        if (c == '%') {
            const int high = hex_digit(p[1]), low = high < 0 ? -1 : hex_digit(p[2]);
            if (low < 0 || (high == 0 && low == 0))
                return false;
            c = (char)(high * 16 + low);
            p += 2;
        }
        to[n++] = c;
    }
    to[n] = 0;
    return true;
}

static nb_status get_model(nb_call *c)
{
    char name[sizeof c->head->path];
    const nb_served *m = c->server->served;
    if (!unescape(c->tail, name, sizeof name) || !nb_served_is(m, name)) {
        c->head->why.code = "model_not_found";
        return nb_refuse(&c->head->why, 404, "model",
                         "the model '%.200s' does not exist: '%.200s' is "
                         "served",
                         c->tail, m->name);
    }
    c->http = 200;
    write_model(m, name, &c->out);
    return NB_OK;
}

static nb_status get_model_info(nb_call *c)
{
    const nb_served *m = c->server->served;
    c->http = 200;
    nb_wire_raw(&c->out, "{\"model_path\":");
    nb_wire_string(&c->out, m->name, strlen(m->name));
    nb_wire_raw(&c->out, ",\"tokenizer_path\":");
    nb_wire_string(&c->out, m->name, strlen(m->name));
    nb_wire_raw(&c->out, ",\"is_generation\":true,\"max_model_len\":");
    nb_wire_int(&c->out, m->n_room);
    nb_wire_raw(&c->out, "}");
    return NB_OK;
}

/* ---- tokens ---- */

static nb_status post_tokenize(nb_call *c, json_t *body)
{
    const nb_status s = nb_tokenize(body, c->server->served, &c->out, &c->head->why);
    json_decref(body);
    c->http = 200;
    return s;
}

static nb_status post_detokenize(nb_call *c, json_t *body)
{
    const nb_status s = nb_detokenize(body, c->server->served, &c->out, &c->head->why);
    json_decref(body);
    c->http = 200;
    return s;
}

/* ---- generation ---- */

typedef nb_status reader(nb_ask *ask, const nb_served *m, nb_problem *why);

static nb_status generate(nb_call *c, json_t *body, nb_ask_shape shape, reader *read)
{
    nb_ask_init(&c->ask, shape, body);
    NB_TRY(read(&c->ask, c->server->served, &c->head->why));
    return nb_call_submit(c);
}

static nb_status post_completion(nb_call *c, json_t *body)
{
    return generate(c, body, NB_ASK_COMPLETION, nb_openai_read_completion);
}

static nb_status post_chat(nb_call *c, json_t *body)
{
    return generate(c, body, NB_ASK_CHAT, nb_openai_read_chat);
}

static nb_status post_generate(nb_call *c, json_t *body)
{
    return generate(c, body, NB_ASK_GENERATE, nb_sglang_read);
}

static nb_status post_embeddings(nb_call *c, json_t *body)
{
    return generate(c, body, NB_ASK_EMBEDDING, nb_embeddings_read);
}

/* ---- the table ---- */

const nb_route nb_routes[] = {
    {"GET", "/", .open = true, .always = true, .get = get_page},
    {"GET", "/health", .open = true, .always = true, .get = get_health},
    {"GET", "/ready", .open = true, .always = true, .get = get_ready},
    {"GET", "/openapi.json", .open = true, .always = true, .get = get_openapi},
    {"GET", "/version", .open = true, .always = true, .get = get_version},
    {"GET", "/metrics", .get = get_metrics},
    {"GET", "/v1/models", .get = get_models},
    {"GET", "/v1/models/", .get = get_model},
    {"GET", "/nibble/report", .get = get_report},
    {"GET", "/get_model_info", .get = get_model_info},
    {"POST", "/v1/completions", .post = post_completion},
    {"POST", "/v1/chat/completions", .post = post_chat},
    {"POST", "/v1/embeddings", .post = post_embeddings},
    {"POST", "/generate", .post = post_generate},
    {"POST", "/tokenize", .post = post_tokenize},
    {"POST", "/detokenize", .post = post_detokenize},
    {0},
};

static bool matches(const nb_route *r, const char *path, const char **tail)
{
    const size_t n = strlen(r->path);
    if (r->path[n - 1] != '/' || n == 1)
        return strcmp(r->path, path) == 0;
    *tail = path + n;
    return strncmp(r->path, path, n) == 0 && path[n] != 0;
}

const nb_route *nb_route_find(const char *method, const char *path, const char **tail,
                              const char **allow, nb_problem *why)
{
    const bool head = strcmp(method, "HEAD") == 0;
    *allow = NULL;
    for (const nb_route *r = nb_routes; r->path != NULL; r++) {
        if (!matches(r, path, tail))
            continue;
        const bool get = r->get != NULL;
        *allow = get ? "GET, HEAD, OPTIONS" : "POST, OPTIONS";
        if (strcmp(r->method, method) == 0 || (head && get))
            return r;
    }
    if (*allow != NULL)
        nb_refuse(why, 405, NULL, "%.20s is not possible here: %s are", method, *allow);
    else
        nb_refuse(why, 404, NULL, "there is no '%.200s' here", path);
    return NULL;
}
