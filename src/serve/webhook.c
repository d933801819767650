/* See webhook.h. */
#define _GNU_SOURCE
#include "serve/webhook.h"

#ifndef NIBBLE_WITH_PULL

nb_status nb_webhook_open(nb_webhook **out, const char *url, nb_err *err)
{
    *out = NULL;
    return nb_fail(err, NB_UNSUPPORTED, "%.200s: this nibble was built without libcurl", url);
}

void nb_webhook_close(nb_webhook *w)
{
    (void)w;
}

bool nb_webhook_post(nb_webhook *w, const char *json, size_t len)
{
    (void)w, (void)json, (void)len;
    return false;
}

int64_t nb_webhook_n_sent(nb_webhook *w)
{
    (void)w;
    return 0;
}

#else

#include "base/alloc.h"

#include <curl/curl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <strings.h>

enum { MAX_WAITING = 16, MAX_MESSAGE = 1024, TIMEOUT_S = 5 };

struct nb_webhook {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    CURL *curl;
    struct curl_slist *headers;
    char text[MAX_WAITING][MAX_MESSAGE]; /* a ring */
    size_t len[MAX_WAITING];
    int first, n;
    atomic_bool stopping;
    int64_t n_sent;
};

static size_t ignore_body(char *bytes, size_t size, size_t n, void *context)
{
    (void)bytes, (void)context;
    return size * n;
}

static int keep_going(void *context, curl_off_t a, curl_off_t b, curl_off_t c, curl_off_t d)
{
    (void)a, (void)b, (void)c, (void)d;
    nb_webhook *w = context;
    return atomic_load(&w->stopping) ? 1 : 0;
}

static void *deliver(void *context)
{
    nb_webhook *w = context;
    char text[MAX_MESSAGE];
    pthread_mutex_lock(&w->lock);
    while (!atomic_load(&w->stopping)) {
        if (w->n == 0) {
            pthread_cond_wait(&w->changed, &w->lock);
            continue;
        }
        const size_t len = w->len[w->first];
        memcpy(text, w->text[w->first], len);
        w->first = (w->first + 1) % MAX_WAITING;
        w->n--;
        pthread_mutex_unlock(&w->lock);
        curl_easy_setopt(w->curl, CURLOPT_POSTFIELDS, text);
        curl_easy_setopt(w->curl, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)len);
        const bool sent = curl_easy_perform(w->curl) == CURLE_OK;
        pthread_mutex_lock(&w->lock);
        w->n_sent += sent;
    }
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

static nb_status set_up(nb_webhook *w, const char *url, nb_err *err)
{
    w->curl = curl_easy_init();
    w->headers = curl_slist_append(NULL, "Content-Type: application/json");
    if (w->curl == NULL || w->headers == NULL)
        return nb_fail(err, NB_MEMORY, "out of memory for a webhook");
    curl_easy_setopt(w->curl, CURLOPT_URL, url);
    curl_easy_setopt(w->curl, CURLOPT_HTTPHEADER, w->headers);
    curl_easy_setopt(w->curl, CURLOPT_TIMEOUT, (long)TIMEOUT_S);
    curl_easy_setopt(w->curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(w->curl, CURLOPT_FAILONERROR, 1L);
    curl_easy_setopt(w->curl, CURLOPT_WRITEFUNCTION, ignore_body);
    curl_easy_setopt(w->curl, CURLOPT_NOPROGRESS, 0L);
    curl_easy_setopt(w->curl, CURLOPT_XFERINFOFUNCTION, keep_going);
    curl_easy_setopt(w->curl, CURLOPT_XFERINFODATA, w);
    return NB_OK;
}

static void tear_down(nb_webhook *w)
{
    curl_easy_cleanup(w->curl);
    curl_slist_free_all(w->headers);
    pthread_cond_destroy(&w->changed);
    pthread_mutex_destroy(&w->lock);
    nb_free(w);
    curl_global_cleanup();
}

nb_status nb_webhook_open(nb_webhook **out, const char *url, nb_err *err)
{
    *out = NULL;
    if (strncasecmp(url, "http://", 7) != 0 && strncasecmp(url, "https://", 8) != 0)
        return nb_fail(err, NB_USAGE, "%.200s: a webhook begins with http:// or https://", url);
    nb_webhook *w;
    NB_TRY(NB_ALLOC(&w, 1, err));
    if (curl_global_init(CURL_GLOBAL_DEFAULT) != 0) {
        nb_free(w);
        return nb_fail(err, NB_MEMORY, "libcurl does not start");
    }
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->changed, NULL);
    nb_status s = set_up(w, url, err);
    if (s == NB_OK) {
        const int r = pthread_create(&w->thread, NULL, deliver, w);
        if (r != 0)
            s = nb_fail_errno(err, r, "a thread for the webhook");
    }
    if (s != NB_OK)
        tear_down(w);
    else
        *out = w;
    return s;
}

void nb_webhook_close(nb_webhook *w)
{
    if (w == NULL)
        return;
    pthread_mutex_lock(&w->lock);
    atomic_store(&w->stopping, true);
    pthread_cond_signal(&w->changed);
    pthread_mutex_unlock(&w->lock);
    pthread_join(w->thread, NULL);
    tear_down(w);
}

bool nb_webhook_post(nb_webhook *w, const char *json, size_t len)
{
    pthread_mutex_lock(&w->lock);
    const bool room = w->n < MAX_WAITING && len <= MAX_MESSAGE;
    if (room) {
        const int at = (w->first + w->n) % MAX_WAITING;
        memcpy(w->text[at], json, len);
        w->len[at] = len;
        w->n++;
        pthread_cond_signal(&w->changed);
    }
    pthread_mutex_unlock(&w->lock);
    return room;
}

int64_t nb_webhook_n_sent(nb_webhook *w)
{
    pthread_mutex_lock(&w->lock);
    const int64_t n = w->n_sent;
    pthread_mutex_unlock(&w->lock);
    return n;
}

#endif
