"""Find the timm model that computes what a classifier of transformers or torchvision computes, and give it the weights.

- `layer_pairs.py` pairs the weights. A new model hides wrong pairs: its norms are all alike, and some of its layers are
  zero. So the pairs are tried on random weights first, and only then on the weights of the model.
- Padding, activations and the place of strides are no weights. They show in the logits, which must be equal.
"""

import copy
from collections.abc import Iterator
from itertools import islice
from typing import Any

import timm
import torch
from torch import Tensor, nn

from .backbone import TimmModule, input_size
from .layer_pairs import STATISTICS, pair, translate

_PATTERNS = {
    "convnext": ("convnext_*",),
    "densenet": ("densenet???",),
    "efficientnet": ("efficientnet_b?", "efficientnetv2_[sml]", "tf_efficientnet_b?"),
    "regnet": ("regnet[xy]_*",),
    "resnet": ("resnet??", "resnet???", "resnext*", "wide_resnet*"),
    "swin": ("swin_*_window*",),
    "swin_transformer": ("swin_*_window*", "swinv2_*_window*"),
    "vision_transformer": ("vit_*_patch??_224",),
    "vit": ("vit_*_patch??_224",),
}
"""Kind of a model in transformers, or its module in torchvision -> timm names. Names that begin with the kind need no
entry."""

_MOST_CANDIDATES = 40
"""Number of timm architectures that are compared with a model; each takes a tenth of a second."""

_TOLERANCE = 1e-4
"""Largest difference of logits by which two models count as one, relative to the largest logit."""


def find_counterpart(source: nn.Module, size: tuple[int, int] | None = None) -> TimmModule | None:
    """Return the timm model with the weights and the logits of another library's classifier, or None if there is none.

    Args:
        source: Classifier of transformers, torchvision, or another library.
        size: Height and width of its images; by default those of its configuration, or of the timm architecture.
    """
    wanted = size or getattr(getattr(source, "config", None), "image_size", None)
    with torch.random.fork_rng(devices=[]):  # making models draws random numbers
        for name in counterpart_names(source):
            for options in _options(source, wanted):
                try:
                    model = _copy_to_timm(source, name, options, size)
                except TypeError:
                    continue
                if model is not None:
                    return model
    return None


def _options(source: nn.Module, size: Any) -> list[dict[str, Any]]:
    """Return arguments to try for a timm architecture: most have none of these, and Swins have both."""
    window = getattr(getattr(source, "config", None), "window_size", None)
    sizes: list[dict[str, Any]] = [{"img_size": size}, {}] if size else [{}]
    return [*({**options, "window_size": window} for options in sizes if window), *sizes]


def takes_one_size(model: TimmModule) -> bool:
    """Tell whether a timm model refuses images of any size but its own."""
    return bool(getattr(getattr(model, "patch_embed", None), "strict_img_size", False))


def counterpart_names(source: nn.Module) -> Iterator[str]:
    """List the timm architectures whose filters and matrices are as large as those of a model of another library."""
    shape = _image_and_classes(source)
    size = _size(source)
    for name in islice(similar_names(source), _MOST_CANDIDATES if shape else 0):
        for options in reversed(_options(source, getattr(getattr(source, "config", None), "image_size", None))):
            try:
                with torch.device("meta"):
                    candidate = timm.create_model(name, **shape, **options)
            except TypeError:
                continue
            if _size(candidate) == size:
                yield name
                break


def _size(model: nn.Module) -> int:
    """Return the number of values of all matrices and filters; libraries differ in biases without an effect."""
    return sum(weight.numel() for weight in model.parameters() if weight.squeeze().ndim > 1)


def similar_names(source: nn.Module) -> Iterator[str]:
    """List the timm architectures that may be that of a model of another library, the likeliest first."""
    config = getattr(source, "config", None)
    recorded = str(getattr(config, "_name_or_path", "")).rpartition("/")[2].replace("-", "_")
    if timm.is_model(recorded):  # google/vit-base-patch16-224
        yield recorded
    bases = [base for base in type(source).__mro__ if not f"{base.__module__}.".startswith(("torch.", "builtins."))]
    kinds = [getattr(config, "model_type", None)] if config else [base.__module__.rpartition(".")[2] for base in bases]
    for kind in filter(None, kinds):
        stem = kind.replace("_", "")
        for pattern in _PATTERNS.get(kind, (f"{stem}_*", f"{stem}[0-9]*")):
            yield from sorted(timm.list_models(pattern), key=lambda name: (len(name), name))


def _image_and_classes(source: nn.Module) -> dict[str, Any]:
    """Return the number of channels and classes, by the first convolution and the last matrix; empty without them."""
    convolutions = [weight for weight in source.parameters() if weight.ndim == 4]
    matrices = [weight for weight in source.parameters() if weight.ndim > 1]
    if not convolutions:
        return {}
    return {"in_chans": convolutions[0].shape[1], "num_classes": matrices[-1].shape[0]}


def _copy_to_timm(
    source: nn.Module, name: str, options: dict[str, Any], size: tuple[int, int] | None
) -> TimmModule | None:
    """Make a timm model with the weights of another library's, or return None where their logits differ.

    The models are compared in float32, as half precision would hide differences.

    Args:
        source: Model of another library.
        name: timm architecture with as many weights.
        options: Further arguments of the architecture.
        size: Height and width of the images on which they are compared; by default those of the timm model.
    """
    args = {**_image_and_classes(source), **options}
    model: TimmModule = timm.create_model(name, **args).eval()
    channels, *sides = input_size(model, args)
    if size and not takes_one_size(model):
        sides = list(size)
    image = torch.randn(1, channels, *sides, generator=torch.Generator().manual_seed(0))
    reference = _float_copy(source)
    pairs = pair(reference, model, image)
    if pairs is None:
        return None
    eps = {use.eps for use, _ in pairs} - {None}
    if "bn_eps" not in options and len(eps) == 1 and eps != {mine.eps for _, mine in pairs} - {None}:
        return _copy_to_timm(source, name, {**options, "bn_eps": eps.pop()}, size)
    own = {key: value.clone() for key, value in translate(pairs, reference, model).items()}
    model.load_state_dict(own, strict=False)
    if not _agree(reference, model, image):
        return None
    randomise(reference)
    model.load_state_dict(translate(pairs, reference, model), strict=False)
    if not _agree(reference, model, image):
        return None
    model.load_state_dict(own, strict=False)
    weight = next(source.parameters())
    return model.to(weight.device, weight.dtype).train(source.training)


def _float_copy(source: nn.Module) -> nn.Module:
    """Return a copy of a model for the trial: in float32, on the CPU, in eval mode, and without its hooks."""
    try:
        copied = copy.deepcopy(source).cpu().float().eval()
    except RuntimeError as error:
        raise ValueError(
            f"this {type(source).__name__} cannot be copied ({error}): remove tensors that it keeps of a forward pass"
        ) from error
    for module in copied.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return copied


@torch.no_grad()
def _agree(theirs: nn.Module, ours: nn.Module, image: Tensor) -> bool:
    """Tell whether two models give the same logits."""
    answer = theirs(image)
    expected = answer[0] if isinstance(answer, tuple) else getattr(answer, "logits", answer)
    logits = ours(image)
    difference = (expected - logits).abs().max() if expected.shape == logits.shape else torch.inf
    return bool(difference <= _TOLERANCE * expected.abs().max())


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Give every weight and statistic of a model a value of its own; other buffers are constants."""
    generator = torch.Generator().manual_seed(0)
    statistics = [buffer for name, buffer in model.named_buffers() if name.endswith(STATISTICS)]
    for tensor in [*model.parameters(), *statistics]:
        if tensor.squeeze().ndim > 1:
            values = torch.randn(tensor.shape, generator=generator) / tensor[0].numel() ** 0.5
        else:  # scales and variances are positive
            values = torch.rand(tensor.shape, generator=generator) + 0.5
        tensor.copy_(values)
