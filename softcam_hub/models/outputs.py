"""What the Hugging Face models return."""

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class EvidenceModelOutput(ModelOutput):
    """Features, and the logits and maps made of them.

    Args:
        last_hidden_state: Features that the evidence is linear in, (B, K, H, W).
        logits: Logits, (B, C).
        maps: Maps, (B, C, H, W).
        hidden_states: Intermediate features of the backbone.
    """

    last_hidden_state: Tensor | None = None
    logits: Tensor | None = None
    maps: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


@dataclass
class EvidenceClassifierOutput(ModelOutput):
    """A prediction with its evidence.

    Args:
        loss: Scalar, when labels were given.
        logits: Logits, (B, C).
        maps: Maps (B, C, H, W); their mean is the logits (SoftCAM), or their sum softmax(logits) (CAPE).
        hidden_states: Intermediate features of the backbone.
        teacher_logits: Logits of the vanilla classifier that CAPE learns from, (B, C).
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    maps: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    teacher_logits: Tensor | None = None
