/* See arch.h. */
#include "model/arch.h"

#include <string.h>

#define X(id) extern const nb_arch nb_arch_##id;
#include "model/archs.def"
#undef X

const nb_arch *const nb_archs[] = {
#define X(id) &nb_arch_##id,
#include "model/archs.def"
#undef X
    NULL,
};

const nb_arch *nb_arch_by_hf(const char *model_type)
{
    for (const nb_arch *const *a = nb_archs; *a != NULL; a++) {
        if (strcmp((*a)->name, model_type) == 0)
            return *a;
    }
    return NULL;
}

const nb_arch *nb_arch_by_class(const char *hf_class)
{
    for (const nb_arch *const *a = nb_archs; *a != NULL; a++) {
        if (strcmp((*a)->hf_class, hf_class) == 0)
            return *a;
    }
    return NULL;
}

const nb_arch *nb_arch_by_gguf(const char *name)
{
    for (const nb_arch *const *a = nb_archs; *a != NULL; a++) {
        if (strcmp((*a)->gguf_name, name) == 0)
            return *a;
    }
    return NULL;
}
