# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every refusal has words, whatever its arguments are."""

from __future__ import annotations

import errno
import pathlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox import errors
from sandbox.cli import qemu_words
from sandbox.words import advice, chain_refusals, opening, refusals, refused, vmdk_refusals

from .saying import said

HEADERS = pathlib.Path(__file__).parents[3] / "guest" / "abi"
WORST = (1 << 64) - 1


def enumerators(name: str, header: str = "refusals.h") -> dict[str, int]:
    """The names and values of an enum in guest/abi."""
    text = re.sub(r"/\*.*?\*/", "", (HEADERS / header).read_text(), flags=re.DOTALL)
    found = re.search(rf"enum {name} \{{(.*?)\}}", text, re.DOTALL)
    assert found is not None
    values: dict[str, int] = {}
    following = 0
    for entry in found[1].split(","):
        if entry.strip():
            key, _equals, value = (part.strip() for part in entry.partition("="))
            following = int(value, 0) if value else following
            values[key] = following
            following += 1
    return values


REFUSALS = enumerators("refusal")


def header(refusal: str, arguments: tuple[int, ...] = (), text: bytes = b"", modified: int = 0) -> refused.ResultHeader:
    padded = text + bytes(1024 - len(text))
    code = REFUSALS[f"REFUSAL_{refusal.upper()}"]
    return refused.ResultHeader(code, modified, len(text), 0, (*arguments, *(0,) * (6 - len(arguments))), padded)


VOICES = {
    "open": qemu_words.reading(),
    "bitmap": qemu_words.bitmap(["add"]),
    "commit": qemu_words.commit(),
    "rebase": qemu_words.rebase(),
    **{verb: qemu_words.snapshot(verb) for verb in ("create", "apply", "delete")},
}


def test_every_code_of_the_contract_has_words_under_its_own_name() -> None:
    assert len(REFUSALS) > 50
    assert {f"REFUSAL_{name.upper()}" for name in ("none", *chain_refusals.WORDINGS)} == set(REFUSALS)


@pytest.mark.parametrize(
    ("enum", "prefix", "names"),
    [
        ("table", "TABLE_", refusals.TABLES),
        ("bitmaps_fault", "BITMAPS_", refusals.BITMAPS_FAULTS),
        *((enum, prefix, names) for enum, prefix, names in vmdk_refusals.VMDK_FAULTS.values()),
    ],
)
def test_every_table_and_fault_has_words(enum: str, prefix: str, names: dict[str, str]) -> None:
    ours = {f"{prefix}{name.upper()}" for name in names}
    assert ours == {name for name, number in enumerators(enum).items() if number}


def test_each_refusal_that_qemu_words_is_one() -> None:
    words = [voice.texts for voice in VOICES.values()]
    assert sum(map(len, words)) > 40
    assert set().union(*words, qemu_words._OPEN) <= set(chain_refusals.WORDINGS)


@pytest.mark.parametrize("code", sorted(chain_refusals.WORDINGS))
@pytest.mark.parametrize("arguments", [(0,) * 6, (WORST,) * 6, (1, 0x30000, 7, 0x8000000000050000, 0x50000, 2)])
def test_message_is_bounded_and_says_what_to_do(code: str, arguments: tuple[int, ...]) -> None:
    text = b"\x1b[31m{a}\n|\xff\xe2\x80\xae" * 90
    error = chain_refusals.from_rebase_refusal(header(code, arguments, text[:1024]), ["/images/a b.qcow2"], "s{1}")
    assert error.code == code
    assert error.message.startswith("/images/a b.qcow2: ")
    assert error.message.isprintable()
    assert len(error.message.encode()) <= errors.MESSAGE_LIMIT
    own_words = r"Run|Free|Restore|Name |Make|Give|Take|Shorten|Look|Correct|correct|Commit|Keep"
    of_list = [way for way in advice.WAYS if f"{{{way}}}" in chain_refusals.WORDINGS[code].message]
    assert of_list or re.search(own_words, error.message) or "{of_errno}" in chain_refusals.WORDINGS[code].message
    for voice in VOICES.values():
        assert 0 < len(said(error, voice)) <= 8192
        assert "\x1b" not in said(error, voice)


def test_verification_names_table_entry_and_offsets() -> None:
    error = refused.from_refusal(header("overlap", (3, 0x40000, 17, 0x8000000000050000, 0x50000, 2)), "d.qcow2", "s")
    assert isinstance(error, errors.InconsistentImageError)
    assert error.message == (
        "d.qcow2: Entry 17 of the L2 table at 0x40000 (0x8000000000050000) points at the cluster at offset 0x50000, "
        "which is taken already (active L1 table). No tool can repair this in place: restore the image from a backup. "
        "Nothing was changed."
    )


QEMU_TEXTS = [
    ("version", (4,), "open", "Could not open 'F': Unsupported qcow2 version 4"),
    ("cluster_size", (8,), "create", "Could not open 'F': Unsupported cluster size: 2^8"),
    (
        "incompatible_features",
        (32,),
        "open",
        "Could not open 'F': Unsupported qcow2 feature(s): Unknown incompatible feature: 20",
    ),
    (
        "snapshot_extra",
        (3,),
        "open",
        "Could not open 'F': Too much extra metadata in snapshot table entry 3\n"
        "You can force-remove this extra metadata with qemu-img check -r all",
    ),
    (
        "bitmaps_extension",
        (4, 65536),
        "open",
        "Could not open 'F': bitmaps_ext: Image has 65536 bitmaps, exceeding the QEMU supported maximum of 65535",
    ),
    ("write_failed", (errno.EIO,), "create", "Could not create snapshot 'x': Input/output error"),
    ("no_space", (), "create", "Could not create snapshot 'x': No space left on device"),
    ("snapshot_not_found", (), "delete", "Could not delete snapshot 'x': snapshot not found"),
    (
        "snapshot_not_found",
        (),
        "apply",
        "Could not apply snapshot 'x': Failed to load snapshot: No such file or directory",
    ),
    ("too_many_snapshots", (), "create", "Could not create snapshot 'x': File too large"),
    ("data_file", (), "create", "Could not create snapshot 'x': Operation not supported"),
    ("data_file", (), "delete", "Could not delete snapshot 'x': snapshot not found"),
    ("data_file", (), "apply", "Could not apply snapshot 'x': Failed to load snapshot: Operation not supported"),
    ("has_bitmaps", (), "apply", "Could not apply snapshot 'x': Device has active dirty bitmaps"),
    ("snapshot_l1_large", (), "delete", "Could not delete snapshot 'x': Snapshot L1 table too large"),
    (
        "snapshot_l1_offset",
        (),
        "apply",
        "Snapshot L1 table offset invalid\nCould not apply snapshot 'x': Failed to load snapshot: Invalid argument",
    ),
    (
        "resize_v2",
        (),
        "apply",
        "Can't resize a v2 image which has snapshots\n"
        "Could not apply snapshot 'x': Failed to load snapshot: Operation not supported",
    ),
    ("name_not_deletable", (), "delete", "Could not delete snapshot 'x': Can't find the snapshot"),
]


@pytest.mark.parametrize(("code", "arguments", "operation", "text"), QEMU_TEXTS)
def test_qemu_text(code: str, arguments: tuple[int, ...], operation: str, text: str) -> None:
    assert said(refused.from_refusal(header(code, arguments), "F", "x"), VOICES[operation]) == text


def test_what_the_operator_gave_stands_in_qemu_text_unchanged() -> None:
    error = refused.from_refusal(header("snapshot_not_found"), "a|{b}", "n|{c}\x1b\udcff")
    assert said(error, VOICES["delete"]) == "Could not delete snapshot 'n|{c}\x1b\udcff': snapshot not found"
    assert "'n|{c}\ufffd\ufffd'" in error.message


def test_a_path_may_look_like_a_part_of_the_words() -> None:
    """The words were once made of others, cut where a quotation mark and a colon were."""
    error = errors.ImageInUseError("in use", file="a': b", byte=201, taking=False, opened=True)
    assert said(error, VOICES["commit"]) == 'Failed to get "write" lock\nIs another process using the image [a\': b]?'


def test_a_write_that_had_begun_is_told() -> None:
    assert "Nothing was changed" in refused.from_refusal(header("write_failed", (5,)), "F", "x").message
    begun = refused.from_refusal(header("write_failed", (5,), modified=1), "F", "x")
    assert begun.modified
    assert "was written to before this" in begun.message


@pytest.mark.parametrize("code", [999, (1 << 32) - 1, 6])
def test_an_unknown_code_is_a_protocol_error(code: int) -> None:
    error = refused.from_refusal(refused.ResultHeader(code), "F")
    assert isinstance(error, errors.GuestProtocolError)
    assert str(code) in error.message


@given(st.one_of(st.binary(), st.text()))
def test_clean_text_is_printable_and_short(text: str | bytes) -> None:
    cleaned = errors.clean(text, 20)
    assert cleaned.isprintable()
    assert len(cleaned) <= 20


def test_clean_shows_that_something_was_there() -> None:
    assert errors.clean(b"a\x1b[2J\xe2\x80\xaeb\xff") == "a\ufffd[2J\ufffdb\ufffd"
    assert errors.clean("Zürich 日本") == "Zürich 日本"
    assert errors.clean("half of a pair: \ud800") == "half of a pair: ?"


@pytest.mark.parametrize(
    ("path", "quoted"), [("a.qcow2", "a.qcow2"), ("a b", "'a b'"), ("a'b", "'a'\"'\"'b'"), ("", "''")]
)
def test_quote(path: str, quoted: str) -> None:
    assert errors.quote(path) == quoted


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOENT, "not_found"),
        (errno.EACCES, "permission_denied"),
        (errno.EROFS, "read_only"),
        (errno.ELOOP, "symlink_loop"),
        (errno.EIO, "open_failed"),
    ],
)
def test_open_errors_have_codes_and_advice(number: int, code: str) -> None:
    error = opening.open_error("F", OSError(number, "x"), writable=True)
    assert error.code == code
    assert said(error).startswith("Could not open 'F': Could not open 'F': ")
    assert error.message.count(". ") == 1


def test_codes_of_classes_are_distinct() -> None:
    classes = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.AirlockError)
    ]
    codes = [kind.code for kind in classes if not issubclass(kind, errors.RefusalError)]
    assert len(codes) == len(set(codes))
    assert all(re.fullmatch(r"[a-z0-9_]+", code) for code in codes)
