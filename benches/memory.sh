#!/usr/bin/env bash
# Measures the daemon's memory with a cache that is really large: 16 million blocks, 1 TiB, fetched
# through a mount, each read again, an eighth evicted for others, and found again by the next mount.
#
#   benches/memory.sh [BLOCKS]      BLOCKS of 64 KiB: 1048576, 16M (default 1M: two
#                                 minutes; 16M: half an hour)
#
# Nothing in the daemon knows of this: it fetches, checksums, writes and records every byte of every
# block. What makes room for 1 TiB is beneath and beside it. The store's image is one hole on a
# tmpfs. The cache is XFS on a zram disk, which keeps a page of zeros as an entry of 16 bytes in its
# table; so 1 TiB takes about 7 GiB of the kernel's memory, the page records included, and none of
# disk. Blocks are fetched by `flashside warm`, and read again with the last page of one and the first
# of the next in one request.
#
# Prints the RSS of the daemon's processes together after each step (what they share counts for each), the sum of
# their peaks, and bytes per block beyond the RSS after the
# mount; writes them as JSON to <target>/bench/memory.json. Asserts nothing. Needs root, /dev/fuse,
# zram, mkfs.xfs, fio and a Rust toolchain; says what is missing.
#
# Touches only its own temp directory, its own zram device and its own mounts; all are gone at the end.

set -euo pipefail
cd "$(dirname "$0")/.."

COUNT=${1:-1M}
[[ $COUNT =~ ^[0-9]+M?$ ]] || { echo "usage: benches/memory.sh [BLOCKS | MILLIONS M, as 16M]" >&2; exit 2; }
case "$COUNT" in
    *M) BLOCKS=$((${COUNT%M} << 20)) ;;
    *) BLOCKS=$COUNT ;;
esac
MIB=$((BLOCKS / 16))
# Blocks that are not in the cache when it is full, and then take the place of others.
MORE_MIB=$((MIB / 8))
# Room for the records and what the filesystem adds; the cache stays off a tenth of its filesystem.
LIMIT_MIB=$((MIB * 1013 / 1000 + 64))
DISK_MIB=$((LIMIT_MIB * 1125 / 1000 + 1024))

TARGET=${CARGO_TARGET_DIR:-$PWD/target}
RESULTS=$TARGET/bench/memory.json
DIR='' DAEMON='' ZRAM=''
JSON=()

say() { printf '\033[2m%s\033[0m\n' "$*" >&2; }
skip() { echo "skipped: $*"; exit 0; }

check() {
    local program needed_kib
    [ "$MIB" -ge 1024 ] || { echo "benches/memory.sh: fewer than 16384 blocks tell nothing" >&2; exit 2; }
    [ "$(id -u)" = 0 ] || skip "needs root"
    [ -e /dev/fuse ] || skip "needs /dev/fuse"
    [ -e /sys/class/zram-control/hot_add ] || skip "needs zram"
    for program in mkfs.xfs fio; do
        command -v "$program" >/dev/null || skip "needs $program"
    done
    needed_kib=$((MIB * 8 + (1 << 20)))
    [ "$(awk '$1 == "MemAvailable:" { print $2 }' /proc/meminfo)" -gt "$needed_kib" ] ||
        skip "needs $((needed_kib >> 20)) GiB of free memory for $BLOCKS blocks"
}

stop_daemon() {
    [ -n "$DAEMON" ] || return 0
    kill "$DAEMON" 2>/dev/null || true
    for _ in $(seq 600); do
        kill -0 "$DAEMON" 2>/dev/null || break
        sleep 0.1
    done
    kill -9 -- "-$DAEMON" 2>/dev/null || true
    wait "$DAEMON" 2>/dev/null || true
    DAEMON=
}

cleanup() {
    stop_daemon
    for part in mount cache store; do
        if mountpoint -q "$DIR/$part"; then umount "$DIR/$part" || umount -l "$DIR/$part"; fi
    done
    if [ -n "$ZRAM" ]; then echo "$ZRAM" >/sys/class/zram-control/hot_remove; fi
    rm -rf "$DIR"
}

prepare() {
    say "building"
    cargo build --release --quiet
    mkdir -p "$TARGET/bench"
    DIR=$(mktemp -d "${BENCH_DIR:-$TARGET/bench}/memory.XXXXXX")
    trap cleanup EXIT
    trap 'exit 130' INT TERM
    mkdir "$DIR/store" "$DIR/mount" "$DIR/cache"
    mount -t tmpfs -o size=64M tmpfs "$DIR/store"
    truncate -s "${MIB}M" "$DIR/store/disk.img"
    truncate -s "${MORE_MIB}M" "$DIR/store/more.img"
    ZRAM=$(cat /sys/class/zram-control/hot_add)
    echo "${DISK_MIB}M" >"/sys/block/zram$ZRAM/disksize"
    mkfs.xfs -q -K "/dev/zram$ZRAM"
    mount "/dev/zram$ZRAM" "$DIR/cache"
    sleep 3 # an image changed less than 2 s ago is not trusted yet
}

start_daemon() {
    setsid "$TARGET/release/flashside" mount "$DIR/store" "$DIR/mount" --cache "$DIR/cache@${LIMIT_MIB}M" \
        --foreground >"$DIR/daemon.log" 2>&1 &
    DAEMON=$!
    for _ in $(seq 6000); do
        mountpoint -q "$DIR/mount" && return
        kill -0 "$DAEMON" 2>/dev/null || break
        sleep 0.05
    done
    cat "$DIR/daemon.log" >&2
    exit 1
}

# The processes of the daemon: they are one group.
processes() { awk -v group="$DAEMON" '{ sub(/^.*\) /, "") } $3 == group && $1 !~ /[ZX]/ { split(FILENAME, part, "/"); print part[3] }' \
    /proc/[0-9]*/stat 2>/dev/null || true; }

memory_kib() {
    local process
    for process in $(processes); do cat "/proc/$process/status" 2>/dev/null; done |
        awk -v key="$1:" '$1 == key { sum += $2 } END { print sum + 0 }'
}

resident_bytes() {
    "$TARGET/release/flashside" status --json --mountpoint "$DIR/mount" |
        awk -F'[:,]' '/"resident_bytes"/ { sum += $2 } END { printf "%.0f\n", sum }'
}

# fetch IMAGE: all of it, as users do it.
fetch() { "$TARGET/release/flashside" warm "$DIR/mount/$1" >/dev/null; }

# read_blocks IMAGE MIB: one page of every block, eight requests in flight.
read_blocks() {
    fio --name=memory --filename="$DIR/mount/$1" --readonly --direct=1 --ioengine=libaio --iodepth=8 \
        --rw=read:120k --bs=8k --offset=60k --io_size="$(($2 * 64))k" --minimal </dev/null >/dev/null
}

# report STEP: waits for what is still on its way to flash, then one row.
report() {
    local rss peak blocks beyond
    sleep 3
    rss=$(memory_kib VmRSS) peak=$(memory_kib VmHWM) blocks=$(($(resident_bytes) >> 16))
    beyond=$(awk -v kib=$((rss - START_KIB)) -v n="$blocks" 'BEGIN { printf "%.2f", n ? kib * 1024 / n : 0 }')
    printf '%-28s %10d blocks  RSS %4d MiB  peak %4d MiB  %6s B per block  %5d s\n' \
        "$1" "$blocks" $((rss >> 10)) $((peak >> 10)) "$beyond" "$SECONDS"
    JSON+=("{\"step\":\"$1\",\"blocks\":$blocks,\"rss_kib\":$rss,\"rss_peak_kib\":$peak,$(
    )\"bytes_per_block\":$beyond}")
}

measure() {
    sleep 3 # the standby starts
    START_KIB=$(memory_kib VmRSS)
    SECONDS=0
    report "after the mount"
    say "fetching $BLOCKS blocks"
    fetch disk.img
    report "filled"
    read_blocks disk.img "$MIB"
    report "every block read again"
    fetch more.img
    report "an eighth replaced"
    read_blocks more.img "$MORE_MIB"
    report "and read again"
    stop_daemon
    start_daemon
    report "mounted again"
}

check
prepare
start_daemon
measure
IFS=,
printf '[%s]\n' "${JSON[*]}" >"$RESULTS"
echo "(64 KiB blocks; $(nproc) cores; $(uname -r); JSON in $RESULTS)"
