/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "qcow2/refcount_blocks.h"

u64 refcount_blocks_for(u64 cluster_size, u64 block_entries, u64 clusters) {
    u64 per_table_cluster = cluster_size / 8;
    u64 table = 0;
    u64 blocks = 0;
    u64 sum = 0;
    u64 last;
    bool generous = true;
    do {
        last = sum;
        blocks = divide_up(clusters + table + blocks, block_entries);
        table = divide_up(blocks, per_table_cluster);
        sum = clusters + blocks + table;
        if (sum == last && generous) {
            clusters += divide_up(table, 2);
            sum = 0;
            generous = false;
        }
    } while (sum != last);
    return blocks;
}
