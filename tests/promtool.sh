#!/bin/sh
# Prometheus' promtool, for tests/metrics.rs: taken out of Debian's package without installing it, as that
# would start a service. Prints the path; `skipped: why` and success where there is none.
#
# Touches: ~/.cache/flashside/promtool, a temp directory.
set -u

found=$(command -v promtool)
cached=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/flashside/promtool
if [ -n "$found" ]; then
    echo "$found"
    exit
elif [ -x "$cached" ]; then
    echo "$cached"
    exit
elif ! command -v apt-get >/dev/null; then
    echo "skipped: promtool is taken from a Debian package, and this machine has no apt-get"
    exit
fi

dir=$(mktemp -d) && trap 'rm -rf "$dir"' EXIT
chmod 755 "$dir"
cd "$dir" || exit 1
apt-cache show prometheus >/dev/null 2>&1 || apt-get -q update >/dev/null
if ! apt-get -q -o Acquire::Retries=3 download prometheus >/dev/null 2>&1; then
    apt-get -q update >/dev/null
    apt-get -q download prometheus >/dev/null || { echo "skipped: the package prometheus cannot be had"; exit; }
fi
dpkg -x ./*.deb tree && mkdir -p "${cached%/*}" && cp tree/usr/bin/promtool "$cached.partial" &&
    mv "$cached.partial" "$cached" && echo "$cached"
