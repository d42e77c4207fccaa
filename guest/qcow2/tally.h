/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The counting of a verification: what refers to a cluster is noted in its counter, and whatever
 * contradicts what was noted before is refused at once, with the entry that says it.
 */
#ifndef AIRLOCK_QCOW2_TALLY_H
#define AIRLOCK_QCOW2_TALLY_H

#include "qcow2/bitmaps.h"
#include "qcow2/counters.h"
#include "qcow2/refcounts.h"
#include "qcow2/tables.h"
#include "qcow2/verification.h"

/* Flags of a counter. An L2 table that the active L1 names has both of the first two. */
#define EXCLUSIVE (1u << 31)   /* metadata: exactly one reference */
#define TABLE (1u << 30)       /* an L2 table */
#define COPIED_SEEN (1u << 29) /* an active entry says that it is the only one */
#define CLEAR_SEEN (1u << 28)  /* an active entry was the only one, and did not say so */
#define KIND (EXCLUSIVE | TABLE)
#define ACTIVE_SEEN (COPIED_SEEN | CLEAR_SEEN) /* both: an active entry that rightly has no COPIED flag */
#define COMPRESSED (EXCLUSIVE | COPIED_SEEN)   /* compressed clusters, which may share it with each other only */

struct verifier {
    struct qcow2 *image;
    struct refcounts *refcounts;
    struct verification *result;
    struct counters counters;
    struct table_batch l2;
    u64 clusters; /* of the file */
    u64 counted;  /* of them, those that a refcount block may count: behind, all refcounts are 0 */
    u64 named;    /* L2 tables, as often as L1 tables name one */
    u64 tables;   /* L2 tables of the window */
    u64 hunted;   /* the cluster whose first reference is to be named; NOTHING: none */
    enum refusal hunted_for;
    u64 hunted_refcount;
    u64 hunted_references;
};

/* The entry that refers to a cluster, for messages. */
struct origin {
    enum table table;
    u64 offset;
    u64 index;
    u64 entry;
};

_Noreturn void blame(const struct origin *origin, enum refusal code, u64 cluster_offset, u64 value);

/* A run of clusters that nothing else may use. */
void tally_exclusive(struct verifier *v, u64 offset, u64 bytes, const struct origin *origin);

/* An L2 table that an L1 entry names. */
void tally_table(struct verifier *v, u64 cluster, const struct origin *origin, bool active);

/* All that an L2 table names, item->weight times; item->owner: it is the active mapping's. A table_visit. */
bool tally_l2(void *context, const struct table_item *item, u8 *table);

#endif
