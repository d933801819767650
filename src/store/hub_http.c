/* See hub_http.h. */
#define _GNU_SOURCE
#include "store/hub_http.h"

#ifndef NIBBLE_WITH_PULL

nb_status nb_http_open(nb_http **out, const nb_hub_request *request, nb_err *err)
{
    (void)out, (void)request;
    return nb_fail(err, NB_UNSUPPORTED, "this nibble was built without libcurl");
}

void nb_http_close(nb_http *http)
{
    (void)http;
}

nb_status nb_http_get(nb_http *http, const char *url, nb_buf *body, nb_err *err)
{
    (void)http, (void)body;
    return nb_fail(err, NB_UNSUPPORTED, "%s: built without libcurl", url);
}

nb_status nb_http_fetch(nb_http *http, const char *url, const char *path, int64_t size,
                        const char *sha256, const char *label, nb_err *err)
{
    (void)http, (void)path, (void)size, (void)sha256, (void)label;
    return nb_fail(err, NB_UNSUPPORTED, "%s: built without libcurl", url);
}

#else

#include "base/sha256.h"

#include <curl/curl.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* Progress that earns a fresh set of retries; less could go on for ever. */
#define WORTHWHILE_BYTES (64 * 1024)
/* The most that a file without a listed size may grow to. */
#define UNKNOWN_SIZE_MAX ((int64_t)1 << 40)

struct nb_http {
    const nb_hub_request *request;
    CURL *curl;
    bool connected; /* some answer came: the network works */
    bool global;
};

/* Where the body of the answer in progress goes, and what is known about it. */
typedef struct {
    nb_http *http;
    nb_buf *text; /* a text, or */
    int fd;       /* a file */
    nb_sha256 hash;
    int64_t have, size, limit;
    int64_t junk_left; /* of an error page */
    const char *label;
    int64_t range_start; /* of Content-Range; -1: none */
    bool body_began, skip;
    bool too_long, interrupted;
    int write_errno;
    nb_err err;
} transfer;

static bool keep_going(const nb_hub_request *r, const char *label, int64_t done, int64_t total)
{
    return r->step == NULL || r->step(r->context, label, done, total < 0 ? 0 : total);
}

/* ---- what curl calls ---- */

static size_t on_header(char *line, size_t size, size_t n, void *context)
{
    transfer *t = context;
    const size_t len = size * n;
    static const char name[] = "content-range:";
    if (len > 5 && strncasecmp(line, "HTTP/", 5) == 0)
        t->range_start = -1; /* a redirect's headers came before */
    if (len > sizeof name && len < 200 && strncasecmp(line, name, sizeof name - 1) == 0) {
        char text[200];
        memcpy(text, line, len);
        text[len] = 0;
        long long start;
        if (sscanf(text + sizeof name - 1, " bytes %lld-", &start) == 1)
            t->range_start = start;
    }
    return len;
}

/* The first bytes of a body: does it continue what we have, start afresh, or tell of an error? */
static bool begin_body(transfer *t)
{
    t->body_began = true;
    long code = 0;
    curl_easy_getinfo(t->http->curl, CURLINFO_RESPONSE_CODE, &code);
    t->skip = code != 200 && code != 206;
    if (t->skip || t->text != NULL || t->have == 0)
        return true;
    if (code == 206 && t->range_start == t->have)
        return true;
    /* The server ignored the range (or sent another): what it sends starts at 0, or is junk. */
    t->skip = code == 206;
    t->have = 0;
    nb_sha256_init(&t->hash);
    if (ftruncate(t->fd, 0) != 0 || lseek(t->fd, 0, SEEK_SET) != 0) {
        t->write_errno = errno;
        return false;
    }
    return true;
}

static bool write_all(int fd, const char *p, size_t n)
{
    while (n > 0) {
        const ssize_t put = write(fd, p, n);
        if (put < 0 && errno != EINTR)
            return false;
        if (put > 0) {
            p += put;
            n -= (size_t)put;
        }
    }
    return true;
}

static size_t on_body(char *bytes, size_t size, size_t n, void *context)
{
    transfer *t = context;
    const size_t len = size * n;
    if (!t->body_began && !begin_body(t))
        return 0;
    if (t->skip) /* an error page: of no use, but it must not be endless either */
        return (t->junk_left -= (int64_t)len) > 0 ? len : 0;
    if (t->text != NULL)
        return nb_buf_put(t->text, bytes, len, &t->err) == NB_OK ? len : 0;
    if ((int64_t)len > t->limit - t->have) {
        t->too_long = true;
        return 0;
    }
    if (!write_all(t->fd, bytes, len)) {
        t->write_errno = errno;
        return 0;
    }
    nb_sha256_update(&t->hash, bytes, len);
    t->have += (int64_t)len;
    return len;
}

static int on_progress(void *context, curl_off_t dl_total, curl_off_t dl, curl_off_t ul_total,
                       curl_off_t ul)
{
    transfer *t = context;
    (void)dl_total, (void)dl, (void)ul_total, (void)ul;
    t->interrupted = !keep_going(t->http->request, t->label, t->have, t->size);
    return t->interrupted;
}

/* ---- one request ---- */

typedef enum { ATTEMPT_DONE, ATTEMPT_AGAIN, ATTEMPT_FAILED } attempt;

/* Each request is configured from nothing, so that none inherits another's range or token. */
static void configure(nb_http *http, const char *url, transfer *t, char *error_text)
{
    CURL *c = http->curl;
    const nb_hub_request *r = http->request;
    curl_easy_reset(c);
    curl_easy_setopt(c, CURLOPT_URL, url);
    curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(c, CURLOPT_USERAGENT, "nibble/" NIBBLE_VERSION);
    curl_easy_setopt(c, CURLOPT_FOLLOWLOCATION, 1L);
    curl_easy_setopt(c, CURLOPT_MAXREDIRS, 8L);
    /* A redirect never leads from https to http, or to another protocol. */
    const bool secure = strncasecmp(url, "https:", 6) == 0;
#if LIBCURL_VERSION_NUM >= 0x075500
    curl_easy_setopt(c, CURLOPT_PROTOCOLS_STR, secure ? "https" : "http");
    curl_easy_setopt(c, CURLOPT_REDIR_PROTOCOLS_STR, secure ? "https" : "http,https");
#else
    const long https = CURLPROTO_HTTPS, both = CURLPROTO_HTTP | CURLPROTO_HTTPS;
    curl_easy_setopt(c, CURLOPT_PROTOCOLS, secure ? https : (long)CURLPROTO_HTTP);
    curl_easy_setopt(c, CURLOPT_REDIR_PROTOCOLS, secure ? https : both);
#endif
    curl_easy_setopt(c, CURLOPT_CONNECTTIMEOUT, 10L);
    curl_easy_setopt(c, CURLOPT_LOW_SPEED_LIMIT, 100L);
    curl_easy_setopt(c, CURLOPT_LOW_SPEED_TIME, (long)r->stall_s);
    if (r->token != NULL) { /* curl drops it when a redirect leaves the host */
        curl_easy_setopt(c, CURLOPT_HTTPAUTH, (long)CURLAUTH_BEARER);
        curl_easy_setopt(c, CURLOPT_XOAUTH2_BEARER, r->token);
    }
    curl_easy_setopt(c, CURLOPT_ERRORBUFFER, error_text);
    curl_easy_setopt(c, CURLOPT_HEADERFUNCTION, on_header);
    curl_easy_setopt(c, CURLOPT_HEADERDATA, t);
    curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(c, CURLOPT_WRITEDATA, t);
    curl_easy_setopt(c, CURLOPT_NOPROGRESS, 0L);
    curl_easy_setopt(c, CURLOPT_XFERINFOFUNCTION, on_progress);
    curl_easy_setopt(c, CURLOPT_XFERINFODATA, t);
}

static attempt judge_code(long code, const nb_hub_request *r, const char *url, nb_err *err)
{
    const char *why = "";
    if (code == 401 || code == 403)
        why = r->token == NULL ? ": a private or gated repository? (set HF_TOKEN)"
                               : ": HF_TOKEN gives no access";
    else if (code == 404)
        why = ": not found";
    nb_fail(err, NB_IO, "%s: the server answered %ld%s", url, code, why);
    return code == 408 || code == 429 || code >= 500 ? ATTEMPT_AGAIN : ATTEMPT_FAILED;
}

static attempt request_once(nb_http *http, const char *url, transfer *t, nb_err *err)
{
    char error_text[CURL_ERROR_SIZE] = "";
    char range[40];
    t->body_began = t->skip = false;
    t->junk_left = 1 << 20;
    t->range_start = -1;
    configure(http, url, t, error_text);
    const int64_t before = t->have;
    if (t->text == NULL && t->have > 0) {
        snprintf(range, sizeof range, "%lld-", (long long)t->have);
        curl_easy_setopt(http->curl, CURLOPT_RANGE, range);
    }
    const CURLcode result = curl_easy_perform(http->curl);
    long code = 0;
    curl_easy_getinfo(http->curl, CURLINFO_RESPONSE_CODE, &code);
    http->connected = http->connected || code != 0;
    if (t->interrupted) {
        nb_fail(err, NB_INTERRUPTED, "interrupted");
        return ATTEMPT_FAILED;
    }
    if (t->err.status != NB_OK) {
        *err = t->err;
        nb_context(err, "%s", url);
        return ATTEMPT_FAILED;
    }
    if (t->write_errno != 0) {
        nb_fail_errno(err, t->write_errno, "writing");
        return ATTEMPT_FAILED;
    }
    if (t->too_long) {
        nb_fail(err, NB_DATA, "%s: the server sends more than the %lld bytes it listed", url,
                (long long)t->limit);
        return ATTEMPT_FAILED;
    }
    if (code == 416 && before > 0) { /* nothing there: the partial file is not of this content */
        t->have = 0;
        nb_sha256_init(&t->hash);
        nb_fail(err, NB_IO, "%s: the server has no byte %lld", url, (long long)before);
        return ftruncate(t->fd, 0) == 0 && lseek(t->fd, 0, SEEK_SET) == 0 ? ATTEMPT_AGAIN
                                                                          : ATTEMPT_FAILED;
    }
    if (code != 0 && code != 200 && code != 206)
        return judge_code(code, http->request, url, err);
    if (result != CURLE_OK) {
        nb_fail(err, NB_IO, "%s: %s", url,
                error_text[0] != 0 ? error_text : curl_easy_strerror(result));
        const bool no_network =
            !http->connected &&
            (result == CURLE_COULDNT_RESOLVE_HOST || result == CURLE_COULDNT_RESOLVE_PROXY ||
             result == CURLE_COULDNT_CONNECT || result == CURLE_OPERATION_TIMEDOUT);
        const bool hopeless = result == CURLE_PEER_FAILED_VERIFICATION ||
                              result == CURLE_UNSUPPORTED_PROTOCOL ||
                              result == CURLE_URL_MALFORMAT || result == CURLE_TOO_MANY_REDIRECTS;
        return no_network || hopeless ? ATTEMPT_FAILED : ATTEMPT_AGAIN;
    }
    if (t->text == NULL && (t->skip || (t->size >= 0 && t->have < t->size))) {
        nb_fail(err, NB_IO, "%s: the transfer ended at byte %lld of %lld", url, (long long)t->have,
                (long long)t->size);
        return ATTEMPT_AGAIN;
    }
    return ATTEMPT_DONE;
}

/* Waits before a retry: half a second, doubled each time, at most eight. False: interrupted. */
static bool back_off(const transfer *t, int tries)
{
    const int tenths = tries > 4 ? 80 : 5 << tries;
    for (int i = 0; i < tenths; i++) {
        if (!keep_going(t->http->request, t->label, t->have, t->size))
            return false;
        nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
    }
    return true;
}

static nb_status perform(nb_http *http, const char *url, transfer *t, nb_err *err)
{
    for (int tries = 0;; tries++) {
        const int64_t before = t->have;
        const attempt a = request_once(http, url, t, err);
        if (a == ATTEMPT_DONE)
            return NB_OK;
        if (t->have - before >= WORTHWHILE_BYTES)
            tries = 0;
        if (a == ATTEMPT_FAILED)
            return err->status;
        if (tries >= http->request->retries)
            return tries == 0 ? err->status : nb_context(err, "after %d retries", tries);
        if (t->text != NULL)
            t->text->len = 0;
        if (!back_off(t, tries))
            return nb_fail(err, NB_INTERRUPTED, "interrupted");
    }
}

/* ---- the interface ---- */

nb_status nb_http_open(nb_http **out, const nb_hub_request *request, nb_err *err)
{
    nb_http *http;
    NB_TRY(NB_ALLOC(&http, 1, err));
    http->request = request;
    http->global = curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK;
    http->curl = http->global ? curl_easy_init() : NULL;
    if (http->curl == NULL) {
        nb_http_close(http);
        return nb_fail(err, NB_MEMORY, "libcurl does not start");
    }
    *out = http;
    return NB_OK;
}

void nb_http_close(nb_http *http)
{
    if (http == NULL)
        return;
    if (http->curl != NULL)
        curl_easy_cleanup(http->curl);
    if (http->global)
        curl_global_cleanup();
    nb_free(http);
}

nb_status nb_http_get(nb_http *http, const char *url, nb_buf *body, nb_err *err)
{
    transfer t = {.http = http, .text = body, .fd = -1, .size = -1, .label = url};
    return perform(http, url, &t, err);
}

/* Feeds the hash with what an earlier run left behind. */
static nb_status hash_existing(transfer *t, nb_err *err)
{
    uint8_t piece[65536];
    t->have = 0;
    for (;;) {
        const ssize_t n = read(t->fd, piece, sizeof piece);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return nb_fail_errno(err, errno, "reading");
        if (n == 0)
            return NB_OK;
        nb_sha256_update(&t->hash, piece, (size_t)n);
        t->have += n;
    }
}

static nb_status restart(transfer *t, nb_err *err)
{
    t->have = 0;
    nb_sha256_init(&t->hash);
    if (ftruncate(t->fd, 0) != 0 || lseek(t->fd, 0, SEEK_SET) != 0)
        return nb_fail_errno(err, errno, "truncating");
    return NB_OK;
}

/* Fetches what is missing and checks the whole. A mismatch leaves nothing to resume from. */
static nb_status complete(transfer *t, const char *url, const char *sha256, nb_err *err)
{
    const bool resumed = t->have > 0;
    if (t->size < 0 || t->have < t->size || t->size == 0)
        NB_TRY(perform(t->http, url, t, err));
    if (sha256 == NULL)
        return NB_OK;
    uint8_t digest[NB_SHA256_BYTES];
    char hex[NB_SHA256_HEX];
    nb_sha256_final(&t->hash, digest);
    nb_sha256_hex_of(digest, hex);
    if (strcasecmp(hex, sha256) == 0)
        return NB_OK;
    NB_TRY(restart(t, err));
    if (resumed) /* what was on disk may have been the wrong half */
        return complete(t, url, sha256, err);
    return nb_fail(err, NB_DATA,
                   "%s: checksum mismatch: SHA-256 is %.16s..., %.16s... was expected", url, hex,
                   sha256);
}

nb_status nb_http_fetch(nb_http *http, const char *url, const char *path, int64_t size,
                        const char *sha256, const char *label, nb_err *err)
{
    char *partial;
    const size_t room = strlen(path) + sizeof ".partial";
    NB_TRY(NB_ALLOC(&partial, room, err));
    snprintf(partial, room, "%s.partial", path);
    transfer t = {.http = http, .size = size, .label = label};
    t.limit = size >= 0 ? size : UNKNOWN_SIZE_MAX;
    nb_sha256_init(&t.hash);
    nb_status s = NB_OK;
    t.fd = open(partial, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0666);
    struct stat st;
    if (t.fd < 0 || fstat(t.fd, &st) != 0)
        s = nb_fail_errno(err, errno, "%s", partial);
    else if (!S_ISREG(st.st_mode))
        s = nb_fail(err, NB_DATA, "%s: not a regular file", partial);
    else if (sha256 == NULL || st.st_size > t.limit)
        s = restart(&t, err);
    else
        s = hash_existing(&t, err);
    if (s == NB_OK)
        s = complete(&t, url, sha256, err);
    if (s == NB_OK && fsync(t.fd) != 0)
        s = nb_fail_errno(err, errno, "%s: syncing", partial);
    if (s == NB_OK && rename(partial, path) != 0)
        s = nb_fail_errno(err, errno, "%s: renaming", partial);
    /* What cannot be continued is not kept. */
    if (s != NB_OK && t.fd >= 0 && (t.have == 0 || sha256 == NULL))
        unlink(partial);
    else if (s != NB_OK && t.fd >= 0)
        nb_context(err, "%s is kept, run again to continue", partial);
    if (t.fd >= 0)
        close(t.fd);
    nb_free(partial);
    return s;
}

#endif
