# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a module starts and ends on a managed host: most of a task's time goes by before and after its work.

A task runs out of the zip that AnsiballZ has made of the module and of all that it imports. There is no compiled code
in it, and zipimport compiles a file twice: once to tell its name, which takes no look into it, and once to run it.
"""

from __future__ import annotations

import atexit
import gc
import os
import pkgutil
import sys
import typing as t
import zipimport

_status: list[int] = []  # of the exit, once the module has ended


class Importer(zipimport.zipimporter):
    """A zipimporter of source files that names them unseen: each is compiled once. 20 ms of a task."""

    def get_filename(self, fullname: str) -> str:
        """Where a module's source is. Raises ZipImportError when there is none."""
        name = os.path.join(self.archive, self.prefix + fullname.rpartition(".")[2])
        return os.path.join(name, "__init__.py") if self.is_package(fullname) else name + ".py"


def save_time() -> None:
    """To be called ahead of the other imports. Of no effect where these files do not lie in a zip."""
    home = os.path.dirname(os.path.dirname(__file__))
    if not isinstance(pkgutil.get_importer(home), zipimport.zipimporter):
        return

    def hook(path: str) -> Importer:
        if path != home and not path.startswith(home + os.sep):
            raise ImportError(path)  # somebody else's
        return Importer(path)

    sys.path_hooks.insert(0, hook)
    for path in [path for path in sys.path_importer_cache if path.startswith(home)]:
        del sys.path_importer_cache[path]
    # What Ansible has loaded is needed to the end, and the end comes before garbage matters. To look for some in it
    # again and again, the last time when Python exits, takes 15 ms.
    gc.disable()
    gc.freeze()
    if "coverage" not in sys.modules:  # which writes its data down at the very end
        atexit.register(_leave)


def end(answer: t.Callable[[], t.NoReturn]) -> t.NoReturn:
    """Calls what prints the module's answer and raises SystemExit; what is left to do then is done quickly."""
    try:
        answer()
    except SystemExit as error:
        if isinstance(error.code, int):
            _status[:] = [error.code]
        raise


def _leave() -> None:
    """The last of what is done at the exit. Python would go on and take its modules apart, one by one: 6 ms."""
    if _status:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_status[0])
