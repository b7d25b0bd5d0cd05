#!/usr/bin/env bash
# Measures flashside beside a plain file: builds the release binary and benches/lanes, and runs that.
#
#   benches/run.sh [--quick] [--only NAME,…] [--rounds N] [--seconds N] [--dir DIR] [--store DIR]
#   benches/run.sh --markdown        measures nothing: the last results as in docs/PERFORMANCE.md
#
# NAMEs: warm, sessions, cold, backup, idle, memory. Prints tables; JSON goes to <target>/bench/results.json.
# Asserts nothing: the exit code is 0 when everything could be measured. Needs root, /dev/fuse, a Rust
# toolchain and 11 GiB of disk (less with --image-mib); fio is installed if missing.
#
# Touches: cargo's target directory, and scratch directories (in it, or where --dir and --store say) with
# mounts in them; these are gone at the end, whatever the end.

set -euo pipefail
cd "$(dirname "$0")/.."

die() { echo "benches/run.sh: $*" >&2; exit 1; }

install_fio() {
    command -v fio >/dev/null && return
    echo "installing fio" >&2
    apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y fio >/dev/null
}

# build: prints the path of the program that measures. Cargo's own words go to stderr.
build() {
    cargo bench --quiet --no-run --bench lanes --message-format=json-render-diagnostics |
        sed -n 's/.*"kind":\["bench"\].*"executable":"\([^"]*\)".*/\1/p' | tail -n 1
}

for argument in "$@"; do
    case "$argument" in
        --markdown | --help | -h) exec "$(build)" "$@" ;;
    esac
done
[ "$(id -u)" = 0 ] || die "needs root"
[ -e /dev/fuse ] || die "needs /dev/fuse"
install_fio
program=$(build)
[ -x "$program" ] || die "the program that measures was not built"
# In the place of this shell: a signal reaches the one who cleans up.
exec "$program" "$@"
