# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Small files that are believed because nobody but root, or who runs the task, can have written them.

The way to a file is walked from / a step at a time, each below the descriptor of the one before. Where every directory
on it belongs to root or to who runs this, and nobody else may write to any, nobody else can change the way either, so
that what was looked at is what is used.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.text.converters import to_bytes

from ..sandbox import errors
from ..sandbox.host import ending
from ..sandbox.host.one_name import has_one_name

SIZE_LIMIT = 4 << 20  # bytes; a manifest of ten thousand disks has one
_LINKS_MAX = 40  # as the kernel follows
_DRAFT = ".airlock.draft"  # one name, so that what a killed run has left goes with the next
_KEPT = b".airlock.old."  # and what is the same for each run on a file, for the same reason
_NAME_MAX = 255  # bytes
_STEP = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class TrustedPath:
    """Where a file lies: path as it was named, directory (a descriptor), and its name there; old: its content, None
    where there is none. directory is None where the directory is not there and is not to be made."""

    def __init__(self, path: str) -> None:
        # In bytes, so that the locale has no say.
        parent, self.name = os.path.split(to_bytes(path, errors="surrogate_or_strict"))
        if not path.startswith("/") or self.name in (b"", b".", b"..") or "\0" in path:
            raise errors.ArgumentError(f"{errors.quote(path)} is no whole path of a file. Begin it with /.", "bad_path")
        self.path, self.parent = path, parent
        self.directory: int | None = None
        self.old: bytes | None = None

    def replace(self, content: bytes | None) -> None:
        """Has the file hold this and nothing else, or removes it. Raises OSError."""
        directory = _opened(self.directory)
        if content is None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.name, dir_fd=directory)
        else:
            self._write(directory, content)
        _sync(directory)

    def keep_old(self) -> None:
        """Gives the file that is there a second name, for put_back(). Raises OSError."""
        if self.old is not None:
            self.forget_old()  # of a run that was killed
            directory = _opened(self.directory)
            with contextlib.suppress(OSError):  # where there are no second names, it is written anew
                os.link(self.name, self._kept, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)

    def put_back(self) -> None:
        """Has the file be what it was before replace(). That takes no room, for there may be none. Raises OSError."""
        directory = _opened(self.directory)
        if self.old is None:
            self.replace(None)
        else:
            try:
                # Of two names of one file, rename(2) leaves both.
                os.replace(self._kept, self.name, src_dir_fd=directory, dst_dir_fd=directory)
            except FileNotFoundError:
                self.replace(self.old)
            self.forget_old()
            _sync(directory)

    def forget_old(self) -> None:
        """Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._kept, dir_fd=_opened(self.directory))

    @property
    def _kept(self) -> bytes:
        import hashlib  # only where something changes

        return _KEPT + hashlib.sha256(self.name).hexdigest()[:32].encode()

    def _write(self, directory: int, content: bytes) -> None:
        with os.fdopen(_draft(directory), "wb") as file:
            try:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                os.replace(_DRAFT, self.name, src_dir_fd=directory, dst_dir_fd=directory)
            except Exception:
                with contextlib.suppress(OSError):
                    os.unlink(_DRAFT, dir_fd=directory)
                raise


class Walk:
    """Opens directories and remembers the ones that it has made. write: whether there is something to write; make:
    whether to make what is missing for it."""

    def __init__(self, write: bool, make: bool) -> None:
        self._write, self._make = write, make
        self._made: list[tuple[int, bytes]] = []
        self._known: dict[bytes, int] = {}

    def find(self, place: TrustedPath) -> None:
        """Opens its directory and reads what is there. Raises ArgumentError when somebody else could have changed it,
        OSError."""
        place.directory = self._directory(place)
        if place.directory is not None:
            place.old = _content(place, place.directory)

    def take_back(self) -> None:
        """Removes what it has made, as far as that is empty."""
        for parent, name in reversed(self._made):
            with contextlib.suppress(OSError):
                os.rmdir(name, dir_fd=parent)

    def _directory(self, place: TrustedPath) -> int | None:
        if place.parent not in self._known:
            here = os.open("/", _STEP)
            left = [*place.parent.split(b"/")[::-1]]
            links = 0
            while True:
                _check(here, place.path, last=not any(left))
                if not left:
                    break
                name = left.pop()
                step = self._step(here, name, place.path)
                if step is None:
                    return None
                if stat.S_ISLNK(os.fstat(step).st_mode):
                    links += 1
                    _check(step, place.path, last=False)
                    if not has_one_name(name, here, os.fstat(step)):
                        _check(here, place.path, last=True)  # by a hard link to one of root's
                    target = os.readlink(b"", dir_fd=step)
                    left += target.split(b"/")[::-1]
                    os.close(step)
                    step = os.open("/" if target.startswith(b"/") else ".", _STEP, dir_fd=here)
                if links > _LINKS_MAX or not stat.S_ISDIR(os.fstat(step).st_mode):
                    raise errors.ArgumentError(
                        f"{_spelled(step)} on the way to {errors.quote(place.path)} is no directory, or too many links "
                        "are. Name another directory.",
                        "bad_path",
                    )
                os.close(here)
                here = step
            self._known[place.parent] = here
        return self._known[place.parent]

    def _step(self, here: int, name: bytes, path: str) -> int | None:
        """One part of the way to a path; None where it is not there, and is not to be made."""
        try:
            return os.open(name or b".", _STEP, dir_fd=here)
        except FileNotFoundError:
            if not self._make:
                if self._write:
                    _may_write(here)
                else:
                    # What others make there later is theirs, and by then it has been said that nobody else's is there.
                    _check(here, path, last=True, missing=True)
                return None
        with contextlib.suppress(FileExistsError):  # another run was faster
            os.mkdir(name, 0o700, dir_fd=here)
            self._made.append((os.dup(here), name))
        return os.open(name, _STEP, dir_fd=here)


def _draft(directory: int) -> int:
    """The draft in a directory, empty, and locked: one run at a time has it. Raises OSError.

    The directory is not what is locked: who may read it can lock it as well, and keep root waiting for good.
    """
    while True:
        # Nobody else can open it, or have made it.
        draft = os.open(_DRAFT, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory)
        try:
            fcntl.flock(draft, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                # Who had it before has given it its name, or removed it.
                if os.path.samestat(os.fstat(draft), os.stat(_DRAFT, dir_fd=directory, follow_symlinks=False)):
                    os.ftruncate(draft, 0)
                    os.fchmod(draft, 0o600)
                    return draft
        except OSError:
            os.close(draft)
            raise
        os.close(draft)


def _sync(directory: int) -> None:
    held = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.fsync(held)
    finally:
        os.close(held)


def _opened(directory: int | None) -> int:
    if directory is None:
        raise FileNotFoundError
    return directory


def _spelled(descriptor: int) -> str:
    """What the kernel calls it, for messages."""
    return errors.quote(os.readlink(f"/proc/self/fd/{descriptor}"))


def _check(descriptor: int, path: str, last: bool, missing: bool = False) -> None:
    """Raises ArgumentError when somebody else owns what is open, or may write to it. last: whether it is what the file
    lies in, or the file: above, a directory in which everybody may make files of his own, as /tmp, does no harm, for
    what belongs to root there stays where it is. missing: what the path leads to there is not there."""
    status = os.fstat(descriptor)
    trusted = sorted({0, os.geteuid()})
    sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
    if status.st_uid not in trusted:
        reason = f"belongs to the user with the id {status.st_uid}"
    elif stat.S_ISLNK(status.st_mode) or not status.st_mode & _OTHERS_WRITE or (sticky and not last):
        return
    else:
        reason = f"has the mode {stat.S_IMODE(status.st_mode):04o}, so that others may write to it"
    if missing:
        reason += ", and what comes next is not there, so that they could make it. Make it first, as a directory"
    owners = "root" if trusted == [0] else f"root and the user with the id {trusted[-1]}"
    raise errors.ArgumentError(
        f"{errors.quote(path)} is not to be trusted, for {_spelled(descriptor)} {reason}. Nobody but {owners} may "
        "own, or write to, the file and the directories above it.",
        "untrusted",
    )


def _content(place: TrustedPath, directory: int) -> bytes | None:
    """What the file holds, None where there is none."""
    try:
        status = os.stat(place.name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        what = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "no regular file"
        raise errors.ArgumentError(
            f"{errors.quote(place.path)} is {what}. Name the file itself, in a directory that belongs to root.",
            "untrusted",
        )
    # Nobody else can have put something else there by now.
    descriptor = os.open(place.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    with os.fdopen(descriptor, "rb") as file:
        _check(descriptor, place.path, last=True)
        content = file.read(SIZE_LIMIT + 1)
    if len(content) > SIZE_LIMIT:
        raise errors.ArgumentError(
            f"{errors.quote(place.path)} has more than {SIZE_LIMIT} bytes. It is no file of this collection.",
            "bad_path",
        )
    return content


def trusted_file_flow(module: AnsibleModule) -> dict[str, t.Any]:
    """The module's result; see its RETURN. Raises ArgumentError; every file is then as it was."""
    state, check = module.params["state"], module.check_mode
    if not module.params["files"]:
        raise errors.ArgumentError("files is empty. Name at least one file.", "no_files")
    places = [TrustedPath(each["path"]) for each in module.params["files"]]
    wanted = [_wanted(each, state) for each in module.params["files"]]
    if len({os.path.normpath(place.path) for place in places}) < len(places):
        raise errors.ArgumentError("files names a file twice. Name each once.", "bad_path")
    walk = Walk(write=state == "present", make=state == "present" and not check)
    place = places[0]
    try:
        for place in places:
            walk.find(place)
            if state == "present":
                _foresee(place)
        changed = [
            (place, content) for place, content in zip(places, wanted) if state != "read" and content != place.old
        ]
        if not check:
            _carry_out(changed)
    except OSError as error:
        walk.take_back()
        raise _refused(place, error) from error
    except Exception:  # a signal's as well
        walk.take_back()
        raise
    kept = [place.old if state == "read" else content for place, content in zip(places, wanted)]
    return {
        "changed": bool(changed),
        "files": [
            {"path": place.path, "exists": content is not None, "content": _text(content)}
            for place, content in zip(places, kept)
        ],
        "diff": [
            {
                "before_header": errors.clean(place.path, errors.PATH_LIMIT),
                "after_header": errors.clean(place.path, errors.PATH_LIMIT),
                "before": _shown(place.old),
                "after": _shown(content),
            }
            for place, content in changed
        ],
    }


def _wanted(entry: dict[str, t.Any], state: str) -> bytes | None:
    """What the file is to hold."""
    if state != "present":
        if entry["content"] is not None:
            raise errors.ArgumentError(
                f"files[].content is for state=present, and state is {state}. Leave it out, or set the state.",
                "only_with_present",
            )
        return None
    if entry["content"] is None:
        raise errors.ArgumentError("files[].content is missing. It is needed with state=present.", "argument")
    data: bytes = to_bytes(entry["content"], errors="surrogate_or_replace")
    return data


def _text(content: bytes | None) -> str:
    return (content or b"").decode("utf-8", "replace")


def _shown(content: bytes | None) -> str:
    """For the diff, which ansible-playbook prints as it is: names of others are in it."""
    return "\n".join(errors.clean(line, SIZE_LIMIT) for line in (content or b"").split(b"\n"))


def _foresee(place: TrustedPath) -> None:
    """Raises OSError where the file could not be written, as far as one can know."""
    if len(place.name) > _NAME_MAX:
        raise OSError(errno.ENAMETOOLONG, "")
    if place.directory is not None:
        _may_write(place.directory)


def _may_write(directory: int) -> None:
    """Raises OSError when files cannot be made there."""
    if not os.access(f"/proc/self/fd/{directory}", os.W_OK | os.X_OK):
        raise OSError(errno.EACCES, "")


def _carry_out(changed: t.Sequence[tuple[TrustedPath, bytes | None]]) -> None:
    """All or none. Raises ArgumentError, and TransactionError when some could not be put back."""
    for number, (place, content) in enumerate(changed):
        try:
            place.keep_old()
            place.replace(content)
        except Exception as error:  # a signal's as well
            _put_back([done for done, _content in changed[: number + 1]])
            if isinstance(error, OSError):
                raise _refused(place, error) from error
            raise
    ending.hold()
    for place, _content in changed:
        with contextlib.suppress(OSError):
            place.forget_old()


def _put_back(places: t.Sequence[TrustedPath]) -> None:
    """Raises TransactionError, after all were tried."""
    failures = []
    for place in reversed(places):
        try:
            place.put_back()
        except OSError as error:
            failures.append(f"{errors.quote(place.path)} ({os.strerror(error.errno or 0)})")
    if failures:
        raise errors.TransactionError(
            f"These files were changed, or removed, and could not be put back: {', '.join(failures)}. The others are "
            "as they were. Restore each of these from a backup."
        )


def _refused(place: TrustedPath, error: OSError) -> errors.ArgumentError:
    """What is said when the system refuses."""
    advice = "Become root, or name a file where the user who runs this may write. "
    return errors.ArgumentError(
        f"{errors.quote(place.path)}: {os.strerror(error.errno or 0)}. "
        f"{advice if error.errno in (errno.EACCES, errno.EPERM) else ''}No file was changed.",
        "host",
    )
