"""Any timm image classifier, made self-explaining. Importing this registers its models with timm and transformers."""

from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

from .models.classifier import Classifier, build, convert, to_vanilla
from .models.configuration import CAPEConfig, SoftCAMConfig
from .models.explanation import Explanation, Regions
from .models.modeling import (
    CAPEForImageClassification,
    CAPEModel,
    SoftCAMForImageClassification,
    SoftCAMModel,
)
from .registry import register as _register

__version__ = "0.1.0"

__all__ = [
    "CAPEConfig",
    "CAPEForImageClassification",
    "CAPEModel",
    "Classifier",
    "Explanation",
    "Regions",
    "SoftCAMConfig",
    "SoftCAMForImageClassification",
    "SoftCAMModel",
    "build",
    "convert",
    "to_vanilla",
]

_register()
for _config, _model, _classifier in (
    (SoftCAMConfig, SoftCAMModel, SoftCAMForImageClassification),
    (CAPEConfig, CAPEModel, CAPEForImageClassification),
):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModel.register(_config, _model, exist_ok=True)
    AutoModelForImageClassification.register(_config, _classifier, exist_ok=True)
