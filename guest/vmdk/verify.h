/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#ifndef AIRLOCK_VMDK_VERIFY_H
#define AIRLOCK_VMDK_VERIFY_H

#include "vmdk/format.h"

/* What has to hold before the image is written to, which QEMU takes for granted: each grain table is there, as often
 * as there are directories; all tables and grains are in the file; no two are in the same place. */
void vmdk_verify(struct vmdk *image);

#endif
