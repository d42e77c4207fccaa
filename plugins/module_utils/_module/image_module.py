# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the modules have in common that run guests on image files, beside what any module has."""

from __future__ import annotations

import typing as t

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

from ..sandbox import errors
from ..sandbox.host import descriptors
from ..sandbox.host.places import look_up
from ..sandbox.images.image import memory
from .options import PATHS, Module, Spec, at_home

BACKEND = "_cffi_backend"

# Where distributions put the Python that their own cffi package belongs to.
INTERPRETERS = (
    "/usr/bin/python3",
    "/usr/libexec/platform-python",
    "/usr/bin/python3.13",
    "/usr/bin/python3.12",
    "/usr/bin/python3.11",
    "/usr/bin/python3.10",
    "/usr/bin/python3.9",
)


class ImageModule(Module):
    """A Module whose flow runs guests, and whose lists are of paths."""

    def look_further(self) -> None:
        """Takes a text for a list of paths whole, and the limit. Raises ArgumentError."""
        _take_whole(self.argument_spec, self.params)
        limit = self.params.get("memory_limit")
        try:
            memory.set_limit(0 if limit is None else self.human_to_bytes(str(limit).upper().removesuffix("IB")) or 1)
        except (ValueError, OverflowError):
            raise errors.ArgumentError(
                f"memory_limit is '{errors.clean(str(limit), 80)}'. It must be a number of bytes, 128M or more.",
                "bad_memory_limit",
            ) from None

    def get_ready(self) -> None:
        """Goes on in another interpreter where this one lacks the backend."""
        need_backend(self)
        descriptors.raise_limit()

    def exit_json(self, **result: t.Any) -> t.NoReturn:
        """Warns first."""
        for path, (windows, size) in memory.short.items():
            self.warn(
                f"{errors.quote(path)}: in {size >> 20} MiB of memory its guest read the tables of the disk and of each"
                f" snapshot {windows} times. Raise memory_limit, or free memory."
            )
        super().exit_json(**result)


def need_backend(module: AnsibleModule) -> None:
    """Goes on in another interpreter when this one lacks the cffi backend, and fails when none has it."""
    try:
        __import__(BACKEND)
    except ImportError:
        _respawn()
        module.fail_json(
            msg=missing_required_lib("cffi", reason="to run the KVM guest that looks into the image")
            + " The packages are python3-cffi-backend (Debian, Ubuntu) and python3-cffi (Fedora, RHEL).",
            error_code=errors.NoCffiError.code,
        )


def _respawn() -> None:
    """Ends this process with the result of another interpreter's, if there is one that has the backend."""
    from ansible.module_utils.common import respawn  # seldom needed, and not quick to import

    if not respawn.has_respawned():
        interpreter = respawn.probe_interpreters_for_module(INTERPRETERS, BACKEND)
        if interpreter is not None:
            respawn.respawn_module(interpreter)


def _take_whole(spec: Spec, params: dict[str, t.Any]) -> None:
    """A text for a list of paths is one path. Ansible would split it at its commas: of DIRECTORY/x,/srv/other.qcow2,
    which whoever owns the directory can make, and another task finds, it would make two, one of them anybody's.

    Raises ArgumentError for one with a comma that is not there.
    """
    for key in sorted(PATHS & params.keys()):
        text = params[key]
        if spec.get(key, {}).get("type") != "list" or not isinstance(text, str):
            continue
        if "," in text and not _is_there(at_home(text)):
            parts = ", ".join(errors.quote(part.strip()) for part in text.split(","))
            raise errors.ArgumentError(
                f"{key} is one text with a comma, and no file is called {errors.quote(text)}. If several files are "
                f"meant, write a list: [{parts}].",
                "not_a_list",
            )
        params[key] = [text]


def _is_there(path: str) -> bool:
    """Whether the task has something to say of it: that it may not be opened, as well."""
    try:
        with look_up(path) as place:
            return place.there or place.linked
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError:
        return True
