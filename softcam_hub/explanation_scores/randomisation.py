"""Does the map depend on what the model has learnt? (Adebayo et al. 2018)

The layers lose their weights one after another, from the top down, and stay so. A map that hardly changes does not
explain the model. The weights come back at the end, also after an exception.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .maps import blur, check, heat
from .perturbation import spearman
from .predictions import Explain, explained


class RandomisationStep(NamedTuple):
    """How alike the maps before and after are, once `layer` and all above it are random.

    Args:
        layer: the name of the module.
        rank_correlation: Spearman of the maps, (B,) in [-1, 1]; 0 where a map is constant.
        ssim: of the heat maps, (B,) in [-1, 1].
    """

    layer: str
    rank_correlation: Tensor
    ssim: Tensor


def randomisation_check(
    model: nn.Module,
    explain: Explain,
    images: Tensor,
    classes: Tensor,
    layers: Sequence[str] | None = None,
    seed: int = 0,
) -> list[RandomisationStep]:
    """Compare the maps of the model with those of its cascading randomisation, a step per layer; lower is better.

        steps = randomisation_check(model, lambda x, c: model.explain(x, c[:, None]).maps, images, classes)

    Args:
        model: what `explain` asks, in eval mode.
        explain: images and classes -> one map per image, (B, H, W) or (B, 1, H, W).
        images: (B, C, H, W).
        classes: (B,), the same classes before and after.
        layers: names of modules, in the order in which they lose their weights; by default every module that holds
            parameters itself, the one registered last first.
        seed: of the random weights.
    """
    layers = parameter_layers(model)[::-1] if layers is None else list(layers)
    modules = dict(model.named_modules())
    unknown = [name for name in layers if name not in modules]
    check(not unknown, f"the model has no modules {unknown}: names are those of model.named_modules()")
    check(bool(layers), "the model has no parameters to randomise")
    generator, steps = torch.Generator().manual_seed(seed), []
    with weights_kept(model):
        original = explained(explain, images, classes)
        for name in layers:
            randomise(modules[name], generator)
            steps.append(compare(name, original, explained(explain, images, classes), images))
    return steps


def compare(layer: str, original: Tensor, found: Tensor, images: Tensor) -> RandomisationStep:
    size = tuple(images.shape[-2:])
    correlation = spearman(original.flatten(1), found.flatten(1))
    return RandomisationStep(layer, correlation, ssim(heat(original, size), heat(found, size)))


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Structural similarity of two heat maps (B, H, W) in [0, 1], mean over pixels, (B,); 1 where they are equal.

    Gaussian windows of 11 pixels with sigma 1.5, constants 0.01² and 0.03², as in Wang et al. (2004).
    """
    a, b = first[:, None], second[:, None]
    mean_a, mean_b = smooth(a), smooth(b)
    var_a, var_b = smooth(a * a) - mean_a.square(), smooth(b * b) - mean_b.square()
    together = smooth(a * b) - mean_a * mean_b
    light = (2 * mean_a * mean_b + 1e-4) / (mean_a.square() + mean_b.square() + 1e-4)
    return (light * (2 * together + 9e-4) / (var_a + var_b + 9e-4)).mean(dim=(1, 2, 3))


def smooth(images: Tensor) -> Tensor:
    return blur(images, radius=5, sigma=1.5)


def parameter_layers(model: nn.Module) -> list[str]:
    """The names of the modules that hold parameters themselves, in order of registration."""
    return [name for name, module in model.named_modules() if any(True for _ in module.parameters(recurse=False))]


@torch.no_grad()
def randomise(module: nn.Module, generator: torch.Generator) -> None:
    """Draw each parameter of a module anew, from a normal distribution with the mean and spread that it has.

    The scale of what the network computes stays, so that it is the weights that are lost and not the maps' range.
    """
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator).to(parameter)
        parameter.copy_(parameter.mean() + parameter.std(correction=0) * noise)


@contextmanager
def weights_kept(model: nn.Module) -> Iterator[None]:
    """Whatever happens to parameters and buffers inside, they are as before afterwards."""
    tensors = [*model.parameters(), *model.buffers()]
    kept = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, kept, strict=True):
                tensor.copy_(value)
