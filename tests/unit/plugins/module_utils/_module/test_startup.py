# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Starting out of a zip as AnsiballZ makes it, each time in a Python of its own."""

from __future__ import annotations

import collections
import json
import pathlib
import subprocess
import sys
import textwrap
import typing as t
import zipfile

import pytest

UTILS = "ansible_collections.airlock.images.plugins.module_utils"
STARTUP = pathlib.Path(__file__).parents[5] / "plugins/module_utils/_module/startup.py"

SOURCES = {
    "_module/flow.py": "from ..sandbox import machine\nfrom ..sandbox.deep import inner\n",
    "sandbox/machine.py": "def stop():\n    raise RuntimeError('stopped')  # here\n",
    "sandbox/deep/__init__.py": "",
    "sandbox/deep/inner.py": "VALUE = 7\n",
}

PROLOGUE = f"""\
import gc, json, sys, traceback
compiled = []
sys.addaudithook(lambda event, about: compiled.append(about[1]) if event == "compile" else None)
sys.path.insert(0, sys.argv[1])
from {UTILS}._module.startup import save_time
before = list(sys.path_hooks), gc.get_freeze_count()
save_time()
"""


@pytest.fixture
def sources(tmp_path: pathlib.Path) -> dict[str, str]:
    """By their paths: this collection's startup.py, and others beside it."""
    home = UTILS.replace(".", "/")
    files = {f"{home}/_module/startup.py": STARTUP.read_text()}
    files.update({f"{home}/{path}": source for path, source in SOURCES.items()})
    packages = {parent for path in files for parent in pathlib.PurePath(path).parents if parent.name}
    return {**{f"{package}/__init__.py": "" for package in packages}, **files}


@pytest.fixture
def archive(sources: dict[str, str], tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "payload.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, source in sources.items():
            file.writestr(name, source)
    return path


def run(place: pathlib.Path, code: str) -> t.Any:
    """What the code prints as JSON, after the prologue, with `place` in front of the path."""
    program = PROLOGUE + textwrap.dedent(code)
    command = [sys.executable, "-I", "-c", program, str(place)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_each_module_is_compiled_once(archive: pathlib.Path) -> None:
    compiled = run(archive, f"import {UTILS}._module.flow\nprint(json.dumps(compiled))")
    times = collections.Counter(str(name).partition("module_utils/")[2] for name in compiled if name)
    assert (times["_module/flow.py"], times["sandbox/machine.py"], times["sandbox/deep/inner.py"]) == (1, 1, 1)


def test_modules_know_where_they_are(archive: pathlib.Path) -> None:
    found = run(
        archive,
        f"""
        import {UTILS}._module.flow as flow
        from {UTILS}.sandbox import deep
        spec = flow.machine.__spec__
        print(json.dumps([flow.machine.__file__, spec.origin, spec.has_location, spec.name, flow.inner.VALUE,
            deep.__file__, list(deep.__path__), deep.__spec__.submodule_search_locations]))
        """,
    )
    home = f"{archive}/{UTILS.replace('.', '/')}/sandbox"
    machine, deep = f"{home}/machine.py", f"{home}/deep"
    assert found == [machine, machine, True, f"{UTILS}.sandbox.machine", 7, f"{deep}/__init__.py", [deep], [deep]]


def test_tracebacks_show_the_source(archive: pathlib.Path) -> None:
    text = run(
        archive,
        f"""
        from {UTILS}.sandbox import machine
        try:
            machine.stop()
        except RuntimeError:
            print(json.dumps(traceback.format_exc()))
        """,
    )
    assert f'{archive}/{UTILS.replace(".", "/")}/sandbox/machine.py", line 2, in stop' in text
    assert "# here" in text


def test_a_module_that_is_not_there(archive: pathlib.Path) -> None:
    code = f"""
        try:
            import {UTILS}.sandbox.missing
        except ModuleNotFoundError as error:
            print(json.dumps(error.name))
        """
    assert run(archive, code) == f"{UTILS}.sandbox.missing"


def test_what_is_loaded_is_not_looked_through_again(archive: pathlib.Path) -> None:
    assert run(archive, "print(json.dumps(gc.get_freeze_count() - before[1]))") > 1000


def test_nothing_happens_outside_of_a_zip(sources: dict[str, str], tmp_path: pathlib.Path) -> None:
    for name, source in sources.items():
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    changed = """
        print(json.dumps([sys.path_hooks == before[0], gc.get_freeze_count() - before[1]]))
        """
    assert run(tmp_path / "tree", changed) == [True, 0]


LEAVING = """
import atexit, os
from {utils}._module import startup
class Late:
    def __del__(self, write=os.write): write(1, b"taken apart\\n")
sys.late = Late()  # Python itself takes it apart, at its very end
atexit.register(print, "tidied up")
print("the answer")
startup.end(lambda: {ending})
"""


def leave(place: pathlib.Path, ending: str, ahead: str = "", out: t.Any = subprocess.PIPE) -> tuple[str, str, int]:
    """What a module that ends so leaves on stdout and stderr, and its status. ahead: to be done ahead of all."""
    # Of a pipe the output is buffered: it gets lost unless it is flushed.
    program = ahead + PROLOGUE + LEAVING.format(utils=UTILS, ending=ending)
    command = [sys.executable, "-I", "-c", program, str(place)]
    done = subprocess.run(command, check=False, stdout=out, stderr=subprocess.PIPE, text=True)
    return done.stdout, done.stderr, done.returncode


@pytest.mark.parametrize("status", [0, 1, 7])
def test_the_end_is_quick_and_keeps_output_and_status(archive: pathlib.Path, status: int) -> None:
    assert leave(archive, f"sys.exit({status})") == ("the answer\ntidied up\n", "", status)


@pytest.mark.parametrize(
    ("ending", "told", "status"),
    [("sys.exit('why')", "why", 1), ("sys.exit()", "", 0), ("1 / 0", "ZeroDivisionError", 1)],
)
def test_another_end_is_pythons_own(archive: pathlib.Path, ending: str, told: str, status: int) -> None:
    out, error, code = leave(archive, ending)
    assert (out, code) == ("the answer\ntidied up\ntaken apart\n", status)
    assert told in error


def test_the_end_is_pythons_own_where_coverage_is_measured(archive: pathlib.Path) -> None:
    ahead = "import sys, types\nsys.modules['coverage'] = types.ModuleType('coverage')\n"
    assert leave(archive, "sys.exit(0)", ahead) == ("the answer\ntidied up\ntaken apart\n", "", 0)


def test_an_answer_that_cannot_be_written_is_a_failure(archive: pathlib.Path) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        _out, error, code = leave(archive, "sys.exit(0)", out=full)
    assert code != 0
    assert "No space left on device" in error
