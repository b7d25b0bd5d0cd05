#!/bin/bash
# A real guest's flushed files survive the death of the daemon: ./tests/guest.sh
#
# Boots the small guest of mountscripts/guest.sh from a mount. It writes numbered files, flushes each and then
# says its sum on the console: from that line on the file is promised. The daemon is killed with -9, once while
# the guest is off and once while it writes; the next boot says what the files hold, and this script compares.
# At the end the store's file alone must be a sound filesystem and equal to what the mount shows.
#
# Needs root, /dev/fuse and Debian; prints `skipped: why` where they are missing. FLASHSIDE names the binary.
# Touches: installed packages, the guest cache, one temporary directory, gone afterwards.

set -u
cd "$(dirname "$0")/.." || exit 1
. tests/with_guests.sh

files=24         # in the first series
killed_after=10  # files of the second series

clean_up() {
    guest_stop
    trial_close
}

boot() { guest_boot "$trial_dir/mount/disk.img" "$trial_dir/$1" "${@:2}" >/dev/null || fail "boot for $1"; }

promise() { guest_lines "$trial_dir/$1" KEPT >>"$trial_dir/promised"; }

# check_promises CONSOLE: every file that was promised is there with its sum.
check_promises() {
    local lost
    lost=$(comm -23 <(sort "$trial_dir/promised") <(guest_lines "$trial_dir/$1" HAS))
    [ -z "$lost" ] || fail "these flushed files are lost or changed: $(echo "$lost" | cut -d ' ' -f 1 | xargs)"
}

promised_count() { wc -l <"$trial_dir/promised"; }

kill_and_mount_again() {
    trial_kill || fail "the daemon did not go away after SIGKILL"
    guest_stop
    trial_drop_mount && trial_mount || fail "no mount after kill -9"
}

first_series_is_written() {
    boot write-a flashside.work=ready,write flashside.series=a flashside.count=$files
    promise write-a
    [ "$(promised_count)" = $files ] || fail "the guest flushed $(promised_count) files, not $files"
    ok "a guest booted from the mount wrote and flushed $files files"
}

# In one boot: says what it has, then writes on until the daemon dies under it.
first_series_survives_and_second_is_cut() {
    local console=$trial_dir/write-b
    guest_start "$trial_dir/mount/disk.img" "$console" \
        flashside.work=ready,verify,write flashside.series=b flashside.count=1000
    guest_await "$console" VERIFIED "$GUEST_BOOT_S_MAX" || fail "boot after kill -9"
    check_promises write-b
    ok "after kill -9 of the daemon all $files flushed files read back"
    guest_await "$console" "KEPT b-$killed_after " 120 || fail "writing the second series"
    kill_and_mount_again
    promise write-b
}

second_series_survives() {
    boot verify flashside.work=ready,verify
    check_promises verify
    ok "after kill -9 under the guest's writes all $(promised_count) flushed files read back"
}

mount_equals_store() {
    # cmp itself would read in small pieces, each of them a request to the daemon.
    timeout 120 dd if="$trial_dir/mount/disk.img" bs=1M status=none | cmp - "$trial_dir/store/disk.img" ||
        fail "mount and store differ"
    trial_unmount || fail "no clean unmount within 60 s"
    e2fsck -fn "$trial_dir/store/disk.img" >"$trial_dir/fsck" 2>&1 || { cat "$trial_dir/fsck"; fail "e2fsck of the store's file"; }
    ok "the mount equals the store's file, which alone is a sound filesystem"
}

open_trial clean_up
guest_make_disk "$trial_dir/store/disk.img" >/dev/null || fail "writing the guest's disk"
trial_mount || fail "mounting"
ok "the guest is made and its disk is mounted"
first_series_is_written
kill_and_mount_again
first_series_survives_and_second_is_cut
second_series_survives
mount_equals_store
