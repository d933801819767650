/* Conversations: what is remembered, what a turn costs, and what is forgotten when. */
#include "opened.h"

typedef struct {
    opened o;
    nb_dialog dialog;
} talk;

static const tiny_model wordy = {.never_ends = true};

static void open_talk(talk *t, int64_t n_ctx)
{
    nb_err err = {0};
    must_open(&t->o, model_path("wordy", &wordy), &(opening){.n_ctx = n_ctx});
    assert_int_equal(nb_dialog_init(&t->dialog, t->o.store, t->o.tokenizer, &err), NB_OK);
}

static void close_talk(talk *t)
{
    nb_dialog_free(&t->dialog);
    close_opened(&t->o);
}

static nb_status say(talk *t, const char *text, nb_ctx_policy policy, int64_t max_tokens,
                     nb_generation *r, int64_t *n_dropped, nb_err *err)
{
    const nb_generate_options how = {.max_tokens = max_tokens, .hash_logits = true};
    return nb_dialog_answer(&t->dialog, &t->o.generator, text, strlen(text), policy, &how, r,
                            n_dropped, err);
}

static void must_say(talk *t, const char *text, nb_ctx_policy policy, int64_t max_tokens,
                     nb_generation *r, int64_t *n_dropped)
{
    nb_err err = {0};
    if (say(t, text, policy, max_tokens, r, n_dropped, &err) != NB_OK)
        fail_msg("%s", err.text);
}

/* The tokens of the conversation as it stands. */
static int64_t n_tokens(const talk *t)
{
    nb_err err = {0};
    nb_tokens ids = {0};
    assert_int_equal(nb_dialog_encode(&t->dialog, &ids, &err), NB_OK);
    const int64_t n = ids.n;
    nb_tokens_free(&ids);
    return n;
}

/* A turn computes what is new, and gives the bits of the whole conversation from a fresh start. */
static void turns_build_on_each_other(void **state)
{
    (void)state;
    talk a, b;
    open_talk(&a, 0);
    nb_err err = {0};
    assert_int_equal(nb_dialog_system(&a.dialog, "be the inn", &err), NB_OK);
    const char *const texts[] = {"the hand", "and then", "in the land"};
    for (int turn = 0; turn < 3; turn++) {
        nb_generation r, fresh;
        int64_t n_dropped;
        /* The other one hears the conversation so far for the first time. */
        open_talk(&b, 0);
        assert_int_equal(nb_dialog_system(&b.dialog, "be the inn", &err), NB_OK);
        nb_tokens ids = {0};
        must_say(&a, texts[turn], NB_CTX_STOP, 6, &r, &n_dropped);
        assert_int_equal(n_dropped, 0);
        assert_int_equal(a.dialog.n, 1 + 2 * (turn + 1));
        assert_string_equal(a.dialog.messages[a.dialog.n - 2].content, texts[turn]);
        assert_memory_equal(a.dialog.messages[a.dialog.n - 1].content, r.text, r.text_len);
        if (turn > 0)
            assert_true(r.n_cached > 20 * turn);
        const nb_message last = a.dialog.messages[--a.dialog.n];
        assert_int_equal(nb_dialog_encode(&a.dialog, &ids, &err), NB_OK);
        a.dialog.messages[a.dialog.n++] = last;
        assert_int_equal(r.n_prompt, ids.n);
        assert_int_equal(nb_generate(&b.o.generator, &ids,
                                     &(nb_generate_options){.max_tokens = 6, .hash_logits = true},
                                     NULL, NULL, &fresh, &err),
                         NB_OK);
        assert_true(fresh.logits_hash == r.logits_hash);
        assert_int_equal(fresh.n_cached, 0);
        nb_tokens_free(&ids);
        nb_generation_free(&r);
        nb_generation_free(&fresh);
        close_talk(&b);
    }
    close_talk(&a);
}

/* Stop: the answer ends; the next message is refused with both numbers, and is not remembered. */
static void a_full_context_stops(void **state)
{
    (void)state;
    talk t;
    open_talk(&t, 96);
    nb_generation r;
    int64_t n_dropped;
    nb_err err = {0};
    must_say(&t, "the hand", NB_CTX_STOP, 0, &r, &n_dropped);
    assert_int_equal(r.reason, NB_STOP_CONTEXT);
    assert_int_equal(r.n_prompt + r.n_tokens, 96);
    nb_generation_free(&r);
    assert_int_equal(say(&t, "and then", NB_CTX_STOP, 0, &r, &n_dropped, &err), NB_LIMIT);
    assert_non_null(strstr(err.text, "and the context holds 96"));
    assert_int_equal(t.dialog.n, 2);
    close_talk(&t);
}

/* Drop: turns are forgotten until there is room, the system message never; what is left is what a
 * conversation without these turns would have been. */
static void the_oldest_turns_are_forgotten(void **state)
{
    (void)state;
    talk t;
    open_talk(&t, 160);
    nb_err err = {0};
    assert_int_equal(nb_dialog_system(&t.dialog, "be the inn", &err), NB_OK);
    int64_t total = 0;
    for (int turn = 0; turn < 8; turn++) {
        nb_generation r;
        int64_t n_dropped;
        char text[40];
        snprintf(text, sizeof text, "message number %d", turn);
        must_say(&t, text, NB_CTX_DROP_OLDEST_TURN, 20, &r, &n_dropped);
        assert_int_equal(r.reason, NB_STOP_MAX_TOKENS);
        assert_int_equal(r.n_tokens, 20);
        total += n_dropped;
        assert_true((n_dropped > 0) == (r.n_dropped > 0));
        assert_string_equal(t.dialog.messages[0].role, "system");
        /* The oldest that is left is the first one not forgotten. */
        snprintf(text, sizeof text, "message number %d", (int)total);
        assert_string_equal(t.dialog.messages[1].content, text);
        assert_int_equal(t.dialog.n, 1 + 2 * (turn + 1 - total));
        nb_generation_free(&r);
    }
    assert_true(total > 3);
    close_talk(&t);
}

/* One answer that grows past the context forgets turns while it is written, then stops: the turn
 * that it answers is never forgotten. */
static void a_long_answer_forgets_and_then_stops(void **state)
{
    (void)state;
    talk t;
    open_talk(&t, 200);
    nb_generation r;
    int64_t n_dropped;
    for (int i = 0; i < 2; i++) {
        must_say(&t, "the hand and the land", NB_CTX_DROP_OLDEST_TURN, 8, &r, &n_dropped);
        assert_int_equal(n_dropped, 0);
        nb_generation_free(&r);
    }
    const int64_t before = n_tokens(&t);
    must_say(&t, "more", NB_CTX_DROP_OLDEST_TURN, 0, &r, &n_dropped);
    assert_int_equal(n_dropped, 2);
    assert_int_equal(t.dialog.n, 2);
    assert_string_equal(t.dialog.messages[0].content, "more");
    assert_int_equal(r.reason, NB_STOP_CONTEXT);
    assert_true(r.n_tokens > 200 - before);
    assert_int_equal(r.n_prompt - r.n_dropped + r.n_tokens, 200);
    nb_generation_free(&r);
    close_talk(&t);
}

/* A message that is too long alone is refused, whatever is forgotten. */
static void a_message_too_long_is_refused(void **state)
{
    (void)state;
    talk t;
    open_talk(&t, 64);
    nb_generation r;
    int64_t n_dropped;
    nb_err err = {0};
    char text[100];
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = 0;
    assert_int_equal(say(&t, text, NB_CTX_DROP_OLDEST_TURN, 0, &r, &n_dropped, &err), NB_LIMIT);
    assert_non_null(strstr(err.text, "and the context holds 64"));
    assert_int_equal(t.dialog.n, 0);
    close_talk(&t);
}

static void messages_are_edited_as_told(void **state)
{
    (void)state;
    talk t;
    open_talk(&t, 0);
    nb_err err = {0};
    nb_generation r;
    int64_t n_dropped;
    assert_int_equal(nb_dialog_system(&t.dialog, NULL, &err), NB_OK);
    assert_int_equal(t.dialog.n, 0);
    assert_false(nb_dialog_drop_oldest(&t.dialog));
    must_say(&t, "one", NB_CTX_STOP, 1, &r, &n_dropped);
    nb_generation_free(&r);
    assert_int_equal(nb_dialog_system(&t.dialog, "first", &err), NB_OK);
    assert_int_equal(nb_dialog_system(&t.dialog, "second", &err), NB_OK);
    assert_int_equal(t.dialog.n, 3);
    assert_string_equal(t.dialog.messages[0].content, "second");
    assert_false(nb_dialog_drop_oldest(&t.dialog)); /* one turn: it stays */
    must_say(&t, "two", NB_CTX_STOP, 1, &r, &n_dropped);
    nb_generation_free(&r);
    assert_true(nb_dialog_drop_oldest(&t.dialog));
    assert_int_equal(t.dialog.n, 3);
    assert_string_equal(t.dialog.messages[1].content, "two");
    nb_dialog_clear(&t.dialog);
    assert_int_equal(t.dialog.n, 1);
    assert_string_equal(t.dialog.messages[0].content, "second");
    must_say(&t, "three", NB_CTX_STOP, 1, &r, &n_dropped);
    nb_generation_free(&r);
    assert_int_equal(nb_dialog_system(&t.dialog, NULL, &err), NB_OK);
    assert_int_equal(t.dialog.n, 2);
    nb_dialog_clear(&t.dialog);
    assert_int_equal(t.dialog.n, 0);
    close_talk(&t);
}

static void a_model_without_template_is_refused(void **state)
{
    (void)state;
    opened o;
    nb_dialog d;
    nb_err err = {0};
    must_open(&o, model_path("plain", &(tiny_model){.no_template = true}), &(opening){0});
    assert_int_equal(nb_dialog_init(&d, o.store, o.tokenizer, &err), NB_UNSUPPORTED);
    assert_non_null(strstr(err.text, "the model has no chat template"));
    close_opened(&o);
}

/* Each allocation of a turn in which a turn is forgotten fails once: the message is gone again,
 * nothing leaks. */
static void failing_allocations_leave_nothing(void **state)
{
    (void)state;
    bool done = false;
    int64_t n_failed = 0;
    for (int64_t n = 1; !done; n += n < 40 ? 1 : 17) {
        talk t;
        nb_generation r = {0};
        int64_t n_dropped;
        nb_err err = {0};
        const int64_t live = nb_alloc_live();
        open_talk(&t, 64);
        must_say(&t, "the hand", NB_CTX_DROP_OLDEST_TURN, 30, &r, &n_dropped);
        nb_generation_free(&r);
        nb_alloc_fail_at(n);
        const nb_status s = say(&t, "and then", NB_CTX_DROP_OLDEST_TURN, 0, &r, &n_dropped, &err);
        nb_alloc_fail_at(0);
        done = s == NB_OK;
        assert_true(done || s == NB_MEMORY);
        assert_int_equal(done ? n_dropped : 1, 1);
        if (!done)
            assert_true(t.dialog.n == 2 || t.dialog.n == 0);
        n_failed += !done;
        nb_generation_free(&r);
        close_talk(&t);
        assert_int_equal(nb_alloc_live(), live);
    }
    assert_true(n_failed > 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(turns_build_on_each_other),
        cmocka_unit_test(a_full_context_stops),
        cmocka_unit_test(the_oldest_turns_are_forgotten),
        cmocka_unit_test(a_long_answer_forgets_and_then_stops),
        cmocka_unit_test(a_message_too_long_is_refused),
        cmocka_unit_test(messages_are_edited_as_told),
        cmocka_unit_test(a_model_without_template_is_refused),
        cmocka_unit_test(failing_allocations_leave_nothing),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
