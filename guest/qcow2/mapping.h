/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * A mapping: an L1 table with the L2 tables and clusters that it reaches; the disk's own or a
 * snapshot's. What qcow2_update_snapshot_refcount() does entry by entry is done here in bulk: count
 * what the mapping refers to, change the refcount blocks in their order, then refresh the COPIED
 * flags. The image must have been verified.
 */
#ifndef AIRLOCK_QCOW2_MAPPING_H
#define AIRLOCK_QCOW2_MAPPING_H

#include "qcow2/refcounts.h"
#include "qcow2/verify.h"

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

/* Refuses a mapping that names a cluster or a table twice, which would make the disk's own mapping so. */
void mapping_check_unique(struct qcow2 *image, struct refcounts *refcounts, const struct verification *verification,
                          const struct mapping *mapping);

/* Refuses when one reference more does not fit a refcount. */
void mapping_check_room(struct qcow2 *image, struct refcounts *refcounts, const struct verification *verification,
                        const struct mapping *mapping);

/* In the next three, `unlike` (NULL: none) is a mapping whose L2 tables are left out where both name
 * the same one at the same place: what is added for one and dropped for the other is the same. */

/* One reference more for everything that the mapping reaches. */
void mapping_add_references(struct qcow2 *image, struct refcounts *refcounts, const struct verification *verification,
                            const struct mapping *mapping, const struct mapping *unlike);

/* Clears the COPIED flags of the L2 tables, and in memory those of the whole L1 table; true if one of
 * the latter was set. For a mapping of which everything is referred to twice. */
bool mapping_clear_copied(struct qcow2 *image, struct mapping *mapping, const struct mapping *unlike);

/* One reference less for everything that `gone` reaches; what gets free is punched. Then sets the
 * COPIED flags of what is left of it to what the refcounts say. freed: clusters. */
void mapping_drop_references(struct qcow2 *image, struct refcounts *refcounts, const struct verification *verification,
                             struct mapping *gone, const struct mapping *unlike, u64 *freed);

/* The same, and refreshes the flags of `kept` as well, which the refcounts may concern; true if one in
 * kept->l1 changed. */
bool mapping_drop_and_refresh(struct qcow2 *image, struct refcounts *refcounts, const struct verification *verification,
                              struct mapping *gone, struct mapping *kept, u64 *freed);

/* Guest clusters that two mappings map to something else; COPIED flags do not count. */
u64 mapping_differences(struct qcow2 *image, const struct mapping *a, const struct mapping *b);

#endif
