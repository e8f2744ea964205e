"""The setting `model_args`: refuse what cannot be saved and loaded again, before anything is trained.

- A model folder records the arguments of its architecture in config.json. One that JSON changes, or that timm does not
  take back, would show only when the finished run is loaded.
- Arguments that say where weights come from are used once and not recorded.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import timm
import torch
import yaml
from torch import nn

from ..models.modeling import EvidenceForImageClassification
from ..models.preprocessing import check_model_args, check_pretrained_cfg
from ..models.weights import SOURCES

_SAID_ELSEWHERE = {
    "pretrained": "set --pretrained",
    "num_classes": "the data say how many classes there are",
    "checkpoint_path": "give the file to --init",
    "features_only": "a classifier is trained, and not a feature extractor",
    "out_indices": "a classifier is trained, and not a feature extractor",
    "device": "`accelerate launch` chooses the device",
    "dtype": "set --mixed_precision",
}
"""Arguments of `timm.create_model` that a run does not take -> what to do instead."""


def parse_model_args(text: str, pretrained: bool) -> dict[str, Any]:
    """Read the setting `model_args` as arguments by name, and refuse what is no argument of an architecture.

    Args:
        text: Pairs of name and value such as 'output_stride=8 drop_rate=0.1'. Values are read as YAML.
        pretrained: The run starts from timm's weights, or from those that the arguments point to.
    """
    pairs = [pair.partition("=") for pair in text.split()]
    wrong = [name for name, equals, _ in pairs if not (name and equals)]
    if wrong:
        raise ValueError(f"model_args: expected name=value pairs, such as 'output_stride=8', got {wrong[0]!r}")
    args = {name: _read_value(name, value) for name, _, value in pairs}
    _check_allowed(args, pretrained)
    return args


def _read_value(name: str, value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except (ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"model_args: the value of {name}={value} is no YAML ({reason}); spaces separate pairs, so that a value "
            "holds none, such as 'name={\"key\":1}'"
        ) from error


def _check_allowed(args: dict[str, Any], pretrained: bool) -> None:
    for name, value in args.items():
        if name in _SAID_ELSEWHERE:
            raise ValueError(f"model_args: {name}={value!r} is no argument of an architecture: {_SAID_ELSEWHERE[name]}")
        if name not in SOURCES and not _survives_json(value):
            raise ValueError(
                f"model_args: {name}={value!r} cannot be saved in a config.json, which holds numbers, text, lists and "
                "names with values: leave it out, or write it otherwise"
            )
    overlay = args.get("pretrained_cfg_overlay")
    if overlay is not None and not isinstance(overlay, dict):
        raise ValueError(f"model_args: pretrained_cfg_overlay must map names to values, got {overlay!r}")
    if overlay and {"file", "url", "hf_hub_id"} & overlay.keys() and not pretrained:
        raise ValueError(
            "model_args: pretrained_cfg_overlay says where weights are, but they are only loaded with --pretrained; "
            "a local file of weights can also be given to --init"
        )
    if overlay and "architecture" in overlay:
        raise ValueError("model_args: pretrained_cfg_overlay names another architecture: name it with --model")
    check_pretrained_cfg(overlay)
    check_model_args(args)


def _survives_json(value: Any) -> bool:
    try:
        return json.loads(json.dumps(value)) == value
    except (TypeError, ValueError):
        return False


def check_reloads(model: nn.Module, args: dict[str, Any]) -> None:
    """Build the model again from the configuration that it would be saved with, and compare names and shapes.

    Args:
        model: A model of ours, or a black box.
        args: The `model_args` that it was made with.
    """
    with TemporaryDirectory() as place, torch.random.fork_rng(devices=[]):
        (model.config.save_pretrained if _is_ours(model) else model.save_config)(place)
        failure = _failure(model, Path(place))
        if failure is None:
            return
        for name in args:
            with TemporaryDirectory() as other:
                _copy_without(Path(place), Path(other), name)
                if _failure(model, Path(other)) != failure:
                    raise ValueError(
                        f"model_args: a model made with {name}={args[name]!r} can be saved, but not loaded again: "
                        f"{failure}. Leave {name} out"
                    )
        raise ValueError(f"a model made with model_args {args!r} can be saved, but not loaded again: {failure}")


def _copy_without(folder: Path, target: Path, name: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    for values in (config.get("model_args", {}), config):
        values.pop(name, None)
    (target / "config.json").write_text(json.dumps(config))


def _failure(model: nn.Module, folder: Path) -> str | None:
    """Why the model cannot be built again from a folder with its config.json; None if it can."""
    reason = None
    for device in ("meta", "cpu"):  # few architectures cannot be built on the meta device
        try:
            with torch.device(device):
                differences = [_difference(model, again) for again in _rebuilt(model, folder)]
        except Exception as error:  # timm's architectures raise errors of many kinds
            reason = str(error) or type(error).__name__
        else:
            return next((difference for difference in differences if difference), None)
    return reason


def _rebuilt(model: nn.Module, folder: Path) -> Iterator[nn.Module]:
    """The model as timm and, if it is one of ours, as transformers builds it."""
    yield timm.create_model(f"local-dir:{folder}")
    if _is_ours(model):
        yield type(model)(model.config_class.from_pretrained(folder))


def _is_ours(model: nn.Module) -> bool:
    return isinstance(model, EvidenceForImageClassification)


def _difference(model: nn.Module, again: nn.Module) -> str | None:
    made, found = _shapes(model), _shapes(again)
    names = [name for name in {**made, **found} if made.get(name) != found.get(name)]
    return f"its {names[0]} would be {found.get(names[0])} instead of {made.get(names[0])}" if names else None


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    model = getattr(model, "vanilla", model)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if not name.startswith("teacher.")}
