# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""guest/qcow2/refcounts: entries of every width, the search for free clusters, growth of blocks and of the table."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import qemu
from tests.support.native import Guest
from tests.support.qcow2 import Qcow2

CLUSTER = 512
ALLOCATE, FREE, PUNCH, WRITE_BACK, ALLOCATE_BYTES = 1, 2, 3, 4, 5


def entry_of(block: bytes, order: int, index: int) -> int:
    """The specification's words: entries narrower than a byte start at its least significant bit, others are
    big-endian."""
    bits = 1 << order
    if bits < 8:
        return block[index * bits // 8] >> (index * bits % 8) & ((1 << bits) - 1)
    return int.from_bytes(block[index * bits // 8 : (index + 1) * bits // 8], "big")


@settings(max_examples=300)
@given(order=st.integers(0, 6), data=st.data())
def test_entries_of_every_width(library: Guest, order: int, data: st.DataObject) -> None:
    block = data.draw(st.binary(min_size=64, max_size=64))
    entries = 64 * 8 >> order
    index = data.draw(st.integers(0, entries - 1))
    value = data.draw(st.integers(0, (1 << (1 << order)) - 1))
    memory = library.ffi.new("uint8_t[]", block)
    assert library.lib.probe_block_get(memory, order, index) == entry_of(block, order, index)
    library.lib.probe_block_set(memory, order, index, value)
    after = bytes(library.ffi.buffer(memory))[:64]
    assert [entry_of(after, order, i) for i in range(entries)] == [
        value if i == index else entry_of(block, order, i) for i in range(entries)
    ]


def change(guest: Guest, script: list[tuple[int, int, int]], cursor: int) -> list[int]:
    """Runs (kind, offset, bytes) steps on the loaded image; the offsets allocated."""
    changes = guest.ffi.new("struct probe_change[]", [(kind, 0, at, size) for kind, at, size in script])
    answer = guest.probe("refcounts", changes, len(changes), cursor)
    assert answer.refusal == ""
    return [entry.offset for entry in changes if entry.kind in (ALLOCATE, ALLOCATE_BYTES)]


def test_the_search_takes_the_first_run_from_the_cursor_on(guest: Guest, image: Callable[[str], Path]) -> None:
    guest.load(image("tiny"))
    with Qcow2(str(image("tiny"))) as reader:
        taken = {c for clusters, _kind, _who in reader.references() for c in clusters}
    free = [c for c in range(max(taken) + 20) if c not in taken]
    assert free[0] == max(taken) + 1  # no hole yet
    some = sorted(taken)[-9:]
    script = [(FREE, some[i] * CLUSTER, CLUSTER) for i in (0, 2, 3, 6, 7, 8)]
    # Freed: 0, 2-3, 6-8; freeing moves the cursor back, as in QEMU.
    script += [(ALLOCATE, 0, 2 * CLUSTER), (ALLOCATE, 0, CLUSTER), (ALLOCATE, 0, 5 * CLUSTER), (ALLOCATE, 0, 1)]
    found = change(guest, script, cursor=max(taken) + 1)
    assert found == [some[2] * CLUSTER, some[6] * CLUSTER, some[7] * CLUSTER, (some[7] + 5) * CLUSTER]


def test_nothing_takes_nothing(guest: Guest, image: Callable[[str], Path]) -> None:
    guest.load(image("tiny"))
    assert change(guest, [(ALLOCATE, 0, 0)], cursor=5) == [0]
    assert guest.image() == image("tiny").read_bytes()


def test_bytes_go_on_where_the_last_ones_end(guest: Guest, image: Callable[[str], Path], tmp_path: Path) -> None:
    guest.load(image("tiny"))
    sizes = (100, 200, 300, 500, 512, 512, 30)
    script = [(ALLOCATE_BYTES, 0, size) for size in sizes]
    script.insert(3, (ALLOCATE, 0, CLUSTER))
    offsets = change(guest, [*script, (WRITE_BACK, 0, 0)], cursor=0)
    start = offsets[0]
    assert start % CLUSTER == 0
    # The third goes over into the next cluster. The one behind that is taken, so the fourth starts anew; all others
    # go over again.
    new = start + 3 * CLUSTER
    expected = [0, 100, 300, 2 * CLUSTER, 3 * CLUSTER]
    assert [offset - start for offset in offsets[:5]] == expected
    assert [offset - new for offset in offsets[5:]] == [500, 500 + 512, 500 + 2 * 512]
    path = tmp_path / "after.qcow2"
    path.write_bytes(guest.image())
    with Qcow2(str(path)) as reader:
        first = start // CLUSTER
        assert [reader.refcount(first + index) for index in range(7)] == [3, 1, 1, 2, 2, 2, 1]


def test_bytes_where_nothing_can_be_shared(guest: Guest, image: Callable[[str], Path]) -> None:
    """A refcount of one bit counts one."""
    guest.load(image("bit"))
    offsets = change(guest, [(ALLOCATE_BYTES, 0, 10)] * 5, cursor=0)
    assert all(offset % CLUSTER == 0 for offset in offsets)
    assert len(set(offsets)) == 5


def test_bytes_when_a_block_has_to_be_made(guest: Guest, image: Callable[[str], Path], tmp_path: Path) -> None:
    """What the new block would count starts the search again, in a new cluster."""
    guest.load(image("bits64"))
    script = [(ALLOCATE_BYTES, 0, 300)] * 400
    offsets = change(guest, [*script, (WRITE_BACK, 0, 0)], cursor=0)
    assert len(set(offsets)) == 400
    spans = sorted((offset, offset + 300) for offset in offsets)
    assert all(end <= start for (_start, end), (start, _end) in zip(spans, spans[1:]))
    answer = guest.verify()
    assert answer.refusal == ""
    path = tmp_path / "after.qcow2"
    path.write_bytes(guest.image())
    with Qcow2(str(path)) as reader:
        references = reader.reference_counts()
        users = Counter(c for start, end in spans for c in range(start // CLUSTER, (end - 1) // CLUSTER + 1))
        assert {c: reader.refcount(c) - references[c] for c in users} == dict(users)


def model_run(guest: Guest, start: bytes, seed: int, largest: int) -> tuple[bytes, set[int]]:
    """Random allocations and frees; the image afterwards, and the clusters that are still held."""
    rng = random.Random(seed)
    script: list[tuple[int, int, int]] = []
    for _round in range(rng.randrange(1, 4)):
        guest.load_bytes(start)
        script += [(ALLOCATE, 0, rng.randrange(1, largest) * CLUSTER) for _unused in range(rng.randrange(1, 6))]
        offsets = iter(change(guest, script, cursor=0))
        ranges = [(next(offsets), size) for kind, _at, size in script if kind == ALLOCATE]
        freed = {at for kind, at, _size in script if kind in (FREE, PUNCH)}
        held = [(at, size) for at, size in ranges if at not in freed]
        for at, size in rng.sample(held, len(held) // 2):
            script.append((rng.choice((FREE, PUNCH)), at, size))
        script.append((WRITE_BACK, 0, 0))
    guest.load_bytes(start)
    offsets = iter(change(guest, script, cursor=0))
    held_clusters: set[int] = set()
    for kind, at, size in script:
        place = next(offsets) if kind == ALLOCATE else at
        clusters = set(range(place // CLUSTER, (place + size) // CLUSTER))
        if kind == ALLOCATE:
            assert not clusters & held_clusters
            held_clusters |= clusters
        elif kind in (FREE, PUNCH):
            held_clusters -= clusters
    return guest.image(), held_clusters


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("name", "largest"), [("tiny", 300), ("bits64", 40), ("bits64", 2500), ("bit", 3000)])
def test_refcounts_stay_in_order(
    guest: Guest, image: Callable[[str], Path], tmp_path: Path, name: str, largest: int, seed: int
) -> None:
    """Whatever is allocated and freed: refcounts are what they were, plus what is held, and blocks and a table that
    had to be made count themselves. Holding a range is leaking it, to the eyes of the verification."""
    start = image(name).read_bytes()
    after, held = model_run(guest, start, seed, largest)
    path = tmp_path / "after.qcow2"
    path.write_bytes(after)
    with Qcow2(str(path)) as reader:
        references = reader.reference_counts()
        last = max([len(after) // CLUSTER, *held, *references]) + 1
        wrong = {
            c: (reader.refcount(c), references[c], c in held)
            for c in range(last)
            if reader.refcount(c) != references[c] + (c in held)
        }
    assert wrong == {}
    guest.load_bytes(after)
    answer = guest.verify()
    assert (answer.refusal, answer.leaked) == ("", len(held))


def test_the_table_grows(guest: Guest, image: Callable[[str], Path]) -> None:
    """64-bit refcounts: a cluster counts 64, and a table of one cluster names 64 of those."""
    guest.load(image("bits64"))
    before = int.from_bytes(guest.image()[56:60], "big")
    (offset,) = change(guest, [(ALLOCATE, 0, 5000 * CLUSTER)], cursor=0)
    assert offset > 0
    assert int.from_bytes(guest.image()[56:60], "big") > before
    answer = guest.verify()
    assert (answer.refusal, answer.leaked) == ("", 5000)


@pytest.mark.slow
def test_more_blocks_than_memory_holds(guest: Guest, image: Callable[[str], Path]) -> None:
    """4,096 blocks are held; 300,000 clusters need 4,700, and a table that grows several times."""
    guest.load(image("bits64"))
    offsets = change(guest, [(ALLOCATE, 0, 60000 * CLUSTER)] * 5, cursor=0)
    assert len(set(offsets)) == 5
    answer = guest.verify()
    assert (answer.refusal, answer.leaked) == ("", 300_000)
    change(guest, [(PUNCH, offset, 60000 * CLUSTER) for offset in offsets], cursor=0)
    answer = guest.verify()
    assert (answer.refusal, answer.leaked) == ("", 0)


def test_a_file_that_would_be_too_big(guest: Guest, image: Callable[[str], Path]) -> None:
    """Behind 2^56 bytes no cluster can be named; no refcount table reaches as far."""
    guest.load(image("tiny"))
    changes = guest.ffi.new("struct probe_change[]", [(ALLOCATE, 0, 0, CLUSTER)])
    assert guest.probe("refcounts", changes, 1, 1 << 47).refusal == "FILE_TOO_BIG"
    assert guest.verify().refusal == ""


def test_bytes_that_no_entry_could_name(guest: Guest, tmp_path: Path) -> None:
    """The entry of a compressed cluster has 54 bits for its place, where clusters have 64 KiB."""
    path = tmp_path / "large.qcow2"
    qemu.create(str(path), 1 << 20, "")
    guest.load(path)
    changes = guest.ffi.new("struct probe_change[]", [(ALLOCATE_BYTES, 0, 0, 100)])
    assert guest.probe("refcounts", changes, 1, 1 << 38).refusal == "FILE_TOO_BIG"
    assert guest.image() == path.read_bytes()
