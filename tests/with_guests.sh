# What the tests with real guests share: when they are skipped, what they need, how they end. Sourced, not run,
# from the top of the repository; sets `flashside`.
#
# Touches: installed packages, the guest cache.

. mountscripts/packages.sh
. mountscripts/guest.sh
. mountscripts/trial.sh

flashside=${FLASHSIDE:-${CARGO_TARGET_DIR:-target}/debug/flashside}

skip() {
    echo "skipped: $*"
    exit 0
}

fail() {
    echo "FAILED: $*"
    [ -z "$trial_dir" ] || tail -n 10 "$trial_dir/daemon.log"
    exit 1
}

ok() { echo "ok: $* ($SECONDS s)"; }

# open_trial CLEAN_UP [QEMU_PACKAGE…]: ends the script where no guest can run; makes the guest and an empty
# trial. The function CLEAN_UP runs when the script ends, however that is.
open_trial() {
    local why log
    [ "$(id -u)" = 0 ] || skip "mounting needs root"
    [ -c /dev/fuse ] || skip "/dev/fuse is missing"
    ! why=$(guest_unsupported) || skip "$why"
    [ -x "$flashside" ] || fail "$flashside is missing; build it first (cargo build)"
    # shellcheck disable=SC2064 # the name, now
    trap "trap '' INT TERM HUP; $1" EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    log=$(mktemp)
    make_guest "${@:2}" >"$log" 2>&1 || { tail -n 20 "$log"; rm -f "$log"; fail "making the guest"; }
    rm -f "$log"
    trial_open || fail "cannot make a temporary directory"
}

make_guest() {
    packages_install fuse3 && guest_install_packages && packages_install_qemu "$@" &&
        guest_fetch_kernel && guest_build_root
}
