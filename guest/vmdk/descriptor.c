/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "vmdk/descriptor.h"

#define DIGITS_MAX 8 /* of a content id */
#define NO_PARENT 0xffffffffu
#define NUMBER_MAX (INT64_MAX / 10)
#define TYPE_MAX 64 /* bytes of a type that are told */

/* A part of the text; at NULL: there is none. */
struct span {
    const u8 *at;
    u64 length;
};

static u64 length_of(const char *text) {
    u64 length = 0;
    while (text[length] != 0) {
        length++;
    }
    return length;
}

static bool is_text(struct span span, const char *text) {
    return span.length == length_of(text) && memcmp(span.at, text, span.length) == 0;
}

static _Noreturn void refuse_line(enum vmdk_line line, struct span text) {
    refuse(REFUSAL_VMDK_DESCRIPTOR, .text = text.at != NULL ? text.at : (const u8 *)"", .length = text.length,
           .a = line);
}

/* The first line of `rest`, without its end, which may be that of Windows; `rest` becomes what is behind it. */
static struct span next_line(struct span *rest) {
    struct span line = {rest->at, 0};
    while (line.length < rest->length && rest->at[line.length] != '\n') {
        line.length++;
    }
    u64 taken = line.length < rest->length ? line.length + 1 : line.length;
    rest->at += taken;
    rest->length -= taken;
    if (line.length > 0 && line.at[line.length - 1] == '\r') {
        line.length--;
    }
    return line;
}

/* What stands behind "KEY=" in the line that begins so. */
static struct span value_of(struct span text, const char *key) {
    const u64 length = length_of(key);
    struct span found = {NULL, 0};
    for (struct span rest = text; rest.length > 0;) {
        struct span line = next_line(&rest);
        if (line.length > length && memcmp(line.at, key, length) == 0 && line.at[length] == '=') {
            if (found.at != NULL) {
                refuse_line(VMDK_LINE_TWICE, line);
            }
            found = (struct span){line.at + length + 1, line.length - length - 1};
        }
    }
    return found;
}

/* QEMU takes the first place where the key stands, be it in the midst of a line: that must be the same one. */
static void check_first(struct span text, const char *key, struct span value) {
    const u64 length = length_of(key);
    for (u64 i = 0; i + length <= text.length; i++) {
        if (memcmp(text.at + i, key, length) == 0) {
            if (value.at != text.at + i + length + 1) {
                refuse_line(VMDK_LINE_HIDDEN, (struct span){text.at + i, length});
            }
            return;
        }
    }
}

static struct span find(struct span text, const char *key) {
    struct span value = value_of(text, key);
    check_first(text, key, value);
    return value;
}

/* What is between two quotation marks that the value begins and ends with. */
static struct span quoted(struct span value, enum vmdk_line line) {
    if (value.length < 2 || value.at[0] != '"' || value.at[value.length - 1] != '"') {
        refuse_line(line, value);
    }
    struct span inside = {value.at + 1, value.length - 2};
    for (u64 i = 0; i < inside.length; i++) {
        if (inside.at[i] == '"') {
            refuse_line(line, value);
        }
    }
    return inside;
}

static u32 digit_of(u8 character) {
    if (character >= '0' && character <= '9') {
        return character - '0';
    }
    u8 letter = character | 0x20;
    return letter >= 'a' && letter <= 'f' ? letter - 'a' + 10u : UINT32_MAX;
}

static struct content_id read_id(struct span text, const char *key) {
    struct span value = find(text, key);
    struct content_id id = {.digits = (u32)value.length};
    if (value.at == NULL || value.length == 0 || value.length > DIGITS_MAX) {
        refuse_line(VMDK_LINE_CID, value);
    }
    id.offset = DESCRIPTOR_OFFSET + (u64)(value.at - text.at);
    for (u64 i = 0; i < value.length; i++) {
        u32 digit = digit_of(value.at[i]);
        if (digit == UINT32_MAX) {
            refuse_line(VMDK_LINE_CID, value);
        }
        id.value = id.value << 4 | digit;
    }
    return id;
}

static bool is_blank(u8 character) { return character == ' ' || character == '\t'; }

static void skip_blanks(struct span *rest) {
    while (rest->length > 0 && is_blank(rest->at[0])) {
        rest->at++;
        rest->length--;
    }
}

static struct span next_word(struct span *rest) {
    skip_blanks(rest);
    struct span word = {rest->at, 0};
    while (rest->length > 0 && !is_blank(rest->at[0])) {
        rest->at++;
        rest->length--;
        word.length++;
    }
    skip_blanks(rest);
    return word;
}

static u64 number_of(struct span word) {
    u64 number = 0;
    for (u64 i = 0; i < word.length; i++) {
        if (word.at[i] < '0' || word.at[i] > '9' || number > NUMBER_MAX) {
            return 0;
        }
        number = 10 * number + (word.at[i] - '0');
    }
    return number;
}

static bool is_access(struct span word) {
    return is_text(word, "RW") || is_text(word, "RDONLY") || is_text(word, "NOACCESS");
}

/* The first file that a line for an extent names; of no bytes: none does. */
static struct span first_file(struct span text) {
    for (struct span rest = text; rest.length > 0;) {
        struct span line = next_line(&rest);
        if (!is_access(next_word(&line))) {
            continue;
        }
        next_word(&line);
        next_word(&line);
        struct span name = {line.at + 1, 0};
        while (name.length + 1 < line.length && name.at[name.length] != '"') {
            name.length++;
        }
        if (name.length > 0) {
            return name;
        }
    }
    return (struct span){text.at, 0};
}

static _Noreturn void refuse_subformat(enum vmdk_subformat what, struct span type, struct span text) {
    u8 told[MESSAGE_TEXT_MAX];
    struct span file = first_file(text);
    u64 length = min64(type.length, TYPE_MAX);
    u64 rest = min64(file.length, sizeof(told) - length);
    memcpy(told, type.at, length);
    memcpy(told + length, file.at, rest);
    refuse(REFUSAL_VMDK_SUBFORMAT, .text = told, .length = length + rest, .a = what, .b = length);
}

/* The name must be one that this file can have, or be left out, as mkimg of FreeBSD does it: nothing is opened for it,
 * but other programs would. */
static void check_extent_name(const struct vmdk *image, struct span name) {
    bool leads = is_text(name, ".") || is_text(name, "..");
    for (u64 i = 0; i < name.length; i++) {
        leads |= name.at[i] == '/' || name.at[i] == '\\';
    }
    if (leads) {
        refuse(REFUSAL_VMDK_EXTENT, .text = name.at, .length = name.length, .b = image->descriptor_size / SECTOR);
    }
}

/* "RW 20480 SPARSE "disk.vmdk"" */
static void check_extent(const struct vmdk *image, struct span text, struct span line, struct span rest) {
    u64 sectors = number_of(next_word(&rest));
    struct span type = next_word(&rest);
    if (sectors == 0 || type.length == 0 || !is_text((struct span){line.at, 3}, "RW ")) {
        refuse_line(VMDK_LINE_EXTENT, line);
    }
    if (!is_text(type, "SPARSE")) {
        refuse_subformat(VMDK_OTHER_EXTENT, type, text);
    }
    while (rest.length > 0 && is_blank(rest.at[rest.length - 1])) {
        rest.length--;
    }
    check_extent_name(image, quoted(rest, VMDK_LINE_EXTENT));
    if (sectors != image->virtual_size / SECTOR) {
        refuse(REFUSAL_VMDK_EXTENT_SIZE, .a = image->virtual_size / SECTOR, .b = sectors);
    }
}

static void check_extents(const struct vmdk *image, struct span text) {
    u64 count = 0;
    for (struct span rest = text; rest.length > 0;) {
        struct span line = next_line(&rest);
        struct span inside = line;
        if (is_access(next_word(&inside))) {
            if (count++ > 0) {
                refuse_line(VMDK_LINE_EXTENTS, line);
            }
            check_extent(image, text, line, inside);
        }
    }
    if (count == 0) {
        refuse_line(VMDK_LINE_EXTENT, (struct span){text.at, 0});
    }
}

static void check_type(struct span text) {
    struct span value = find(text, "createType");
    if (value.at == NULL) {
        refuse_line(VMDK_LINE_TYPE, (struct span){text.at, 0});
    }
    struct span type = quoted(value, VMDK_LINE_TYPE);
    if (!is_text(type, "monolithicSparse")) {
        refuse_subformat(VMDK_OTHER_TYPE, type, text);
    }
}

static void read_parent(struct vmdk *image, struct span text) {
    struct span value = find(text, "parentFileNameHint");
    if (value.at == NULL) {
        return;
    }
    struct span name = quoted(value, VMDK_LINE_PARENT);
    if (name.length > BACKING_NAME_MAX) {
        refuse(REFUSAL_BACKING_NAME_LONG);
    }
    image->backing_name = name.length > 0 ? name.at : NULL;
    image->backing_length = (u32)name.length;
}

static struct span text_of(const u8 *bytes, u64 size) {
    struct span text = {bytes, 0};
    while (text.length < size && bytes[text.length] != 0) {
        text.length++;
    }
    return text;
}

void descriptor_read(struct vmdk *image) {
    u8 *bytes = heap_take(image->descriptor_size);
    disk_read(&image->disk, DESCRIPTOR_OFFSET, bytes, image->descriptor_size);
    struct span text = text_of(bytes, image->descriptor_size);
    if (text.length == image->descriptor_size) { /* QEMU would read on in what lies behind it */
        refuse_line(VMDK_LINE_END, (struct span){text.at, 0});
    }
    if (text.length == 0) { /* room for one, as in the slices of a disk */
        refuse(REFUSAL_VMDK_SUBFORMAT, .a = VMDK_NO_DESCRIPTOR);
    }
    check_type(text);
    check_extents(image, text);
    image->id = read_id(text, "CID");
    image->parent_id = read_id(text, "parentCID");
    read_parent(image, text);
}

void descriptor_refuse_alone(const u8 *bytes, u64 size) {
    struct span text = text_of(bytes, size);
    struct span value = value_of(text, "createType");
    if (value.length > 2 && value.at[0] == '"') {
        refuse_subformat(VMDK_ALONE, (struct span){value.at + 1, value.length - 2}, text);
    }
}

u32 content_id_fit(const struct content_id *id, u32 value) {
    u32 mask = id->digits < DIGITS_MAX ? (1u << 4 * id->digits) - 1 : UINT32_MAX;
    return (value & mask) == NO_PARENT ? value - 1 : value & mask;
}

void content_id_write(struct vmdk *image, struct content_id *id, u32 value) {
    u8 digits[DIGITS_MAX];
    for (u32 i = 0; i < id->digits; i++) {
        digits[i] = (u8) "0123456789abcdef"[value >> 4 * (id->digits - 1 - i) & 15];
    }
    disk_flush(&image->disk);
    disk_write(&image->disk, id->offset, digits, id->digits);
    disk_flush(&image->disk);
    id->value = value;
}
