#!/bin/bash
# Everything that can be tested, from a clean checkout: ./tests/run.sh
#
# Installs what is missing (Debian packages, and two test suites through cargo), then runs each step with a
# deadline and stops at the first that fails. Ends with a table and a line "N passed, 0 failed".
# As another user than root, or without /dev/fuse, the tests that need them say `skipped: why`.
#
# Touches: installed packages, cargo's target and bin directories, ~/.cache/flashside, temporary directories.
# One build profile (dev) serves clippy, the tests and the binary that the suites and the guest use.

set -u
cd "$(dirname "$0")/.." || exit 1
export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-auto} DEBIAN_FRONTEND=noninteractive
export PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
target=${CARGO_TARGET_DIR:-target}
FLASHSIDE=$(realpath -m "$target")/debug/flashside
export FLASHSIDE
export FSX_OPS=${FSX_OPS:-20000} FSX_SEEDS=${FSX_SEEDS:-1 2 3 4 5}

rows=() passed=0 step_pid=''

# run TITLE SECONDS COMMAND…: one step; on failure prints the table and ends the script.
run() {
    local title=$1 limit=$2 begin=$SECONDS status=0
    shift 2
    printf '\n=== %s (at most %d s)\n' "$title" "$limit"
    # In the background, so that a signal to this script is not kept waiting.
    timeout -k 20 "$limit" "$@" </dev/null &
    step_pid=$!
    wait $step_pid || status=$?
    step_pid=''
    finish_step "$title" $status $((SECONDS - begin))
}

finish_step() {
    case $2 in
    0)
        rows+=("passed|$3|$1")
        passed=$((passed + 1))
        return
        ;;
    124 | 137) rows+=("timeout|$3|$1") ;;
    *) rows+=("failed|$3|$1") ;;
    esac
    print_table
    echo "failed at: $1"
    echo "$passed passed, 1 failed"
    exit 1
}

print_table() {
    local row
    printf '\n%-8s %8s  %s\n' result seconds step
    for row in "${rows[@]}"; do
        IFS='|' read -r result seconds title <<<"$row"
        printf '%-8s %8d  %s\n' "$result" "$seconds" "$title"
    done
    printf '%-8s %8d  %s\n\n' '' $SECONDS 'in all'
}

clean_up() {
    [ -z "$step_pid" ] || { kill -TERM "$step_pid" && wait "$step_pid"; } 2>/dev/null
}

# The functions below run as steps of their own: "$0" --step NAME.
install_packages() {
    local packages=(fuse3 fio attr acl xfsprogs e2fsprogs procps mount) absent
    # qemu-storage-daemon, for the power cuts, is in the one or the other, depending on the release.
    local qemu=(qemu-utils qemu-system-common)
    . mountscripts/packages.sh
    . mountscripts/guest.sh
    command -v cc >/dev/null || packages+=(gcc libc6-dev)
    guest_unsupported >/dev/null || packages+=("${GUEST_PACKAGES[@]}") qemu+=("${GUEST_QEMU_PACKAGES[@]}")
    tests/promtool.sh || return 1
    if [ "$(id -u)" != 0 ]; then
        absent=$(packages_missing "${packages[@]}" "${qemu[@]}" | xargs)
        [ -z "$absent" ] || echo "skipped: installing $absent needs root"
        return 0
    fi
    packages_install "${packages[@]}" && packages_install_qemu "${qemu[@]}"
}

install_suites() {
    cargo_install fsx 0.3.2 && cargo_install pjdfstest 0.2.2
}

# The installed version is asked first: cargo would look it up on the network.
cargo_install() {
    cargo install --list | grep -q "^$1 v$2:" || cargo install --locked "$1" --version "$2"
}

if [ "${1:-}" = --step ]; then
    "$2"
    exit
fi
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

run "install packages" 900 "$0" --step install_packages
run "install fsx and pjdfstest" 900 "$0" --step install_suites
run "formatting" 60 cargo fmt --all --check
run "clippy" 900 cargo clippy --locked --all-targets -- -D warnings
run "build" 900 cargo build --locked
run "cargo test: units, models, mounts, kill -9, power cuts" 1800 cargo test --locked
run "mount(8), fstab, installation" 120 tests/fstab.sh
run "a real systemd" 240 tests/systemd.sh
run "suites: fsx, pjdfstest, fio" 1800 tests/suites.sh
run "a real guest" 420 tests/guest.sh
run "a real guest through kills and upgrades" 420 env "KILLS=${KILLS:-20}" "UPGRADES=${UPGRADES:-5}" tests/guest-takeover.sh
# Under load requests arrive in another order, and readahead brings a MiB more or less: 105 here, 102 in the long run.
run "real guests over one base" 900 env "GUESTS=${GUESTS:-3}" RATIO_MAX_PERCENT=105 tests/golden.sh
print_table
echo "$passed passed, 0 failed"
