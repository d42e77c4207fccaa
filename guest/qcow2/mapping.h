/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * A mapping: an L1 table with the L2 tables and clusters that it reaches; the disk's own or a
 * snapshot's. The image must have been verified.
 */
#ifndef AIRLOCK_QCOW2_MAPPING_H
#define AIRLOCK_QCOW2_MAPPING_H

#include "qcow2/tables.h"

struct mapping {
    u64 *l1; /* host byte order */
    u32 entries;
    u64 offset; /* of the table in the file */
};

/* Reads a snapshot's L1 table; room for `entries`, the rest zero. */
void mapping_read(struct qcow2 *image, struct mapping *mapping, u64 offset, u32 entries, u32 room);

/* Writes the L1 table. */
void mapping_write(struct qcow2 *image, const struct mapping *mapping);

/* Writes it to `offset` as one of `entries` entries, the rest zero, that shares all it names with
 * another: without COPIED flags. */
void mapping_write_shared(struct qcow2 *image, const struct mapping *mapping, u64 offset, u32 entries);

/* Reserves room in the file system for the L1 table and the L2 tables, but for those that `unlike`
 * (NULL: none) names as well. */
void mapping_reserve(struct qcow2 *image, const struct mapping *mapping, const struct mapping *unlike);

/* Do both name the same L2 table, or none, at this place? unlike may be NULL: no. */
bool mapping_same_table(const struct mapping *mapping, const struct mapping *unlike, u32 index);

/* Visits the L2 tables that `mapping` names and `unlike` (NULL: none) does not name at the same place.
 * skip: entries with this bit are left out. */
void mapping_visit(struct qcow2 *image, const struct mapping *mapping, const struct mapping *unlike, u64 skip,
                   table_visit *visit, void *context);

/* Clears the COPIED flags of the L2 tables, and in memory those of the whole L1 table; true if one of
 * the latter was set. For a mapping of which everything is referred to twice. */
bool mapping_clear_copied(struct qcow2 *image, struct mapping *mapping, const struct mapping *unlike);

/* Guest clusters that two mappings map to something else; COPIED flags do not count. */
u64 mapping_differences(struct qcow2 *image, const struct mapping *a, const struct mapping *b);

/* The entries of the active L1 table from `first` to `end` go to the disk, behind them a flush: as they are in memory,
 * or as zeros, while they stay in memory. */
void l1_write(struct qcow2 *image, u64 first, u64 end);
void l1_clear(struct qcow2 *image, u64 first, u64 end);

#endif
