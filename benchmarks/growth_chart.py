# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A chart of lines as SVG, both axes logarithmic."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from xml.sax.saxutils import escape

Point = tuple[float, float]

_WIDTH, _HEIGHT = 900, 620  # pixels
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 190, 50, 70
_LINE_HEIGHT = 15
_COLOURS = ("#1b6ca8", "#c8452f", "#2e8540", "#7b4ea3", "#b8860b", "#008b8b", "#c2478e", "#5a5a5a")
_DASHED = ("floor", "qemu-img")  # what others do


def chart(lines: Mapping[str, Sequence[Point]], name_of: Callable[[int], str]) -> str:
    """lines: by what they are called, points of (bytes, seconds) above 0. name_of: of a number of bytes."""
    sizes = sorted({x for points in lines.values() for x, _y in points})
    seconds = [y for points in lines.values() for _x, y in points]
    low, high = math.floor(math.log10(min(seconds))), math.ceil(math.log10(max(seconds)))
    span = math.log(sizes[-1] / sizes[0]) or 1.0

    def across(x: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * math.log(x / sizes[0]) / span

    def down(y: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - math.log10(y)) / max(high - low, 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" '
        f'viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="13">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        _text(_LEFT, 28, "Seconds that an operation takes, by the size of the disk, every cluster mapped", size=16),
    ]
    bottom, right = down(10.0**low), across(sizes[-1])
    for exponent in range(low, high + 1):
        y = down(10.0**exponent)
        parts.append(_line([(_LEFT, y), (right, y)], "#dddddd", 1))
        parts.append(_text(_LEFT - 8, y + 4, f"{10.0**exponent:g} s", anchor="end"))
    for size in sizes:
        parts.append(_line([(across(size), _TOP), (across(size), bottom)], "#dddddd", 1))
        parts.append(_text(across(size), bottom + 20, name_of(int(size)), anchor="middle"))
    parts.append(_line([(_LEFT, _TOP), (_LEFT, bottom), (right, bottom)], "#333333", 1.5))
    parts.append(_text((_LEFT + right) / 2, bottom + 46, "size of the disk (logarithmic)", anchor="middle"))
    middle = (_TOP + bottom) / 2
    turned = f' transform="rotate(-90 20 {middle:.1f})"'
    parts.append(_text(20, middle, "seconds, median (logarithmic)", anchor="middle", more=turned))
    places = _apart({name: down(points[-1][1]) for name, points in lines.items()})
    for number, (name, points) in enumerate(lines.items()):
        colour = "#222222" if name.startswith(_DASHED) else _COLOURS[number % len(_COLOURS)]
        dash = "6 4" if name.startswith(_DASHED) else ""
        at = [(across(x), down(y)) for x, y in sorted(points)]
        parts.append(_line(at, colour, 2, dash))
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in at]
        parts.append(_line([at[-1], (right + 12, places[name])], colour, 0.5))
        parts.append(_text(right + 16, places[name] + 4, name, colour=colour))
    return "\n".join([*parts, "</svg>\n"])


def _apart(places: Mapping[str, float]) -> dict[str, float]:
    """Heights of labels, moved down where one would lie on another."""
    settled: dict[str, float] = {}
    free = float(_TOP)
    for name, place in sorted(places.items(), key=lambda item: item[1]):
        settled[name] = max(place, free)
        free = settled[name] + _LINE_HEIGHT
    return settled


def _line(points: Sequence[Point], colour: str, width: float, dash: str = "") -> str:
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    more = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="{width}"{more}/>'


def _text(
    x: float, y: float, text: str, anchor: str = "start", colour: str = "#222222", size: int = 13, more: str = ""
) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" font-size="{size}"'
    return f"<text {place}{more}>{escape(text)}</text>"
