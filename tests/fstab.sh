#!/bin/bash
# mount(8), fstab, ordinary users and installation: ./tests/fstab.sh
#
# Installs into a temporary directory and lays that over /usr/sbin and /usr/local/bin in a mount namespace of its
# own, so that the machine itself gets no file. There the real mount(8) mounts by command line, by a temporary
# fstab, as root and as an ordinary user; wrong options are refused with mount(8)'s exit codes.
#
# Needs root, /dev/fuse and overlayfs; prints `skipped: why` where they are missing. FLASHSIDE names the binary.
# Touches: one temporary directory, gone afterwards, and the mount namespace.

set -u
cd "$(dirname "$0")/.." || exit 1
. mountscripts/trial.sh
trial_cache_bytes=$((512 << 20))

flashside=$(realpath "${FLASHSIDE:-${CARGO_TARGET_DIR:-target}/debug/flashside}")
user=65534 # nobody

skip() {
    echo "skipped: $*"
    exit 0
}

fail() {
    echo "FAILED: $*"
    exit 1
}

ok() { echo "ok: $* ($SECONDS s)"; }

[ "$(id -u)" = 0 ] || skip "mounting needs root"
[ -c /dev/fuse ] || skip "/dev/fuse is missing"
grep -qw overlay /proc/filesystems || skip "this kernel has no overlayfs"
[ -x "$flashside" ] || fail "$flashside is missing; build it first (cargo build)"
if [ "${1:-}" != --inside ]; then
    exec unshare --mount --propagation private "$0" --inside
fi

clean_up() {
    local at
    for at in $(mounts_here | tac); do umount "$at" || umount -l "$at"; done
    daemons_end || echo "a daemon still runs" >&2
    trial_close
}

mounts_here() { [ -z "$trial_dir" ] || awk -v dir="$trial_dir/" 'index($2, dir) == 1 && $3 == "fuse.flashside" { print $2 }' /proc/self/mounts; }

# Daemons of this test name its directory on their command line.
daemons_end() {
    local tries=300
    while [ -n "$trial_dir" ] && pgrep -f "flashside mount $trial_dir" >/dev/null; do
        [ $((tries -= 1)) -gt 0 ] || return 1
        sleep 0.1
    done
}

# end_mount DIR: umount(8) takes it away, and its daemon ends.
end_mount() {
    umount "$1" || fail "umount $1 failed"
    ! mountpoint -q "$1" || fail "$1 is still mounted"
    daemons_end || fail "the daemon of $1 did not end"
}

# refuses CODE TEXT COMMAND…: the command ends with CODE and says TEXT, in one line.
refuses() {
    local code=$1 text=$2 said status=0
    shift 2
    said=$("$@" 2>&1) || status=$?
    [ $status = "$code" ] || fail "$* ended with $status, not $code: $said"
    case $said in *"$text"*) ;; *) fail "$* does not say \"$text\": $said" ;; esac
    # mount(8) of some versions adds a line of its own after a helper's.
    [ "$(grep -c . <<<"$said")" = 1 ] || fail "$* says more than one line: $said"
    [ -z "$(mounts_here)" ] || fail "$* left a mount"
}

it_is_installed() {
    local root=$trial_dir/root
    mountscripts/install.sh --binary "$flashside" "$root" >/dev/null || fail "install.sh failed"
    mount -t overlay overlay -o "lowerdir=$root/sbin:/usr/sbin" /usr/sbin &&
        mount -t overlay overlay -o "lowerdir=$root/usr/local/bin:/usr/local/bin" /usr/local/bin ||
        skip "overlayfs cannot be mounted here"
    [ /sbin -ef /usr/sbin ] || mount -t overlay overlay -o "lowerdir=$root/sbin:/sbin" /sbin
    ok "installed into a directory of its own"
}

mount_by_command() {
    local source type
    mount -t flashside "$trial_dir/store" "$trial_dir/mount" -o "$cache" || fail "mount -t flashside"
    read -r source type < <(findmnt -n -o SOURCE,FSTYPE "$trial_dir/mount")
    [ "$source $type" = "$trial_dir/store fuse.flashside" ] || fail "findmnt shows $source $type"
    cmp "$trial_dir/store/disk" "$trial_dir/mount/disk" || fail "other bytes through the mount"
    echo x >"$trial_dir/mount/new" || fail "a write"
    [ -s "$trial_dir/store/new" ] || fail "the write did not reach the store"
    refuses_twice
    end_mount "$trial_dir/mount"
    ok "mount -t flashside, findmnt, umount"
}

refuses_twice() {
    local said status=0
    said=$(mount -t flashside "$trial_dir/store" "$trial_dir/mount" -o "$cache" 2>&1) || status=$?
    [ $status = 32 ] || fail "a second mount ended with $status: $said"
    case $said in *already*) ;; *) fail "a second mount: $said" ;; esac
}

# The type of the mount table, read-only and no programs.
mount_by_its_other_type() {
    mount -t fuse.flashside "$trial_dir/store" "$trial_dir/mount" -o "ro,noexec,$cache" || fail "mount -t fuse.flashside"
    ! touch "$trial_dir/mount/no" 2>/dev/null || fail "ro does not hold"
    findmnt -n -O noexec "$trial_dir/mount" >/dev/null || fail "noexec does not hold"
    end_mount "$trial_dir/mount"
    ok "mount -t fuse.flashside -o ro,noexec"
}

mount_by_fstab() {
    local fstab=$trial_dir/fstab options before
    cat >"$trial_dir/vms.toml" <<TOML
cache = ["$trial_dir/flash/cache@200M"]
store-deadline = "1min"
TOML
    options="defaults,_netdev,nofail,x-systemd.requires-mounts-for=$trial_dir/store,config=$trial_dir/vms.toml,store-deadline=90s"
    echo "$trial_dir/store $trial_dir/mount flashside $options 0 0" >"$fstab"
    echo "$trial_dir/store $trial_dir/other flashside noauto,$cache 0 0" >>"$fstab"
    mount -T "$fstab" "$trial_dir/mount" || fail "mount $trial_dir/mount from fstab"
    "$flashside" status --mountpoint "$trial_dir/mount" --json | tr -d ' ' | grep -q '"limit_bytes":209715200' ||
        fail "config= is not read"
    before=$(mounts_here)
    mount -a -T "$fstab" -t flashside || fail "mount -a with everything mounted"
    mount -a -T "$fstab" || fail "mount -a with everything mounted"
    [ "$(mounts_here)" = "$before" ] || fail "mount -a mounted something: $(mounts_here)"
    end_mount "$trial_dir/mount"
    mount -a -T "$fstab" || fail "mount -a"
    [ "$(mounts_here)" = "$trial_dir/mount" ] || fail "mount -a mounted $(mounts_here)"
    end_mount "$trial_dir/mount"
    ok "fstab: mount DIR, mount -a, noauto, nothing is mounted twice"
}

# Two caches, and a comma in a name.
mount_several_caches() {
    mkdir "$trial_dir/flash/cache,2"
    mount -t flashside "$trial_dir/store" "$trial_dir/mount" -o "$cache,cache=\"$trial_dir/flash/cache,2@64M\"" ||
        fail "two caches"
    [ "$("$flashside" status --mountpoint "$trial_dir/mount" --json | trial_texts dir | wc -l)" = 2 ] || fail "not two caches"
    end_mount "$trial_dir/mount"
    ok "two caches, one with a comma in its name"
}

wrong_options_are_refused() {
    local store=$trial_dir/store dir=$trial_dir/mount
    refuses 1 "unknown option chache" mount -t flashside "$store" "$dir" -o chache=/x
    refuses 1 "cache has no value" mount -t flashside "$store" "$dir" -o cache=
    refuses 1 "store-deadline" mount -t flashside "$store" "$dir" -o "$cache,store-deadline=soon"
    refuses 1 "passthrough" mount -t flashside "$store" "$dir" -o "$cache,passthrough=maybe"
    refuses 1 "nosuid" /sbin/mount.flashside "$store" "$dir" -o "$cache,suid"
    refuses 1 "not closed" /sbin/mount.flashside "$store" "$dir" -o "cache=\"/x"
    refuses 32 "does not exist" mount -t flashside "$store" "$dir" -o cache=/nowhere/cache
    refuses 32 "does not exist" mount -t flashside /nowhere/store "$dir" -o "$cache"
    refuses 32 "/nowhere.toml" mount -t flashside "$store" "$dir" -o config=/nowhere.toml
    mount -s -t flashside "$store" "$dir" -o "$cache,chache=1" || fail "sloppy"
    end_mount "$dir"
    mount -f -t flashside "$store" "$dir" -o "$cache" || fail "fake"
    [ -z "$(mounts_here)" ] || fail "fake mounted"
    ok "wrong options and missing directories are refused"
}

# A line with `user`: somebody else than root mounts and unmounts.
an_ordinary_user_mounts() {
    local as="setpriv --reuid=$user --regid=$user --clear-groups"
    if [ ! -u /bin/mount ] || [ ! -u "$(command -v fusermount3)" ]; then
        echo "skipped: mount(8) or fusermount3 has no setuid bit here"
        return
    fi
    chmod 755 "$trial_dir" && mkdir "$trial_dir"/{ustore,uflash,umount,run} && chown $user "$trial_dir"/{ustore,umount,run}
    mkdir "$trial_dir/flash/ucache" && chmod 755 "$trial_dir/flash" && chown $user "$trial_dir/flash/ucache"
    echo hello >"$trial_dir/ustore/file" && chown $user "$trial_dir/ustore/file"
    echo "$trial_dir/ustore $trial_dir/umount flashside user,noauto,cache=$trial_dir/flash/ucache@64M 0 0" >"$trial_dir/fstab"
    # As udev makes it: open to everybody.
    mknod -m 666 "$trial_dir/fuse" c 10 229 && mount --bind "$trial_dir/fuse" /dev/fuse || fail "binding /dev/fuse"
    # mount(8) of an ordinary user reads /etc/fstab only.
    mount --bind "$trial_dir/fstab" /etc/fstab || fail "binding fstab"
    XDG_RUNTIME_DIR=$trial_dir/run $as mount "$trial_dir/umount" || fail "mount as uid $user"
    [ "$($as cat "$trial_dir/umount/file")" = hello ] || fail "uid $user cannot read its mount"
    findmnt -n -O noexec "$trial_dir/umount" >/dev/null || fail "user does not imply noexec"
    $as umount "$trial_dir/umount" || fail "umount as uid $user"
    daemons_end || fail "the daemon of uid $user did not end"
    umount /etc/fstab
    ok "fstab: user, mounted and unmounted by uid $user"
    without_mount_8
    umount /dev/fuse
}

# The same without mount(8): what is missing is told, and all else works.
without_mount_8() {
    local as="setpriv --reuid=$user --regid=$user --clear-groups env XDG_RUNTIME_DIR=$trial_dir/run" dir=$trial_dir said
    said=$($as flashside mount "$dir/ustore" "$dir/umount" --cache "$dir/flash/ucache@64M" 2>&1) || fail "uid $user: $said"
    [ "$(grep -c 'no kernel passthrough (it takes root)' <<<"$said")" = 1 ] || fail "passthrough is not spoken of: $said"
    [ "$(grep -c "no hand-over (only root's mounts" <<<"$said")" = 1 ] || fail "hand-over is not spoken of: $said"
    [ "$(wc -l <<<"$said")" = 2 ] || fail "it says more: $said"
    $as cmp "$dir/ustore/file" "$dir/umount/file" || fail "other bytes"
    $as sh -c "echo more >>$dir/umount/file && mkdir $dir/umount/sub" || fail "uid $user cannot write"
    [ "$(tail -n 1 "$dir/ustore/file")" = more ] || fail "the write did not reach the store"
    $as flashside status --mountpoint "$dir/umount" --json | grep -q '"handover": *"off"' || fail "status"
    $as flashside warm "$dir/umount/file" >/dev/null || fail "warm"
    ! cat "$dir/umount/file" 2>/dev/null || fail "root sees another user's mount"
    $as fusermount3 -u "$dir/umount" && daemons_end || fail "fusermount3 -u"
    chmod 600 "$dir/fuse" # the node that is bound there
    said=$($as flashside mount "$dir/ustore" "$dir/umount" --cache "$dir/flash/ucache@64M" 2>&1) && fail "mounted without /dev/fuse"
    case $said in "flashside: cannot mount $dir/umount: /dev/fuse is closed to this user"*) ;; *) fail "without /dev/fuse: $said" ;; esac
    ok "flashside mount by uid $user: no passthrough, no hand-over, all else"
}

install_takes_everything_away() {
    local root=$trial_dir/root
    mountscripts/install.sh --uninstall "$root" >/dev/null || fail "uninstall"
    [ -z "$(find "$root" ! -type d)" ] || fail "left behind: $(find "$root" ! -type d)"
    refuses 1 "only root" setpriv --reuid=$user --clear-groups mountscripts/install.sh --uninstall
    refuses 1 "unknown option" mountscripts/install.sh --bla
    ok "install.sh --uninstall takes away what it installed"
}

trap "trap '' INT TERM HUP; clean_up" EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
trial_open || fail "cannot make a temporary directory"
mkdir "$trial_dir/other"
cache=cache=$trial_dir/flash/cache@256M
head -c 1000000 /dev/urandom >"$trial_dir/store/disk"
it_is_installed
mount_by_command
mount_by_its_other_type
mount_by_fstab
mount_several_caches
wrong_options_are_refused
an_ordinary_user_mounts
install_takes_everything_away
