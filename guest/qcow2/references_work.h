/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * What the functions of references.h go over, in bytes of tables, so that progress can be told.
 */
#ifndef AIRLOCK_QCOW2_REFERENCES_WORK_H
#define AIRLOCK_QCOW2_REFERENCES_WORK_H

#include "qcow2/references.h"

/* Of references_add() with these mappings. */
u64 work_of_adding(const struct refcounts *refcounts, const struct verification *verification,
                   const struct mapping *mapping, const struct mapping *unlike);

/* Of references_drop(), or with `kept` of references_drop_and_refresh(). */
u64 work_of_dropping(const struct refcounts *refcounts, const struct verification *verification,
                     const struct mapping *gone, const struct mapping *unlike, const struct mapping *kept);

/* Of the L2 tables that a visit with these mappings goes over. */
u64 work_of_visiting(const struct qcow2 *image, const struct mapping *mapping, const struct mapping *unlike);

#endif
