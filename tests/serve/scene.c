/* See scene.h. */
#define _GNU_SOURCE
#include "scene.h"

#include "base/clock.h"
#include "text/tokenizer_parts.h"
#include "text/unicode.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

nb_tokenizer *scene_tokenizer(void)
{
    json_t *vocab = json_object(), *added = json_array();
    for (int b = 0; b < 256; b++) {
        uint8_t name[5] = {0};
        nb_utf8_put(nb_byte_char((uint8_t)b), name);
        json_object_set_new(vocab, (const char *)name, json_integer(b));
    }
    json_array_append_new(added, json_pack("{s:i, s:s, s:b}", "id", SCENE_END, "content",
                                           "<|im_end|>", "special", 1));
    json_array_append_new(added, json_pack("{s:i, s:s, s:b}", "id", SCENE_START, "content",
                                           "<|im_start|>", "special", 1));
    json_t *v = json_pack("{s:s, s:o, s:{s:s, s:b, s:b}, s:{s:s}, s:{s:s, s:o, s:[]}}", "version",
                          "1.0", "added_tokens", added, "pre_tokenizer", "type", "ByteLevel",
                          "add_prefix_space", 0, "use_regex", 1, "decoder", "type", "ByteLevel",
                          "model", "type", "BPE", "vocab", vocab, "merges");
    json_t *config = json_pack("{s:s}", "eos_token", "<|im_end|>");
    nb_err err = {0};
    nb_tokenizer *t;
    if (nb_tokenizer_from_json(&t, v, config, NULL, NULL, -1, &err) != NB_OK)
        fail_msg("%s", err.text);
    json_decref(v);
    json_decref(config);
    return t;
}

nb_jinja *scene_template(void)
{
    static const char CHATML[] =
        "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}"
        "{% endif %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    nb_err err = {0};
    nb_jinja *t;
    if (nb_jinja_parse(&t, CHATML, strlen(CHATML), &err) != NB_OK)
        fail_msg("%s", err.text);
    return t;
}

void scene_open_parts(scene *s, const fake_engine *engine)
{
    static const char *const ALIASES[] = {"owner/fake"};
    memset(s, 0, sizeof *s);
    s->tokenizer = scene_tokenizer();
    s->template_ = scene_template();
    fake_engine how = engine != NULL ? *engine : (fake_engine){0};
    how.tokenizer = s->tokenizer;
    s->engine = fake_engine_open(&how);
    s->served = (nb_served){.name = "fa\"ke\n\\",
                            .aliases = ALIASES,
                            .n_aliases = 1,
                            .tokenizer = s->tokenizer,
                            .template_ = s->template_,
                            .engine = s->engine,
                            .n_ctx = SCENE_CTX,
                            .n_room = SCENE_CTX,
                            .vocab_size = SCENE_VOCAB,
                            .d_model = FAKE_DIMS,
                            .pooling = NB_POOL_MEAN,
                            .created = 1700000000};
}

void scene_open(scene *s, const fake_engine *engine, const nb_server_setup *setup)
{
    nb_err err = {0};
    scene_open_parts(s, engine);
    if (nb_listen_tcp(&s->listener, "127.0.0.1", 0, &err) != NB_OK)
        fail_msg("%s", err.text);
    s->port = atoi(strrchr(s->listener.address, ':') + 1);
    nb_server_setup how = setup != NULL ? *setup : (nb_server_setup){0};
    how.listener = &s->listener;
    if (nb_server_open(&s->server, &how, &err) != NB_OK ||
        nb_server_serve(s->server, &s->served, NULL, 0, 100, 16, &err) != NB_OK)
        fail_msg("%s", err.text);
}

void scene_close(scene *s)
{
    nb_server_stop(s->server);
    nb_listener_close(&s->listener);
    nb_engine_close(s->engine);
    nb_server_close(s->server);
    nb_jinja_free(s->template_);
    nb_tokenizer_close(s->tokenizer);
    memset(s, 0, sizeof *s);
}

/* ---- a client ---- */

int scene_connect(const scene *s)
{
    const struct sockaddr_in a = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)s->port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (const struct sockaddr *)&a, sizeof a), 0);
    return fd;
}

void scene_send(int fd, const char *bytes, size_t n)
{
    while (n > 0) {
        const ssize_t k = send(fd, bytes, n, MSG_NOSIGNAL);
        if (k <= 0)
            return; /* refused midway: the answer tells */
        bytes += k;
        n -= (size_t)k;
    }
}

/* Whether the answer in text[0, n) is complete by its own account. */
static bool is_complete(const char *text, size_t n)
{
    const char *end = strstr(text, "\r\n\r\n");
    if (end == NULL)
        return false;
    const char *length = strcasestr(text, "\r\nContent-Length:");
    const char *chunked = strcasestr(text, "\r\nTransfer-Encoding: chunked");
    if (chunked != NULL && chunked < end)
        return n >= 5 && memcmp(text + n - 5, "0\r\n\r\n", 5) == 0;
    if (length != NULL && length < end)
        return n >= (size_t)(end + 4 - text) + strtoull(length + 17, NULL, 10);
    return strstr(text, " 204 ") != NULL;
}

char *scene_receive(int fd, double seconds, bool *closed)
{
    size_t n = 0, cap = 1 << 16;
    char *text = malloc(cap);
    assert_non_null(text);
    text[0] = 0;
    *closed = false;
    const double until = nb_clock() + seconds;
    while (!is_complete(text, n)) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        const double left = until - nb_clock();
        if (left <= 0 || poll(&p, 1, (int)(left * 1000) + 1) <= 0)
            break;
        if (cap - n < 4096) {
            text = realloc(text, cap *= 2);
            assert_non_null(text);
        }
        const ssize_t k = recv(fd, text + n, cap - n - 1, 0);
        if (k <= 0) {
            *closed = true;
            break;
        }
        n += (size_t)k;
        text[n] = 0;
    }
    return text;
}

char *scene_ask(const scene *s, const char *method, const char *path, const char *head,
                const char *body)
{
    char *request;
    const int n =
        asprintf(&request, "%s %s HTTP/1.1\r\nHost: test\r\n%sContent-Length: %zu\r\n\r\n%s",
                 method, path, head, strlen(body), body);
    assert_true(n > 0);
    const int fd = scene_connect(s);
    bool closed;
    scene_send(fd, request, (size_t)n);
    char *answer = scene_receive(fd, 20, &closed);
    close(fd);
    free(request);
    return answer;
}

int scene_status(const char *answer)
{
    return strncmp(answer, "HTTP/1.1 ", 9) == 0 ? atoi(answer + 9) : 0;
}

char *scene_body(char *answer)
{
    char *body = strstr(answer, "\r\n\r\n");
    if (body == NULL)
        return answer + strlen(answer);
    const char *chunked = strcasestr(answer, "\r\nTransfer-Encoding: chunked");
    body += 4;
    if (chunked == NULL || chunked > body)
        return body;
    char *to = body, *from = body;
    for (;;) {
        char *line;
        const size_t n = strtoull(from, &line, 16);
        if (n == 0 || strlen(line) < n + 2)
            break;
        memmove(to, line + 2, n);
        to += n;
        from = line + 2 + n + 2;
    }
    *to = 0;
    return body;
}

json_t *scene_json(char *answer)
{
    nb_err err = {0};
    json_t *v;
    const char *body = scene_body(answer);
    if (nb_json_parse(&v, body, strlen(body), &err) != NB_OK)
        fail_msg("%s: %s", err.text, answer);
    return v;
}
