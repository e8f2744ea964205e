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
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from timm.data import resolve_data_config
from torch import Tensor, nn

from ..explainers.methods import AT_A_LAYER, OF_PIXELS, create_explainer, list_explainers
from ..explainers.recording import Recording
from ..loading import find_model, load_timm
from ..models.classifier import Classifier
from ..models.conversion import to_vanilla
from ..models.evaluation_mode import evaluation_mode
from ..models.label_kind import MULTI_LABEL, class_probabilities, is_multi_label
from ..models.self_explaining import SelfExplaining

NATIVE = ("softcam", "cape", "mu-cape")
FLOORS = ("random", "centre")
FAST = ("cam", "grad-cam", "grad-cam++", "smooth-grad-cam++", "layer-cam", "lift-cam", "fd-cam")
"""The post-hoc explainers that are measured when none are named."""

ONE_LABEL = "CAPE gives one label per image, and these data have several"

TAKERS = {"seed": {"random", "smooth-grad-cam++"}, "batch": {"fd-cam", "score-cam", "integrated-gradients"}}
"""Option -> the explainers that it is for."""


def load_classifier(source: str | Path) -> nn.Module:
    """A classifier in eval mode, from a model folder, a timm name (`cape_resnet50`, `resnet50.a1_in1k`) or a Hub id."""
    model = load_timm(find_model(source), source)
    if not model.num_classes:
        raise ValueError(f"model {str(source)!r} has no classes: there is no prediction to explain")
    return model.eval()


def as_timm(model: nn.Module, what: str) -> nn.Module:
    """The model itself, if it says what its images and classes are as timm's do; of a Hugging Face model of ours, the
    timm model with its weights.
    """
    if isinstance(model, SelfExplaining) and not isinstance(model, Classifier):
        with TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            return load_classifier(folder)
    if not getattr(model, "num_classes", None) or not hasattr(model, "pretrained_cfg"):
        raise TypeError(
            f"{what} is a {type(model).__name__}, which does not say how many classes it has (num_classes) or what "
            "its images are (pretrained_cfg): expected a timm model or one of ours; create_explainer takes any module"
        )
    return model


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


def describe(model: nn.Module) -> str:
    return getattr(model, "pretrained_cfg", {}).get("architecture") or type(model).__name__


def class_names(model: nn.Module) -> list[str] | None:
    names = getattr(model, "pretrained_cfg", {}).get("label_names")
    return None if names is None else list(names)


def check_classes(model: nn.Module, classes: Sequence[str], what: str) -> None:
    """Refuse a model of other classes than those of the data."""
    names, count = class_names(model), model.num_classes
    if count != len(classes):
        raise ValueError(f"{what} has {count} classes, but the data has {len(classes)}: {list(classes)[:10]}")
    if names is not None and names != list(classes):
        raise ValueError(f"{what} was trained on the classes {names[:10]}, but the data has {list(classes)[:10]}")


def preprocessing(model: nn.Module) -> dict[str, Any]:
    """What the model wants its images to be: size, crop, interpolation, mean and deviation."""
    return resolve_data_config({}, pretrained_cfg=dict(model.pretrained_cfg))


def fingerprint(model: nn.Module) -> int:
    """Changes when the weights do, and when the same weights are in another network or look at images otherwise."""
    naive = getattr(getattr(model, "head", None), "naive", None)
    several = ("multi_label",) if is_multi_label(model) else ()
    network = repr((model, getattr(model, "_model_args", None), naive, preprocessing(model), *several))
    found = zlib.crc32(re.sub(" at 0x[0-9a-f]+", "", network).encode())  # the address of a function says nothing
    for name, tensor in model.state_dict().items():
        found = zlib.crc32(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy(), found)
        found = zlib.crc32(name.encode(), found)
    return found


@dataclass(frozen=True)
class Pair:
    """A model and the vanilla twin that post-hoc maps explain.

    Args:
        model: ours, or None where only a black box is explained.
        twin: a black box, or None where there is none.
        missing: why there is no twin.
    """

    model: nn.Module | None
    twin: nn.Module | None
    missing: str = ""


def pair_up(model: nn.Module, twin: nn.Module | None) -> Pair:
    """Find the twin of a model, if none is given."""
    if not isinstance(model, SelfExplaining):
        if twin is not None:
            raise ValueError("the model is a black box itself, and needs no twin: leave twin out")
        return Pair(None, model)
    if twin is not None:
        if isinstance(twin, SelfExplaining):
            raise ValueError("the twin is a self-explaining model: expected a vanilla timm model, such as RUN/vanilla")
        return Pair(model, twin)
    if model.family == "softcam" and model.exact and isinstance(model, Classifier):
        return Pair(model, to_vanilla(model).eval())
    reason = "it classifies otherwise than a pooled linear layer" if model.exact else "its head is not the vanilla one"
    return Pair(model, None, f"this {model.family} model has no vanilla twin of its own ({reason}): name one with twin")


def several_labels(pair: Pair, role: str, in_data: bool) -> bool:
    """Say whether a model gives each class a probability of its own.

    The model decides. A twin that does not say is taken for what its model is, and a lone one for what the data is.

    Args:
        pair: The models.
        role: "model" or "twin".
        in_data: Whether the images of the data may have several labels.
    """
    beside = in_data if pair.model is None else is_multi_label(pair.model, in_data)
    several = is_multi_label(getattr(pair, role), beside)
    if in_data and not several:
        if getattr(pair.model, "family", "") == "cape":
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
    kinds = () if pair.model is None else tuple(kind for kind in pair.model.head.kinds if kind in NATIVE)
    wanted = names or (*kinds, *FAST, *FLOORS)
    free = names is None or "all" in names
    if "all" in wanted:
        wanted = tuple(dict.fromkeys([*kinds, *(name for name in list_explainers() if name not in NATIVE)]))
    parts: dict[str, list[str]] = {"model": [], "twin": []}
    left_out = {}
    for name in wanted:
        if name in NATIVE:
            role, reason = "model", "" if name in kinds else f"{name!r} maps need a {name.removeprefix('mu-')} model"
        elif name in FLOORS and pair.twin is None:
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
        model: in eval mode, on its device.
        names: of the explainers.
        multi_label: The model gives each class a probability of its own, as an image may have several labels.
        seed: of random maps and noise.
        batch: masked images at a time, for the explainers that make many.
    """

    def __init__(
        self, role: str, model: nn.Module, names: Sequence[str], multi_label: bool, seed: int = 0, batch: int = 16
    ) -> None:
        self.role, self.model, self.multi_label = role, model, multi_label
        self.options = {"seed": seed, "batch": batch}
        self.take(names)

    def take(self, names: Sequence[str]) -> None:
        """Explain by these from now on."""
        options = {option: value for option, value in self.options.items() if TAKERS[option] & set(names)}
        self.explainers = create_explainer(list(names), self.model, **options)
        self.names, self.subject = tuple(names), self.explainers.subject

    def drop_refused(self, images: Tensor, strict: bool) -> dict[str, str]:
        """Try every explainer and leave out those that do not fit this model, with reasons.

        Args:
            images: (B, 3, H, W), a few.
            strict: raise instead.
        """
        refused: dict[str, str] = {}
        recording = self.subject.record(images)  # a model without spatial features fits none
        for name in self.names:
            if name == "score-cam":  # one pass per channel, and it fits wherever there are features
                continue
            try:
                self.maps([name], recording, recording.classes)
            except (ValueError, ImportError) as error:
                if strict:
                    raise type(error)(f"explainer {name!r} is not possible here: {error}") from error
                refused[name] = str(error)
        self.take([name for name in self.names if name not in refused])
        return refused

    def maps(self, names: Sequence[str], recording: Recording, classes: Tensor) -> dict[str, Tensor]:
        """Signed maps (B, k, h, w) by explainer, from one recording."""
        if not recording.logits.isfinite().all():
            raise ValueError(f"the {self.role} predicts NaN: its weights are broken, or its input is")
        found, recording = {}, recording.of(classes)
        for name in names:
            options = self.explainers.options[name]
            if name in AT_A_LAYER:
                found[name] = AT_A_LAYER[name](recording, **options).detach()
            else:
                found[name] = OF_PIXELS[name](self.subject, recording.images, classes, **options).detach()
            if not found[name].isfinite().all():
                raise ValueError(f"{name} gives maps of the {self.role} that hold NaN or infinity, which have no score")
        return found

    def probabilities(self, logits: Tensor) -> Tensor:
        return class_probabilities(logits.detach(), self.multi_label)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Probabilities (B, C)."""
        return self.probabilities(self.subject.logits(images))
