# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Makes the fuzzers and their seeds: the guest under sanitizers, and images of the unit tests with operations."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

from sandbox.guests import _abi
from tests.fuzz import chain_seeds
from tests.support import native
from tests.support.qcow2 import Qcow2
from tests.support.recipes import NAMES, RECIPES

HERE = Path(__file__).resolve().parent
SANITIZERS = "address,undefined"
# Of enum call_operation, by their numbers: what is done to one image alone.
_CALLS = _abi.load().typeof("enum call_operation").elements
OPERATIONS = tuple(
    _CALLS[number][5:].lower() for number in range(1, _abi.load().integer_const("CALL_BITMAP_CHANGE") + 1)
)
FLAGS = (
    *("-std=gnu11", "-O1", "-g", "-msse2", "-fno-omit-frame-pointer", f"-fsanitize={SANITIZERS}"),
    # memcpy(NULL, NULL, 0) is in order in the guest, whose memcpy is its own.
    *("-fno-sanitize-recover=all", "-fno-sanitize=nonnull-attribute,pointer-overflow"),
    *(f"-I{native.TOP / 'guest'}", f"-I{native.HERE}", f"-I{HERE}"),
)
PROGRAMS = {
    "steps": ("steps_harness.c", "mutate_steps.c", "mutate.c", "mutate_bitmaps.c"),
    "chains": (
        *("chain_harness.c", "chain_calls.c", "chain_images.c"),
        *("mutate_chain.c", "mutate_vmdk.c", "mutate.c", "mutate_bitmaps.c"),
    ),
}
ACTIONS = ("add", "remove", "clear", "enable", "disable", "merge", "remove_damaged")
BITMAPS = (b"first", b"second", b"fresh")
ENVIRONMENT = {"ASAN_OPTIONS": "handle_abort=1:detect_leaks=0:allocator_may_return_null=1", "LC_ALL": "C"}


def clang() -> str:
    """The compiler with an engine of its own; Debian's clang-tidy brings one that has its version in its name."""
    return next((name for name in ("clang", "clang-14") if shutil.which(name)), "clang")


def objects(directory: Path, compiler: Sequence[str], options: Sequence[str]) -> list[str]:
    """Compiles the guest and all of the fuzzers' own files but driver.c; returns those of the guest."""
    guest = [path for path in native.sources() if path.name != "heap.c"]
    guest += [native.HERE / "host.c", native.HERE / "families.c", HERE / "heap.c"]
    own = [HERE / name for names in PROGRAMS.values() for name in names]
    for room, there in groupby(sorted({*guest, *own}), lambda path: path.parent):
        place = directory / room.name  # files of different rooms may have the same name
        place.mkdir(exist_ok=True)
        subprocess.run([*compiler, *FLAGS, *options, "-c", *map(str, there)], cwd=place, check=True)
    return sorted(str(directory / path.parent.name / f"{path.stem}.o") for path in guest)


def fuzzers(directory: Path, libfuzzer: bool = False, options: Sequence[str] = ()) -> None:
    """Compiles PROGRAMS into an empty directory: with clang's engine, or with driver.c. Raises CalledProcessError."""
    compiler = [clang(), "-fsanitize=fuzzer-no-link"] if libfuzzer else ["gcc"]
    engine = ["-fsanitize=fuzzer"] if libfuzzer else [f"-I{native.TOP / 'guest'}", str(HERE / "driver.c")]
    guest = objects(directory, compiler, options)
    for name, files in PROGRAMS.items():
        own = [str(directory / HERE.name / f"{Path(file).stem}.o") for file in files]
        link = [*compiler, "-g", *options, f"-fsanitize={SANITIZERS}", "-Wl,--wrap=heap_open", *engine, *guest, *own]
        subprocess.run([*link, "-lz", "-lzstd", "-o", name], cwd=directory, check=True)


def step(operation: str, text: bytes) -> bytes:
    """struct input_step: the operation on the snapshot of this id or name; delete takes names only."""
    selector = {"snapshot_delete": 0}.get(operation, 1)
    length = len(text[:8]) if operation != "bitmap_change" else len(text) - 2
    return struct.pack("<BBBB8s", OPERATIONS.index(operation), selector, 1, length, text[:8])


def listed(name: bytes, *actions: str) -> bytes:
    """A step's text for "bitmap_change": the bitmap, and its actions; "merge 1 2" is of the second bitmap of disk 1,
    "add 3" with the third granularity of steps_harness.c."""
    codes = [BITMAPS.index(name)]
    for action in actions:
        kind, *numbers = action.split()
        disk, number = (int(word) for word in (["0", *numbers] if len(numbers) < 2 else numbers)) if numbers else (0, 1)
        codes.append((number - 1 + 4 * disk) * len(ACTIONS) + ACTIONS.index(kind))
    return bytes(codes)


def head(*steps: tuple[str, bytes]) -> bytes:
    """struct input of input.h without a failure."""
    packed = b"".join(step(*one) for one in (*steps, ("snapshot_list", b""), ("image_info", b""))[:3])
    return struct.pack("<36sHBBI20x", packed, 0xFFFF, 0, 0, 0)


def bitmap_heads(there: bool) -> dict[str, bytes]:
    """Lists of actions on images with the first two of BITMAPS, or with none."""
    added = ("bitmap_change", listed(b"fresh", "add 2"))
    heads = {
        "add": head(added, ("bitmap_list", b"\2"), ("bitmap_change", listed(b"fresh", "disable", "merge 3", "remove"))),
        "add-full": head(
            ("bitmap_change", listed(b"fresh", "add 8", "disable")), ("bitmap_change", listed(b"fresh", "remove"))
        ),
        "add-and-create": head(
            added, ("snapshot_create", b"more"), ("bitmap_change", listed(b"second", "add 4", "merge 3"))
        ),
    }
    if there:
        heads["merge"] = head(
            ("bitmap_change", listed(b"fresh", "add 2", "merge 1")),
            ("bitmap_list", b"\2"),
            ("bitmap_change", listed(b"first", "clear", "merge 1 2")),
        )
        heads["clear"] = head(
            ("bitmap_change", listed(b"first", "clear")),
            ("bitmap_change", listed(b"first", "merge 2", "disable")),
            ("bitmap_list", b"\0"),
        )
        heads["remove"] = head(
            ("bitmap_change", listed(b"first", "remove")), ("bitmap_change", listed(b"second", "remove", "add 4"))
        )
        heads["remove-all"] = head(*(("bitmap_change", listed(name, "remove")) for name in BITMAPS[:2]), added)
        heads["remove-damaged"] = head(
            ("bitmap_change", listed(b"first", "remove_damaged")), ("bitmap_list", b"\0"), ("snapshot_create", b"more")
        )
        heads["ranges"] = head(
            ("bitmap_list", b"\0"), ("bitmap_list", b"\1"), ("bitmap_change", listed(b"second", "merge 1 1"))
        )
    return heads


def damaged(image: Path) -> dict[str, bytes]:
    """The image with bitmaps that cannot be: all of them, one, and one that has what is the disk's."""
    with Qcow2(str(image)) as found:
        entries = found.bitmap_directory()
        l1 = found.header["l1_table_offset"]
    whole = image.read_bytes()

    def patched(offset: int, data: bytes) -> bytes:
        return whole[:offset] + data + whole[offset + len(data) :]

    return {
        "no-directory": patched(entries[0].offset, bytes(24)),
        "no-table": patched(entries[0].offset, bytes(8)),
        "foreign-table": patched(entries[-1].offset, struct.pack(">Q", l1)),
        "foreign-bits": patched(entries[0].table, struct.pack(">Q", l1)),
    }


def seeds(directory: Path) -> list[Path]:
    """Writes one input for every operation on every small image."""
    made = []
    for name, recipe in RECIPES.items():
        if name == "large":
            continue
        path = recipe.make(directory / f"{name}.qcow2")
        image = path.read_bytes()
        with_bitmaps = any(step.startswith("%") for step in recipe.history)
        damages = damaged(path) if with_bitmaps else {}
        path.unlink()
        heads = {
            "create": head(("snapshot_create", b"fresh"), ("snapshot_delete", b"fresh"), ("snapshot_create", b"again"))
        }
        for snapshot in NAMES[name]:
            text = snapshot.decode()
            heads[f"apply-{text}"] = head(
                ("snapshot_apply", snapshot), ("snapshot_create", b"more"), ("snapshot_delete", snapshot)
            )
            heads[f"delete-{text}"] = head(
                ("snapshot_delete", snapshot), ("snapshot_create", b"more"), ("snapshot_apply", b"more")
            )
            heads[f"compare-{text}"] = head(
                ("snapshot_compare", snapshot), ("snapshot_apply", snapshot), ("snapshot_list", b"")
            )
        if with_bitmaps or name in ("tiny", "bits64", "extended", "v2", "mixed"):
            heads.update(bitmap_heads(with_bitmaps))
        for title, start in heads.items():
            seed = directory / f"{name}-{title}"
            seed.write_bytes(start + image)
            made.append(seed)
        for title, content in damages.items():
            seed = directory / f"{name}-{title}"
            seed.write_bytes(heads["remove-damaged"] + content)
            made.append(seed)
    return made


SEEDS: dict[str, Callable[[Path], list[Path]]] = {"steps": seeds, "chains": chain_seeds.seeds}
"""What writes a program's seeds into a directory."""
