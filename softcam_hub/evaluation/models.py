"""Which models are asked, which explainers each of them admits, and one batch of images explained by several of them.

- Native maps explain the prediction of our model. Post-hoc maps explain the *vanilla twin*, the same backbone with a
  linear classifier on pooled features; a SoftCAM model with an exact head is its own twin.
- `random` and `centre` stand beside the post-hoc maps, or beside the native ones where there is no twin.
"""

import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..explainers.explained_model import Activations, ExplainedModel
from ..explainers.methods import UNINFORMED, Explainers, list_explainers
from ..loading import LoadedClassifier, load_classifier
from ..models.classifier import Classifier
from ..models.conversion import to_vanilla
from ..models.evaluation_mode import evaluation_mode
from ..models.heads import native_kinds
from ..models.label_kind import MULTI_LABEL, class_probabilities
from ..models.self_explaining import SelfExplaining

DEFAULT_POST_HOC = ("cam", "grad-cam", "grad-cam++", "smooth-grad-cam++", "layer-cam", "lift-cam", "fd-cam")
"""The post-hoc explainers that are measured when none are named."""

ONE_LABEL = "CAPE gives one label per image, and these data have several"


@contextmanager
def lent(model: nn.Module, device: torch.device) -> Iterator[None]:
    """The model in eval mode on `device` inside the `with`; afterwards as and where it was."""
    before = next(model.parameters()).device
    with evaluation_mode(model):
        try:
            model.to(device)
            yield
        finally:
            model.to(before)


def fingerprint(classifier: LoadedClassifier) -> int:
    """Compute a number that changes with the weights, with the network, and with what is done to the images."""
    model = classifier.model
    naive = getattr(getattr(model, "head", None), "naive", None)
    labels = ("multi_label",) if classifier.multi_label else ()
    args = getattr(model, "made_with", getattr(model, "_model_args", None))
    network = repr((model, args, naive, classifier.preprocessing, *labels))
    checksum = zlib.crc32(re.sub(" at 0x[0-9a-f]+", "", network).encode())  # the address of a function says nothing
    for name, tensor in model.state_dict().items():
        checksum = zlib.crc32(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy(), checksum)
        checksum = zlib.crc32(name.encode(), checksum)
    return checksum


@dataclass(frozen=True)
class Pair:
    """A model and the vanilla twin that post-hoc maps explain.

    Args:
        model: ours, or None where only a black box is explained.
        twin: a black box, or None where there is none.
        missing: why there is no twin.
    """

    model: LoadedClassifier | None
    twin: LoadedClassifier | None
    missing: str = ""


def pair_up(classifier: LoadedClassifier, twin: LoadedClassifier | None) -> Pair:
    """Find the twin of a model, if none is given."""
    model = classifier.model
    if not isinstance(model, SelfExplaining):
        if twin is not None:
            raise ValueError("the model is a black box itself, and needs no twin: leave twin out")
        return Pair(None, classifier)
    if twin is not None:
        if isinstance(twin.model, SelfExplaining):
            raise ValueError("the twin is a self-explaining model: expected a vanilla timm model, such as RUN/vanilla")
        return Pair(classifier, twin)
    if model.head_class.keeps_logits and model.exact and isinstance(model, Classifier):
        return Pair(classifier, load_classifier(to_vanilla(model).eval()))
    reason = "it classifies otherwise than a pooled linear layer" if model.exact else "its head is not the vanilla one"
    missing = f"this {model.family} model has no vanilla twin of its own ({reason}): name one with twin"
    return Pair(classifier, None, missing)


def several_labels(pair: Pair, role: str, in_data: bool) -> bool:
    """Say whether a model gives each class a probability of its own.

    The model decides. A twin that does not say is taken for what its model is, and a lone one for what the data is.

    Args:
        pair: The models.
        role: "model" or "twin".
        in_data: Whether the images of the data may have several labels.
    """
    known = [one.multi_label for one in (getattr(pair, role), pair.model) if one is not None]
    several = next((answer for answer in known if answer is not None), in_data)
    if in_data and not several:
        if pair.model is not None and not pair.model.model.head_class.multi_label:
            raise ValueError(ONE_LABEL)
        raise ValueError(
            f"the {role} gives one label per image (a softmax), and these data have several: train it on such data, or "
            f"write problem_type={MULTI_LABEL!r} into its config.json if it was"
        )
    return several


def divide(names: tuple[str, ...] | None, pair: Pair) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Explainers for "model" and for "twin", and those left out with the reason.

    Args:
        names: explainers asked for; None for the default; one of them may be `all`.
        pair: the models.
    """
    native = native_kinds()
    kinds = () if pair.model is None else tuple(kind for kind in pair.model.model.head_class.kinds if kind in native)
    wanted = names or (*kinds, *DEFAULT_POST_HOC, *UNINFORMED)
    free = names is None or "all" in names
    if "all" in wanted:
        wanted = tuple(dict.fromkeys([*kinds, *(name for name in list_explainers() if name not in native)]))
    parts: dict[str, list[str]] = {"model": [], "twin": []}
    left_out = {}
    for name in wanted:
        if name in native:
            role, reason = "model", "" if name in kinds else f"{name!r} maps need a {native[name].family} model"
        elif name in UNINFORMED and pair.twin is None:
            role, reason = "model", ""
        else:
            role, reason = "twin", "" if pair.twin is not None else pair.missing
        if reason and not free:
            raise ValueError(f"explainer {name!r} is not possible here: {reason}")
        if reason:
            left_out[name] = reason
        else:
            parts[role].append(name)
    return parts, left_out


class Explained:
    """A classifier, and the explainers whose maps of it are measured.

    Args:
        role: "model" or "twin".
        classifier: in eval mode, on its device.
        names: of the explainers.
        multi_label: The model gives each class a probability of its own, as an image may have several labels.
        seed: of random maps and noise.
        batch: masked images at a time, for the explainers that make many.
    """

    def __init__(
        self,
        role: str,
        classifier: LoadedClassifier,
        names: Sequence[str],
        multi_label: bool,
        seed: int = 0,
        batch: int = 16,
    ) -> None:
        self.role, self.classifier, self.multi_label = role, classifier, multi_label
        self.model = classifier.model
        self.names = tuple(names)
        self.explained_model = ExplainedModel(classifier.model)
        self.explainers = Explainers(names, self.explained_model, signed=True, options={"seed": seed, "batch": batch})

    def drop_refused(self, images: Tensor, strict: bool) -> dict[str, str]:
        """Try every explainer and leave out those that do not fit this model, with reasons.

        Args:
            images: (B, 3, H, W), a few.
            strict: raise instead.
        """
        refused: dict[str, str] = {}
        activations = self.explained_model.record(images)  # a model without spatial features fits none
        for name in self.names:
            if name == "score-cam":  # one pass per channel, and it fits wherever there are features
                continue
            try:
                self.maps([name], activations, activations.classes)
            except (ValueError, ImportError) as error:
                if strict:
                    raise type(error)(f"explainer {name!r} is not possible here: {error}") from error
                refused[name] = str(error)
        self.names = tuple(name for name in self.names if name not in refused)
        return refused

    def maps(self, names: Sequence[str], activations: Activations, classes: Tensor) -> dict[str, Tensor]:
        """Signed maps (B, k, h, w) by explainer, from the activations of one forward pass."""
        if not activations.logits.isfinite().all():
            raise ValueError(f"the {self.role} predicts NaN: its weights are broken, or its input is")
        found, activations = {}, activations.for_classes(classes)
        for name in names:
            found[name] = self.explainers.maps(name, activations.images, classes, activations)
            if not found[name].isfinite().all():
                raise ValueError(f"{name} gives maps of the {self.role} that hold NaN or infinity, which have no score")
        return found

    def probabilities(self, logits: Tensor) -> Tensor:
        return class_probabilities(logits.detach(), self.multi_label)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Probabilities (B, C)."""
        return self.probabilities(self.explained_model.logits(images))
