# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""All that root does with images: commands and modules, in this process. A word with "@" in front names a file."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from sandbox.cli import main as cli
from tests.hostile_directory.attack import CREATED, Operation
from tests.unit.plugins import running

Run = Callable[[Callable[[str], str]], "tuple[int, str]"]

# What is reached from an image by the names in it.
BELOW = {
    "mid.qcow2": ("base.raw",),
    "top.qcow2": ("mid.qcow2", "base.raw"),
    "new.qcow2": ("base.raw",),
    "below.qcow2": ("sub/base.raw",),
    "absolute.qcow2": ("sub/base.raw",),
    "pooled.qcow2": ("low.raw",),
    "far.qcow2": ("low.raw",),
    "data.qcow2": ("data.raw",),
    "dtop.qcow2": ("data.qcow2", "data.raw"),
    "top.vmdk": ("base.vmdk",),
    "vtop.qcow2": ("base.vmdk",),
}
POOL = "--allowed-root @../pool"
COMMANDS = (
    "snapshot -l @one.qcow2",
    "snapshot -c s2 @one.qcow2",
    "snapshot -a s1 @three.qcow2",
    "snapshot -d s1 @one.qcow2",
    "bitmap --add @one.qcow2 b3",
    "bitmap --remove @one.qcow2 b1",
    "bitmap --merge b2 -b @two.qcow2 @one.qcow2 b1",
    "info --chain @top.qcow2",
    "info --chain @absolute.qcow2",
    f"info --chain {POOL} @pooled.qcow2",
    "info --chain @dtop.qcow2",
    "info -f vmdk --chain @top.vmdk",
    "commit @top.qcow2",
    "commit @below.qcow2",
    "commit @absolute.qcow2",
    f"commit {POOL} @pooled.qcow2",
    f"commit {POOL} @far.qcow2",
    "commit -d -b @base.raw @top.qcow2",
    "commit @dtop.qcow2",
    "commit @vtop.qcow2",
    "commit -f vmdk @top.vmdk",
    "rebase -F qcow2 -b @new.qcow2 @top.qcow2",
    "rebase -u -F raw -b @base.raw @top.qcow2",
    "rebase -b  @top.qcow2",
    "rebase -c -b  @below.qcow2",
    f"rebase -b  {POOL} @far.qcow2",
    "rebase -b  @dtop.qcow2",
    "rebase -b  @vtop.qcow2",
)
TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "qcow2_snapshot present, two images": ("snapshot", {"path": ["@one.qcow2", "@two.qcow2"], "name": "s2"}),
    "qcow2_snapshot applied": (
        "snapshot",
        {"path": "@three.qcow2", "name": "s1", "state": "applied", "progress_file": "@progress.json"},
    ),
    "qcow2_snapshot absent": ("snapshot", {"path": "@one.qcow2", "name": "s1", "state": "absent"}),
    "qcow2_bitmap merge": (
        "bitmap",
        {"path": "@one.qcow2", "name": "b1", "merge": [{"name": "b2", "path": "@two.qcow2"}]},
    ),
    "qcow2_info chain": ("info", {"path": "@top.qcow2", "chain": True}),
    "qcow2_commit": ("commit", {"path": "@below.qcow2", "progress_file": "@progress.json"}),
    "qcow2_commit drop": ("commit", {"path": "@top.qcow2", "drop": True, "progress_file": "@progress.json"}),
    "qcow2_chain create": ("chain", {"layers": ["@one.qcow2", "@added.qcow2"]}),
    "qcow2_chain create on a raw base": ("chain", {"layers": ["@base.raw", "@added.qcow2"], "backing_format": "raw"}),
    "qcow2_chain pull, drop, create": (
        "chain",
        {
            "layers": ["@base.raw", "@top.qcow2", "@added.qcow2"],
            "method": "pull",
            "drop": True,
            "progress_file": "@progress.json",
        },
    ),
    "qcow2_chain commit, drop": ("chain", {"layers": ["@base.raw", "@top.qcow2"], "method": "commit", "drop": True}),
    "qcow2_chain flatten, compressed": ("chain", {"layers": ["@below.qcow2"], "flatten": True, "compressed": True}),
    "qcow2_chain scan, siblings": (
        "chain",
        {
            "layers": ["@base.raw", "@top.qcow2"],
            "scan": True,
            "siblings": ["@new.qcow2"],
            "allowed_roots": ["@../pool"],
        },
    ),
}


class Output:
    """What running.run() takes from pytest, for a process that has many runs in one test."""

    def __init__(self) -> None:
        self._text = io.StringIO()

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        with contextlib.redirect_stdout(self._text):
            yield

    def readouterr(self) -> Any:
        text, self._text = self._text.getvalue(), io.StringIO()
        return type("Captured", (), {"out": text})


def operations() -> dict[str, Operation]:
    """All, by name."""
    found = {command: _operation(_command(command), command.split(" ")) for command in COMMANDS}
    for name, (module, arguments) in TASKS.items():
        found[name] = _operation(_task(module, arguments), list(_words(arguments)))
    return found


def _operation(run: Run, words: list[str]) -> Operation:
    named = [word[1:] for word in words if word.startswith("@") and not word.endswith("/pool")]
    made = [name for name in named if name in CREATED]
    if "progress.json" in named:
        made.append(".progress.json.airlock")
    named = [name for name in dict.fromkeys(named) if name not in made]
    below = [each for name in named for each in BELOW.get(name, ()) if each not in named]
    return Operation(run, tuple(named), tuple(dict.fromkeys(below)), tuple(made))


def _command(command: str) -> Run:
    def run(spell: Callable[[str], str]) -> tuple[int, str]:
        words = [spell(word[1:]) if word.startswith("@") else word for word in command.split(" ")]
        kept = [(number, os.dup(number)) for number in (1, 2)]
        with tempfile.TemporaryFile() as said:
            for number, _copy in kept:
                os.dup2(said.fileno(), number)
            try:
                code = cli.main([os.fsencode(word) for word in words])
            finally:
                for number, copy in kept:
                    os.dup2(copy, number)
                    os.close(copy)
            said.seek(0)
            return code, said.read().decode("utf-8", "replace")

    return run


def _task(module: str, arguments: dict[str, Any]) -> Run:
    def run(spell: Callable[[str], str]) -> tuple[int, str]:
        output = Output()
        with output.taken():
            answer = running.run(output, f"qcow2_{module}", False, False, _spelled(arguments, spell))  # type: ignore[arg-type]
        assert "Traceback" not in str(answer), answer
        return answer["rc"] or 0, str(answer)

    return run


def _spelled(value: Any, spell: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {key: _spelled(each, spell) for key, each in value.items()}
    if isinstance(value, list):
        return [_spelled(each, spell) for each in value]
    return spell(value[1:]) if isinstance(value, str) and value.startswith("@") else value


def _words(value: Any) -> Iterator[str]:
    if isinstance(value, (dict, list)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _words(each)
    elif isinstance(value, str):
        yield value
