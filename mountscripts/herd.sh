# A herd: several small guests at once, each on a qcow2 overlay of its own over one base image of a trial.
# Sourced, not run; needs packages.sh, guest.sh and trial.sh sourced before, and herd_stop in the EXIT trap.
#
# Touches: in the trial's directory golden/base.img and overlays/ of the store, and the consoles.
# Invariant: herd_pids holds the processes that this script started and has not waited for yet.

HERD_PACKAGES=("${GUEST_QEMU_PACKAGES[@]}" qemu-utils)
HERD_BASE=golden/base.img # below the store and below the mount

declare -A herd_pids=()

# herd_make_base: the base image, in the store.
herd_make_base() {
    mkdir "$trial_dir/store/golden" "$trial_dir/store/overlays" &&
        guest_make_disk "$trial_dir/store/$HERD_BASE"
}

# herd_disk NAME: where that guest's overlay is.
herd_disk() { echo "$trial_dir/mount/overlays/$1.qcow2"; }

# herd_make_overlay NAME: makes the guest's overlay through the mount, as somebody who starts a new machine.
herd_make_overlay() {
    timeout 60 qemu-img create -q -f qcow2 -F raw -b "../$HERD_BASE" "$(herd_disk "$1")"
}

# herd_console NAME: what the guest said in its latest boot.
herd_console() { echo "$trial_dir/console-$1"; }

# herd_start NAME [ARGUMENT…]: powers on that guest.
herd_start() {
    guest_start "$(herd_disk "$1")" "$(herd_console "$1")" "${@:2}"
    herd_pids[$1]=$guest_pid
    guest_pid=''
}

# herd_await WORD SECONDS: waits until every guest that is on has said WORD; 1 if one ends or fails or time is
# up first. One look at all of them a time: their consoles are many and processors are few.
herd_await() {
    local end=$((SECONDS + $2)) name waiting=("${!herd_pids[@]}")
    while :; do
        for name in "${!waiting[@]}"; do
            ! guest_said "$(herd_console "${waiting[name]}")" "$1" || unset "waiting[name]"
        done
        [ ${#waiting[@]} -gt 0 ] || return 0
        for name in "${waiting[@]}"; do
            herd_alive "$name" && [ $SECONDS -lt $end ] ||
                guest_said "$(herd_console "$name")" "$1" ||
                { echo "of guest $name:"; guest_explain "$(herd_console "$name")" "$1"; return 1; }
        done
        sleep 0.5
    done
}

herd_alive() { kill -0 "${herd_pids[$1]}" 2>/dev/null && ! guest_said "$(herd_console "$1")" FAILED; }

# herd_await_off: waits for guests that are powering themselves off.
herd_await_off() {
    local name
    for name in "${!herd_pids[@]}"; do
        guest_pid=${herd_pids[$name]}
        guest_await_off || return 1
        unset "herd_pids[$name]"
    done
}

# herd_stop: ends those that still run.
herd_stop() {
    local name
    for name in "${!herd_pids[@]}"; do
        guest_pid=${herd_pids[$name]}
        guest_stop
        unset "herd_pids[$name]"
    done
}
