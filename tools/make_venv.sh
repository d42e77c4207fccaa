#!/usr/bin/env bash
# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# make_venv.sh run|develop|oldest: brings .venv/, or .venv-2.18/ for the oldest ansible-core that is supported, to what
# tools/requirements/ lists and leaves installed-* there as the mark of it. Any Python from 3.11 to 3.13 will do; without
# one that has venv, Debian's is completed.

set -euo pipefail

say() {
    printf 'airlock: %s\n' "$*" >&2
}

find_python() {
    local candidate
    for candidate in python3 python3.13 python3.12 python3.11 /usr/bin/python3; do
        if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
            printf '%s' "$candidate"
            return
        fi
    done
    return 1
}

set_name=${1:?run, develop or oldest}
home=.venv
if [ "$set_name" = oldest ]; then
    home=.venv-2.18
fi
python=$home/bin/python
if ! "$python" -c 'import pip' 2>/dev/null; then
    if ! base=$(find_python); then
        bash tools/install_packages.sh venv
        base=$(find_python) || { say 'no Python 3.11 to 3.13 with the venv module here'; exit 1; }
    fi
    rm -rf "$home"
    "$base" -m venv "$home"
fi
say "installing the Python packages of tools/requirements/$set_name.txt into $home/"
constraints=tools/requirements/constraints.txt
if [ "$set_name" = oldest ]; then
    constraints=tools/requirements/oldest.txt # it is whole, and an older ansible-core takes older packages
fi
"$python" -m pip install -qq --disable-pip-version-check --no-input \
    --constraint "$constraints" --requirement "tools/requirements/$set_name.txt"
touch "$home/installed-$set_name"
