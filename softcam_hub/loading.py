"""Models from anywhere: a folder, a timm name or a Hub id, found, checked and loaded through timm.

- A config.json comes from other people, or was edited by hand. What it says of images and classes is checked before
  anything is built from it.
"""

import difflib
from pathlib import Path
from typing import Any

import timm
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from timm.models import parse_model_name
from timm.models._hub import download_from_hf
from torch import nn

from .files import read_mapping
from .models.preprocessing import check_model_args, check_pretrained_cfg

CONFIG = "config.json"

LOCAL, HUB = "local-dir", "hf-hub"
"""timm's prefixes for a model folder and for a repository."""


def find_model(source: str | Path, timm_names: bool = True) -> str:
    """Return the name by which `timm.create_model` loads a source, or raise FileNotFoundError.

    Args:
        source: Model folder, timm name or Hub id.
        timm_names: Accept names of timm architectures. Without it a source must hold weights of its own.
    """
    name, path = str(source), Path(source).expanduser()
    if path.is_dir():
        _check_folder(path)
        return f"{LOCAL}:{path}"
    if timm_names and timm.is_model(name.split(".")[0]):
        return name
    if _is_hub_id(name):
        return f"{HUB}:{name}"
    near = difflib.get_close_matches(name, timm.list_models(), n=2) if timm_names else []
    expected = f"a model folder{', a timm name' if timm_names else ''} or a Hub id such as user/name"
    hint = f"did you mean {' or '.join(near)}?" if near else f"there is no such folder; expected {expected}"
    raise FileNotFoundError(f"there is no model {name!r}: {hint}")


def _check_folder(path: Path) -> None:
    if not (path / CONFIG).is_file():
        inside = path / "model"
        hint = f"did you mean {inside}?" if inside.is_dir() else "a model folder has one"
        raise FileNotFoundError(f"there is no {CONFIG} in {path}: {hint}")


def _is_hub_id(name: str) -> bool:
    """Whether a name has the form user/name, perhaps with a revision behind an @."""
    try:
        validate_repo_id(name.partition("@")[0])
    except HFValidationError:
        return False
    return name.count("/") == 1 and not name.startswith(("/", "."))


def read_config(name: str) -> dict[str, Any]:
    """Read and check the config.json of a model that `find_model` found in a folder or on the Hub.

    Args:
        name: timm's name of it, which begins with `local-dir:` or `hf-hub:`.
    """
    place, source = parse_model_name(name)
    file = Path(source, CONFIG) if place == LOCAL else _download_config(source)
    config = read_mapping(file, "write the folder anew with save_pretrained, or mend the file")
    described = config.get("pretrained_cfg")
    try:
        check_pretrained_cfg({} if described is None else described)
        at_root = {key: config[key] for key in ("num_classes", "label_names") if config.get(key) is not None}
        check_pretrained_cfg({**(described or {}), **at_root})
        check_model_args(config.get("model_args"))
    except ValueError as error:
        raise ValueError(f"{CONFIG} of {source} describes no model: {error}") from error
    return config


def _download_config(repo_id: str) -> Path:
    try:
        return Path(download_from_hf(repo_id, CONFIG))
    except Exception as error:  # of the Hub's client, of many kinds
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise FileNotFoundError(
            f"there is no folder {repo_id!r} here, and the Hub gives no model of that name: {reason}"
        ) from error


def load_timm(name: str, source: str | Path, **options: Any) -> nn.Module:
    """Load a model through timm, with its weights; what cannot be loaded raises one ValueError.

    Args:
        name: What `find_model` returned for the source.
        source: The source in the user's words, for error messages.
        options: Further arguments of `timm.create_model`.
    """
    try:
        if parse_model_name(name)[0] is not None:
            read_config(name)
        return timm.create_model(name, pretrained=True, **options)
    except FileNotFoundError:
        raise
    except KeyError as error:  # timm's, of its own keys
        raise ValueError(
            f"model {str(source)!r} cannot be loaded: its {CONFIG} names no timm architecture, as those of "
            "transformers' own models do not; expected a model of timm or of softcam_hub"
        ) from error
    except Exception as error:  # of the Hub, of timm and of safetensors, of many kinds
        raise ValueError(f"model {str(source)!r} cannot be loaded: {error or type(error).__name__}") from error
