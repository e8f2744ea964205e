"""Crash an operation at each of its changes of the disk, and check that running it again repairs everything.

`every_crash(root, operation)` runs the operation again and again, each time on a fresh copy of what `root` holds
now. The first crash happens at the first change of the disk, the next one at the second, and so on. A crash is an
exception that is no `Exception`, and every later change fails in the same way: as after `kill -9`, no clean-up
reaches the disk.

- An audit hook sees the changes that Python code makes. What libraries in C++ or Rust write (safetensors, torch,
  ONNX) is not seen, but the directories that are made for it and the renames that follow are.
- After a crash that follows the opening of a file, the same crash is tried with half of that file, which is what a
  kill in the middle of writing leaves.
- The lock of an output folder is no place to crash at: after a kill the system frees the lock, which an exception
  in the middle of filelock may not.
"""

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from helpers.outputs import content
from softcam_hub.output_folder import LOCK

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

PATHS = {
    "open": (0,),
    "os.rename": (0, 1),
    "os.remove": (0,),
    "os.mkdir": (0,),
    "os.rmdir": (0,),
    "os.truncate": (0,),
    "os.link": (1,),
    "os.symlink": (1,),
    "os.utime": (0,),
    "os.chmod": (0,),
}
"""Audit events that change the disk, with the positions of the changed paths among their arguments."""

DIRECTORY = {"os.remove": 1, "os.mkdir": 2, "os.rmdir": 1, "os.utime": 3}
"""Events with a descriptor of the directory to which a relative path belongs, and the position of the descriptor."""


class Crash(BaseException):
    """Stands for a kill. It is not an `Exception`, so that no error handler catches it."""


class Change(NamedTuple):
    """One change of the disk.

    Args:
        event: Name of the audit event.
        path: Changed path below the root.
    """

    event: str
    path: str

    @property
    def kind(self) -> "Change":
        """Return the change without random names, numbers and names of code files, so that similar changes are equal."""
        path = re.sub(r"\.unfinished-[^/.]+", ".unfinished-#", self.path)
        return Change(self.event, re.sub(r"[0-9a-f]{8,}|\d+|\w+(?=\.py$)", "#", path))

    def __str__(self) -> str:
        return f"{self.event} {self.path}"


class _Watch:
    """The changes below a root. Change number `crash_at` and all later changes fail."""

    def __init__(self, root: Path, crash_at: int | None) -> None:
        self.root, self.crash_at = os.path.abspath(root), crash_at
        self.changes: list[Change] = []

    def see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITING):
            return
        position = DIRECTORY.get(event)
        directory = -1 if position is None or len(arguments) <= position else arguments[position]
        paths = [_absolute(arguments[index], directory) for index in PATHS[event]]
        below = [path for path in paths if path == self.root or path.startswith(self.root + os.sep)]
        if not below or (event == "open" and os.path.isdir(below[-1])):
            return
        if os.path.basename(below[-1]) != LOCK:
            self.changes.append(Change(event, os.path.relpath(below[-1], self.root)))
        if self.crash_at is not None and len(self.changes) > self.crash_at:
            raise Crash(self.changes[self.crash_at])


_watch: _Watch | None = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _watch is not None and event in PATHS:
        _watch.see(event, arguments)


def _absolute(path: Any, directory: int) -> str:
    if isinstance(path, int):
        return os.readlink(f"/proc/self/fd/{path}")
    base = "" if directory is None or directory < 0 else os.readlink(f"/proc/self/fd/{directory}")
    return os.path.abspath(os.path.join(base, os.fsdecode(path)))


sys.addaudithook(_hook)  # hooks cannot be removed: this one sleeps while nothing is watched


@contextmanager
def watched(root: Path, crash_at: int | None = None):
    """Record the changes below `root` inside the block, and end the block at the change with a given number."""
    global _watch
    _watch = watch = _Watch(root, crash_at)
    try:
        yield watch.changes
    except Crash:
        pass
    finally:
        _watch = None


def every_crash(
    root: Path,
    operation: Callable[[], Any],
    again: Callable[[], Any] | None = None,
    *,
    grouped: bool = False,
    read: Callable[[Path], Any] = content,
    check: Callable[[], None] = lambda: None,
) -> int:
    """Crash `operation` at every change below `root`, run it again, and compare with an undisturbed run.

    At the end `root` is as an undisturbed run leaves it.

    Args:
        root: Folder that the operation changes; what it holds now is what every run starts from.
        operation: Function without arguments.
        again: Function to run after a crash, where that is not `operation`, such as one that resumes.
        grouped: Crash only at the first and the last of the changes that differ only in random names and numbers.
        read: Function of `root` whose values must be equal, where not every byte of every file is.
        check: Function to run between crash and rerun, which raises where something was lost.

    Returns:
        Number of crashes.
    """
    with tempfile.TemporaryDirectory() as place:
        before = Path(place) / "before"
        if root.exists():
            shutil.copytree(root, before, symlinks=True)
        with watched(root) as changes:
            operation()
        expected, count = read(root), 0
        assert changes, "the operation changes nothing"
        for number in _chosen(changes, grouped):
            writing = number > 0 and changes[number - 1].event == "open"
            for half in (False, True)[: 1 + writing]:
                _restore(root, before)
                _crash(root, operation, number, half)
                moment = f"{changes[number]}{' with half of the last file' if half else ''} (change {number})"
                _rerun(again or operation, check, moment)
                found = read(root)
                differing = _differing(found, expected)
                assert found == expected, f"a crash at {moment} makes a difference: {differing}"
                count += 1
    return count


def _chosen(changes: list[Change], grouped: bool) -> list[int]:
    first: dict[Change, int] = {}
    last: dict[Change, int] = {}
    for number, change in enumerate(changes):
        first.setdefault(change.kind, number)
        last[change.kind] = number
    return sorted({*first.values(), *last.values()}) if grouped else list(range(len(changes)))


def _restore(root: Path, before: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
    if before.exists():
        shutil.copytree(before, root, symlinks=True)


def _crash(root: Path, operation: Callable[[], Any], number: int, half: bool) -> None:
    with watched(root, crash_at=number) as changes:
        operation()
    assert len(changes) > number, f"the operation ended before its change {number}"
    if half:
        written = root / changes[number - 1].path
        if written.is_file():
            os.truncate(written, written.stat().st_size // 2)


def _rerun(again: Callable[[], Any], check: Callable[[], None], moment: str) -> None:
    try:
        check()
        again()
    except Exception as error:
        raise AssertionError(f"after a crash at {moment}: {type(error).__name__}: {error}") from error


def _differing(found: Any, expected: Any) -> Any:
    if not (isinstance(found, dict) and isinstance(expected, dict)):
        return f"{found!r} instead of {expected!r}"
    return sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
