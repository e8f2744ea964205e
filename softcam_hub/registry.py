"""`softcam_*`, `cape_*` and the families of other packages, as timm architectures with timm's own pretrained tags.

- Which architectures admit evidence maps stands in `architectures.json`, written by `tools/probe_timm.py`. Names that
  the installed timm does not have are skipped, and names that it has beyond them can still be made with `build`.
- The pretrained weights are timm's official ones: their classifier is carried over at load time.
"""

import warnings
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import timm
from timm.models import generate_default_cfgs, register_model
from timm.models._registry import _model_pretrained_cfgs, _model_with_tags
from torch import nn

from .architectures import architectures
from .deferred_imports import AfterImport, run_after_imports
from .models.classifier import build
from .models.head_contract import check_head
from .models.heads import BUILT_IN, HEADS, EvidenceHead
from .models.names import ALIASES
from .models.weights import derive_cfg

if TYPE_CHECKING:
    from .models.configuration import EvidenceConfig
    from .models.modeling import EvidenceForImageClassification, EvidenceModel

Head = TypeVar("Head", bound=type[EvidenceHead])

default_cfgs: dict[str, Any] = {}
"""Pretrained tags of this module's architectures, under the name by which timm's `register_model` looks for them."""


@cache
def register() -> None:
    """Make the models of this package known to timm, and to transformers as soon as a program has imported it."""
    for head in BUILT_IN:
        _register_with_timm(head.family)
    own, auto = f"{__package__}.models", "transformers.models.auto"
    configuration, modeling = f"{own}.configuration", f"{own}.modeling"
    run_after_imports(
        [
            AfterImport(f"{auto}.configuration_auto", _register_configurations, needs=[configuration]),
            AfterImport(
                f"{auto}.modeling_auto", _register_models, ["transformers.modeling_utils", configuration, modeling]
            ),
            AfterImport(f"{auto}.image_processing_auto", _register_image_processors, needs=[configuration]),
            AfterImport("transformers.pipelines", _register_pipeline, needs=[f"{__package__}.pipeline"]),
        ]
    )


def register_head(
    head: Head,
    config: "type[EvidenceConfig] | None" = None,
    model: "type[EvidenceModel] | None" = None,
    classifier: "type[EvidenceForImageClassification] | None" = None,
) -> Head:
    """Make a head of your own available as `<family>_<timm name>` everywhere, and return it.

        @softcam_hub.register_head
        class MyHead(softcam_hub.EvidenceHead): ...

    Without classes of its own for transformers, a head is trained with cross-entropy, or binary cross-entropy for
    several labels per image, plus its `penalty`. Such a model folder holds no code. Register the head, by importing
    your module, before you load the folder.

    Args:
        head: Class derived from `EvidenceHead`.
        config: Configuration of the family for transformers; give all three classes or none.
        model: Model without a loss for transformers.
        classifier: Model with a loss for transformers, and for training.
    """
    check_head(head)
    _check_names(head)
    own = (config, model, classifier)
    if any(own) and not all(own):
        raise TypeError("register_head() takes config, model and classifier together, or none of them")
    if config is not None and config.model_type != head.family:
        raise ValueError(f"model_type of {config.__name__} must be the family {head.family!r}: {config.model_type!r}")
    HEADS[head.family] = head
    _register_with_timm(head.family)
    if config is not None and model is not None and classifier is not None:
        from .models.modeling import MODELS

        MODELS[head.family] = classifier
        _register_configuration(config)
        _register_model(config, model, classifier)
        _register_image_processor(config)
    return head


def _check_names(head: type[EvidenceHead]) -> None:
    """Refuse names that would hide models of timm or explainers."""
    if head.family in HEADS:
        return
    from .explainers.methods import list_explainers

    hidden = timm.list_models(f"{head.family}_*")
    if hidden:
        raise ValueError(
            f"the family {head.family!r} is taken, timm has models such as {hidden[0]}: give {head.__name__} another "
            "name"
        )
    for kind in head.map_kinds:
        if kind.native and kind.name in list_explainers():
            raise ValueError(f"there is an explainer called {kind.name!r}: rename the map kind of {head.__name__}")


def _register_with_timm(family: str) -> None:
    names = {name: name for name in architectures() if timm.is_model(name)}
    names |= {alias: name for alias, name in ALIASES.items() if name in names}
    module, listed = globals(), globals().get("__all__", [])
    with warnings.catch_warnings():
        # a cell of a notebook that is run again registers its head again, and timm would warn of every name
        warnings.filterwarnings("ignore", "Overwriting .* in registry")
        for short, architecture in names.items():
            name = f"{family}_{short}"
            tags = {f"{name}{tag}": cfg for tag, cfg in _pretrained_tags(architecture).items()}
            default_cfgs.update(generate_default_cfgs(tags))
            module["__all__"] = []  # timm looks for every name in the whole list, which would take a third of the time
            module[name] = register_model(_entrypoint(name))
    module["__all__"] = list(dict.fromkeys([*listed, *(f"{family}_{short}" for short in names)]))


def _register_configurations() -> None:
    from .models.configuration import CAPEConfig, EvidenceConfig, SoftCAMConfig

    for config in (SoftCAMConfig, CAPEConfig, EvidenceConfig):
        _register_configuration(config)


def _register_models() -> None:
    from .models import modeling as own
    from .models.configuration import CAPEConfig, EvidenceConfig, SoftCAMConfig

    _register_model(SoftCAMConfig, own.SoftCAMModel, own.SoftCAMForImageClassification)
    _register_model(CAPEConfig, own.CAPEModel, own.CAPEForImageClassification)
    _register_model(EvidenceConfig, own.EvidenceModel, own.EvidenceForImageClassification)


def _register_image_processors() -> None:
    from .models.configuration import CAPEConfig, EvidenceConfig, SoftCAMConfig

    for config in (SoftCAMConfig, CAPEConfig, EvidenceConfig):
        _register_image_processor(config)


def _register_pipeline() -> None:
    from .pipeline import register as register_task

    register_task()


def _register_configuration(config: type["EvidenceConfig"]) -> None:
    from transformers import AutoConfig

    AutoConfig.register(config.model_type, config, exist_ok=True)


def _register_model(
    config: type["EvidenceConfig"], model: type["EvidenceModel"], classifier: type["EvidenceForImageClassification"]
) -> None:
    from transformers import AutoModel, AutoModelForImageClassification

    AutoModel.register(config, model, exist_ok=True)
    AutoModelForImageClassification.register(config, classifier, exist_ok=True)


def _register_image_processor(config: type["EvidenceConfig"]) -> None:
    from transformers import AutoImageProcessor
    from transformers.models.timm_wrapper import TimmWrapperImageProcessor

    AutoImageProcessor.register(config, slow_image_processor_class=TimmWrapperImageProcessor, exist_ok=True)


@cache
def _pretrained_tags(architecture: str) -> dict[str, Any]:
    """Return `.tag` -> description of weights, timm's default first; all families share them, as timm adds the name."""
    # timm's functions copy every description deeply, which takes as long as all else of the registration
    cfgs = [_model_pretrained_cfgs[name] for name in _model_with_tags.get(architecture, ())]
    return {f".{cfg.tag}" if cfg.tag else "": derive_cfg(cfg) for cfg in cfgs}


def _entrypoint(name: str) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, **options: Any) -> nn.Module:
        return build(name, pretrained, **options)

    create.__name__ = create.__qualname__ = name
    create.__module__ = __name__
    return create
