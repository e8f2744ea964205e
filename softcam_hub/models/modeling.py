"""The Hugging Face models: the same `backbone` and `head` as the timm model, so one state dict serves both.

- `AutoModel` gives the features first, `AutoModelForImageClassification` the logits; both give the maps.
- A saved folder holds the code of this package's `models/` too, so that it loads where softcam_hub is not installed.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from typing_extensions import Self

from .classifier import Classifier
from .configuration import CAPEConfig, SoftCAMConfig
from .heads import EvidenceHead
from .losses import check_labels, check_multi_hot, cross_entropy, elastic_net
from .outputs import EvidenceClassifierOutput, EvidenceModelOutput
from .pretrained import EvidencePreTrainedModel


class EvidenceModel(EvidencePreTrainedModel):
    """Return the features of images, and the maps and logits made of them, for any registered head.

    This is what `AutoModel` makes of a folder whose family has no model of its own; `SoftCAMModel` and `CAPEModel` are
    those of this package. Use `EvidenceForImageClassification` to train.

    Args:
        config: Configuration of the model to build.
        classifier: timm model of this package to take over instead of building one; `from_timm` passes it.
    """

    def forward(
        self,
        pixel_values: Tensor,
        output_maps: bool | None = None,
        output_hidden_states: bool | Sequence[int] | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> EvidenceModelOutput | tuple[Tensor, ...]:
        """Compute features, logits and maps.

        Args:
            pixel_values: Images, (B, 3, H, W).
            output_maps: Return the maps; the default is that of the configuration.
            output_hidden_states: Return all intermediate features, or those at the given indices.
            return_dict: Return a `ModelOutput` instead of a tuple.
            kwargs: Ignored, as transformers' pipelines pass arguments of other models.
        """
        states = _or_default(output_hidden_states, self.config.output_hidden_states)
        features, hidden = self._features(pixel_values, states)
        logits, maps = self._predict(self.drop_features(features), _or_default(output_maps, self.config.output_maps))
        last = self.last_features(features)
        output = EvidenceModelOutput(last_hidden_state=last, logits=logits, maps=maps, hidden_states=hidden)
        return output if _or_default(return_dict, self.config.return_dict) else output.to_tuple()


class EvidenceForImageClassification(EvidencePreTrainedModel):
    """Classify images with any registered head, and return loss, logits and maps.

    The loss is the cross-entropy of the logits, or the binary cross-entropy with several labels per image, plus the
    `penalty` of a head that has one.

        model = EvidenceForImageClassification.from_timm("lse_resnet50", num_labels=5)
        output = model(pixel_values, labels=labels)  # output.loss, output.logits, output.maps

    Args:
        config: Configuration of the model to build.
        classifier: timm model of this package to take over instead of building one; `from_timm` passes it.
    """

    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        output_maps: bool | None = None,
        output_hidden_states: bool | Sequence[int] | None = None,
        return_dict: bool | None = None,
        features: Tensor | None = None,
        **kwargs: Any,
    ) -> EvidenceClassifierOutput | tuple[Tensor, ...]:
        """Compute logits and maps, and the loss when labels are given.

        Args:
            pixel_values: Images, (B, 3, H, W).
            labels: Labels (B,) or probabilities (B, C); multi-hot (B, C) with several labels per image.
            output_maps: Return the maps; the default is that of the configuration.
            output_hidden_states: Return all intermediate features, or those at the given indices.
            return_dict: Return a `ModelOutput` instead of a tuple.
            features: Output of `forward_features` instead of the images, (B, K, H, W).
            kwargs: Ignored, as transformers' pipelines pass arguments of other models.
        """
        hidden = None
        if features is None:
            states = _or_default(output_hidden_states, self.config.output_hidden_states)
            features, hidden = self._features(pixel_values, states)
        features = self.drop_features(features)
        output_maps = _or_default(output_maps, self.config.output_maps)
        needs_maps = output_maps or (labels is not None and self.penalises_maps)
        logits, maps = self._predict(self._student_features(features), needs_maps)
        teacher_logits = self._teacher_logits(features)
        loss = None if labels is None else self.loss(logits, labels, maps, teacher_logits)
        output = EvidenceClassifierOutput(loss, logits, maps if output_maps else None, hidden, teacher_logits)
        return output if _or_default(return_dict, self.config.return_dict) else output.to_tuple()

    def loss(
        self,
        logits: Tensor,
        labels: Tensor,
        maps: Tensor | None = None,
        teacher_logits: Tensor | None = None,
        **cross_entropy_options: Any,
    ) -> Tensor:
        """Compute the loss of what `forward` returned.

        Args:
            logits: Logits, (B, C).
            labels: Labels (B,) or probabilities (B, C); multi-hot (B, C) with several labels per image.
            maps: Maps (B, C, H, W), needed where `penalises_maps`.
            teacher_logits: Logits (B, C) of the teacher, needed where there is one.
            cross_entropy_options: `label_smoothing` and `class_weights` of `losses.cross_entropy`.
        """
        labels = check_multi_hot(labels, logits) if self.multi_label else check_labels(labels, logits)
        return self._loss(logits, labels, maps, teacher_logits, cross_entropy_options)

    @property
    def penalises_maps(self) -> bool:
        """Whether the loss needs the maps."""
        return self.head_class.penalty is not EvidenceHead.penalty

    def _loss(
        self,
        logits: Tensor,
        labels: Tensor,
        maps: Tensor | None,
        teacher_logits: Tensor | None,
        options: dict[str, Any],
    ) -> Tensor:
        loss = cross_entropy(logits, labels, multi_label=self.multi_label, **options)
        if not self.penalises_maps:
            return loss
        if maps is None:
            raise ValueError("this loss penalises maps and got none: pass the maps of forward(..., output_maps=True)")
        return loss + self._penalty(maps)

    def _penalty(self, maps: Tensor) -> Tensor:
        return self.head_class.penalty(maps)

    def _student_features(self, features: Tensor) -> Tensor:
        return features

    def _teacher_logits(self, features: Tensor) -> Tensor | None:
        return None


class SoftCAMModel(EvidenceModel):
    """Return features, maps and logits of SoftCAM, whose maps average to the logits: what `AutoModel` loads.

        model = AutoModel.from_pretrained("you/lesions")
        output = model(pixel_values)  # output.last_hidden_state, output.maps, output.logits

    `SoftCAMForImageClassification` is the model to train.

    Args:
        config: Configuration of the model to build.
        classifier: timm model of this package to take over instead of building one; `from_timm` passes it.
    """

    config: SoftCAMConfig
    _auto_class = "AutoModel"  # so that transformers saves this code beside the weights


class CAPEModel(EvidenceModel):
    """Return features, maps and logits of CAPE, whose maps sum to the class probabilities: what `AutoModel` loads.

        model = AutoModel.from_pretrained("you/lesions")
        output = model(pixel_values)  # output.last_hidden_state, output.maps, output.logits

    The model has no loss, and so no teacher. `CAPEForImageClassification` is the model to train.

    Args:
        config: Configuration of the model to build.
        classifier: timm model of this package to take over instead of building one; `from_timm` passes it.
    """

    config: CAPEConfig
    _auto_class = "AutoModel"

    def __init__(self, config: CAPEConfig, classifier: Classifier | None = None) -> None:
        super().__init__(config.for_inference(), classifier)


class SoftCAMForImageClassification(EvidenceForImageClassification):
    """Classify images by evidence maps whose mean is the logits.

    With features F (B, K, H, W) the maps are M' = W·F + b, and logits = mean over H, W of M'. The loss is the
    cross-entropy plus l1·mean|M'| + l2·mean M'²; it is the cross-entropy alone by default. The penalty makes evidence
    smaller, not sparser.

        model = SoftCAMForImageClassification.from_timm("softcam_resnet50.a1_in1k", num_labels=5, l1=1e-3)
        output = model(pixel_values, labels=labels)  # output.loss, output.logits, output.maps (B, C, H, W)
        model.explain("eye.jpg", classes="exudate").save("why.png")

    Args:
        config: Configuration of the model to build.
        classifier: timm model of this package to take over instead of building one; `from_timm` passes it.

    Djoumessi and Berens, "Soft-CAM: Making black box models self-explainable for high-stakes decisions", MIDL 2026.
    """

    config: SoftCAMConfig
    _auto_class = "AutoModelForImageClassification"

    @property
    def penalises_maps(self) -> bool:
        return self.config.l1 > 0 or self.config.l2 > 0

    def _penalty(self, maps: Tensor) -> Tensor:
        return elastic_net(maps, self.config.l1, self.config.l2)


class CAPEForImageClassification(EvidenceForImageClassification):
    """Classify images by maps of probabilities that sum to the prediction.

    With evidence M' = W·F + b and a learnt temperature T', P = softmax_c(M'/T') · softmax_ij(mean_c M'/T') at class c
    and location ij. The class probability is p̂ = Σ_ij P, and logits = log p̂. With the modes `from-scratch` and
    `post-fit` a vanilla linear `teacher` on the same features is trained or kept, and CAPE learns from it.

        model = CAPEForImageClassification.from_timm(vanilla, mode="post-fit")
        output = model(pixel_values, labels=labels)  # output.loss, output.logits, output.maps (B, C, H, W)
        model.drop_teacher().save_pretrained("my-model")

    Args:
        config: Configuration of the model to build.
        classifier: timm model of this package to take over instead of building one; `from_timm` passes it.

    Chowdhury et al., "CAPE: CAM as a Probabilistic Ensemble for Enhanced DNN Interpretation", CVPR 2024.
    """

    config: CAPEConfig
    _auto_class = "AutoModelForImageClassification"

    def _make_teacher(self) -> nn.Linear | None:
        if not self.config.bootstrap.needs_teacher:
            return None
        weight = self.head.weight
        return nn.Linear(weight.shape[1], self.num_classes, device=weight.device, dtype=weight.dtype)

    @property
    def _frozen(self) -> list[nn.Module]:
        if self.config.mode == "post-fit" and self.teacher is not None:
            return [self.backbone, self.teacher]
        return super()._frozen

    def _init_teacher(self, has_trained_head: bool) -> None:
        """Copy the vanilla classifier, which an exact head holds when it is taken over, into the teacher."""
        if self.config.mode == "post-fit" and not has_trained_head:
            raise ValueError(
                f"mode 'post-fit' fits CAPE to a trained classifier, but {self.config.architecture} has none for these "
                f"{self.num_classes} classes: fine-tune the vanilla timm model first and pass it to from_timm, or use "
                "mode='from-scratch'"
            )
        if self.teacher is not None and has_trained_head:
            self.teacher.weight.data.copy_(self.head.weight.data)
            self.teacher.bias.data.copy_(self.head.bias.data)

    def drop_teacher(self) -> Self:
        """Remove the teacher after training, so that `save_pretrained` and `push_to_hub` write what inference needs."""
        self.teacher = None
        self.config = self.config.for_inference()
        return self

    def _student_features(self, features: Tensor) -> Tensor:
        return self.config.bootstrap.student_features(features)

    def _teacher_logits(self, features: Tensor) -> Tensor | None:
        return None if self.teacher is None else self.teacher(self.last_features(features).mean(dim=(2, 3)))

    def _loss(
        self,
        logits: Tensor,
        labels: Tensor,
        maps: Tensor | None,
        teacher_logits: Tensor | None,
        options: dict[str, Any],
    ) -> Tensor:
        return self.config.bootstrap.loss(logits, teacher_logits, labels, **options)


MODELS: dict[str, type[EvidenceForImageClassification]] = {
    model.config_class.model_type: model for model in (SoftCAMForImageClassification, CAPEForImageClassification)
}
"""Family -> its model with a loss. `softcam_hub.register_head` adds models of other packages."""


def model_class(family: str) -> type[EvidenceForImageClassification]:
    """Return the model with a loss that trains a family: its own, or the one that serves every head."""
    return MODELS.get(family, EvidenceForImageClassification)


def _or_default(value: Any, default: Any) -> Any:
    return default if value is None else value
