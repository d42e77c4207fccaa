/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * What the counters of a verification say of one mapping, so that its tables need not be read again. They count the
 * references of all mappings together. The active mapping refers to what it reaches just once, and has left a flag
 * there; so where there is one snapshot, the rest is the snapshot's. Compressed clusters have no such flag.
 */
#ifndef AIRLOCK_QCOW2_DERIVATION_H
#define AIRLOCK_QCOW2_DERIVATION_H

#include "qcow2/mapping.h"
#include "qcow2/verification.h"

/* Do the counters say which references are the mapping's? */
bool derivation_can_tell(const struct qcow2 *image, const struct verification *verification,
                         const struct mapping *mapping);

/* Makes the counters those of the mapping, with the flag `table` on its L2 tables. False: they cannot tell, and are as
 * they were. */
bool derive_references(const struct qcow2 *image, struct verification *verification, const struct mapping *mapping,
                       u32 table);

/* Is it known that the mapping names no cluster and no table twice? */
bool derive_unique(const struct qcow2 *image, const struct verification *verification, const struct mapping *mapping);

#endif
