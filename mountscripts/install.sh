#!/bin/bash
# Installs flashside on this host, or into DESTDIR for a package:
#
#   mountscripts/install.sh [--prefix /usr/local] [--binary FILE] [DESTDIR]
#   mountscripts/install.sh --enable NAME [DESTDIR]        flashside@NAME at boot, with the paths of its configuration
#   mountscripts/install.sh --uninstall [--prefix /usr/local] [DESTDIR]
#
# Without --binary it takes target/release/flashside, and builds that first where it is missing.
# Touches: the program, the mount helper and its second name, the unit, /etc/flashside/example.toml; with --enable
# one drop-in and systemd's link. --uninstall takes exactly these away; configurations and caches stay.

set -u
cd "$(dirname "$0")/.." || exit 1

prefix=/usr/local binary='' destdir='' action=install name=''
mark='# Made by `flashside unit`' # the first words of a drop-in of ours

refuse() {
    echo "install.sh: $1" >&2
    exit 1
}

parse() {
    while [ $# -gt 0 ]; do
        case $1 in
        --uninstall) action=uninstall ;;
        --enable) action=enable name=${2:-} && shift ;;
        --prefix) prefix=${2:-} && shift ;;
        --binary) binary=${2:-} && shift ;;
        -*) refuse "unknown option $1: write --uninstall, --enable NAME, --prefix DIR, --binary FILE or a DESTDIR" ;;
        *) [ -z "$destdir" ] || refuse "two DESTDIRs are one too many: $destdir and $1"; destdir=${1%/} ;;
        esac
        [ $# = 0 ] || shift
    done
    case $prefix in /*) prefix=${prefix%/} ;; *) refuse "--prefix takes an absolute directory, for example /usr/local" ;; esac
    [ "$action" != enable ] || [[ $name =~ ^[A-Za-z0-9:_.-]+$ ]] ||
        refuse "--enable takes the NAME of /etc/flashside/NAME.toml, of letters, digits and : _ . -"
    [ -n "$destdir" ] || [ "$(id -u)" = 0 ] || refuse "only root installs on this host: run it with sudo, or give a DESTDIR"
}

# Everything that is installed, DESTDIR not yet in front.
places() {
    program=$prefix/bin/flashside
    helper=/sbin/mount.flashside
    helper_again=/sbin/mount.fuse.flashside # mount(8) looks for this one by the type in the mount table
    # systemd looks below /usr and /usr/local itself.
    case $prefix in
    /usr | /usr/local) unit=$prefix/lib/systemd/system/flashside@.service ;;
    *) unit=/etc/systemd/system/flashside@.service ;;
    esac
    example=/etc/flashside/example.toml
}

find_binary() {
    local built=${CARGO_TARGET_DIR:-target}/release/flashside
    if [ -z "$binary" ]; then
        [ -x "$built" ] || cargo build --release --locked || refuse "cargo could not build flashside; --binary FILE takes one that is built"
        binary=$built
    fi
    "$binary" --version >/dev/null || refuse "$binary is not a flashside that runs here"
}

# put MODE TARGET: what stands on stdin becomes TARGET in one step; a program that runs keeps its old file.
put() {
    local target=$destdir$2
    mkdir -p "$(dirname "$target")" && cat >"$target.new" && chmod "$1" "$target.new" &&
        mv -f "$target.new" "$target" || refuse "cannot write $target"
    echo "installed $target"
}

with_program() { sed "s|/usr/local/bin/flashside|$program|; s|^flashside=flashside .*|flashside=$program|" "$1"; }

install_all() {
    find_binary
    put 755 "$program" <"$binary"
    put 755 "$helper" < <(with_program mountscripts/mount.flashside)
    ln -sfn mount.flashside "$destdir$helper_again" || refuse "cannot write $destdir$helper_again"
    echo "installed $destdir$helper_again"
    put 644 "$unit" < <(with_program mountscripts/flashside@.service)
    put 644 "$example" <examples/vms.toml
    reload
}

reload() { [ -n "$destdir" ] || [ ! -d /run/systemd/system ] || systemctl daemon-reload; }

enable() {
    local file=/etc/flashside/$name.toml
    [ -f "$destdir$file" ] || refuse "$destdir$file is missing: copy $example there and adapt it"
    local drop_in
    drop_in=$("$destdir$program" unit "$name" --config "$destdir$file") || exit 1
    put 644 "/etc/systemd/system/flashside@$name.service.d/paths.conf" <<<"$drop_in"
    reload
    systemctl ${destdir:+--root="$destdir"} --quiet enable "flashside@$name" || refuse "systemctl enable flashside@$name failed"
    echo "enabled flashside@$name; systemctl start flashside@$name starts it now"
}

uninstall() {
    local drop_in instance
    [ -n "$destdir" ] || ! grep -q ' fuse\.flashside ' /proc/self/mounts ||
        refuse "a flashside mount of this host is in use (flashside status lists them): unmount it first"
    for drop_in in "$destdir"/etc/systemd/system/flashside@*.service.d/paths.conf; do
        grep -qs "^$mark" "$drop_in" || continue
        instance=$(basename "$(dirname "$drop_in")" .service.d)
        systemctl ${destdir:+--root="$destdir"} --quiet disable "$instance"
        remove "${drop_in#"$destdir"}"
        rmdir --ignore-fail-on-non-empty "$(dirname "$drop_in")"
    done
    remove "$program" "$helper_again" "$helper" "$unit" "$example"
    [ ! -d "$destdir/etc/flashside" ] || rmdir --ignore-fail-on-non-empty "$destdir/etc/flashside"
    reload
}

remove() {
    local path
    for path; do
        [ -e "$destdir$path" ] || [ -L "$destdir$path" ] || continue
        rm -f "$destdir$path" || refuse "cannot remove $destdir$path"
        echo "removed $destdir$path"
    done
}

parse "$@"
places
case $action in
install) install_all ;;
enable) enable ;;
uninstall) uninstall ;;
esac
