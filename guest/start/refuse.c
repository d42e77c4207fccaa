/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Giving up: one place that fills the result header and ends the run.
 */
#include "start/guest.h"

static struct result_header *header(void) { return result_memory(); }

void result_modified(void) { header()->modified = 1; }

_Noreturn void refuse(enum refusal code, u64 a, u64 b, u64 c, u64 d, u64 e, u64 f) {
    const u64 arguments[] = {a, b, c, d, e, f};
    memcpy(header()->arguments, arguments, sizeof(arguments));
    header()->code = code;
    finish(NULL, 0);
}

void result_disk(u32 index) { header()->disk = index; }

_Noreturn void refuse_about(enum refusal code, const void *text, u64 length, u64 a, u64 b, u64 f) {
    header()->text_length = (u32)min64(length, MESSAGE_TEXT_MAX);
    memcpy(header()->text, text, header()->text_length);
    refuse(code, a, b, 0, 0, 0, f);
}

_Noreturn void refuse_text(enum refusal code, const void *text, u64 length, u64 a, u64 b) {
    refuse_about(code, text, length, a, b, 0);
}

_Noreturn void refuse_plain(enum refusal code) { refuse(code, 0, 0, 0, 0, 0, 0); }
