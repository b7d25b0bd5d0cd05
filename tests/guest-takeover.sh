#!/bin/bash
# A real guest does not notice that the daemon under its disks dies: ./tests/guest-takeover.sh
#
# Boots the small guest of mountscripts/guest.sh from a mount, with a second disk there that it writes numbered
# sectors to, flushed batch by batch. Meanwhile the process that serves the mount is killed with -9 KILLS times
# and replaced by `flashside upgrade` UPGRADES times; each time the guest must get on with its batches. In the end the
# guest checks every sector and says what its kernel logged; the second disk's sum must be the store's.
#
# Needs root, /dev/fuse and Debian; prints `skipped: why` where they are missing. FLASHSIDE names the binary,
# KILLS (20) and UPGRADES (5) how often.
# Touches: installed packages, the guest cache, one temporary directory, gone afterwards.

set -u
cd "$(dirname "$0")/.." || exit 1
. tests/with_guests.sh

kills=${KILLS:-20} upgrades=${UPGRADES:-5}
event_s_max=60      # from a kill to the guest's next batch but one
numbers_size=32M    # of the second disk; guest-init.sh knows its sectors
console=''

clean_up() {
    guest_stop
    trial_close
}

serving_pid() { trial_status --mountpoint "$trial_dir/mount" 2>/dev/null | trial_field serving_pid; }

batches() { guest_lines "$console" WROTE | sort -n | tail -n 1; }

boot() {
    local drive space=1
    for drive in mount/numbers.img control.img; do
        space=$((space + 1))
        GUEST_DRIVES+=(-drive "file=$trial_dir/$drive,if=none,id=disk$space,format=raw,cache=none,aio=native"
            -device "nvme-ns,bus=nvme,drive=disk$space,nsid=$space")
    done
    guest_start "$trial_dir/mount/disk.img" "$console" flashside.work=ready,number,log
    guest_await "$console" "WROTE 2" "$GUEST_BOOT_S_MAX" || fail "booting"
}

# event COMMAND…: does it; then another process serves and the guest has flushed a batch that began after that.
event() {
    local before now written end=$((SECONDS + event_s_max))
    before=$(serving_pid)
    [ -n "$before" ] || fail "status names no serving process"
    "$@" "$before" || fail "$*"
    until now=$(serving_pid) && [ -n "$now" ] && [ "$now" != "$before" ]; do
        [ $SECONDS -lt $end ] || fail "nobody serves $event_s_max s after: $*"
        sleep 0.05
    done
    written=$(batches)
    until [ "$(batches)" -ge $((written + 2)) ]; do
        [ $SECONDS -lt $end ] || fail "the guest does not get on after: $*; $(guest_explain "$console" WROTE)"
        sleep 0.05
    done
    sleep "0.$((RANDOM % 4))"
}

kill_it() { kill -9 "$1"; }

upgrade() { timeout 60 "$flashside" upgrade "$trial_dir/mount" >>"$trial_dir/daemon.log" 2>&1; }

events_come() {
    local number upgraded=0
    for number in $(seq $((kills + upgrades))); do
        if [ $((number * upgrades / (kills + upgrades))) -gt $upgraded ]; then
            upgraded=$((upgraded + 1))
            event upgrade
        else
            event kill_it
        fi
    done
    trial_status --mountpoint "$trial_dir/mount" >"$trial_dir/status" || fail "status"
    ok "through $kills kills and $upgrades upgrades the guest wrote $(batches) batches; status counts" \
        "$(trial_field restarts <"$trial_dir/status") restarts, $(trial_field resent_requests <"$trial_dir/status") resent requests"
}

guest_checks() {
    printf stop | dd of="$trial_dir/control.img" conv=notrunc status=none
    guest_await "$console" CHECKED 120 || fail "the guest's check"
    guest_await "$console" DONE 60 && guest_await_off || fail "power off"
    ok "the guest read back all $(guest_lines "$console" CHECKED | cut -d ' ' -f 1) sectors that it wrote"
}

# Its disks were found; nothing else was said of them.
kernel_log_is_clean() {
    local errors
    tr -d '\r' <"$console" | sed -n 's/^FLASHSIDE LOG //p' >"$trial_dir/kernel.log"
    grep -q nvme "$trial_dir/kernel.log" || fail "the guest's kernel log does not name its disks"
    errors=$(grep -iE 'error|hung|blocked for|timeout|abort|reset' "$trial_dir/kernel.log")
    sed 's/^/    guest: /' "$trial_dir/kernel.log"
    [ -z "$errors" ] || fail "the guest's kernel logged errors: $errors"
    ok "the guest's kernel logged no error"
}

store_is_right() {
    trial_unmount || fail "no clean unmount within 60 s"
    [ "$(sha256sum <"$trial_dir/store/numbers.img" | cut -c 1-64)" = "$(guest_lines "$console" CHECKED | cut -d ' ' -f 2)" ] ||
        fail "the store's file is not what the guest read"
    e2fsck -fn "$trial_dir/store/disk.img" >"$trial_dir/fsck" 2>&1 || { cat "$trial_dir/fsck"; fail "e2fsck of the store's file"; }
    ok "the store's files are what the guest read, and a sound filesystem"
}

open_trial clean_up
console=$trial_dir/console
guest_make_disk "$trial_dir/store/disk.img" >/dev/null || fail "writing the guest's disk"
truncate -s $numbers_size "$trial_dir/store/numbers.img" && truncate -s 1M "$trial_dir/control.img" || fail "making disks"
# A store that takes its time, so that the guest nearly always waits for it when the server is killed.
trial_mount --simulate-latency 30ms || fail "mounting"
[ -n "$(serving_pid)" ] || fail "no process serves the mount for a keeper"
boot
ok "the guest is up and writes"
events_come
guest_checks
kernel_log_is_clean
store_is_right
