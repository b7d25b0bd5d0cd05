# The small real guest: Debian's cloud kernel, a minimal root filesystem, a disk image of it, and QEMU to boot
# it. Sourced, not run; needs packages.sh sourced before.
#
# Touches: the guest cache directory (kernel and root filesystem, kept between runs) and what callers name.
# Invariant: a name without .partial in the guest cache is complete. Makers hold the cache's lock.

GUEST_PACKAGES=(debootstrap e2fsprogs)
GUEST_QEMU_PACKAGES=(qemu-system-x86)
GUEST_BOOT_S_MAX=${FLASHSIDE_GUEST_BOOT_S_MAX:-180}
GUEST_DISK_SIZE=512M
GUEST_DRIVES=() # further arguments of QEMU: more drives
GUEST_MEMORY_MIB=${FLASHSIDE_GUEST_MEMORY_MIB:-512}
guest_cache=${FLASHSIDE_GUEST_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/flashside/guest}
guest_init=$(dirname "${BASH_SOURCE[0]}")/guest-init.sh

# guest_unsupported: prints one sentence and succeeds where no guest can be made or run.
guest_unsupported() {
    if ! command -v apt-get >/dev/null; then
        echo "the guest is made of Debian packages, and this machine has no apt-get"
    elif [ "$(dpkg --print-architecture)" != amd64 ]; then
        echo "the guest is an amd64 machine, and this one is $(dpkg --print-architecture)"
    else
        return 1
    fi
}

guest_install_packages() {
    packages_install "${GUEST_PACKAGES[@]}" && packages_install_qemu "${GUEST_QEMU_PACKAGES[@]}"
}

# guest_has kernel|root: is it in the guest cache?
guest_has() { [ -e "$guest_cache/$1" ]; }

# guest_locked COMMAND…: runs it while holding the guest cache; waits at most 10 minutes for another maker.
guest_locked() (
    mkdir -p "$guest_cache" && exec 9>"$guest_cache/lock" && flock -w 600 9 || exit 1
    "$@" 9>&-
)

# guest_fetch_kernel: downloads and unpacks Debian's cloud kernel; installs nothing.
guest_fetch_kernel() { guest_has kernel || guest_locked guest_unpack_kernel; }

guest_unpack_kernel() (
    guest_has kernel && exit 0
    dir=$(mktemp -d) && trap 'rm -rf "$dir"' EXIT
    chmod 755 "$dir" && cd "$dir" || exit 1
    apt-cache show linux-image-cloud-amd64 >/dev/null 2>&1 || apt-get -q update || exit 1
    # The package of that name is empty; the kernel is in the one it depends on.
    name=$(apt-cache show --no-all-versions linux-image-cloud-amd64 | sed -n 's/^Depends: \(linux-image-[^ ,]*\).*/\1/p')
    apt-get -q -o Acquire::Retries=3 download "$name" ||
        { apt-get -q update && apt-get -q download "$name"; } || exit 1
    dpkg -x ./*.deb tree && cp tree/boot/vmlinuz-* "$guest_cache/kernel.partial" || exit 1
    mv "$guest_cache/kernel.partial" "$guest_cache/kernel"
)

# guest_build_root: a minimal Debian of this machine's own release, about a minute.
guest_build_root() { guest_has root || guest_locked guest_bootstrap_root; }

guest_bootstrap_root() (
    guest_has root && exit 0
    read -r uri suite < <(packages_mirror) || { echo "no http source for this Debian release in apt's sources"; exit 1; }
    rm -rf --one-file-system "$guest_cache/root.partial"
    debootstrap --variant=minbase "$suite" "$guest_cache/root.partial" "$uri" || exit 1
    rm -f "$guest_cache"/root.partial/var/cache/apt/archives/*.deb
    mv "$guest_cache/root.partial" "$guest_cache/root"
)

# guest_make_disk FILE: a new disk image with the root filesystem on it, without mounting anything.
guest_make_disk() { guest_locked guest_write_disk "$1"; }

guest_write_disk() {
    install -m 755 "$guest_init" "$guest_cache/root/sbin/flashside-init" &&
        mke2fs -q -F -t ext4 -b 4096 -m 0 -E lazy_itable_init=0,lazy_journal_init=0 \
            -d "$guest_cache/root" "$1" "$GUEST_DISK_SIZE"
}

# guest_start DISK CONSOLE [ARGUMENT…]: starts QEMU in the background as a hypervisor would run it (O_DIRECT,
# discard passed on); sets guest_pid. What the guest says is appended to the file CONSOLE. A DISK named
# *.qcow2 is one, any other is raw.
guest_start() {
    local disk=$1 console=$2 format=raw
    shift 2
    [ "${disk%.qcow2}" = "$disk" ] || format=qcow2
    : >"$console"
    qemu-system-x86_64 -accel "${FLASHSIDE_GUEST_ACCEL:-tcg}" -machine pc -m "$GUEST_MEMORY_MIB" -smp 1 \
        -nodefaults -no-user-config -display none -no-reboot -serial "file:$console" \
        -kernel "$guest_cache/kernel" \
        -append "console=ttyS0 quiet panic=-1 root=/dev/nvme0n1 rw init=/sbin/flashside-init $*" \
        -drive "file=$disk,if=none,id=disk,format=$format,cache=none,aio=native,discard=unmap" \
        -device nvme,id=nvme,drive=disk,serial=flashside "${GUEST_DRIVES[@]}" </dev/null >"$console.qemu" 2>&1 &
    guest_pid=$!
}

# guest_said CONSOLE WORD: has the guest said it?
guest_said() { grep -aq "^FLASHSIDE $2" "$1" 2>/dev/null; }

# guest_lines CONSOLE WORD: what the guest said after that word, sorted, the WORD cut off.
guest_lines() { tr -d '\r' <"$1" | sed -n "s/^FLASHSIDE $2 //p" | sort; }

# guest_await CONSOLE WORD SECONDS: waits until the guest says WORD; 1 if it ends or fails or time is up first.
guest_await() {
    local end=$((SECONDS + $3))
    until guest_said "$1" "$2"; do
        if guest_said "$1" FAILED || ! kill -0 "$guest_pid" 2>/dev/null || [ $SECONDS -ge $end ]; then
            guest_said "$1" "$2" && return 0
            guest_explain "$1" "$2"
            return 1
        fi
        sleep 0.1
    done
}

guest_explain() {
    echo "the guest did not say $2; its console ends with:"
    tail -n 15 "$1" | tr -d '\r'
    cat "$1.qemu"
}

# guest_stop: ends QEMU, if it still runs, within some seconds.
guest_stop() {
    local tries=100
    [ -n "${guest_pid:-}" ] || return 0
    while kill "${guest_signal:--TERM}" "$guest_pid" 2>/dev/null && [ $((tries -= 1)) -gt 0 ]; do
        [ $tries -gt 50 ] || guest_signal=-KILL
        sleep 0.1
    done
    wait "$guest_pid" 2>/dev/null
    guest_pid='' guest_signal=''
}

# guest_boot DISK CONSOLE [ARGUMENT…]: a whole boot, from power on to power off. Prints the milliseconds from
# power on to READY; on failure says why on stderr and returns 1.
guest_boot() {
    local begin ready console=$2
    begin=$(date +%s%3N)
    guest_start "$@"
    guest_await "$console" READY "$GUEST_BOOT_S_MAX" >&2 || { guest_stop; return 1; }
    ready=$(($(date +%s%3N) - begin))
    guest_await "$console" DONE "$GUEST_BOOT_S_MAX" >&2 || { guest_stop; return 1; }
    guest_await_off || { guest_stop; return 1; }
    echo "$ready"
}

# guest_await_off: waits for a guest that is powering itself off.
guest_await_off() {
    local end=$((SECONDS + 60))
    while kill -0 "$guest_pid" 2>/dev/null; do
        [ $SECONDS -lt $end ] || { echo "the guest did not power off within 60 s" >&2; return 1; }
        sleep 0.1
    done
    wait "$guest_pid" 2>/dev/null
    guest_pid=''
}
