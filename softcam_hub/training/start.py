"""Find the weights that a run starts from, and say what it keeps of them.

- A classifier for other classes than those of the data is replaced by a fresh one. The rest of the weights is kept.
- The same classes in another order are refused: most likely the order is a mistake.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm

from ..loading import find_model, read_config
from ..models.text import abbreviate
from ..models.weights import describe_file
from .config import ModelConfig

WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".bin")


@dataclass(frozen=True)
class Start:
    """The weights that a run starts from.

    Args:
        source: Description of the weights, for messages.
        keeps_classifier: The classifier is kept, because it is one for the classes of the data.
        is_random: There are no weights to start from.
        config: Content of the config.json, if the source is a model folder or a repository.
        overlay: timm's description of the source, if it is a file.
    """

    source: str
    keeps_classifier: bool
    is_random: bool = False
    config: dict[str, Any] = field(default_factory=dict)
    overlay: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        if self.is_random:
            return self.source
        return f"{self.source} {'with its classifier' if self.keeps_classifier else 'with a fresh head'}"


def find_start(settings: ModelConfig, classes: list[str]) -> Start:
    """Return the weights that the settings name.

    Args:
        settings: Settings of the model.
        classes: Class names of the data.
    """
    if settings.init is not None:
        return _find_init(settings, settings.init, classes)
    if not settings.pretrained:
        return Start("random weights", keeps_classifier=False, is_random=True)
    cfg = timm.get_pretrained_cfg(settings.timm_name, allow_unregistered=True)
    overlay = settings.architecture_args().get("pretrained_cfg_overlay") or {}
    num_classes = overlay.get("num_classes", cfg and cfg.num_classes)
    tag = f".{cfg.tag}" if cfg and cfg.tag and "." not in settings.timm_name else ""
    return Start(f"timm's weights {settings.timm_name}{tag}", num_classes == len(classes))


def _find_init(settings: ModelConfig, init: str, classes: list[str]) -> Start:
    path = Path(init).expanduser()
    if path.is_file():
        overlay = describe_file(path, settings.timm_name)
        return Start(init, overlay.get("num_classes") == len(classes), overlay=overlay)
    if path.suffix in WEIGHT_FILES and not path.is_dir():
        raise FileNotFoundError(f"there is no file of weights {init}: check --init")
    config = read_config(find_model(init, timm_names=False))
    cfg = config.get("pretrained_cfg") or {}
    names = config.get("label_names") or cfg.get("label_names")
    if names is None:
        return Start(init, config.get("num_classes", cfg.get("num_classes")) == len(classes), config=config)
    if list(names) != classes and sorted(names) == sorted(classes):
        raise ValueError(
            f"{init} was trained on the classes {list(names)[:10]}, but the data has {classes[:10]}: the same "
            "classes in another order. Give the classes of the data that order, or start without --init"
        )
    source = init if list(names) == classes else f"{init} (classes {abbreviate(names, 3)})"
    return Start(source, list(names) == classes, config=config)
