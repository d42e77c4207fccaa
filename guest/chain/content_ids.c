/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "chain/content_ids.h"

#include "vmdk/descriptor.h"

#define FNV_START 0x811c9dc5u /* the hash FNV-1a with 32 bits */
#define DIGITS_MIN 6          /* of an id that tells anything */
#define FNV_PRIME 0x01000193u

static u32 mix(u32 hash, u32 value) {
    for (u32 i = 0; i < 4; i++) {
        hash = (hash ^ (value >> 8 * i & 0xff)) * FNV_PRIME;
    }
    return hash;
}

/* A value that both the base and the layer that records it have digits for. */
static u32 fit(const struct chain *chain, u32 base, u32 value) {
    value = content_id_fit(&chain->layers[base].vmdk->id, value);
    return is_vmdk(&chain->layers[base - 1]) ? content_id_fit(&chain->layers[base - 1].vmdk->parent_id, value) : value;
}

/* Do their ids tell all that these layers hold? */
static bool all_vmdk(const struct chain *chain, u32 end) {
    for (u32 i = 0; i < end; i++) {
        if (!is_vmdk(&chain->layers[i])) {
            return false;
        }
    }
    return true;
}

u32 content_id_after(const struct chain *chain, u32 base) {
    const struct vmdk *above = chain->layers[base - 1].vmdk;
    /* What the layer above knows is that of the base before the commit, also when that was interrupted. */
    const u32 old = above != NULL ? above->parent_id.value : chain->layers[base].vmdk->id.value;
    u32 hash = all_vmdk(chain, base) ? FNV_START : mix(FNV_START, old);
    for (u32 i = base; i-- > 0;) {
        if (is_vmdk(&chain->layers[i])) {
            hash = mix(hash, chain->layers[i].vmdk->id.value);
        }
    }
    return fit(chain, base, hash);
}

/* Has the base got what the layers above it held, and its content id? */
static bool was_committed(const struct chain *chain, u32 base) {
    const struct content_id *id = &chain->layers[base].vmdk->id;
    return id->digits >= DIGITS_MIN && id->value == content_id_after(chain, base);
}

bool content_ids_complete(const struct chain *chain, u32 base) {
    return is_vmdk(&chain->layers[base]) && all_vmdk(chain, base) && was_committed(chain, base) &&
           chain->layers[base - 1].vmdk->parent_id.value == chain->layers[base].vmdk->id.value;
}

void content_ids_check(const struct chain *chain, u32 base) {
    for (u32 i = 0; i + 1 < chain->count; i++) {
        if (!is_vmdk(&chain->layers[i])) {
            continue;
        }
        if (!is_vmdk(&chain->layers[i + 1])) {
            refuse(REFUSAL_BAD_CALL);
        }
        u32 recorded = chain->layers[i].vmdk->parent_id.value;
        u32 found = chain->layers[i + 1].vmdk->id.value;
        if (recorded != found && !(i + 1 == base && was_committed(chain, base))) {
            result_disk(chain->layers[i].disk.index);
            refuse(REFUSAL_VMDK_PARENT_CHANGED, .a = recorded, .b = found,
                   .c = chain->layers[i].vmdk->descriptor_size / SECTOR);
        }
    }
}
