"""Any timm image classifier, made self-explaining. Importing this registers its models with timm and transformers."""

from pathlib import Path as _Path

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification
from transformers.models.timm_wrapper import TimmWrapperImageProcessor

from .evaluation import benchmark
from .evaluation.placement import Placement
from .explainers.methods import create_explainer, list_explainers
from .explanation_scores import load_scores
from .export import export_onnx
from .hub import push, push_space
from .models.classifier import Classifier, build
from .models.configuration import CAPEConfig, SoftCAMConfig
from .models.conversion import convert, to_vanilla
from .models.explanation import Explanation, Regions
from .models.modeling import (
    CAPEForImageClassification,
    CAPEModel,
    SoftCAMForImageClassification,
    SoftCAMModel,
)
from .pipeline import register as _register_pipeline
from .registry import register as _register_architectures
from .temperature import fit_temperature

__version__ = "0.1.0"

CAPE_LESIONS = str(_Path(__file__).parent / "assets" / "cape_lesions")
"""Folder of a small model trained on generated lesions; timm loads it as `f"local-dir:{CAPE_LESIONS}"`."""

__all__ = [
    "CAPE_LESIONS",
    "CAPEConfig",
    "CAPEForImageClassification",
    "CAPEModel",
    "Classifier",
    "Explanation",
    "Placement",
    "Regions",
    "SoftCAMConfig",
    "SoftCAMForImageClassification",
    "SoftCAMModel",
    "benchmark",
    "build",
    "convert",
    "create_explainer",
    "export_onnx",
    "fit_temperature",
    "list_explainers",
    "load_scores",
    "push",
    "push_space",
    "to_vanilla",
]

_register_architectures()
_register_pipeline()
for _config, _model, _classifier in (
    (SoftCAMConfig, SoftCAMModel, SoftCAMForImageClassification),
    (CAPEConfig, CAPEModel, CAPEForImageClassification),
):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModel.register(_config, _model, exist_ok=True)
    AutoModelForImageClassification.register(_config, _classifier, exist_ok=True)
    AutoImageProcessor.register(_config, slow_image_processor_class=TimmWrapperImageProcessor, exist_ok=True)
