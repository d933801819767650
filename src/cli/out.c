/* See out.h. */
#define _GNU_SOURCE
#include "cli/out.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <utf8proc.h>

/* Within this time a second signal is the first one again: timeout(1) and some supervisors send
 * theirs to the process and then to its group. */
#define SAME_SIGNAL_NS ((long long)500 * 1000 * 1000)

static volatile sig_atomic_t caught_signal;
static atomic_llong caught_at; /* of the monotonic clock, ns */

/* The first signal asks politely. A second one means that the user will not wait: outputs have
 * temporary names until they are whole, so leaving now is safe. */
static void on_signal(int number)
{
    struct timespec t = {0};
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    const long long now = (long long)t.tv_sec * 1000000000 + t.tv_nsec;
    if (caught_signal == 0) {
        atomic_store(&caught_at, now);
        caught_signal = number;
    } else if (now - atomic_load(&caught_at) > SAME_SIGNAL_NS) {
        _exit(5);
    }
}

bool nb_interrupted(void)
{
    return caught_signal != 0;
}

nb_status nb_fail_interrupted(nb_err *err)
{
    if (caught_signal == SIGHUP)
        return nb_fail(err, NB_IO, "the terminal is gone");
    return nb_fail(err, NB_INTERRUPTED, "interrupted");
}

bool nb_interrupt_forgive(void)
{
    if (caught_signal != SIGINT)
        return false;
    caught_signal = 0;
    return true;
}

void nb_out_init(nb_out *out)
{
    /* A closed descriptor gets one that fails in the direction it is used in. */
    for (int fd = 0; fd <= 2; fd++) {
        if (fcntl(fd, F_GETFD) == -1 && errno == EBADF)
            (void)!open("/dev/null", fd == 1 ? O_RDONLY : O_WRONLY);
    }
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* a write past `ulimit -f` is an error as any other */
    const int caught[] = {SIGINT, SIGTERM, SIGHUP};
    for (size_t i = 0; i < sizeof caught / sizeof *caught; i++) {
        /* Restarting, because a write by stdio that a signal interrupts has failed for good. */
        struct sigaction before, action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
        sigemptyset(&action.sa_mask);
        /* nohup and background jobs of a script ignore some on purpose: leave those alone. */
        if (sigaction(caught[i], NULL, &before) == 0 && before.sa_handler != SIG_IGN)
            sigaction(caught[i], &action, NULL);
    }
    const char *no_colour = getenv("NO_COLOR");
    const char *term = getenv("TERM");
    const bool dumb = term == NULL || strcmp(term, "dumb") == 0;
    *out = (nb_out){
        .progress = isatty(STDERR_FILENO) && !dumb,
        .colour = isatty(STDOUT_FILENO) && !dumb && (no_colour == NULL || *no_colour == 0),
    };
}

/* ---- standard output ---- */

static void remember_failure(nb_out *out, bool failed)
{
    if (failed && out->write_errno == 0)
        out->write_errno = errno != 0 ? errno : EIO;
}

void nb_out_flush(nb_out *out)
{
    errno = 0;
    remember_failure(out, fflush(stdout) != 0 || ferror(stdout));
}

nb_status nb_out_finish(nb_out *out, nb_err *err)
{
    nb_out_flush(out);
    /* Some file systems report a full disk only when the file is closed. */
    errno = 0;
    remember_failure(out, close(STDOUT_FILENO) != 0 && errno != EBADF);
    if (out->write_errno != 0)
        return nb_fail_errno(err, out->write_errno, "standard output");
    return NB_OK;
}

void nb_out_text(nb_out *out, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    errno = 0;
    remember_failure(out, vprintf(format, args) < 0);
    va_end(args);
}

void nb_out_bytes(nb_out *out, const void *bytes, size_t n)
{
    errno = 0;
    remember_failure(out, n > 0 && fwrite(bytes, 1, n, stdout) != n);
}

nb_status nb_out_json(nb_out *out, json_t *object, nb_err *err)
{
    if (object == NULL)
        return nb_fail(err, NB_MEMORY, "out of memory for a line of JSON");
    nb_buf text = {0};
    nb_status s = nb_json_write(&text, object, false, err);
    json_decref(object);
    if (s == NB_OK) {
        nb_out_bytes(out, text.data, text.len);
        nb_out_bytes(out, "\n", 1);
    }
    nb_buf_free(&text);
    return s;
}

json_t *nb_json_any_text(const char *text, size_t len)
{
    json_t *as_is = json_stringn(len == 0 ? "" : text, len);
    if (as_is != NULL)
        return as_is;
    nb_buf fixed = {0};
    nb_err err = {0};
    nb_status s = NB_OK;
    while (len > 0 && s == NB_OK) {
        utf8proc_int32_t c;
        const utf8proc_ssize_t limit = len < 4 ? (utf8proc_ssize_t)len : 4;
        const utf8proc_ssize_t n = utf8proc_iterate((const utf8proc_uint8_t *)text, limit, &c);
        s = n > 0 ? nb_buf_put(&fixed, text, (size_t)n, &err)
                  : nb_buf_text(&fixed, "\xef\xbf\xbd", &err);
        text += n > 0 ? n : 1;
        len -= n > 0 ? (size_t)n : 1;
    }
    json_t *j = s == NB_OK ? json_stringn((const char *)fixed.data, fixed.len) : NULL;
    nb_buf_free(&fixed);
    return j;
}

/* ---- standard error ---- */

static void clear_line(nb_out *out)
{
    if (out->line_is_open)
        fputs("\r\033[K", stderr);
    out->line_is_open = false;
}

/* The message goes through nb_fail, which escapes names from hostile files. */
static void print_message(nb_out *out, const char *prefix, const char *format, va_list args)
{
    char raw[900];
    vsnprintf(raw, sizeof raw, format, args);
    nb_err escaped = {0};
    nb_fail(&escaped, NB_OK, "%s", raw);
    clear_line(out);
    fprintf(stderr, "%s%s\n", prefix, escaped.text);
}

void nb_out_note(nb_out *out, const char *format, ...)
{
    if (out->quiet)
        return;
    va_list args;
    va_start(args, format);
    print_message(out, "", format, args);
    va_end(args);
}

void nb_out_warn(nb_out *out, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    print_message(out, "nibble: warning: ", format, args);
    va_end(args);
}

/* ---- progress ---- */

void nb_progress_begin(nb_out *out, nb_progress *p, const char *label, const char *unit,
                       int64_t total)
{
    nb_progress_begin_at(out, p, label, unit, 0, total);
}

void nb_progress_begin_at(nb_out *out, nb_progress *p, const char *label, const char *unit,
                          int64_t first, int64_t total)
{
    *p = (nb_progress){.label = label,
                       .unit = unit,
                       .total = total,
                       .first = first,
                       .start = nb_clock(),
                       .begun = true};
    nb_progress_update(out, p, first);
}

void nb_progress_update(nb_out *out, nb_progress *p, int64_t done)
{
    if (!out->progress || !p->begun)
        return;
    const double now = nb_clock();
    if (p->drawn != 0 && now - p->drawn < 0.1)
        return;
    p->drawn = now;
    const bool bytes = strcmp(p->unit, "bytes") == 0;
    char line[200];
    int n = snprintf(line, sizeof line, "%.60s: ", p->label);
    const size_t at = (size_t)n;
    if (bytes && p->total > 0)
        snprintf(line + at, sizeof line - at, "%s of %s", nb_human_bytes(done).text,
                 nb_human_bytes(p->total).text);
    else if (bytes)
        snprintf(line + at, sizeof line - at, "%s", nb_human_bytes(done).text);
    else if (p->total > 0)
        snprintf(line + at, sizeof line - at, "%lld of %lld %s", (long long)done,
                 (long long)p->total, p->unit);
    else
        snprintf(line + at, sizeof line - at, "%lld %s", (long long)done, p->unit);
    const double elapsed = now - p->start;
    const int64_t here = done - p->first;
    clear_line(out);
    fputs(line, stderr);
    /* Before half a second has passed, a time left would be a guess. */
    if (p->total > 0 && here > 0 && elapsed > 0.5 && done <= p->total)
        fprintf(stderr, ", %.0f %%, %s left", 100.0 * (double)done / (double)p->total,
                nb_human_seconds(elapsed * (double)(p->total - done) / (double)here).text);
    fflush(stderr);
    out->line_is_open = true;
}

void nb_progress_end(nb_out *out, nb_progress *p)
{
    clear_line(out);
    p->begun = false;
}

/* ---- sizes, counts and times for people ---- */

static nb_human scaled(double value, const char *const units[], int n_units, const char *join)
{
    int u = 0;
    while (value >= 999.5 && u + 1 < n_units) {
        value /= 1000.0;
        u++;
    }
    nb_human h;
    const int digits = u == 0 || value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2;
    snprintf(h.text, sizeof h.text, "%.*f%s%s", digits, value, units[u][0] != 0 ? join : "",
             units[u]);
    return h;
}

nb_human nb_human_bytes(int64_t bytes)
{
    static const char *const units[] = {"B", "kB", "MB", "GB", "TB", "PB"};
    return scaled((double)bytes, units, 6, " ");
}

nb_human nb_human_count(int64_t n)
{
    static const char *const units[] = {"", "k", "M", "B", "T"};
    return scaled((double)n, units, 5, " ");
}

nb_human nb_human_seconds(double seconds)
{
    nb_human h;
    if (!(seconds < 1e9))
        seconds = 1e9;
    const long long whole = (long long)(seconds + 0.5);
    if (seconds < 59.95)
        snprintf(h.text, sizeof h.text, seconds < 10 ? "%.1f s" : "%.0f s", seconds);
    else if (whole < 3600)
        snprintf(h.text, sizeof h.text, "%lld:%02lld", whole / 60, whole % 60);
    else
        snprintf(h.text, sizeof h.text, "%lld:%02lld:%02lld", whole / 3600, whole / 60 % 60,
                 whole % 60);
    return h;
}
