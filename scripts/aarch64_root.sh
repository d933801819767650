#!/bin/sh
# Puts the libraries that a build for 64-bit ARM links into a folder of their own, from Debian's or
# Ubuntu's packages. apt keeps separate lists for it, so that the machine's own packages and
# architectures stay as they are, and no rights are needed. Does nothing when they are there.
#
#   scripts/aarch64_root.sh [build/aarch64-root]
set -eu
root=${1:-$(dirname "$0")/../build/aarch64-root}
libraries='libjansson libutf8proc libpcre2 libcmocka'

complete() {
    for name in jansson libutf8proc libpcre2-8 cmocka; do
        [ -e "$root/usr/lib/aarch64-linux-gnu/pkgconfig/$name.pc" ] || return 1
    done
}
complete && exit 0

if ! command -v apt-get >/dev/null 2>&1 || ! command -v dpkg-deb >/dev/null 2>&1; then
    echo "aarch64_root.sh: this system has no apt-get" >&2
    exit 1
fi
mkdir -p "$root"
root=$(cd "$root" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/state/lists/partial" "$work/cache/archives/partial" "$work/sources" "$work/deb"

# Ubuntu keeps this architecture on servers of its own.
for list in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
    [ -f "$list" ] || continue
    sed -E -e 's#https?://[^ ]*(archive|security)\.ubuntu\.com/ubuntu/?#http://ports.ubuntu.com/ubuntu-ports/#' \
        -e '/^Architectures:/d' -e 's/^(deb[^[]*\[[^]]*)arch=[^] ]*/\1/' -e 's/\[ *\]//' \
        "$list" >"$work/sources/$(basename "$list")"
done
private() { # private PROGRAM ARGUMENT...: one of apt's programs, on lists for arm64 alone
    program=$1
    shift
    "$program" -q -o APT::Architecture=arm64 -o APT::Architectures::=arm64 \
        -o APT::Sandbox::User="$(id -un)" -o Dir::State="$work/state" \
        -o Dir::State::status=/dev/null -o Dir::Cache="$work/cache" \
        -o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$work/sources" "$@"
}
fail() {
    tail -n 20 "$work/log" >&2
    echo "aarch64_root.sh: $1" >&2
    exit 1
}

# One unreachable source need not matter: what counts is whether the packages are there.
private apt-get update >"$work/log" 2>&1 || true
packages=
for name in $libraries; do # and the shared library that belongs to it, whose name has a version
    shared=$(private apt-cache depends -i "$name-dev" 2>>"$work/log" |
        sed -n "s/^ *Depends: \($name[0-9-][^ ]*\)\$/\1/p" | grep -v -e -16- -e -32- -e posix) ||
        fail "no package $name-dev for arm64"
    packages="$packages $name-dev $shared"
done
# shellcheck disable=SC2086 # the list is words
(cd "$work/deb" && private apt-get download $packages >>"$work/log" 2>&1) || fail "downloading failed"
for package in "$work"/deb/*.deb; do
    dpkg-deb -x "$package" "$root"
done
complete || fail "the packages do not hold what they should"
