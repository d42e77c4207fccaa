/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The table of snapshots (block/qcow2-snapshot.c).
 */
#ifndef AIRLOCK_QCOW2_SNAPSHOTS_H
#define AIRLOCK_QCOW2_SNAPSHOTS_H

#include "qcow2/format.h"

/* Reads the whole table; called by qcow2_open(). */
void snapshots_read(struct qcow2 *image);

/* The snapshot that is meant, or -1. */
int64_t snapshots_find(const struct qcow2 *image, const struct selector *selector);

/* As a decimal number, one more than the largest id; returns its length. */
u32 snapshots_next_id(const struct qcow2 *image, u8 id[SNAPSHOT_ID_MAX]);

/* Bytes that the table takes when it is written. */
u64 snapshots_table_size(const struct snapshot *snapshots, u32 count);

/* Lays the table over what is in the file at `offset`: the gaps between entries keep their bytes. */
void snapshots_write(struct qcow2 *image, u64 offset, const struct snapshot *snapshots, u32 count);

/* Refuses an L1 table that qcow2_validate_table() would refuse. */
void snapshot_check_l1(const struct qcow2 *image, const struct snapshot *snapshot);

/* Ends the run with a record for each snapshot as the payload. */
_Noreturn void finish_with_snapshots(const struct qcow2 *image);

#endif
