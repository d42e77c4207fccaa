/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The parameters are those of block/qcow2-threads.c, so that the same library gives the same bytes.
 */
#include "qcow2/compressor.h"

#define ZLIB_CONST
#include <zlib.h>
#include <zstd.h>

#define MEMORY_LEVEL 9

static u64 compress_deflate(struct compressor *compressor, const u8 *cluster, u8 *to) {
    z_stream *stream = compressor->state;
    const uInt room = (uInt)(compressor->cluster_size - 1);
    if (deflateReset(stream) != Z_OK) {
        return 0;
    }
    stream->next_in = cluster;
    stream->avail_in = (uInt)compressor->cluster_size;
    stream->next_out = to;
    stream->avail_out = room;
    return deflate(stream, Z_FINISH) == Z_STREAM_END ? room - stream->avail_out : 0;
}

static u64 compress_zstd(struct compressor *compressor, const u8 *cluster, u8 *to) {
    ZSTD_outBuffer output = {to, compressor->cluster_size - 1, 0};
    ZSTD_inBuffer input = {cluster, compressor->cluster_size, 0};
    ZSTD_CCtx_reset(compressor->state, ZSTD_reset_session_only);
    size_t left = ZSTD_compressStream2(compressor->state, &output, &input, ZSTD_e_end);
    return left == 0 ? output.pos : 0;
}

void compressor_open(struct compressor *compressor, const struct qcow2 *image) {
    *compressor = (struct compressor){.cluster_size = image->cluster_size};
    if (image->compression_type == 0) {
        compressor->state = heap_take_zeroed(sizeof(z_stream));
        compressor->compress = compress_deflate;
        deflateInit2(compressor->state, Z_DEFAULT_COMPRESSION, Z_DEFLATED, -DEFLATE_WINDOW_BITS, MEMORY_LEVEL,
                     Z_DEFAULT_STRATEGY);
    } else {
        compressor->state = ZSTD_createCCtx();
        compressor->compress = compress_zstd;
    }
}
