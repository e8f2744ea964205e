"""Checkpoints that are whole or not there, the best model so far, and going on from the last good checkpoint.

- A folder is written under another name, sealed with the digest of each of its files, and renamed when every process
  has finished its part.
- The last two checkpoints are kept. A damaged one is named, and the run goes on from the one before.
- Every checkpoint names the epoch of its best model, which is kept for as long as a checkpoint names it.
- No state of random number generators is needed: every random number of a run follows from (seed, epoch, image) or
  (seed, update, process).
- Model and moving average are safetensors; Accelerate reads its optimizer state with `weights_only=True`.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ..files import draft_path, flush

logger = logging.getLogger(__name__)

PROGRESS, AVERAGE, DIGESTS = "progress.json", "average.safetensors", "digests.json"
KEPT = 2
"""Checkpoints that are kept: the last one, and one to go back to where the last one is damaged."""


class Checkpoints:
    """The checkpoints of a run and its best model.

    Args:
        output: Folder of the run.
        accelerator: Accelerator with model and optimizer prepared.
        average: Exponential moving average of the model, if there is one.
    """

    def __init__(self, output: Path, accelerator: Accelerator, average: nn.Module | None = None) -> None:
        self.folder, self.best = output / "checkpoints", output / "best"
        self.accelerator, self.average = accelerator, average

    def save(self, progress: dict[str, Any]) -> None:
        """Write the state after `progress["step"]` updates, then delete what is not needed any more."""
        whole = self.folder / f"step-{progress['step']:09d}"
        draft = Path(self._from_main(str(draft_path(whole))))
        try:
            if self.accelerator.is_main_process:
                draft.mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            self.accelerator.save_state(str(draft))
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                self._complete(draft, {**progress, "processes": self.accelerator.num_processes})
                replace_folder(draft, whole)
                self._forget(newest=whole)
        except (OSError, RuntimeError, SafetensorError) as error:  # torch raises RuntimeError where a disk is full
            shutil.rmtree(draft, ignore_errors=True)
            last = self.last()
            state = f"the last good checkpoint is {last}" if last else "there is no earlier checkpoint"
            raise OSError(
                f"checkpoint {whole} could not be written: {error}; {state}. Make room, and go on with --resume"
            ) from error
        self.accelerator.wait_for_everyone()

    def _complete(self, draft: Path, progress: dict[str, Any]) -> None:
        if self.average is not None:
            tensors = {name: tensor.contiguous() for name, tensor in self.average.state_dict().items()}
            save_file(tensors, draft / AVERAGE)
        (draft / PROGRESS).write_text(json.dumps(progress))
        seal(draft)

    def _forget(self, newest: Path) -> None:
        """Delete older checkpoints, damaged ones of later steps, and best models that no checkpoint names."""
        whole = self._whole()
        kept = [path for path in whole if path <= newest][-KEPT:]
        for path in self.folder.iterdir():
            if path not in kept:
                shutil.rmtree(path)
        named = {self.best_folder(best["epoch"]) for best in map(best_of, kept) if best}
        for path in self.best.iterdir() if self.best.is_dir() else ():
            if path not in named:
                shutil.rmtree(path)

    def save_best(self, epoch: int, save: Callable[[Path], None]) -> None:
        """Keep the model of an epoch, on the main process.

        Args:
            epoch: Number of the epoch, from 1.
            save: Function that writes the model into a folder.
        """
        draft = draft_path(self.best_folder(epoch))
        try:
            draft.mkdir(parents=True)
            save(draft)
            seal(draft)
            replace_folder(draft, self.best_folder(epoch))
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(draft, ignore_errors=True)
            raise OSError(
                f"the model of epoch {epoch} could not be written to {self.best}: {error}. Make room, and go on with "
                "--resume"
            ) from error

    def best_folder(self, epoch: int) -> Path:
        """Folder of the model of an epoch."""
        return self.best / f"epoch-{epoch:06d}"

    def last(self) -> Path | None:
        """The newest checkpoint that was written to its end, or None."""
        whole = self._whole()
        return whole[-1] if whole else None

    def _whole(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if not path.suffix)

    def load(self) -> dict[str, Any] | None:
        """Restore the newest good checkpoint; return its progress, or None where there is no checkpoint."""
        chosen = self._from_main(self._choose() if self.accelerator.is_main_process else None)
        if chosen is None:
            return None
        if "refusal" in chosen:
            raise ValueError(chosen["refusal"])
        path = Path(chosen["path"])
        try:
            progress = json.loads((path / PROGRESS).read_text())
            if progress["processes"] == self.accelerator.num_processes:
                self.accelerator.load_state(str(path))
                if self.average is not None:
                    self.average.load_state_dict(load_file(path / AVERAGE))
                return progress
        except Exception as error:  # files that were cut off or changed raise errors of many kinds
            raise ValueError(f"{path} is damaged: {error}. Start the run again with --overwrite") from error
        raise ValueError(
            f"{path} was written by {progress['processes']} processes, but this run has "
            f"{self.accelerator.num_processes}: resume with as many"
        )

    def _choose(self) -> dict[str, str] | None:
        """The newest good checkpoint, as `path`, or a `refusal` where all are damaged; None where there is none."""
        self._adopt_best_without_digests()
        whole, problems = self._whole(), []
        for path in reversed(whole):
            problem = self._damage(path)
            if problem is None:
                for each in problems:
                    logger.warning("%s; going on from %s", each, path)
                return {"path": str(path)}
            problems.append(problem)
        if not whole:
            return None
        return {"refusal": f"{'; '.join(problems)}. Start the run again with --overwrite"}

    def _damage(self, path: Path) -> str | None:
        """A sentence on the first damaged file of a checkpoint or its best model, or None."""
        problem = damage(path)
        if problem is None and (best := best_of(path)):
            problem = damage(self.best_folder(best["epoch"]))
        return problem

    def _adopt_best_without_digests(self) -> None:
        """Move the best model of a run made before there were digests, directly in `best`, to its present place."""
        newest = self.last()
        best = best_of(newest) if newest and not (newest / DIGESTS).is_file() else None
        if best and (self.best / "config.json").is_file():
            draft = draft_path(self.best)
            os.replace(self.best, draft)
            self.best.mkdir()
            os.replace(draft, self.best_folder(best["epoch"]))

    def _from_main(self, value: Any) -> Any:
        """The value of the main process, for all."""
        return broadcast_object_list([value])[0]


def best_of(checkpoint: Path) -> dict[str, Any] | None:
    """Value and epoch of the best model that a checkpoint names; None where it names none, or cannot be read."""
    try:
        return json.loads((checkpoint / PROGRESS).read_text())["best"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def seal(folder: Path) -> None:
    """Write the digest of every file of a folder beside the files, and wait until all are on the disk."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != DIGESTS)
    digests = {path.relative_to(folder).as_posix(): _digest(path) for path in files}
    (folder / DIGESTS).write_text(json.dumps(digests, indent=2) + "\n")
    flush(folder)


def damage(folder: Path) -> str | None:
    """Compare a sealed folder with its digests; a sentence on the first file that differs, or None.

    A checkpoint of a run made before there were digests has nothing to compare.
    """
    if not folder.is_dir():
        return f"{folder} is missing"
    file = folder / DIGESTS
    if not file.is_file():
        return None
    try:
        digests = json.loads(file.read_text()).items()
    except (ValueError, AttributeError):
        return f"{file} is damaged: it does not hold the digests that were written"
    for name, digest in digests:
        if not (folder / name).is_file():
            return f"{folder / name} is missing"
        if _digest(folder / name) != digest:
            return f"{folder / name} is damaged: its content is not what was written"
    return None


def replace_folder(draft: Path, target: Path) -> None:
    """Give a whole draft the name of its target."""
    shutil.rmtree(target, ignore_errors=True)
    os.replace(draft, target)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
