/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "vmdk/writer.h"

#define WAITING_MAX (256 * MIB) /* a crash leaves no more than this at the end of the file for nothing */

static void queue_tables(struct vmdk_writer *w, const u32 *directory) {
    const struct grains *grains = w->grains;
    const u64 size = table_bytes(grains->image);
    for (u32 i = 0; i < grains->count; i++) {
        if (w->dirty[i]) {
            disk_queue_write(&grains->image->disk, directory[i] * SECTOR, grains->tables + i * size, size);
        }
    }
    disk_run();
}

/* Data first, then the copies of the tables, then the tables: what these have, the copies have, so that who goes by
 * the tables and finds nothing to do leaves no copy behind. An entry of either is the old one or the new one. */
static void write_group(struct vmdk_writer *w) {
    struct grains *grains = w->grains;
    struct vmdk *image = grains->image;
    bool any = false;
    for (u32 i = 0; i < grains->count; i++) {
        any |= w->dirty[i];
    }
    if (!any) {
        return;
    }
    disk_flush(&image->disk);
    if (image->redundant_offset != 0) {
        void *mark = heap_mark();
        u32 *directory = heap_take(4ull * grains->count);
        directory_read(image, image->redundant_offset, grains->first, grains->count, directory);
        queue_tables(w, directory);
        disk_flush(&image->disk);
        heap_release(mark);
    }
    queue_tables(w, grains->directory);
    disk_flush(&image->disk);
    memset(w->dirty, 0, grains->count * sizeof(bool));
    w->waiting = 0;
}

static void leave_window(void *context) { write_group(context); }

void vmdk_writer_open(struct vmdk_writer *writer, struct grains *grains, vmdk_fill *keep, void *context) {
    *writer = (struct vmdk_writer){.grains = grains, .keep = keep, .context = context};
    writer->dirty = heap_take_zeroed(grains->room * sizeof(bool));
    grains->leave = leave_window;
    grains->leave_context = writer;
}

static u8 *entry_at(const struct vmdk_writer *w, u64 offset) {
    const struct vmdk *image = w->grains->image;
    u8 *table = grains_need(w->grains, offset / table_covers(image));
    return table + 4 * (offset / image->grain_size % image->table_entries);
}

static void set_entry(struct vmdk_writer *w, u64 offset, u32 entry) {
    put_little32(entry_at(w, offset), entry);
    w->dirty[offset / table_covers(w->grains->image) - w->grains->first] = true;
}

/* Room for the grains that [offset, end) touches, all of them new, at the end of the file. */
static u64 allocate(struct vmdk_writer *w, u64 offset, u64 end) {
    struct vmdk *image = w->grains->image;
    u64 host = image->end;
    u64 bytes = round_up(end, image->grain_size) - offset / image->grain_size * image->grain_size;
    if (host / SECTOR >= FILE_SECTORS_MAX || bytes > FILE_SECTORS_MAX * SECTOR - host) {
        result_disk(image->disk.index);
        refuse(REFUSAL_VMDK_FULL, .a = host, .b = bytes);
    }
    image->end += bytes;
    w->waiting += bytes;
    return host;
}

/* The part of a new grain that is not written to: zeros, where the grain was zeroed (get_whole_cluster()). */
static void keep_part(struct vmdk_writer *w, bool zeroed, u64 offset, u64 length, u64 host) {
    struct disk *disk = &w->grains->image->disk;
    if (length > 0 && zeroed) {
        disk_queue_zero(disk, host, length);
    } else if (length > 0) {
        w->keep(w->context, offset, length, disk, host);
    }
}

/* Grains from `offset` to `end`, all of them without a place of their own. */
static void write_new(struct vmdk_writer *w, u64 offset, u64 end, vmdk_fill *fill, void *context) {
    struct vmdk *image = w->grains->image;
    const u64 size = image->grain_size;
    u64 first = offset / size * size;
    u64 behind = round_up(end, size);
    u64 host = allocate(w, offset, end);
    bool first_zeroed = little32(entry_at(w, first)) == ENTRY_ZEROED;
    bool last_zeroed = little32(entry_at(w, behind - size)) == ENTRY_ZEROED;
    keep_part(w, first_zeroed, first, offset - first, host);
    fill(context, offset, end - offset, &image->disk, host + (offset - first));
    keep_part(w, last_zeroed, end, behind - end, host + (end - first));
    for (u64 at = first; at < behind; at += size) {
        set_entry(w, at, (u32)((host + (at - first)) / SECTOR));
    }
}

void vmdk_write(struct vmdk_writer *w, u64 offset, u64 length, vmdk_fill *fill, void *context) {
    struct vmdk *image = w->grains->image;
    const u64 end = offset + length;
    w->written = true;
    while (offset < end) {
        struct extent found = grains_at(w->grains, offset, end - offset);
        if (found.kind == EXTENT_DATA) {
            fill(context, offset, found.length, &image->disk, found.host);
        } else {
            write_new(w, offset, offset + found.length, fill, context);
        }
        offset += found.length;
        if (w->waiting >= WAITING_MAX) {
            write_group(w);
        }
    }
}

bool vmdk_zero(struct vmdk_writer *w, u64 offset, u64 length) {
    struct vmdk *image = w->grains->image;
    if (!image->has_zeroed_grains) {
        return false;
    }
    w->written = true;
    for (u64 at = offset; at < offset + length; at += image->grain_size) {
        if (little32(entry_at(w, at)) != ENTRY_ZEROED) {
            set_entry(w, at, ENTRY_ZEROED);
        }
    }
    return true;
}

void vmdk_writer_close(struct vmdk_writer *w) {
    write_group(w);
    disk_flush(&w->grains->image->disk);
}
