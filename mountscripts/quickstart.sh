#!/bin/bash
# Shows flashside at work on a real guest: ./mountscripts/quickstart.sh [--keep]
#
# On a Debian machine with a Rust toolchain, as root: installs what is missing, builds, makes a small Debian
# guest (kept in ~/.cache/flashside), mounts its disk through a store with 2 ms latency, boots it cold, warm, and
# after a kill -9 of the daemon, and prints what each boot asked of the store.
#
# Touches: installed packages, the guest cache, one temporary directory; everything but the first two is gone
# afterwards, unless --keep leaves the mount to explore.
# In the cold and the warm boot the store serves every page once and then answers EIO, so the warm boot proves
# that nothing is fetched twice. After kill -9 the store is plain: what was in doubt may be fetched again.

set -u
cd "$(dirname "$0")/.." || exit 1
. mountscripts/step.sh
. mountscripts/packages.sh
. mountscripts/guest.sh
. mountscripts/trial.sh

keep=no
flashside=${CARGO_TARGET_DIR:-target}/release/flashside
cold_read_bytes_min=$((20 << 20)) # Less, and the guest did not read its disk through the mount.
rows=()

refuse() {
    echo "quickstart: $*" >&2
    exit 1
}

check_machine() {
    local why
    [ "$(id -u)" = 0 ] || refuse "it mounts and installs packages, which needs root; run it with sudo."
    [ -c /dev/fuse ] || refuse "/dev/fuse is missing; load the fuse module (modprobe fuse), or give the container the device."
    ! why=$(guest_unsupported) || refuse "$why."
    command -v cargo >/dev/null || refuse "cargo is missing; install a Rust toolchain first."
}

install_packages() {
    local compiler=()
    command -v cc >/dev/null || compiler=(gcc libc6-dev)
    packages_install fuse3 "${compiler[@]}" && guest_install_packages
}

make_disk() { guest_make_disk "$trial_dir/store/disk.img"; }

# In a step's subshell: the milliseconds go through a file.
boot() { guest_boot "$trial_dir/mount/disk.img" "$trial_dir/console" flashside.work=start,ready >"$trial_dir/ready_ms"; }

counters() {
    trial_image_counters disk.img store_read_bytes store_read_requests store_write_bytes read_hits reads
}

# measured_boot NAME: boots, and adds a row to the table.
measured_boot() {
    local before after
    read -ra before < <(counters)
    step "Boot: $1" $((GUEST_BOOT_S_MAX * 3)) boot
    read -ra after < <(counters)
    rows+=("$1 $(cat "$trial_dir/ready_ms")$(differences)")
}

differences() {
    local n
    for n in 0 1 2 3 4; do printf ' %s' $((after[n] - before[n])); done
}

mount_again() {
    trial_kill || refuse "the daemon (process $trial_pid) did not go away after SIGKILL."
    trial_drop_mount || refuse "the dead mount cannot be taken away."
    trial_mount --simulate-latency 2ms || refuse "the second mount failed."
}

print_table() {
    printf '\n%-14s %10s %14s %14s %14s %8s\n' boot READY 'store reads' 'read requests' 'store writes' hits
    printf '%s\n' "${rows[@]}" | awk '{ printf "%-14s %8.1f s %10.1f MiB %14d %10.1f MiB %6.1f %%\n",
        $1, $2 / 1000, $3 / 1048576, $4, $5 / 1048576, ($7 > 0 ? 100 * $6 / $7 : 0) }'
    echo
    echo "warm: the store answered EIO for every page it had already served, and the guest still booted."
}

check_cold_boot() {
    local cold
    read -ra cold <<<"${rows[0]}"
    [ "${cold[2]}" -ge $cold_read_bytes_min ] ||
        refuse "the cold boot read only ${cold[2]} bytes from the store: the guest did not boot from the mount."
}

print_next() {
    local disk=$trial_dir/mount/disk.img
    cat <<NEXT

The mount stays. To look around:
  $flashside status
  $flashside status $disk --json
  getfattr -d -m user.flashside $disk     # package attr
  dd if=$disk of=/dev/null bs=1M iflag=direct count=200
When done:
  umount $trial_dir/mount && rm -rf $trial_dir
NEXT
    ! trial_mounted flash || echo "  (before rm: umount $trial_dir/flash)"
}

clean_up() {
    trap '' INT TERM HUP
    step_end
    [ $keep = kept ] || trial_close
}

case "${1:-}" in
'') ;;
--keep) keep=yes ;;
*) refuse "the only option is --keep, which leaves the mount to explore." ;;
esac
check_machine
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

step "Install what is missing" 900 install_packages
step "Build flashside" 1800 cargo build --release --locked
guest_has kernel || step "Fetch the guest's kernel" 600 guest_fetch_kernel
guest_has root || step "Make the guest's root filesystem (once, 1-2 minutes)" 1500 guest_build_root
trial_open || refuse "cannot make a temporary directory for store, cache and mount."
step "Write the guest's disk into the store" 300 make_disk
trial_mount --simulate-latency 2ms --simulate-once "$trial_dir/served" || refuse "the mount failed."
measured_boot cold
measured_boot warm
mount_again
measured_boot after-kill-9
print_table
check_cold_boot
[ $keep = no ] || { print_next && keep=kept; }
