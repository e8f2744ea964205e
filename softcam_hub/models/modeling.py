"""The Hugging Face models: the same `backbone` and `head` as the timm model, so one state dict serves both.

- transformers builds on the meta device and initialises what a checkpoint lacks; buffers that timm does not save are
  rebuilt there, and weights that timm drew or loaded are never drawn again.
- `AutoModel` gives the features first, `AutoModelForImageClassification` the logits; both give the maps.
"""

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .classifier import build
from .configuration import CAPEConfig, EvidenceConfig, SoftCAMConfig
from .heads import EvidenceHead
from .losses import elastic_net
from .self_explaining import SelfExplaining


@dataclass
class EvidenceModelOutput(ModelOutput):
    """Features and what was made of them.

    Args:
        last_hidden_state: features (B, K, H, W), which the evidence is linear in.
        logits: (B, C).
        maps: (B, C, H, W).
        hidden_states: the backbone's intermediate features.
    """

    last_hidden_state: Tensor | None = None
    logits: Tensor | None = None
    maps: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


@dataclass
class EvidenceClassifierOutput(ModelOutput):
    """A prediction with its evidence.

    Args:
        loss: scalar, when labels were given.
        logits: (B, C).
        maps: (B, C, H, W); their mean is the logits (SoftCAM), or their sum softmax(logits) (CAPE).
        hidden_states: the backbone's intermediate features.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    maps: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class EvidencePreTrainedModel(SelfExplaining, PreTrainedModel):
    """What the Hugging Face models of both families share."""

    config: EvidenceConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # with **kwargs in forward, Trainer would multiply the loss by the accumulation steps
    _keys_to_ignore_on_load_unexpected = [r"^teacher\."]  # noqa: RUF012, transformers reads this class attribute

    def __init__(self, config: EvidenceConfig) -> None:
        super().__init__(config)
        classifier = build(
            config.architecture,
            num_classes=config.num_labels,
            pretrained_cfg=dict(config.pretrained_cfg or {}),
            **(config.model_args or {}),
        )
        self.family, self.anatomy = classifier.family, classifier.anatomy
        self.backbone, self.head = classifier.backbone, classifier.head
        self.num_classes, self.in_chans = classifier.num_classes, classifier.in_chans
        self.drop_rate = classifier.drop_rate
        for module in self.modules():
            if not any(tensor.is_meta for tensor in (*module.parameters(False), *module.buffers(False))):
                module._is_hf_initialized = True  # timm has drawn these weights
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise what neither timm nor a checkpoint has: a new head, and buffers lost to the meta device."""
        if isinstance(module, EvidenceHead):
            module.reset_parameters()
        elif hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()
        elif getattr(module, "feat_shape", None) is not None and hasattr(module, "_get_pos_embed_values"):
            like = {"device": module.pos_embed.device, "dtype": module.pos_embed.dtype}
            module.pos_embed = module._get_pos_embed_values(feat_shape=module.feat_shape, **like)
        else:
            super()._init_weights(module)

    def _set_gradient_checkpointing(self, enable: bool = True, gradient_checkpointing_func: Any = None) -> None:
        self.backbone.set_grad_checkpointing(enable)

    def _features(self, pixel_values: Tensor, output_hidden_states: bool) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        if not output_hidden_states:
            return self.forward_features(pixel_values), None
        raw, hidden = self.backbone.forward_intermediates(pixel_values)
        return self.anatomy.localise(self.backbone, raw, pixel_values.shape[-2:]), tuple(hidden)

    def _predict(self, features: Tensor, output_maps: bool) -> tuple[Tensor, Tensor | None]:
        features = self.drop_features(features)
        return self.head.logits_and_maps(features) if output_maps else (self.head(features), None)


class EvidenceModel(EvidencePreTrainedModel):
    """Features first, then the maps and logits made of them."""

    def forward(
        self,
        pixel_values: Tensor,
        output_maps: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> EvidenceModelOutput | tuple[Tensor, ...]:
        """Features (B, K, H, W), logits (B, C) and maps (B, C, H, W) of `pixel_values` (B, 3, H, W)."""
        features, hidden = self._features(pixel_values, _given(output_hidden_states, self.config.output_hidden_states))
        logits, maps = self._predict(features, _given(output_maps, self.config.output_maps))
        output = EvidenceModelOutput(last_hidden_state=features, logits=logits, maps=maps, hidden_states=hidden)
        return output if _given(return_dict, self.config.return_dict) else output.to_tuple()


class EvidenceForImageClassification(EvidencePreTrainedModel):
    """Loss, logits and maps."""

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_maps: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> EvidenceClassifierOutput | tuple[Tensor, ...]:
        """Logits (B, C) and maps (B, C, H, W) of `pixel_values` (B, 3, H, W), and the loss when `labels` are given."""
        features, hidden = self._features(pixel_values, _given(output_hidden_states, self.config.output_hidden_states))
        output_maps = _given(output_maps, self.config.output_maps)
        logits, maps = self._predict(features, output_maps or (labels is not None and self._penalises_maps))
        loss = None if labels is None else self.loss(logits, maps, labels)
        output = EvidenceClassifierOutput(loss, logits, maps if output_maps else None, hidden)
        return output if _given(return_dict, self.config.return_dict) else output.to_tuple()

    @property
    def _penalises_maps(self) -> bool:
        return False

    def loss(self, logits: Tensor, maps: Tensor | None, labels: Tensor) -> Tensor:
        """Cross-entropy, or with multi-hot labels (B, C) the binary cross-entropy of every class."""
        if self.config.problem_type == "multi_label_classification":
            return F.binary_cross_entropy_with_logits(logits.float(), labels.float())
        return F.cross_entropy(logits.float(), labels)


class SoftCAMModel(EvidenceModel):
    """SoftCAM without a loss."""

    config_class = SoftCAMConfig


class CAPEModel(EvidenceModel):
    """CAPE without a loss."""

    config_class = CAPEConfig


class SoftCAMForImageClassification(EvidenceForImageClassification):
    """SoftCAM: maps whose mean is the logits, trained with ElasticNet."""

    config_class = SoftCAMConfig

    @property
    def _penalises_maps(self) -> bool:
        return self.config.l1 > 0 or self.config.l2 > 0

    def loss(self, logits: Tensor, maps: Tensor | None, labels: Tensor) -> Tensor:
        loss = super().loss(logits, maps, labels)
        return loss + elastic_net(maps, self.config.l1, self.config.l2) if self._penalises_maps else loss

    def probabilities(self, logits: Tensor) -> Tensor:
        if self.config.problem_type == "multi_label_classification":
            return logits.float().sigmoid()
        return super().probabilities(logits)


class CAPEForImageClassification(EvidenceForImageClassification):
    """CAPE: maps that sum to the prediction."""

    config_class = CAPEConfig


def _given(value: Any, default: Any) -> Any:
    return default if value is None else value
