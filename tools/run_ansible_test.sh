#!/usr/bin/env bash
# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# run_ansible_test.sh COLLECTION ARGUMENT...: ansible-test in the collection, a directory below the checkout.
#
# It writes the path of its Python into the first line of scripts, where a blank ends it. So where the checkout's path has
# one, Python is called by a link that has none.

set -euo pipefail
collection=$1
shift
top=$PWD
if [[ $top == *[[:space:]]* ]]; then
    links=$(mktemp -d)
    trap 'rm -rf "$links"' EXIT
    ln -s "$top" "$links/top"
    top=$links/top
    PATH=$top/.venv/bin:$PATH
fi
cd "$collection"
# Without the variable ansible-test asks the git above, which ignores build/.
ANSIBLE_TEST_CONTENT_ROOT=$PWD "$top/.venv/bin/python" "$top/.venv/bin/ansible-test" "$@"
