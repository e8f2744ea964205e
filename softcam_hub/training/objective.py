"""The network in training and its loss, in one module, so that Accelerate wraps both.

- Self-explaining models are the Hugging Face models, which hold their teacher and their frozen parts.
- Vanilla classifiers are timm models; `VanillaForTraining` gives them the same interface.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save_file
from timm.models._hub import HF_SAFE_WEIGHTS_NAME, save_config_for_hf
from torch import Tensor, nn

from ..files import DRAFT, flush
from ..models.label_kind import MULTI_LABEL, SINGLE_LABEL, class_probabilities
from ..models.losses import cross_entropy
from .larger_images import difference_of_maps


class Step(NamedTuple):
    """The output of the network, and of its loss, for one batch.

    Args:
        loss: Scalar loss.
        logits: Logits (B, C).
        maps: None, as a vanilla classifier has no maps; the output of a model has some at this place.
        teacher_logits: Logits (B, C) of CAPE's teacher, if there is one.
    """

    loss: Tensor
    logits: Tensor
    maps: Tensor | None = None
    teacher_logits: Tensor | None = None


class VanillaForTraining(nn.Module):
    """A vanilla timm classifier with the interface that training needs.

    Args:
        vanilla: Model from `timm.create_model`.
        multi_label: An image may have several labels.
        classes: Names of the classes.
    """

    family = None
    penalises_maps = False

    def __init__(self, vanilla: nn.Module, multi_label: bool, classes: list[str]) -> None:
        super().__init__()
        self.vanilla, self.multi_label, self.classes = vanilla, multi_label, classes

    def forward(self, pixel_values: Tensor, output_maps: bool = False) -> Step:
        return Step(None, self.vanilla(pixel_values))

    def loss(self, logits: Tensor, labels: Tensor, *_: None, **cross_entropy_options: Any) -> Tensor:
        return cross_entropy(logits, labels, multi_label=self.multi_label, **cross_entropy_options)

    def probabilities(self, logits: Tensor) -> Tensor:
        return class_probabilities(logits, self.multi_label)

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        return self.vanilla.pretrained_cfg

    def save_pretrained(self, folder: str | Path) -> None:
        """Write weights and config.json; existing files are replaced when all new files are complete."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target, prefix=DRAFT) as draft:
            tensors = {name: tensor.contiguous() for name, tensor in self.vanilla.state_dict().items()}
            save_file(tensors, Path(draft) / HF_SAFE_WEIGHTS_NAME)  # refuses the layout of --channels-last
            self.save_config(draft)
            flush(Path(draft))
            for file in sorted(Path(draft).iterdir()):
                os.replace(file, target / file.name)

    def save_config(self, folder: str | Path) -> None:
        """Write the config.json of the model, which timm and transformers read."""
        file = Path(folder) / "config.json"
        problem_type = MULTI_LABEL if self.multi_label else SINGLE_LABEL
        model_config = {"label_names": self.classes, "problem_type": problem_type}
        save_config_for_hf(self.vanilla, str(file), model_config=model_config)
        config = json.loads(file.read_text())
        config.get("model_args", {}).pop("num_classes", None)  # transformers passes its own value to timm, too
        file.write_text(json.dumps(config, indent=2))


class Objective(nn.Module):
    """A model together with the loss that it is trained with.

    Args:
        model: Hugging Face model of the package, or `VanillaForTraining`.
        label_smoothing: Share of the target that is spread over all classes.
        class_weights: Weights (C,) of the classes in the cross-entropy.
    """

    def __init__(self, model: nn.Module, label_smoothing: float = 0.0, class_weights: Tensor | None = None) -> None:
        super().__init__()
        self.model, self.label_smoothing = model, label_smoothing
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, labels: Tensor, larger_maps: Tensor | None = None, **inputs: Tensor) -> Step:
        """Compute the loss of a batch.

        Args:
            labels: Labels (B,), or multi-hot labels (B, C).
            larger_maps: Maps (B, C, H, W) of larger images from which the maps learn as well.
            inputs: Images `pixel_values` (B, 3, H, W), or `features` (B, K, H, W) that were computed before.
        """
        output = self.model(**inputs, output_maps=self.model.penalises_maps or larger_maps is not None)
        options = {"label_smoothing": self.label_smoothing, "class_weights": self.class_weights}
        loss = self.model.loss(output.logits, labels, output.maps, output.teacher_logits, **options)
        if larger_maps is not None:
            loss = loss + difference_of_maps(output.maps, larger_maps)
        return Step(loss, output.logits, teacher_logits=output.teacher_logits)
