"""The public names of the package, each with the module that it comes from."""

from typing import TYPE_CHECKING

MODULES = {
    "evaluation.placement": ("Placement",),
    "evaluation.run": ("benchmark",),
    "explainers.create": ("create_explainer",),
    "explainers.methods": ("list_explainers",),
    "explanation_scores": ("load_scores",),
    "export": ("export_onnx", "export_torch"),
    "hub": ("push",),
    "loading": ("explain",),
    "models.card_text": ("CardText",),
    "models.classifier": ("Classifier", "build"),
    "models.configuration": ("CAPEConfig", "EvidenceConfig", "SoftCAMConfig"),
    "models.conversion": ("convert", "to_vanilla"),
    "models.explanation": ("Explanation",),
    "models.flip_registration": ("measure_alignment",),
    "models.heads": ("EvidenceHead",),
    "models.map_kind": ("MapKind",),
    "models.modeling": (
        "CAPEForImageClassification",
        "CAPEModel",
        "EvidenceForImageClassification",
        "EvidenceModel",
        "SoftCAMForImageClassification",
        "SoftCAMModel",
    ),
    "models.regions": ("Regions",),
    "post_fitting": ("post_fit",),
    "registry": ("register_head",),
    "temperature": ("fit_temperature",),
    "web.page": ("export_web",),
}
"""Module -> its public names. A module is imported when one of its names is first used."""

NAMES = tuple(sorted(name for names in MODULES.values() for name in names))

if TYPE_CHECKING:  # type checkers read statements, no tables
    from .evaluation.placement import Placement as Placement
    from .evaluation.run import benchmark as benchmark
    from .explainers.create import create_explainer as create_explainer
    from .explainers.methods import list_explainers as list_explainers
    from .explanation_scores import load_scores as load_scores
    from .export import export_onnx as export_onnx, export_torch as export_torch
    from .hub import push as push
    from .loading import explain as explain
    from .models.card_text import CardText as CardText
    from .models.classifier import Classifier as Classifier, build as build
    from .models.configuration import (
        CAPEConfig as CAPEConfig,
        EvidenceConfig as EvidenceConfig,
        SoftCAMConfig as SoftCAMConfig,
    )
    from .models.conversion import convert as convert, to_vanilla as to_vanilla
    from .models.explanation import Explanation as Explanation
    from .models.flip_registration import measure_alignment as measure_alignment
    from .models.heads import EvidenceHead as EvidenceHead
    from .models.map_kind import MapKind as MapKind
    from .models.modeling import (
        CAPEForImageClassification as CAPEForImageClassification,
        CAPEModel as CAPEModel,
        EvidenceForImageClassification as EvidenceForImageClassification,
        EvidenceModel as EvidenceModel,
        SoftCAMForImageClassification as SoftCAMForImageClassification,
        SoftCAMModel as SoftCAMModel,
    )
    from .models.regions import Regions as Regions
    from .post_fitting import post_fit as post_fit
    from .registry import register_head as register_head
    from .temperature import fit_temperature as fit_temperature
    from .web.page import export_web as export_web
