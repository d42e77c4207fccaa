# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""airlock bitmap beside qemu-img bitmap: the same arguments, messages, exit codes and bitmaps."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import typing as t

import pytest

from sandbox.images import bitmaps
from sandbox.images.image import Image

from .bitmap_images import make_image, make_stale, rename, run, set_in_use, shown_by_qemu
from .command_line import Airlock, Outcome, qemu_img

pytestmark = pytest.mark.kvm

LONG = b"n" * 1023
EVIL = b"\x1b[31m\n\xff"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A directory of files of all kinds."""
    directory = tmp_path_factory.mktemp("template")
    make_image(directory / "a")
    for name in ("in-use", "stale", "double"):
        shutil.copy(directory / "a", directory / name)
    set_in_use(directory / "in-use", 1)
    make_stale(directory / "stale")
    make_image(directory / "other", cluster_size=65536)
    make_image(directory / "small", "768k")
    run("qemu-img", "bitmap", "--add", "-g", "512", "double", "b1", directory=directory)
    rename(directory / "double", 3, b"b0")
    run("qemu-img", "create", "-f", "qcow2", "-o", "compat=0.10", "v2", "1M", directory=directory)
    run("qemu-img", "create", "-f", "qcow2", "plain", "1M", directory=directory)
    run("qemu-img", "create", "-f", "qcow2", "big", "64T", directory=directory)
    run("qemu-img", "create", "-f", "qcow2", "-o", "data_file=raw.data", "data", "1M", directory=directory)
    run("qemu-img", "create", "-f", "qcow2", "nothing", "0", directory=directory)
    backing = ("-u", "-b", "b" * 370, "-F", "qcow2", "-o", "cluster_size=512")
    run("qemu-img", "create", "-f", "qcow2", *backing, "full", "1M", directory=directory)
    run("qemu-img", "create", "-f", "raw", "raw", "1M", directory=directory)
    (directory / "empty").touch()
    (directory / "folder").mkdir()
    (directory / "link").symlink_to("a")
    return directory


@pytest.fixture
def ours(template: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(template, tmp_path / "ours", symlinks=True))


@pytest.fixture
def theirs(template: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(template, tmp_path / "theirs", symlinks=True))


def qemu_bitmap(*arguments: bytes, directory: pathlib.Path, image: bytes = b"") -> Outcome:
    """qemu-img bitmap; where it names a node of its graph by a number it has drawn, the image's name."""
    done = qemu_img(b"bitmap", *arguments, directory=directory)
    return done._replace(stderr=re.sub(rb"#block[0-9]+", lambda _found: image, done.stderr))


def meaning(path: pathlib.Path) -> list[tuple[bitmaps.Bitmap, tuple[bitmaps.Extent, ...]]]:
    with Image.open(str(path)) as image:
        found = bitmaps.list_bitmaps(image).bitmaps
        return [
            (each, () if each.inconsistent else bitmaps.list_bitmaps(image, extents_of=each.name).extents)
            for each in found
        ]


USAGE = """
|a|a b|-z|-q|--bogus|--add -z a b|-g|-b|-F|-f|--merge|--m|--granularity|--source-file|--source-format|--source x
--sour x|--add=3 a b|--enable=|--en=3 a b|--f a b|--format qcow2 --add a b|--a|--add|--add a|--add a b c|--add -- a
--add -g abc|-g abc --add|-g -1 --add a b|-g 9223372036854775808 a b|-g 1k a b|-g 1k --clear a b|-g 0 --add a
-g 1k --add a|-F qcow2 --add a b|-F qcow2|-b other --add a b|-b other -F qcow2 --clear a b|-b other|-b other a b
-g 1k -F qcow2|-F x -g 1|--merge x -F qcow2 a b|-b other --merge x a|--merge x -b other|--add --merge x y
--source-fi b --add a x|--source-fo b --add a x|--gr=1 --add|--gr abc -z|-z --gr abc|--merge -z|--merge --add a
-g 1.5 --add|-g|--add -gabc|--add -g1k a|--help=3|--add --add|--clear --remove|- a b|--add - a b
""".replace("\n", "|").split("|")


@pytest.mark.parametrize("line", sorted(set(USAGE) - {"-q"}))
def test_usage_errors(line: str, airlock: Airlock, template: pathlib.Path) -> None:
    arguments = line.encode().split()
    wanted = qemu_bitmap(*arguments, directory=template)
    assert wanted.code == 1
    assert airlock(b"bitmap", *arguments, directory=template) == wanted


@pytest.mark.parametrize("line", ["-h", "--help", "--he", "--add -h -z", "-g 1k -b x -F y --help --bogus", "-h -g abc"])
def test_help_comes_first(line: str, airlock: Airlock, template: pathlib.Path) -> None:
    arguments = line.encode().split()
    done = airlock(b"bitmap", *arguments, directory=template)
    assert (done.code, done.stderr) == (0, b"")
    assert b"FILENAME BITMAP" in done.stdout
    assert qemu_bitmap(*arguments, directory=template).code == 0


CHANGES = """
--add a x|--a a x|--ad a x|-f qcow2 --add a x|a --add x|a x --add|--add -- a x|--add link x|--add plain x|--add data x
--add -g 512 a x|--add -g 1k a x|-g 64k --add a x|--add --granularity=2G a x|--add -g 4G a x|--add -g 1000 a x
--add -g 256 a x|--add -g 4295032832 a x|--add -g 4294967297 a x|--add -g 0 a x|-g 0 --clear a b0|--add -g 1.5k a x
-g 1k -g 2k --add a x|--add a b0|--add a coarse|--add v2 x|--remove v2 x|--clear v2 x|--merge y v2 x
--add -g 1000 v2 x|--add -g 512 big x|--add -g 64k big x|--add in-use x|--add in-use b0|--remove a b0|--rem a b0
--remove a x|--remove in-use b0|--remove in-use off|--remove plain x|--remove data x|--clear a b0|--clear a off
--clear a x|--clear in-use b0|--clear in-use off|--c a b0|--enable a off|--e a off|--enable a b0|--enable a x
--enable in-use b0|--disable a b0|--disable a off|--disable a x|--disable in-use b0|--d a b0|--merge off a b0
--merge b0 a off|--merge coarse a b0|--merge b0 a coarse|--merge b0 a b0|--merge off a x|--merge x a b0|--merge x a y
--merge b0 in-use off|--merge off in-use b0|--merge b0 --merge off a coarse|--merge coarse in-use off
-b other --merge b0 a b0|-b other -F qcow2 --merge off a coarse|--merge off -b other --merge coarse a b0
-b other --merge x a b0|-b other --merge b0 a x|-b small --merge b0 a b0|-b in-use --merge b0 a b0
-b in-use --merge off a b0|-b plain --merge x a b0|-b v2 --merge x a b0|-b a --merge b0 a off|-b link --merge b0 a off
-b nope --merge b0 a off|-b folder --merge b0 a off|-b nope --merge b0 nope2 off|-b other --merge b0 nope x
-b nope -F qcow2 --merge b0 raw -f qcow2 x|-b raw -F qcow2 --merge b0 a off|-b empty -F qcow2 --merge b0 a off
-b other -F bogus --merge b0 a off|-b other -F bogus --merge b0 nope off|-b nope -F bogus --merge b0 a off
-b other -b other --merge off a b0|--add --disable a x|--add --merge b0 a x|--add --merge b0 --merge off --disable a x
--remove --add a b0|--add --remove a x|--remove --add -g 64k --merge off a b0|--clear --merge off a b0
--clear --disable --enable a off|--disable --clear a b0|--remove --remove a b0|--add --add a x|--remove --clear a b0
--merge b0 --clear a off|--clear --clear a b0|--add --merge coarse -b other -g 2M a x|--remove --add in-use b0
--add --enable --enable plain x|-f bogus --add a x|-f bogus --add nope x|--add nope x|--add folder x|--add a/x x
-f qcow2 --add raw x|-f qcow2 --add empty x
""".replace("\n", "|").split("|")


@pytest.mark.parametrize("line", CHANGES[1:-1])
def test_change(line: str, airlock: Airlock, ours: pathlib.Path, theirs: pathlib.Path) -> None:
    compare(line.encode().split(), airlock, ours, theirs)


def compare(arguments: list[bytes], airlock: Airlock, ours: pathlib.Path, theirs: pathlib.Path) -> None:
    """The same outcome, and the same bitmaps, whoever looks at them; the other images are as they were."""
    files = {os.fsencode(path.name): path for path in ours.iterdir() if path.is_file()}
    values = {index + 1 for index, argument in enumerate(arguments) if argument in (b"-b", b"--merge")}
    image = next((each for index, each in enumerate(arguments) if each in files and index not in values), b"")
    before = contents(files, image)
    wanted = qemu_bitmap(*arguments, directory=theirs, image=image)
    assert airlock(b"bitmap", *arguments, directory=ours) == wanted
    assert contents(files, image) == before
    # Where a list of actions fails, qemu-img has kept what came before: test_a_list_of_actions_is_done_or_not.
    half_done = wanted.code and len([each for each in arguments if each.startswith(b"--")]) > 1
    if image in files and image not in (b"raw", b"empty") and not half_done:
        assert meaning(files[image]) == meaning(theirs / files[image].name)
        assert shown_by_qemu(files[image]) == shown_by_qemu(theirs / files[image].name)


def contents(files: dict[bytes, pathlib.Path], but: bytes) -> dict[bytes, bytes]:
    skipped = {path.resolve() for name, path in files.items() if name == but}
    return {name: path.read_bytes() for name, path in files.items() if path.resolve() not in skipped}


ODD = [
    [b"--add", b"a", b""],
    [b"--remove", b"a", b""],
    [b"--add", b"-g", b"1000", b"a", b""],
    [b"--merge", b"", b"a", b"b0"],
    [b"--add", b"a", LONG],
    [b"--add", b"a", LONG + b"n"],
    [b"--add", b"a", LONG * 3],
    [b"--add", b"v2", LONG + b"n"],
    [b"--add", b"-g", b"1000", b"a", LONG + b"n"],
    [b"--add", b"-g", b"512", b"big", LONG + b"n"],
    [b"--remove", b"a", LONG + b"n"],
    [b"--merge", LONG * 3, b"a", b"b0"],
    [b"--add", b"a", EVIL],
    [b"--remove", b"a", EVIL],
    [b"--merge", EVIL, b"a", b"b0"],
    [b"--add", b"--add", b"a", EVIL],
    [b"--add", b"a", b"{0}%s'"],
    [b"--remove", b"a", b"{text}|{0}%s'"],
    [b"--add", b"", b"x"],
    [b"--merge", b"x", b"-b", b"", b"a", b"b0"],
    [b"--add", b"-f", b"", b"a", b"x"],
    [b"--merge", b"x", b"-b", b"other", b"-F", b"", b"a", b"b0"],
    [b"--add", b"-g", b"", b"a", b"x"],
    [b"--add", b"-g", EVIL, b"a", b"x"],
]


@pytest.mark.parametrize("arguments", ODD)
def test_odd_arguments(arguments: list[bytes], airlock: Airlock, ours: pathlib.Path, theirs: pathlib.Path) -> None:
    compare(arguments, airlock, ours, theirs)


def test_a_chain_of_commands(airlock: Airlock, ours: pathlib.Path, theirs: pathlib.Path) -> None:
    """With a guest's writes between them, which go into bitmaps that record."""
    chain = [
        "--add a x|--add -g 512 a y|--disable a x|--merge x --merge b0 a y|--clear a b0|--remove a coarse",
        "--merge y a b0|--remove a y|--remove a x|--remove a off|--remove a b0|--add a last|--remove a last",
    ]
    for number, line in enumerate("|".join(chain).split("|")):
        for directory in (ours, theirs):
            run("qemu-io", "-f", "qcow2", "-c", f"write {number * 40}k 3k", "a", directory=directory)
        compare(line.encode().split(), airlock, ours, theirs)
        run("qemu-img", "check", "-q", "a", directory=ours)
    assert meaning(ours / "a") == []


def test_a_held_image(airlock: Airlock, ours: pathlib.Path) -> None:
    with Image.open(str(ours / "a"), writable=True):
        for line in ("--add a x", "--merge b0 -b a other b0"):
            wanted = qemu_bitmap(*line.encode().split(), directory=ours)
            assert wanted.code == 1
            assert b"lock" in wanted.stderr
            assert airlock(b"bitmap", *line.encode().split(), directory=ours) == wanted


def test_posixly_correct(airlock: Airlock, ours: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSIXLY_CORRECT", "")
    for line in ("a x --add", "--remove a -h", "--remove a -- b0"):
        wanted = qemu_bitmap(*line.encode().split(), directory=ours)
        assert wanted.code == 1
        assert airlock(b"bitmap", *line.encode().split(), directory=ours) == wanted


# ---- what differs on purpose: docs/divergences.md ----------------------------------------------------------


@pytest.mark.parametrize("line", ["--add --merge nope a x", "--clear --merge nope a b0", "--remove --remove a b0"])
def test_a_list_of_actions_is_done_or_not(
    line: str, airlock: Airlock, ours: pathlib.Path, theirs: pathlib.Path
) -> None:
    before = (ours / "a").read_bytes()
    arguments = line.encode().split()
    wanted = qemu_bitmap(*arguments, directory=theirs)
    assert wanted.code == 1
    assert airlock(b"bitmap", *arguments, directory=ours) == wanted
    assert (ours / "a").read_bytes() == before
    assert meaning(theirs / "a") != meaning(ours / "a")


@pytest.mark.parametrize("line", ["--enable a b0", "--disable a off", "--merge b0 a b0", "--add --remove a x"])
def test_what_changes_nothing_writes_nothing(line: str, airlock: Airlock, ours: pathlib.Path) -> None:
    before = (ours / "a").read_bytes()
    done = airlock(b"bitmap", b"--output=json", *line.encode().split(), directory=ours)
    assert (done.code, json.loads(done.stdout)["changed"]) == (0, False)
    assert (ours / "a").read_bytes() == before


@pytest.mark.parametrize("command", [[b"bitmap", b"--list"], [b"info"]])
def test_a_warning_is_one_line(command: list[bytes], airlock: Airlock, ours: pathlib.Path) -> None:
    """Whoever names a file must not have a line of his own, nor what a terminal acts on."""
    name = b"stale\nairlock: \x1b[31m"
    os.rename(ours / "stale", ours / os.fsdecode(name))
    done = airlock(*command, name, directory=ours)
    assert done.code == 0
    assert done.stderr.startswith(rb"airlock: warning: stale\nairlock: \x1b[31m: a program that knows no bitmaps ")
    assert done.stderr.count(b"\n") == 1


def test_stale_bitmaps_can_be_removed(airlock: Airlock, ours: pathlib.Path) -> None:
    """qemu-img ignores them, and leaks their clusters the next time it opens the image for writing."""
    warning = b"airlock: warning: stale: a program that knows no bitmaps has written to the image: they are stale, "
    done = airlock(b"bitmap", b"--list", b"stale", directory=ours)
    assert done.code == 0
    assert done.stdout.count(b"stale") == 3
    assert done.stderr.startswith(warning)
    assert airlock(b"bitmap", b"--list", b"-q", b"stale", directory=ours).stderr == b""
    assert airlock(b"info", b"stale", directory=ours).stderr.startswith(warning)
    shutil.copy(ours / "stale", ours / "theirs")
    assert b"lacking bitmap support" in qemu_bitmap(b"--remove", b"theirs", b"b0", directory=ours).stderr
    assert qemu_img(b"check", b"theirs", directory=ours).code == 3
    assert airlock(b"bitmap", b"--clear", b"stale", b"x", directory=ours).code == 1
    assert airlock(b"bitmap", b"--remove", b"stale", b"b0", directory=ours) == (0, b"", b"")
    assert airlock(b"bitmap", b"--list", b"stale", directory=ours) == (0, b"", b"")
    run("qemu-img", "check", "-q", "stale", directory=ours)


def test_two_of_one_name_can_only_be_removed(airlock: Airlock, ours: pathlib.Path) -> None:
    assert qemu_bitmap(b"--remove", b"double", b"b0", directory=ours).code == 1
    lines = (
        "--clear double b0|--enable double b0|--merge off double b0|--merge b0 double off|--list --extents b0 double"
    )
    for line in lines.split("|"):
        done = airlock(b"bitmap", *line.encode().split(), directory=ours)
        assert done.code == 1
        assert b" failed: 2 bitmaps have the name 'b0', " in done.stderr
        assert b'It can only be removed: "airlock bitmap --remove double NAME".' in done.stderr
    assert airlock(b"bitmap", b"--remove", b"double", b"b0", directory=ours) == (0, b"", b"")
    assert [bitmap["name"] for bitmap in shown_by_qemu(ours / "double")] == ["off", "coarse"]
    run("qemu-img", "check", "-q", "double", directory=ours)


@pytest.mark.parametrize(
    ("image", "why"), [("nothing", b"A disk of no bytes"), ("full", b"The header's cluster has no")]
)
def test_what_qemu_img_finds_out_when_it_closes(image: str, why: bytes, airlock: Airlock, ours: pathlib.Path) -> None:
    before = (ours / image).read_bytes()
    done = airlock(b"bitmap", b"--add", image.encode(), b"x", directory=ours)
    assert (done.code, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"airlock: Operation add on bitmap x failed: " + why)
    assert (ours / image).read_bytes() == before
    wanted = qemu_bitmap(b"--add", image.encode(), b"x", directory=ours)
    assert wanted.code == 1
    assert wanted.stderr.count(b"Lost persistent bitmaps") == 2


@pytest.mark.parametrize("line", ["--add raw x", "--merge x -b raw a b0", "--add empty x"])
def test_a_format_is_never_guessed(line: str, airlock: Airlock, ours: pathlib.Path) -> None:
    image = b"empty" if "empty" in line else b"raw"
    wanted = b"airlock: Could not open '%s': Image is not in qcow2 format\n" % image
    assert airlock(b"bitmap", *line.encode().split(), directory=ours) == (1, b"", wanted)


def test_a_format_other_than_qcow2_is_unknown(airlock: Airlock, ours: pathlib.Path) -> None:
    done = airlock(b"bitmap", b"--merge", b"x", b"-b", b"other", b"-F", b"raw", b"a", b"b0", directory=ours)
    assert done == (1, b"", b"airlock: Could not open 'other': Unknown driver 'raw'\n")


@pytest.mark.parametrize("option", [b"--object=x", b"--o"])
def test_no_objects(option: bytes, airlock: Airlock, template: pathlib.Path) -> None:
    done = airlock(b"bitmap", option, b"--add", b"a", b"x", directory=template)
    assert done.code == 1
    assert done.stderr.startswith(b"airlock bitmap: unrecognized option '%s'\n" % option)


def test_the_added_options_are_spelt_out(airlock: Airlock, template: pathlib.Path) -> None:
    """Else --e would not mean --enable any more, as it does for qemu-img."""
    for option in (b"--lis", b"--ex=b0", b"--lim=1", b"--qui", b"--force", b"--out=json"):
        done = airlock(b"bitmap", option, b"--clear", b"a", b"b0", directory=template)
        assert done.stderr.startswith(b"airlock bitmap: unrecognized option '%s'\n" % option)


def test_a_change_is_not_for_shared_images(airlock: Airlock, ours: pathlib.Path) -> None:
    wanted = b"airlock: Could not open 'a': force-share=on can only be used with read-only images\n"
    assert airlock(b"bitmap", b"-U", b"--add", b"a", b"x", directory=ours) == (1, b"", wanted)


# ---- what qemu-img has not -----------------------------------------------------------------------------------


LIST_USAGE = """
--list|--list a b|--list --add a|--list --output=xml a|--extents b0 a|--limit 3 a|--list --limit 3 a|--list -g 1k a
--list --extents b0 --limit 0 a|--list --extents b0 --limit x a|--list --extents b0 --limit 1048577 a|--li a|--ext b0 a
--list -b other a|--list -F qcow2 a|--list --extents|--list --extents b0 --limit \u0663 a
""".replace("\n", "|").split("|")


@pytest.mark.parametrize("line", LIST_USAGE[1:-1])
def test_usage_errors_of_list(line: str, airlock: Airlock, template: pathlib.Path) -> None:
    done = airlock(b"bitmap", *line.encode().split(), directory=template)
    assert (done.code, done.stdout) == (1, b"")
    assert done.stderr.endswith(b"\nTry 'airlock bitmap --help' for more info\n")


def test_list(airlock: Airlock, template: pathlib.Path) -> None:
    done = airlock(b"bitmap", b"--list", b"--extents", b"b0", b"in-use", directory=template)
    assert done.stderr == b"airlock: Operation list on bitmap b0 failed: " + (
        b"Bitmap 'b0' is inconsistent and cannot be used\n"
        b"Try block-dirty-bitmap-remove to delete this bitmap from disk\n"
    )
    assert airlock(b"bitmap", b"--list", b"in-use", directory=template).stdout.decode() == (
        "Bitmap list:\n"
        "GRANULARITY      DIRTY                COUNT FLAGS        NAME\n"
        "      4 KiB     12 KiB                    3 -            off\n"
        "      512 B          -                    - in-use,auto  b0\n"
        "    128 KiB    128 KiB                    1 auto         coarse\n"
    )
    done = airlock(b"bitmap", b"--list", b"-U", b"--extents", b"off", b"a", directory=template)
    assert done.stdout.decode().splitlines()[5:] == [
        "Dirty ranges of 'off':",
        "               START               LENGTH",
        "              307200                12288",
    ]
    assert airlock(b"bitmap", b"--list", b"plain", directory=template) == (0, b"", b"")


def test_list_as_json(airlock: Airlock, template: pathlib.Path) -> None:
    def found(*arguments: bytes) -> t.Any:
        return json.loads(airlock(b"bitmap", b"--output=json", b"--list", *arguments, directory=template).stdout)

    assert found(b"a") == {
        "bitmaps": [
            {
                "name": "off",
                "granularity": 4096,
                "flags": [],
                "inconsistent": False,
                "dirty-bytes": 12288,
                "count": 3,
            },
            {
                "name": "b0",
                "granularity": 512,
                "flags": ["auto"],
                "inconsistent": False,
                "dirty-bytes": 20480,
                "count": 40,
            },
            {
                "name": "coarse",
                "granularity": 131072,
                "flags": ["auto"],
                "inconsistent": False,
                "dirty-bytes": 131072,
                "count": 1,
            },
        ],
        "virtual-size": 1 << 20,
    }
    assert found(b"plain") == {"bitmaps": [], "virtual-size": 1 << 20}
    assert [(each["name"], each["flags"], each["dirty-bytes"]) for each in found(b"in-use")["bitmaps"]][1] == (
        "b0",
        ["in-use", "auto"],
        None,
    )


def test_json_of_changes(airlock: Airlock, ours: pathlib.Path) -> None:
    def done(*arguments: bytes) -> t.Any:
        return json.loads(airlock(b"bitmap", b"--output=json", *arguments, directory=ours).stdout)

    found = done(b"--add", b"--merge", b"off", b"--disable", b"a", b"x")
    assert (found["actions-applied"], found["changed"], found["resulting-bitmaps"]) == (3, True, 4)
    assert found["bitmaps"][3] == {
        "name": "x",
        "granularity": 4096,
        "flags": [],
        "inconsistent": False,
        "dirty-bytes": 12288,
        "count": 3,
    }
    found = done(b"--disable", b"a", b"x")
    assert (found["actions-applied"], found["changed"], found["resulting-bitmaps"]) == (1, False, 4)
    found = done(b"--remove", b"in-use", b"b0")
    assert (found["changed"], found["resulting-bitmaps"]) == (True, 2)
    assert found["freed-clusters"] > 0


def test_extents_in_pieces(airlock: Airlock, ours: pathlib.Path) -> None:
    for offset in range(100, 110, 2):
        run("qemu-io", "-f", "qcow2", "-c", f"write {offset}k 1k", "a", directory=ours)
    arguments = [b"--output=json", b"--list", b"--extents", b"b0", b"--limit"]
    whole = json.loads(airlock(b"bitmap", *arguments, b"1000", b"a", directory=ours).stdout)
    assert len(whole["extents"]) == 6
    assert whole["extents-end"] == 1 << 20
    part = json.loads(airlock(b"bitmap", *arguments, b"3", b"a", directory=ours).stdout)
    assert part["extents"] == whole["extents"][:3]
    assert part["extents-end"] <= whole["extents"][3]["start"]
    shown = airlock(b"bitmap", *arguments[1:], b"3", b"a", directory=ours).stdout.splitlines()
    assert shown[-1] == b"There may be more from %d on." % part["extents-end"]


def test_info(airlock: Airlock, template: pathlib.Path) -> None:
    """What qemu-img info says of bitmaps, and how much is dirty."""
    for image in (b"a", b"in-use", b"plain"):
        done = airlock(b"info", image, directory=template)
        theirs = qemu_img(b"info", image, directory=template).stdout.decode()
        kept = [line for line in done.stdout.decode().splitlines() if "dirty bytes" not in line]
        start = kept.index("    lazy refcounts: false")
        wanted = theirs.splitlines()
        wanted = wanted[wanted.index("    lazy refcounts: false") : wanted.index("    refcount bits: 16") + 1]
        assert kept[start : start + len(wanted)] == wanted
    assert done.stdout.count(b"bitmap") == 0
    facts = json.loads(airlock(b"info", b"--output", b"json", b"a", directory=template).stdout)
    assert facts["bitmap_count"] == 3
    assert facts["bitmaps"][0] == {
        "name": "off",
        "granularity": 4096,
        "recording": False,
        "in_use": False,
        "stale": False,
        "inconsistent": False,
        "dirty_bytes": 12288,
        "dirty_count": 3,
    }


@pytest.mark.parametrize("option", [b"-p", b"--progress"])
def test_progress(option: bytes, airlock: Airlock, ours: pathlib.Path) -> None:
    """A line from 0 to 100 for what changes an image; none with -q, and none for what reads."""
    for arguments in ([b"--add", b"a", b"new"], [b"--merge", b"b0", b"a", b"new"], [b"--remove-damaged", b"a"]):
        done = airlock(b"bitmap", option, *arguments, directory=ours)
        assert (done.code, done.stderr) == (0, b"")
        lines = done.stdout.removesuffix(b"\r\n").split(b"\r")
        assert (lines[0], lines[-1]) == (b"    (0.00/100%)", b"    (100.00/100%)")
    assert airlock(b"bitmap", option, b"-q", b"--clear", b"a", b"new", directory=ours) == Outcome(0, b"", b"")
    listed = airlock(b"bitmap", b"--list", b"a", directory=ours)
    assert airlock(b"bitmap", option, b"--list", b"a", directory=ours) == listed
