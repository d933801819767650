#!/bin/sh
# Installs what the build and the tests need and this machine lacks, with apt. Says nothing and
# touches nothing when nothing is missing.
#
#   scripts/setup.sh          for make, make test, make demo
#   scripts/setup.sh --ci     and for .ci/run: a second compiler, the formatter, and what builds and
#                             runs programs for 64-bit ARM, where that can be had
set -eu

# dpkg runs programs from sbin, which a plain user's PATH may lack.
PATH=${PATH:-/usr/bin:/bin}:/usr/local/sbin:/usr/sbin:/sbin
export PATH

missing=
optional=
need() { # need PACKAGE COMMAND...: the package is missing when the command fails
    package=$1
    shift
    "$@" >/dev/null 2>&1 || missing="$missing $package"
}
want() { # the same for what we can do without
    package=$1
    shift
    "$@" >/dev/null 2>&1 || optional="$optional $package"
}
command_exists() {
    command -v "$1"
}
# A library counts when pkg-config finds it, whoever installed it.
library() {
    command -v pkg-config && pkg-config --exists "$1"
}
emulator() {
    command -v qemu-aarch64 || command -v qemu-aarch64-static
}
c_headers() {
    echo '#include <linux/futex.h>
#include <stdlib.h>' | gcc -E -
}

need gcc command_exists gcc
need libc6-dev c_headers
need make command_exists make
need cmake command_exists cmake
need ninja-build command_exists ninja
need pkg-config command_exists pkg-config
need libjansson-dev library 'jansson >= 2.13'
need libutf8proc-dev library libutf8proc
need libpcre2-dev library libpcre2-8
need libcurl4-openssl-dev library libcurl
need zlib1g-dev library zlib
need libmicrohttpd-dev library 'libmicrohttpd >= 0.9.75'
need libcmocka-dev library cmocka
# The tests of the command line are in Python, and pip is one of the ways to find the demo's model.
need python3 command_exists python3
need python3-pip python3 -c 'import pip'
need ca-certificates test -s /etc/ssl/certs/ca-certificates.crt
if [ "${1:-}" = --ci ]; then
    need clang command_exists clang
    need clang-format command_exists clang-format
    if [ "$(uname -m)" != aarch64 ]; then
        want gcc-aarch64-linux-gnu command_exists aarch64-linux-gnu-gcc
        want libc6-dev-arm64-cross test -e /usr/aarch64-linux-gnu/include/stdlib.h
        want qemu-user emulator
    fi
fi

# cmake's presets of version 3, and ctest's JUnit output
if command -v cmake >/dev/null 2>&1; then
    version=$(cmake --version | sed -n '1s/[^0-9]*\([0-9]*\)\.\([0-9]*\).*/\1 \2/p')
    if [ "${version% *}" -lt 3 ] || { [ "${version% *}" -eq 3 ] && [ "${version#* }" -lt 22 ]; }; then
        echo "setup.sh: $(cmake --version | head -n 1): nibble needs 3.22 or newer" >&2
        exit 1
    fi
fi

[ -n "$missing$optional" ] || exit 0

sorry() {
    echo "setup.sh: $1" >&2
    if [ -z "$missing" ]; then
        echo "setup.sh: going on without$optional" >&2
        exit 0
    fi
    echo "setup.sh: please install (names as in Debian and Ubuntu):$missing" >&2
    exit 1
}
command -v apt-get >/dev/null 2>&1 || sorry "some packages are missing, and this system has no apt-get"
root=
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null 2>&1 || sorry "some packages are missing; this user is not root and there is no sudo"
    root=sudo
fi
echo "setup.sh: installing$missing$optional" >&2
log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt() {
    $root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -q "$@" >"$log" 2>&1
}
# One unreachable source need not matter: what counts is whether the packages can be installed.
apt update || echo "setup.sh: apt-get update failed; trying with the lists that are here" >&2
# shellcheck disable=SC2086 # the lists are words
if [ -n "$missing" ]; then
    apt install -y --no-install-recommends $missing || {
        tail -n 20 "$log" >&2
        sorry "apt-get install failed"
    }
fi
# shellcheck disable=SC2086
if [ -n "$optional" ]; then
    apt install -y --no-install-recommends $optional ||
        echo "setup.sh: going on without$optional" >&2
fi
