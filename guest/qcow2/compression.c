/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * zlib and zstd are the distribution's, linked in.
 */
#include "qcow2/compression.h"

#define ZLIB_CONST
#include <zlib.h>
#include <zstd.h>

static bool inflate_deflate(u8 *to, u64 room, const u8 *from, u64 length) {
    z_stream stream = {.next_in = from, .avail_in = (uInt)length, .next_out = to, .avail_out = (uInt)room};
    if (inflateInit2(&stream, -DEFLATE_WINDOW_BITS) != Z_OK) {
        return false;
    }
    int result = inflate(&stream, Z_FINISH);
    inflateEnd(&stream);
    /* The sectors may hold the beginning of a neighbour: only a full cluster counts. */
    return (result == Z_STREAM_END || result == Z_BUF_ERROR) && stream.avail_out == 0;
}

static bool inflate_zstd(u8 *to, u64 room, const u8 *from, u64 length) {
    ZSTD_DStream *stream = ZSTD_createDStream();
    ZSTD_outBuffer output = {to, room, 0};
    ZSTD_inBuffer input = {from, length, 0};
    bool moves = stream != NULL;
    while (moves && output.pos < output.size) {
        u64 in = input.pos;
        u64 out = output.pos;
        size_t result = ZSTD_decompressStream(stream, &output, &input);
        moves = !ZSTD_isError(result) && (input.pos > in || output.pos > out);
    }
    ZSTD_freeDStream(stream);
    return output.pos == output.size;
}

void inflate_entry(struct qcow2 *image, u64 entry, u8 *cluster, u8 *scratch) {
    u64 offset;
    u64 length;
    compressed_range(image, entry, &offset, &length);
    if (offset >= image->disk.size) {
        refuse(REFUSAL_COMPRESSED_CLUSTER, .a = entry, .b = offset);
    }
    disk_read(&image->disk, offset, scratch, length);
    void *mark = heap_mark();
    bool whole = image->compression_type == 0 ? inflate_deflate(cluster, image->cluster_size, scratch, length)
                                              : inflate_zstd(cluster, image->cluster_size, scratch, length);
    heap_release(mark);
    if (!whole) {
        refuse(REFUSAL_COMPRESSED_CLUSTER, .a = entry, .b = offset);
    }
}
