# A trial: a store, a cache and a mount in one temporary directory, for scripts that show or test flashside.
# Sourced, not run; the caller sets `flashside` to the binary and calls trial_close from its EXIT trap.
#
# Touches: the temporary directory, one mount, one daemon, and one loop device where the machine's own
# filesystems cannot hold a cache.
# Invariant: a daemon is only ever ended by the process id that the mount's own status named, the keeper's; its
# servers are its children.

trial_dir='' trial_pid=''
trial_cache_bytes=$((3 << 30)) # limit of the cache

# trial_open: makes the directory with store/, cache/ and mount/ in it; sets trial_dir.
trial_open() {
    trial_dir=$(mktemp -d "$(trial_base)/flashside-trial.XXXXXX") || return 1
    mkdir "$trial_dir/store" "$trial_dir/flash" "$trial_dir/mount" || return 1
    trial_can_cache "$trial_dir" || trial_loop_flash || return 1
    mkdir "$trial_dir/flash/cache"
}

# The first usual temporary place whose filesystem can hold a cache, else the usual one.
trial_base() {
    local base
    for base in "${TMPDIR:-/tmp}" /var/tmp "${HOME:-/root}"; do
        trial_can_cache "$base" && echo "$base" && return
    done
    echo "${TMPDIR:-/tmp}"
}

# ext4 and XFS can; what a container or a tmpfs offers cannot. Nor can a filesystem that is nearly full: the
# cache always leaves a tenth of it free.
trial_can_cache() {
    local total available block
    case $(stat -f -c %T "$1" 2>/dev/null) in ext2/ext3 | xfs) ;; *) return 1 ;; esac
    read -r total available block < <(stat -f -c '%b %a %S' "$1")
    [ $(((available - total / 10) * block)) -ge $trial_cache_bytes ]
}

trial_loop_flash() {
    truncate -s 6G "$trial_dir/flash.img" && mke2fs -q -F -t ext4 "$trial_dir/flash.img" &&
        mount -o loop "$trial_dir/flash.img" "$trial_dir/flash"
}

# trial_mount [OPTION…]: mounts the store through the cache; sets trial_pid.
trial_mount() {
    timeout 60 "$flashside" mount "$trial_dir/store" "$trial_dir/mount" \
        --cache "$trial_dir/flash/cache@$trial_cache_bytes" "$@" </dev/null >>"$trial_dir/daemon.log" 2>&1 ||
        { tail -n 5 "$trial_dir/daemon.log" >&2; return 1; }
    trial_pid=$(trial_status --mountpoint "$trial_dir/mount" | trial_field pid)
    [ -n "$trial_pid" ] || { echo "status names no daemon for the mount" >&2; return 1; }
}

trial_status() { timeout 20 "$flashside" status "$@" --json; }

# trial_field NAME: the first number of that name in the JSON on stdin; nothing if it is not there. That
# saves a machine the installation of a JSON parser.
trial_field() { tr -d ' \n' | grep -o "\"$1\":[0-9]*" | sed -n '1s/.*://p'; }

# trial_texts NAME: the texts of that name in the JSON on stdin, each once, one a line.
trial_texts() { tr '\n' ' ' | grep -o "\"$1\": *\"[^\"]*\"" | cut -d '"' -f 4 | sort -u; }

# trial_image_counters IMAGE NAME…: the counters of one image, on one line; zeros before its first use.
trial_image_counters() {
    local name json
    json=$(trial_status "$trial_dir/mount/$1" 2>/dev/null)
    shift
    for name; do
        printf '%s ' "$(($(trial_field "$name" <<<"$json") + 0))"
    done
}

# trial_processes: the keeper and its servers, as far as they run. Ids are used again: by their name too.
trial_processes() {
    [ -z "$trial_pid" ] || sed -nE "s/^([0-9]+) \(flashside\) [^ZX] ($trial_pid [0-9]+|[0-9]+ $trial_pid) .*/\1/p; \
        s/^($trial_pid) \(flashside\) [^ZX] .*/\1/p" /proc/[0-9]*/stat 2>/dev/null | sort -u
}

trial_daemon_runs() { [ -n "$(trial_processes)" ]; }

# trial_await_daemon_end SECONDS
trial_await_daemon_end() {
    local end=$((SECONDS + $1))
    while trial_daemon_runs; do
        [ $SECONDS -lt $end ] || return 1
        sleep 0.1
    done
}

# trial_kill: ends the daemon with SIGKILL, keeper and servers. The dead mount stays until trial_drop_mount. The
# keeper is stopped first, so that it starts nobody meanwhile.
trial_kill() {
    local process processes tries=200
    kill -STOP "$trial_pid" && processes=$(trial_processes) || return 1
    # shellcheck disable=SC2086 # a list
    kill -9 $processes
    for process in $processes; do
        while grep -qs "^$process (.*) [^ZX] " "/proc/$process/stat"; do
            [ $((tries -= 1)) -gt 0 ] || return 1
            sleep 0.1
        done
    done
    trial_pid=''
}

trial_drop_mount() { timeout 20 umount "$trial_dir/mount" || umount -l "$trial_dir/mount"; }

# trial_unmount: a clean stop; the daemon has flushed and gone when it returns 0.
trial_unmount() {
    timeout 60 umount "$trial_dir/mount" && trial_await_daemon_end 60 || return 1
    trial_pid=''
}

# trial_empty_cache: takes everything out of the cache of a trial that is not mounted.
trial_empty_cache() { ! trial_mounted mount && rm -rf --one-file-system "$trial_dir/flash/cache/flashside"; }

trial_mounted() { grep -q " $trial_dir/$1 " /proc/self/mounts; }

# trial_close: takes everything away, whatever state it is in.
trial_close() {
    [ -n "$trial_dir" ] || return 0
    ! trial_mounted mount || trial_unmount 2>/dev/null || true
    ! trial_daemon_runs || trial_kill
    ! trial_mounted mount || umount -l "$trial_dir/mount"
    ! trial_mounted flash || umount "$trial_dir/flash" || umount -l "$trial_dir/flash"
    # Should anything still be mounted, nothing in it is deleted.
    rm -rf --one-file-system "$trial_dir"
    trial_dir=''
}
