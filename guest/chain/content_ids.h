/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The content ids of vmdk layers: each records its parent's, and a base that is written to gets another one.
 */
#ifndef AIRLOCK_CHAIN_CONTENT_IDS_H
#define AIRLOCK_CHAIN_CONTENT_IDS_H

#include "chain/chain.h"

#define NO_COMMIT UINT32_MAX

/* Refuses a layer whose parent is another one than it records (vmdk_is_cid_valid()). base: that of a commit, which may
 * have been committed to from these very layers already; or NO_COMMIT. */
void content_ids_check(const struct chain *chain, u32 base);

/* The content id that a commit of the layers above gives to `base`: of vmdk layers alone always the same, however
 * often it is done. */
u32 content_id_after(const struct chain *chain, u32 base);

/* Has a vmdk base got all that the vmdk layers above it hold, and does the one that stands on it know that? */
bool content_ids_complete(const struct chain *chain, u32 base);

#endif
