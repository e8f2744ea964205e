"""Checkpoints that are whole or not there, and going on from the last one.

- A checkpoint is written under another name and renamed when every process has finished its part.
- No state of random number generators is needed: every random number of a run follows from (seed, epoch, image) or
  (seed, update, process).
- Model and moving average are safetensors; Accelerate reads its optimizer state with `weights_only=True`.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import nn

PROGRESS, AVERAGE = "progress.json", "average.safetensors"


class Checkpoints:
    """The checkpoints of a run, of which the last whole one is kept.

    Args:
        folder: where they are.
        accelerator: with model and optimizer prepared.
        average: the exponential moving average of the model, if there is one.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, average: nn.Module | None = None) -> None:
        self.folder, self.accelerator, self.average = folder, accelerator, average

    def save(self, progress: dict[str, Any]) -> None:
        """Write the state after `progress["step"]` updates, then drop older checkpoints."""
        whole = self.folder / f"step-{progress['step']:09d}"
        draft = whole.with_suffix(".unfinished")
        if self.accelerator.is_main_process:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(draft))
        if self.accelerator.is_main_process:
            if self.average is not None:
                tensors = {name: tensor.contiguous() for name, tensor in self.average.state_dict().items()}
                save_file(tensors, draft / AVERAGE)
            progress = {**progress, "processes": self.accelerator.num_processes}
            (draft / PROGRESS).write_text(json.dumps(progress))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            shutil.rmtree(whole, ignore_errors=True)
            draft.rename(whole)
            for other in self.folder.iterdir():
                if other != whole:
                    shutil.rmtree(other)
        self.accelerator.wait_for_everyone()

    def last(self) -> Path | None:
        """The newest whole checkpoint."""
        whole = sorted(path for path in self.folder.glob("step-*") if not path.suffix)
        return whole[-1] if whole else None

    def load(self) -> dict[str, Any] | None:
        """Restore the newest whole checkpoint; its progress, or None where there is none."""
        last = self.last()
        if last is None:
            return None
        try:
            progress = json.loads((last / PROGRESS).read_text())
            if progress["processes"] == self.accelerator.num_processes:
                self.accelerator.load_state(str(last))
                if self.average is not None:
                    self.average.load_state_dict(load_file(last / AVERAGE))
                return progress
        except Exception as error:  # files that were cut off or changed raise errors of many kinds
            raise ValueError(f"{last} is damaged: {error}. Start the run again with --overwrite") from error
        raise ValueError(
            f"{last} was written by {progress['processes']} processes, but this run has "
            f"{self.accelerator.num_processes}: resume with as many"
        )
