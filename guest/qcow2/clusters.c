/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "qcow2/clusters.h"

void clusters_free(struct refcounts *refcounts, struct disk *data, u64 entry, bool punch) {
    struct qcow2 *image = refcounts->image;
    u64 offset = entry & ENTRY_OFFSET;
    u64 length = image->cluster_size;
    if ((entry & ENTRY_COMPRESSED) != 0) {
        compressed_range(image, entry, &offset, &length);
    } else if (data != NULL) {
        if (punch && (entry & (ENTRY_OFFSET | ENTRY_COPIED)) != 0) {
            disk_queue_discard(data, offset, length);
        }
        return;
    }
    if (offset != 0) {
        refcounts_free(refcounts, offset, length, punch);
    }
}
