"""What stock `Trainer` cannot be told from outside: which parameters do not decay, and which card to write."""

from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..explanation_scores.faithfulness import completeness_error, gini_sparseness
from ..files import write_text
from ..hub.cards import METRICS, ModelRecord, Row, render_trained_card
from ..models.evaluation_mode import evaluation_mode
from .reporting import write_metrics

CARD_ARGUMENTS = (
    *("learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps"),
    *("optim", "weight_decay", "lr_scheduler_type", "warmup_steps", "seed", "bf16", "fp16"),
)
"""The training arguments that a card tells."""

CARD_OPTIONS = ("mode", "temperature", "selective", "l1", "l2", "freeze_backbone")
"""What it tells of the model's configuration."""


class EvidenceTrainer(Trainer):
    """`Trainer`, but weight decay leaves CAPE's temperature alone, and the card is ours.

    `Trainer` decides by parameter names which ones decay, and spares only biases and norms. It trains our models too;
    its weight decay then draws T' towards 1, where it began. `push_to_hub` takes the card of `create_model_card` along.
    """

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        return [name for name in super().get_decay_parameter_names(model) if not name.endswith("log_temperature")]

    def create_model_card(
        self, license: str | None = None, model_name: str | None = None, dataset: str | None = None, **_: Any
    ) -> None:
        """Write README.md and metrics.json into the output folder, from the last evaluation.

        Args:
            license: of the weights, as the Hub spells it.
            model_name: the card's title, by default the architecture.
            dataset: Hub id or name of the training data.
        """
        if not self.is_world_process_zero():
            return
        folder, config = Path(self.args.output_dir), self.accelerator.unwrap_model(self.model).config.to_dict()
        folder.mkdir(parents=True, exist_ok=True)
        given = self.args.to_dict()
        settings = {name: given[name] for name in CARD_ARGUMENTS if name in given}
        settings |= {name: config[name] for name in CARD_OPTIONS if name in config}
        metrics = self._last_metrics(dataset)
        known = ModelRecord(config, metrics, settings, license=license, trainer=type(self).__name__)
        write_text(folder / "README.md", render_trained_card(known, model_name or ""))
        write_metrics(metrics, folder / METRICS)

    def _last_metrics(self, dataset: str | None) -> Row:
        """The scores of the last evaluation, and what they were made with."""
        logged = self.state.log_history
        last = max((row["step"] for row in logged if "eval_runtime" in row), default=None)
        scores = [row for row in logged if row.get("step") == last and any(name.startswith("eval_") for name in row)]
        metrics = {name: value for row in scores for name, value in row.items() if name.startswith("eval_")}
        seconds = [row["train_runtime"] for row in logged if "train_runtime" in row]
        told = {**({"data": dataset} if dataset else {}), **({"seconds": seconds[-1]} if seconds else {})}
        return {
            **told,
            **metrics,
            "device": str(self.args.device),
            "torch": torch.__version__,
            "timm": timm.__version__,
        }


class ExplanationCallback(TrainerCallback):
    """Score the maps of the predicted classes on the first evaluation images, and log the means.

        trainer.add_callback(ExplanationCallback(trainer))

    Logs `eval_completeness_error` (0 but for rounding), `eval_sparseness` (Gini) and `eval_confidence`; they can serve
    as `metric_for_best_model` too.

    Args:
        trainer: whose model and log to use.
        images: how many images each process scores.
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
        model = self.trainer.accelerator.unwrap_model(kwargs["model"])
        gather = self.trainer.accelerator.gather_for_metrics  # without the images that fill up the last batch
        with torch.random.fork_rng(devices=[]):  # a loader draws a seed, and training must not depend on being scored
            loader = kwargs["eval_dataloader"]
            scores = [gather(score_maps(model, batch["pixel_values"])) for batch in self._batches(loader)]
        prefix = next(key.removesuffix("runtime") for key in metrics if key.endswith("_runtime"))
        means = {f"{prefix}{name}": float(torch.cat([part[name] for part in scores]).mean()) for name in scores[0]}
        metrics.update(means)
        self.trainer.log(means)

    def _batches(self, loader: Any) -> Any:
        seen = 0
        for batch in loader:
            yield batch
            seen += len(batch["pixel_values"])
            if seen >= self.images:
                if hasattr(loader, "end"):  # accelerate counts the loaders that are under way
                    loader.end()
                return


def score_maps(model: Any, images: Tensor) -> dict[str, Tensor]:
    """Scores (B,) of the predicted class's map; where a map composes probabilities they are compared, else logits."""
    images = images.to(model.device)
    explanation = model.explain(images)
    maps, probabilities = explanation.maps[:, 0].float(), explanation.probabilities[:, 0]
    if explanation.kind == "cape":
        composed, predicted = maps.sum(dim=(1, 2)), probabilities
    else:
        with evaluation_mode(model), torch.no_grad():
            logits = model.head(model.forward_features(images))
        composed, predicted = maps.mean(dim=(1, 2)), logits.float().gather(1, explanation.classes)[:, 0]
    return {
        "completeness_error": completeness_error(composed, predicted),
        "sparseness": gini_sparseness(maps),
        "confidence": probabilities,
    }
