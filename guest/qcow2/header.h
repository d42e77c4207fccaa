/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Opening an image: the header, its extensions, the L1 table.
 */
#ifndef AIRLOCK_QCOW2_HEADER_H
#define AIRLOCK_QCOW2_HEADER_H

#include "qcow2/format.h"

/* Reads and checks the header as qcow2_do_open() does, in its order, and the table of snapshots.
 * writing: dirty and corrupt images are refused. */
void qcow2_open(struct qcow2 *image, u32 disk, bool writing);

/* For who only reads the disk: names, snapshots and unknown extensions are not known any more, and what was taken of
 * the heap to open the image can be given back. */
/* The same for writing, whatever is wrong with the extension for bitmaps. */
void qcow2_open_damaged(struct qcow2 *image, u32 disk);

void qcow2_forget_header(struct qcow2 *image);

/* Makes the first `length` bytes of the first cluster available, as they were when the image was opened. */
void header_load(struct qcow2 *image, u64 length);

/* Where the header's extensions have to end at the latest. */
u64 header_extensions_limit(const struct qcow2 *image);

void qcow2_load_l1(struct qcow2 *image);

/* True when an open for writing has to rewrite the header first: unknown autoclear bits, or bitmaps
 * that a program without bitmap support has made stale. */
bool header_needs_update(const struct qcow2 *image);

/* Writes the first cluster anew from what is known (qcow2_update_header()): unknown autoclear bits
 * and stale bitmaps are gone from it. A crash leaves the old header or the new one; only a cluster without room
 * for both can tear, where they are longer than a sector. */
void header_rewrite(struct qcow2 *image);

/* Refuses so when there is no room for what it would write. */
void header_check_room(struct qcow2 *image, enum refusal when_full);

/* What header_rewrite() needs of an image that is not there yet: version 3, clusters of 1 << cluster_bits bytes. */
void header_begin(struct qcow2 *image, u32 disk, u32 cluster_bits);

/* Patches of fields in place. */
void header_write_snapshots(struct qcow2 *image);
void header_write_l1(struct qcow2 *image);
void header_write_refcount_table(struct qcow2 *image);
void header_write_size(struct qcow2 *image);
void header_write_features(struct qcow2 *image); /* the incompatible ones */

/* Both tables at once, in one sector. */
void header_write_tables(struct qcow2 *image);

/* Size and L1 table at once: they lie in one sector, so a crash leaves both or none. */
void header_switch_mapping(struct qcow2 *image, u64 size, u32 l1_entries, u64 l1_offset);

#endif
