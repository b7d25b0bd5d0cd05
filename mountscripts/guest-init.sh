#!/bin/bash
# The init of the small real guest: does some work on its disk, says so on the console, powers off.
#
# Runs as process 1 inside the guest; touches only the guest's own disk. The kernel's command line says what
# to do, in order and separated by commas: flashside.work=start (a machine that starts: reads much, writes a
# little), ready (says so), verify (says what the numbered files hold now), write (flashside.count=N numbered
# files named flashside.series=NAME, flushed one by one).
#
# Lines for the host: "FLASHSIDE READY …", "FLASHSIDE KEPT file sum" (flushed: must survive from here on),
# "FLASHSIDE HAS file sum", "FLASHSIDE VERIFIED", "FLASHSIDE DONE", "FLASHSIDE FAILED what".

export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C
files=/var/lib/flashside

say() { echo "FLASHSIDE $*" >/dev/console; }

power_off() {
    mount -o remount,ro / || sync
    echo o >/proc/sysrq-trigger
    sleep 60
}

fail() {
    say "FAILED $*"
    power_off
}

# With the seconds since power on and what was read from the disk until now.
ready() {
    say "READY $(cut -d ' ' -f 1 /proc/uptime) s, $(awk '/^pgpgin/ { print int($2 / 1024) }' /proc/vmstat) MiB read"
}

argument() { sed -n "s/.*flashside\.$1=\([^ ]*\).*/\1/p" /proc/cmdline; }

# What starting a machine reads: the package list, some programs, the libraries. About 50 MiB.
start() {
    dpkg -l >/run/packages || fail "dpkg -l"
    perl -MPOSIX -MSocket -MIO::File -MList::Util=sum -e 'exit(sum(1 .. 1000) < 1)' || fail "perl"
    find /etc /usr/share/doc -type f >/run/files || fail "find"
    apt-config dump >/run/apt || fail "apt-config"
    cat /usr/lib/x86_64-linux-gnu/*.so* /usr/bin/* >/dev/null || fail "reading the libraries"
    log_boot || fail "writing the log"
}

# What it writes: a log that is flushed now and then, and a state file replaced atomically.
log_boot() {
    local n
    mkdir -p $files
    for n in 1 2 3 4 5 6 7 8; do
        dmesg >>$files/boot.log && sync $files/boot.log || return 1
    done
    cp /run/packages $files/state.new && sync $files/state.new && mv $files/state.new $files/state && sync $files
}

# Numbered files of 4 KiB to 512 KiB. KEPT is said only once file and name are flushed.
write() {
    local n file
    mkdir -p $files
    for n in $(seq 1 "$(argument count)"); do
        file=$files/$(argument series)-$n
        head -c $(((n * 37 % 128 + 1) * 4096)) /dev/urandom >"$file" || fail "writing $file"
        sync "$file" $files || fail "flushing $file"
        say "KEPT ${file##*/} $(sum "$file")"
    done
}

sum() { sha256sum "$1" | cut -c 1-64; }

verify() {
    local file
    for file in "$files"/*-*; do
        say "HAS ${file##*/} $(sum "$file")"
    done
    say VERIFIED
}

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /run
[ -c /dev/console ] || mount -t devtmpfs devtmpfs /dev
for work in $(argument work | tr , ' '); do
    "$work"
done
say DONE
power_off
