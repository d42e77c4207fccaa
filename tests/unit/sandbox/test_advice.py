# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What messages advise can be done, is done here, and does no harm.

FOLLOWED makes refusals happen and does what they say; NOT_FOLLOWED has the rest, each with the reason.
"""

from __future__ import annotations

import ast
import errno
import os
import pathlib
import re
import shlex
import struct
import subprocess
import typing as t

import pytest

from sandbox import advice, bitmaps, chain, errors, holders, reference_refusals, refusals, refused
from sandbox import snapshot_changes as changes
from sandbox.images import Image
from sandbox.reference_rules import Reference
from sandbox.snapshots import Selector
from sandbox.wording import names_of

from .bitmap_images import set_in_use
from .chain_images import overlay, raw
from .test_cli_refusals import Patch, patched, u32, u64

TOP = pathlib.Path(__file__).parents[3]
NAMED = re.compile(r"\b(qemu-img|qemu-io|qemu-nbd|guestmount|guestfish|virt-(?:cat|edit|resize))\b")
TRUST = re.compile(r"if you trust", re.IGNORECASE)
FIELD = re.compile(r"\{([a-z_0-9]+)\}")
CODES = {name: number for number, name in names_of("refusal", "REFUSAL_").items() if number}


def qemu(*arguments: str | pathlib.Path) -> None:
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def commands(message: str, **names: str | pathlib.Path) -> list[list[str]]:
    """The command lines that a message has in quotation marks, with NAMES in them filled in."""
    found = [shlex.split(text) for text in re.findall(r'"((?:qemu-img|airlock) [^"]+)"', message)]
    return [[str(names.get(word, word)) for word in line] for line in found]


def airlock(line: list[str]) -> None:
    from sandbox import cli

    assert line[0] == "airlock"
    assert cli.main([os.fsencode(word) for word in line[1:]]) == 0, line


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An image with data and two snapshots."""
    path = tmp_path_factory.mktemp("sound") / "image"
    qemu("qemu-img", "create", "-q", "-f", "qcow2", path, "1M")
    qemu("qemu-io", "-c", "write 0 64k", path)
    qemu("qemu-img", "snapshot", "-c", "s1", path)
    qemu("qemu-img", "snapshot", "-c", "s2", path)
    return path.read_bytes()


def refusal(function: t.Callable[[], object]) -> errors.AirlockError:
    with advice.of_commands(), pytest.raises(errors.AirlockError) as caught:
        function()
    return caught.value


def change(path: pathlib.Path, function: t.Callable[[Image], object]) -> None:
    with Image.open(str(path), writable=True) as image:
        function(image)


def new_snapshot(path: pathlib.Path) -> None:
    change(path, lambda image: changes.create_snapshot(image, b"new", (1, 0)))


# ---- what a copy is repaired of ------------------------------------------------------------------------------


def _places(data: bytes) -> dict[str, int]:
    (l1,) = struct.unpack_from(">Q", data, 40)
    (l2,) = struct.unpack_from(">Q", data, l1)
    l2 &= (1 << 56) - 512
    (entry,) = struct.unpack_from(">Q", data, l2)
    (table,) = struct.unpack_from(">Q", data, 48)
    (block,) = struct.unpack_from(">Q", data, table)
    (snapshots,) = struct.unpack_from(">Q", data, 64)
    return {"l1": l1, "l2": l2, "entry": entry, "block": block, "snapshots": snapshots}


def _damage(code: str, data: bytes) -> list[Patch]:
    at = _places(data)
    cluster = (at["entry"] & (1 << 56) - 512) >> 16
    return {
        "corrupt": [u64(72, 2)],
        "dirty": [u64(72, 1)],
        "no_refcount_table": [u32(56, 0)],
        "snapshot_extra": [u32(at["snapshots"] + 36, 1025)],
        "refcount_too_low": [(at["block"] + 2 * cluster, b"\0\1")],
        "copied_flag": [u64(at["l2"], at["entry"] | 1 << 63)],
        # Those that no repair mends, so that none is advised.
        "overlap": [u64(at["l2"], at["l1"])],
        "shared_cluster": [u64(at["l2"] + 8, at["entry"])],
        "outside_file": [u64(at["l2"], 1 << 40)],
        "reserved_bits": [u64(at["l2"], at["entry"] | 1 << 58)],
        "unaligned": [u64(at["l2"], at["entry"] + 512)],
        "refcount_table_large": [u32(56, 1000)],
        "refcount_table_offset": [u64(48, 65537)],
        "snapshot_table_large": [u32(60, 65537)],
        "snapshot_table_offset": [u64(64, 0x30001)],
    }[code]


REPAIRED = ("corrupt", "dirty", "no_refcount_table", "snapshot_extra", "refcount_too_low", "copied_flag")
RESTORED = (
    *("overlap", "shared_cluster", "outside_file", "reserved_bits", "unaligned"),
    *("refcount_table_large", "refcount_table_offset", "snapshot_table_large", "snapshot_table_offset"),
)


@pytest.mark.parametrize("code", REPAIRED + RESTORED)
def test_repair_is_advised_where_it_helps(code: str, sound: bytes, tmp_path: pathlib.Path) -> None:
    image, copy = tmp_path / "image", tmp_path / "copy"
    image.write_bytes(patched(sound, _damage(code, sound)))
    before = image.read_bytes()
    copy.write_bytes(before)
    error = refusal(lambda: new_snapshot(image))
    assert error.code == code
    assert image.read_bytes() == before
    lines = commands(error.message, COPY=copy)
    if code in RESTORED:
        assert lines == []
        assert "restore the image from a backup" in error.message
        subprocess.run(["qemu-img", "check", "-f", "qcow2", "-r", "all", copy], capture_output=True, check=False)
        refusal(lambda: new_snapshot(copy))  # it would have led nowhere
        return
    assert lines == [["qemu-img", "check", "-f", "qcow2", "-r", "all", str(copy)]]
    qemu(*lines[0])
    new_snapshot(copy)
    assert image.read_bytes() == before


# ---- what else is done ---------------------------------------------------------------------------------------


def _version_2(path: pathlib.Path) -> None:
    qemu("qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=0.10", path, "1M")


def _follow(error: errors.AirlockError, code: str, **names: str | pathlib.Path) -> None:
    """Does the first thing that the message says, and has looked whether the image must be trusted for it."""
    assert error.code == code, error.message
    line = commands(error.message, **names)[0]
    if line[0] == "airlock":
        airlock(line)
    else:
        assert TRUST.search(error.message)
        qemu(*line)


def follow_bitmap_version_2(directory: pathlib.Path) -> None:
    path = directory / "a b.qcow2"
    _version_2(path)

    def add() -> None:
        change(path, lambda image: bitmaps.change_bitmap(image, b"b0", [bitmaps.Action.add()]))

    _follow(refusal(add), "bitmap_version_2")
    add()


def follow_resize_v2(directory: pathlib.Path) -> None:
    path = directory / "disk"
    _version_2(path)
    qemu("qemu-img", "snapshot", "-c", "s", path)
    data = bytearray(path.read_bytes())
    struct.pack_into(">Q", data, 24, 2 << 20)  # QEMU refuses to make one
    path.write_bytes(data)

    def apply() -> None:
        change(path, lambda image: changes.apply_snapshot(image, Selector.by_name(b"s"), allow_resize=True))

    error = refusal(apply)
    if error.code != "resize_v2":
        pytest.fail(error.message)
    _follow(error, "resize_v2")
    apply()


def follow_resize_not_allowed(directory: pathlib.Path) -> None:
    path = directory / "disk"
    qemu("qemu-img", "create", "-q", "-f", "qcow2", path, "1M")
    qemu("qemu-img", "snapshot", "-c", "s", path)
    qemu("qemu-img", "resize", "-q", "-f", "qcow2", path, "2M")

    def apply(allow: bool) -> None:
        selector = Selector.by_name(b"s")
        change(path, lambda image: changes.apply_snapshot(image, selector, allow_resize=allow))

    assert "leave out --no-resize" in refusal(lambda: apply(False)).message
    apply(True)


def follow_has_bitmaps(directory: pathlib.Path) -> None:
    path = directory / "disk"
    qemu("qemu-img", "create", "-q", "-f", "qcow2", path, "1M")
    qemu("qemu-img", "snapshot", "-c", "s", path)
    qemu("qemu-img", "bitmap", "--add", path, "b0")

    def apply() -> None:
        change(path, lambda image: changes.apply_snapshot(image, Selector.by_name(b"s"), allow_resize=False))

    _follow(refusal(apply), "has_bitmaps", NAME="b0")
    apply()


def follow_bitmap_inconsistent(directory: pathlib.Path) -> None:
    path = directory / "disk"
    qemu("qemu-img", "create", "-q", "-f", "qcow2", path, "1M")
    qemu("qemu-img", "bitmap", "--add", path, "b0")
    set_in_use(path, 0)
    clear = [bitmaps.Action.clear()]
    error = refusal(lambda: change(path, lambda image: bitmaps.change_bitmap(image, b"b0", clear)))
    _follow(error, "bitmap_inconsistent", NAME="b0")
    with Image.open(str(path)) as image:
        assert not bitmaps.list_bitmaps(image).bitmaps


def follow_bitmap_not_found(directory: pathlib.Path) -> None:
    path = directory / "disk"
    qemu("qemu-img", "create", "-q", "-f", "qcow2", path, "1M")
    clear = [bitmaps.Action.clear()]
    _follow(refusal(lambda: change(path, lambda image: bitmaps.change_bitmap(image, b"b0", clear))), "bitmap_not_found")


def follow_snapshot_not_found(directory: pathlib.Path) -> None:
    path = directory / "disk"
    qemu("qemu-img", "create", "-q", "-f", "qcow2", path, "1M")
    selector = Selector.by_name(b"nope")
    _follow(refusal(lambda: change(path, lambda image: changes.delete_snapshot(image, selector))), "snapshot_not_found")


def follow_bitmap_empty_disk(directory: pathlib.Path) -> None:
    path = directory / "disk"
    qemu("qemu-img", "create", "-q", "-f", "qcow2", path, "0")

    def add() -> None:
        change(path, lambda image: bitmaps.change_bitmap(image, b"b0", [bitmaps.Action.add()]))

    _follow(refusal(add), "bitmap_empty_disk", SIZE="1M")
    add()


def follow_refcount_overflow(directory: pathlib.Path) -> None:
    path = directory / "disk"
    qemu("qemu-img", "create", "-q", "-f", "qcow2", "-o", "refcount_bits=1", path, "1M")
    qemu("qemu-io", "-c", "write 0 64k", path)
    error = refusal(lambda: new_snapshot(path))
    assert error.code == "refcount_overflow"
    assert TRUST.search(error.message)
    qemu(*commands(error.message, NEW=directory / "new")[1])
    new_snapshot(directory / "new")


def follow_bitmaps_extension(directory: pathlib.Path) -> None:
    from .test_cli_refusals import bitmaps as extension

    path = directory / "disk"
    qemu("qemu-img", "create", "-q", "-f", "qcow2", path, "1M")
    path.write_bytes(patched(path.read_bytes(), extension(1, 1, 32, 65536)))
    _follow(refusal(lambda: new_snapshot(path)), "bitmaps_extension")
    new_snapshot(path)


FOLLOWED: dict[str, t.Callable[[pathlib.Path], None]] = {
    name[len("follow_") :]: function for name, function in globals().items() if name.startswith("follow_")
}

_BACKUP = "it says to copy the file or restore a backup, which nothing of ours does"
_WRITER = "only the program that wrote the image knows what it needs"
_HOST = "it is about the host: its disks, its memory, what others do there"
_ARGUMENT = "it names what was asked for, and what can be asked for instead"
_HUGE = "it takes an image of 64 MiB of tables or more, or 65536 of something, to make it happen"
_BY_HAND = "no program writes such an image; what it says is done for others of this list"
_ELSEWHERE = "done in the tests of commits, rebases or of vmdk images"
NOT_FOLLOWED: dict[str, str] = {
    **dict.fromkeys(("bad_call", "no_memory", "read_failed", "write_failed", "no_space", "file_not_empty"), _HOST),
    **dict.fromkeys(("version", "incompatible_features", "compression_type", "encryption_method"), _WRITER),
    **dict.fromkeys(("vmdk_version", "vmdk_read_only", "vmdk_subformat"), _WRITER),
    **dict.fromkeys([code for code, wording in refusals.WORDINGS.items() if "{restore}" in wording.message], _BACKUP),
    **dict.fromkeys(("truncated", "compressed_cluster", "data_file"), _BACKUP),
    **dict.fromkeys(("not_qcow2", "not_vmdk", "bitmap_name_empty", "bitmap_granularity", "bitmap_exists"), _ARGUMENT),
    **dict.fromkeys(("bitmap_name_long", "bitmap_sizes", "bitmap_too_large"), _ARGUMENT),
    **dict.fromkeys(("too_many_snapshots", "snapshot_table_full", "snapshot_table_big", "file_too_big"), _HUGE),
    **dict.fromkeys(("too_many_bitmaps", "bitmap_directory_full", "vmdk_full", "bitmap_header_full"), _HUGE),
    **dict.fromkeys(("name_not_deletable", "bitmaps_overlap", "bitmap_ambiguous"), _BY_HAND),
    **dict.fromkeys(("encrypted", "base_resize", "base_resize_v2", "backing_name_room"), _ELSEWHERE),
    **dict.fromkeys(("compress_data_file", "backing_raw_data", "base_vmdk_resize"), _ELSEWHERE),
    **dict.fromkeys(("vmdk_descriptor", "vmdk_extent", "vmdk_parent_changed"), _ELSEWHERE),
}


@pytest.mark.parametrize("code", FOLLOWED)
def test_advice_is_followed(code: str, tmp_path: pathlib.Path) -> None:
    FOLLOWED[code](tmp_path)


def test_each_refusal_is_followed_or_has_a_reason() -> None:
    done = {*FOLLOWED, *REPAIRED}
    assert done | set(NOT_FOLLOWED) == set(CODES)
    assert not done & set(NOT_FOLLOWED)


# ---- names in images -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["{outside}/base", "../outside/base", "link", "way/base", "sub/../../outside/base"])
def test_the_file_that_is_meant_is_allowed_and_no_more(name: str, tmp_path: pathlib.Path) -> None:
    home, outside = tmp_path / "home", tmp_path / "outside"
    for directory in (home, outside, home / "sub"):
        directory.mkdir()
    overlay(outside / "base")
    (home / "link").symlink_to(outside / "base")
    (home / "way").symlink_to(outside)
    top = overlay(home / "top.qcow2", os.fsencode(name.format(outside=outside)))
    error = refusal(lambda: chain.open_chain(str(top)))
    match = re.search(r"--allowed-root (\S+)\.$", error.message)
    assert match, error.message
    airlock(["airlock", "info", "--chain", "--allowed-root", match.group(1), str(top)])
    overlay(home / "top.qcow2", os.fsencode(f"{outside}/other"))
    overlay(outside / "other")
    assert refusal(lambda: chain.open_chain(str(top), allowed_roots=[match.group(1)])).code == "backing_absolute"


@pytest.mark.parametrize("name", ["nothing", "nbd://127.0.0.1:1", "base\0", "sub", "top.qcow2", "x" * 300])
def test_another_file_is_named(name: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "sub").mkdir()
    raw(tmp_path / "base")
    top = overlay(tmp_path / "top.qcow2", name.encode())
    error = refusal(lambda: chain.open_chain(str(top)))
    _follow(error, error.code, FILE="base", FORMAT="raw")
    chain.open_chain(str(top)).close()


def test_a_format_that_is_known_is_recorded(tmp_path: pathlib.Path) -> None:
    raw(tmp_path / "base")
    top = overlay(tmp_path / "top.qcow2", b"base", b"host_device")
    _follow(refusal(lambda: chain.open_chain(str(top))), "backing_format_unknown", FILE="base", FORMAT="raw")
    chain.open_chain(str(top)).close()


def test_a_deep_chain_is_shortened_from_below(tmp_path: pathlib.Path) -> None:
    overlay(tmp_path / "0")
    for number in range(1, 6):
        overlay(tmp_path / str(number), str(number - 1).encode())
    top = tmp_path / "5"
    error = refusal(lambda: chain.open_chain(str(top), depth_limit=5))
    _follow(error, "chain_too_deep", FILE=tmp_path / "0", FORMAT="qcow2", IMAGE=tmp_path / "2")
    chain.open_chain(str(top), depth_limit=5).close()


def test_each_rule_of_names_says_what_to_do() -> None:
    reference = Reference(b"name", "backing", "image")
    for rule in reference_refusals.WORDINGS:
        error = errors.ChainError("")
        for failure in (reference_refusals.RuleError(rule), OSError(errno.EMFILE, "")):
            error = reference_refusals.refusal(reference, failure, "name")
            assert error.message.endswith("."), error.message
    assert "LimitNOFILE" in error.message


# ---- the host ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_no_room_is_asked_for_when_it_is_something_else(number: int) -> None:
    from sandbox import transaction

    reading = refused.from_refusal(refused.ResultHeader(CODES["read_failed"], arguments=(number, 0, 512, 0, 0, 0)), "d")
    for error in (reading, errors.open_error("d", OSError(number, ""), False), transaction._no_journal("d", number)):
        assert not re.search("Make room|kernel's log|Free some space", error.message), error.message
        assert advice.of_errno(number) in error.message
    assert "Make room" in transaction._no_journal("d", errno.ENOSPC).message
    assert "TMPDIR" in transaction._no_journal("d", errno.ENOENT).message
    assert "kernel's log" in errors.open_error("d", OSError(errno.EIO, ""), False).message


@pytest.mark.parametrize(
    ("names", "words", "other"),
    [
        (["python3"], "lock_timeout", "virtual machine"),
        (["airlock", "python3.11"], "lock_timeout", "virtual machine"),
        (["qemu-system-x86"], "Shut down the virtual machine", "lock_timeout"),
        (["qemu-img"], "lock_timeout", "virtual machine"),
        (["python3", "qemu-system-x86"], "Shut down the virtual machine or end", "lock_timeout"),
        ([""], "Shut down the virtual machine or end", "lock_timeout"),
        ([], "Shut down the virtual machine or end", "lock_timeout"),
    ],
)
def test_a_holder_is_dealt_with_as_what_it_is(names: list[str], words: str, other: str) -> None:
    assert words in holders._way(names)
    assert other not in holders._way(names)


# ---- the list ------------------------------------------------------------------------------------------------


def test_each_way_is_of_use_and_has_two_voices() -> None:
    sources = [path.read_text() for room in ("sandbox", "plugins/module_utils/_module") for path in rooms(room)]
    text = "\n".join(sources)
    for name, way in advice.WAYS.items():
        assert f"{{{name}}}" in text or f'"{name}"' in text.replace(f'    "{name}": ', "") or f"'{name}'" in text, name
        if not isinstance(way, str):
            module, command = way
            assert not re.search(r'"airlock|(^|[ (])--?[a-zA-Z]', module), module
            assert "qcow2_" not in command
            assert not re.search(r"\b(true|state)\b", command), command


@pytest.mark.parametrize("code", sorted(refusals.WORDINGS))
def test_a_module_names_no_option_of_the_command_line(code: str) -> None:
    header = refused.ResultHeader(CODES[code], text=bytes(1024))
    module = refused.from_refusal(header, "d").message
    with advice.of_commands():
        command = refused.from_refusal(header, "d").message
    assert not re.search(r"(^|[ (])--[a-z]", module), module
    assert "qcow2_" not in command
    assert "allow_resize" not in command
    assert refused.from_refusal(header, "d").message == module


def test_every_field_is_one() -> None:
    """A way that is misspelt would be an exception in the place of a message."""
    for code in refusals.WORDINGS:
        for disk in (0, 1):
            refused.from_refusal(refused.ResultHeader(CODES[code], disk, text=bytes(1024)), "d")


def rooms(room: str) -> list[pathlib.Path]:
    return [path for path in sorted((TOP / room).glob("*.py")) if not path.name.startswith(("_guest_", "_abi"))]


def texts(path: pathlib.Path) -> t.Iterator[tuple[int, str]]:
    """Every text of a Python file that is no docstring, as one where it is put together."""
    tree = ast.parse(path.read_text())
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    inner: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.JoinedStr, ast.BinOp)):
            parts = [part for part in ast.walk(node) if isinstance(part, ast.Constant)]
            if not inner & {id(part) for part in parts}:
                yield node.lineno, "".join(str(part.value) for part in parts if isinstance(part.value, str))
            inner |= {id(part) for part in parts}
        elif isinstance(node, ast.Constant) and id(node) not in inner | docstrings:
            yield node.lineno, node.value.decode("latin-1") if isinstance(node.value, bytes) else str(node.value)


OURS = [*rooms("sandbox"), *rooms("plugins/module_utils/_module"), *rooms("plugins/plugin_utils")]
# qemu-img's own words, which stand where it would say them.
QEMUS = ("You can force-remove", "Copyright")


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
def test_no_program_without_a_sandbox_is_named_without_trust(path: pathlib.Path) -> None:
    for line, text in texts(path):
        if NAMED.search(text) and not any(words in text for words in QEMUS):
            assert TRUST.search(text) or "reads every file" in text, f"{path.name}:{line}: {text}"


def test_no_role_or_playbook_advises_one_without_trust() -> None:
    """Their messages: msg, fail_msg, success_msg and what is put together for them."""
    for path in sorted([*(TOP / "roles").rglob("*.yml"), *(TOP / "playbooks").rglob("*.yml")]):
        lines = path.read_text().splitlines()
        for number, line in enumerate(lines, 1):
            comment_or_command = line.lstrip().startswith(("#", "- name:", "ansible.builtin.command:"))
            if NAMED.search(line) and not comment_or_command:
                assert TRUST.search("\n".join(lines[max(0, number - 4) : number + 3])), f"{path}:{number}"
