# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Pack a linked guest, build/guest/FAMILY.elf, as sandbox/guests/_guest_FAMILY.py."""

from __future__ import annotations

import argparse
import base64
import struct
import sys
import zlib
from pathlib import Path

from generated import HEAD, write_if_changed

from sandbox.guests import _abi

TEXT_ADDRESS = _abi.load().integer_const("TEXT_ADDRESS")
DATA_ADDRESS = _abi.load().integer_const("DATA_ADDRESS")
CALL_ADDRESS = _abi.load().integer_const("CALL_ADDRESS")
LOADED = 1  # PT_LOAD


def segments(elf: bytes) -> tuple[bytes, bytes]:
    """Text and data of a linked guest, as they are to lie at TEXT_ADDRESS and DATA_ADDRESS, without what is zero
    at the end. Raises ValueError when something would lie elsewhere or the entry is not the first instruction."""
    entry, headers = struct.unpack_from("<QQ", elf, 24)
    size, count = struct.unpack_from("<HH", elf, 54)
    if elf[:6] != b"\x7fELF\x02\x01" or entry != TEXT_ADDRESS:
        raise ValueError(f"not a 64-bit program that starts at {TEXT_ADDRESS:#x}")
    memory = bytearray(CALL_ADDRESS - TEXT_ADDRESS)
    for at in range(headers, headers + size * count, size):
        kind, _flags, offset, address, _physical, in_file, in_memory = struct.unpack_from("<IIQQQQQ", elf, at)
        if kind != LOADED or in_memory == 0:
            continue
        if not TEXT_ADDRESS <= address <= address + in_memory <= CALL_ADDRESS:
            raise ValueError(f"a segment at {address:#x} of {in_memory:#x} bytes is outside text and data")
        memory[address - TEXT_ADDRESS : address - TEXT_ADDRESS + in_file] = elf[offset : offset + in_file]
    middle = DATA_ADDRESS - TEXT_ADDRESS
    return bytes(memory[:middle]).rstrip(b"\0"), bytes(memory[middle:]).rstrip(b"\0")


def packed(name: str, content: bytes) -> str:
    """A module-level string with content compressed, in lines short enough for the linters."""
    text = base64.b64encode(zlib.compress(content, 9)).decode("ascii")
    lines = [text[at : at + 116] for at in range(0, len(text), 116)]
    return "\n".join([f'{name} = """', *lines, '"""', ""])


def module(text: bytes, data: bytes) -> str:
    """The text of _guest_FAMILY.py."""
    return "".join(
        [
            HEAD.format(maker="pack_guest.py"),
            "import base64\nimport zlib\n\n",
            packed("TEXT", text),
            packed("DATA", data),
            "\n\ndef load() -> tuple[bytes, bytes]:\n",
            '    """The guest (text, data): what lies at TEXT_ADDRESS and at DATA_ADDRESS when it starts."""\n',
            "    return zlib.decompress(base64.b64decode(TEXT)), zlib.decompress(base64.b64decode(DATA))\n",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Pack a linked guest.")
    parser.add_argument("program", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    try:
        text, data = segments(arguments.program.read_bytes())
    except (OSError, ValueError) as error:
        sys.exit(f"pack_guest.py: {arguments.program}: {str(error)[:200]}")
    write_if_changed(arguments.output, module(text, data))


if __name__ == "__main__":
    main()
