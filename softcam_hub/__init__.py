"""Any timm image classifier, made self-explaining. Importing this registers its models with timm and transformers."""

from pathlib import Path as _Path

from .evaluation import benchmark
from .evaluation.placement import Placement
from .explainers.methods import create_explainer, list_explainers
from .explanation_scores import load_scores
from .export import export_onnx
from .hub import push
from .loading import explain
from .models.card_text import CardText
from .models.classifier import Classifier, build
from .models.configuration import CAPEConfig, EvidenceConfig, SoftCAMConfig
from .models.conversion import convert, to_vanilla
from .models.explanation import Explanation
from .models.heads import EvidenceHead
from .models.map_kind import MapKind
from .models.modeling import (
    CAPEForImageClassification,
    CAPEModel,
    EvidenceForImageClassification,
    EvidenceModel,
    SoftCAMForImageClassification,
    SoftCAMModel,
)
from .models.regions import Regions
from .pipeline import register as _register_pipeline
from .registry import register as _register_models
from .registry import register_head
from .temperature import fit_temperature

__version__ = "0.1.0"

CAPE_LESIONS = str(_Path(__file__).parent / "assets" / "cape_lesions")
"""Folder of a small model trained on generated lesions; timm loads it as `f"local-dir:{CAPE_LESIONS}"`."""

__all__ = [
    "CAPE_LESIONS",
    "CAPEConfig",
    "CAPEForImageClassification",
    "CAPEModel",
    "CardText",
    "Classifier",
    "EvidenceConfig",
    "EvidenceForImageClassification",
    "EvidenceHead",
    "EvidenceModel",
    "Explanation",
    "MapKind",
    "Placement",
    "Regions",
    "SoftCAMConfig",
    "SoftCAMForImageClassification",
    "SoftCAMModel",
    "benchmark",
    "build",
    "convert",
    "create_explainer",
    "explain",
    "export_onnx",
    "fit_temperature",
    "list_explainers",
    "load_scores",
    "push",
    "register_head",
    "to_vanilla",
]

_register_models()
_register_pipeline()
