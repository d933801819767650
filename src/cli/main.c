/* The command-line program: finds the verb, parses its arguments, runs it, and turns its status
 * into one line of error and an exit code. */
#include "cli/verbs.h"

#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

static const nb_verb *const verbs[] = {
#define X(id) &nb_verb_##id,
#include "cli/verbs.def"
#undef X
    NULL,
};

static const char *verb_name(const void *context, int i)
{
    (void)context;
    return verbs[i] == NULL ? NULL : verbs[i]->name;
}

/* The verb that words[0, n) begin with; *n_words of them are its name. One of two words goes before
 * one of the first alone: `bench serve` is no bench of a model called serve. */
static const nb_verb *find_verb(int n, char *const *words, int *n_words)
{
    for (*n_words = n < 2 ? n : 2; *n_words > 0; --*n_words) {
        char name[64];
        const int len = snprintf(name, sizeof name, "%s%s%s", words[0], *n_words > 1 ? " " : "",
                                 *n_words > 1 ? words[1] : "");
        for (int i = 0; verbs[i] != NULL && len < (int)sizeof name; i++) {
            if (strcmp(verbs[i]->name, name) == 0)
                return verbs[i];
        }
    }
    return NULL;
}

static void print_overview(nb_out *out)
{
    nb_out_text(out,
                "nibble %s: quantize, evaluate and run language models on a CPU\n\n"
                "Example:\n"
                "  nibble pull smollm2-135m-instruct\n\n"
                "Usage: nibble VERB [arguments]\n\n",
                nb_version());
    for (int i = 0; verbs[i] != NULL; i++)
        nb_out_text(out, "  %-11s %s\n", verbs[i]->name, verbs[i]->summary);
    nb_out_text(out,
                "\n'nibble VERB --help' explains a verb; 'nibble --version' prints the version.\n"
                "Exit codes: 0 done, 1 input refused, 2 wrong usage, 3 i/o failure,\n"
                "4 out of memory or over a limit, 5 interrupted.\n");
}

static nb_status print_help(const nb_verb *verb, nb_out *out, nb_err *err)
{
    nb_buf text = {0};
    const nb_status s = nb_args_help(verb, &text, err);
    if (s == NB_OK)
        nb_out_bytes(out, text.data, text.len);
    nb_buf_free(&text);
    return s;
}

static nb_status unknown_verb(const char *word, nb_err *err)
{
    const char *near = nb_args_suggest(word, verb_name, NULL);
    if (near != NULL)
        return nb_fail(err, NB_USAGE, "unknown verb '%s'; did you mean '%s'?", word, near);
    return nb_fail(err, NB_USAGE, "unknown %s '%s'; 'nibble --help' lists the verbs",
                   word[0] == '-' ? "option" : "verb", word);
}

/* True when some option of the verb is called `name` and was given as a flag. */
static bool has_flag(const nb_verb *verb, const nb_args *args, const char *name)
{
    for (const nb_opt *o = verb->options; o != NULL && o->name != NULL; o++) {
        if (strcmp(o->name, name) == 0 && o->kind == NB_OPT_FLAG)
            return nb_args_flag(args, name);
    }
    return false;
}

/* Memory runs out deep below what knows a name: adds the file the work was about, and the limit
 * of this process if it has one. */
static nb_status say_memory(const char *file, nb_err *err)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) {
        const nb_err why = *err;
        nb_fail(err, NB_MEMORY, "%.400s; this process may use %lld bytes", why.text,
                (long long)limit.rlim_cur);
    }
    return file == NULL ? err->status : nb_context(err, "%s", file);
}

static nb_status run_verb(const nb_verb *verb, int argc, char *const *argv, nb_out *out,
                          nb_err *err)
{
    nb_args *args;
    bool help;
    NB_TRY(nb_args_parse(&args, verb, argc, argv, &help, err));
    nb_status s;
    if (help) {
        s = print_help(verb, out, err);
    } else {
        out->json = has_flag(verb, args, "json");
        out->quiet = has_flag(verb, args, "quiet");
        out->progress = out->progress && !out->quiet;
        s = verb->run(args, out, err);
        if (s == NB_MEMORY)
            s = say_memory(nb_args_operand(args, 0), err);
    }
    nb_args_free(args);
    return s;
}

static nb_status run(int argc, char *const *argv, nb_out *out, nb_err *err)
{
    if (argc < 2)
        return nb_fail(err, NB_USAGE, "no verb given; 'nibble --help' lists them");
    const char *word = argv[1];
    if (strcmp(word, "--version") == 0) {
        nb_out_text(out, "nibble %s\n", nb_version());
        return NB_OK;
    }
    const bool help_of = strcmp(word, "help") == 0;
    if ((help_of && argc < 3) || strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0) {
        print_overview(out);
        return NB_OK;
    }
    const int first = help_of ? 2 : 1;
    int n_words = 0;
    const nb_verb *verb = find_verb(argc - first, argv + first, &n_words);
    if (verb == NULL)
        return unknown_verb(argv[first], err);
    const int rest = first + n_words;
    return help_of ? print_help(verb, out, err)
                   : run_verb(verb, argc - rest, argv + rest, out, err);
}

int main(int argc, char **argv)
{
    nb_out out = {0};
    nb_out_init(&out);
    nb_err err = {0};
    nb_status s = run(argc, argv, &out, &err);
    nb_err flush_err = {0};
    if (nb_out_finish(&out, &flush_err) != NB_OK && s == NB_OK) {
        err = flush_err;
        s = err.status;
    }
    /* The message is already printable ASCII; the whole line stays within 1,000 characters. */
    if (s != NB_OK)
        fprintf(stderr, "nibble: %.990s\n", err.text);
    return nb_status_exit_code(s);
}
