#!/usr/bin/env bash
# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# What failed in the output of `make test`, in the file $1, in short and at the end, for a CI may show the end alone.

set -euo pipefail

echo
echo "What failed (all of the output is in $1):"
# make says which recipe failed below what the recipe printed.
grep --before-context=12 --no-group-separator '^make\[[0-9]*\]: \*\*\* \[' "$1" || true
grep -E '^(FAILED|ERROR) ' "$1" | cut -c 1-300 || true
grep -oE '^make\[[0-9]*\]: \*\*\* \[.*' "$1" | sort -u || true
