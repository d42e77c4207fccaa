# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Compile a family of guest operations and pack it as sandbox/_guest_FAMILY.py.

The same compiler makes the same bytes: sources are given in sorted order by relative path, and nothing of
what is shipped depends on a path, a date or a build id.
"""

from __future__ import annotations

import argparse
import base64
import os
import shlex
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterable
from pathlib import Path

from generated import HEAD, TOP, write_if_changed

# A guest for each family of operations: guest/families says which, and the linker leaves out what they do not need.
FAMILIES = ("bitmap", "chain", "compress", "snapshot")
ROOMS = ("start", "disk", "qcow2", "vmdk", "chain", "operations")

FLAGS = shlex.split(
    "-std=c11 -ffreestanding -nostdlib -static -no-pie -fno-pic -fno-stack-protector -mno-red-zone -mcmodel=small "
    "-O2 -msse2 -fcf-protection=none -fno-asynchronous-unwind-tables -fno-ident -Wall -Wextra -Werror -Iguest "
    "-ffunction-sections -fdata-sections -Wl,--gc-sections -Wl,--build-id=none -Wl,-z,noexecstack "
    "-Wl,-T,guest/start/guest.ld"
)

# Compression, of which the linker takes what is used.
LIBRARIES = ("-l:libz.a", "-l:libzstd.a")

# guest/abi/doorbell.h, enum memory_map; guest.ld refuses what does not fit in between.
TEXT_ADDRESS = 0x40000
DATA_ADDRESS = 0x180000
CALL_ADDRESS = 0x190000
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


def sources(family: str) -> list[Path]:
    """The C files of a family, relative to the checkout, in the order in which they are linked."""
    found = [source for room in ROOMS for source in (TOP / "guest" / room).glob("*.c")]
    return sorted(source.relative_to(TOP) for source in [*found, TOP / "guest" / "families" / f"{family}.c"])


def compile_guest(files: Iterable[Path]) -> tuple[bytes, bytes]:
    """Compile and link C files (relative to the checkout, or absolute). Raises CalledProcessError."""
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory) / "guest.elf"
        command = ["gcc", *FLAGS, *(str(file) for file in files), *LIBRARIES, "-o", str(output)]
        subprocess.run(command, cwd=TOP, check=True, env={**os.environ, "LC_ALL": "C", "SOURCE_DATE_EPOCH": "0"})
        return segments(output.read_bytes())


def packed(name: str, content: bytes) -> str:
    """A module-level string with content compressed, in lines short enough for the linters."""
    text = base64.b64encode(zlib.compress(content, 9)).decode("ascii")
    lines = [text[at : at + 116] for at in range(0, len(text), 116)]
    return "\n".join([f'{name} = """', *lines, '"""', ""])


def module(text: bytes, data: bytes) -> str:
    """The text of _guest_FAMILY.py."""
    return "".join(
        [
            HEAD.format(maker="build_guest.py"),
            "import base64\nimport zlib\n\n",
            packed("TEXT", text),
            packed("DATA", data),
            "\n\ndef load() -> tuple[bytes, bytes]:\n",
            '    """The guest (text, data): what lies at TEXT_ADDRESS and at DATA_ADDRESS when it starts."""\n',
            "    return zlib.decompress(base64.b64decode(TEXT)), zlib.decompress(base64.b64decode(DATA))\n",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Compile and pack a family of guest operations.")
    parser.add_argument("family", choices=sorted(FAMILIES))
    parser.add_argument("output", nargs="?", type=Path)
    arguments = parser.parse_args()
    output = arguments.output or TOP / "sandbox" / f"_guest_{arguments.family}.py"
    try:
        text, data = compile_guest(sources(arguments.family))
    except (subprocess.CalledProcessError, OSError, ValueError) as error:
        # The compiler has said what is wrong; what is left to say is short.
        sys.exit(f"build_guest.py: {arguments.family}: {str(error)[:200]}")
    write_if_changed(output, module(text, data))


if __name__ == "__main__":
    main()
