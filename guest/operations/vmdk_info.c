/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * What the header and the descriptor of a vmdk image say. Reads only.
 */
#include "operations/operations.h"
#include "vmdk/header.h"

_Noreturn void operation_vmdk_info(void) {
    struct vmdk image;
    struct result_vmdk_info *result = result_memory();
    vmdk_open(&image, 0, false);
    result->virtual_size = image.virtual_size;
    result->grain_size = image.grain_size;
    result->version = image.version;
    result->zeroed_grains = image.has_zeroed_grains;
    result->content_id = image.id.value;
    result->parent_content_id = image.parent_id.value;
    result->descriptor_sectors = (u32)(image.descriptor_size / SECTOR);
    if (image.backing_name != NULL) {
        result->backing_name_length = image.backing_length;
        memcpy(result->backing_name, image.backing_name, image.backing_length);
    }
    finish(NULL, 0);
}
