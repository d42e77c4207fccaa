# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The pages in the checkout: links lead somewhere, and the guides are built alike."""

from __future__ import annotations

import pathlib
import re

import pytest

TOP = pathlib.Path(__file__).parents[2]
PAGES = sorted(
    [*TOP.glob("*.md"), *(TOP / "docs").glob("*.md"), *TOP.glob("roles/*/README.md"), TOP / "tests/README.md"]
)
GUIDES = ["snapshots", "bitmaps", "commits", "rebases", "chain"]
HEADINGS = [
    "Synopsis",
    "What it does",
    "Unchanged",
    "Groups",
    "Refusals",
    "When it is interrupted",
    "Where it differs from qemu-img",
]


def prose(page: pathlib.Path) -> str:
    """The page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page: pathlib.Path) -> set[str]:
    """What GitHub makes of the headings."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE):
        anchor = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        while anchor in found:
            anchor += "-1"
        found.add(anchor)
    return found


def links(page: pathlib.Path) -> list[str]:
    """Where the page's links lead, but for those to other hosts."""
    targets = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", prose(page)))
    return [target for target in targets if "://" not in target and not target.startswith("mailto:")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))
def test_links_lead_somewhere(page: pathlib.Path) -> None:
    for link in links(page):
        path, _hash, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_there_are_links() -> None:
    assert len(PAGES) > 15
    assert sum("#" in link for page in PAGES for link in links(page)) > 15


@pytest.mark.parametrize("name", GUIDES)
def test_guides_have_the_same_headings(name: str) -> None:
    assert re.findall(r"^## (.+)$", prose(TOP / "docs" / f"{name}.md"), re.MULTILINE) == HEADINGS
