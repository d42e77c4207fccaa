# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of the command line have in common."""

from __future__ import annotations

import pytest

from .command_line import Airlock


@pytest.fixture
def airlock(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Airlock:
    return Airlock(capfdbinary, monkeypatch)
