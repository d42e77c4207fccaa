# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The generators: what they write is the same each time, loads, and is what the sources say."""

from __future__ import annotations

import collections
import ctypes
import ctypes.util
import importlib.util
import os
import re
import shutil
import struct
import subprocess
import sys
import types
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(TOP / "tools"))

import build_abi  # noqa: E402
import generated  # noqa: E402
import pack_guest  # noqa: E402

from sandbox.words import bitmap_refusals, chain_refusals, refusals  # noqa: E402

WORDINGS = {
    "snapshot": refusals.WORDINGS,
    "bitmap": bitmap_refusals.WORDINGS,
    "chain": chain_refusals.WORDINGS,
    "compress": chain_refusals.WORDINGS,
}


def loaded(path):
    spec = importlib.util.spec_from_file_location("generated_here", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def is_neat(text):
    assert max(map(len, text.splitlines())) <= 120
    assert not re.search(r"[ \t]$", text, re.MULTILINE)
    assert text.isascii()
    assert text.endswith("\n")
    assert not text.endswith("\n\n")
    assert str(TOP) not in text


def test_abi(tmp_path):
    text = build_abi.module(build_abi.tables(build_abi.declarations()))
    assert text == build_abi.module(build_abi.tables(build_abi.declarations()))
    is_neat(text)
    path = tmp_path / "abi.py"
    path.write_text(text)
    ffi = loaded(path).load()
    assert ffi.sizeof("struct doorbell_request") == 64
    assert ffi.sizeof("struct doorbell") == 64 + 255 * 64
    assert ffi.dlopen(None).MEMORY_SIZE == 128 << 20


def test_the_tables_are_those_of_cffi(tmp_path, monkeypatch):
    tables = build_abi.tables(build_abi.declarations())
    path = tmp_path / "abi.py"
    path.write_text(build_abi.module(tables))
    stand_in = types.ModuleType("_cffi_backend")
    stand_in.FFI = lambda _name, **arguments: arguments
    monkeypatch.setitem(sys.modules, "_cffi_backend", stand_in)
    assert loaded(path).load() == tables


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [({"_struct_unions": ((b"one,\ntwo",),)}, "separator"), ({"_includes": ()}, "further tables.*_includes")],
)
def test_tables_of_another_form_are_refused(changed, complaint):
    tables = build_abi.tables(build_abi.declarations())
    with pytest.raises(ValueError, match=complaint):
        build_abi.module({**tables, **changed})


def test_the_abi_in_the_tree_is_of_these_headers():
    text = build_abi.module(build_abi.tables(build_abi.without_limits(build_abi.declarations())))
    assert (TOP / "sandbox" / "guests" / "_abi.py").read_text() == text


def test_the_limits_in_the_tree_are_of_these_headers():
    text = build_abi.limits_module(build_abi.declarations())
    is_neat(text)
    path = TOP / "sandbox" / "guests" / "_limits.py"
    assert path.read_text() == text
    headers = "".join(path.read_text() for path in (TOP / "guest" / "abi").glob("*.h"))
    told = re.findall(r"^    (\w+_(?:MIN|MAX)) = (\w+)", headers, re.MULTILINE)
    assert len(told) >= 15
    assert {name: getattr(loaded(path), name) for name, _value in told} == {name: int(v, 0) for name, v in told}


def test_nothing_that_is_generated_is_tracked():
    listed = subprocess.run(["git", "ls-files", "sandbox/guests"], cwd=TOP, check=False, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is no checkout of git")
    assert listed.stdout.split() == ["sandbox/guests/__init__.py"]


def test_backend_is_imported_when_it_is_needed():
    """A host without cffi learns so from our error, and not from an import."""
    code = "import sandbox.guests._abi, sys; sys.exit('_cffi_backend' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=TOP, check=True)


def test_c_and_python_agree_on_every_struct(tmp_path):
    """Sizes and offsets of all structs of guest/abi, as gcc sees them and as cffi does."""
    ffi = loaded(TOP / "sandbox" / "guests" / "_abi.py").load()
    headers = sorted((TOP / "guest" / "abi").glob("*.h"))
    names = [name for header in headers for name in re.findall(r"^struct (\w+) \{", header.read_text(), re.MULTILINE)]
    assert len(names) >= 15
    checks = [f"sizeof(struct {name}) == {ffi.sizeof(f'struct {name}')}" for name in names]
    for name in names:
        for field, details in ffi.typeof(f"struct {name}").fields:
            checks.append(f"__builtin_offsetof(struct {name}, {field}) == {details.offset}")
    source = tmp_path / "checks.c"
    lines = ["#include <stdint.h>", *(f'#include "abi/{header.name}"' for header in headers)]
    lines += [f'_Static_assert({check}, "{check}");' for check in checks]
    source.write_text("\n".join(lines) + "\n")
    command = ["gcc", "-fsyntax-only", f"-I{TOP / 'guest'}", str(source)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def linked(directory, family):
    """A guest, built by make and the C compiler alone in a directory that has guest/."""
    environment = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    name = f"build/guest/{family}.elf"
    command = ["make", "--silent", "-f", "guest/build.mk", name]
    subprocess.run(command, check=True, cwd=directory, env=environment)
    return pack_guest.segments((directory / name).read_bytes())


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """A copy of the guest's sources in another directory."""
    directory = tmp_path_factory.mktemp("else where") / "checkout"
    shutil.copytree(TOP / "guest", directory / "guest")
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(WORDINGS))
def test_the_guest_in_the_tree_is_of_these_sources_wherever_it_was_built(elsewhere, family):
    """Neither the directory nor the time get into what is shipped."""
    assert linked(elsewhere, family) == loaded(TOP / "sandbox" / "guests" / f"_guest_{family}.py").load()


def functions(path):
    """The names of the functions in an object file or a program; what the compiler made of one is it still."""
    rows = subprocess.run(["nm", str(path)], check=True, capture_output=True, text=True).stdout.splitlines()
    return {row.split()[-1].split(".")[0] for row in rows if row.split()[-2] in "tT"}


@pytest.mark.parametrize("family", sorted(WORDINGS))
def test_each_guest_refuses_only_what_its_family_has_words_for(elsewhere, family):
    """A host is sent the words of the families that a module uses, and no others."""
    linked(elsewhere, family)
    there = functions(elsewhere / "build" / "guest" / f"{family}.elf")
    sources = {source: source.relative_to(elsewhere) for source in (elsewhere / "guest").rglob("*.c")}
    files = {source: elsewhere / "build/obj" / path.with_suffix(".o") for source, path in sources.items()}
    objects = {source: functions(path) for source, path in files.items() if path.exists()}  # not of other families
    count = collections.Counter(name for names in objects.values() for name in names)
    refused = set()
    for source, names in objects.items():
        own = {name for name in names if count[name] == 1}  # of those that several files have nobody knows
        for body in re.findall(r"^[^\s/#}].*?\{\n.*?^\}", source.read_text(), re.DOTALL | re.MULTILINE):
            name = re.search(r"(\w+)\(", body)
            if name and (name[1] in own & there or (name[1] not in names and own & there)):  # or it was inlined
                refused.update(re.findall(r"\bREFUSAL_(\w+)", body))
    assert len(refused) > 40
    assert set(WORDINGS) == {path.stem for path in (TOP / "guest" / "families").glob("*.c")}
    assert {name.lower() for name in refused} - {"none"} <= set(WORDINGS[family])


def test_a_change_of_one_file_compiles_that_one_alone(elsewhere):
    linked(elsewhere, "snapshot")
    objects = {path: path.stat().st_mtime_ns for path in (elsewhere / "build" / "obj").rglob("*.o")}
    assert len(objects) > 40
    source = elsewhere / "guest" / "qcow2" / "preparation.c"
    source.write_text(source.read_text() + "\nint one_more(void);\nint one_more(void) { return 1; }\n")
    linked(elsewhere, "snapshot")
    changed = {path.name for path, time in objects.items() if path.stat().st_mtime_ns != time}
    assert changed == {"preparation.o"}


def test_a_change_of_a_header_compiles_all_that_read_it(elsewhere):
    linked(elsewhere, "snapshot")
    objects = {path: path.stat().st_mtime_ns for path in (elsewhere / "build" / "obj").rglob("*.o")}
    header = elsewhere / "guest" / "qcow2" / "tally.h"
    header.write_text(header.read_text() + "\n")
    linked(elsewhere, "snapshot")
    changed = {path.stem for path, time in objects.items() if path.stat().st_mtime_ns != time}
    assert {"tally", "verify"} <= changed
    assert not {"start", "memory", "grains"} & changed


def test_a_file_that_came_is_built_and_one_that_went_is_not(elsewhere, capfd):
    before = linked(elsewhere, "snapshot")
    path = elsewhere / "guest" / "qcow2" / "news.c"
    path.write_text("no C\n")
    with pytest.raises(subprocess.CalledProcessError):
        linked(elsewhere, "snapshot")
    assert "guest/qcow2/news.c:1" in capfd.readouterr().err
    path.unlink()
    assert linked(elsewhere, "snapshot") == before


def test_what_is_left_out_of_zstd_is_not_used():
    """The strategy of the default level, for a cluster of any size: library.c leaves out all but this one."""

    class Parameters(ctypes.Structure):
        _fields_ = [(name, ctypes.c_uint) for name in ("window", "chain", "hash", "search", "least", "target")]
        _fields_ += [("strategy", ctypes.c_int)]

    library = ctypes.CDLL(ctypes.util.find_library("zstd"))
    library.ZSTD_getCParams.restype = Parameters
    library.ZSTD_getCParams.argtypes = [ctypes.c_int, ctypes.c_ulonglong, ctypes.c_size_t]
    level = library.ZSTD_defaultCLevel()
    assert {library.ZSTD_getCParams(level, 1 << bits, 0).strategy for bits in range(9, 22)} == {2}  # ZSTD_dfast


def test_guest_comes_back_as_it_was_packed(tmp_path):
    content = os.urandom(5000), os.urandom(3)
    text = pack_guest.module(*content)
    is_neat(text)
    path = tmp_path / "guest.py"
    path.write_text(text)
    assert loaded(path).load() == content
    assert pack_guest.module(b"", b"").count('"""') == text.count('"""')


def test_command_line(tmp_path, monkeypatch):
    program, output = tmp_path / "guest.elf", tmp_path / "guest.py"
    program.write_bytes(elf())
    monkeypatch.setattr(sys, "argv", ["pack_guest.py", str(program), str(output)])
    pack_guest.main()
    before = output.stat().st_ino
    pack_guest.main()
    assert output.stat().st_ino == before, "what is as it should be is not written again"
    program.write_bytes(elf(entry=0x40010))
    with pytest.raises(SystemExit) as caught:
        pack_guest.main()
    assert "guest.elf: not a 64-bit program" in str(caught.value.code)
    assert loaded(output).load() == (b"text", b"")


def elf(entry=0x40000, segments=((0x40000, b"text", 4),), magic=b"\x7fELF\x02\x01"):
    """A program with these (address, content, bytes in memory)."""
    body = b""
    headers = b""
    start = 64 + 56 * len(segments)
    for address, content, size in segments:
        headers += struct.pack("<IIQQQQQQ", 1, 5, start + len(body), address, address, len(content), size, 4096)
        body += content
    head = magic.ljust(24, b"\0") + struct.pack("<QQQIHHHHHH", entry, 64, 0, 0, 64, 56, len(segments), 0, 0, 0)
    return head + headers + body


def test_segments():
    program = elf(segments=((0x40000, b"text\0\0", 6), (0x180000, b"data", 4096)))
    assert pack_guest.segments(program) == (b"text", b"data")
    one = elf(segments=((0x40000, b"t" * 0x140000 + b"d", 0x150000),))
    assert pack_guest.segments(one) == (b"t" * 0x140000, b"d")


@pytest.mark.parametrize(
    "program",
    [
        elf(entry=0x40010),
        elf(magic=b"\x7fELF\x01\x01"),
        elf(segments=((0x3FFFF, b"text", 4),)),
        elf(segments=((0x180000, b"data", 0x10001),)),
        elf(segments=((0x200000, b"heap", 4),)),
    ],
    ids=["entry", "32 bit", "below", "too large", "behind"],
)
def test_programs_that_do_not_fit(program):
    with pytest.raises(ValueError, match=r"not a 64-bit|outside"):
        pack_guest.segments(program)


def test_write_if_changed(tmp_path):
    path = tmp_path / "new" / "file.py"
    generated.write_if_changed(path, "one\n")
    os.utime(path, (1, 1))
    inode = path.stat().st_ino
    generated.write_if_changed(path, "one\n")
    assert path.stat().st_ino == inode
    assert path.stat().st_mtime > 1, "make sees that it is up to date"
    generated.write_if_changed(path, "two\n")
    assert path.read_text() == "two\n"
    assert os.listdir(path.parent) == ["file.py"]
