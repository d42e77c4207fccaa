/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * An image holds nothing any more, after a commit: qcow2_make_empty(). Where nothing but the disk keeps clusters it
 * starts anew, else what the disk held is discarded: start_anew() and discard_disk() have the write groups. There is no
 * commit point, and none is needed: what goes is in the base, so the image shows the same whenever a crash comes.
 */
#include "chain/top.h"
#include "operations/operations.h"
#include "qcow2/preparation.h"

_Noreturn void operation_empty(void) {
    const struct call_empty *call = call_memory();
    struct result_empty *result = result_memory();
    struct chain chain;
    struct refcounts refcounts;
    struct verification verification;
    chain_open(&chain, &call->layer, 1, 1);
    if (chain.layers[0].image == NULL) {
        refuse(REFUSAL_BAD_CALL);
    }
    prepare(chain.layers[0].image, &refcounts, &verification);
    result->cleared_clusters = top_clusters(&chain);
    top_empty(&chain, &refcounts);
    finish(NULL, 0);
}
