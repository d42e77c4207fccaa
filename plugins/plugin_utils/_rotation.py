# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is private to the collection: no other collection can count on it.

"""Decides what a rotation of bitmaps has to do, from the names and flags that there are. Changes nothing itself.

A disk's line is its bitmaps of the shortest period, in the order of their names: the last one records, the others are
stopped. What is kept to: every write since the oldest bitmap of a line (or of a longer period) is in it or in a younger
one. Therefore a bitmap that cannot be relied upon takes all older ones with it, and goes last, so that a run that is
interrupted before can still see it. A name never comes back for another bitmap: it is the moment of the rotation.
"""

from __future__ import annotations

import datetime
import re
import typing as t

from ansible_collections.airlock.images.plugins.module_utils.sandbox import errors

DAY = 86400
PERIODS = ("hour", "day", "week", "month")
_PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)
_TIME_FORM = "%Y%m%dT%H%M%SZ"
_TIME = re.compile(r"[0-9]{8}T[0-9]{6}Z", re.ASCII)
_AGE = re.compile(r"([0-9]{1,9})([smhdw])", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": DAY, "w": 7 * DAY}
_GRANULARITY = re.compile(r"([0-9]+) *(?:([kmg])(?:ib)?|b)?", re.ASCII | re.IGNORECASE)  # as parse_granularity()
_SHIFTS = {"": 0, "k": 10, "m": 20, "g": 30}
_EPOCH = datetime.datetime(1970, 1, 1)
PHASES = ("repair", "record", "stop", "merge", "prune")


class RotationError(ValueError):
    """What is asked for makes no sense, or what is there. Its text is printable: names of files are in it."""

    def __init__(self, message: str) -> None:
        super().__init__(errors.clean(message, errors.MESSAGE_LIMIT))


class Keep(t.NamedTuple):
    """A period and how long its bitmaps stay. last: those of that many last periods, None: not told. age: seconds
    since the next bitmap took over, None: not told. With neither all stay, with both what one of them keeps."""

    period: str
    last: int | None
    age: int | None


class Own(t.NamedTuple):
    """A bitmap whose name is of the scheme. time: seconds since 1970. sound: neither in use nor stale nor ambiguous."""

    time: int
    period: str
    name: str
    recording: bool
    sound: bool


class Step(t.NamedTuple):
    """One task on one disk. order: where in its phase it stands. new: whether the bitmap is not there yet."""

    phase: str
    order: tuple[t.Any, ...]
    name: str
    merge: tuple[str, ...] = ()
    new: bool = False


def parse_time(text: str) -> int:
    """Seconds since 1970 of YYYYmmddTHHMMSSZ. Raises RotationError."""
    try:
        if not _TIME.fullmatch(text):
            raise ValueError
        return int((datetime.datetime.strptime(text, _TIME_FORM) - _EPOCH).total_seconds())
    except ValueError:
        raise RotationError(f"'{text}' is no time in UTC of the form YYYYmmddTHHMMSSZ.") from None


def format_time(time: int) -> str:
    """The other way round."""
    return (_EPOCH + datetime.timedelta(seconds=time)).strftime(_TIME_FORM)


def parse_keeps(periods: t.Sequence[t.Mapping[str, t.Any]]) -> list[Keep]:
    """The periods of a rotation, shortest first. Raises RotationError."""
    keeps = []
    for entry in periods:
        count, age = entry.get("keep"), entry.get("max_age")
        if count is not None and int(count) < 1:
            raise RotationError(f"keep of period '{entry['period']}' is {count}. It must be at least 1.")
        match = None if age is None else _AGE.fullmatch(str(age))
        if age is not None and not match:
            raise RotationError(f"max_age is '{age}'. It must be a number with a unit, such as 36h, 14d or 8w.")
        seconds = int(match[1]) * _SECONDS[match[2]] if match else None
        keeps.append(Keep(str(entry["period"]), None if count is None else int(count), seconds))
    order = [PERIODS.index(keep.period) if keep.period in PERIODS else -1 for keep in keeps]
    if not order or min(order) < 0 or order != sorted(set(order)):
        raise RotationError(f"The periods must be some of {', '.join(PERIODS)}, the shortest first, none twice.")
    return keeps


def start_of(period: str, time: int) -> int:
    """When the hour, day, week (a Monday) or month began that this time is in; all of them seconds since 1970."""
    if period == "hour":
        return time - time % 3600
    midnight = time - time % DAY
    if period == "week":
        # 1970 began on a Thursday.
        return midnight - (midnight // DAY + 3) % 7 * DAY
    if period == "month":
        return midnight - ((_EPOCH + datetime.timedelta(seconds=time)).day - 1) * DAY
    return midnight


def check_granularity(text: str) -> None:
    """Raises RotationError for what qcow2_bitmap would refuse in the middle of a rotation. Empty is what it takes."""
    match = _GRANULARITY.fullmatch(text.strip())
    size = int(match[1][:24]) << _SHIFTS[(match[2] or "").lower()] if match else 0
    if text and (not 512 <= size <= 1 << 31 or size & (size - 1)):
        raise RotationError(
            f"The granularity is '{text}'. It must be a power of two from 512 bytes to 2 GiB, such as 64k."
        )


class Scheme:
    """Which names are the rotation's own: PREFIX-PERIOD-YYYYmmddTHHMMSSZ. Raises RotationError for a bad prefix."""

    def __init__(self, prefix: str) -> None:
        if not _PREFIX.fullmatch(prefix):
            raise RotationError(
                f"The prefix is '{prefix}'. It must have 1 to 100 letters, digits, dots, hyphens and underscores of "
                "ASCII, and begin with a letter or a digit."
            )
        self.prefix = prefix
        self._name = re.compile(rf"{re.escape(prefix)}-({'|'.join(PERIODS)})-({_TIME.pattern})", re.ASCII)

    def name(self, period: str, time: int) -> str:
        return f"{self.prefix}-{period}-{format_time(time)}"

    def own(self, bitmaps: t.Sequence[t.Mapping[str, t.Any]]) -> list[Own]:
        """Those of an image's bitmaps (as qcow2_info tells them) that have such a name, the oldest first."""
        names = [str(bitmap["name"]) for bitmap in bitmaps]
        found = {}
        for name, bitmap in zip(names, bitmaps):
            match = self._name.fullmatch(name)
            try:
                time = parse_time(match[2]) if match else None
            except RotationError:
                continue  # the 31st of February is nobody's
            if match and time is not None:
                sound = not bitmap["inconsistent"] and names.count(name) == 1
                found[name] = Own(time, match[1], name, bool(bitmap["recording"]), sound)
        return sorted(found.values())


class Disk:
    """One image's own bitmaps. lost: what cannot be relied upon, or not any more; evidence: the names that show it.
    line: what is left of the shortest period, the last of it records; longer: what is left of the longer ones;
    strangers: those of periods that there are not to be."""

    def __init__(self, path: str, own: t.Sequence[Own], keeps: t.Sequence[Keep]) -> None:
        self.path = path
        shortest, wanted = keeps[0].period, {keep.period for keep in keeps}
        newest = [bitmap for bitmap in own if bitmap.period == shortest][-1:]
        faults = [bitmap for bitmap in own if not bitmap.sound]
        if not newest or not (newest[0].sound and newest[0].recording):
            faults = list(own)  # nothing has recorded
        until = max((bitmap.time for bitmap in faults), default=-1)
        self.lost = [bitmap for bitmap in own if bitmap.time <= until]
        self.evidence = {bitmap.name for bitmap in own if bitmap in newest or not bitmap.sound}
        left = [bitmap for bitmap in own if bitmap.time > until]
        self.line = [bitmap for bitmap in left if bitmap.period == shortest]
        self.longer = [bitmap for bitmap in left if bitmap.period != shortest and bitmap.period in wanted]
        self.strangers = [bitmap for bitmap in left if bitmap.period not in wanted]
        self.times = [bitmap.time for bitmap in own]

    def is_current(self, shortest: str, time: int) -> bool:
        """Whether a bitmap records that was begun in the period that this time is in, or later: clocks are put back."""
        return bool(self.line) and self.line[-1].time >= start_of(shortest, time)

    def steps(self, scheme: Scheme, keeps: t.Sequence[Keep], new: int | None, now: int) -> t.Iterator[Step]:
        """What there is to do, unordered. new: the time of the bitmap that is to record, None: the last one goes on."""
        shortest = keeps[0].period
        for bitmap in self.lost:
            yield Step("repair", (bitmap.name in self.evidence, *bitmap[:3]), bitmap.name)
        line = list(self.line)
        if new is not None and not (line and line[-1].time == new):
            line.append(Own(new, shortest, scheme.name(shortest, new), True, True))
            yield Step("record", (new,), line[-1].name, new=True)
        for bitmap in [*line[:-1], *self.longer]:
            if bitmap.recording:
                yield Step("stop", bitmap[:3], bitmap.name)
        kept = set(_kept(keeps[0], line, now))
        gone = [*self.strangers, *(bitmap for bitmap in line if bitmap not in kept)]
        for keep in keeps[1:]:
            there = [bitmap for bitmap in self.longer if bitmap.period == keep.period]
            sources = _by_target(scheme, keep.period, there, line[:-1])
            staying = _kept(keep, sorted(sources), now)
            for target in staying:
                if sources[target]:
                    names = tuple(bitmap.name for bitmap in sources[target])
                    yield Step("merge", target[:3], target.name, names, target not in there)
            gone += [bitmap for bitmap in there if bitmap not in staying]
        for bitmap in gone:
            yield Step("prune", bitmap[:3], bitmap.name)


def _by_target(scheme: Scheme, period: str, there: t.Sequence[Own], stopped: t.Sequence[Own]) -> dict[Own, list[Own]]:
    """The bitmaps of a longer period that there are or that are to be made, and what is merged into each. One that is
    made is named for the oldest that is merged into it, since what came before that is not in it."""
    targets: dict[int, Own] = {}
    sources: dict[Own, list[Own]] = {bitmap: [] for bitmap in there}
    for bitmap in there:
        targets.setdefault(start_of(period, bitmap.time), bitmap)
    for bitmap in stopped:
        new = Own(bitmap.time, period, scheme.name(period, bitmap.time), False, True)
        sources.setdefault(targets.setdefault(start_of(period, bitmap.time), new), []).append(bitmap)
    return sources


def _kept(keep: Keep, bitmaps: t.Sequence[Own], now: int) -> list[Own]:
    """Those of the bitmaps of one period, oldest first, that stay; always the youngest ones."""
    if keep.last is None and keep.age is None:
        return list(bitmaps)
    starts = sorted({start_of(keep.period, bitmap.time) for bitmap in bitmaps})[-(keep.last or 1) :]
    ends = [bitmap.time for bitmap in bitmaps[1:]] + [now]
    return [
        bitmap
        for bitmap, end in zip(bitmaps, ends)
        if start_of(keep.period, bitmap.time) in starts or (keep.age is not None and end > now - keep.age)
    ]


def _new_time(disks: t.Sequence[Disk], now: int) -> int:
    """The time that the name of a new bitmap has: now, or the second after the latest name that there is."""
    begun = [disk.line[-1:] for disk in disks]
    others = [
        time
        for disk, last in zip(disks, begun)
        for time in disk.times
        if not (last and last[0].time == now and time <= now)
    ]
    return max([now, *(time + 1 for time in others if time >= now)])


def plan(
    images: t.Sequence[t.Mapping[str, t.Any]],
    prefix: str,
    periods: t.Sequence[t.Mapping[str, t.Any]],
    time: str,
    granularity: str = "",
) -> dict[str, t.Any]:
    """What rotation_plan's RETURN says, for the images of one group as qcow2_info tells them. Raises RotationError."""
    scheme, keeps, now = Scheme(prefix), parse_keeps(periods), parse_time(time)
    check_granularity(granularity)
    shortest = keeps[0].period
    disks = [Disk(str(image["path"]), scheme.own(image["bitmaps"]), keeps) for image in images]
    for image in images:
        if len(image["bitmaps"]) < image.get("bitmap_count", 0):
            raise RotationError(
                f"{image['path']} has {image['bitmap_count']} bitmaps, more than are told of an image in a group of "
                f"{len(images)}. Remove those that nobody needs with airlock.images.qcow2_bitmap, or make it "
                "smaller."
            )
    for disk in disks:
        if disk.times and max(disk.times) > now + DAY:
            raise RotationError(
                f"{disk.path} has a bitmap of {format_time(max(disk.times))}, and now is {time}. Set the clock right, "
                "or remove the bitmap."
            )
    new = None if all(disk.is_current(shortest, now) for disk in disks) else _new_time(disks, now)
    together: dict[Step, list[str]] = {}
    for disk in disks:
        for step in disk.steps(scheme, keeps, new, now):
            together.setdefault(step, []).append(disk.path)
    steps = [
        {"phase": step.phase, "name": step.name, "new": step.new, "merge": list(step.merge), "paths": paths}
        for step, paths in sorted(together.items(), key=lambda item: (PHASES.index(item[0].phase), item[0].order))
    ]
    return {
        "rotates": new is not None,
        "steps": steps,
        "disks": [
            {
                "path": disk.path,
                "recording": scheme.name(shortest, new) if new is not None else disk.line[-1].name,
                "anew": not disk.line,
                "lost": [bitmap.name for bitmap in disk.lost],
            }
            for disk in disks
        ],
    }
