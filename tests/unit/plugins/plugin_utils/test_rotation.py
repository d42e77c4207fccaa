# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a rotation decides, in tables; and that no write is forgotten, in random lives of disks that get interrupted."""

from __future__ import annotations

import datetime
import importlib
import types
import typing as t

import pytest
from ansible.errors import AnsibleFilterError
from hypothesis import given, settings
from hypothesis import strategies as st

PLUGINS = "ansible_collections.airlock.images.plugins"
DAYS = [{"period": "day"}]
DAYS_AND_WEEKS = [{"period": "day", "keep": 3}, {"period": "week", "keep": 2}]
NOW = "20261121T030000Z"  # a Saturday


@pytest.fixture(scope="module")
def rotation(collection_tree: None) -> types.ModuleType:
    return importlib.import_module(f"{PLUGINS}.plugin_utils._rotation")


@pytest.fixture(scope="module")
def plan_filter(collection_tree: None) -> t.Callable[..., t.Any]:
    module = importlib.import_module(f"{PLUGINS}.filter.rotation_plan")
    return t.cast(t.Callable[..., t.Any], module.FilterModule().filters()["rotation_plan"])


def test_a_list_with_something_left_out_is_refused(rotation: types.ModuleType) -> None:
    told = {**image(bitmap("r-day-20261120T030000Z", recording=True)), "bitmap_count": 2}
    with pytest.raises(rotation.RotationError, match="a has 2 bitmaps"):
        rotation.plan([told], "r", DAYS, NOW)
    assert rotation.plan([{**told, "bitmap_count": 1}], "r", DAYS, NOW)["rotates"]


def test_names_in_refusals_are_printable(rotation: types.ModuleType) -> None:
    """The role's message has them, and ansible-playbook prints that as it is."""
    future = bitmap("r-day-20261130T030000Z", recording=True)
    for told in (image(future, path="x\x1b[m\nok:"), {**image(path="x\x1b[m\nok:"), "bitmap_count": 1}):
        with pytest.raises(rotation.RotationError, match=r"^x\ufffd\[m\ufffdok: has "):
            rotation.plan([told], "r", DAYS, NOW)


@pytest.mark.parametrize("text", ["0", "1000", "3k", "256", "4g", "x", "64 k b"])
def test_a_granularity_that_the_module_would_refuse(rotation: types.ModuleType, text: str) -> None:
    with pytest.raises(rotation.RotationError, match="granularity"):
        rotation.plan([], "r", DAYS, NOW, text)


@pytest.mark.parametrize("text", ["", "512", "64k", "64 KiB", "1M", "2g", "65536b"])
def test_a_granularity_that_it_takes(rotation: types.ModuleType, text: str) -> None:
    assert rotation.plan([], "r", DAYS, NOW, text)["steps"] == []


def bitmap(name: str, recording: bool = False, inconsistent: bool = False) -> dict[str, t.Any]:
    return {"name": name, "recording": recording, "inconsistent": inconsistent}


def image(*bitmaps: dict[str, t.Any], path: str = "a") -> dict[str, t.Any]:
    return {"path": path, "bitmaps": list(bitmaps)}


def day(text: str, recording: bool = False, inconsistent: bool = False) -> dict[str, t.Any]:
    return bitmap(f"r-day-{text}T020000Z", recording, inconsistent)


def told(plan: dict[str, t.Any]) -> list[str]:
    """Each step in a line: phase, name without prefix, what is merged, images."""
    return [
        " ".join([step["phase"], step["name"][2:], *(f"<{name[2:]}" for name in step["merge"]), *step["paths"]])
        for step in plan["steps"]
    ]


TABLE = {
    "nothing there": ([image()], DAYS, ["record day-20261121T030000Z a"]),
    "all there": ([image(day("20261121", True))], DAYS, []),
    "the next day": (
        [image(day("20261120", True))],
        DAYS,
        ["record day-20261121T030000Z a", "stop day-20261120T020000Z a"],
    ),
    "two record": ([image(day("20261120", True), day("20261121", True))], DAYS, ["stop day-20261120T020000Z a"]),
    "none records": (
        [image(day("20261120"), day("20261121"))],
        DAYS,
        ["repair day-20261120T020000Z a", "repair day-20261121T020000Z a", "record day-20261121T030000Z a"],
    ),
    "one of a machine that was killed": (
        [image(day("20261118"), day("20261119", inconsistent=True), day("20261121", True))],
        DAYS,
        ["repair day-20261118T020000Z a", "repair day-20261119T020000Z a"],
    ),
    "all of a machine that was killed": (
        [image(day("20261120", inconsistent=True), day("20261121", True, True))],
        DAYS,
        ["repair day-20261120T020000Z a", "repair day-20261121T020000Z a", "record day-20261121T030000Z a"],
    ),
    "two of one name": (
        [image(day("20261120"), day("20261120"), day("20261121", True))],
        DAYS,
        ["repair day-20261120T020000Z a"],
    ),
    "what is doubtful goes last": (
        [
            image(
                bitmap("r-week-20261116T020000Z"),
                day("20261115"),
                day("20261116", inconsistent=True),
                day("20261121", True),
            )
        ],
        DAYS_AND_WEEKS,
        ["repair day-20261115T020000Z a", "repair week-20261116T020000Z a", "repair day-20261116T020000Z a"],
    ),
    "one disk lacks it: all get a new one": (
        [image(day("20261121", True)), image(path="b")],
        DAYS,
        ["record day-20261121T030000Z a b", "stop day-20261121T020000Z a"],
    ),
    "one disk lacks it since a run was interrupted in this second": (
        [image(bitmap(f"r-day-{NOW}", True), day("20261120", True)), image(day("20261120", True), path="b")],
        DAYS,
        ["record day-20261121T030000Z b", "stop day-20261120T020000Z a b"],
    ),
    "the name of this second is taken": (
        [image(bitmap(f"r-day-{NOW}", True, True))],
        DAYS,
        ["repair day-20261121T030000Z a", "record day-20261121T030001Z a"],
    ),
    "the clock was put back": ([image(bitmap("r-day-20261121T030500Z", True))], DAYS, []),
    "merged, then pruned": (
        [image(*(day(f"202611{number}") for number in range(14, 20)), day("20261120", True))],
        DAYS_AND_WEEKS,
        [
            "record day-20261121T030000Z a",
            "stop day-20261120T020000Z a",
            "merge week-20261114T020000Z <day-20261114T020000Z <day-20261115T020000Z a",
            "merge week-20261116T020000Z <day-20261116T020000Z <day-20261117T020000Z <day-20261118T020000Z "
            "<day-20261119T020000Z <day-20261120T020000Z a",
            *(f"prune day-202611{number}T020000Z a" for number in range(14, 19)),
        ],
    ),
    "what would be pruned at once is not made": (
        [image(*(day(f"202611{number}") for number in ("01", "14", "16")), day("20261121", True))],
        [{"period": "day", "keep": 9}, {"period": "week", "keep": 1}],
        ["merge week-20261116T020000Z <day-20261116T020000Z a"],
    ),
    "weeks that have come too far": (
        [
            image(
                bitmap("r-week-20261101T020000Z"),
                bitmap("r-week-20261102T020000Z"),
                bitmap("r-week-20261116T020000Z"),
                day("20261121", True),
            )
        ],
        DAYS_AND_WEEKS,
        ["prune week-20261101T020000Z a"],
    ),
    "by age: since the next one took over": (
        [image(day("20261117"), day("20261118"), day("20261119"), day("20261121", True))],
        [{"period": "day", "max_age": "49h"}],
        ["prune day-20261117T020000Z a", "prune day-20261118T020000Z a"],
    ),
    "count and age: what both let go": (
        [image(day("20261117"), day("20261118"), day("20261119"), day("20261121", True))],
        [{"period": "day", "max_age": "49h", "keep": 3}],
        ["prune day-20261117T020000Z a"],
    ),
    "a period that is no more": (
        [image(bitmap("r-week-20261116T020000Z", True), day("20261121", True))],
        DAYS,
        ["prune week-20261116T020000Z a"],
    ),
    "another shortest period: a new line": (
        [image(bitmap("r-week-20261116T020000Z"), day("20261121", True))],
        [{"period": "hour"}, {"period": "week"}],
        [
            "repair week-20261116T020000Z a",
            "repair day-20261121T020000Z a",
            "record hour-20261121T030000Z a",
        ],
    ),
    "a longer one records": (
        [image(bitmap("r-week-20261116T020000Z", True), day("20261121", True))],
        DAYS_AND_WEEKS,
        ["stop week-20261116T020000Z a"],
    ),
    "what is others'": (
        [
            image(
                *(
                    bitmap(name, True, True)
                    for name in (
                        "backup",
                        "r",
                        "r-day",
                        "r-day-20261120",
                        "r-day-20261120T020000Z-x",
                        "x-r-day-20261120T020000Z",
                        "r-x-day-20261120T020000Z",
                        "r-days-20261120T020000Z",
                        "R-day-20261120T020000Z",
                        "r-day-20260231T020000Z",
                        "r-day-20261120T020000Z\n",
                        "r-day-2026112\u0660T020000Z",
                    )
                ),
                day("20261121", True),
            )
        ],
        DAYS,
        [],
    ),
}


@pytest.mark.parametrize(("images", "periods", "steps"), TABLE.values(), ids=TABLE)
def test_the_steps(rotation: types.ModuleType, images: t.Any, periods: t.Any, steps: list[str]) -> None:
    assert told(rotation.plan(images, "r", periods, NOW)) == steps


def test_what_is_told_of_the_disks(rotation: types.ModuleType) -> None:
    images = [image(day("20261120", True)), image(day("20261120", True, True), path="b"), image(path="c")]
    plan = rotation.plan(images, "r", DAYS, NOW)
    assert plan["rotates"] is True
    assert plan["disks"] == [
        {"path": "a", "recording": f"r-day-{NOW}", "anew": False, "lost": []},
        {"path": "b", "recording": f"r-day-{NOW}", "anew": True, "lost": ["r-day-20261120T020000Z"]},
        {"path": "c", "recording": f"r-day-{NOW}", "anew": True, "lost": []},
    ]
    plan = rotation.plan([image(day("20261121", True))], "r", DAYS, NOW)
    assert (plan["rotates"], plan["disks"][0]["recording"]) == (False, "r-day-20261121T020000Z")


@pytest.mark.parametrize(
    ("period", "start"),
    [
        ("hour", "20261121T030000Z"),
        ("day", "20261121T000000Z"),
        ("week", "20261116T000000Z"),
        ("month", "20261101T000000Z"),
    ],
)
def test_when_a_period_begins(rotation: types.ModuleType, period: str, start: str) -> None:
    assert rotation.format_time(rotation.start_of(period, rotation.parse_time("20261121T034512Z"))) == start


@given(moment=st.datetimes(datetime.datetime(1970, 1, 1), datetime.datetime(9999, 12, 31)))
def test_weeks_begin_on_mondays_and_months_on_firsts(rotation: types.ModuleType, moment: datetime.datetime) -> None:
    text = moment.strftime("%Y%m%dT%H%M%SZ").zfill(16)
    time = rotation.parse_time(text)
    assert rotation.format_time(time) == text
    monday = moment.date() - datetime.timedelta(moment.weekday())
    if monday.year >= 1970:
        assert rotation.format_time(rotation.start_of("week", time)) == monday.strftime("%Y%m%dT000000Z")
    assert rotation.format_time(rotation.start_of("month", time)) == moment.strftime("%Y%m01T000000Z")


@pytest.mark.parametrize(
    ("prefix", "periods", "time", "words"),
    [
        ("", DAYS, NOW, "prefix"),
        ("a b", DAYS, NOW, "prefix"),
        ("-a", DAYS, NOW, "prefix"),
        ("a\n", DAYS, NOW, "prefix"),
        ("r", [], NOW, "shortest first"),
        ("r", [{"period": "year"}], NOW, "shortest first"),
        ("r", [{"period": "week"}, {"period": "day"}], NOW, "shortest first"),
        ("r", [{"period": "day"}, {"period": "day"}], NOW, "none twice"),
        ("r", [{"period": "day", "keep": 0}], NOW, "at least 1"),
        ("r", [{"period": "day", "max_age": "soon"}], NOW, "36h"),
        ("r", [{"period": "day", "max_age": "-1d"}], NOW, "36h"),
        ("r", DAYS, "20261121", "YYYYmmddTHHMMSSZ"),
        ("r", DAYS, "20261131T000000Z", "YYYYmmddTHHMMSSZ"),
        ("r", DAYS, "20260101T000000Z", "Set the clock right"),
    ],
)
def test_what_makes_no_sense(
    plan_filter: t.Callable[..., t.Any], prefix: str, periods: t.Any, time: str, words: str
) -> None:
    with pytest.raises(AnsibleFilterError, match=words):
        plan_filter([image(day("20261121", True))], prefix=prefix, periods=periods, time=time)


# ---- lives of disks ----------------------------------------------------------------------------------------


class Bitmap:
    """bits: the numbers of the writes that it has noted."""

    def __init__(self, recording: bool, bits: t.Iterable[int] = ()) -> None:
        self.recording, self.in_use, self.stale, self.bits = recording, False, False, set(bits)

    @property
    def sound(self) -> bool:
        return not (self.in_use or self.stale)


class Life:
    """A disk, with what qcow2_bitmap would do to it. writes: how many there have been. begun: at which of them a bitmap
    began to record."""

    def __init__(self, path: str) -> None:
        self.path, self.writes = path, 0
        self.bitmaps: dict[str, Bitmap] = {"foreign": Bitmap(True)}
        self.begun: dict[str, int] = {}

    def write(self) -> None:
        for one in self.bitmaps.values():
            if one.recording and one.sound:
                one.bits.add(self.writes)
        self.writes += 1

    def image(self) -> dict[str, t.Any]:
        return image(*(bitmap(name, b.recording, not b.sound) for name, b in self.bitmaps.items()), path=self.path)

    def do(self, step: dict[str, t.Any]) -> bool:
        """Carries a step out; whether it changes anything."""
        before = {name: (one.recording, set(one.bits)) for name, one in self.bitmaps.items()}
        name, there = step["name"], self.bitmaps.get(step["name"])
        if step["phase"] in ("repair", "prune"):
            self.bitmaps.pop(name, None)
        elif step["phase"] == "record":
            assert there is None
            assert name not in self.begun, "a name came back"
            self.bitmaps[name] = Bitmap(True)
            self.begun[name] = self.writes
        elif step["phase"] == "stop":
            assert there is not None
            assert there.sound
            there.recording = False
        else:
            sources = [self.bitmaps[source] for source in step["merge"]]
            assert all(source.sound and not source.recording for source in sources)
            assert step["new"] == (there is None)
            merged = self.bitmaps.setdefault(name, Bitmap(False))
            assert merged.sound
            merged.bits.update(*(source.bits for source in sources))
        after = {name: (one.recording, set(one.bits)) for name, one in self.bitmaps.items()}
        if before != after:
            self.bitmaps = {name: one for name, one in self.bitmaps.items() if not one.stale}
        return before != after

    def fault(self, kind: str, choice: int) -> None:
        own = sorted((name[-16:], name) for name in self.bitmaps if name != "foreign")
        line = [name for _time, name in own if "-hour-" in name]
        if kind == "killed":
            for one in self.bitmaps.values():
                one.in_use = True
        elif kind == "stale":
            for one in self.bitmaps.values():
                one.stale = True
        elif kind == "one in use" and own:
            self.bitmaps[own[choice % len(own)][1]].in_use = True
        elif kind == "stopped" and line:
            self.bitmaps[line[-1]].recording = False
        elif kind == "removed" and line:
            del self.bitmaps[line[-1]]

    def check(self, longer: t.Sequence[str]) -> None:
        """Whoever unites a bitmap with all younger ones has every write since it began."""
        own = sorted((name[-16:], name, one) for name, one in self.bitmaps.items() if name != "foreign")
        line = [(time, name, one) for time, name, one in own if "-hour-" in name]
        if not line or not (line[-1][2].recording and line[-1][2].sound):
            return  # anybody can see that
        for time, name, _one in own:
            if any(later >= time and not one.sound for later, _name, one in own):
                continue  # and that
            period = name.split("-")[1]
            if period != "hour" and period not in longer:
                continue
            began = self.begun[f"r-hour-{time}"]
            union = {bit for later, _name, one in line if period != "hour" or later >= time for bit in one.bits}
            union.update(*(one.bits for later, other, one in own if f"-{period}-" in other and later >= time))
            assert set(range(began, self.writes)) <= union, f"{name} of {self.path} misses writes"


FAULTS = st.sampled_from(["", "", "", "", "", "killed", "stale", "one in use", "stopped", "removed"])
RUNS = st.lists(
    st.tuples(
        st.integers(10, 200_000),  # seconds since the last run
        st.integers(0, 3),  # writes to each disk
        FAULTS,
        st.integers(0, 7),  # the disk and bitmap that it is about
        st.one_of(st.none(), st.tuples(st.integers(0, 12), st.integers(0, 2))),  # the step and disk of an interruption
    ),
    min_size=1,
    max_size=25,
)
KEEPS = st.tuples(st.none() | st.integers(1, 5), st.none() | st.sampled_from(["0s", "5h", "3d"]))


@settings(max_examples=150)
@given(runs=RUNS, keeps=st.lists(KEEPS, min_size=1, max_size=3), sizes=st.integers(1, 3))
def test_no_write_is_forgotten(rotation: types.ModuleType, runs: t.Any, keeps: t.Any, sizes: int) -> None:
    periods = [
        {"period": period, "keep": count, "max_age": age}
        for period, (count, age) in zip(["hour", "day", "week"], keeps, strict=False)
    ]
    longer = [str(entry["period"]) for entry in periods[1:]]
    lives = [Life(path) for path in "abc"[:sizes]]
    now = rotation.parse_time(NOW)
    for seconds, writes, fault, choice, interruption in runs:
        now += seconds
        for life in lives:
            for _write in range(writes):
                life.write()
        lives[choice % len(lives)].fault(fault, choice)
        time = rotation.format_time(now)
        for number, step in enumerate(rotation.plan([life.image() for life in lives], "r", periods, time)["steps"]):
            for index, life in enumerate(life for life in lives if life.path in step["paths"]):
                if (number, index) == interruption:
                    break
                life.do(step)
                life.check(longer)
                life.write()
                life.check(longer)
            else:
                continue
            break
        else:
            check_settled(rotation, lives, periods, time)


def check_settled(rotation: types.ModuleType, lives: t.Sequence[Life], periods: t.Any, time: str) -> None:
    """After a run that was not interrupted: one bitmap records, and the next run changes nothing."""
    for life in lives:
        assert all(one.sound for name, one in life.bitmaps.items() if name != "foreign")
        own = sorted((name[-16:], name) for name in life.bitmaps if name != "foreign")
        recording = [name for _time, name in own if life.bitmaps[name].recording]
        assert recording == [max(name for _time, name in own if "-hour-" in name)]
        count = periods[0]["keep"]
        if count is not None and periods[0]["max_age"] is None:
            assert len({name[:-5] for _time, name in own if "-hour-" in name}) <= count
    plan = rotation.plan([life.image() for life in lives], "r", periods, time)
    assert not plan["rotates"]
    assert not any(life.do(step) for step in plan["steps"] for life in lives if life.path in step["paths"])
