"""The public names of the package. Importing this registers its models with timm and transformers, and its pipeline."""

from .evaluation.placement import Placement
from .evaluation.run import benchmark
from .explainers.methods import create_explainer, list_explainers
from .explanation_scores import load_scores
from .export import export_onnx, export_torch
from .hub import push
from .loading import explain
from .models.card_text import CardText
from .models.classifier import Classifier, build
from .models.configuration import CAPEConfig, EvidenceConfig, SoftCAMConfig
from .models.conversion import convert, to_vanilla
from .models.explanation import Explanation
from .models.flip_registration import measure_alignment
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
from .pipeline import register as register_pipeline
from .post_fitting import post_fit
from .registry import register as register_models
from .registry import register_head
from .temperature import fit_temperature
from .web.page import export_web

__all__ = [
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
    "export_torch",
    "export_web",
    "fit_temperature",
    "list_explainers",
    "load_scores",
    "measure_alignment",
    "post_fit",
    "push",
    "register_head",
    "to_vanilla",
]

register_models()
register_pipeline()
