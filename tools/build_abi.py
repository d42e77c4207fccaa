# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Write sandbox/guests/_abi.py: guest/abi/*.h and tools/host_abi.h as cffi's out-of-line ABI module; and _limits.py,
what ends in _MIN or _MAX in enums of guest/abi as plain numbers.

cffi's own output is one unbroken line a table and imports the backend at once. Here the same tables are
caught from it, laid out to pass the linters, and handed to the backend by load().
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import sys
import tempfile
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cffi
from generated import HEAD, TOP, write_if_changed

WIDTH = 112


def declarations() -> str:
    """All headers as cffi's parser takes them: without preprocessor lines."""
    headers = [*sorted((TOP / "guest" / "abi").glob("*.h")), TOP / "tools" / "host_abi.h"]
    lines = [line for header in headers for line in header.read_text(encoding="ascii").splitlines()]
    return "\n".join(line for line in lines if not line.startswith("#"))


def without_limits(cdef: str) -> str:
    """What _limits.py has need not be in _abi.py too, which travels with each task."""
    return re.sub(r"enum call_limits \{.*?\};", "", cdef, flags=re.DOTALL)


def tables(cdef: str) -> dict[str, Any]:
    """The keyword arguments that cffi's generated module would give to the backend's FFI class."""
    ffi = cffi.FFI()
    ffi.cdef(cdef)
    ffi.set_source("_abi", None)
    caught: dict[str, Any] = {}

    def catch(_name: str, **arguments: Any) -> None:
        caught.update(arguments)

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "_abi.py"
        with contextlib.redirect_stdout(io.StringIO()):  # it says what it writes
            ffi.emit_python_code(str(path))
        code = path.read_text(encoding="ascii")
    stand_in = types.ModuleType("_cffi_backend")
    stand_in.FFI = catch  # type: ignore[attr-defined]
    real = sys.modules.get("_cffi_backend")
    sys.modules["_cffi_backend"] = stand_in
    try:
        exec(compile(code, "_abi.py", "exec"), {})
    finally:
        if real is None:
            del sys.modules["_cffi_backend"]
        else:
            sys.modules["_cffi_backend"] = real
    return caught


def escaped(value: bytes) -> str:
    """What stands for these bytes in a literal, escaped so that no linter reads words into it."""
    plain = set(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_$,=")
    return "".join(chr(byte) if byte in plain else f"\\x{byte:02x}" for byte in value)


def joined(values: Sequence[bytes], separator: bytes) -> bytes:
    """All in one, to be split at the separator. Raises ValueError where that would give something else."""
    text = separator.join(values)
    if tuple(text.split(separator)) != tuple(values):
        raise ValueError("a separator stands in a table")
    return text


def wrapped(line: str) -> str:
    """The line of a literal in as many lines of the source as it takes."""
    pieces = [""]
    for token in re.findall(r"\\x..|.", line):
        if len(pieces[-1]) + len(token) > WIDTH:
            pieces.append("")
        pieces[-1] += token
    return "\\\n".join(pieces)


def literal(name: str, value: bytes, *separators: bytes) -> str:
    """An assignment of bytes, in one literal. Its lines end with separators; other ends of lines are escaped."""
    text = escaped(value)
    for separator in separators:
        text = text.replace(escaped(separator), separator.decode())
    lines = map(wrapped, text.replace("\\x20", " ").split("\n"))
    return "\n".join([f'{name} = b"""\\', *lines]) + '"""\n'


LOAD = """

def _tables() -> tuple[tuple[bytes | int, ...], tuple[bytes, ...]]:
    \"""cffi's tables of all names, sorted, and of the enums, whose entries here have the values with the names.\"""
    found, enums = dict.fromkeys(GLOBALS.split(b",\\n"), 0), []
    for entry in ENUMS.split(b",\\n"):
        head, nul, names = entry.rpartition(b"\\0")
        value, plain = -1, []
        for one in names.split(b","):
            name, _is, stated = one.partition(b"=")
            value = int(stated) if stated else value + 1
            found[b"\\xff\\xff\\xff\\x0b" + name] = value
            plain.append(name)
        enums.append(head + nul + b",".join(plain))
    ordered = sorted(found.items(), key=lambda item: item[0][4:])
    return tuple(part for item in ordered for part in item), tuple(enums)


def load() -> Any:
    \"""The FFI object of all structs, constants and functions; always the same one. Raises ImportError.\"""
    if not _LOADED:
        import _cffi_backend

        names, enums = _tables()
        _LOADED.append(
            _cffi_backend.FFI(
                "_abi",
                _version=VERSION,
                _types=TYPES,
                _globals=names,
                _struct_unions=tuple(tuple(one.split(b",\\n")) for one in STRUCTS.split(b";\\n")),
                _enums=enums,
            )
        )
    return _LOADED[0]
"""


def valued(enum: bytes, values: dict[bytes, int]) -> bytes:
    """cffi's entry of an enum with its values in it, which are taken out of those of all names. A value that is the
    one before and 1 is left out."""
    head, nul, names = enum.rpartition(b"\0")
    before, found = -1, []
    for name in names.split(b","):
        value = values.pop(b"\xff\xff\xff\x0b" + name)
        found.append(name if value == before + 1 else b"%s=%d" % (name, value))
        before = value
    return head + nul + b",".join(found)


def module(arguments: dict[str, Any]) -> str:
    """The text of _abi.py. Long literals and not tuples of short ones, which take a task 1 ms to compile."""
    tables = dict(arguments)
    flat = tables.pop("_globals")
    values = dict(zip(flat[::2], flat[1::2]))
    enums = [valued(enum, values) for enum in tables.pop("_enums")]
    if any(values.values()):
        raise ValueError("a number is in no enum")
    structs = [joined(struct, b",\n") for struct in tables.pop("_struct_unions")]
    parts = [
        HEAD.format(maker="build_abi.py"),
        "from typing import Any\n\n_LOADED: list[Any] = []\n\n",
        f"VERSION = {tables.pop('_version'):#x}\n",
        literal("TYPES", tables.pop("_types")),
        literal("GLOBALS", joined(list(values), b",\n"), b",\n"),
        literal("STRUCTS", joined(structs, b";\n"), b";\n", b",\n"),
        literal("ENUMS", joined(enums, b",\n"), b",\n"),
        LOAD,
    ]
    if tables:
        raise ValueError(f"cffi has further tables: {sorted(tables)}")
    return "".join(parts)


def limits_module(cdef: str) -> str:
    """The text of _limits.py."""
    ffi = cffi.FFI()
    ffi.cdef(cdef)
    found = {}
    for enum in ("abi", "call_limits"):
        found.update(ffi.typeof(f"enum {enum}").relements)
    lines = [f"{name} = {value}" for name, value in sorted(found.items()) if name.endswith(("_MIN", "_MAX"))]
    return "\n".join([HEAD.format(maker="build_abi.py").rstrip(), "", *lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the cffi module of the guest's and the kernel's structs.")
    parser.add_argument("output", nargs="?", type=Path, default=TOP / "sandbox" / "guests")
    output: Path = parser.parse_args().output
    write_if_changed(output / "_abi.py", module(tables(without_limits(declarations()))))
    write_if_changed(output / "_limits.py", limits_module(declarations()))


if __name__ == "__main__":
    main()
