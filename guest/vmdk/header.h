/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#ifndef AIRLOCK_VMDK_HEADER_H
#define AIRLOCK_VMDK_HEADER_H

#include "vmdk/format.h"

/* Opens the image on disk `index`: header and descriptor, each number checked. Refuses what is no monolithicSparse
 * image, and for a writable one what may only be read. */
void vmdk_open(struct vmdk *image, u32 index, bool writable);

#endif
