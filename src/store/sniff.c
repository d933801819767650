/* See sniff.h. */
#include "store/sniff.h"

#include <string.h>

static const struct {
    const char *start;
    size_t len;
    const char *what;
} known[] = {
#define S(start, what)                                                                             \
    {                                                                                              \
        start, sizeof start - 1, what                                                              \
    }
    S("GGUF", "a GGUF file"),
    S("FUGG", "a GGUF file with its bytes swapped"),
    S("PK\003\004", "a ZIP archive (PyTorch's .bin files are such archives of pickles)"),
    S("PK\005\006", "an empty ZIP archive"),
    S("\x80\002", "a Python pickle"),
    S("\x80\003", "a Python pickle"),
    S("\x80\004", "a Python pickle"),
    S("\x80\005", "a Python pickle"),
    S("lmgg", "a GGML file from before GGUF"),
    S("fmgg", "a GGML file from before GGUF"),
    S("tjgg", "a GGML file from before GGUF"),
    S("version https://git-lfs", "a Git LFS pointer (the file itself was not downloaded)"),
    S("\037\213", "a gzip archive"),
    S("\xfd"
      "7zXZ",
      "an xz archive"),
    S("7z\xbc\xaf", "a 7z archive"),
    S("\x28\xb5\x2f\xfd", "a zstd archive"),
    S("BZh", "a bzip2 archive"),
    S("Rar!", "a RAR archive"),
    S("\211HDF", "an HDF5 file"),
    S("\223NUMPY", "a NumPy array"),
    S("\177ELF", "a program"),
    S("#!", "a script"),
    S("%PDF", "a PDF document"),
    S("<!DOCTYPE", "a web page"),
    S("<!doctype", "a web page"),
    S("<html", "a web page"),
    S("{", "a JSON text"),
    S("[", "a JSON text"),
#undef S
};

const char *nb_sniff(const uint8_t *bytes, size_t n)
{
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (n >= known[i].len && memcmp(bytes, known[i].start, known[i].len) == 0)
            return known[i].what;
    }
    return NULL;
}
