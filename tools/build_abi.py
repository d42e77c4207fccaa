# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Write sandbox/_abi.py: guest/abi/*.h and tools/host_abi.h as cffi's out-of-line ABI module.

cffi's own output is one unbroken line a table and imports the backend at once. Here the same tables are
caught from it, laid out to pass the linters, and handed to the backend by load().
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
import types
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


def literal(value: bytes) -> str:
    """A bytes literal in double quotes, escaped so that no linter reads words into it."""
    plain = set(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_$,")
    return 'b"' + "".join(chr(byte) if byte in plain else f"\\x{byte:02x}" for byte in value) + '"'


def laid_out(value: Any, indent: int) -> list[str]:
    """Source lines for a table: nested tuples of bytes and integers, one element a line, long bytes broken."""
    pad = " " * indent
    if isinstance(value, int):
        return [f"{pad}{value:#x}"]
    if isinstance(value, bytes):
        # At most four columns a byte.
        step = (WIDTH - indent - 3) // 4
        pieces = [value[at : at + step] for at in range(0, len(value), step)] or [b""]
        if len(pieces) == 1:
            return [pad + literal(value)]
        inner = " " * (indent + 4)
        return [f"{pad}(", *(inner + literal(piece) for piece in pieces), f"{pad})"]
    lines = [f"{pad}("]
    for element in value:
        inside = laid_out(element, indent + 4)
        lines += [*inside[:-1], inside[-1] + ","]
    return [*lines, f"{pad})"]


def module(arguments: dict[str, Any]) -> str:
    """The text of _abi.py."""
    lines = [
        HEAD.format(maker="build_abi.py"),
        "from typing import Any\n\n_LOADED: list[Any] = []\n\n\n",
        "def load() -> Any:\n",
        '    """The FFI object of all structs, constants and functions; always the same one. Raises ImportError."""\n',
        "    if not _LOADED:\n",
        "        import _cffi_backend\n\n",
        "        _LOADED.append(_cffi_backend.FFI(\n",
        '            "_abi",\n',
    ]
    for name, value in arguments.items():
        first, *rest = laid_out(value, 12)
        lines.append("\n".join([f"            {name}={first.lstrip()}", *rest]) + ",\n")
    lines += ["        ))\n", "    return _LOADED[0]\n"]
    return "".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the cffi module of the guest's and the kernel's structs.")
    parser.add_argument("output", nargs="?", type=Path, default=TOP / "sandbox" / "_abi.py")
    write_if_changed(parser.parse_args().output, module(tables(declarations())))


if __name__ == "__main__":
    main()
