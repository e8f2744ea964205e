"""Training with Accelerate: epochs, evaluation, checkpoints.

- Every random number follows from (seed, epoch, image) or (seed, update, process), so that a run that was killed and
  resumed ends with the same bits as one that was not.
- One update sees the same images whatever the number of processes and accumulated batches, if their product with the
  batch size is the same.
"""

import math
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, broadcast, tqdm
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from .checkpoint import Checkpoints
from .config import Config
from .metrics import prediction_statistics, score_model
from .objective import Objective, Step, balanced_weights
from .optimization import EpochSampler, make_optimizer, make_schedule, seed_of
from .reporting import JSONLines

LOWER_IS_BETTER = ("loss", "calibration_error", "completeness_error", "disagreement")


class NotFinite(ArithmeticError):
    """The loss became NaN or infinite, or the weights did."""


class Training:
    """A run under way.

    Args:
        config: its settings.
        accelerator: of this process.
        model: the network.
        train: samples of the training split.
        validation: samples of the validation split, if there is one.
        labels: (N,) or (N, C) of the training split, for balancing; None where they are not known beforehand.
        output: folder of the run.
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
        weights = None if settings.balance == "none" else _class_weights(labels, model)
        objective = Objective(model, settings.label_smoothing, weights if settings.balance == "loss" else None)
        if config.run.channels_last:
            objective = objective.to(memory_format=torch.channels_last)
        self.average = None if settings.ema is None else ModelEmaV3(objective.to(accelerator.device), settings.ema)
        if config.run.compile:
            objective.compile()
        accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=_has_unused_parameters(model))
        self.objective, self.optimizer = accelerator.prepare(objective, make_optimizer(model, settings))
        self.sampler = None
        self.loader = self._train_loader(train, labels, weights)
        self.schedule = make_schedule(self.optimizer, settings, self.updates)
        self.validation = None if validation is None else self._loader(validation)
        self.checkpoints = Checkpoints(output, accelerator, self.average)
        self.epoch, self.step, self.best, self.began = 0, 0, None, time.monotonic()
        self.totals: Counter[str] = Counter()

    @property
    def network(self) -> nn.Module:
        """The bare model with the newest weights."""
        return self.accelerator.unwrap_model(self.objective, keep_torch_compile=False).model

    @property
    def result(self) -> nn.Module:
        """The bare model that counts: the moving average where there is one."""
        return self.network if self.average is None else self.average.module.model

    @property
    def seconds(self) -> float:
        """What the run took so far, with the processes before this one but without the time between them."""
        return time.monotonic() - self.began

    def resume(self) -> None:
        """Go on from the last checkpoint, or begin again where there is none."""
        progress = self.checkpoints.load()
        if progress is not None:
            self.epoch, self.step, self.best = progress["epoch"], progress["step"], progress["best"]
            self.began -= progress["seconds"]
            if self.accelerator.is_main_process:  # sums over all processes; the others begin at zero
                self.totals = Counter(progress["totals"])
        for tracker in self.accelerator.trackers:
            if isinstance(tracker, JSONLines):
                tracker.rewind(self.step)

    def fit(self) -> None:
        """Train until the last epoch is over."""
        while self.epoch < self.config.optimization.epochs:
            self._train_epoch()
            row = {"epoch": self.epoch + 1, **self._training_means()}
            if self.validation is not None:
                self._share_statistics()
                scores = score_model(self.result, self.validation, self.accelerator)
                row |= {f"validation_{name}": value for name, value in scores.items()}
                self.check_score("the validation loss", row["validation_loss"])
                self._keep_best(row)
            self.accelerator.log(row, step=self.step)
            self._say(row)
            self.epoch, self.totals = self.epoch + 1, Counter()
            self._save()

    def _share_statistics(self) -> None:
        """BatchNorm's statistics of the main process, which saves them, for all: each has those of its own images."""
        for buffer in self.result.buffers():
            broadcast(buffer)

    def _train_epoch(self) -> None:
        settings = self.config.optimization
        done = self.step - self.epoch * self.updates
        self.objective.train()
        bar = tqdm(total=self.updates, initial=done, desc=f"epoch {self.epoch + 1}/{settings.epochs}", leave=False)
        for micro, batch in self._batches(done * settings.accumulation):
            index = batch.pop("index")
            torch.manual_seed(seed_of(self.config.run.seed, self.step, micro, self.accelerator.process_index))
            with self.accelerator.accumulate(self.objective):
                step = self.objective(**batch)
                self._check(step.loss, index)
                self._update(step.loss)
            self._count(step, batch["labels"])
            if self.accelerator.sync_gradients:
                self._after_update(step.loss, bar)
        bar.close()

    def _update(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)
        if self.accelerator.sync_gradients and self.config.optimization.clip_grad is not None:
            self.accelerator.clip_grad_norm_(self.objective.parameters(), self.config.optimization.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _after_update(self, loss: Tensor, bar: Any) -> None:
        self.step += 1
        self.schedule(self.step)
        if self.average is not None:
            self.average.update(self.accelerator.unwrap_model(self.objective, keep_torch_compile=False), self.step)
        bar.update()
        if self.step % self.config.run.log_steps == 0:
            values = {"loss": float(loss.detach()), "lr": max(group["lr"] for group in self.optimizer.param_groups)}
            bar.set_postfix(loss=f"{values['loss']:.3f}")
            self.accelerator.log(values, step=self.step)
        within = self.step % self.updates
        if within and within % self.config.run.checkpoint_steps == 0:
            self._save()

    def _check(self, loss: Tensor, index: Tensor) -> None:
        if not torch.isfinite(loss):
            raise NotFinite(
                f"the loss is {float(loss.detach())} at update {self.step + 1} (epoch {self.epoch + 1}), on the images "
                f"{index.tolist()} of the training split; {self._last_good()}. Lower lr, set clip_grad, or look at "
                "these images"
            )

    def check_score(self, name: str, value: float) -> None:
        """Stop where what was learnt gives no finite score."""
        if not math.isfinite(value):
            where = f"after update {self.step}; {self._last_good()}"
            raise NotFinite(f"{name} is {value} {where}. Lower lr or set clip_grad")

    def _check_weights(self) -> None:
        finite = torch.stack([weight.detach().isfinite().all() for weight in self.network.parameters()])
        self.check_score("a weight", 0.0 if finite.all() else math.nan)

    def _last_good(self) -> str:
        last = self.checkpoints.last()
        return f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"

    def _count(self, step: Step, labels: Tensor) -> None:
        counts = prediction_statistics(self.network, step.logits.detach(), step.teacher_logits, labels)
        counts["loss"] = step.loss.detach().expand(len(labels))
        sums = torch.stack([values.float().sum() for values in counts.values()]).tolist()  # waits for the device once
        self.totals.update(dict(zip(counts, sums, strict=True)), images=len(labels))

    def _summed(self) -> dict[str, float]:
        """The totals of all processes together."""
        names = sorted(self.totals)
        values = torch.tensor([self.totals[name] for name in names], dtype=torch.float64)
        gathered = self.accelerator.reduce(values.to(self.accelerator.device), "sum")
        return dict(zip(names, gathered.tolist(), strict=True))

    def _training_means(self) -> dict[str, float]:
        totals = self._summed()
        images = totals.pop("images")
        return {f"train_{name}": value / images for name, value in totals.items()}

    def _save(self) -> None:
        self._check_weights()
        progress = {"epoch": self.epoch, "step": self.step, "best": self.best, "seconds": self.seconds}
        self.checkpoints.save({**progress, "totals": self._summed() if self.totals else {}})

    def _keep_best(self, row: dict[str, Any]) -> None:
        lower, value = self.config.run.select in LOWER_IS_BETTER, row[f"validation_{self.config.run.select}"]
        before = math.nan if self.best is None else self.best["value"]
        if math.isnan(before) or (value < before if lower else value > before):
            self.best = {"value": value, "epoch": row["epoch"]}
            self.keep_result(row["epoch"])

    def keep_result(self, epoch: int) -> None:
        """Write the model that counts, as it is after an epoch, to where `best_folder` finds it."""
        if self.accelerator.is_main_process:
            self.checkpoints.save_best(epoch, self.result.save_pretrained)

    def _say(self, row: dict[str, Any]) -> None:
        shown = {k: v for k, v in row.items() if k.endswith(("loss", "accuracy", "auc", "disagreement"))}
        text = "  ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in shown.items())
        self.accelerator.print(f"epoch {row['epoch']}/{self.config.optimization.epochs}  {text}")

    def _batches(self, skip: int) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """(number, batch) of this epoch from batch number `skip` on."""
        if self.sampler is None:
            return self._streamed(skip)
        self.sampler.skip = skip * self.config.optimization.batch_size * self.accelerator.num_processes
        self.loader.set_epoch(self.epoch)
        return enumerate(self.loader, skip)

    def _streamed(self, skip: int) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """As above, from a stream that is read on and on from epoch to epoch."""
        accumulation = self.config.optimization.accumulation
        if self.stream is None:
            self.images.batches_seen = self.step * accumulation * self.accelerator.num_processes
            self.stream = iter(self.loader)
        return zip(range(skip, self.updates * accumulation), self.stream, strict=False)

    def _train_loader(self, train: Dataset, labels: Any, weights: Tensor | None) -> Any:
        settings = self.config.optimization
        together = settings.batch_size * self.accelerator.num_processes
        if isinstance(train, IterableDataset):
            if settings.steps_per_epoch is None:
                raise ValueError("streaming data has no length: say how long an epoch is with --steps_per_epoch")
            self.updates, self.images, self.stream = settings.steps_per_epoch, train, None
            return self._loader(train)
        self.updates = len(train) // (together * settings.accumulation)
        if not self.updates:
            raise ValueError(
                f"the training split has {len(train)} images, fewer than one update takes: {settings.batch_size} x "
                f"{settings.accumulation} accumulated x {self.accelerator.num_processes} processes; lower batch_size"
            )
        chances = None
        if settings.balance == "sampling":
            if labels.ndim == 2:
                raise ValueError("balance='sampling' needs one label per image: use balance='loss'")
            chances = weights[torch.as_tensor(labels)]
        take = self.updates * settings.accumulation * together
        self.sampler = EpochSampler(len(train), take, self.config.run.seed, chances)
        return self._loader(train, sampler=self.sampler, drop_last=True)

    def _loader(self, samples: Dataset, **options: Any) -> Any:
        return prepare_loader(samples, self.config, self.accelerator, **options)


def prepare_loader(samples: Dataset, config: Config, accelerator: Accelerator, **options: Any) -> Any:
    """Batches of samples, each process its own share."""
    whole = hasattr(samples, "__getitems__")  # gives batches that are put together already
    workers = 0 if whole else config.run.workers
    loader = DataLoader(
        samples,
        config.optimization.batch_size,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=accelerator.device.type == "cuda",
        collate_fn=_as_it_is if whole else None,
        **options,
    )
    return accelerator.prepare_data_loader(loader)


def _as_it_is(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return batch


def _class_weights(labels: Any, model: nn.Module) -> Tensor:
    if labels is None:
        raise ValueError("balance needs to count the classes before training, which streaming data does not allow")
    classes = model.vanilla.num_classes if hasattr(model, "vanilla") else model.num_classes
    return balanced_weights(labels, classes)


def _has_unused_parameters(model: nn.Module) -> bool:
    """Class-token networks may keep parameters that only the token used; others must not pay for looking."""
    anatomy = getattr(model, "anatomy", None)
    return anatomy is not None and anatomy.kind == "tokens"
