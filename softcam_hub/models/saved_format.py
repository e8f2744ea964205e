"""What config.json says of its own format, so that a folder of a newer release is refused instead of misread.

Everything stands in `model_args`, because these are the values that timm hands to the model when it loads a folder:

- `format`: number of the format. Folders without a number were saved before there was one; they have format 1.
- `head_options`: variant of the head, such as `{"naive": true}`. In format 1 these stand beside the other arguments.
- `scales`: number of depths whose features give evidence, in format 4. Models with one have format 3 still.
- `alignment`: where the cells of the maps lie in the image, from format 3 on.
- `head`: import path of a head that another package registers, for the message where that import is missing. It is
  never imported from here.
"""

from typing import Any

from .heads import BUILT_IN, HEADS

FORMAT = 4
"""Number of the newest format that this release reads and writes."""

FORMAT_OF_ONE_SCALE = 3
"""Number of the format that models with one scale have, so that earlier releases read them."""

_KEYS = ("format", "head_options", "head")


def read_saved_args(model_args: dict[str, Any], architecture: str) -> dict[str, Any]:
    """Return the arguments that make a saved model again, without what they say of their format.

    Args:
        model_args: Arguments from a config.json, or the options of a model that is made for the first time.
        architecture: Name of the model, such as `cape_resnet50`.
    """
    check_format(model_args.get("format", 1))
    check_registered(architecture, model_args)
    options = model_args.get("head_options", {})
    if not isinstance(options, dict):
        raise ValueError(f"head_options in model_args must map names to values, got {options!r}")
    head = HEADS.get(architecture.partition("_")[0])
    if head is not None and (unknown := [name for name in options if name not in head.options()]):
        known = ", ".join(head.options()) or "none"
        raise ValueError(
            f"{architecture} was saved with the head option {unknown[0]!r}, which {head.title} does not have in this "
            f"release (it has: {known}): update the package that defines the head"
        )
    for name, value in options.items():
        if model_args.get(name, value) != value:
            raise ValueError(
                f"{name}={model_args[name]} contradicts head_options, which say {name}={value}: give {name} once"
            )
    return plain_args(model_args)


def plain_args(model_args: dict[str, Any]) -> dict[str, Any]:
    """Return arguments of a model by their names alone, without checks: options of the head beside the others."""
    plain = {name: value for name, value in model_args.items() if name not in _KEYS}
    return plain | (model_args.get("head_options") or {})


def written_args(model_args: dict[str, Any], family: str) -> dict[str, Any]:
    """Return the arguments of a model as config.json holds them; the inverse of `read_saved_args`."""
    head, model_args = HEADS[family], plain_args(model_args)
    options = {name: model_args[name] for name in head.options() if name in model_args}
    written = {name: value for name, value in model_args.items() if name not in options}
    if written.get("scales") == 1:
        del written["scales"]
    written["format"] = FORMAT if "scales" in written else FORMAT_OF_ONE_SCALE
    if options:
        written["head_options"] = options
    if head not in BUILT_IN:
        written["head"] = f"{head.__module__}.{head.__qualname__}"
    return written


def check_format(number: Any) -> None:
    """Raise ValueError for the format of a newer release, and for one that no release writes."""
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ValueError(f"format in model_args must be a whole number from 1 to {FORMAT}, got {number!r}")
    if number > FORMAT:
        raise ValueError(
            f"this model folder has format {number}, and this release of softcam_hub reads formats up to {FORMAT}: "
            "update softcam_hub"
        )


def check_registered(architecture: Any, model_args: Any) -> None:
    """Raise ValueError where a config.json names a head that is not registered; the message says which import helps.

    Args:
        architecture: Name of the model in the config.json.
        model_args: Arguments in the config.json.
    """
    family = str(architecture).partition("_")[0]
    head = model_args.get("head") if isinstance(model_args, dict) else None
    if head is not None and family not in HEADS:
        module, _, name = str(head).rpartition(".")
        raise ValueError(
            f"{architecture} has a head of the family {family!r}, which is not registered here: import {module}, "
            f"which defines {name} and registers it with softcam_hub.register_head, before you load the model"
        )
