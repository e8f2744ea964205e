"""Read the setting `model_args`: arguments of a timm architecture, written as text.

- A model folder records the arguments of its architecture in config.json, so that they must survive JSON.
"""

import json
from typing import Any

import yaml

from ..models.preprocessing import check_model_args, check_pretrained_cfg
from ..models.weights import SOURCES

_SET_ELSEWHERE = {
    "pretrained": "set --pretrained",
    "num_classes": "the number of classes comes from the data",
    "checkpoint_path": "give the file to --init",
    "features_only": "a classifier is trained, and not a feature extractor",
    "out_indices": "a classifier is trained, and not a feature extractor",
    "device": "`accelerate launch` chooses the device",
    "dtype": "set --mixed-precision",
}
"""Arguments of `timm.create_model` that `model_args` refuses, with what to do instead."""


def parse_model_args(text: str, pretrained: bool) -> dict[str, Any]:
    """Parse the setting `model_args` into keyword arguments, and refuse arguments that a run cannot use.

    Args:
        text: Pairs of name and value, such as 'output_stride=8 drop_rate=0.1'. Values are read as YAML.
        pretrained: Pretrained weights are loaded, so that the arguments may say where they are.
    """
    args = {}
    for pair in text.split():
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise ValueError(f"model_args: expected name=value pairs, such as 'output_stride=8', got {name!r}")
        try:
            args[name] = yaml.safe_load(value)
        except (ValueError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"model_args: the value of {pair} is not valid YAML ({reason}). Values must not contain "
                "spaces, which separate pairs: write 'name={\"key\":1}'"
            ) from error
    _check_model_args(args, pretrained)
    return args


def _check_model_args(args: dict[str, Any], pretrained: bool) -> None:
    for name, value in args.items():
        if name in _SET_ELSEWHERE:
            raise ValueError(
                f"model_args: {name}={value!r} is not an argument of an architecture: {_SET_ELSEWHERE[name]}"
            )
        if name not in SOURCES and not _survives_json(value):
            raise ValueError(
                f"model_args: {name}={value!r} cannot be saved in config.json, which holds numbers, text, "
                "lists and mappings: leave it out, or write it in another form"
            )
    overlay = args.get("pretrained_cfg_overlay")
    if overlay is not None and not isinstance(overlay, dict):
        raise ValueError(f"model_args: pretrained_cfg_overlay must map names to values, got {overlay!r}")
    if overlay and {"file", "url", "hf_hub_id"} & overlay.keys() and not pretrained:
        raise ValueError(
            "model_args: pretrained_cfg_overlay names weights, but weights are only loaded with "
            "--pretrained; a local file of weights can also be given to --init"
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
