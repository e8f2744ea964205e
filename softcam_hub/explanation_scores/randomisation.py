"""Randomisation check: does a map depend on the weights that the model has learnt? (Adebayo et al. 2018)

One layer after another gets random weights, from the top down. A map that hardly changes does not explain the
model. The weights are restored at the end, also after an exception.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .maps import blur, heat, require
from .perturbation import spearman
from .predictions import Explain, explain_images


class RandomisationStep(NamedTuple):
    """Similarity of the maps before and after `layer` and all layers above it got random weights.

    Attributes:
        layer: Name of the module.
        rank_correlation: Spearman correlation of the maps, (B,) in [-1, 1]; 0 where a map is constant.
        ssim: Structural similarity of the heat maps, (B,) in [-1, 1].
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
    """Compare the maps before and after each step of a cascading randomisation; lower is better.

        steps = randomisation_check(model, lambda x, c: model.explain(x, c[:, None]).maps, images, classes)

    Args:
        model: Model that `explain` runs, in eval mode.
        explain: Function from images and classes to one map per image, (B, H, W) or (B, 1, H, W).
        images: Images, (B, C, H, W).
        classes: Class of each image, (B,), the same before and after.
        layers: Names of modules in the order of their randomisation. The default is every module that holds
            parameters itself, the one registered last first.
        seed: Seed of the random weights.
    """
    layers = parameter_layers(model)[::-1] if layers is None else list(layers)
    modules = dict(model.named_modules())
    unknown = [name for name in layers if name not in modules]
    require(not unknown, f"the model has no modules {unknown}: names are those of model.named_modules()")
    require(bool(layers), "the model has no parameters to randomise")
    generator, steps = torch.Generator().manual_seed(seed), []
    with weights_kept(model):
        original = explain_images(explain, images, classes)
        for name in layers:
            randomise(modules[name], generator)
            steps.append(compare(name, original, explain_images(explain, images, classes), images))
    return steps


def compare(layer: str, original: Tensor, changed: Tensor, images: Tensor) -> RandomisationStep:
    """Compare the maps before and after a step."""
    size = tuple(images.shape[-2:])
    correlation = spearman(original.flatten(1), changed.flatten(1))
    return RandomisationStep(layer, correlation, ssim(heat(original, size), heat(changed, size)))


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Compute the structural similarity of heat maps (B, H, W) in [0, 1], averaged over pixels, (B,).

    Gaussian windows of 11 pixels with sigma 1.5, constants 0.01² and 0.03², as in Wang et al. (2004).
    """
    a, b = first[:, None], second[:, None]
    mean_a, mean_b = smooth(a), smooth(b)
    var_a, var_b = smooth(a * a) - mean_a.square(), smooth(b * b) - mean_b.square()
    covariance = smooth(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + 1e-4) / (mean_a.square() + mean_b.square() + 1e-4)
    return (luminance * (2 * covariance + 9e-4) / (var_a + var_b + 9e-4)).mean(dim=(1, 2, 3))


def smooth(images: Tensor) -> Tensor:
    """Blur images with the window of `ssim`."""
    return blur(images, radius=5, sigma=1.5)


def parameter_layers(model: nn.Module) -> list[str]:
    """Return the names of the modules that hold parameters themselves, in order of registration."""
    return [name for name, module in model.named_modules() if any(True for _ in module.parameters(recurse=False))]


@torch.no_grad()
def randomise(module: nn.Module, generator: torch.Generator) -> None:
    """Draw each parameter of a module anew, from a normal distribution with its mean and standard deviation.

    The scale of the activations stays, so that maps change because of lost weights and not because of another
    range.
    """
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator).to(parameter)
        parameter.copy_(parameter.mean() + parameter.std(correction=0) * noise)


@contextmanager
def weights_kept(model: nn.Module) -> Iterator[None]:
    """Restore parameters and buffers at the end of the `with` block."""
    tensors = [*model.parameters(), *model.buffers()]
    kept = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, kept, strict=True):
                tensor.copy_(value)
