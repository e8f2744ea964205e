"""What stock `Trainer` cannot be told from outside: which parameters do not decay, and which card to write."""

from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from transformers import Trainer

from ..files import write_text
from ..hub.cards import METRICS, Row, Trained, trained_card
from .report import write_metrics

SETTINGS = (
    *("learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps"),
    *("optim", "weight_decay", "lr_scheduler_type", "warmup_steps", "seed", "bf16", "fp16"),
)
"""The training arguments that a card tells."""

LOSS = ("mode", "temperature", "selective", "l1", "l2", "freeze_backbone")
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
        settings = {name: given[name] for name in SETTINGS if name in given}
        settings |= {name: config[name] for name in LOSS if name in config}
        metrics = self._last_metrics(dataset)
        known = Trained(config, metrics, settings, license=license, trainer=type(self).__name__)
        write_text(folder / "README.md", trained_card(known, model_name or ""))
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
