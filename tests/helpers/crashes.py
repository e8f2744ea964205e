"""Kill an operation at each of its changes of the disk, and check that running it again repairs everything.

`every_crash(root, operation)` runs the operation twice from what `root` holds now. The first run lists the changes of
the disk; during the second one, the folder is copied before every change. A copy is what `kill -9` at that moment
leaves: nothing of what the program would still have done, and no clean-up. Each copy is then put in the place of `root`
in turn, and the operation is run again there.

- An audit hook sees the changes that Python code makes. What libraries in C++ or Rust write (safetensors, torch,
  ONNX) is not seen, but the directories that are made for it and the renames that follow are.
- After a kill that follows the opening of a file, the same kill is tried with half of that file, which is what a kill
  in the middle of writing leaves.
- The lock of an output folder is no place to kill at: the system frees the lock of a killed program.
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
    """The changes below a root, and copies of it as it is before the changes of some numbers."""

    def __init__(self, root: Path, copies: dict[int, Path]) -> None:
        self.root, self.copies = os.path.abspath(root), copies
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
        if os.path.basename(below[-1]) == LOCK:
            return
        copy = self.copies.get(len(self.changes))
        if copy is not None and os.path.exists(self.root):
            shutil.copytree(self.root, copy, symlinks=True)
        self.changes.append(Change(event, os.path.relpath(below[-1], self.root)))


_watch: _Watch | None = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    global _watch
    watch = _watch
    if watch is not None and event in PATHS:
        _watch = None  # what the watch itself does is no change of the operation
        try:
            watch.see(event, arguments)
        finally:
            _watch = watch


def _absolute(path: Any, directory: int) -> str:
    if isinstance(path, int):
        return os.readlink(f"/proc/self/fd/{path}")
    base = "" if directory is None or directory < 0 else os.readlink(f"/proc/self/fd/{directory}")
    return os.path.abspath(os.path.join(base, os.fsdecode(path)))


sys.addaudithook(_hook)  # hooks cannot be removed: this one sleeps while nothing is watched


@contextmanager
def watched(root: Path, copies: dict[int, Path] | None = None):
    """Record the changes below `root` inside the block, and copy it to `copies[n]` before change number n."""
    global _watch
    _watch = watch = _Watch(root, copies or {})
    try:
        yield watch.changes
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
    """Kill `operation` at every change below `root`, run it again, and compare with an undisturbed run.

    At the end `root` is as an undisturbed run leaves it.

    Args:
        root: Folder that the operation changes; what it holds now is what every run starts from.
        operation: Function without arguments.
        again: Function to run after a kill, where that is not `operation`, such as one that resumes.
        grouped: Kill only at the first and the last of the changes that differ only in random names and numbers.
        read: Function of `root` whose values must be equal, where not every byte of every file is.
        check: Function to run between kill and rerun, which raises where something was lost.

    Returns:
        Number of kills.
    """
    with tempfile.TemporaryDirectory() as place:
        before = Path(place) / "before"
        if root.exists():
            shutil.copytree(root, before, symlinks=True)
        with watched(root) as changes:
            operation()
        expected, count = read(root), 0
        assert changes, "the operation changes nothing"
        copies = {number: Path(place) / str(number) for number in _chosen(changes, grouped)}
        _restore(root, before)
        with watched(root, copies) as same:
            operation()
        assert [change.kind for change in same] == [change.kind for change in changes], "two runs change other things"
        for number, copy in copies.items():
            writing = number > 0 and same[number - 1].event == "open"
            for half in (False, True)[: 1 + writing]:
                _restore(root, copy)
                if half:
                    _halve(root / same[number - 1].path)
                moment = f"{same[number]}{' with half of the last file' if half else ''} (change {number})"
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


def _halve(file: Path) -> None:
    if file.is_file():
        os.truncate(file, file.stat().st_size // 2)


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
