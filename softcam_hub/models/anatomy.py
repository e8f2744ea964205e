"""Find out how the head of a timm architecture reads its features, by running it.

- The head alone gets random weights and random features; the equalities that an evidence map rests on are checked on
  them in double precision. So a new timm needs no new table, and an unknown norm is refused instead of trusted.
- The backbone runs on the meta device, where a billion weights cost nothing.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import timm
import torch
from timm.models.vgg import ConvMlp
from torch import Tensor, nn

from .backbone import Anatomy, NoEvidenceMap, TimmModule, input_size
from .pooled_layers import attention_pool, everywhere, pooled_norm
from .scales import NoFinerFeatures, find_finer

_PROBE_CLASSES = 3
_ONLY_CLASS_TOKENS = "its features keep no patch tokens, only class tokens"


def weights_of(linear: TimmModule) -> tuple[Tensor, Tensor]:
    """Return weight (C, K) and bias (C,) of a linear layer or 1x1 convolution; a missing bias is zero."""
    weight = linear.weight.flatten(1)
    return weight, weight.new_zeros(weight.shape[0]) if linear.bias is None else linear.bias


@torch.no_grad()
def examine(architecture: str, scales: int = 1, **model_args: Any) -> Anatomy:
    """Find out how the head of a timm architecture reads its features, or raise `NoEvidenceMap`.

    The backbone runs on the meta device, for shapes only; the head alone gets random weights and random features in
    double precision, and the equalities that an evidence map rests on are checked on them.

    Args:
        architecture: timm name without tag, such as `resnet50`.
        scales: Number of depths whose features give evidence.
        model_args: Further arguments of `timm.create_model`.
    """
    with torch.device("meta"):
        vanilla: TimmModule = timm.create_model(architecture, **{**model_args, "num_classes": _PROBE_CLASSES}).eval()
        image = torch.empty(1, *input_size(vanilla, model_args))
        raw = _raw_features(vanilla, image)
        hidden = _hidden_features(vanilla, image) if scales > 1 else []
    anatomy = _with_stride(_read_head(_Probe(vanilla, raw.shape, image.shape[-2:])), raw, image)
    cells = anatomy.to_maps(raw, image.shape[-2:]).shape[2:]
    return replace(anatomy, finer=find_finer(hidden, cells, scales))


def _hidden_features(vanilla: TimmModule, image: Tensor) -> list[Tensor]:
    """Compute the intermediate features of an image; none where timm gives none, or computes them from values."""
    if not hasattr(vanilla, "forward_intermediates"):
        return []
    try:
        hidden: list[Tensor] = vanilla.forward_intermediates(image, intermediates_only=True)
    except RuntimeError:  # tensors on the meta device have no values
        return []
    return hidden


def examine_or_explain(name: str, architecture: str, model_args: dict[str, Any], scales: int = 1) -> Anatomy:
    """Find out how an architecture reads its features, with errors in terms of the name that the user gave."""
    try:
        return examine(architecture, scales, **model_args)
    except NoFinerFeatures as error:
        raise NoFinerFeatures(f"{name} with {error}") from error
    except TypeError as error:  # of the architecture's constructor
        raise TypeError(
            f"neither timm's {architecture} nor the head of {name} takes these arguments: {error}"
        ) from error
    except NoEvidenceMap as error:
        raise NoEvidenceMap(
            f"{name} is not possible: {architecture} admits no evidence map, because {error}. "
            f"Use one that timm.list_models('{name.split('_')[0]}_*') lists, such as resnet50, efficientnet_b0, "
            "convnext_tiny or swinv2_tiny_window8_256"
        ) from error


@torch.no_grad()
def examine_pruned(backbone: TimmModule, image_size: tuple[int, int, int], before: Anatomy) -> Anatomy:
    """Find out the layout of the features that a backbone without head gives after layers were pruned.

    Args:
        backbone: A timm model whose head was pruned. It stays as it is.
        image_size: Channels, height and width of an image.
        before: Anatomy before the pruning, which stays where a backbone now gives several feature maps.
    """
    image = torch.empty(1, *image_size, device="meta")
    raw = copy.deepcopy(backbone).to("meta").eval().forward_features(image)
    if not isinstance(raw, Tensor):
        return replace(before, before=(), hidden=(), finer=())
    anatomy = _with_class_tokens(_layout(backbone, raw.shape), backbone, raw.shape, image.shape[-2:])
    return _with_stride(anatomy, raw, image)


def _with_stride(anatomy: Anatomy, raw: Tensor, image: Tensor) -> Anatomy:
    """Count the pixels for one cell of a map, from the raw features of an image."""
    rows = anatomy.to_maps(raw, image.shape[-2:]).shape[2]
    return replace(anatomy, stride=image.shape[2] / rows)


def _raw_features(vanilla: TimmModule, image: Tensor) -> Tensor:
    try:
        raw = vanilla.forward_features(image)
        if isinstance(raw, Tensor):
            vanilla.forward_head(raw)
            return raw
    except NotImplementedError as error:
        raise NoEvidenceMap("it is an encoder without a classifier") from error
    raise NoEvidenceMap("it classifies from several feature maps instead of one")


class _Probe:
    """The head of a timm model with random weights, and random features of its own shape, in double precision."""

    def __init__(self, vanilla: TimmModule, shape: torch.Size, image_size: Sequence[int]) -> None:
        self.vanilla = vanilla
        self.generator = torch.Generator().manual_seed(0)  # the caller's random state is left alone
        self.shape, self.image_size = shape, image_size
        self.layers = self._layers()

    def materialise(self) -> None:
        """Give the head random weights on the CPU."""
        for name in {name.split(".")[0] for name, _, _ in self.layers}:
            self._materialise(self.vanilla.get_submodule(name))

    def _layers(self) -> list[tuple[str, nn.Module, torch.Size]]:
        """List the layers with weights or a nonlinearity that `forward_head` runs, with the shape of their input.

        A dropout counts where another layer but the classifier follows.
        """
        passive = (nn.Identity, nn.Flatten)
        layers: list[tuple[str, nn.Module, torch.Size]] = []

        def record(name: str) -> Callable[..., None]:
            return lambda module, inputs: layers.append((name, module, inputs[0].shape))

        handles = [
            layer.register_forward_pre_hook(record(name))
            for name, layer in _single_layers(self.vanilla)
            if not isinstance(layer, passive)
        ]
        try:
            self.head(torch.empty(self.shape, device="meta"))
        finally:
            for handle in handles:
                handle.remove()
        layers = [layer for layer in layers if "Pool" not in type(layer[1]).__name__ or everywhere(layer[1])]
        while len(layers) > 1 and isinstance(layers[-2][1], nn.Dropout):
            del layers[-2]
        return layers

    def _materialise(self, module: nn.Module) -> None:
        module.to_empty(device="cpu").double()
        for weight in module.parameters():
            weight.normal_(generator=self.generator)
        for buffer in module.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5, generator=self.generator)

    def head(self, raw: Tensor) -> Tensor:
        return self.vanilla.forward_head(raw)

    def random(self, shape: torch.Size | None = None) -> Tensor:
        return torch.randn(shape or self.shape, generator=self.generator, dtype=torch.float64, device="cpu")

    def close(self, left: Tensor, right: Tensor) -> bool:
        """Tell whether two results of the head agree; some norms compute in float32 for inputs of any precision."""
        return left.shape == right.shape and torch.allclose(left.double(), right.double(), rtol=1e-4, atol=1e-4)


def _single_layers(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """List the layers without parts, and those that are one layer in spite of their parts, with their paths."""
    for name, child in module.named_children():
        below = f"{path}.{name}" if path else name
        if not any(child.children()) or everywhere(child):
            yield below, child
            if everywhere(child) is attention_pool:
                yield f"{below}.proj", child.get_submodule("proj")  # the classifier is a part of this pool
        else:
            yield from _single_layers(child, below)


def _read_head(probe: _Probe) -> Anatomy:
    """Compare the head with each form that admits an evidence map, or raise NoEvidenceMap."""
    anatomy = _layout(probe.vanilla, probe.shape)
    names = ", ".join(name for name, layer, _ in probe.layers[:-1] if not isinstance(layer, nn.Dropout))
    if isinstance(getattr(probe.vanilla, "pre_logits", None), ConvMlp):
        hidden = probe.vanilla.pre_logits.fc2.out_channels
        return replace(anatomy, head_type="vgg", channels=hidden, linear=probe.layers[-1][0])
    probe.materialise()
    reads_average = _reads_average(probe, anatomy)
    for reading in _readings(probe, anatomy):
        if _is_right(probe, reading, reads_average):
            return reading
    if reads_average:
        raise NoEvidenceMap(f"between its pool and its classifier stand layers of an unknown kind ({names})")
    if not anatomy.tokens:
        raise NoEvidenceMap(f"its classifier reads more than the average of its features (through {names})")
    return _with_class_tokens(anatomy, probe.vanilla, probe.shape, probe.image_size)


def _layout(vanilla: TimmModule, shape: torch.Size) -> Anatomy:
    """Read off a shape where locations and channels are in the raw features; the head type is `tokens` for now."""
    if len(shape) == 4:
        last = getattr(vanilla, "output_fmt", None) == "NHWC"
        return Anatomy("tokens", channels=shape[3 if last else 1], channels_last=last)
    prefix = getattr(vanilla, "num_prefix_tokens", 0)
    if shape[1] - prefix < 2:
        raise NoEvidenceMap(_ONLY_CLASS_TOKENS)
    return Anatomy("tokens", channels=shape[2], tokens=True, prefix_tokens=prefix)


def _with_class_tokens(anatomy: Anatomy, vanilla: TimmModule, shape: torch.Size, image_size: Sequence[int]) -> Anatomy:
    """Count the class tokens that timm does not count, for a head that reads something other than the average."""
    if anatomy.tokens and not hasattr(vanilla, "num_prefix_tokens"):
        anatomy = replace(anatomy, prefix_tokens=_count_prefix(shape[1], image_size))
        if shape[1] - anatomy.prefix_tokens < 2:
            raise NoEvidenceMap(_ONLY_CLASS_TOKENS)
    return anatomy


def _count_prefix(length: int, image_size: Sequence[int]) -> int:
    """Return the least number of tokens to drop so that the rest fills a grid in the shape of the image."""
    for prefix in range(length):
        height = int(((length - prefix) * image_size[0] / image_size[1]) ** 0.5 + 0.5)
        if height * round(height * image_size[1] / image_size[0]) == length - prefix:
            return prefix
    return 0


def _reads_average(probe: _Probe, anatomy: Anatomy) -> bool:
    """Tell whether the head returns the same for features whose every location holds their average."""
    raw = probe.random()
    if anatomy.tokens:
        patches = raw[:, anatomy.prefix_tokens :]
        other_prefix = probe.random(raw[:, : anatomy.prefix_tokens].shape)
        flat = torch.cat([other_prefix, patches.mean(dim=1, keepdim=True).expand_as(patches)], dim=1)
    else:
        flat = raw.mean(dim=(1, 2) if anatomy.channels_last else (2, 3), keepdim=True).expand_as(raw).contiguous()
    return probe.close(probe.head(raw), probe.head(flat))


def _readings(probe: _Probe, anatomy: Anatomy) -> Iterator[Anatomy]:
    """List the ways in which the head may read its features, the simplest first."""
    name, last, _ = probe.layers[-1]
    linear = replace(anatomy, linear=name)
    if isinstance(last, nn.Linear | nn.Conv2d):
        linear = replace(linear, channels=last.weight.shape[1])
        yield replace(linear, head_type="linear")
    yield replace(anatomy, head_type="affine")
    before = [
        name
        for name, layer, shape in probe.layers[:-1]
        if len(shape) == 4 and math.prod(shape[2:]) > 1 and everywhere(layer) is not attention_pool
    ]
    after = [(name, layer) for name, layer, _ in probe.layers[:-1] if name not in before]
    if isinstance(last, nn.Linear | nn.Conv2d) and all(everywhere(layer) for _, layer in after):
        is_norm = not before and [everywhere(layer) for _, layer in after] == [pooled_norm]
        hidden = tuple(name for name, _ in after)
        yield replace(linear, head_type="norm" if is_norm else "gated", before=tuple(before), hidden=hidden)


def _is_right(probe: _Probe, reading: Anatomy, reads_average: bool) -> bool:
    """Tell whether the head makes of random features what a reading says.

    Args:
        probe: Head and features.
        reading: One of `_readings`.
        reads_average: Whether the head reads nothing but the average of the features.
    """
    raw = probe.random()
    logits = probe.head(raw)
    if reading.linear is None:
        other = probe.random()
        mean = probe.head((raw + other) / 2)
        return reads_average and probe.close(mean, (logits + probe.head(other)) / 2)
    weight, bias = weights_of(probe.vanilla.get_submodule(reading.linear))
    try:
        features = _features(probe, reading, raw)
    except RuntimeError:  # layers that run side by side, as in attention, do not fit one another
        return False
    if features.shape[1] != reading.channels:
        return False
    return probe.close(logits, torch.einsum("bkhw,ck->bchw", features, weight).mean(dim=(2, 3)) + bias)


def _features(probe: _Probe, reading: Anatomy, raw: Tensor) -> Tensor:
    """Compute what the classifier reads at every location, with the layers of the vanilla head."""
    features = reading.to_maps(raw, probe.image_size)
    for path in reading.before:
        features = probe.vanilla.get_submodule(path)(features)
    for path in reading.hidden:
        layer = probe.vanilla.get_submodule(path)
        forward = everywhere(layer)
        assert forward is not None
        features = forward(layer, features)
    return features
