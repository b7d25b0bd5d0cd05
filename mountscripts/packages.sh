# Debian packages: installs what a script needs and the machine lacks. Sourced, not run.
#
# Touches: the machine's installed packages, and a private apt directory that is deleted again.
# Never removes a package, never edits the machine's own apt configuration.
# Names no mirror: whatever the machine's apt sources say is used.

export DEBIAN_FRONTEND=noninteractive

# packages_missing PACKAGE…: prints those that are not installed.
packages_missing() {
    local package
    for package; do
        dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^ii' || echo "$package"
    done
}

# packages_install PACKAGE…: installs those that are missing; returns 1 if one cannot be had.
packages_install() {
    local missing
    mapfile -t missing < <(packages_missing "$@")
    [ ${#missing[@]} -gt 0 ] || return 0
    apt-get -q -o Acquire::Retries=3 update || return 1
    packages_get "${missing[@]}"
}

# packages_install_qemu PACKAGE…: the same for QEMU's packages, which all have to be of one version. Where
# one of them came from backports, the plain suite's others would push it out: then all come from there.
packages_install_qemu() {
    packages_install "$@" && return 0
    packages_install_from_backports "$@"
}

# packages_mirror: prints "URI SUITE" of this Debian release as the machine's own sources name it, also before
# the first apt-get update.
packages_mirror() {
    local suite
    suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    apt-get indextargets --no-release-info --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' |
        awk -v suite="$suite" '$1 ~ /^https?:/ && $2 == suite { print $1, $2; found = 1; exit } END { exit !found }'
}

# packages_get PACKAGE… with apt options from the environment's packages_apt array.
# --no-remove: a conflict is a failure here, never a reason to take something away.
packages_get() {
    apt-get -q -y "${packages_apt[@]}" -o Acquire::Retries=3 -o DPkg::Lock::Timeout=120 \
        install --no-install-recommends --no-remove "$@"
}
packages_apt=()

packages_install_from_backports() (
    read -r uri suite < <(packages_mirror) || exit 1
    dir=$(mktemp -d) && trap 'rm -rf "$dir"' EXIT
    chmod 755 "$dir"
    mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"
    signed=/usr/share/keyrings/debian-archive-keyring.gpg
    echo "deb [signed-by=$signed] $uri $suite-backports main" >"$dir/sources.list"
    packages_apt=(-o "Dir::Etc::sourcelist=$dir/sources.list" -o "Dir::State::lists=$dir/lists"
        -o "Dir::Cache=$dir/cache" -t "$suite-backports")
    # An update knows nothing of the wanted release yet.
    apt-get -q "${packages_apt[@]:0:6}" -o Acquire::Retries=3 update || exit 1
    packages_get "$@"
)
