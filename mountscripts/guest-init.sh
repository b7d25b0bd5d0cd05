#!/bin/bash
# The init of the small real guest: does some work on its disk, says so on the console, powers off.
#
# Runs as process 1 inside the guest; touches only the guest's own disk. The kernel's command line says what
# to do, in order and separated by commas: flashside.work=start (a machine that starts: reads much, writes a
# little), ready (says so), verify (says what the numbered files hold now), write (flashside.count=N numbered
# files named flashside.series=NAME, flushed one by one), number (numbered sectors on the second disk, written
# synchronously and flushed batch by batch, until the third disk says stop; then checks them), log (says what the kernel has logged of disks).
#
# Lines for the host: "FLASHSIDE READY …", "FLASHSIDE KEPT file sum" (flushed: must survive from here on),
# "FLASHSIDE HAS file sum", "FLASHSIDE VERIFIED", "FLASHSIDE WROTE batch", "FLASHSIDE CHECKED sectors sum-of-the-disk",
# "FLASHSIDE LOG line", "FLASHSIDE DONE", "FLASHSIDE FAILED what".

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

# A sector holds its place and the number of the batch that wrote it last, again and again. Read back from the
# disk, not from the guest's memory.
number() {
    [ ! -e /proc/sys/kernel/hung_task_timeout_secs ] || echo 30 >/proc/sys/kernel/hung_task_timeout_secs
    mountpoint -q /dev || mount -t devtmpfs devtmpfs /dev
    until [ -b /dev/nvme0n3 ] || [ "$SECONDS" -gt 30 ]; do sleep 0.1; done
    perl -e "$numbers" || fail "numbering sectors"
    say "CHECKED $(cat /run/sectors) $(sha256sum /dev/nvme0n2 | cut -c 1-64)"
}

numbers='
use strict; use IO::Handle; use Fcntl;
my ($disk, $sectors, %last) = ("/dev/nvme0n2", 65536);
sub say_so { open(my $console, ">", "/dev/console"); print $console "FLASHSIDE @_\n"; }
sub content { my $text = pack("QQ", @_); return $text x 32; }
sub stopped { return `dd if=/dev/nvme0n3 bs=512 count=1 iflag=direct status=none` =~ /^stop/; }
sysopen(my $out, $disk, O_RDWR | O_SYNC) or die "$disk: $!";
for (my $batch = 1; !stopped(); $batch++) {
    for (1 .. 12) {
        my ($first, $count) = (int(rand($sectors - 64)), 1 + int(rand(64)));
        sysseek($out, $first * 512, 0) or die "seek: $!";
        my $bytes = join("", map { content($_, $batch) } $first .. $first + $count - 1);
        syswrite($out, $bytes) == length($bytes) or die "write: $!";
        $last{$_} = $batch for $first .. $first + $count - 1;
    }
    $out->sync or die "fsync: $!";
    say_so("WROTE $batch");
}
close($out) or die "close: $!";
open(my $drop, ">", "/proc/sys/vm/drop_caches") or die "drop_caches: $!";
print $drop "3\n"; close($drop) or die "drop_caches: $!";
sysopen(my $in, $disk, O_RDONLY) or die "$disk: $!";
for my $sector (sort { $a <=> $b } keys %last) {
    sysseek($in, $sector * 512, 0);
    sysread($in, my $bytes, 512) == 512 or die "reading sector $sector: $!";
    $bytes eq content($sector, $last{$sector}) or say_so("FAILED sector $sector is not of batch $last{$sector}") && die;
}
open(my $count, ">", "/run/sectors") or die "count: $!";
print $count scalar(keys %last);
'

log() {
    dmesg | grep -iE 'nvme|blk|I/O error|EXT4|hung|blocked for|timeout|abort|reset' | while read -r line; do say "LOG $line"; done
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
