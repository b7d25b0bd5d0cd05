#!/bin/bash
# flashside under a real systemd: ./tests/systemd.sh
#
# Starts systemd as process 1 of its own PID, mount, IPC, UTS and cgroup namespaces, over a throwaway overlay of this
# machine's root, with flashside installed by install.sh, a store that fstab mounts, a mount from fstab, one on
# demand, and flashside@vms enabled. Boots, kills, reloads, restarts, stops and powers off; ends with a table.
#
# Needs root, /dev/fuse, overlayfs, cgroup2 and Debian's systemd package; prints `skipped: why` where they are
# missing. FLASHSIDE names the binary. Takes about half a minute.
# Touches: one temporary directory, one control group and a loop device where the machine's filesystems cannot
# hold a cache, gone afterwards. Services that would set up this machine are masked in there.

set -u
cd "$(dirname "$0")/.." || exit 1
. mountscripts/trial.sh
trial_cache_bytes=$((512 << 20))

flashside=$(realpath "${FLASHSIDE:-${CARGO_TARGET_DIR:-target}/debug/flashside}")
init=/lib/systemd/systemd
booted='' group='' rows=() failures=0

# What a machine's first process would start and this one must not: it shares the kernel with the machine.
masked=(systemd-sysctl systemd-binfmt systemd-modules-load systemd-udevd systemd-udev-trigger systemd-tmpfiles-setup
    systemd-tmpfiles-setup-dev systemd-random-seed systemd-update-utmp systemd-update-utmp-runlevel systemd-sysusers
    systemd-firstboot systemd-hwdb-update systemd-remount-fs systemd-journal-flush systemd-pcrphase
    systemd-pcrphase-sysinit kmod-static-nodes ldconfig console-getty systemd-logind dbus systemd-user-sessions
    systemd-journal-catalog-update systemd-machine-id-commit systemd-timesyncd apparmor networking)
masked_units=(systemd-journald-audit.socket systemd-udevd-control.socket systemd-udevd-kernel.socket dbus.socket
    proc-sys-fs-binfmt_misc.automount proc-sys-fs-binfmt_misc.mount dev-hugepages.mount dev-mqueue.mount
    sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount sys-fs-fuse-connections.mount tmp.mount
    getty.target remote-cryptsetup.target systemd-tmpfiles-clean.timer systemd-initctl.socket
    systemd-ask-password-console.path systemd-ask-password-wall.path)

skip() {
    echo "skipped: $*"
    exit 0
}

fail() {
    echo "FAILED: $*"
    exit 1
}

# check TITLE COMMAND…: a row of the table.
check() {
    local title=$1 begin result=ok
    shift
    begin=$(date +%s%N)
    "$@" >"$trial_dir/said" 2>&1 || result=FAILED
    if [ $result = FAILED ]; then
        failures=$((failures + 1))
        tail -n 20 "$trial_dir/said"
    fi
    rows+=("$(printf '%-7s %5d ms  %s' $result $((($(date +%s%N) - begin) / 1000000)) "$title")")
    echo "${rows[-1]}"
}

# within SECONDS COMMAND…: until it succeeds.
within() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        [ $SECONDS -lt $end ] || { echo "not within the time: $*"; return 1; }
        sleep 0.1
    done
}

# The machine within: what it is made of.

make_root() {
    local root=$trial_dir/root unit name
    mountscripts/install.sh --binary "$flashside" "$root" >/dev/null || fail "install.sh"
    # Where /sbin is a link, a directory in the upper layer would hide what it leads to.
    [ ! -L /sbin ] || { mkdir -p "$root/usr" && mv "$root/sbin" "$root/usr/sbin"; }
    mkdir -p "$root"/etc/systemd/{system,journald.conf.d} "$root"/{srv/images,vms,fstab,demand} "$trial_dir"/{flash/{a,b,c},store2,root0}
    for name in "${masked[@]}"; do ln -s /dev/null "$root/etc/systemd/system/$name.service"; done
    for unit in "${masked_units[@]}"; do ln -s /dev/null "$root/etc/systemd/system/$unit"; done
    printf '[Journal]\nStorage=volatile\nReadKMsg=no\nAudit=\n' >"$root/etc/systemd/journald.conf.d/quiet.conf"
    echo 0123456789abcdef0123456789abcdef >"$root/etc/machine-id"
    ln -s /lib/systemd/system/multi-user.target "$root/etc/systemd/system/default.target"
    write_mounts "$root"
    write_guests "$root"
    mountscripts/install.sh --enable vms "$root" >/dev/null || fail "install.sh --enable"
}

write_mounts() {
    local slow='_netdev,x-systemd.requires-mounts-for=/srv/images'
    cat >"$1/etc/fstab" <<FSTAB
$trial_dir/store /srv/images none bind,_netdev 0 0
$trial_dir/store2 /fstab flashside cache=$trial_dir/flash/b@64M,$slow 0 0
$trial_dir/store2 /demand flashside cache=$trial_dir/flash/c@64M,$slow,noauto,x-systemd.automount 0 0
FSTAB
    sed -e 's|"/nfs/images"|"/srv/images"|' -e 's|"/srv/vms"|"/vms"|' \
        -e "s|\"/flash0/cache@200G\"|\"$trial_dir/flash/a@128M\"|" examples/vms.toml >"$1/etc/flashside/vms.toml"
    echo "from the store" >"$trial_dir/store2/file"
    head -c 8000000 /dev/urandom >"$trial_dir/store/disk"
}

# In libvirt's place: says what it finds at start, and writes as guests do that are saved at shutdown.
write_guests() {
    cat >"$1/etc/systemd/system/libvirtd.service" <<'UNIT'
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'mountpoint -q /vms && echo started > /vms/guests'
ExecStop=/bin/sh -c 'sleep 1; mountpoint -q /vms && echo saved >> /vms/guests'
[Install]
WantedBy=multi-user.target
UNIT
    mkdir -p "$1/etc/systemd/system/multi-user.target.wants"
    ln -s /lib/systemd/system/remote-fs.target "$1/etc/systemd/system/multi-user.target.wants/"
    ln -s ../libvirtd.service "$1/etc/systemd/system/multi-user.target.wants/"
}

# In the namespaces: the tree, then systemd.
become_init() {
    local dir=$1 top=$1/top node
    mount --make-rprivate /
    mkdir -p "$top" && mount -t tmpfs tmpfs "$top" && mkdir "$top"/{upper,work,tree} || exit 1
    cp -a "$dir/root/." "$top/upper/" || exit 1
    mount -t overlay overlay -o "lowerdir=/,upperdir=$top/upper,workdir=$top/work" "$top/tree" || exit 1
    cd "$top/tree" || exit 1
    mount -t proc proc proc && mount --bind proc/sys proc/sys && mount -o remount,bind,ro proc/sys
    mount -t sysfs -o ro sysfs sys && mount -t cgroup2 cgroup2 sys/fs/cgroup || exit 1
    mount -t tmpfs tmpfs run && mount -t tmpfs -o mode=755 tmpfs dev && mkdir dev/{shm,pts} || exit 1
    for node in null zero full random urandom tty fuse autofs; do
        touch "dev/$node" && mount --bind "/dev/$node" "dev/$node"
    done
    mount -t devpts devpts dev/pts
    # The trial itself, with its caches: an overlay cannot hold one.
    mkdir -p ".$dir" && mount --rbind "$dir" ".$dir" || exit 1
    mkdir -p old && pivot_root . old && umount -l /old || exit 1
    rm -rf /etc/systemd/system/*.wants/{cron,rsync,nginx,ssh,e2scrub_reap}.* 2>/dev/null
    container=flashside-test exec "$init" --system --log-target=journal --show-status=0 </dev/null >/dev/null 2>&1
}

boot() {
    group=$(find_cgroup2)/flashside-test.$$
    mkdir "$group" || skip "no control group can be made"
    # shellcheck disable=SC2016 # the inner shell's
    bash -c 'echo $$ >"$1/cgroup.procs"; exec unshare -m -p -f -i -u -C --kill-child "$2" --init "$3"' \
        - "$group" "$0" "$trial_dir" &
    booted=$!
    within 20 inner_pid && within 60 is_up
}

find_cgroup2() { awk '$3 == "cgroup2" { print $2; exit }' /proc/self/mounts; }

inner_pid() {
    inner=$(pgrep -P "$booted" 2>/dev/null | head -n 1)
    [ -n "$inner" ] && [ "$(cat "/proc/$inner/comm")" = systemd ]
}

# in_it COMMAND…: runs it in the machine within.
in_it() { timeout 100 nsenter -t "$inner" -m -p -i -u -C "$@"; }

is_up() {
    case $(in_it systemctl is-system-running 2>/dev/null) in running | degraded) ;; *) return 1 ;; esac
}

property() { in_it systemctl show --value -p "$1" flashside@vms; }

vms_status() { in_it timeout 20 flashside status --mountpoint /vms --json; }

serving() {
    local json
    json=$(vms_status) || return 1
    pid=$(trial_field serving_pid <<<"$json")
    [ -n "$pid" ] || pid=$(trial_field pid <<<"$json")
}

takes_over() { serving && [ "$pid" != "$1" ]; }
stands_by() { vms_status | tr -d ' \n' | grep -q '"handover":"ready"'; }

clean_up() {
    [ -z "$booted" ] || { kill -9 "$booted" && wait "$booted"; } 2>/dev/null
    [ -z "$group" ] || within 10 drop_group
    trial_close
}

drop_group() { find "$group" -depth -type d -exec rmdir {} + 2>/dev/null; [ ! -d "$group" ]; }

# What is checked.

no_unit_failed() {
    local failed
    failed=$(in_it systemctl --failed --no-legend --plain)
    [ -z "$failed" ] || { echo "$failed"; in_it journalctl -b --no-pager -n 40; return 1; }
}

verified() {
    local said
    said=$(in_it systemd-analyze verify flashside@vms.service 2>&1 | grep -i flashside)
    [ -z "$said" ] || { echo "$said"; return 1; }
}

service_is_mounted() {
    [ "$(property ActiveState)/$(property SubState)/$(property Type)" = active/running/notify ] &&
        in_it findmnt -n -t fuse.flashside /vms && in_it cmp /srv/images/disk /vms/disk
}

guests_were_later() { [ "$(in_it cat /vms/guests)" = started ]; }

fstab_is_mounted() { [ "$(in_it cat /fstab/file)" = "from the store" ] && [ "$(in_it cat /srv/images/guests)" = started ]; }

mounts_on_demand() {
    ! in_it findmnt -n -t fuse.flashside /demand && [ "$(in_it cat /demand/file)" = "from the store" ] &&
        in_it findmnt -n -t fuse.flashside /demand || { in_it journalctl --no-pager -n 20 -u demand.mount -u demand.automount; return 1; }
}

# What the unit takes away from the service is nothing that it needs.
hardened_it_does_all() {
    local as="setpriv --reuid=65534 --regid=65534 --clear-groups" said
    in_it bash -ec "mkdir -m 1777 /vms/open; cd /vms/open
        $as sh -c 'echo mine >mine; chmod 2640 mine; ln mine link; mkfifo pipe'
        chown 1:2 mine; mknod node c 1 3; setfattr -n trusted.x -v 1 mine
        [ \"\$(stat -c %u:%g:%a mine)\" = 1:2:2640 ]
        cp --reflink=never /vms/disk base; chmod 600 base; ! $as cat base 2>/dev/null" || return 1
    # Young images are not read directly.
    within 20 reads_directly || { in_it journalctl --no-pager -u flashside@vms; return 1; }
    said=$(in_it journalctl --no-pager -u flashside@vms -g 'permitted|denied|no io_uring|no kernel passthrough')
    case $said in *' flashside['*) echo "$said"; return 1 ;; esac
}

reads_directly() {
    in_it flashside set /vms/open/base immutable=1 && in_it flashside warm /vms/open/base &&
        in_it bash -c 'exec 4</vms/open/base; getfattr --only-values -n user.flashside.plane /vms/open/base | grep -x passthrough'
}

# Two files that are held open through everything that follows; into one of them a guest writes numbers, as fast
# as it can, until it meets an error or is told to stop.
hold_files() {
    in_it bash -c 'exec 3</vms/disk 4>/vms/numbers; echo $$ >/run/holder
        while [ ! -e /run/enough ]; do echo $((i += 1)) >&4 || exit; done; touch /run/wrote' &
    holder=$!
    within 5 in_it test -s /srv/images/numbers
}

# They still read and write.
held_files_go_on() {
    local before
    in_it bash -c 'cmp "/proc/$(cat /run/holder)/fd/3" /srv/images/disk && cd /vms && echo x >"new.$RANDOM"' || return 1
    before=$(wc -c <"$trial_dir/store/numbers")
    within 5 numbers_beyond "$before"
}

numbers_beyond() { [ "$(wc -c <"$trial_dir/store/numbers")" -gt "$1" ]; }

# Nobody met an error, and no number is missing or doubled.
nothing_was_lost() {
    in_it touch /run/enough && wait "$holder" && in_it test -e /run/wrote &&
        awk '$1 != NR { print "line " NR " is " $0; exit 1 } END { print NR " numbers" }' "$trial_dir/store/numbers"
}

server_is_replaced() {
    within 20 stands_by && serving && in_it kill -9 "$pid" && within 20 takes_over "$pid" && held_files_go_on &&
        [ "$(property NRestarts)" = 0 ]
}

keeper_is_replaced() {
    local before
    within 20 stands_by && before=$(property MainPID) && in_it kill -9 "$before" &&
        within 60 active_with_other "$before" && held_files_go_on
}

active_with_other() { [ "$(property ActiveState)" = active ] && [ "$(property MainPID)" != "$1" ]; }

reloads() { within 20 stands_by && serving && in_it systemctl reload flashside@vms && takes_over "$pid" && held_files_go_on; }

restarts() {
    local before
    within 20 stands_by && before=$(property MainPID) && in_it systemctl restart flashside@vms &&
        active_with_other "$before" && held_files_go_on
}

stops() {
    in_it systemctl stop flashside@vms && ! in_it findmnt -n /vms && [ "$(property Result)/$(property ExecMainStatus)" = success/0 ] &&
        [ -z "$(in_it pgrep -f 'config /etc/flashside/vms.toml')" ] && in_it systemctl start flashside@vms && service_is_mounted
}

# Guests are saved while the mount is there, and nothing is left in doubt.
powers_off() {
    in_it systemctl --no-block poweroff && within 60 is_off && grep -q saved "$trial_dir/store/guests"
}

is_off() { ! kill -0 "$booted" 2>/dev/null; }

exposure() { in_it systemd-analyze security --no-pager flashside@vms | sed -n 's/.*Overall exposure level.*: /exposure level of systemd-analyze security: /p'; }

if [ "${1:-}" = --init ]; then
    become_init "$2"
    exit 1
fi
[ "$(id -u)" = 0 ] || skip "mounting needs root"
[ -c /dev/fuse ] || skip "/dev/fuse is missing"
[ -x "$init" ] || skip "systemd is not installed"
grep -qw overlay /proc/filesystems || skip "this kernel has no overlayfs"
[ -n "$(find_cgroup2)" ] || skip "no cgroup2 is mounted"
[ -x "$flashside" ] || fail "$flashside is missing; build it first (cargo build)"
trap "trap '' INT TERM HUP; clean_up" EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
trial_open || fail "cannot make a temporary directory"
make_root
check "systemd $("$init" --version | sed -n '1s/systemd \([0-9]*\).*/\1/p') boots" boot
[ $failures = 0 ] || fail "no systemd"
check "no unit failed" no_unit_failed
check "systemd-analyze verify has nothing to say" verified
check "flashside@vms is mounted when it is active" service_is_mounted
check "libvirtd started after it" guests_were_later
check "fstab: mounted at boot, after its store" fstab_is_mounted
check "fstab: x-systemd.automount mounts on demand" mounts_on_demand
check "hardened: acts for callers, makes nodes, reads directly" hardened_it_does_all
check "two files are held open, one is written all the time" hold_files
check "kill -9 of the serving process: both go on" server_is_replaced
check "systemctl reload: another server, both go on" reloads
check "systemctl restart: another main process, both go on" restarts
check "kill -9 of the main process: both go on" keeper_is_replaced
check "nobody met an error, no write is lost or doubled" nothing_was_lost
check "systemctl stop: unmounted and flushed, exit 0" stops
exposure
check "power off: guests are saved before the mount goes" powers_off
[ $failures = 0 ] || fail "$failures checks"
