#!/bin/sh
# The suites of others through a mount: fsx, pjdfstest and fio --verify, each on a fresh mount with
# a cache so small that it evicts all the time. Prints one `ok …` line per suite and exits 1 at the
# first failure; a suite whose program is missing prints `skipped: why`.
#
#   tests/suites.sh [fsx] [pjdfstest] [fio]       all of them without words
#   FLASHSIDE=path        the binary; else the one in the target directory
#   FSX_WAYS=way          buffered or O_DIRECT; else both, side by side
#   FSX_OPS, FSX_SEEDS    operations and seeds, e.g. FSX_OPS=20000 FSX_SEEDS="1 2 3 4 5"
#   SUITES_DIR=dir        where the temp directory goes; ext4 or XFS
#
# Touches: one temp directory with a mount in it, both gone at the end, also after ^C.
set -u

root=$(cd "$(dirname "$0")/.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
PATH=$PATH:$HOME/.cargo/bin
FSX_OPS=${FSX_OPS:-5000}
FSX_SEEDS=${FSX_SEEDS:-1}

work= daemon= children=

fail() {
    echo "FAILED $*" >&2
    if [ -s "$work/flashside.log" ]; then
        echo "--- flashside said, last:" >&2
        tail -n 20 "$work/flashside.log" >&2
    fi
    exit 1
}

missing() { # program, how to get it
    command -v "$1" >/dev/null && return 1
    echo "skipped: $1 is missing ($2)"
}

cleanup() {
    trap - EXIT INT TERM
    for child in $children; do
        kill -TERM "$child" 2>/dev/null && wait "$child"
    done
    [ -n "$work" ] || return 0
    umount -l "$work/mnt" 2>/dev/null
    [ -z "$daemon" ] || kill -9 "-$daemon" 2>/dev/null
    rm -rf --one-file-system "$work"
}

find_binary() {
    [ -z "${FLASHSIDE:-}" ] || return 0
    for profile in release debug; do
        FLASHSIDE=$target/$profile/flashside
        [ ! -x "$FLASHSIDE" ] || return 0
    done
    fail "no flashside in $target: cargo build first"
}

mounted() { mountpoint -q "$work/mnt"; }

start() { # cache limit
    rm -rf "$work/store" "$work/cache"
    mkdir -p "$work/store" "$work/cache" "$work/mnt"
    chmod 755 "$work" "$work/store"
    # A group of its own: its servers outlive it otherwise.
    setsid "$FLASHSIDE" mount "$work/store" "$work/mnt" --cache "$work/cache@$1" --foreground \
        2>>"$work/flashside.log" &
    daemon=$!
    tries=0
    until mounted; do
        tries=$((tries + 1))
        [ $tries -lt 100 ] || fail "flashside does not mount"
        kill -0 $daemon 2>/dev/null || fail "flashside ended"
        sleep 0.1
    done
}

stop() {
    umount "$work/mnt" || fail "umount"
    wait $daemon || fail "flashside ended with status $?"
    daemon=
}

fsx_config() {
    cat <<END
flen = 41943040
[opsize]
max = 131072
[weights]
close_open = 0.5
invalidate = 1
mapread = 5
mapwrite = 5
read = 10
write = 10
truncate = 3
fsync = 0.5
fdatasync = 1
posix_fallocate = 3
punch_hole = 5
sendfile = 2
posix_fadvise = 1
copy_file_range = 3
END
}

fsx_once() { # name of the way, seed
    start 16M
    file=$work/mnt/fsx.$1.$2
    preload=
    [ "$1" = buffered ] || preload=$work/o_direct.so
    LD_PRELOAD=$preload O_DIRECT_FILE=$file fsx -f "$work/fsx.toml" -P "$work" -S "$2" \
        -N "$FSX_OPS" "$file" >"$work/fsx.log" 2>&1 ||
        { tail -n 40 "$work/fsx.log" >&2; fail "fsx $1, seed $2"; }
    cmp "$file" "$work/store/fsx.$1.$2" || fail "fsx $1, seed $2: mount and store differ"
    stop
}

run_fsx() {
    missing fsx "cargo install --locked fsx" && return
    ways=${FSX_WAYS:-buffered O_DIRECT}
    if ! command -v cc >/dev/null; then
        echo "skipped: fsx with O_DIRECT needs a C compiler"
        ways=buffered
    fi
    case $ways in
    *" "*) run_fsx_ways ;;
    *) run_fsx_way "$ways" ;;
    esac
}

# Side by side: each waits for the mount most of the time.
run_fsx_ways() {
    children=
    for way in $ways; do
        FSX_WAYS=$way "$root/tests/suites.sh" fsx &
        children="$children $!"
    done
    for child in $children; do
        wait "$child" || fail "fsx"
    done
    children=
}

run_fsx_way() {
    fsx_config >"$work/fsx.toml"
    if [ "$1" = O_DIRECT ]; then
        cc -shared -fPIC -o "$work/o_direct.so" "$root/tests/o_direct.c" -ldl || fail "cc"
    fi
    for seed in $FSX_SEEDS; do
        fsx_once "$1" "$seed"
    done
    echo "ok fsx $1: $FSX_OPS operations, seeds $FSX_SEEDS"
}

pjdfstest_config() {
    cat <<END
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.01
allow_remount = false
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
END
}

run_pjdfstest() {
    missing pjdfstest "cargo install --locked pjdfstest" && return
    pjdfstest_config >"$work/pjdfstest.toml"
    start 16M
    mkdir -m 755 "$work/mnt/pjd" "$work/second"
    (umask 0 && pjdfstest -c "$work/pjdfstest.toml" -p "$work/mnt/pjd" -s "$work/second") \
        >"$work/pjdfstest.log" 2>&1
    status=$?
    count=$(sed -n 's/^Summary: //p' "$work/pjdfstest.log")
    [ $status = 0 ] || { grep -a -A1 FAILED "$work/pjdfstest.log" >&2; fail "pjdfstest: $count"; }
    stop
    echo "ok pjdfstest: $count"
}

fio_once() { # engine
    fio --name=verify --filename="$work/mnt/fio" --size=48M --direct=1 --ioengine="$1" \
        --iodepth=32 --rw=randwrite --bsrange=512-128k --blockalign=512 --verify=crc32c \
        --verify_fatal=1 --verify_state_save=0 --verify_backlog=1024 --randseed=7 --numjobs=1 --fsync=256 \
        --output="$work/fio.log" >/dev/null 2>&1
}

run_fio() {
    missing fio "apt-get install fio" && return
    for engine in libaio io_uring; do
        if [ $engine = io_uring ] && ! fio_works io_uring; then
            echo "skipped: fio has no io_uring here"
            continue
        fi
        start 16M
        fio_once $engine || { tail -n 30 "$work/fio.log" >&2; fail "fio --verify, $engine"; }
        cmp "$work/mnt/fio" "$work/store/fio" || fail "fio, $engine: mount and store differ"
        stop
        echo "ok fio --verify=crc32c: $engine, O_DIRECT, queue depth 32"
    done
}

fio_works() { # engine
    fio --name=probe --filename="$work/probe" --size=4k --ioengine="$1" --rw=write \
        --output=/dev/null >/dev/null 2>&1
}

if [ "$(id -u)" != 0 ] || [ ! -w /dev/fuse ]; then
    echo "skipped: the suites need root and /dev/fuse"
    exit 0
fi
trap 'cleanup' EXIT
trap 'exit 130' INT TERM
find_binary
work=$(mktemp -d "${SUITES_DIR:-/tmp}/flashside-suites-XXXXXX")
[ $# -gt 0 ] || set -- fsx pjdfstest fio
for suite in "$@"; do
    case $suite in
    fsx | pjdfstest | fio) run_$suite ;;
    *) fail "no suite called $suite" ;;
    esac
done
