/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Changing what the header says of bitmaps, in steps of which each leaves a header that can be read. qemu
 * writes its header anew, all sectors of it; torn, that can lose the name of the backing file.
 */
#ifndef AIRLOCK_QCOW2_EXTENSION_H
#define AIRLOCK_QCOW2_EXTENSION_H

#include "qcow2/format.h"

/* Refuses when there is no room for what extension_write() will have to add for `count` bitmaps. */
void extension_check_room(struct qcow2 *image, u32 count);

/* Clears autoclear bits that nobody here knows, as the format demands of whoever writes. */
void extension_clear_unknown(struct qcow2 *image);

/* Makes the header name image->bitmaps, whose directory is on the disk. No bitmaps: the extension goes.
 * What was stale is forgotten. The commit point is one sector: 24 bytes that are there already, or the
 * autoclear bit when the first bitmap comes or the last one goes. */
void extension_write(struct qcow2 *image);

#endif
