/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Giving up: one place that fills the result header and ends the run.
 */
#include "start/guest.h"

static struct result_header *header(void) { return result_memory(); }

void result_modified(void) { header()->modified = 1; }

void result_disk(u32 index) { header()->disk = index; }

_Noreturn void refuse_with(enum refusal code, const struct refusal_arguments *arguments) {
    const u64 numbers[] = {arguments->a, arguments->b, arguments->c, arguments->d, arguments->e, arguments->f};
    memcpy(header()->arguments, numbers, sizeof(numbers));
    header()->text_length = (u32)min64(arguments->length, MESSAGE_TEXT_MAX);
    memcpy(header()->text, arguments->text, header()->text_length);
    header()->code = code;
    finish(NULL, 0);
}
