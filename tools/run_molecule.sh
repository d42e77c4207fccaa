#!/usr/bin/env bash
# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# run_molecule.sh [SCENARIO...]: all scenarios but those, with the ansible-core that is found first. Not as root, and
# without sudo, those that need root are left out, which is said.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Of ssh's sockets, that want a short path.
ANSIBLE_SSH_CONTROL_PATH_DIR=$(mktemp -d /tmp/molecule.XXXXXX)
export ANSIBLE_SSH_CONTROL_PATH_DIR
trap 'rm -rf "$ANSIBLE_SSH_CONTROL_PATH_DIR"' EXIT

# What a run that was killed may have left.
molecule destroy --scenario-name default >build/molecule.log 2>&1 || { cat build/molecule.log; exit 1; }

leave_out=()
for scenario; do
    leave_out+=(--exclude "$scenario")
done
if [[ $(id -u) != 0 ]] && ! sudo -n true 2>/dev/null; then
    echo 'SKIPPED the scenario sandbox_host, which makes users: that needs root' >&2
    leave_out+=(--exclude sandbox_host)
fi
molecule test --all "${leave_out[@]}"
