"""Load any image classifier, and explain images with it: a module, a model folder, a timm name or a Hub id.

- A config.json is written by other people, or edited by hand. Its values are checked before anything is built from it.
- A module is described as it is: its mode and its device stay.
"""

import difflib
import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import timm
import torch
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from timm.data import resolve_data_config
from timm.models import parse_model_name
from timm.models._hub import download_from_hf
from torch import nn

from .files import read_mapping
from .models.backbone import TimmModule
from .models.classes import Classes, name_classes
from .models.evaluation_mode import evaluation_mode
from .models.explanation import Explanation
from .models.heads import HEADS
from .models.image_size import ImageSize, at_size, check_takes_size, say_which_size_failed
from .models.inputs import ImageInput
from .models.label_kind import is_multi_label
from .models.map_kind import KindName
from .models.preprocessing import check_model_args, check_pretrained_cfg, check_same_labels
from .models.saved_format import check_registered
from .models.vanilla import read_wrapper

CONFIG = "config.json"

LOCAL, HUB = "local-dir", "hf-hub"
"""timm's prefixes for a model folder and for a repository."""


@dataclass(frozen=True)
class LoadedClassifier:
    """A classifier, and what its configuration says of classes and images.

    Args:
        model: Classifier with timm's interface.
        name: Name to show in messages and tables.
        label_names: Class names that the configuration lists, or None where it lists none.
        multi_label: Whether an image may have several labels, or None where the configuration does not say.
        preprocessing: Size, crop, interpolation, mean and deviation of the images, as timm's `create_transform` takes
            them.
    """

    model: TimmModule
    name: str
    label_names: list[str] | None
    multi_label: bool | None
    preprocessing: dict[str, Any]

    @property
    def labels(self) -> list[str]:
        """A different name for every class: the model's own names, those of ImageNet, or numbers."""
        return list(name_classes(self.model.num_classes, self.label_names))

    def at_size(self, size: ImageSize | None) -> "LoadedClassifier":
        """Return the classifier with images of another size, after a trial; None stands for its own size."""
        if size is None:
            return self
        preprocessing = at_size(self.preprocessing, size)
        channels, *own = self.preprocessing["input_size"]
        _, *sides = preprocessing["input_size"]
        fixed = bool((getattr(self.model, "pretrained_cfg", None) or {}).get("fixed_input_size"))
        network: nn.Module = getattr(self.model, "backbone", None) or self.model
        check_takes_size(network, fixed, size, (own[0], own[1]))
        weight = next(self.model.parameters())
        image = torch.zeros(
            1, getattr(self.model, "in_chans", channels), *sides, dtype=weight.dtype, device=weight.device
        )
        with torch.no_grad(), evaluation_mode(self.model), say_which_size_failed(size):
            self.model(image)
        return replace(self, preprocessing=preprocessing)

    def check_classes(self, classes: Sequence[str], role: str) -> None:
        """Raise ValueError unless the classes of the model are those of the data, in the same order.

        Args:
            classes: Class names of the data.
            role: Name of the model in the message, such as "the model".
        """
        count, names, first = self.model.num_classes, self.label_names, list(classes)[:10]
        advice = "name a model of these classes, or the data that it was trained on"
        if count != len(classes):
            raise ValueError(f"{role} has {count} classes, but the data has {len(classes)}, {first}: {advice}")
        if names is not None and names != list(classes):
            raise ValueError(f"{role} was trained on the classes {names[:10]}, but the data has {first}: {advice}")


def load_classifier(source: str | Path | nn.Module, timm_names: bool = True, **options: Any) -> LoadedClassifier:
    """Load a classifier in eval mode, or describe a module as it is.

    Args:
        source: Model folder, timm name (`cape_resnet50`, `resnet50.a1_in1k`), Hub id, timm model, Hugging Face model of
            this package, or `TimmWrapperForImageClassification` of transformers.
        timm_names: Accept names of timm architectures. Without it a source must hold weights of its own.
        options: Further arguments of `timm.create_model`.
    """
    if isinstance(source, nn.Module):
        return _describe_module(source)
    model = _create(find_model(source, timm_names), source, **options)
    if not model.num_classes:
        raise ValueError(
            f"model {str(source)!r} has no classes, and so no prediction to explain: name one with a classifier"
        )
    return _describe(model.eval(), str(source), model.pretrained_cfg)


def explain(
    source: str | Path | nn.Module,
    images: ImageInput,
    classes: Classes | None = None,
    top_k: int = 1,
    kind: KindName | None = None,
    size: ImageSize | None = None,
) -> Explanation:
    """Explain images with a self-explaining classifier from any source.

        softcam_hub.explain("you/lesions", "photo.jpg", classes="exudate").save("why.png")

    A folder or a name is loaded anew by every call: load the model once to explain images one after the other.

    Args:
        source: Source as `load_classifier` takes it, of a `softcam_*`, `cape_*` or other self-explaining model.
        images: Images in any form that the model's own `explain` takes, such as a path, a URL, a PIL image, an array,
            a normalised tensor, or a list of these.
        classes: Classes to explain, as the model's own `explain` takes them.
        top_k: Number of most probable classes to explain when `classes` is not given.
        kind: Kind of map. The default is the kind that the prediction is made of.
        size: Side, or height and width, at which the network sees the images, in place of its own.
    """
    model: Any
    if isinstance(source, nn.Module):
        model = source
        for name in ("module", "timm_model"):  # of DataParallel, and of transformers' wrapper of timm models
            model = model if _explains_itself(model) else getattr(model, name, model)
    else:
        name = find_model(source)
        if parse_model_name(name)[0] is None and name.partition("_")[0] not in HEADS:
            raise _no_maps(name)  # before its weights are downloaded
        model = load_classifier(source).model
    if not _explains_itself(model):
        raise _no_maps(_architecture_of(model))
    if size is None:
        return model.explain(images, classes, top_k, kind)
    if "size" not in inspect.signature(model.explain).parameters:
        raise ValueError(
            "the code that came with this model is of an older release, which takes no size: load the folder without "
            "its code (trust_remote_code=False)"
        )
    return model.explain(images, classes, top_k, kind, size=size)


def _explains_itself(module: nn.Module) -> bool:
    """Tell whether a module is a model of this package, or of a copy of it that came with a folder."""
    return hasattr(module, "head_class") and hasattr(module, "explain")


def _no_maps(name: str) -> TypeError:
    """Make the error for a vanilla classifier."""
    architecture = name.partition(".")[0]
    names = " or ".join(f"{family}_{architecture}" for family in HEADS)
    advice = f"name {names}, " if timm.is_model(architecture) else ""
    return TypeError(
        f"{name} is a vanilla classifier without maps of its own: {advice}make a timm model self-explaining with "
        "softcam_hub.convert(model), or explain it post hoc with softcam_hub.create_explainer('grad-cam', model)"
    )


def _is_hugging_face_model(module: nn.Module) -> bool:
    """Tell whether a module is one of our models for transformers, without importing transformers to ask."""
    pretrained = sys.modules.get(f"{__package__}.models.pretrained")  # whoever made such a model has imported this
    return pretrained is not None and isinstance(module, pretrained.EvidencePreTrainedModel)


def _describe_module(module: TimmModule) -> LoadedClassifier:
    """Describe a module, with the timm model inside a Hugging Face model in its place."""
    if _is_hugging_face_model(module):
        with TemporaryDirectory() as folder:
            module.save_pretrained(folder)
            model = load_classifier(folder).model
        return _describe(model, _architecture_of(model), model.pretrained_cfg)
    if isinstance(wrapped := getattr(module, "timm_model", None), nn.Module):
        return _describe(wrapped, _architecture_of(wrapped), *read_wrapper(module))
    if not getattr(module, "num_classes", None) or not hasattr(module, "pretrained_cfg"):
        raise TypeError(
            f"a {type(module).__name__} does not say how many classes it has (num_classes) or what its images are "
            "(pretrained_cfg): expected a timm model or a model of softcam_hub; create_explainer takes any module"
        )
    return _describe(module, _architecture_of(module), module.pretrained_cfg)


def _describe(model: nn.Module, name: str, cfg: Mapping[str, Any], multi_label: bool | None = None) -> LoadedClassifier:
    names = cfg.get("label_names")
    if names is not None and len(names) != model.num_classes:  # those of another head, which has been replaced
        names = None
    if multi_label is None:
        multi_label = is_multi_label(model, default=None)
    preprocessing = resolve_data_config({}, pretrained_cfg=dict(cfg))
    return LoadedClassifier(model, name, None if names is None else list(names), multi_label, preprocessing)


def _architecture_of(model: TimmModule) -> str:
    return getattr(model, "pretrained_cfg", {}).get("architecture") or type(model).__name__


def find_model(source: str | Path, timm_names: bool = True) -> str:
    """Return the name by which `timm.create_model` loads a source, or raise FileNotFoundError.

    Args:
        source: Model folder, timm name or Hub id, with or without timm's prefix `local-dir:` or `hf-hub:`.
        timm_names: Accept names of timm architectures. Without it a source must hold weights of its own.
    """
    if not isinstance(source, str | os.PathLike):
        raise TypeError(f"expected a model, its folder, its timm name or its Hub id, got {type(source).__name__}")
    name = str(source)
    prefix = next((known for known in (LOCAL, HUB) if name.startswith(f"{known}:")), "")  # as users of timm write it
    if prefix:
        name = name.removeprefix(f"{prefix}:")
    path = Path(name).expanduser()
    if name and prefix != HUB and path.is_dir():
        _check_folder(path)
        return f"{LOCAL}:{path}"
    if timm_names and not prefix and timm.is_model(name.split(".")[0]):
        return name
    if prefix != LOCAL and _is_hub_id(name):
        return f"{HUB}:{name}"
    near = difflib.get_close_matches(name, timm.list_models(), n=2) if timm_names else []
    expected = f"a model folder{', a timm name' if timm_names else ''} or a Hub id such as user/name"
    hint = f"did you mean {' or '.join(near)}?" if near else f"there is no such folder; expected {expected}"
    raise FileNotFoundError(f"there is no model {str(source)!r}: {hint}")


def _check_folder(path: Path) -> None:
    if not (path / CONFIG).is_file():
        inside = path / "model"
        hint = f"did you mean {inside}?" if inside.is_dir() else "a model folder has one"
        raise FileNotFoundError(f"there is no {CONFIG} in {path}: {hint}")


def _is_hub_id(name: str) -> bool:
    """Tell whether a name has the form user/name, perhaps with a revision behind an @."""
    try:
        validate_repo_id(name.partition("@")[0])
    except HFValidationError:
        return False
    return name.count("/") == 1 and not name.startswith(("/", "."))


def read_config(name: str) -> dict[str, Any]:
    """Read and check the config.json of a model in a folder or on the Hub.

    Args:
        name: Name that `find_model` returned, which begins with `local-dir:` or `hf-hub:`.
    """
    prefix, source = parse_model_name(name)
    file = Path(source, CONFIG) if prefix == LOCAL else _download_config(source)
    config = read_mapping(file, "write the folder anew with save_pretrained, or mend the file")
    cfg = config.get("pretrained_cfg")
    try:
        if not isinstance(config.get("architecture", ""), str):
            raise ValueError(f"architecture must be the name of a timm architecture, got {config['architecture']!r}")
        check_pretrained_cfg({} if cfg is None else cfg)
        # timm reads the classes from the root of the file, and only then from pretrained_cfg
        classes = {key: config[key] for key in ("num_classes", "label_names") if config.get(key) is not None}
        check_pretrained_cfg({**(cfg or {}), **classes})
        check_same_labels(config.get("label_names"), config.get("id2label"))
        check_model_args(config.get("model_args"))
    except ValueError as error:
        raise ValueError(f"{CONFIG} of {source} describes no model: {error}") from error
    check_registered(config.get("architecture"), config.get("model_args"))
    return config


def _download_config(repo_id: str) -> Path:
    try:
        return Path(download_from_hf(repo_id, CONFIG))
    except Exception as error:  # the Hub's client raises many types
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise FileNotFoundError(
            f"there is no folder {repo_id!r} here, and the Hub gives no model of that name: {reason}"
        ) from error


def _create(name: str, source: str | Path, **options: Any) -> TimmModule:
    """Create a model with its weights through timm, and turn every failure into one ValueError.

    Args:
        name: Name that `find_model` returned for the source.
        source: Source in the user's words, for error messages.
        options: Further arguments of `timm.create_model`.
    """
    try:
        if parse_model_name(name)[0] is not None:
            read_config(name)
        return timm.create_model(name, pretrained=True, **options)
    except FileNotFoundError:
        raise
    except KeyError as error:  # timm looks up its own keys without a check
        raise ValueError(
            f"model {str(source)!r} cannot be loaded: its {CONFIG} names no timm architecture, as the configurations "
            "of transformers' own models do not; expected a model of timm or of softcam_hub"
        ) from error
    except SafetensorError as error:
        raise ValueError(
            f"model {str(source)!r} cannot be loaded: its file of weights is damaged or was cut off ({error}); copy or "
            "download it again"
        ) from error
    except Exception as error:  # the Hub's client and timm raise many types
        raise ValueError(f"model {str(source)!r} cannot be loaded: {error or type(error).__name__}") from error
