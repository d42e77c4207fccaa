# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What several tests of killed tasks need."""

from __future__ import annotations

import importlib
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.plugins.running import PLUGINS, make_tree


@pytest.fixture
def module(tmp_path: pathlib.Path) -> Iterator[Any]:
    """Finds the parts of a module, under their full names."""
    tree = tmp_path / "tree"
    tree.mkdir()
    make_tree(tree)
    yield lambda name: importlib.import_module(f"{PLUGINS}.module_utils.{name}")
    sys.path.remove(str(tree))
