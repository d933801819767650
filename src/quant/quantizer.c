/* See quantizer.h. */
#include "quant/quantizer.h"

#include "base/bytes.h"

#include <string.h>

#define X(id) extern const nb_quantizer nb_quantizer_##id;
#include "quant/quantizers.def"
#undef X

const nb_quantizer *const nb_quantizers[] = {
#define X(id) &nb_quantizer_##id,
#include "quant/quantizers.def"
#undef X
    NULL,
};

static nb_status unknown(const char *name, nb_err *err)
{
    nb_buf list = {0};
    nb_status s = NB_OK;
    for (const nb_quantizer *const *q = nb_quantizers; *q != NULL && s == NB_OK; q++)
        s = nb_buf_format(&list, err, "%s%s", q == nb_quantizers ? "" : ", ", (*q)->name);
    if (s == NB_OK)
        s = nb_fail(err, NB_USAGE, "unknown method '%.40s'; there are: %s", name,
                    (const char *)list.data);
    nb_buf_free(&list);
    return s;
}

nb_status nb_quantizer_by_name(const nb_quantizer **out, const char *name, nb_err *err)
{
    for (const nb_quantizer *const *q = nb_quantizers; *q != NULL; q++) {
        if (strcmp((*q)->name, name) == 0) {
            *out = *q;
            return NB_OK;
        }
    }
    return unknown(name, err);
}
