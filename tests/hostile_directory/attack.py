# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One operation after the other while the tenant exchanges names in his directories."""

from __future__ import annotations

import collections
import os
import pathlib
import random
import subprocess
from collections.abc import Callable, Iterator
from typing import NamedTuple

from tests.hostile_directory.arena import TENANT, Arena

SOURCE = pathlib.Path(__file__).with_name("attacker.c")
MODES = ("blind", "told")  # told: by inotify
CREATED = ("added.qcow2", ".progress.json.airlock")  # by the operations, so they are not there
VARIANTS = ("link", "up", "other", "beside", "fifo", "dir", "copy", "twin")
WAYS = ("link", "other", "trap", "copy", "away")


class Operation(NamedTuple):
    """run: gets a function that spells a name as the operator would; returns the exit code and what was said. named:
    what it names. below: what is reached from there, by names in images alone. made: what it makes."""

    run: Callable[[Callable[[str], str]], tuple[int, str]]
    named: tuple[str, ...]
    below: tuple[str, ...] = ()
    made: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.named, *self.below)


class Attacker:
    """The process of the tenant's. exchanges, events: of all attacks together."""

    def __init__(self, arena: Arena) -> None:
        program = arena.top / "attacker"
        subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", program, SOURCE], check=True)
        program.chmod(0o755)  # whatever the umask
        self._process = subprocess.Popen(
            [program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            user=TENANT,
            group=TENANT,
            extra_groups=[],
            cwd="/",
        )
        self.exchanges = self.events = 0

    def start(self, lines: list[str]) -> None:
        self._send("".join(f"{line}\n" for line in lines))
        assert self._answer() == "ready\n"

    def stop(self) -> None:
        self._send("S\n")
        exchanges, events = map(int, self._answer().split())
        self.exchanges += exchanges
        self.events += events

    def close(self) -> None:
        with self._process:  # closes its pipes, which ends it
            pass

    def _send(self, text: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(text)
        self._process.stdin.flush()

    def _answer(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline()


class Record(NamedTuple):
    """What has come of many rounds. codes: exit codes, how often each. exchanges, events: of the tenant's."""

    codes: dict[int, int]
    findings: list[str]
    exchanges: int
    events: int


class Attack:
    """Rounds of one operation. seed: of all that is drawn, so that the same exchanges are tried in the same rounds."""

    def __init__(self, arena: Arena, attacker: Attacker, operation: Operation, seed: int) -> None:
        self._arena = arena
        self._attacker = attacker
        self._operation = operation
        self._seed = seed

    def at_rest(self) -> tuple[int, str]:
        """The exit code and what is said when nobody attacks."""
        self._arena.reset(self._operation.files)
        return self._operation.run(lambda name: f"{self._arena.vm}/{name}")

    def rounds(self, going: Iterator[str]) -> Record:
        """going: the mode of each round, as long as there is to be another one."""
        codes: dict[int, int] = collections.Counter()
        exchanges, events = self._attacker.exchanges, self._attacker.events
        findings: list[str] = []
        for number, mode in enumerate(going):
            chance = random.Random(f"{self._seed} {number}")
            said, code = self._round(mode, chance)
            codes[code] += 1
            if said:
                findings.append(f"round {number}, {said}")
                break
        judge = self._arena.judge
        findings += sorted(judge.content_findings())
        for name in self._operation.files:
            if name.endswith(("qcow2", "vmdk")):
                findings += sorted(judge.leaks_as_read(self._arena.vm / name, name.rpartition(".")[2]))
        if findings:
            judge.begin()  # what is outside is no longer what it was
        return Record(dict(codes), findings, self._attacker.exchanges - exchanges, self._attacker.events - events)

    def _round(self, mode: str, chance: random.Random) -> tuple[str, int]:
        """(What was found, the exit code.)"""
        arena = self._arena
        arena.reset(self._operation.files)
        start, way = chance.choice(self._spellings())
        lines = self._lines(mode, chance, "sub" in f"{start}/{way}")
        before = os.open(".", os.O_PATH | os.O_DIRECTORY)
        os.chdir(start)  # while all is as it was
        self._attacker.start(lines)
        try:
            code, text = self._operation.run(lambda name: f"{way}{name}")
        finally:
            self._attacker.stop()
            os.fchdir(before)
            os.close(before)
        found = sorted(arena.judge.findings(arena.tenant))
        if not found:
            return "", code
        how = f"{mode}, {way}NAME in {start}, {'; '.join(lines)}, exit code {code}: {text[:400]}"
        return f"{'; '.join(found)}, with {how}", code

    def _spellings(self) -> list[tuple[pathlib.Path, str]]:
        """(Working directory, what to put before a name in vm there)."""
        arena = self._arena
        top = pathlib.Path("/")
        return [
            (top, f"{arena.vm}/"),
            (top, f"{arena.vm}/"),
            (arena.tenant, "vm/"),
            (arena.vm, ""),
            (top, f"{arena.vm}/sub/../"),
            (arena.vm / "sub", "../"),
            (arena.pool, "../vm/"),
        ]

    def _lines(self, mode: str, chance: random.Random, through_sub: bool) -> list[str]:
        """What the attacker is told: one to three pairs, how fast, and when."""
        arena = self._arena
        directories = [arena.tenant, arena.vm, arena.vm / "sub", arena.pool, arena.shared]
        lines = [f"D {path}" for path in directories]
        ways = [arena.vm, arena.vm]
        ways += [arena.vm / "sub"] * (3 if through_sub else "sub/base.raw" in self._operation.files)
        ways += [arena.pool] * ("low.raw" in self._operation.files)
        pairs: dict[pathlib.Path, str] = {}
        while len(pairs) < 1 or (len(pairs) < 3 and chance.random() < 0.5):
            path, other, how = self._way(chance, ways) if chance.random() < 0.5 else self._file(chance)
            at, to = directories.index(path.parent), directories.index(other.parent)
            pairs[path] = f"{how} {at} {path.name} {to} {other.name}"
        lines += pairs.values()
        first = 0
        if mode == "told":
            lines += [f"W {number}" for number in range(len(directories) - 1)]
            first = int(2 ** chance.uniform(0, 7))
        shortest = chance.choice([0, 1000, 20_000])
        longest = int(max(shortest, 1000 * 2 ** chance.uniform(0, 12)))
        return [*lines, f"G {chance.getrandbits(60) + 1} {shortest} {longest} {first}"]

    def _way(self, chance: random.Random, ways: list[pathlib.Path]) -> tuple[pathlib.Path, pathlib.Path, str]:
        """A directory on the way, and what it is exchanged for."""
        arena, files = self._arena, self._operation.files
        path, kind = chance.choice(ways), chance.choice(WAYS)
        if kind == "away":
            return path, arena.shared / "mine", "E"
        other = path.with_name(f"{path.name}.{kind}")
        if other.is_symlink() or other.exists():
            return path, other, "E"
        if kind in ("link", "other"):
            place = arena.outside["other" if kind == "other" else "root"]
            _link(other, str(place if path == arena.vm else place / path.name))
            return path, other, "E"
        for directory in (other, other / "sub"):
            directory.mkdir()
            os.chown(directory, TENANT, TENANT)
        for name in files:
            if kind == "copy":
                arena.copy(name, other / name)
            else:
                _link(other / name, str(arena.outside["root"] / name))
        if path == arena.vm / "sub":  # there the names are those in it
            for file in (other / "sub").iterdir():
                file.rename(other / file.name)
        return path, other, "E"

    def _file(self, chance: random.Random) -> tuple[pathlib.Path, pathlib.Path, str]:
        """A file, or one that is to be made, and what it is exchanged for."""
        arena, operation = self._arena, self._operation
        name = chance.choice([*operation.files, *operation.made])
        kinds = [*VARIANTS, *(("hard", "hard") if name in operation.below else ())]
        kind = chance.choice(kinds)
        path = arena.vm / name
        if name == "low.raw":
            path = arena.pool / name
        others = [each for each in operation.files if each != name and "/" not in each + name and each != "low.raw"]
        if kind == "copy" and others and path.parent == arena.vm and path.exists() and chance.random() < 0.5:
            return path, arena.vm / chance.choice(others), "E"
        other = path.with_name(f"{path.name}.{kind}")
        if not other.is_symlink() and not other.exists():
            self._make(other, name, kind)
        return (path, other, "E") if name in operation.files else (other, path, "M")

    def _make(self, path: pathlib.Path, name: str, kind: str) -> None:
        """What a file is exchanged for. name: of the file, as the arena has it."""
        arena = self._arena
        beside = path.with_name(f"{path.name}.file")
        if kind in ("link", "other"):
            _link(path, str(arena.outside["other" if kind == "other" else "root"] / name))
            return
        if kind == "up":
            _link(path, f"../../../root/{name}" if "/" in name else f"../../root/{name}")
            return
        if kind == "hard":
            os.link(arena.linked / pathlib.PurePath(name).name, path)
            return
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "dir":
            path.mkdir()
        else:
            source = name if name in self._operation.files else self._operation.files[0]
            arena.copy(source, path if kind == "copy" else beside)
            if kind == "beside":
                _link(path, beside.name)
            elif kind == "twin":
                os.link(beside, path)
        os.chown(path, TENANT, TENANT, follow_symlinks=False)


def _link(path: pathlib.Path, text: str) -> None:
    path.symlink_to(text)
    os.chown(path, TENANT, TENANT, follow_symlinks=False)
