/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Writing to the disk of an image, upwards, as qcow2_co_pwritev() and qcow2_co_pwrite_zeroes() would if they had
 * one request at a time: the same clusters are taken and freed. Tables are changed in the window of the image's
 * lookup, and go to the file in groups: refcounts first, then L2 tables, then the L1 table; what was freed is
 * free on the disk after that, and nothing is written to it before.
 */
#ifndef AIRLOCK_QCOW2_WRITER_H
#define AIRLOCK_QCOW2_WRITER_H

#include "qcow2/lookup.h"
#include "qcow2/refcounts.h"

#define WRITER_REQUEST_MAX (16 * MIB)

/* Puts `length` bytes of the disk, from `offset` on, at `host` of the disk that holds the clusters; it may queue
 * that. */
typedef void writer_fill(void *context, u64 offset, u64 length, struct disk *to, u64 host);

struct writer {
    struct lookup *lookup;
    struct refcounts *refcounts;
    struct disk *data; /* holds the clusters: the image's own file, or its external data file */
    struct disk data_file;
    writer_fill *keep; /* gives what the image shows now, for the rest of a cluster that gets a new place */
    void *context;     /* of keep */
    bool has_backing;
    bool *dirty;  /* tables of the window */
    u64 l1_first; /* L1 entries that changed, from this one ... */
    u64 l1_end;   /* ... to this one */
    u64 *old;     /* L2 entries that the request under way has replaced */
    u32 old_count;
    bool linked; /* an L2 entry was set to a cluster */
};

void writer_open(struct writer *writer, struct lookup *lookup, struct refcounts *refcounts, bool has_backing,
                 writer_fill *keep, void *context);

/* fill: gives the new bytes. length: up to WRITER_REQUEST_MAX. */
void writer_write(struct writer *writer, u64 offset, u64 length, writer_fill *fill, void *context);

/* A cluster, of which the image holds nothing yet, compressed to `length` bytes (qcow2_co_pwritev_compressed_part()).
 * They must stay as they are until disk_run(). */
void writer_write_compressed(struct writer *writer, u64 offset, const u8 *bytes, u64 length);

/* Makes a part of the disk read as zeros, whole (sub)clusters of it or up to its end; unmaps: what was there is
 * freed. False: this image cannot (version 2 with a backing file, or half a compressed cluster); zeros have to be
 * written. */
bool writer_zero(struct writer *writer, u64 offset, u64 length, bool unmaps);

/* All that was written so far is on the disk. */
void writer_flush(struct writer *writer);

/* Everything is on the disk. */
void writer_close(struct writer *writer);

#endif
