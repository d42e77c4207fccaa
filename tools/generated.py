# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the generators of Python files share."""

from __future__ import annotations

import os
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
HEAD = """\
# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Made by tools/{maker}: do not edit.

from __future__ import annotations

"""


def write_if_changed(path: Path, text: str) -> None:
    """Write text to path in one step; leave a file that already says so, but for its time (make looks at it)."""
    if path.exists() and path.read_text(encoding="ascii") == text:
        os.utime(path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}.draft")
    draft.write_text(text, encoding="ascii")
    draft.replace(path)
