/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The clusters that L2 entries name.
 */
#ifndef AIRLOCK_QCOW2_CLUSTERS_H
#define AIRLOCK_QCOW2_CLUSTERS_H

#include "qcow2/refcounts.h"

/* One reference less for what an L2 entry names (qcow2_free_any_cluster()). data: the external data file, in which
 * nothing is counted, only discarded; NULL: there is none. punch: what gets free is discarded. */
void clusters_free(struct refcounts *refcounts, struct disk *data, u64 entry, bool punch);

#endif
