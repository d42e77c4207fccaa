# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From a flow to the module's answer: the one place where exceptions become fail_json()."""

from __future__ import annotations

import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ..sandbox import errors
from ..sandbox.host import ending
from .options import Module, settle_paths
from .startup import end

UNTOUCHED = "untouched"
UNDONE = "undone"
UNKNOWN = "unknown"

WAIT_SECONDS = 0.2  # between two looks at an image that others hold
PATHS_SHOWN = 10  # in a message; `outcomes` has all of them


class PartError(Exception):
    """Some images of a task that reads could not be read. causes: why, in their order; result: of the task."""

    def __init__(self, causes: t.Sequence[errors.AirlockError], result: dict[str, t.Any]) -> None:
        super().__init__(causes[0].message)
        self.causes = causes
        self.result = result

    @property
    def message(self) -> str:
        """Of the first, and how many there are."""
        count = len(self.result["images"])
        if count == 1:
            return self.causes[0].message
        return f"{self.causes[0].message} Of {count} images, {len(self.causes)} could not be read; see images."


class GroupError(Exception):
    """A task failed after its images were known.

    cause: why. outcomes: for each image (path, UNTOUCHED | UNDONE | UNKNOWN). changes: whether the task was to change
    them; one that only reads need not say that it changed nothing.
    """

    def __init__(self, cause: errors.AirlockError, outcomes: t.Sequence[tuple[str, str]], changes: bool = True) -> None:
        super().__init__(cause.message)
        self.cause = cause
        self.outcomes = tuple(outcomes)
        self.changes = changes

    @property
    def message(self) -> str:
        """The cause, and what state each image is in."""
        undone, untouched = self._paths(UNDONE), self._paths(UNTOUCHED)
        sentences = [self.cause.message]
        if self._paths(UNKNOWN):  # a TransactionError, which names those; what led to it comes first
            sentences.insert(0, _message(self.cause.__context__))
        elif undone:
            sentences.append(f"What was done has been undone, each image is as it was before. Restored: {undone}.")
            if untouched:
                sentences.append(f"Not touched: {untouched}.")
        elif self.changes and len(self.outcomes) > 1:
            sentences.append(f"No image was changed: {untouched}.")
        return " ".join(sentences).lstrip()

    def _paths(self, wanted: str) -> str:
        paths = [errors.quote(path) for path, outcome in self.outcomes if outcome == wanted]
        more = [f"and {len(paths) - PATHS_SHOWN} more"] if len(paths) > PATHS_SHOWN else []
        return ", ".join(paths[:PATHS_SHOWN] + more)


def _message(error: BaseException | None) -> str:
    if error is None or isinstance(error, errors.AirlockError):
        return str(error or "")
    from .unexpected import told

    return told(error).message


def run_module(module: Module, flow: t.Callable[[AnsibleModule], dict[str, t.Any]]) -> t.NoReturn:
    """Runs the flow and ends the process with its result, or with a message and a stable error_code.

    Told to end by SIGTERM, SIGHUP or SIGINT, it fails, with what it did to a group undone; and so it does on an
    exception that nobody thought of.
    """
    module.get_ready()
    try:
        with ending.by_signals():
            result = _result(module, flow)
    except GroupError as error:
        outcomes = [{"path": path, "outcome": outcome} for path, outcome in error.outcomes]
        module.fail_json(msg=error.message, error_code=error.cause.code, outcomes=outcomes, **_details(error.cause))
    except PartError as error:
        first = error.causes[0]
        module.fail_json(msg=error.message, error_code=first.code, **_details(first), **error.result)
    except errors.AirlockError as error:
        module.fail_json(msg=error.message, error_code=error.code, **_details(error))
    end(lambda: module.exit_json(**result))


def _result(module: Module, flow: t.Callable[[AnsibleModule], dict[str, t.Any]]) -> dict[str, t.Any]:
    """The flow's. Raises GroupError, PartError, AirlockError and nothing else."""
    try:
        if module.fault:
            raise module.fault
        settle_paths(module.params)
        return _wait(module, flow)
    except (GroupError, PartError, errors.AirlockError):
        raise
    except Exception as error:
        from .unexpected import told

        raise told(error, ending.is_done()) from error


def _wait(module: Module, flow: t.Callable[[AnsibleModule], dict[str, t.Any]]) -> dict[str, t.Any]:
    """The flow's result. While others hold an image it is begun anew, for lock_timeout seconds. Raises as the flow."""
    seconds: int = module.params.get("lock_timeout", 0)  # not of every module
    if seconds < 0:
        raise errors.ArgumentError(f"lock_timeout is {seconds} seconds. It must be at least 0.", "bad_timeout")
    end = time.monotonic() + seconds
    while True:
        try:
            return flow(module)
        except (GroupError, PartError, errors.ImageInUseError) as error:
            if not _is_held(error) or time.monotonic() >= end:
                raise
        time.sleep(WAIT_SECONDS)


def _is_held(error: Exception) -> bool:
    """Whether a flow has failed because somebody holds an image, and has written nothing."""
    if isinstance(error, PartError):
        return any(isinstance(cause, errors.ImageInUseError) for cause in error.causes)
    if isinstance(error, GroupError):
        untouched = all(outcome == UNTOUCHED for _path, outcome in error.outcomes)
        return untouched and isinstance(error.cause, errors.ImageInUseError)
    return isinstance(error, errors.ImageInUseError) and not error.modified


def _details(error: Exception) -> dict[str, t.Any]:
    """What a failure has beside its message: who holds the image, or where the fault of ours is, which -vvv shows."""
    shown = getattr(error, "traceback", "")
    return {**holders(error), **({"exception": shown} if shown else {})}


def holders(error: Exception) -> dict[str, t.Any]:
    """The processes that hold the image, where that is the reason."""
    return {"pids": list(error.pids)} if isinstance(error, errors.ImageInUseError) else {}
