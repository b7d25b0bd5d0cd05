#!/usr/bin/env bash
# Measures what flashside costs and gives: the same fio jobs on a plain file and on the same file
# behind the mount, one after the other in every round, so that both meet the machine in the same
# mood. Prints a table of ratios; writes it as JSON to <target>/bench/results.json. Asserts nothing.
#
#   benches/run.sh [--quick] [--only NAME[,NAME…]]
#
# NAMEs: warm, cold, idle, memory. Needs root, /dev/fuse, a Rust toolchain and 4 GiB of disk; fio is
# installed if missing. FIO_ENGINE (libaio) and BENCH_DIR (the target directory) change the run.
#
# Touches only its own directory and mounts in it; both are gone at the end, whatever the end.

set -euo pipefail
cd "$(dirname "$0")/.."

ROUNDS=5 SECONDS_A_RUN=5 IMAGE_MIB=1024 IDLE_SECONDS=60 MEMORY_SECONDS=150
ONLY=warm,cold,idle,memory
while [ $# -gt 0 ]; do
    case "$1" in
        --quick) ROUNDS=3 SECONDS_A_RUN=2 IMAGE_MIB=256 IDLE_SECONDS=10 MEMORY_SECONDS=60 ;;
        --only) ONLY=${2:?--only needs names}; shift ;;
        *) echo "usage: benches/run.sh [--quick] [--only warm,cold,idle,memory]" >&2; exit 2 ;;
    esac
    shift
done

ENGINE=${FIO_ENGINE:-libaio}
TARGET=${CARGO_TARGET_DIR:-$PWD/target}
RESULTS=$TARGET/bench/results.json
DAEMON=
ROWS=() JSON=()

say() { printf '\033[2m%s\033[0m\n' "$*" >&2; }
die() { echo "benches/run.sh: $*" >&2; exit 1; }
wanted() { [[ ,$ONLY, == *,$1,* ]]; }

prepare() {
    [ "$(id -u)" = 0 ] || die "needs root"
    [ -e /dev/fuse ] || die "needs /dev/fuse"
    if ! command -v fio >/dev/null; then
        say "installing fio"
        apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y fio >/dev/null
    fi
    say "building"
    cargo build --release --quiet
    FLASHSIDE=$TARGET/release/flashside
    mkdir -p "$TARGET/bench"
    DIR=$(mktemp -d "${BENCH_DIR:-$TARGET/bench}/run.XXXXXX")
    trap cleanup EXIT
    trap 'exit 130' INT TERM
    mkdir "$DIR/store" "$DIR/mount" "$DIR/flash"
}

cleanup() {
    stop_daemon
    rm -rf "$DIR"
}

# start_daemon [FLAG…]: a fresh mount; the cache keeps what it has.
start_daemon() {
    mkdir -p "$DIR/flash/cache"
    "$FLASHSIDE" mount "$DIR/store" "$DIR/mount" --cache "$DIR/flash/cache" --foreground "$@" \
        >>"$DIR/daemon.log" 2>&1 &
    DAEMON=$!
    for _ in $(seq 600); do
        mountpoint -q "$DIR/mount" && return
        kill -0 "$DAEMON" 2>/dev/null || die "flashside ended: $(tail -n 3 "$DIR/daemon.log")"
        sleep 0.05
    done
    die "no mount after 30 s"
}

stop_daemon() {
    [ -n "$DAEMON" ] || return 0
    kill "$DAEMON" 2>/dev/null || true
    for _ in $(seq 600); do
        kill -0 "$DAEMON" 2>/dev/null || break
        sleep 0.05
    done
    kill -9 "$DAEMON" 2>/dev/null || true
    wait "$DAEMON" 2>/dev/null || true
    DAEMON=
    if mountpoint -q "$DIR/mount"; then umount -l "$DIR/mount"; fi
}

forget_cache() {
    stop_daemon
    rm -rf "$DIR/flash/cache"
}

# counter NAME [IMAGE]: one number of the status, summed over the images it speaks of.
counter() {
    local name=$1 what=(--mountpoint "$DIR/mount")
    shift
    [ $# = 0 ] || what=("$1")
    "$FLASHSIDE" status --json "${what[@]}" | grep -o "\"$name\": *[0-9]*" |
        awk -F: '{ sum += $2 } END { printf "%d\n", sum }'
}

# job FILE ARG…: one fio run; prints its bandwidth in KiB/s and its IOPS, reads and writes added.
job() {
    local file=$1
    shift
    fio --name=bench --filename="$file" --direct=1 --ioengine="$ENGINE" --output-format=terse \
        --terse-version=3 --size="${IMAGE_MIB}M" --randrepeat=0 "$@" </dev/null |
        awk -F';' '$1 == 3 { print $7 + $48, $8 + $49 }'
}

# spread: least, median and greatest of the numbers on stdin.
spread() { sort -g | awk '{ v[NR] = $1 } END { print v[1], v[int((NR + 1) / 2)], v[NR] }'; }

row() { ROWS+=("$1"); }
json() { JSON+=("$1"); }

# compare LABEL UNIT FIELD ARG…: the job on the plain file and on the mount, in turns.
compare() {
    local label=$1 unit=$2 field=$3 i native mount natives='' mounts='' ratios=''
    shift 3
    say "$label"
    for i in $(seq "$ROUNDS"); do
        native=$(job "$DIR/flash/plain" "$@" | cut -d' ' -f"$field")
        mount=$(job "$DIR/mount/disk.img" "$@" | cut -d' ' -f"$field")
        natives+="$native"$'\n' mounts+="$mount"$'\n'
        ratios+=$(awk -v a="$mount" -v b="$native" 'BEGIN { printf "%.3f", b ? a / b : 0 }')$'\n'
    done
    report_ratio "$label" "$unit" "$natives" "$mounts" "$ratios"
}

report_ratio() {
    local low mid high native mount
    native=$(printf %s "$3" | spread | cut -d' ' -f2)
    mount=$(printf %s "$4" | spread | cut -d' ' -f2)
    read -r low mid high < <(printf %s "$5" | spread)
    if [ "$2" = MB/s ]; then native=$(megabytes "$native") mount=$(megabytes "$mount"); fi
    row "$(printf '%-34s %10.0f %10.0f %-5s %5.2f %5.2f %5.2f' \
        "$1" "$native" "$mount" "$2" "$low" "$mid" "$high")"
    json "{\"job\":\"$1\",\"unit\":\"$2\",\"native\":$native,\"mount\":$mount,$(
    )\"ratio_min\":$low,\"ratio_median\":$mid,\"ratio_max\":$high}"
}

megabytes() { awk -v kib="$1" 'BEGIN { printf "%.1f", kib * 1024 / 1e6 }'; }

# Reads the image through the mount until all of it is resident: pages are answered before they are
# on flash, and a store image changed less than 2 s ago is not kept yet.
warm() {
    local resident
    for _ in 1 2 3 4 5; do
        say "warming $IMAGE_MIB MiB"
        job "$DIR/mount/disk.img" --rw=randread --bs=1M --iodepth=4 >/dev/null
        sleep 1
        resident=$(counter resident_bytes "$DIR/mount/disk.img")
        [ "$resident" -lt "$((IMAGE_MIB << 20))" ] || return 0
    done
    say "only $((resident >> 20)) MiB are resident"
}

measure_warm() {
    local timed=(--time_based --runtime="$SECONDS_A_RUN")
    start_daemon
    warm
    compare "warm random 4 KiB read, QD 32" IOPS 2 --rw=randread --bs=4k --iodepth=32 "${timed[@]}"
    compare "warm random 4 KiB read, QD 1" IOPS 2 --rw=randread --bs=4k --iodepth=1 "${timed[@]}"
    compare "warm random 4 KiB write, QD 32" IOPS 2 --rw=randwrite --bs=4k --iodepth=32 "${timed[@]}"
    compare "warm sequential 1 MiB read, QD 4" MB/s 1 --rw=read --bs=1M --iodepth=4 "${timed[@]}"
    forget_cache
}

measure_cold() {
    local i kib bytes speeds='' shares='' low mid high share
    say "cold sequential read through a 2 ms store"
    for i in $(seq "$ROUNDS"); do
        forget_cache
        start_daemon --simulate-latency 2ms
        kib=$(job "$DIR/mount/disk.img" --rw=read --bs=1M --iodepth=1 | cut -d' ' -f1)
        bytes=$(counter store_read_bytes "$DIR/mount/disk.img")
        speeds+=$(megabytes "$kib")$'\n'
        shares+=$(awk -v a="$bytes" -v b="$((IMAGE_MIB << 20))" 'BEGIN { printf "%.3f", a / b }')$'\n'
    done
    forget_cache
    read -r low mid high < <(printf %s "$speeds" | spread)
    share=$(printf %s "$shares" | spread | cut -d' ' -f3)
    row "$(printf 'cold sequential read, QD 1, 2 ms store: %.0f MB/s (%.0f to %.0f), %s of the bytes' \
        "$mid" "$low" "$high" "$share")"
    json "{\"job\":\"cold sequential read\",\"mb_per_second_min\":$low,\"mb_per_second_median\":$mid,$(
    )\"mb_per_second_max\":$high,\"store_bytes_share_max\":$share}"
}

cpu_ticks() { awk '{ print $14 + $15 }' "/proc/$DAEMON/stat"; }
memory_kib() { awk -v key="$1:" '$1 == key { print $2 }' "/proc/$DAEMON/status"; }

measure_idle() {
    local i fd fds=() ticks requests lines percent
    say "idle with 100 images open, $IDLE_SECONDS s"
    mkdir -p "$DIR/store/idle"
    for i in $(seq 100); do head -c 1M /dev/urandom >"$DIR/store/idle/$i.img"; done
    start_daemon
    for i in $(seq 100); do
        exec {fd}<"$DIR/mount/idle/$i.img"
        head -c 64K <&"$fd" >/dev/null
        fds+=("$fd")
    done
    sleep 10
    requests=$(counter store_read_requests) lines=$(wc -l <"$DIR/daemon.log") ticks=$(cpu_ticks)
    sleep "$IDLE_SECONDS"
    ticks=$(($(cpu_ticks) - ticks)) lines=$(($(wc -l <"$DIR/daemon.log") - lines))
    requests=$(($(counter store_read_requests) - requests))
    for fd in "${fds[@]}"; do exec {fd}<&-; done
    percent=$(awk -v t="$ticks" -v hz="$(getconf CLK_TCK)" -v s="$IDLE_SECONDS" \
        'BEGIN { printf "%.2f", 100 * t / hz / s }')
    forget_cache
    row "$(printf 'idle, 100 images open: %s %% of a core, %s store reads, %s log lines in %s s' \
        "$percent" "$requests" "$lines" "$IDLE_SECONDS")"
    json "{\"job\":\"idle\",\"cpu_percent\":$percent,\"store_reads\":$requests,$(
    )\"log_lines\":$lines,\"seconds\":$IDLE_SECONDS}"
}

measure_memory() {
    local i readers=() before during peak threads
    say "memory with 512 readers and a 2 s store, $MEMORY_SECONDS s"
    mkdir -p "$DIR/store/many"
    for i in $(seq 512); do truncate -s 64M "$DIR/store/many/$i.img"; done
    start_daemon --simulate-latency 2s
    before=$(memory_kib VmRSS)
    for i in $(seq 512); do
        dd if="$DIR/mount/many/$i.img" of=/dev/null bs=1M status=none 2>/dev/null &
        readers+=($!)
    done
    sleep "$MEMORY_SECONDS"
    during=$(memory_kib VmRSS) peak=$(memory_kib VmHWM) threads=$(memory_kib Threads)
    kill -9 "${readers[@]}" 2>/dev/null || true
    wait "${readers[@]}" 2>/dev/null || true
    forget_cache
    rm -rf "$DIR/store/many"
    row "$(printf 'memory, 512 readers, 2 s store: %d MiB after the mount, %d MiB then, peak %d MiB, %d threads' \
        $((before / 1024)) $((during / 1024)) $((peak / 1024)) "$threads")"
    json "{\"job\":\"memory\",\"rss_start_kib\":$before,\"rss_kib\":$during,$(
    )\"rss_peak_kib\":$peak,\"threads\":$threads}"
}

make_images() {
    say "writing ${IMAGE_MIB} MiB twice: the store's image and the plain file"
    dd if=/dev/urandom of="$DIR/store/disk.img" bs=1M count="$IMAGE_MIB" status=none
    cp "$DIR/store/disk.img" "$DIR/flash/plain"
    sync -f "$DIR"
    sleep 2
}

print_results() {
    local IFS=,
    printf '[%s]\n' "${JSON[*]}" >"$RESULTS"
    printf '\n%-34s %10s %10s %-5s %5s %5s %5s\n' job plain mount '' min median max
    printf '%s\n' "${ROWS[@]}"
    echo "(ratio of the mount to the plain file; $ROUNDS rounds; $(nproc) cores; $(uname -r); JSON in $RESULTS)"
}

prepare
make_images
if wanted warm; then measure_warm; fi
if wanted cold; then measure_cold; fi
if wanted idle; then measure_idle; fi
if wanted memory; then measure_memory; fi
print_results
