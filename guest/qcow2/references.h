/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * What a mapping refers to, counted and changed in the refcounts. What qcow2_update_snapshot_refcount()
 * does entry by entry is done here in bulk: count the references, change the refcount blocks in their
 * order, then refresh the COPIED flags. The image must have been verified.
 */
#ifndef AIRLOCK_QCOW2_REFERENCES_H
#define AIRLOCK_QCOW2_REFERENCES_H

#include "qcow2/mapping.h"
#include "qcow2/refcounts.h"
#include "qcow2/verification.h"

/* Refuses a mapping that names a cluster or a table twice, which would make the disk's own mapping so. */
void references_check_unique(struct qcow2 *image, struct refcounts *refcounts, struct verification *verification,
                             const struct mapping *mapping);

/* Refuses when one reference more does not fit a refcount. */
void references_check_room(struct qcow2 *image, struct refcounts *refcounts, struct verification *verification,
                           const struct mapping *mapping);

/* In the next two, `unlike` (NULL: none) is a mapping whose L2 tables are left out where both name the
 * same one at the same place: what is added for one and dropped for the other is the same. */

/* One reference more for everything that the mapping reaches. */
void references_add(struct qcow2 *image, struct refcounts *refcounts, struct verification *verification,
                    const struct mapping *mapping, const struct mapping *unlike);

/* One reference less for everything that `gone` reaches; what gets free is punched. Then sets the
 * COPIED flags of what is left of it to what the refcounts say. freed: clusters. */
void references_drop(struct qcow2 *image, struct refcounts *refcounts, struct verification *verification,
                     struct mapping *gone, const struct mapping *unlike, u64 *freed);

/* The same, and refreshes the flags of `kept` as well, which the refcounts may concern; true if one in
 * kept->l1 changed. */
bool references_drop_and_refresh(struct qcow2 *image, struct refcounts *refcounts, struct verification *verification,
                                 struct mapping *gone, struct mapping *kept, u64 *freed);

#endif
