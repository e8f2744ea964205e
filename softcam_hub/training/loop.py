"""The training loop with Accelerate: epochs, validation, checkpoints.

- Every random number follows from (seed, epoch, image) or (seed, update, process), so that a run that was
  killed and resumed ends with the same bits as a run without a break.
- An update sees the same images whatever the number of processes and of accumulated batches, if their product
  with the batch size is the same.
"""

import hashlib
import math
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, broadcast, tqdm
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from .checkpoint import Checkpoints
from .config import LOWER_IS_BETTER, Config
from .larger_images import LargerImages
from .loaders import prepare_loader
from .metrics import prediction_statistics, score_model
from .objective import Objective, Step
from .optimization import EpochSampler, class_balancing_weights, derive_seed, make_optimizer, make_schedule
from .reporting import JSONLines, format_scores


class NotFinite(ArithmeticError):
    """The loss, a score or a weight became NaN or infinite."""


class Training:
    """A training run in progress.

    Args:
        config: Settings of the run.
        accelerator: Accelerator of this process.
        model: Network to train.
        train: Samples of the training split.
        validation: Samples of the validation split, if there is one.
        labels: Labels (N,) or (N, C) of the training split, or None for a stream.
        output: Output folder of the run.
    """

    def __init__(
        self,
        config: Config,
        accelerator: Accelerator,
        model: nn.Module,
        train: Dataset,
        validation: Dataset | None,
        labels: Any,
        output: Path,
    ) -> None:
        self.config, self.accelerator, self.output = config, accelerator, output
        settings = config.optimization
        weights = None
        if settings.balance != "none":
            num_classes = model.vanilla.num_classes if hasattr(model, "vanilla") else model.num_classes
            weights = class_balancing_weights(labels, num_classes)

        size = config.model.teach_from_size
        self.larger = None if size is None else LargerImages(model.to(accelerator.device), size)

        # the network: each of these steps builds on the one before
        objective = Objective(model, settings.label_smoothing, weights if settings.balance == "loss" else None)
        if config.run.channels_last:
            objective = objective.to(memory_format=torch.channels_last)
        self.average = None if settings.ema is None else ModelEmaV3(objective.to(accelerator.device), settings.ema)
        if config.run.compile:
            objective.compile()
        accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=_has_unused_parameters(model))
        self.objective, self.optimizer = accelerator.prepare(objective, make_optimizer(model, settings))

        # the data
        frequencies = weights[torch.as_tensor(labels)] if settings.balance == "sampling" else None
        self.loader = self._make_train_loader(train, frequencies)
        self.validation = None if validation is None else prepare_loader(validation, config, accelerator)

        # the progress
        self.schedule = make_schedule(self.optimizer, settings, self.updates)
        self.checkpoints = Checkpoints(output, accelerator, self.average)
        self.epoch, self.step, self.best, self.began = 0, 0, None, time.monotonic()
        self.totals: Counter[str] = Counter()
        self.data = None if labels is None else digest_of_labels(labels)

    def _make_train_loader(self, train: Dataset, frequencies: Tensor | None) -> Any:
        """Prepare the loader of the training split, and set the number of updates in an epoch.

        Args:
            train: Samples of the training split.
            frequencies: Relative frequencies (N,) with which images are drawn, if classes are balanced in
                this way.
        """
        settings = self.config.optimization
        if isinstance(train, IterableDataset):
            self.updates, self.sampler = settings.steps_per_epoch, None
            self.stream_images, self.stream = train, None
            return prepare_loader(train, self.config, self.accelerator)
        images_per_update = settings.batch_size * self.accelerator.num_processes * settings.accumulation
        self.updates = len(train) // images_per_update
        length = self.updates * images_per_update
        self.sampler = EpochSampler(len(train), length, self.config.run.seed, frequencies)
        return prepare_loader(train, self.config, self.accelerator, sampler=self.sampler, drop_last=True)

    @property
    def network(self) -> nn.Module:
        """Bare model with the newest weights."""
        return self._bare_objective.model

    @property
    def _bare_objective(self) -> nn.Module:
        return self.accelerator.unwrap_model(self.objective, keep_torch_compile=False)

    @property
    def result(self) -> nn.Module:
        """Bare model that is evaluated and saved: the moving average if there is one."""
        return self.network if self.average is None else self.average.module.model

    @property
    def seconds(self) -> float:
        """Duration of the run, with the processes before this one but without the breaks between them."""
        return time.monotonic() - self.began

    def resume(self) -> None:
        """Continue from the last checkpoint, or from the beginning if there is none."""
        progress = self.checkpoints.load()
        if progress is not None:
            if progress.get("data", self.data) != self.data:
                raise ValueError(
                    f"cannot resume: the training images of {self.config.data.data} or their labels are not those with "
                    "which the run began; use the same data, or --overwrite"
                )
            if self.larger is not None and progress.get("teacher") != self.larger.digest:
                raise ValueError(
                    f"cannot resume: {self.config.model.init} draws the maps of larger images, and is not what it was "
                    "when the run began; put it back, or --overwrite"
                )
            self.epoch, self.step, self.best = progress["epoch"], progress["step"], progress["best"]
            self.began -= progress["seconds"]
            if self.accelerator.is_main_process:  # totals are sums over all processes: others begin at zero
                self.totals = Counter(progress["totals"])
        for tracker in self.accelerator.trackers:
            if isinstance(tracker, JSONLines):
                tracker.rewind(self.step)

    def fit(self) -> None:
        """Train until the end of the last epoch."""
        while self.epoch < self.config.optimization.epochs:
            self._train_epoch()
            row = {"epoch": self.epoch + 1, **self._training_means()}
            if self.validation is not None:
                self._share_statistics()
                scores = score_model(self.result, self.validation, self.accelerator)
                row |= {f"validation_{name}": value for name, value in scores.items()}
                self.check_finite("the validation loss", row["validation_loss"])
                self._keep_if_best(row)
            self.accelerator.log(row, step=self.step)
            self._print(row)
            self.epoch, self.totals = self.epoch + 1, Counter()
            self._save()

    def _share_statistics(self) -> None:
        """Give all processes the BatchNorm statistics of the main process, whose model is saved."""
        for buffer in self.result.buffers():
            broadcast(buffer)

    def _train_epoch(self) -> None:
        settings = self.config.optimization
        updates_done = self.step - self.epoch * self.updates
        self.objective.train()
        title = f"epoch {self.epoch + 1}/{settings.epochs}"
        bar = tqdm(total=self.updates, initial=updates_done, desc=title, leave=False)
        seed, process = self.config.run.seed, self.accelerator.process_index
        for number, batch in self._batches(updates_done * settings.accumulation):
            index = batch.pop("index")
            torch.manual_seed(derive_seed(seed, self.step, number, process))
            with self.accelerator.accumulate(self.objective):
                if self.larger is not None:
                    with self.accelerator.autocast():
                        batch["larger_maps"] = self.larger.maps(batch["pixel_values"])
                step = self.objective(**batch)
                self._check_loss(step.loss, index)
                self._update(step.loss)
            self._count(step, batch["labels"])
            if self.accelerator.sync_gradients:
                self._after_update(step.loss, bar)
        bar.close()

    def _batches(self, skip: int) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Yield (number, batch) of the epoch, without the first `skip` batches."""
        settings = self.config.optimization
        if self.sampler is not None:
            self.sampler.skip = skip * settings.batch_size * self.accelerator.num_processes
            self.loader.set_epoch(self.epoch)
            return enumerate(self.loader, skip)

        # one stream is read from epoch to epoch
        if self.stream is None:
            self.stream_images.batches_seen = self.step * settings.accumulation * self.accelerator.num_processes
            self.stream = iter(self.loader)
        return zip(range(skip, self.updates * settings.accumulation), self.stream, strict=False)

    def _update(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)
        if self.accelerator.sync_gradients and self.config.optimization.clip_grad is not None:
            self.accelerator.clip_grad_norm_(self.objective.parameters(), self.config.optimization.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _after_update(self, loss: Tensor, bar: Any) -> None:
        """Count the update, set the next learning rate, and write average, log and checkpoint."""
        self.step += 1
        self.schedule(self.step)
        if self.average is not None:
            self.average.update(self._bare_objective, self.step)
        bar.update()
        if self.step % self.config.run.log_steps == 0:
            lr = max(group["lr"] / group.get("lr_scale", 1.0) for group in self.optimizer.param_groups)
            values = {"loss": float(loss.detach()), "lr": lr}
            bar.set_postfix(loss=f"{values['loss']:.3f}")
            self.accelerator.log(values, step=self.step)
        within_epoch = self.step % self.updates
        if within_epoch and within_epoch % self.config.run.checkpoint_steps == 0:
            self._save()

    def _check_loss(self, loss: Tensor, index: Tensor) -> None:
        if not torch.isfinite(loss):
            raise NotFinite(
                f"the loss is {float(loss.detach())} at update {self.step + 1} (epoch {self.epoch + 1}), on "
                f"the images {index.tolist()} of the training split; {self.checkpoints.describe_last()}. "
                "Lower lr, set clip_grad, or look at these images"
            )

    def check_finite(self, name: str, value: float) -> None:
        """Stop the run if a value is NaN or infinite.

        Args:
            name: Name of the value in the message, such as "the test loss".
            value: Value to check.
        """
        if not math.isfinite(value):
            raise NotFinite(
                f"{name} is {value} after update {self.step}; {self.checkpoints.describe_last()}. Lower lr "
                "or set clip_grad"
            )

    def _count(self, step: Step, labels: Tensor) -> None:
        """Add the statistics of a batch to the totals of the epoch."""
        statistics = prediction_statistics(self.network, step.logits.detach(), step.teacher_logits, labels)
        statistics["loss"] = step.loss.detach().expand(len(labels))
        # one tensor, so that the loop waits for the device only once
        sums = torch.stack([values.float().sum() for values in statistics.values()]).tolist()
        self.totals.update(dict(zip(statistics, sums, strict=True)), images=len(labels))

    def _sum_totals(self) -> dict[str, float]:
        """Return the totals of all processes together."""
        names = sorted(self.totals)
        values = torch.tensor([self.totals[name] for name in names], dtype=torch.float64)
        sums = self.accelerator.reduce(values.to(self.accelerator.device), "sum")
        return dict(zip(names, sums.tolist(), strict=True))

    def _training_means(self) -> dict[str, float]:
        totals = self._sum_totals()
        images = totals.pop("images")
        return {f"train_{name}": value / images for name, value in totals.items()}

    def _save(self) -> None:
        """Write a checkpoint, unless a weight is NaN or infinite."""
        finite = torch.stack([weight.detach().isfinite().all() for weight in self.network.parameters()])
        self.check_finite("a weight", 0.0 if finite.all() else math.nan)
        totals = self._sum_totals() if self.totals else {}
        progress = {"epoch": self.epoch, "step": self.step, "best": self.best, "seconds": self.seconds}
        if self.larger is not None:
            progress["teacher"] = self.larger.digest
        self.checkpoints.save({**progress, "totals": totals, "data": self.data})

    def _keep_if_best(self, row: dict[str, Any]) -> None:
        value = row[f"validation_{self.config.run.select}"]
        best = math.nan if self.best is None else self.best["value"]
        is_better = value < best if self.config.run.select in LOWER_IS_BETTER else value > best
        if math.isnan(best) or is_better:
            self.best = {"value": value, "epoch": row["epoch"]}
            self.keep_result(row["epoch"])

    def keep_result(self, epoch: int) -> None:
        """Save the resulting model, as it is after an epoch, where `Checkpoints.best_folder` finds it."""
        if self.accelerator.is_main_process:
            self.checkpoints.save_best(epoch, self.result.save_pretrained)

    def _print(self, row: dict[str, Any]) -> None:
        """Print the most important values of an epoch."""
        shown = {k: v for k, v in row.items() if k.endswith(("loss", "accuracy", "auc", "disagreement"))}
        self.accelerator.print(f"epoch {row['epoch']}/{self.config.optimization.epochs}  {format_scores(shown)}")


def digest_of_labels(labels: Any) -> str:
    """Return a digest of the labels of all training images in their order, by which other data are recognised."""
    values = np.asarray(labels).astype(np.int64)
    return hashlib.sha256(f"{values.shape}".encode() + values.tobytes()).hexdigest()


def _has_unused_parameters(model: nn.Module) -> bool:
    """Tell whether some parameters may get no gradient, such as those of a class token."""
    anatomy = getattr(model, "anatomy", None)
    return anatomy is not None and anatomy.head_type == "tokens"
