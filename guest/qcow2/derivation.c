/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "qcow2/derivation.h"

#include "qcow2/tally.h"

#define CELLS 256 /* that a counter of one byte can be */

static bool is_active(const struct qcow2 *image, const struct mapping *mapping) { return mapping->l1 == image->l1; }

bool derivation_can_tell(const struct qcow2 *image, const struct verification *verification,
                         const struct mapping *mapping) {
    if (!verification->is_counted || verification->counters.width != 1) {
        return false;
    }
    const u32 others = is_active(image, mapping) ? 0 : 1;
    return verification->has_compressed ? others == 0 && verification->snapshots == 0
                                        : others == 0 || verification->snapshots == 1;
}

/* The references of the mapping, where a counter says this, with no flag but TABLE. */
static u32 part_of(u32 counter, bool active) {
    const u32 count = counter & COUNT_MASK;
    const u32 kind = counter & KIND;
    if (kind == EXCLUSIVE) {
        return (counter & COPIED_SEEN) != 0 ? count : 0; /* compressed, and then of the one mapping that there is */
    }
    const u32 by_active = kind == KIND || (kind == 0 && (counter & ACTIVE_SEEN) != 0) ? 1 : 0;
    const u32 part = active ? by_active : count - by_active;
    return part | (part != 0 ? counter & TABLE : 0);
}

static u32 counter_of_cell(u32 cell) { return (cell >> BYTE_SHIFT) << FLAGS_SHIFT | (cell & 0xf); }

bool derive_references(const struct qcow2 *image, struct verification *verification, const struct mapping *mapping,
                       u32 table) {
    if (!derivation_can_tell(image, verification, mapping)) {
        return false;
    }
    u8 parts[CELLS];
    for (u32 cell = 0; cell < CELLS; cell++) {
        u32 part = part_of(counter_of_cell(cell), is_active(image, mapping));
        u32 flags = (part & TABLE) != 0 ? table : 0;
        parts[cell] = (u8)(flags >> FLAGS_SHIFT << BYTE_SHIFT | (part & COUNT_MASK));
    }
    struct counters *counters = &verification->counters;
    for (u64 cluster = 0; cluster < counters->count;) {
        const u64 end = chunk_end(counters, cluster);
        u64 i = counters_touched(counters, cluster) ? cluster : end;
        for (; i < end && end - i >= RUN; i += RUN) {
            u8 *cells = counters->cells + i;
            u64 all = load64(cells);
            u64 alike = (all & 0xff) * 0x0101010101010101ull;
            if (all == alike) {
                store64(cells, parts[all & 0xff] * 0x0101010101010101ull);
                continue;
            }
            for (u32 k = 0; k < RUN; k++) {
                cells[k] = parts[cells[k]];
            }
        }
        for (; i < end; i++) {
            counters->cells[i] = parts[counters->cells[i]];
        }
        cluster = end;
    }
    verification->is_counted = false;
    return true;
}

bool derive_unique(const struct qcow2 *image, const struct verification *verification, const struct mapping *mapping) {
    if (!derivation_can_tell(image, verification, mapping)) {
        return false;
    }
    bool twice[CELLS];
    for (u32 cell = 0; cell < CELLS; cell++) {
        twice[cell] = (part_of(counter_of_cell(cell), is_active(image, mapping)) & COUNT_MASK) > 1;
    }
    const struct counters *counters = &verification->counters;
    u32 last = CELLS; /* what was looked at before this one */
    for (u64 cluster = 0; cluster < counters->count;) {
        const u64 end = chunk_end(counters, cluster);
        for (u64 i = counters_touched(counters, cluster) ? cluster : end; i < end; i++) {
            const u8 *cells = counters->cells + i;
            if (end - i >= RUN && load64(cells) == last * 0x0101010101010101ull) {
                i += RUN - 1;
                continue;
            }
            if (twice[*cells]) {
                return false;
            }
            last = *cells;
        }
        cluster = end;
    }
    return true;
}
