"""The classifiers of a benchmark, and the explainers that each of them is explained by.

- A self-explaining model's own maps explain its own prediction. Post-hoc maps explain the *vanilla*
  classifier, the same backbone with a linear classifier on pooled features. A model with the same logits can
  be turned back into it.
- `random` and `centre` are measured on the vanilla classifier, or on the model where there is no vanilla
  classifier.
"""

import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..explainers.create import Explainers
from ..explainers.explained_model import Activations, ExplainedModel
from ..explainers.methods import UNINFORMED, list_explainers, reads_features
from ..explanation_scores.maps import heat, min_max
from ..loading import LoadedClassifier, load_classifier
from ..models.alignment import Alignment, Grid, sides_of
from ..models.classifier import Classifier
from ..models.conversion import to_vanilla
from ..models.evaluation_mode import evaluation_mode
from ..models.heads import EvidenceHead, native_kinds
from ..models.label_kind import MULTI_LABEL, class_probabilities
from ..models.self_explaining import SelfExplaining

MODEL, VANILLA = "model", "vanilla"

ROLES = (MODEL, VANILLA)
"""Roles that a classifier can have in a benchmark: self-explaining model, and vanilla classifier."""

DEFAULT_POST_HOC = ("cam", "grad-cam", "grad-cam++", "smooth-grad-cam++", "layer-cam", "lift-cam", "fd-cam")
"""Post-hoc explainers that are measured by default: all that need at most a few forward passes."""


def one_label_message(head: type[EvidenceHead]) -> str:
    """Say that the models of a family cannot be measured on images with several labels."""
    return (
        f"{head.title} gives one label per image, and these data have several: measure a SoftCAM model, or name data "
        "with one label per image"
    )


@contextmanager
def on_device(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Keep a model in eval mode and on a device inside the `with` block, and restore both afterwards."""
    before = next(model.parameters()).device
    with evaluation_mode(model):
        try:
            model.to(device)
            yield
        finally:
            model.to(before)


def fingerprint(classifier: LoadedClassifier) -> int:
    """Compute a checksum that changes with the weights, the network, the labels and the preprocessing."""
    model = classifier.model
    # the text of a network does not show the arguments that it was made with
    naive = getattr(getattr(model, "head", None), "naive", None)
    args = getattr(model, "made_with", getattr(model, "_model_args", None))
    labels = ("multi_label",) if classifier.multi_label else ()
    network = repr((model, args, naive, classifier.preprocessing, *labels))
    checksum = zlib.crc32(re.sub(" at 0x[0-9a-f]+", "", network).encode())  # addresses change from run to run
    for name, tensor in model.state_dict().items():
        checksum = zlib.crc32(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy(), checksum)
        checksum = zlib.crc32(name.encode(), checksum)
    return checksum


@dataclass(frozen=True)
class ModelPair:
    """A self-explaining model, and the vanilla classifier that post-hoc maps explain.

    Args:
        model: Self-explaining model, or None where only a vanilla classifier is explained.
        vanilla: Vanilla classifier, or None where there is none.
        missing: Reason why there is no vanilla classifier.
    """

    model: LoadedClassifier | None
    vanilla: LoadedClassifier | None
    missing: str = ""


def pair_models(classifier: LoadedClassifier, vanilla: LoadedClassifier | None) -> ModelPair:
    """Pair a classifier with a vanilla classifier.

    Args:
        classifier: Classifier to measure.
        vanilla: Vanilla classifier that the user names; None for the one that a model can be turned into.
    """
    model = classifier.model
    if not isinstance(model, SelfExplaining):
        if vanilla is not None:
            raise ValueError("the model is a vanilla classifier itself: leave vanilla out")
        return ModelPair(None, classifier)
    if vanilla is not None:
        if isinstance(vanilla.model, SelfExplaining):
            raise ValueError(
                "vanilla is a self-explaining model: expected a vanilla timm model, such as the folder RUN/vanilla"
            )
        return ModelPair(classifier, vanilla)
    if model.head_class.keeps_logits and model.exact and isinstance(model, Classifier):
        derived = load_classifier(to_vanilla(model).eval())
        return ModelPair(classifier, replace(derived, preprocessing=classifier.preprocessing))
    reason = "its predictions differ from those of a pooled linear layer"
    if not model.exact:
        reason = "it reads finer features" if model.reads_finer else "its head is not the vanilla one"
    missing = f"this {model.family} model cannot be turned into a vanilla classifier ({reason}): name one with vanilla"
    return ModelPair(classifier, None, missing)


def has_same_backbone(model: nn.Module, vanilla: nn.Module) -> bool:
    """Tell whether a vanilla classifier has the backbone of a self-explaining model, weight by weight.

    Args:
        model: Self-explaining model.
        vanilla: Vanilla timm model.
    """
    weights = vanilla.state_dict()
    backbone = {name: value for name, value in model.state_dict().items() if name.startswith("backbone.")}
    for name, value in backbone.items():
        other = weights.get(name.removeprefix("backbone."))
        if other is None or other.shape != value.shape or not torch.equal(other.to(value), value):
            return False
    return True


def resolve_multi_label(pair: ModelPair, role: str, data_multi_label: bool) -> bool:
    """Tell whether a classifier gives each class a probability of its own.

    A vanilla classifier that does not say follows the model beside it, and one without a model follows the
    data.

    Args:
        pair: Classifiers of the benchmark.
        role: One of `ROLES`.
        data_multi_label: Whether the images of the data may have several labels.
    """
    answers = [one.multi_label for one in (getattr(pair, role), pair.model) if one is not None]
    multi_label = next((answer for answer in answers if answer is not None), data_multi_label)
    if data_multi_label and not multi_label:
        if pair.model is not None and not pair.model.model.head_class.multi_label:
            raise ValueError(one_label_message(pair.model.model.head_class))
        raise ValueError(
            f"the {role} gives one label per image (a softmax), and these data have several: train it on such "
            f"data, or write problem_type={MULTI_LABEL!r} into its config.json if it was"
        )
    return multi_label


def assign_explainers(names: tuple[str, ...] | None, pair: ModelPair) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Return the explainers of each role, and the explainers that are left out with the reason.

    Args:
        names: Explainers that the user names, one of which may be `all`; None for the default.
        pair: Classifiers of the benchmark.
    """
    native = native_kinds()
    own = [] if pair.model is None else [kind for kind in pair.model.model.head_class.kinds if kind in native]
    wanted = list(names or (*own, *DEFAULT_POST_HOC, *UNINFORMED))
    named = names is not None and "all" not in names
    if "all" in wanted:
        wanted = [*own, *(name for name in list_explainers() if name not in native)]
    assigned: dict[str, list[str]] = {role: [] for role in ROLES}
    left_out = {}
    for name in wanted:
        role, reason = VANILLA, ""
        if name in native:
            role = MODEL
            reason = "" if name in own else f"{name!r} maps need a {native[name].family} model"
        elif pair.vanilla is None:
            role = MODEL
            reason = "" if name in UNINFORMED else pair.missing
        if reason and named:
            raise ValueError(f"explainer {name!r} is not possible here: {reason}")
        if reason:
            left_out[name] = reason
        else:
            assigned[role].append(name)
    return assigned, left_out


class ClassifierWithExplainers:
    """A classifier, and the explainers whose maps of it are measured.

    Args:
        role: One of `ROLES`.
        classifier: Classifier in eval mode, on its device.
        names: Names of the explainers.
        multi_label: Give each class a probability of its own, as an image may have several labels.
        seed: Seed of random maps and noise.
        batch: Number of masked images per forward pass, for the explainers that make many.
        aligned: Draw maps of features where these look, as far as the model has an `alignment`.
    """

    sides: tuple[tuple[int, int], tuple[int, int]]
    """Height and width of the images and of the features, which `drop_impossible` finds out."""

    def __init__(
        self,
        role: str,
        classifier: LoadedClassifier,
        names: Sequence[str],
        multi_label: bool,
        seed: int = 0,
        batch: int = 16,
        aligned: bool = True,
    ) -> None:
        self.role, self.classifier, self.multi_label = role, classifier, multi_label
        self.names, self.aligned = tuple(names), aligned
        self.explained = ExplainedModel(classifier.model)
        self.explainers = Explainers(names, self.explained, signed=True, options={"seed": seed, "batch": batch})

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.classifier.model.parameters()).device

    def drop_impossible(self, images: Tensor, strict: bool) -> dict[str, str]:
        """Try every explainer, and leave out those that do not fit this model, with the reason.

        Args:
            images: A few images, (B, 3, H, W).
            strict: Raise the reason instead.
        """
        left_out: dict[str, str] = {}
        activations = self.explained.record(images)  # raises for a model without spatial features, which fits none
        self.sides = (sides_of(images), sides_of(activations.features))
        for name in self.names:
            if name == "score-cam":  # it runs once per channel, and fits wherever there are features
                continue
            try:
                self.maps([name], activations, activations.classes)
            except (ValueError, ImportError) as error:
                if strict:
                    raise type(error)(f"explainer {name!r} is not possible here: {error}") from error
                left_out[name] = str(error)
        self.names = tuple(name for name in self.names if name not in left_out)
        return left_out

    def maps(self, names: Sequence[str], activations: Activations, classes: Tensor) -> dict[str, Tensor]:
        """Compute the signed maps (B, k, h, w) of several explainers from one forward pass."""
        if not activations.logits.isfinite().all():
            raise ValueError(f"the {self.role} predicts NaN: its weights are broken, or its input is")
        activations = activations.for_classes(classes)
        maps = {}
        for name in names:
            maps[name] = self.explainers.maps(name, activations.images, classes, activations)
            if not maps[name].isfinite().all():
                raise ValueError(f"{name} gives maps of the {self.role} that hold NaN or infinity, which have no score")
        return maps

    @property
    def alignment(self) -> Alignment | None:
        """Where the features of the classifier look, if it is known and any of the explainers reads features."""
        reads = self.aligned and any(map(reads_features, self.names))
        return self.explained.alignment if reads else None

    def grid(self, name: str, image_size: tuple[int, int], cells: tuple[int, int]) -> Grid:
        """Return where the cells of the maps of an explainer lie in the images.

        The model's own maps and class activation maps are made of the same features, and lie where these look. Maps of
        pixels, and those of `random` and `centre`, which look at nothing, fill the image.

        Args:
            name: Name of the explainer.
            image_size: Height and width of the images.
            cells: Height and width of the maps.
        """
        return Grid(image_size, cells, self.alignment if reads_features(name) else None)

    def map_offset(self, name: str) -> list[float | None] | None:
        """Return how far the maps of an explainer are moved, in cells down and right; None where they are not."""
        image_size, cells = self.sides
        if name in native_kinds():  # the model's own maps may be finer than its last features
            ratio = self.classifier.model.anatomy.finest_ratio
            cells = (ratio * cells[0], ratio * cells[1])
        offset = self.grid(name, image_size, cells).offset
        return None if offset is None else [None if part is None else round(part, 4) for part in offset]

    def enlarge(
        self, name: str, maps: Tensor, image_size: tuple[int, int], size: tuple[int, int] | None = None
    ) -> Tensor:
        """Upsample the maps of an explainer, with their sign and unit.

        Args:
            name: Name of the explainer.
            maps: Maps, (..., h, w).
            image_size: Height and width of the images.
            size: Height and width of the result. The default is that of the images.
        """
        return self.grid(name, image_size, sides_of(maps)).upsample(maps, size or image_size)

    def heat(self, name: str, maps: Tensor, image_size: tuple[int, int], size: tuple[int, int] | None = None) -> Tensor:
        """Make heat maps, φ of the papers, in [0, 1], of the maps of an explainer; arguments as for `enlarge`."""
        if not self.grid(name, image_size, sides_of(maps)).is_aligned:
            return heat(maps, size or image_size)  # the same to the last bit as for maps from elsewhere
        large = self.enlarge(name, maps.relu(), image_size, size)
        return min_max(large.flatten(0, -3)).view_as(large)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Turn logits (B, C) into probabilities."""
        return class_probabilities(logits.detach(), self.multi_label)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Compute the probabilities (B, C) of images (B, 3, H, W)."""
        return self.probabilities(self.explained.logits(images))
