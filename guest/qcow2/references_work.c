/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "qcow2/references_work.h"

#include "qcow2/derivation.h"

/* L2 tables that `mapping` names and `unlike` (NULL: none) does not name at the same place. shared: only those that
 * something else refers to as well. */
static u64 tables(const struct qcow2 *image, const struct verification *shared, const struct mapping *mapping,
                  const struct mapping *unlike) {
    u64 count = 0;
    for (u32 i = 0; i < mapping->entries; i++) {
        u64 cluster = (mapping->l1[i] & ENTRY_OFFSET) >> image->cluster_bits;
        if (cluster == 0 || mapping_same_table(mapping, unlike, i)) {
            continue;
        }
        count += shared == NULL ||
                 (in_window(&shared->counters, cluster) && (counter_get(&shared->counters, cluster) & COUNT_MASK) > 1);
    }
    return count;
}

/* Tables that are read to count what the mapping refers to: none where that can be told without. */
static u64 tables_counted(const struct qcow2 *image, const struct verification *verification,
                          const struct mapping *mapping, const struct mapping *unlike) {
    if (unlike == NULL && derivation_can_tell(image, verification, mapping)) {
        return 0;
    }
    return tables(image, NULL, mapping, unlike) * (verification->has_counters ? 1 : max64(verification->windows, 1));
}

u64 work_of_adding(const struct refcounts *refcounts, const struct verification *verification,
                   const struct mapping *mapping, const struct mapping *unlike) {
    const struct qcow2 *image = refcounts->image;
    const u64 blocks = min64(refcounts_blocks(refcounts), tables(image, NULL, mapping, unlike));
    return (tables_counted(image, verification, mapping, unlike) + blocks) * image->cluster_size;
}

u64 work_of_dropping(const struct refcounts *refcounts, const struct verification *verification,
                     const struct mapping *gone, const struct mapping *unlike, const struct mapping *kept) {
    const struct qcow2 *image = refcounts->image;
    const u64 dropped = tables(image, NULL, gone, unlike);
    u64 count = tables_counted(image, verification, gone, unlike);
    count += kept != NULL ? refcounts_blocks(refcounts) : min64(refcounts_blocks(refcounts), dropped);
    count += verification->is_counted ? tables(image, verification, gone, unlike) : 0;
    count += kept != NULL ? tables(image, NULL, kept, gone) : 0;
    return count * image->cluster_size;
}

u64 work_of_visiting(const struct qcow2 *image, const struct mapping *mapping, const struct mapping *unlike) {
    return tables(image, NULL, mapping, unlike) * image->cluster_size;
}
