#!/bin/bash
# Many real guests over one base image fetch it once: ./tests/golden.sh
#
# Each guest has a qcow2 overlay of its own, made through the mount, over one base image there. One guest boots
# alone, then GUESTS of them boot at once, each time from an empty cache, and write files of their own. At last
# the base is declared immutable and warmed, and they boot again: the kernel reads the base, and neither the
# store nor the daemon is asked for it. What a guest wrote is in its own overlay; the base's bytes never change.
#
# One boot's unique bytes are the blocks that one boot alone touches, each counted once: what a boot without
# readahead brings onto flash. All other boots are with readahead, as it is by default.
#
# Needs root, /dev/fuse and Debian; prints `skipped: why` where they are missing. FLASHSIDE names the binary,
# GUESTS how many guests (8), FLASHSIDE_GUEST_MEMORY_MIB the memory of each (192), RATIO_MAX_PERCENT how much of
# one boot's unique bytes all of them may fetch (102).
# Touches: installed packages, the guest cache, one temporary directory, gone afterwards.

set -u
cd "$(dirname "$0")/.." || exit 1
FLASHSIDE_GUEST_MEMORY_MIB=${FLASHSIDE_GUEST_MEMORY_MIB:-192}
. tests/with_guests.sh
. mountscripts/herd.sh

guests=${GUESTS:-8}
files=6                             # each guest writes in its first boot
ratio_max_percent=${RATIO_MAX_PERCENT:-102} # of one boot's unique bytes
unique_bytes_min=$((20 << 20))      # Less, and the guest did not read its disk through the mount.
herd_s_max=$((GUEST_BOOT_S_MAX + 60 * guests))
names=()
for n in $(seq "$guests"); do names+=("guest$n"); done
rows=() unique_bytes='' plane=''

clean_up() {
    herd_stop
    trial_close
}

# counters: of the base, which has been used: store_bytes, requests, reads, on_flash.
counters() {
    trial_status "$trial_dir/mount/$HERD_BASE" >"$trial_dir/counters" 2>&1 || fail "status: $(cat "$trial_dir/counters")"
    read -r store_bytes requests reads on_flash < <(trial_image_counters $HERD_BASE \
        store_read_bytes store_read_requests reads resident_bytes)
}

base_status() { trial_status "$trial_dir/mount/$HERD_BASE" 2>/dev/null; }

# boot WORK NAME…: from power on to power off of all of them; sets ready_s (until the last one was ready) and
# plane, the base's while they run.
boot() {
    local name begin=$SECONDS work=$1
    shift
    for name; do
        herd_start "$name" "flashside.work=start,ready,$work" "flashside.series=$name" "flashside.count=$files"
    done
    see_plane $#
    herd_await READY "$herd_s_max" || fail "booting $*"
    ready_s=$((SECONDS - begin))
    herd_await DONE "$herd_s_max" || fail "the work of $*"
    herd_await_off || fail "power off of $*"
}

# see_plane COUNT: waits until so many guests have the base open, which they do as soon as QEMU has started.
see_plane() {
    local end=$((SECONDS + 60))
    until [ "$(base_status | trial_field handles)" -ge "$1" ] 2>/dev/null; do
        [ $SECONDS -lt $end ] || fail "after 60 s not all of $1 guests have the base open: $(base_status)"
        sleep 0.5
    done
    base_status >"$trial_dir/base-open"
    plane=$(trial_texts plane <"$trial_dir/base-open" | xargs)
}

row() { rows+=("$1|$2|$3|$4|$plane|$ready_s"); }

# one_boot TITLE [OPTION…]: one guest alone from an empty cache, mounted with those options.
one_boot() {
    trial_empty_cache && trial_mount "${@:2}" && herd_make_overlay alone || fail "mounting for one guest"
    boot write alone
    counters
    trial_unmount && rm "$trial_dir/store/overlays/alone.qcow2" || fail "no clean unmount within 60 s"
    row "$1" 1 "$store_bytes" "$requests"
}

one_boot_is_measured() {
    echo 'readahead = "0"' >"$trial_dir/no-readahead.toml"
    one_boot "alone, no readahead" --config "$trial_dir/no-readahead.toml"
    unique_bytes=$on_flash
    [ "$unique_bytes" -ge $unique_bytes_min ] ||
        fail "one boot brought only $unique_bytes bytes onto flash: it did not read the base through the mount"
    nothing_was_fetched_twice
    one_boot alone
    ok "one guest alone touched $unique_bytes bytes of the base and fetched $store_bytes"
}

# To a hundredth: a read that comes while a block is being filled may fetch a few of its pages again.
nothing_was_fetched_twice() {
    [ $((store_bytes * 100)) -le $((on_flash * 101)) ] || fail "the store was read for $store_bytes bytes to have $on_flash on flash"
}

herd_fetches_the_base_once() {
    local name
    trial_empty_cache && trial_mount || fail "mounting for $guests guests"
    for name in "${names[@]}"; do
        herd_make_overlay "$name" || fail "making the overlay of $name"
    done
    boot write "${names[@]}"
    counters
    row "at once" "$guests" "$store_bytes" "$requests"
    nothing_was_fetched_twice
    [ $((store_bytes * 100)) -le $((unique_bytes * ratio_max_percent)) ] ||
        fail "$guests guests read $store_bytes bytes of the base from the store, one alone touches $unique_bytes"
    for name in "${names[@]}"; do
        guest_lines "$(herd_console "$name")" KEPT >"$trial_dir/kept-$name"
        [ "$(wc -l <"$trial_dir/kept-$name")" = $files ] || fail "$name did not write its $files files"
    done
    ok "$guests guests at once fetched $store_bytes bytes of the base"
}

# declare_immutable: succeeds if the base is immutable and wholly on flash now; else says why not.
declare_immutable() {
    local image=$trial_dir/mount/$HERD_BASE command
    for command in set warm; do
        "$flashside" $command --help >/dev/null 2>&1 ||
            { echo "skipped: the immutable base: this flashside has no command \`$command\`"; return 1; }
    done
    timeout 60 "$flashside" set "$image" immutable=1 || fail "set immutable=1"
    timeout 300 "$flashside" warm "$image" >"$trial_dir/warm" 2>&1 ||
        { cat "$trial_dir/warm"; fail "warming the base"; }
}

# The second boots go on where the first ended, whichever plane the base is on.
herd_boots_again() {
    local immutable=no store_before requests_before reads_before
    ! declare_immutable || immutable=yes
    counters
    store_before=$store_bytes requests_before=$requests reads_before=$reads
    boot verify "${names[@]}"
    counters
    row "again, immutable: $immutable" "$guests" $((store_bytes - store_before)) $((requests - requests_before))
    [ $immutable = no ] || base_was_on_passthrough $((store_bytes - store_before)) $((reads - reads_before))
}

# base_was_on_passthrough STORE_BYTES READS: what the second boots asked of store and daemon.
base_was_on_passthrough() {
    local reason
    reason=$(trial_texts reason <"$trial_dir/base-open" | xargs)
    [ "$1" = 0 ] || fail "the base is wholly on flash, and yet the store was asked for $1 bytes of it"
    if [ "$reason" = "the system does not allow passthrough" ]; then
        echo "skipped: passthrough: $reason"
        return
    fi
    [ "$plane" = passthrough ] || fail "the immutable base was on plane $plane: $reason"
    [ "$2" = 0 ] || fail "the base was on passthrough, and yet the daemon saw $2 reads of it"
    ok "the immutable base is on passthrough: $guests guests booted, no byte from the store, no read by the daemon"
}

writes_are_in_their_own_overlays() {
    local name sum
    for name in "${names[@]}"; do
        guest_lines "$(herd_console "$name")" HAS | cmp -s - "$trial_dir/kept-$name" ||
            fail "$name does not hold what it wrote: $(guest_lines "$(herd_console "$name")" HAS)"
    done
    trial_unmount || fail "no clean unmount within 60 s"
    for name in "${names[@]}"; do
        timeout 60 qemu-img check -q "$trial_dir/store/overlays/$name.qcow2" || fail "qemu-img check of $name in the store"
    done
    sum=$(base_sum)
    [ "$sum" = "$base_sum_before" ] || fail "the base was $base_sum_before, and is $sum"
    ok "each guest has its own files and no other's, and the base is what it was"
}

base_sum() { sha256sum <"$trial_dir/store/$HERD_BASE" | cut -c 1-64; }

print_table() {
    printf '\n%-22s %6s %12s %9s %7s  %-12s %8s\n' boot guests 'store bytes' requests ratio plane READY
    printf '%s\n' "${rows[@]}" | awk -F '|' -v unique="$unique_bytes" '{
        printf "%-22s %6d %12d %9d %7.3f  %-12s %6d s\n", $1, $2, $3, $4, $3 / unique, $5, $6 }'
    echo "ratio: to one boot's unique bytes, $unique_bytes"
}

open_trial clean_up "${HERD_PACKAGES[@]}"
herd_make_base >/dev/null || fail "writing the base"
base_sum_before=$(base_sum)
ok "the guest is made and its disk is the base"
one_boot_is_measured
herd_fetches_the_base_once
herd_boots_again
writes_are_in_their_own_overlays
print_table
