/* A server over the fake engine, and a client of raw bytes. */
#ifndef NB_TESTS_SERVE_SCENE_H
#define NB_TESTS_SERVE_SCENE_H

#include "support/golden.h"

#include "fake_engine.h"
#include "serve/server.h"

/* Every byte is its own id; then two special tokens, of which the first ends an answer. */
enum { SCENE_END = 256, SCENE_START, SCENE_VOCAB };
#define SCENE_CTX 4096

nb_tokenizer *scene_tokenizer(void);
nb_jinja *scene_template(void);

typedef struct {
    nb_tokenizer *tokenizer;
    nb_jinja *template_;
    nb_engine *engine;
    nb_served served;
    nb_listener listener;
    nb_server *server;
    int port;
} scene;

/* Both may be NULL. A server that does not start fails the test. */
void scene_open(scene *s, const fake_engine *engine, const nb_server_setup *setup);
/* Without a server: what parsers need. */
void scene_open_parts(scene *s, const fake_engine *engine);
void scene_close(scene *s);

/* ---- a client ---- */

int scene_connect(const scene *s);
void scene_send(int fd, const char *bytes, size_t n);
/* What comes until the other side closes, `seconds` pass, or (with Content-Length or chunks) the
 * answer is complete. Zero-terminated; free() it. *closed: the other side did. */
char *scene_receive(int fd, double seconds, bool *closed);
/* One request on a connection of its own: the answer, free() it. `head` is more header fields, each
 * with its line end, or "". */
char *scene_ask(const scene *s, const char *method, const char *path, const char *head,
                const char *body);
int scene_status(const char *answer); /* 0: none */
/* The body, chunks joined in place: once for an answer. */
char *scene_body(char *answer);
/* The body as JSON; decref it. Fails the test when it is none. */
json_t *scene_json(char *answer);

#endif
