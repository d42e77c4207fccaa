# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names out of images, judged as they read."""

from __future__ import annotations

import pytest

from sandbox.host.reference_rules import NameRuleError, check_form, check_place, parts_of, reduce

HOME = (b"srv", b"vm")
DIRECTORIES = (HOME, (b"link",), (b"srv", b"base"))
FILES = ((b"dev", b"vg", b"base"),)
KNOWN = {(), (b"srv",), HOME, (b"srv", b"base")}


@pytest.mark.parametrize(
    "name",
    [
        b"base.qcow2",
        b"sub/base.qcow2",
        b"./base:1.qcow2",
        b"/srv/vm/a:b",
        b"a\nb\x1b\xff",
        b"..hidden",
        b"x" * 255,
        (b"x" * 255 + b"/") * 3 + b"y" * 255,
    ],
)
def test_sound_form(name: bytes) -> None:
    check_form(name)


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        (b"", "name_empty"),
        (b"\0", "name_nul"),
        (b"base\0.qcow2", "name_nul"),
        (b"nbd://127.0.0.1:10809/disk", "protocol"),
        (b"nbd+unix:///disk?socket=/run/nbd", "protocol"),
        (b'json:{"driver":"file","filename":"/etc/shadow"}', "protocol"),
        (b"json:{}", "protocol"),
        (b"http://host/disk", "protocol"),
        (b"file:base.qcow2", "protocol"),
        (b"file:///etc/shadow", "protocol"),
        (b"fat:rw:dir", "protocol"),
        (b"host_device:/dev/sda", "protocol"),
        (b"a:b", "protocol"),
        (b":", "protocol"),
        (b"..:/etc", "protocol"),
        (b"\xff:x", "protocol"),
        (b"x" * 256, "name_long"),
        (b"a/" + b"x" * 256, "name_long"),
        (b"a/" * 512, "name_long"),
        (b"a/" * 511 + b"bc", "name_long"),
        (b".", "not_regular"),
        (b"..", "not_regular"),
        (b"/", "not_regular"),
        (b"base.qcow2/", "not_regular"),
        (b"base.qcow2/.", "not_regular"),
        (b"sub/..", "not_regular"),
    ],
)
def test_unsound_form(name: bytes, rule: str) -> None:
    with pytest.raises(NameRuleError) as caught:
        check_form(name)
    assert str(caught.value) == rule


@pytest.mark.parametrize(
    "name",
    [
        b"base",
        b"sub/base",
        b"sub/../base",
        b"../vm/base",
        b"../base/base",
        b"../../../../srv/base/base",
        b"/srv/vm/base",
        b"//srv//./vm/base",
        b"/srv/base/sub/base",
        b"/etc/../srv/base/base",
        b"/link/base",
        b"/dev/vg/base",
        b"../../dev/vg/base",
    ],
)
def test_place_that_is_allowed(name: bytes) -> None:
    check_place(name, HOME, DIRECTORIES, FILES)


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        (b"../base", "outside"),
        (b"../vm2/base", "outside"),
        (b"sub/../../x", "outside"),
        (b"../../../../etc/shadow", "outside"),
        (b"sub/../../../dev/vg/base2", "outside"),
        (b"/etc/shadow", "absolute"),
        (b"/srv/vm/../x", "absolute"),
        (b"/srv/vm2/base", "absolute"),
        (b"/srv/vm", "absolute"),
        (b"/srv/base/../../etc/shadow", "absolute"),
        (b"/dev/vg/base/x", "absolute"),
        (b"/dev/fdset/1", "absolute"),
    ],
)
def test_place_that_is_not(name: bytes, rule: str) -> None:
    with pytest.raises(NameRuleError) as caught:
        check_place(name, HOME, DIRECTORIES, FILES)
    assert str(caught.value) == rule


@pytest.mark.parametrize(
    ("start", "path", "reduced"),
    [
        ((), b"/srv/vm/a", b"/srv/vm/a"),
        ((), b"/srv/../srv/vm/a", b"/srv/vm/a"),
        ((), b"/../../srv/vm/a", b"/srv/vm/a"),
        ((), b"/srv/vm/sub/../a", b"/srv/vm/sub/../a"),
        ((b"srv",), b"base/a", b"/srv/base/a"),
        ((b"srv",), b"../srv/base/a/../../b", b"/srv/base/a/../../b"),
        ((), b"/etc/../srv/vm/a", b"/etc/../srv/vm/a"),
    ],
)
def test_only_what_is_known_is_taken_back(start: tuple[bytes, ...], path: bytes, reduced: bytes) -> None:
    assert reduce(start, parts_of(path), KNOWN) == parts_of(reduced)
