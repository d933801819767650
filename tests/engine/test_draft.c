/* A draft model changes the speed and nothing else: the same tokens, text, logprobs and hashes of
 * logits, whatever it guesses. One that is the model itself is always right, whatever runs beside
 * and however answers are chosen; one with other weights is soon not asked any more. */
#include "engine_bench.h"

#include "base/file.h"

static const tiny_model other = {.seed = 77, .never_ends = true};
static const tiny_model broken = {.nan_head = true};
static const tiny_model brief = {.never_ends = true,
                                 .n_ctx = 48}; /* the same, of a shorter memory */
static const tiny_model tied = {.never_ends = true, .tied = true};
static const tiny_model half = {.never_ends = true, .tied = true, .n_layers = 1};

/* The folder of a tiny model; the path stays. */
static const char *folder(const char *name, const tiny_model *how)
{
    static char kept[12][300];
    static int n_kept;
    const char *path = model_path(name, how);
    for (int i = 0; i < n_kept; i++) {
        if (strcmp(kept[i], path) == 0)
            return kept[i];
    }
    assert_true(n_kept < 12);
    snprintf(kept[n_kept], sizeof kept[n_kept], "%s", path);
    return kept[n_kept++];
}

/* ---- how far ---- */

/* Guesses that a sequence makes in `n_steps` when each is right with `chance` in 8, by a fixed
 * series; of them *right. */
static int64_t guesses_made(nb_reach *r, int64_t n_steps, int chance, double price, int64_t *right)
{
    int64_t n = 0;
    uint64_t dice = 12345;
    *right = 0;
    for (int64_t i = 0; i < n_steps; i++) {
        const int64_t k = nb_reach_next(r, NB_MAX_GUESS, price, 0.7);
        int64_t good = 0;
        assert_in_range(k, 0, NB_MAX_GUESS);
        for (; good < k; good++) {
            dice = dice * 6364136223846793005u + 1442695040888963407u;
            if ((int)(dice >> 61) >= chance)
                break;
        }
        if (k > 0)
            nb_reach_learn(r, k, good);
        n += k;
        *right += good;
    }
    return n;
}

static void reach_follows_what_was_right(void **state)
{
    (void)state;
    int64_t right, before = -1;
    for (int chance = 0; chance <= 8; chance++) {
        nb_reach r = {0};
        const int64_t n = guesses_made(&r, 400, chance, 0.3, &right);
        assert_true(n > before); /* more, the more of them are right */
        before = n;
        if (chance == 0)
            assert_true(n <= 24); /* of 400 steps: hardly a cost */
        if (chance == 8)
            assert_true(n > 390 * NB_MAX_GUESS && right == n);
        /* The price decides, too. */
        nb_reach dear = {0};
        assert_true(guesses_made(&dear, 400, chance, 0.85, &right) <= n);
    }
    /* A text that becomes easy is found out, within the longest rest and what it takes to trust. */
    nb_reach r = {0};
    (void)guesses_made(&r, 1000, 0, 0.3, &right);
    (void)guesses_made(&r, 120, 8, 0.3, &right);
    assert_int_equal(nb_reach_next(&r, NB_MAX_GUESS, 0.3, 0.7), NB_MAX_GUESS);
    assert_int_equal(nb_reach_next(&r, 3, 0.3, 0.7), 3);
    assert_int_equal(nb_reach_next(&r, 0, 0.3, 0.7), 0);
}

/* ---- whose draft ---- */

/* A copy of `wordy` of which one word in tokenizer.json reads otherwise. */
static const char *with_tokenizer(const char *name, const char *from, const char *to)
{
    char file[100];
    nb_buf text = {0};
    nb_err err = {0};
    const char *path = folder(name, &wordy);
    snprintf(file, sizeof file, "%s/tokenizer.json", name);
    assert_int_equal(nb_file_slurp(&text, scratch_path(file), 1 << 20, &err), NB_OK);
    assert_int_equal(nb_buf_u8(&text, 0, &err), NB_OK);
    char *at = strstr((char *)text.data, from);
    assert_non_null(at);
    assert_int_equal(strlen(from), strlen(to));
    for (; at != NULL; at = strstr(at, from))
        memcpy(at, to, strlen(to));
    scratch_text(file, (const char *)text.data);
    nb_buf_free(&text);
    return path;
}

static void another_vocabulary_is_refused(void **state)
{
    (void)state;
    const tiny_model longer = {.never_ends = true, .n_vocab = TINY_VOCAB + 9};
    const struct {
        const char *path, *says;
    } rows[] = {
        {folder("other", &other), NULL},
        {folder("longer", &longer), NULL}, /* rows of the head that have no token */
        {with_tokenizer("moved", "<|im_start|>", "<|IM_start|>"),
         "token 1 of 265 is not that of the model, which has 265"},
    };
    opened target;
    must_open(&target, folder("wordy", &wordy), &(opening){0});
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        nb_store *store;
        nb_tokenizer *t = NULL;
        nb_err err = {0};
        if (nb_store_open(&store, rows[i].path, &err) != NB_OK ||
            nb_tokenizer_open(&t, store, &err) != NB_OK)
            fail_msg("%s", err.text);
        assert_int_equal(nb_draft_check(target.tokenizer, t, &err),
                         rows[i].says == NULL ? NB_OK : NB_DATA);
        if (rows[i].says != NULL && strstr(err.text, rows[i].says) == NULL)
            fail_msg("%s", err.text);
        nb_tokenizer_close(t);
        nb_store_close(store);
    }
    close_opened(&target);
}

/* ---- lanes ---- */

/* A call computes no more of texts than a step takes, those who lack little first; a lane keeps
 * what its next text begins with, but not for another owner; pages go from lanes that nobody asks
 * for to those that are asked for, and without pages there are no guesses. */
static void lanes_catch_up_step_by_step(void **state)
{
    (void)state;
    enum { LONG = 99, SHORT = 2, STEP = 16, MOST = 4 };
    opened o;
    nb_err err = {0};
    nb_sampler sampler;
    nb_choosing choosing;
    nb_choice choices[2];
    nb_draft d;
    int32_t text[LONG + 1], out[2][NB_MAX_GUESS];
    const nb_generate_options options = {.max_tokens = 50};
    must_open(&o, folder("wordy", &wordy), &(opening){0});
    for (int i = 0; i <= LONG; i++)
        text[i] = TINY_BYTE('a' + i * i % 23);
    const int64_t n_ids = nb_tokenizer_n_tokens(o.tokenizer);
    assert_int_equal(nb_sampler_init(&sampler, &o.kernels, n_ids, &err), NB_OK);
    assert_int_equal(
        nb_choosing_init(&choosing, &options, o.tokenizer, NULL, &o.generator.ends, n_ids, &err),
        NB_OK);
    nb_draft_ask asks[2];
    for (int i = 0; i < 2; i++) {
        const int64_t n = i == 0 ? LONG : SHORT;
        assert_int_equal(nb_choice_init(&choices[i], &choosing, 0, text, n + 1, 50, &err), NB_OK);
        asks[i] = (nb_draft_ask){.lane = i,
                                 .owner = 7,
                                 .tokens = text,
                                 .n = n,
                                 .next = text[n],
                                 .choice = &choices[i],
                                 .most = MOST,
                                 .out = out[i]};
    }
    const nb_draft_setup setup = {.model = &o.model,
                                  .target = &o.model,
                                  .kernels = &o.kernels,
                                  .pool = o.pool,
                                  .samplers = &sampler,
                                  .kv = NB_KV_F16,
                                  .n_lanes = 2,
                                  .n_pages = 5,
                                  .n_ctx = 256,
                                  .step_tokens = STEP};
    assert_int_equal(nb_draft_init(&d, &setup, &err), NB_OK);
    int64_t have = 0;
    for (int call = 0; have <= LONG; call++) {
        nb_draft_guess(&d, asks, 2);
        assert_int_equal(asks[1].n_out, MOST);
        assert_int_equal(d.lanes[1].seq.n, SHORT + MOST); /* the last guess is not fed */
        have += STEP - (call == 0 ? SHORT + 1 : 1);
        assert_int_equal(asks[0].n_out, have > LONG ? MOST : 0);
        if (have <= LONG)
            assert_int_equal(d.lanes[0].seq.n, have);
    }
    assert_int_equal(d.kv.n_free, 0);
    /* Another text that begins alike, then the same for another owner. */
    int32_t other_text[LONG + 1];
    memcpy(other_text, text, sizeof text);
    other_text[50] = TINY_BYTE('Z');
    asks[0].tokens = other_text;
    nb_draft_guess(&d, asks, 1);
    assert_int_equal(d.lanes[0].seq.n, 50 + STEP);
    asks[0].owner = 8;
    nb_draft_guess(&d, asks, 1);
    assert_int_equal(d.lanes[0].seq.n, STEP);
    /* Together they need a page more than there is: the second goes without. Alone it takes the
     * other's. */
    asks[1].n = 60;
    asks[1].next = text[60];
    nb_draft_guess(&d, asks, 2);
    assert_true(asks[1].n_out == 0 && !asks[1].failed);
    assert_int_equal(d.lanes[0].seq.n, 2 * STEP);
    nb_draft_guess(&d, asks + 1, 1);
    assert_int_equal(d.lanes[0].seq.n, 0);
    assert_true(d.lanes[1].seq.n > SHORT);
    /* An id without a row. */
    asks[1].next = (int32_t)o.model.config.vocab_size;
    nb_draft_guess(&d, asks + 1, 1);
    assert_int_equal(asks[1].n_out, 0);
    nb_draft_free(&d);
    for (int i = 0; i < 2; i++)
        nb_choice_free(&choices[i]);
    nb_choosing_free(&choosing);
    nb_sampler_free(&sampler);
    close_opened(&o);
}

/* ---- the loop ---- */

static const char pairs[] =
    "{\"type\":\"array\",\"items\":{\"type\":\"object\",\"properties\":{\"key\":"
    "{\"enum\":[\"one\",\"two\"]}},\"required\":[\"key\"]}}";
static const char *const stops[] = {"e", "th"};
static const nb_generate_options hows[] = {
    {.max_tokens = 60},
    {.max_tokens = 60, .sampling = {.temperature = 0.3, .seed = 4, .choice = 2}},
    {.max_tokens = 60, .sampling = {.temperature = 1.5, .seed = 4, .top_p = 0.9}},
    {.max_tokens = 60, .sampling = {.frequency_penalty = 0.5, .repetition_penalty = 1.2}},
    {.max_tokens = 60, .stops = stops, .n_stops = 2, .min_tokens = 9},
    {.max_tokens = 0}, /* until the context is full */
    {.max_tokens = 60, .json_schema = pairs},
};
enum { N_HOWS = sizeof hows / sizeof *hows };

static void generated_the_same(const nb_generation *got, const nb_generation *want)
{
    assert_int_equal(got->n_tokens, want->n_tokens);
    assert_memory_equal(got->tokens, want->tokens, (size_t)want->n_tokens * sizeof *want->tokens);
    assert_int_equal(got->text_len, want->text_len);
    assert_memory_equal(got->text, want->text, want->text_len);
    assert_int_equal(got->reason, want->reason);
    assert_true(got->logits_hash == want->logits_hash);
    assert_memory_equal(got->logprobs, want->logprobs,
                        (size_t)want->n_tokens * 3 * sizeof *want->logprobs);
}

static void answers_are_the_same(void **state)
{
    (void)state;
    const char *path = folder("wordy", &wordy);
    const char *const drafts[] = {path, folder("other", &other), folder("broken", &broken),
                                  folder("brief", &brief)};
    const char *prompt = "the land and the inn and the land and the inn and the";
    int64_t n_guessed[4] = {0}, n_accepted[4] = {0};
    for (int h = 0; h < N_HOWS; h++) {
        nb_generate_options how = hows[h];
        how.hash_logits = how.logprobs = true;
        how.n_top = 2;
        nb_generation want = alone(path, prompt, &how, 0);
        for (int d = 0; d < 4; d++) {
            opened draft, o;
            must_open(&draft, drafts[d], &(opening){0});
            const opening ways[] = {{.threads = 2, .draft = &draft.model},
                                    {.step_tokens = 3, .draft = &draft.model},
                                    {.step_tokens = 1, .draft = &draft.model}};
            must_open(&o, path, &ways[(h + d) % 3]);
            how.n_guess = 1 + (5 * h + d) % NB_MAX_GUESS;
            for (int again = 0; again < 2; again++) { /* afresh, and in a session that has it all */
                nb_generation got = must_generate(&o, prompt, &how);
                generated_the_same(&got, &want);
                if (again == 0)
                    assert_int_equal(got.n_steps + got.n_accepted, want.n_steps);
                assert_int_equal(o.generator.seq.n, o.generator.held.n);
                if (d == 3 && got.n_prompt + got.n_tokens > 150)
                    assert_true(got.n_guessed < 48); /* positions of its own */
                n_guessed[d] += got.n_guessed;
                n_accepted[d] += got.n_accepted;
                /* Itself it knows, but for the end at a stop string. */
                if (d == 0 && how.n_stops == 0)
                    assert_int_equal(got.n_accepted, got.n_guessed);
                nb_generation_free(&got);
            }
            close_opened(&o);
            close_opened(&draft);
        }
        nb_generation_free(&want);
    }
    assert_true(n_accepted[0] > 300);
    assert_true(n_guessed[1] > n_accepted[1] && n_guessed[1] < n_guessed[0] / 3);
    assert_int_equal(n_guessed[2], 0); /* numbers that are none are no guesses */
    assert_true(n_guessed[3] > 0);
}

/* The draft chooses by the answer's own random numbers: where it is nearly the model, it draws the
 * same tokens nearly always, and each of those saves a step. */
static void what_is_alike_is_guessed(void **state)
{
    (void)state;
    opened draft, o;
    int64_t n_guessed = 0, n_accepted = 0;
    must_open(&draft, folder("half", &half), &(opening){0});
    must_open(&o, folder("tied", &tied), &(opening){.draft = &draft.model});
    for (uint64_t seed = 0; seed < 6; seed++) {
        const nb_generate_options how = {.max_tokens = 100,
                                         .ignore_eos = true,
                                         .n_guess = 4,
                                         .sampling = {.temperature = 15, .seed = seed}};
        nb_generation r = must_generate(&o, "the land", &how);
        assert_int_equal(r.n_steps + r.n_accepted, 99);
        n_guessed += r.n_guessed;
        n_accepted += r.n_accepted;
        nb_generation_free(&r);
    }
    assert_true(n_accepted > 0 && n_accepted < n_guessed);
    close_opened(&o);
    close_opened(&draft);
}

/* ---- the engine ---- */

static nb_generate_options guessing(int i)
{
    static const char object[] = "{\"type\": \"object\"}";
    nb_generate_options o = options_of(i);
    if (i == 3 || i == 10)
        o.json_schema = object;
    return o;
}

/* All at once, beside each other, in caches and steps of different sizes: with a draft that is
 * always right, one that is mostly wrong, and one that says nothing. */
static void company_changes_nothing(void **state)
{
    (void)state;
    const char *path = folder("wordy", &wordy);
    const char *const drafts[] = {path, folder("other", &other), folder("broken", &broken)};
    const nb_engine_setup setups[] = {
        {.n_ctx = 256, .n_guess = 5, .guess_always = true, .share_prefixes = true},
        {.n_ctx = 256, .n_guess = 3, .guess_always = true, .n_blocks = 9, .share_prefixes = true},
        {.n_ctx = 256, .n_guess = 16, .guess_always = true, .n_blocks = 9, .step_tokens = 11},
        {.n_ctx = 256, .n_guess = 5, .n_blocks = 12, .step_tokens = 5, .max_seqs = 4},
        {.n_ctx = 256, .n_guess = 2, .step_tokens = 1},
    };
    nb_generation want[N_TEXTS];
    int64_t n_preempted = 0, n_cached = 0;
    for (int i = 0; i < N_TEXTS; i++) {
        const nb_generate_options o = guessing(i);
        want[i] = alone(path, texts[i], &o, 0);
    }
    for (int s = 0; s < 5; s++) {
        for (int d = 0; d < 3; d++) {
            bench b;
            client c[N_TEXTS] = {0};
            bench_open_draft(&b, path, drafts[d], setups[s]);
            for (int round = 0; round < (s == 0 ? 2 : 1); round++) {
                hold(&b.desk, true);
                for (int i = 0; i < N_TEXTS; i++) {
                    const nb_generate_options o = guessing(i);
                    must_ask(&b, &c[i], texts[i], &o, 1);
                }
                hold(&b.desk, false);
                wait_for_all(&b);
                for (int i = 0; i < N_TEXTS; i++) {
                    same(&c[i], 0, &want[i]);
                    n_cached += c[i].n_cached;
                    client_free(&c[i]);
                    c[i] = (client){0};
                }
            }
            nb_engine_stats stats;
            nb_engine_read_stats(b.e, &stats);
            assert_int_equal(stats.blocks_used, 0);
            n_preempted += stats.n_preemptions;
            int64_t at = 0;
            for (int i = 0; i < NB_MAX_GUESS; i++) {
                at += stats.accepted_at[i];
                assert_true(i == 0 || stats.accepted_at[i] <= stats.accepted_at[i - 1]);
            }
            assert_int_equal(at, stats.accepted_tokens);
            assert_true(stats.accepted_at[0] <= stats.guesses);
            assert_true(stats.guesses <= stats.guessed_tokens);
            if (d == 0)
                assert_int_equal(stats.accepted_tokens, stats.guessed_tokens);
            if (d == 0 && s < 3)
                assert_true(stats.accepted_tokens > 50);
            if (d == 1 && s < 3)
                assert_true(stats.accepted_tokens < stats.guessed_tokens / 2);
            if (d == 2 || s == 4) /* no numbers, or no room in a step */
                assert_int_equal(stats.guessed_tokens, 0);
            bench_close(&b);
        }
    }
    assert_true(n_preempted > 0 && n_cached > 0);
    /* A wrong guess that was accepted would show: what the draft says is not what is answered. */
    const nb_generate_options o = guessing(0);
    nb_generation sloppy = alone(drafts[1], texts[0], &o, 0);
    assert_memory_not_equal(sloppy.tokens, want[0].tokens, 5 * sizeof *sloppy.tokens);
    nb_generation_free(&sloppy);
    for (int i = 0; i < N_TEXTS; i++)
        nb_generation_free(&want[i]);
}

/* Choices that share a prompt guess each for itself; a draft that knows the model takes a step for
 * many tokens. */
static void choices_take_fewer_steps(void **state)
{
    (void)state;
    const char *path = folder("wordy", &wordy);
    const nb_generate_options o = {.max_tokens = 60, .sampling = {.temperature = 1.3, .seed = 7}};
    int64_t n_steps[2];
    for (int i = 0; i < 2; i++) {
        bench b;
        client c = {0};
        bench_open_draft(
            &b, path, i == 1 ? path : NULL,
            (nb_engine_setup){.n_ctx = 256, .n_guess = i == 1 ? 5 : 0, .guess_always = true});
        must_ask(&b, &c, texts[2], &o, 5);
        wait_for_all(&b);
        for (int k = 0; k < 5; k++) {
            nb_generation want = alone(path, texts[2], &o, k);
            same(&c, k, &want);
            nb_generation_free(&want);
        }
        nb_engine_stats stats;
        nb_engine_read_stats(b.e, &stats);
        n_steps[i] = stats.n_steps;
        client_free(&c);
        bench_close(&b);
    }
    assert_true(n_steps[1] <= n_steps[0] / 3);
}

/* A draft that is of no use is hardly asked. */
static void a_poor_draft_is_left_alone(void **state)
{
    (void)state;
    const char *path = folder("wordy", &wordy);
    const nb_generate_options o = {.max_tokens = 200, .sampling = {.temperature = 1.5, .seed = 1}};
    bench b;
    client c[4] = {0};
    bench_open_draft(&b, path, folder("other", &other),
                     (nb_engine_setup){.n_ctx = 256, .n_guess = NB_MAX_GUESS});
    for (int i = 0; i < 4; i++)
        must_ask(&b, &c[i], texts[i], &o, 1);
    wait_for_all(&b);
    nb_engine_stats stats;
    nb_engine_read_stats(b.e, &stats);
    assert_true(stats.guessed_tokens > 0 && stats.guessed_tokens < 800 / 8);
    for (int i = 0; i < 4; i++)
        client_free(&c[i]);
    bench_close(&b);
}

/* ---- memory ---- */

static void memory_may_fail(void **state)
{
    (void)state;
    opened o, draft;
    must_open(&o, folder("wordy", &wordy), &(opening){0});
    must_open(&draft, folder("other", &other), &(opening){0});
    const nb_generator_setup *u = &o.generator.setup;
    nb_generator_setup alone_setup = *u;
    alone_setup.draft = &draft.model;
    const nb_engine_setup setup = {.model = u->model,
                                   .kernels = u->kernels,
                                   .pool = u->pool,
                                   .tokenizer = u->tokenizer,
                                   .kv = u->kv,
                                   .draft = &draft.model,
                                   .n_guess = 4,
                                   .n_ctx = 64};
    const int64_t live = nb_alloc_live();
    int n_failed = 0;
    for (int engine = 0; engine < 2; engine++) {
        nb_status s = NB_MEMORY;
        for (int n = 1; s != NB_OK; n++) {
            nb_engine *e;
            nb_generator g;
            nb_err err = {0};
            nb_alloc_fail_at(n);
            s = engine ? nb_engine_open(&e, &setup, &err)
                       : nb_generator_init(&g, &alone_setup, &err);
            nb_alloc_fail_at(0);
            assert_true(s == NB_OK || s == NB_MEMORY);
            n_failed += s != NB_OK && strstr(err.text, "the draft model: ") != NULL;
            if (s == NB_OK && engine)
                nb_engine_close(e);
            else if (s == NB_OK)
                nb_generator_free(&g);
            assert_int_equal(nb_alloc_live(), live);
        }
    }
    assert_true(n_failed > 20);
    close_opened(&draft);
    close_opened(&o);
}

/* The plan counts the draft: its weights, and a cache that grows with the model's own. */
static void the_plan_has_the_draft(void **state)
{
    (void)state;
    opened o;
    nb_err err = {0};
    nb_engine_memory none, small, large;
    must_open(&o, folder("wordy", &wordy), &(opening){0});
    nb_engine_setup setup = {.model = &o.model,
                             .kernels = &o.kernels,
                             .pool = o.pool,
                             .tokenizer = o.tokenizer,
                             .kv = NB_KV_F16,
                             .n_blocks = 10};
    assert_int_equal(nb_engine_plan(&setup, &none, &err), NB_OK);
    setup.draft = &o.model;
    assert_int_equal(nb_engine_plan(&setup, &small, &err), NB_OK);
    setup.n_blocks = 30;
    assert_int_equal(nb_engine_plan(&setup, &large, &err), NB_OK);
    assert_int_equal(none.draft, 0);
    assert_int_equal(small.total, none.total + small.draft);
    assert_true(small.draft > o.model.packed_bytes + small.cache);
    assert_int_equal(large.draft - small.draft, large.cache - small.cache);
    setup.n_guess = NB_MAX_GUESS + 1;
    assert_int_equal(nb_engine_plan(&setup, &large, &err), NB_USAGE);
    close_opened(&o);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reach_follows_what_was_right),
        cmocka_unit_test(another_vocabulary_is_refused),
        cmocka_unit_test(lanes_catch_up_step_by_step),
        cmocka_unit_test(answers_are_the_same),
        cmocka_unit_test(what_is_alike_is_guessed),
        cmocka_unit_test(company_changes_nothing),
        cmocka_unit_test(choices_take_fewer_steps),
        cmocka_unit_test(a_poor_draft_is_left_alone),
        cmocka_unit_test(memory_may_fail),
        cmocka_unit_test(the_plan_has_the_draft),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
