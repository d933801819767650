/* See metrics.h. */
#define _GNU_SOURCE
#include "serve/metrics.h"

#include "base/clock.h"
#include "text/unicode.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define COUNT_OF(a) ((int)(sizeof(a) / sizeof *(a)))

static const double FIRST_TOKEN[] = {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1,
                                     0.25,  0.5,   0.75, 1,    2.5,  5,    7.5,  10,
                                     20,    40,    80,   160,  640,  2560};
/* vLLM's, below which small models on a processor need three more. */
static const double NEXT_TOKEN[] = {
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2,
    0.3,    0.4,     0.5,    0.75,  1,      2.5,   5,    7.5,   10,   20,    40,  80};
static const double WHOLE[] = {0.3, 0.5, 0.8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                               30,  40,  50,  60, 120, 240, 480, 960, 1920, 7680};
static const double PARAMS_N[] = {1, 2, 5, 10, 20};
static const double STEP_TOKENS[] = {1,   8,    16,   32,   64,   128,  256,
                                     512, 1024, 2048, 4096, 8192, 16384};

static const char *const REJECTS[] = {
#define X(id, label) [id] = label,
    NB_REJECT_LIST(X)
#undef X
};

const char *nb_alert_name(nb_alert_rule rule)
{
    static const char *const NAMES[] = {
#define X(id, label) [id] = label,
        NB_ALERT_LIST(X)
#undef X
    };
    return NAMES[rule];
}

/* A label value: backslash, quote and newline are escaped, bytes that are no UTF-8 become U+FFFD
 * (or Prometheus would take nothing of the page), and whole characters are cut before the room
 * ends. */
static void escape_label(const char *text, char *out, size_t size)
{
    const size_t len = strlen(text);
    size_t n = 0;
    for (size_t i = 0; i < len;) {
        int32_t c;
        const char *from = text + i;
        size_t k = nb_utf8_next((const uint8_t *)from, len - i, &c);
        i += k;
        if (c < 0) {
            from = "\xEF\xBF\xBD";
            k = 3;
        } else if (c == '\\' || c == '"' || c == '\n') {
            from = c == '\n' ? "\\n" : c == '"' ? "\\\"" : "\\\\";
            k = 2;
        }
        if (n + k >= size)
            break;
        memcpy(out + n, from, k);
        n += k;
    }
    out[n] = 0;
}

/* 1 2 5 10 20 50 ... up to the context. */
static void init_counts(nb_histogram *h, int64_t n_ctx)
{
    double bounds[NB_HISTOGRAM_MAX];
    int n = 0;
    for (double ten = 1; n + 3 <= NB_HISTOGRAM_MAX && ten <= (double)n_ctx; ten *= 10)
        for (int k = 0; k < 3; k++) {
            const double b = ten * (k == 0 ? 1 : k == 1 ? 2 : 5);
            if (b <= (double)n_ctx)
                bounds[n++] = b;
        }
    nb_histogram_init(h, bounds, n);
}

void nb_metrics_init(nb_metrics *m, const nb_served *served)
{
    char name[300];
    escape_label(served->name, name, sizeof name);
    snprintf(m->labels, sizeof m->labels, "model_name=\"%s\",engine=\"0\"", name);
    nb_histogram_init(&m->first_token, FIRST_TOKEN, COUNT_OF(FIRST_TOKEN));
    nb_histogram_init(&m->next_token, NEXT_TOKEN, COUNT_OF(NEXT_TOKEN));
    nb_histogram *const seconds[] = {&m->whole, &m->queued, &m->prefill, &m->decode, &m->inference};
    for (int i = 0; i < COUNT_OF(seconds); i++)
        nb_histogram_init(seconds[i], WHOLE, COUNT_OF(WHOLE));
    nb_histogram_init(&m->step, NEXT_TOKEN, COUNT_OF(NEXT_TOKEN));
    nb_histogram_init(&m->params_n, PARAMS_N, COUNT_OF(PARAMS_N));
    nb_histogram_init(&m->step_tokens, STEP_TOKENS, COUNT_OF(STEP_TOKENS));
    nb_histogram *const counts[] = {&m->prompt_tokens, &m->generation_tokens,
                                    &m->params_max_tokens};
    for (int i = 0; i < COUNT_OF(counts); i++)
        init_counts(counts[i], served->n_ctx);
    m->started = (double)time(NULL);
}

/* ---- what the engine tells ---- */

static void on_step(void *context, double seconds, int64_t n_tokens)
{
    nb_metrics *m = context;
    nb_histogram_add(&m->step, seconds);
    nb_histogram_add(&m->step_tokens, (double)n_tokens);
}

static void on_first_token(void *context, double since_submit)
{
    nb_metrics *m = context;
    nb_histogram_add(&m->first_token, since_submit);
}

static void on_next_token(void *context, double since_last)
{
    nb_metrics *m = context;
    nb_histogram_add(&m->next_token, since_last);
}

static unsigned long long bits_of(double x)
{
    unsigned long long bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static double of_bits(unsigned long long bits)
{
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static void on_finished(void *context, nb_finish finish, double queued, double prefill,
                        double decode, int64_t n_prompt, int64_t n_made,
                        const nb_engine_request *request)
{
    nb_metrics *m = context;
    if (finish == NB_FINISH_ABORT || finish == NB_FINISH_ERROR)
        return;
    const double whole = queued + prefill + decode;
    nb_histogram_add(&m->queued, queued);
    nb_histogram_add(&m->prefill, prefill);
    nb_histogram_add(&m->decode, decode);
    nb_histogram_add(&m->inference, prefill + decode);
    nb_histogram_add(&m->whole, whole);
    nb_histogram_add(&m->prompt_tokens, (double)n_prompt);
    nb_histogram_add(&m->generation_tokens, (double)n_made);
    nb_histogram_add(&m->params_n, (double)request->n);
    nb_histogram_add(&m->params_max_tokens, (double)request->options.max_tokens);
    const unsigned long long n = atomic_load_explicit(&m->n_ended, memory_order_relaxed);
    atomic_store_explicit(&m->latency[n % NB_LATENCY_WINDOW], bits_of(whole), memory_order_relaxed);
    atomic_store_explicit(&m->ended[n % NB_LATENCY_WINDOW], bits_of(nb_clock()),
                          memory_order_relaxed);
    atomic_store_explicit(&m->n_ended, n + 1, memory_order_release);
}

nb_engine_observer nb_metrics_observer(nb_metrics *m)
{
    return (nb_engine_observer){.step = on_step,
                                .first_token = on_first_token,
                                .next_token = on_next_token,
                                .finished = on_finished,
                                .context = m};
}

void nb_metrics_reject(nb_metrics *m, nb_reject reason)
{
    atomic_fetch_add_explicit(&m->rejects[reason], 1, memory_order_relaxed);
}

/* ---- what alerts ask ---- */

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double nb_metrics_p95(const nb_metrics *m, double now, double window)
{
    double recent[NB_LATENCY_WINDOW];
    size_t n = 0;
    const unsigned long long ended = atomic_load_explicit(&m->n_ended, memory_order_acquire);
    for (size_t i = 0; i < NB_LATENCY_WINDOW && i < ended; i++) {
        const double at = of_bits(atomic_load_explicit(&m->ended[i], memory_order_relaxed));
        if (now - at <= window)
            recent[n++] = of_bits(atomic_load_explicit(&m->latency[i], memory_order_relaxed));
    }
    if (n < 20)
        return -1;
    qsort(recent, n, sizeof *recent, by_value);
    return recent[(n * 95 + 99) / 100 - 1];
}

double nb_metrics_worst_error(const nb_metrics *m)
{
    double worst = 0;
    for (int64_t i = 0; i < m->n_errors; i++)
        worst = m->errors[i].value > worst ? m->errors[i].value : worst;
    return worst;
}

/* ---- the process ---- */

int64_t nb_process_resident(void)
{
    FILE *f = fopen("/proc/self/statm", "re");
    long long all = 0, resident = 0;
    if (f == NULL)
        return 0;
    const int n = fscanf(f, "%lld %lld", &all, &resident);
    fclose(f);
    return n == 2 ? resident * sysconf(_SC_PAGESIZE) : 0;
}

static int64_t open_descriptors(void)
{
    DIR *d = opendir("/proc/self/fd");
    int64_t n = 0;
    if (d == NULL)
        return 0;
    for (const struct dirent *e; (e = readdir(d)) != NULL;)
        n += e->d_name[0] != '.';
    closedir(d);
    return n - 1; /* the folder itself */
}

/* ---- text ---- */

typedef struct {
    const nb_metrics *m;
    nb_wire *out;
} page;

static void head(const page *p, const char *name, const char *kind, const char *help)
{
    const char *const parts[] = {"# HELP ", name, " ", help, "\n# TYPE ", name, " ", kind, "\n"};
    for (int i = 0; i < COUNT_OF(parts); i++)
        nb_wire_raw(p->out, parts[i]);
}

/* One sample; `more` are labels beside the usual two, ",name=\"value\"" each. */
static void sample(const page *p, const char *name, const char *more, double value)
{
    char text[40];
    const char *const parts[] = {name, "{", p->m->labels, more, "} ", text, "\n"};
    snprintf(text, sizeof text, "%.15g", isfinite(value) ? value : 0);
    for (int i = 0; i < COUNT_OF(parts); i++)
        nb_wire_raw(p->out, parts[i]);
}

static void one(const page *p, const char *name, const char *kind, const char *help, double value)
{
    head(p, name, kind, help);
    sample(p, name, "", value);
}

/* Without labels: what Prometheus's own clients tell of a process. */
static void bare(const page *p, const char *name, const char *kind, const char *help, double value)
{
    char text[40];
    head(p, name, kind, help);
    snprintf(text, sizeof text, " %.15g\n", isfinite(value) ? value : 0);
    nb_wire_raw(p->out, name);
    nb_wire_raw(p->out, text);
}

static void histogram(const page *p, const nb_histogram *h, const char *name, const char *help)
{
    head(p, name, "histogram", help);
    nb_histogram_write(h, name, p->m->labels, p->out);
}

static void write_guesses(const page *p, const nb_engine_stats *s)
{
    one(p, "vllm:spec_decode_num_drafts_total", "counter",
        "Times that next tokens of a sequence were guessed.", (double)s->guesses);
    one(p, "vllm:spec_decode_num_draft_tokens_total", "counter", "Tokens guessed.",
        (double)s->guessed_tokens);
    one(p, "vllm:spec_decode_num_accepted_tokens_total", "counter", "Tokens guessed rightly.",
        (double)s->accepted_tokens);
    const char *name = "vllm:spec_decode_num_accepted_tokens_per_pos_total";
    head(p, name, "counter", "Tokens guessed rightly, by how many were guessed before them.");
    for (int i = 0; i < NB_MAX_GUESS; i++) {
        char more[40];
        snprintf(more, sizeof more, ",position=\"%d\"", i);
        sample(p, name, more, (double)s->accepted_at[i]);
    }
}

static void write_vllm(const page *p, const nb_engine_stats *s)
{
    one(p, "vllm:num_requests_running", "gauge", "Requests that run.", (double)s->n_running);
    one(p, "vllm:num_requests_waiting", "gauge", "Requests that wait.", (double)s->n_waiting);
    one(p, "vllm:kv_cache_usage_perc", "gauge", "Share of the cache's blocks in use, 0 to 1.",
        s->usage);
    one(p, "vllm:prefix_cache_queries_total", "counter", "Prompt tokens looked up in the cache.",
        (double)s->queried_tokens);
    one(p, "vllm:prefix_cache_hits_total", "counter", "Prompt tokens found in the cache.",
        (double)s->cached_tokens);
    one(p, "vllm:num_preemptions_total", "counter", "Times that a request gave its blocks back.",
        (double)s->n_preemptions);
    one(p, "vllm:prompt_tokens_total", "counter", "Prompt tokens taken in.",
        (double)s->prompt_tokens);
    one(p, "vllm:generation_tokens_total", "counter", "Tokens generated.",
        (double)s->generated_tokens);
    write_guesses(p, s);
    head(p, "vllm:request_success_total", "counter", "Answers that ended, by why.");
    static const char *const FINISHES[] = {
#define X(id, name, openai) [id] = ",finished_reason=\"" name "\"",
        NB_FINISH_LIST(X)
#undef X
    };
    for (int i = 0; i < NB_N_FINISHES; i++)
        sample(p, "vllm:request_success_total", FINISHES[i], (double)s->finished[i]);
    const nb_metrics *m = p->m;
    histogram(p, &m->first_token, "vllm:time_to_first_token_seconds", "From arrival to a token.");
    histogram(p, &m->next_token, "vllm:inter_token_latency_seconds", "From token to token.");
    histogram(p, &m->whole, "vllm:e2e_request_latency_seconds", "From arrival to the end.");
    histogram(p, &m->queued, "vllm:request_queue_time_seconds", "Waiting.");
    histogram(p, &m->prefill, "vllm:request_prefill_time_seconds", "Taking the prompt in.");
    histogram(p, &m->decode, "vllm:request_decode_time_seconds", "Generating.");
    histogram(p, &m->inference, "vllm:request_inference_time_seconds", "Running.");
    histogram(p, &m->prompt_tokens, "vllm:request_prompt_tokens", "Tokens of a prompt.");
    histogram(p, &m->generation_tokens, "vllm:request_generation_tokens", "Tokens of an answer.");
    histogram(p, &m->params_n, "vllm:request_params_n", "Answers asked for.");
    histogram(p, &m->params_max_tokens, "vllm:request_params_max_tokens", "Tokens asked for.");
    histogram(p, &m->step_tokens, "vllm:iteration_tokens_total", "Tokens of a step.");
    char more[80];
    head(p, "vllm:cache_config_info", "gauge", "How the cache is made.");
    snprintf(more, sizeof more, ",block_size=\"%lld\",num_gpu_blocks=\"%lld\"",
             (long long)m->block_len, (long long)m->n_blocks);
    sample(p, "vllm:cache_config_info", more, 1);
}

static void write_errors(const page *p)
{
    if (p->m->n_errors == 0)
        return;
    head(p, "nibble:quantization_error", "gauge",
         "Relative error of a layer's outputs, from the model's report.");
    for (int64_t i = 0; i < p->m->n_errors; i++) {
        const nb_layer_error *e = &p->m->errors[i];
        char layer[80], kind[140], more[300];
        escape_label(e->layer, layer, sizeof layer);
        escape_label(e->kind, kind, sizeof kind);
        snprintf(more, sizeof more, ",layer=\"%s\",kind=\"%s\"", layer, kind);
        sample(p, "nibble:quantization_error", more, e->value);
    }
}

static void write_own(const page *p, const nb_engine_stats *s)
{
    const nb_metrics *m = p->m;
    one(p, "nibble:kv_fragmentation_ratio", "gauge",
        "Share of the slots of used blocks that hold no token.", s->fragmentation);
    head(p, "nibble:kv_blocks", "gauge", "Blocks of the cache, by state.");
    sample(p, "nibble:kv_blocks", ",state=\"free\"", (double)s->blocks_free);
    sample(p, "nibble:kv_blocks", ",state=\"cached\"", (double)s->blocks_cached);
    sample(p, "nibble:kv_blocks", ",state=\"used\"", (double)s->blocks_used);
    write_errors(p);
    one(p, "nibble:http_requests_total", "counter", "Requests of HTTP.",
        (double)atomic_load(&m->requests));
    one(p, "nibble:http_connections", "gauge", "Open connections.",
        (double)atomic_load(&m->connections));
    head(p, "nibble:http_rejects_total", "counter", "Requests that were refused, by why.");
    for (int i = 0; i < NB_N_REJECTS; i++) {
        char more[60];
        snprintf(more, sizeof more, ",reason=\"%s\"", REJECTS[i]);
        sample(p, "nibble:http_rejects_total", more, (double)atomic_load(&m->rejects[i]));
    }
    one(p, "nibble:client_disconnects_total", "counter",
        "Clients that left before their answer was complete.",
        (double)atomic_load(&m->disconnects));
    one(p, "nibble:steps_total", "counter", "Steps of the engine.", (double)s->n_steps);
    histogram(p, &m->step, "nibble:step_seconds", "A step of the engine.");
    head(p, "nibble:alert", "gauge", "1 while an alert rule holds.");
    for (int i = 0; i < NB_N_ALERTS; i++) {
        char more[60];
        snprintf(more, sizeof more, ",name=\"%s\"", nb_alert_name((nb_alert_rule)i));
        sample(p, "nibble:alert", more, (double)atomic_load(&m->alerts[i]));
    }
}

static void write_process(const page *p)
{
    struct rusage use = {0};
    getrusage(RUSAGE_SELF, &use);
    const double cpu = (double)use.ru_utime.tv_sec + (double)use.ru_utime.tv_usec * 1e-6 +
                       (double)use.ru_stime.tv_sec + (double)use.ru_stime.tv_usec * 1e-6;
    bare(p, "process_resident_memory_bytes", "gauge", "Resident memory.",
         (double)nb_process_resident());
    bare(p, "process_open_fds", "gauge", "Open descriptors.", (double)open_descriptors());
    bare(p, "process_cpu_seconds_total", "counter", "Time of processors, user and system.", cpu);
    bare(p, "process_start_time_seconds", "gauge", "When it started.", p->m->started);
}

void nb_metrics_write(const nb_metrics *m, const nb_engine *engine, nb_wire *out)
{
    nb_engine_stats s = {0};
    nb_engine_read_stats(engine, &s);
    const page p = {m, out};
    write_vllm(&p, &s);
    write_own(&p, &s);
    write_process(&p);
}
