#!/bin/sh
# Installs a build folder under a temporary prefix, and compiles, links and runs a small program
# against it the way a user would: with pkg-config, once shared and once static.
#
#   scripts/check_install.sh build/release
set -eu
cd "$(dirname "$0")/.."
build=$1
prefix=$(mktemp -d)
trap 'rm -rf "$prefix"' EXIT
cmake --install "$build" --prefix "$prefix" >/dev/null

cat >"$prefix/program.c" <<'END'
#include <nibble.h>
#include <stdio.h>
#include <string.h>

int main(void)
{
    puts(nb_version());
    return strcmp(nb_version(), NIBBLE_VERSION) != 0 || strcmp(nb_status_name(NB_OK), "ok") != 0;
}
END
pc=$(find "$prefix" -name nibble.pc)
[ -n "$pc" ] || {
    echo "check_install.sh: no nibble.pc was installed"
    exit 1
}
PKG_CONFIG_PATH=$(dirname "$pc")
export PKG_CONFIG_PATH
libdir=$(pkg-config --variable=libdir nibble)
cc=${CC:-cc}
# shellcheck disable=SC2046 # flags are words
"$cc" -std=c17 -Wall -Wextra -Werror "$prefix/program.c" $(pkg-config --cflags --libs nibble) -o "$prefix/shared"
# Only libnibble itself is linked statically: the system's libraries come as they are.
# shellcheck disable=SC2046
"$cc" -std=c17 -Wall -Wextra -Werror "$prefix/program.c" $(pkg-config --cflags nibble) \
    $(pkg-config --static --libs nibble | sed 's/-lnibble/-l:libnibble.a/') -o "$prefix/static"
if command -v ldd >/dev/null && ldd "$prefix/static" | grep -q libnibble; then
    echo "check_install.sh: the static program needs libnibble.so"
    exit 1
fi
version=$(pkg-config --modversion nibble)
[ "$(LD_LIBRARY_PATH=$libdir "$prefix/shared")" = "$version" ]
[ "$("$prefix/static")" = "$version" ]
# The examples of docs/api.md compile and link as they are printed there.
examples=$(grep -c '^```c$' docs/api.md)
[ "$examples" -gt 0 ]
for i in $(seq "$examples"); do
    awk -v want="$i" '/^```c$/ { n++; next } /^```$/ { if (n == want) exit; next } n == want' docs/api.md \
        >"$prefix/example$i.c"
    # shellcheck disable=SC2046
    "$cc" -std=c17 -Wall -Wextra -Werror "$prefix/example$i.c" $(pkg-config --cflags --libs nibble) \
        -o "$prefix/example$i"
done
# The installed program runs from its place, without the build folder's help.
if [ -x "$prefix/bin/nibble" ]; then
    LD_LIBRARY_PATH=$libdir "$prefix/bin/nibble" --version >/dev/null
fi
echo "install: nibble $version links shared and static"
