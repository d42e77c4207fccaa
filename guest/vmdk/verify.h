/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#ifndef AIRLOCK_VMDK_VERIFY_H
#define AIRLOCK_VMDK_VERIFY_H

#include "vmdk/format.h"

/* What has to hold before the image is written to, which QEMU takes for granted: all tables and grains are in the file,
 * no two of them in the same place. grows: it gets new grains, and so each grain table has to be there. */
void vmdk_verify(struct vmdk *image, bool grows);

#endif
