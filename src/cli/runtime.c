/* See runtime.h. */
#define _GNU_SOURCE
#include "cli/runtime.h"

#include "base/memory.h"

#include <assert.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

/* Processors this process may run on. */
static int n_processors(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0)
        return 1;
    const int n = CPU_COUNT(&set);
    return n < 1 ? 1 : n > NB_POOL_MAX_THREADS ? NB_POOL_MAX_THREADS : n;
}

nb_status nb_runtime_open(nb_runtime *rt, const nb_args *args, nb_err *err)
{
    *rt = (nb_runtime){0};
    unsigned mask;
    NB_TRY(nb_isa_choose(nb_args_text(args, "isa"), &mask, err));
    int64_t threads = nb_args_int(args, "threads");
    if (threads == 0) /* auto */
        threads = n_processors();
    rt->dynamic_kv = nb_args_known(args, "kv") && nb_args_text(args, "kv") != NULL &&
                     strcmp(nb_args_text(args, "kv"), NB_KV_FP8_DYNAMIC) == 0;
    nb_kernels_init(&rt->kernels, mask);
    NB_TRY(nb_pool_open(&rt->pool, (int)threads, err));
    nb_pool_back_off(rt->pool, true);
    return NB_OK;
}

void nb_runtime_close(nb_runtime *rt)
{
    nb_pool_close(rt->pool);
    *rt = (nb_runtime){0};
}

nb_status nb_opened_open(nb_opened *o, const nb_runtime *rt, const char *path,
                         nb_compute_choice compute, int64_t n_ctx, bool with_tokenizer, nb_err *err)
{
    *o = (nb_opened){0};
    const double start = nb_clock();
    nb_store *store;
    NB_TRY(nb_store_open(&store, path, err));
    NB_TRY(nb_opened_load(o, rt, store, compute, n_ctx, with_tokenizer, err));
    o->load_seconds = nb_clock() - start;
    return NB_OK;
}

nb_status nb_opened_load(nb_opened *o, const nb_runtime *rt, nb_store *store,
                         nb_compute_choice compute, int64_t n_ctx, bool with_tokenizer, nb_err *err)
{
    *o = (nb_opened){.store = store};
    const double start = nb_clock();
    nb_status s =
        nb_model_open(&o->model, o->store, &(nb_model_options){compute, n_ctx}, rt->pool, err);
    if (rt->dynamic_kv)
        nb_model_forget_kv_scales(&o->model);
    if (s == NB_OK && with_tokenizer)
        s = nb_tokenizer_open(&o->tokenizer, o->store, err);
    o->load_seconds = nb_clock() - start;
    if (s != NB_OK)
        nb_opened_close(o);
    return s;
}

nb_status nb_tokenizer_check(nb_store *store, nb_out *out, nb_err *err)
{
    if (nb_store_kind_of(store) == NB_STORE_HF) {
        char path[4096];
        const int n = snprintf(path, sizeof path, "%s/tokenizer.json", nb_store_path(store));
        if (n < 0 || (size_t)n >= sizeof path || !nb_path_exists(path)) {
            nb_out_note(out, "%s: no tokenizer.json", nb_store_path(store));
            return NB_OK;
        }
    }
    nb_tokenizer *t = NULL;
    nb_err why = {0};
    const nb_status s = nb_tokenizer_open(&t, store, &why);
    nb_tokenizer_close(t);
    if (s == NB_UNSUPPORTED)
        nb_out_warn(out, "%s", why.text);
    else if (s != NB_OK)
        *err = why;
    return s == NB_UNSUPPORTED ? NB_OK : s;
}

void nb_opened_close(nb_opened *o)
{
    nb_model_close(&o->model);
    nb_tokenizer_close(o->tokenizer);
    nb_store_close(o->store);
    *o = (nb_opened){0};
}

void nb_opened_warn(const nb_opened *o, nb_out *out)
{
    if (o->model.config.warning[0] != 0)
        nb_out_warn(out, "%s: %s", nb_store_path(o->store), o->model.config.warning);
}

nb_compute_choice nb_compute_option(const nb_args *args)
{
    const char *mode = nb_args_text(args, "compute");
    return strcmp(mode, "f") == 0     ? NB_COMPUTE_ALL_F
           : strcmp(mode, "i8") == 0  ? NB_COMPUTE_ALL_I8
           : strcmp(mode, "i16") == 0 ? NB_COMPUTE_ALL_I16
                                      : NB_COMPUTE_AUTO;
}

nb_kv_format nb_kv_option(const nb_args *args, const nb_config *c)
{
    nb_kv_format format = nb_config_kv_format(c);
    const char *text = nb_args_text(args, "kv");
    const bool known = strcmp(text, "auto") == 0 || nb_kv_format_named(text, &format);
    assert(known); /* nb_kv_choices lists the formats */
    (void)known;
    return format;
}

const char *nb_kv_name(const nb_args *args, const nb_config *c)
{
    const char *text = nb_args_text(args, "kv");
    return strcmp(text, "auto") == 0 ? nb_kv_format_name(nb_config_kv_format(c)) : text;
}

const char *nb_kv_label(const nb_args *args, const nb_config *c)
{
    const bool given = nb_kv_option(args, c) == NB_KV_FP8 && c->k_scales != NULL;
    return given ? "fp8 with the model's scales" : nb_kv_name(args, c);
}

double nb_opened_bpw(const nb_opened *o)
{
    double bytes = 0, params = 0;
    for (int64_t i = 0; i < nb_store_n_weights(o->store); i++) {
        const nb_weight *w = nb_store_weight(o->store, i);
        bytes += (double)w->bytes;
        params += (double)w->n_rows * (double)w->n_cols;
    }
    return 8 * bytes / params;
}

int64_t nb_peak_rss(void)
{
    struct rusage usage;
    const int64_t peak = nb_memory_peak();
    if (peak > 0)
        return peak;
    return getrusage(RUSAGE_SELF, &usage) == 0 ? (int64_t)usage.ru_maxrss * 1024 : 0;
}

const char *nb_path_label(const char *path, char *buffer, size_t size)
{
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/')
        n--;
    size_t begin = n;
    while (begin > 0 && path[begin - 1] != '/')
        begin--;
    snprintf(buffer, size, "%.*s", (int)(n - begin), path + begin);
    return buffer;
}

const char *nb_path_stem(const char *path, char *buffer, size_t size)
{
    nb_path_label(path, buffer, size);
    char *dot = strrchr(buffer, '.');
    if (dot != NULL && dot != buffer)
        *dot = 0;
    return buffer;
}
