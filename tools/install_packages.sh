#!/usr/bin/env bash
# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# install_packages.sh venv|build|demo|test|bench: installs the Debian packages that are missing for it; quick and silent
# when none is. qemu-utils is wanted at 10.0, which Debian 12 has in its backports suite: that is enabled by a
# second source list, derived from the machine's own with the suite's name changed.

set -euo pipefail

qemu_wanted='10.0.'
apt_directory=${AIRLOCK_APT_DIRECTORY:-/etc/apt}
os_release=${AIRLOCK_OS_RELEASE:-/etc/os-release}

say() {
    printf 'airlock: %s\n' "$*" >&2
}

is_installed() {
    [[ $(dpkg-query --show --showformat '${Status}' "$1" 2>/dev/null) == 'install ok installed' ]]
}

qemu_is_right() {
    [[ $(qemu-img --version 2>/dev/null) == "qemu-img version ${qemu_wanted}"* ]]
}

as_root() {
    if [[ $(id -u) == 0 ]]; then
        "$@"
    else
        sudo "$@"
    fi
}

# The binary sources of suite $1 in the machine's lists, written for suite $2, one-line format first.
derive_sources() {
    local list
    for list in "$apt_directory"/sources.list "$apt_directory"/sources.list.d/*.list; do
        [[ ! -f $list ]] || awk -v from="$1" -v to="$2" '
            $1 == "deb" {
                suite = 2
                if ($2 ~ /^\[/) { while ($suite !~ /\]$/ && suite < NF) suite++; suite++ }
                if ($(suite + 1) == from) { $(suite + 1) = to; print }
            }' "$list"
    done
}

# The same from deb822 files: stanzas divided by empty lines, comments dropped.
derive_stanzas() {
    local list
    for list in "$apt_directory"/sources.list.d/*.sources; do
        [[ ! -f $list ]] || sed '/^#/d' "$list" | awk -v from="$1" -v to="$2" '
            BEGIN { RS = ""; FS = "\n" }
            {
                binary = enabled = found = 0; text = ""; enabled = 1
                for (i = 1; i <= NF; i++) {
                    line = $i
                    field = tolower(line); sub(/:.*/, "", field)
                    value = line; sub(/^[^:]*:[ \t]*/, "", value)
                    if (field == "enabled" && tolower(value) ~ /^(no|false|0)/) enabled = 0
                    if (field == "types") { binary = (" " value " ") ~ / deb /; line = "Types: deb" }
                    if (field == "suites") { found = (" " value " ") ~ (" " from " "); line = "Suites: " to }
                    text = text line "\n"
                }
                if (binary && enabled && found) print text
            }'
    done
}

enable_backports() {
    local codename=$1 suite=$1-backports lines stanzas
    if [[ $(apt-cache policy 2>/dev/null) == *"n=$suite,"* ]]; then
        return
    fi
    lines=$(derive_sources "$codename" "$suite")
    stanzas=$(derive_stanzas "$codename" "$suite")
    if [[ -z $lines$stanzas ]]; then
        say "no apt source of $codename found to derive $suite from"
        return 1
    fi
    [[ -z $lines ]] || as_root tee "$apt_directory/sources.list.d/airlock-backports.list" <<<"$lines" >/dev/null
    [[ -z $stanzas ]] || as_root tee "$apt_directory/sources.list.d/airlock-backports.sources" <<<"$stanzas" >/dev/null
}

# Silent unless it fails; -qq answers yes.
apt() {
    local printed
    printed=$(as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 "$@" 2>&1) && return
    say "apt-get $* failed: $printed"
    return 1
}

install_qemu() {
    local candidate codename
    apt update
    candidate=$(apt-cache policy qemu-utils | awk '$1 == "Candidate:" { print $2 }')
    if [[ $candidate =~ ^([0-9]+:)?10\.0\. ]]; then
        apt install --no-install-recommends qemu-utils
        return
    fi
    codename=$(. "$os_release" && printf '%s' "${VERSION_CODENAME:-}")
    enable_backports "$codename"
    apt update
    apt install --no-install-recommends --target-release "$codename-backports" qemu-utils
}

main() {
    local kind=${1:?venv, build, demo, test or bench} package missing=() wanted=(gcc libc6-dev zlib1g-dev libzstd-dev) qemu=no
    case $kind in
        venv) wanted=(python3-venv) ;;
        build) ;;
        demo) qemu=yes ;;
        test | bench)
            qemu=yes
            wanted+=(git openssh-client openssh-server procps faketime strace clang-format clang-tidy)
            [[ $kind == test ]] || wanted+=(xfsprogs)
            ;;
        *)
            say "unknown set of packages: $kind"
            return 2
            ;;
    esac
    if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
        say "no apt here: see to ${wanted[*]} yourself (and qemu-img ${qemu_wanted}x for demo and test)"
        return 0
    fi
    for package in "${wanted[@]}"; do
        is_installed "$package" || missing+=("$package")
    done
    [[ $qemu == no ]] || ! qemu_is_right || qemu=no
    [[ ${#missing[@]} -gt 0 || $qemu == yes ]] || return 0
    if [[ $(id -u) != 0 ]] && ! command -v sudo >/dev/null; then
        say "as root, please: apt-get install ${missing[*]} $([[ $qemu == no ]] || echo "qemu-utils (${qemu_wanted}x, from backports)")"
        return 1
    fi
    if [[ ${#missing[@]} -gt 0 ]]; then
        say "installing ${missing[*]}"
        apt update
        apt install --no-install-recommends "${missing[@]}"
    fi
    if [[ $qemu == yes ]]; then
        say "installing qemu-utils ${qemu_wanted}x"
        install_qemu
        qemu_is_right || { say "qemu-img ${qemu_wanted}x is wanted, here is: $(qemu-img --version | head -n 1)"; return 1; }
    fi
}

main "$@"
