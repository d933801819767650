/* A tiny model on a walk, for the tests of the walk: made once, walked many times in different
 * ways, each in a working folder of its own. */
#ifndef NB_TESTS_WALKING_H
#define NB_TESTS_WALKING_H

#include "base/rng.h"
#include "quant/pass/distill.h"
#include "quant/walk/walk.h"
#include "quant/weight/room.h"
#include "quant/write/rewrite.h"
#include "quant/write/wrapping.h"
#include "support/golden.h"
#include "support/scratch.h"
#include "support/tiny_model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WALK_MAX_SEQS 16

/* A model and its calibration set. */
typedef struct {
    nb_store *store;
    nb_calib_seq seqs[WALK_MAX_SEQS];
    int32_t *ids;
    int64_t n_seqs;
} walk_world;

typedef struct {
    tiny_model model;
    int n_seqs, length; /* [9, 24] */
    bool constant;      /* one token, again and again */
} walk_world_how;

typedef struct {
    const char *scheme;    /* [W4A16:g32] */
    const char *method;    /* [gptq] */
    const char *tune;      /* "autoround:iters=2"; NULL: none */
    const char *distill;   /* "steps=3,lr=0.01"; NULL: none */
    const char *transform; /* "awq:clip=off"; NULL: none */
    const char *dir;       /* [work] */
    const char *key;       /* [key] */
    const char *keeps;     /* the linear of this name stays as it is; NULL: none */
    nb_flow flow;
    nb_observing observing; /* [minmax] */
    bool guided;
    int n_threads; /* [1] */
    unsigned isa;  /* [all]; NB_ISA_SCALAR + 1 means none */
    int64_t memory;
    bool keep_dir;      /* the folder stays, even if all went well */
    int64_t fail_alloc; /* the allocation of the walk that fails; 0: none */
    int64_t stop_at;    /* the progress call that says stop; 0: none */
} walk_how;

typedef struct {
    nb_status status;
    nb_err err;
    char digest[NB_SHA256_HEX]; /* of all that was made, and of static scales */
    int64_t n_made, n_calls, resumed;
    const char *anew;
    nb_walk_plan plan;
    json_t *layers; /* the caller's */
    struct {
        int64_t steps;
        double before, after; /* NaN: not measured */
        bool any, kept;
    } distilled;
} walk_outcome;

static inline void walk_world_open(walk_world *w, const char *name, const walk_world_how *how)
{
    nb_err err = {0};
    const int64_t n = how->n_seqs > 0 ? how->n_seqs : 9, len = how->length > 0 ? how->length : 24;
    *w = (walk_world){.n_seqs = n};
    assert_true(n <= WALK_MAX_SEQS);
    assert_int_equal(nb_store_open(&w->store, tiny_model_write(name, &how->model), &err), NB_OK);
    w->ids = malloc((size_t)(n * len) * sizeof *w->ids);
    assert_non_null(w->ids);
    for (int64_t i = 0; i < n * len; i++)
        w->ids[i] =
            TINY_BYTE('a' + (how->constant ? 3 : (int)(nb_rng_uniform(7, 3, (uint64_t)i) * 26)));
    /* Sequences of different lengths; the first one is the longest. */
    for (int64_t i = 0; i < n; i++)
        w->seqs[i] = (nb_calib_seq){.ids = w->ids + i * len,
                                    .n = i % 3 == 1 && len > 2 ? len - 2 : len,
                                    .held = nb_calib_is_held(i, n)};
}

static inline void walk_world_close(walk_world *w)
{
    nb_store_close(w->store);
    free(w->ids);
    *w = (walk_world){0};
}

typedef struct {
    int64_t n_calls, stop_at;
    double done;
} walk_watch;

static inline bool walk_watched(void *context, const nb_walk_progress_info *info)
{
    walk_watch *watch = context;
    assert_true(info->done >= watch->done);
    assert_true(info->total > 0);
    watch->done = info->done;
    return ++watch->n_calls != watch->stop_at;
}

/* What was made, in the order of the plan. */
static inline void walk_digest(const nb_plan *plan, const nb_workdir *dir,
                               const nb_walk_result *result, walk_outcome *out)
{
    nb_sha256 sha;
    nb_sha256_init(&sha);
    nb_loaded loaded = {0};
    for (int64_t i = 0; i < plan->n; i++) {
        if (!result->made[i])
            continue;
        assert_int_equal(nb_room_for(&loaded, &plan->weights[i], &out->err), NB_OK);
        assert_int_equal(nb_workdir_get_mat(dir, result->made_from + i, &loaded, &out->err), NB_OK);
        nb_mat_arrays arrays;
        nb_mat_list_arrays(&loaded.mat, &arrays);
        nb_sha256_update(&sha, &i, sizeof i);
        for (int k = 0; k < arrays.n; k++)
            nb_sha256_update(&sha, arrays.array[k].data, arrays.array[k].bytes);
        out->n_made++;
    }
    nb_loaded_free(&loaded);
    nb_sha256_update(&sha, result->act_scale, (size_t)plan->n * sizeof *result->act_scale);
    uint8_t digest[NB_SHA256_BYTES];
    nb_sha256_final(&sha, digest);
    nb_sha256_hex_of(digest, out->digest);
}

static inline void walk_take_distilled(walk_outcome *out, const json_t *o)
{
    const json_t *before = json_object_get(o, "kl_before"), *after = json_object_get(o, "kl_after");
    out->distilled.any = o != NULL;
    out->distilled.steps = json_integer_value(json_object_get(o, "steps"));
    out->distilled.before = json_is_number(before) ? json_number_value(before) : NAN;
    out->distilled.after = json_is_number(after) ? json_number_value(after) : NAN;
    out->distilled.kept = json_is_true(json_object_get(o, "kept"));
}

/* What a walk leaves, for those who look further. The plan and the folder are open. */
typedef void walk_visit(void *context, nb_store *store, const nb_plan *plan, const nb_workdir *dir,
                        const nb_walk_result *result);

static inline void walk_and_visit(walk_outcome *out, const walk_world *w, const walk_how *how,
                                  walk_visit *visit, void *context)
{
    *out = (walk_outcome){0};
    nb_err *err = &out->err;
    nb_pool *pool;
    nb_kernels kernels;
    nb_scheme scheme;
    nb_method method, tune, distill;
    nb_plan plan = {0};
    nb_workdir dir;
    nb_walk_result result;
    walk_watch watch = {.stop_at = how->stop_at};
    nb_kernels_init(&kernels, how->isa == 0 ? NB_ISA_ALL : how->isa - 1);
    assert_int_equal(nb_pool_open(&pool, how->n_threads > 0 ? how->n_threads : 1, err), NB_OK);
    assert_int_equal(nb_scheme_parse(&scheme, how->scheme ? how->scheme : "W4A16:g32", err), NB_OK);
    assert_int_equal(nb_method_parse(&method, how->method ? how->method : "gptq", err), NB_OK);
    const nb_plan_request request = {.to = NB_STORE_HF, .scheme = &scheme};
    assert_int_equal(nb_plan_make(&plan, w->store, &request, err), NB_OK);
    for (int64_t i = 0; how->keeps != NULL && i < plan.n; i++) {
        if (strstr(plan.weights[i].name, how->keeps) != NULL) {
            plan.how[i] = NB_HOW_ROUND;
            plan.weights[i] = *plan.from[i];
            plan.weights[i].fmt = &nb_format_bf16;
        }
    }
    const char *path = scratch_path(how->dir != NULL ? how->dir : "work");
    assert_int_equal(nb_workdir_open(&dir, path, err), NB_OK);
    nb_walk_job job = {.store = w->store,
                       .plan = &plan,
                       .pool = pool,
                       .kernels = &kernels,
                       .seqs = w->seqs,
                       .n_seqs = w->n_seqs,
                       .method = &method,
                       .transform_options = "",
                       .flow = how->flow,
                       .observing = how->observing,
                       .memory = how->memory,
                       .guided = how->guided,
                       .seed = 5,
                       .dir = &dir,
                       .key = how->key != NULL ? how->key : "key",
                       .progress = walk_watched,
                       .context = &watch};
    if (how->tune != NULL) {
        assert_int_equal(nb_method_parse(&tune, how->tune, err), NB_OK);
        job.tune = &tune;
    }
    if (how->distill != NULL) {
        assert_int_equal(nb_method_of(&distill, &nb_quantizer_distill, how->distill, err), NB_OK);
        job.distill = &distill;
    }
    if (how->transform != NULL)
        assert_int_equal(
            nb_transform_by_name(&job.transform, &job.transform_options, how->transform, err),
            NB_OK);
    out->status = nb_walk_estimate(&out->plan, &job, err);
    if (how->fail_alloc != 0)
        nb_alloc_fail_at(how->fail_alloc);
    if (out->status == NB_OK)
        out->status = nb_walk(&job, &result, err);
    nb_alloc_fail_at(0);
    out->n_calls = watch.n_calls;
    if (out->status == NB_OK) {
        walk_digest(&plan, &dir, &result, out);
        out->resumed = result.resumed;
        out->anew = result.anew;
        out->layers = json_incref(result.layers);
        walk_take_distilled(out, result.distilled);
        if (visit != NULL)
            visit(context, w->store, &plan, &dir, &result);
        nb_walk_result_free(&result);
    }
    nb_workdir_close(&dir, out->status == NB_OK && !how->keep_dir);
    nb_plan_free(&plan);
    nb_pool_close(pool);
}

/* The folder of a walk that has ended well is gone afterwards. */
static inline void walk(walk_outcome *out, const walk_world *w, const walk_how *how)
{
    walk_and_visit(out, w, how, NULL, NULL);
    if (out->status == NB_OK)
        json_decref(out->layers);
    out->layers = NULL;
}

static inline walk_outcome walk_well(const walk_world *w, const walk_how *how)
{
    walk_outcome o;
    walk(&o, w, how);
    if (o.status != NB_OK)
        print_error("%s\n", o.err.text);
    assert_int_equal(o.status, NB_OK);
    assert_true(o.n_made > 0);
    return o;
}

/* Allocations of a walk fail, one in each run: an error, nothing leaks or is kept, and the next
 * walk ends in the same bytes as the first. All of the first ones fail, then some of the others. */
static inline void walk_without_memory(const walk_world *w, const walk_how *how)
{
    const walk_outcome whole = walk_well(w, how);
    const int64_t live = nb_alloc_live();
    int64_t n_failed = 0;
    for (int64_t n = 1;; n += 1 + n / 16) {
        walk_outcome o;
        walk_how failing = *how;
        failing.fail_alloc = n;
        walk(&o, w, &failing);
        assert_int_equal(nb_alloc_live(), live);
        if (o.status == NB_OK)
            break;
        assert_int_equal(o.status, NB_MEMORY);
        n_failed++;
    }
    assert_true(n_failed > 20);
    assert_string_equal(walk_well(w, how).digest, whole.digest);
}

/* A model of what a walk has made. */
static inline void write_model(nb_store *store, const nb_plan *plan, const nb_workdir *dir,
                               const nb_walk_result *result, nb_pool *pool, const char *path)
{
    nb_err err = {0};
    nb_wrapping wrapping = {0};
    nb_sink *sink;
    nb_method method;
    nb_rewrite_result sums;
    for (int64_t i = 0; i < plan->n; i++)
        plan->weights[i].act.scale = result->act_scale[i];
    assert_int_equal(nb_method_parse(&method, "rtn", &err), NB_OK);
    const nb_rewrite_options options = {
        .method = &method, .made = result->made, .made_from = result->made_from, .dir = dir};
    assert_int_equal(nb_wrapping_make(&wrapping, store, plan, &err), NB_OK);
    assert_int_equal(nb_wrapping_open_sink(&sink, &wrapping, plan, path, true, &err), NB_OK);
    assert_int_equal(nb_rewrite(store, plan, sink, pool, &options, &sums, &err), NB_OK);
    assert_int_equal(nb_sink_commit(sink, &err), NB_OK);
    nb_wrapping_free(&wrapping);
}

#endif
