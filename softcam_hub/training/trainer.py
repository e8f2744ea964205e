"""Extend the `Trainer` of transformers: weight decay, model card, and explanation scores in its log.

- `Trainer` trains the models of this package as it is. These extensions are optional.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..files import write_text
from ..hub.cards import METRICS, ModelRecord, Row, render_trained_card
from ..models.evaluation_mode import evaluation_mode
from .metrics import map_statistics
from .reporting import write_metrics

CARD_ARGUMENTS = (
    *("learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps"),
    *("optim", "weight_decay", "lr_scheduler_type", "warmup_steps", "seed", "bf16", "fp16"),
)
"""Training arguments that the card reports."""

CARD_OPTIONS = ("mode", "temperature", "selective", "l1", "l2", "freeze_backbone")
"""Entries of the model's configuration that the card reports."""


class EvidenceTrainer(Trainer):
    """`Trainer` without weight decay of CAPE's temperature, and with a model card of this package.

    `Trainer` chooses by name which parameters decay, and spares only biases and norms. Its weight decay would
    draw T' towards 1, the initial value. `push_to_hub` publishes the card that `create_model_card` writes.
    """

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Return the names of the parameters with weight decay."""
        return [name for name in super().get_decay_parameter_names(model) if not name.endswith("log_temperature")]

    def create_model_card(
        self, license: str | None = None, model_name: str | None = None, dataset: str | None = None, **_: Any
    ) -> None:
        """Write README.md and metrics.json of the last evaluation into the output folder.

        Args:
            license: License of the weights, as the Hub spells it.
            model_name: Title of the card. The default is the architecture.
            dataset: Hub id or name of the training data.
        """
        if not self.is_world_process_zero():
            return
        folder = Path(self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        config = self.accelerator.unwrap_model(self.model).config.to_dict()
        arguments = self.args.to_dict()
        settings = {name: arguments[name] for name in CARD_ARGUMENTS if name in arguments}
        settings |= {name: config[name] for name in CARD_OPTIONS if name in config}
        metrics = self._last_metrics(dataset)
        record = ModelRecord(config, metrics, settings, license=license, trainer=type(self).__name__)
        write_text(folder / "README.md", render_trained_card(record, model_name or ""))
        write_metrics(metrics, folder / METRICS)

    def _last_metrics(self, dataset: str | None) -> Row:
        """Return the scores of the last evaluation, with the data, time and versions that they belong to."""
        metrics: Row = {"data": dataset} if dataset else {}
        history = self.state.log_history
        seconds = [entry["train_runtime"] for entry in history if "train_runtime" in entry]
        if seconds:
            metrics["seconds"] = seconds[-1]
        last_step = max((entry["step"] for entry in history if "eval_runtime" in entry), default=None)
        for entry in history:
            if entry.get("step") == last_step:
                metrics |= {name: value for name, value in entry.items() if name.startswith("eval_")}
        return {
            **metrics,
            "device": str(self.args.device),
            "torch": torch.__version__,
            "timm": timm.__version__,
        }


class ExplanationCallback(TrainerCallback):
    """Score the maps of the predicted classes at each evaluation, and log the means.

        trainer.add_callback(ExplanationCallback(trainer))

    The callback logs `eval_completeness_error` (0 up to rounding), `eval_sparseness` (Gini coefficient),
    `eval_confidence` and, for signed maps, `eval_cancelled_share` (the share of the evidence that cancels). Each of
    them can serve as `metric_for_best_model`.

    Args:
        trainer: Trainer whose model is scored, and whose log is used.
        images: Number of evaluation images that each process scores, the first ones of the data set.
    """

    def __init__(self, trainer: Trainer, images: int = 64) -> None:
        self.trainer, self.images = trainer, images

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> None:
        """Add the explanation scores to the metrics and to the log of the trainer."""
        model = self.trainer.accelerator.unwrap_model(kwargs["model"])
        gather = self.trainer.accelerator.gather_for_metrics  # drops the images that fill up the last batch
        with torch.random.fork_rng(devices=[]):  # a loader draws a seed, but scoring must not change the training
            batches = self._first_batches(kwargs["eval_dataloader"])
            scores = [gather(score_maps(model, batch["pixel_values"])) for batch in batches]
        prefix = next(key.removesuffix("runtime") for key in metrics if key.endswith("_runtime"))
        means = {f"{prefix}{name}": float(torch.cat([score[name] for score in scores]).mean()) for name in scores[0]}
        metrics.update(means)
        self.trainer.log(means)

    def _first_batches(self, loader: Any) -> Iterator[Any]:
        seen = 0
        for batch in loader:
            yield batch
            seen += len(batch["pixel_values"])
            if seen >= self.images:
                if hasattr(loader, "end"):  # Accelerate keeps a list of the loaders in use
                    loader.end()
                return


@torch.no_grad()
def score_maps(model: Any, images: Tensor) -> dict[str, Tensor]:
    """Return the statistics of maps and the confidence of each image (B,), for its most probable class.

    Args:
        model: Self-explaining Hugging Face model.
        images: Images (B, 3, H, W).
    """
    with evaluation_mode(model):
        output = model(pixel_values=images.to(model.device), output_maps=True)
    logits = output.logits.float()
    probabilities = model.probabilities(logits)
    statistics = map_statistics(model.head_class.map_kinds[0], output.maps, logits, probabilities)
    return {**statistics, "confidence": probabilities.amax(dim=1)}
