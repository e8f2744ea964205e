"""The one thing that stock `Trainer` cannot be told from outside."""

from torch import nn
from transformers import Trainer


class EvidenceTrainer(Trainer):
    """`Trainer`, but weight decay leaves CAPE's temperature alone.

    `Trainer` decides by parameter names which ones decay, and spares only biases and norms. It trains our models too;
    its weight decay then draws T' towards 1, where it began.
    """

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        return [name for name in super().get_decay_parameter_names(model) if not name.endswith("log_temperature")]
