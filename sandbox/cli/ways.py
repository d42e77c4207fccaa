# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What messages advise who uses the command line, where words/advice.py names modules and their options."""

WAYS = {
    "list_snapshots": '"airlock snapshot -l {image}" lists what there is.',
    "list_bitmaps": '"airlock bitmap --list {image}" lists what there is.',
    "delete_snapshots": 'Delete a snapshot first: "airlock snapshot -d SNAPSHOT {image}".',
    "remove_bitmaps": 'Remove what is not needed first: "airlock bitmap --remove {image} NAME".',
    "policy_of_bitmaps": "With --bitmaps merge they are merged into those of the base, with --bitmaps drop they are "
    "removed.",
    "drop_bitmaps": "Have them removed (--bitmaps drop), and make a full backup next time.",
    "only_removed": 'It can only be removed: "airlock bitmap --remove {image} NAME".',
    "remove_damaged": "Disk and snapshots can be read. To go on, remove what is damaged, "
    '"airlock bitmap --remove-damaged {image}", and make a full backup then.',
    "resize_allowed": "Allow the resize (leave out --no-resize)",
    "not_compressed": "Run it without -c.",
    "state_format": "State it with --backing-format (airlock rebase: --unrecorded-format)",
    "roots": "the paths of --allowed-root",
    "more_time": "Look into what keeps the storage busy, then run it again.",
    "follow_links": "run it with --follow-links",
    "no_force_share": "Leave -U out",
    "wait": 'Wait until it has ended, or have the command wait for it ("airlock --lock-timeout 600 COMMAND ...").',
    "allow": "run it with --allowed-root {file}",
    "shorten": 'Shorten it from below: "airlock rebase -b FILE -F FORMAT IMAGE", for an image of its lower part and '
    "one that is further down.",
    "temporary": "Have TMPDIR name a directory that may be written to.",
    "locale": "Run it with a locale that has them (LC_ALL=C.UTF-8).",
}
