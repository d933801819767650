/* See serve_pooling.h. */
#include "cli/serve_pooling.h"

#include "base/file.h"
#include "base/json.h"
#include "store/gguf.h"

#include <stdio.h>
#include <sys/stat.h>

#define MAX_CONFIG ((size_t)1 << 20)

/* llama.cpp's numbers: none, mean, first token, last token, rank. */
static nb_status of_gguf(const nb_gguf *g, nb_pooling *out, nb_err *err)
{
    char key[160];
    nb_text arch = {0};
    int64_t type = 0;
    NB_TRY(nb_gguf_text(g, "general.architecture", true, &arch, err));
    snprintf(key, sizeof key, "%.*s.pooling_type", (int)(arch.len < 100 ? arch.len : 100),
             arch.text);
    NB_TRY(nb_gguf_int(g, key, false, 0, UINT32_MAX, &type, err));
    *out = type == 1 ? NB_POOL_MEAN : type == 3 ? NB_POOL_LAST : NB_POOL_NONE;
    if (*out == NB_POOL_NONE && type != 0)
        return nb_fail(err, NB_UNSUPPORTED, "key '%s' is %lld: 1 (mean) and 3 (last) are possible",
                       key, (long long)type);
    return NB_OK;
}

static nb_status of_config(const json_t *config, nb_pooling *out, nb_err *err)
{
    static const struct {
        const char *key;
        nb_pooling pooling;
    } MODES[] = {{"pooling_mode_mean_tokens", NB_POOL_MEAN},
                 {"pooling_mode_lasttoken", NB_POOL_LAST},
                 {"pooling_mode_cls_token", NB_POOL_NONE},
                 {"pooling_mode_max_tokens", NB_POOL_NONE},
                 {"pooling_mode_mean_sqrt_len_tokens", NB_POOL_NONE},
                 {"pooling_mode_weightedmean_tokens", NB_POOL_NONE}};
    int n = 0;
    const char *other = NULL;
    for (size_t i = 0; i < sizeof MODES / sizeof *MODES; i++) {
        bool on = false;
        NB_TRY(nb_json_bool(config, MODES[i].key, false, &on, err));
        if (!on)
            continue;
        n++;
        if (MODES[i].pooling == NB_POOL_NONE)
            other = MODES[i].key;
        else
            *out = MODES[i].pooling;
    }
    if (other != NULL)
        return nb_fail(err, NB_UNSUPPORTED, "'%s' is not possible", other);
    if (n > 1)
        return nb_fail(err, NB_UNSUPPORTED, "more than one way of pooling");
    return NB_OK;
}

static nb_status of_folder(const char *folder, nb_pooling *out, nb_err *err)
{
    nb_buf path = {0}, text = {0};
    json_t *config = NULL;
    struct stat st;
    nb_status s = nb_buf_format(&path, err, "%s/1_Pooling/config.json", folder);
    if (s == NB_OK && stat((const char *)path.data, &st) == 0) {
        s = nb_file_slurp(&text, (const char *)path.data, MAX_CONFIG, err);
        if (s == NB_OK)
            s = nb_json_parse(&config, (const char *)text.data, text.len, err);
        if (s == NB_OK && !json_is_object(config))
            s = nb_fail(err, NB_DATA, "not an object");
        if (s == NB_OK)
            s = of_config(config, out, err);
        if (s != NB_OK)
            nb_context(err, "%s", (const char *)path.data);
    }
    json_decref(config);
    nb_buf_free(&text);
    nb_buf_free(&path);
    return s;
}

nb_status nb_serve_pooling(const nb_store *store, nb_pooling *out, nb_err *err)
{
    *out = NB_POOL_NONE;
    if (nb_store_gguf(store) != NULL)
        return of_gguf(nb_store_gguf(store), out, err);
    return of_folder(nb_store_path(store), out, err);
}
