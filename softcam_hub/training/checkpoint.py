"""Write checkpoints and the best model, and restore the last good checkpoint.

- A folder is written under a temporary name, sealed with a digest of each file, and renamed when every
  process has finished its part, so that a checkpoint is complete or does not exist.
- The last two checkpoints are kept. If the last one is damaged, a warning names the file, and the run
  continues from the one before.
- A checkpoint names the epoch of the best model so far. That model is kept for as long as a checkpoint names
  it.
- The state of random number generators is not needed: every random number of a run follows from (seed, epoch,
  image) or (seed, update, process).
- Model and moving average are safetensors files. Accelerate reads its optimizer state with
  `weights_only=True`.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ..files import draft_path, flush, read_mapping

logger = logging.getLogger(__name__)

PROGRESS, AVERAGE, DIGESTS = "progress.json", "average.safetensors", "digests.json"

CHECKPOINT, BEST = re.compile(r"step-\d{9}(\.unfinished)?"), re.compile(r"epoch-\d{6}")
"""Names of the folders of checkpoints (with the suffix of earlier releases' drafts) and of best models. What else lies
beside them belongs to the user.
"""

CHECKPOINTS_KEPT = 2
"""The last checkpoint, and one to go back to if it is damaged."""


class Checkpoints:
    """The checkpoints of a run and its best model.

    Args:
        output: Output folder of the run.
        accelerator: Accelerator with model and optimizer prepared.
        average: Exponential moving average of the model, if there is one.
    """

    def __init__(self, output: Path, accelerator: Accelerator, average: nn.Module | None = None) -> None:
        self.folder, self.best = output / "checkpoints", output / "best"
        self.accelerator, self.average = accelerator, average

    def save(self, progress: dict[str, Any]) -> None:
        """Write a checkpoint, then delete what is not needed any more.

        Args:
            progress: Values to return when the checkpoint is loaded, among them the number of updates
                (`step`) and the best model so far (`best`).
        """
        target = self.folder / f"step-{progress['step']:09d}"
        draft = Path(self._from_main_process(str(draft_path(target))))
        with _removed_after_failure(draft, f"checkpoint {target}", f"; {self.describe_last()}"):
            if self.accelerator.is_main_process:
                draft.mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            self.accelerator.save_state(str(draft))
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                if self.average is not None:
                    tensors = {name: tensor.contiguous() for name, tensor in self.average.state_dict().items()}
                    save_file(tensors, draft / AVERAGE)
                values = {**progress, "processes": self.accelerator.num_processes}
                (draft / PROGRESS).write_text(json.dumps(values))
                seal(draft)
                replace_folder(draft, target)
                self._delete_unneeded(newest=target)
        self.accelerator.wait_for_everyone()

    def _delete_unneeded(self, newest: Path) -> None:
        """Delete older checkpoints, damaged ones of later steps, and best models that no checkpoint names."""
        kept = [path for path in self._complete_checkpoints() if path <= newest][-CHECKPOINTS_KEPT:]
        _delete_folders(self.folder, CHECKPOINT, kept)
        delete_best(self.best, {self.best_folder(best["epoch"]) for best in map(read_best, kept) if best})

    def save_best(self, epoch: int, save: Callable[[Path], None]) -> None:
        """Keep the model of an epoch. Only the main process calls this method.

        Args:
            epoch: Number of the epoch, from 1.
            save: Function that writes the model into a folder.
        """
        draft = draft_path(self.best_folder(epoch))
        with _removed_after_failure(draft, f"the model of epoch {epoch} in {self.best}"):
            draft.mkdir(parents=True)
            save(draft)
            seal(draft)
            replace_folder(draft, self.best_folder(epoch))

    def best_folder(self, epoch: int) -> Path:
        """Return the folder of the model of an epoch."""
        return self.best / f"epoch-{epoch:06d}"

    def last(self) -> Path | None:
        """Return the newest complete checkpoint, or None."""
        checkpoints = self._complete_checkpoints()
        return checkpoints[-1] if checkpoints else None

    def describe_last(self) -> str:
        """Name the newest complete checkpoint in half a sentence, for error messages."""
        last = self.last()
        return f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"

    def _complete_checkpoints(self) -> list[Path]:
        paths = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted(path for path in paths if CHECKPOINT.fullmatch(path.name) and not path.suffix and path.is_dir())

    def load(self) -> dict[str, Any] | None:
        """Restore the newest good checkpoint, and return its progress, or None if there is no checkpoint."""
        checkpoint, refusal = self._from_main_process(
            self._choose_checkpoint() if self.accelerator.is_main_process else None
        )
        if refusal:
            raise ValueError(refusal)
        if checkpoint is None:
            return None
        path = Path(checkpoint)
        try:
            progress = read_mapping(path / PROGRESS)
            if progress["processes"] == self.accelerator.num_processes:
                self.accelerator.load_state(str(path))
                if self.average is not None:
                    self.average.load_state_dict(load_file(path / AVERAGE))
                return progress
        except Exception as error:  # files that were cut off or changed raise errors of many kinds
            if not (path / DIGESTS).is_file():
                raise ValueError(f"{path} is damaged: {error}. Start the run again with --overwrite") from error
            raise ValueError(
                f"{path} could not be restored: {error}. Its files are as they were written: check the memory, and "
                "that the versions of torch, timm and accelerate are those of the run, and continue with --resume"
            ) from error
        raise ValueError(
            f"{path} was written by {progress['processes']} processes, but this run has "
            f"{self.accelerator.num_processes}: resume with as many processes"
        )

    def _choose_checkpoint(self) -> tuple[str | None, str]:
        """Return the newest good checkpoint, or None, and a refusal if all checkpoints are damaged."""
        self._move_best_of_older_run()
        checkpoints, problems = self._complete_checkpoints(), []
        for path in reversed(checkpoints):
            # checkpoints of a run made before there were digests come before those with digests
            is_sealed = any((earlier / DIGESTS).is_file() for earlier in checkpoints if earlier <= path)
            problem = find_damage(path, PROGRESS, is_sealed)
            if problem is None and (best := read_best(path)):
                problem = find_damage(self.best_folder(best["epoch"]), "config.json")
            if problem is None:
                for each in problems:
                    logger.warning("%s; continuing from %s", each, path)
                return str(path), ""
            problems.append(problem)
        return None, f"{'; '.join(problems)}. Start the run again with --overwrite" if checkpoints else ""

    def _move_best_of_older_run(self) -> None:
        """Move the best model of a run made before there were digests from `best` itself to its present place."""
        newest = self.last()
        best = read_best(newest) if newest and not (newest / DIGESTS).is_file() else None
        if best and (self.best / "config.json").is_file():
            draft = draft_path(self.best)
            os.replace(self.best, draft)
            self.best.mkdir()
            os.replace(draft, self.best_folder(best["epoch"]))

    def _from_main_process(self, value: Any) -> Any:
        """Return the value of the main process in every process."""
        return broadcast_object_list([value])[0]


@contextmanager
def _removed_after_failure(draft: Path, name: str, hint: str = "") -> Iterator[None]:
    """Remove a folder that could not be written to its end, and say so.

    Args:
        draft: Folder that the block writes.
        name: Name of the folder in the message.
        hint: Further words of the message.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # torch: RuntimeError on a full disk
        shutil.rmtree(draft, ignore_errors=True)
        raise OSError(f"{name} could not be written: {error}{hint}. Make room, and continue with --resume") from error


def read_best(checkpoint: Path) -> dict[str, Any] | None:
    """Return value and epoch of the best model that a checkpoint names, or None."""
    try:
        return read_mapping(checkpoint / PROGRESS)["best"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def seal(folder: Path) -> None:
    """Write the digests of the files of a folder beside them, and wait until all files are on the disk."""
    digests = {path.relative_to(folder).as_posix(): _digest(path) for path in _files_of(folder)}
    (folder / DIGESTS).write_text(json.dumps(digests, indent=2) + "\n")
    flush(folder)


def find_damage(folder: Path, needed: str, is_sealed: bool = False) -> str | None:
    """Compare a folder with its digests, and describe the first file that differs, or return None.

    Args:
        folder: Folder of a checkpoint or of a model.
        needed: Name of a file without which the folder is useless.
        is_sealed: Require digests. Checkpoints of runs made before there were digests have nothing to compare.
    """
    file = folder / DIGESTS
    if not (folder / needed).is_file():
        return f"{folder / needed if folder.is_dir() else folder} is missing"
    if not file.is_file():
        return f"{file} is missing" if is_sealed else None
    try:
        digests = read_mapping(file)
    except ValueError:
        digests = {}
    if not {path.relative_to(folder).as_posix() for path in _files_of(folder)} <= digests.keys():
        return f"{file} is damaged: it does not hold the digests that were written"
    for name, digest in digests.items():
        if not (folder / name).is_file():
            return f"{folder / name} is missing"
        if _digest(folder / name) != digest:
            return f"{folder / name} is damaged: its content is not what was written"
    return None


def _files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != DIGESTS)


def delete_best(folder: Path, kept: Collection[Path] = ()) -> None:
    """Delete the best models of a run, and the folder that holds them if nothing else is in it."""
    _delete_folders(folder, BEST, kept)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _delete_folders(folder: Path, name: re.Pattern[str], kept: Collection[Path]) -> None:
    for path in folder.iterdir() if folder.is_dir() else ():
        if name.fullmatch(path.name) and path.is_dir() and path not in kept:
            shutil.rmtree(path)


def replace_folder(draft: Path, target: Path) -> None:
    """Give a complete draft the name of its target."""
    shutil.rmtree(target, ignore_errors=True)
    os.replace(draft, target)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
