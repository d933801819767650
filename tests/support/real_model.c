/* See real_model.h. */
#define _GNU_SOURCE
#include "support/real_model.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static const char *environment(const char *name)
{
    const char *value = getenv(name);
    return value != NULL && value[0] != 0 ? value : NULL;
}

const char *real_model_path(void)
{
    static char path[2048];
    const char *file = "SmolLM2-135M-Instruct.Q4_1.gguf";
    const char *model = environment("NIBBLE_MODEL"), *cache = environment("NIBBLE_CACHE");
    const char *xdg = environment("XDG_CACHE_HOME"), *home = environment("HOME");
    if (model != NULL)
        snprintf(path, sizeof path, "%s", model);
    else if (cache != NULL)
        snprintf(path, sizeof path, "%s/%s", cache, file);
    else if (xdg != NULL)
        snprintf(path, sizeof path, "%s/nibble/%s", xdg, file);
    else
        snprintf(path, sizeof path, "%s/.cache/nibble/%s", home != NULL ? home : "", file);
    if (access(path, R_OK) == 0)
        return path;
    printf("SKIP: no model at %s (NIBBLE_MODEL names another place)\n", path);
    exit(77);
}

const char *real_data_path(const char *name)
{
    static char path[2048];
    snprintf(path, sizeof path, "%s/%s", NIBBLE_DATA_DIR, name);
    if (access(path, R_OK) == 0)
        return path;
    printf("%s is not there: its numbers are not checked\n", path);
    return NULL;
}
