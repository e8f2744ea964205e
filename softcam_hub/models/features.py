"""Feature extraction, `features_only=True`: the features are the vanilla backbone's, and timm itself extracts them.

Every option of timm's (`out_indices`, `feature_cls`, `feature_cfg`) therefore acts as it does on the vanilla model.
"""

from dataclasses import asdict, replace
from typing import Any

import timm
from torch import nn

from .backbone import TimmModule
from .self_explaining import SelfExplaining
from .weights import restore_cfg

OPTIONS = ("out_indices", "feature_cls", "feature_cfg")
"""Options of timm's feature extraction."""

_NOT_FOR_FEATURES = ("num_classes", "classifier", "global_pool", "state_dict")
"""Keys of a `pretrained_cfg` that say nothing about a feature extractor."""


def extract_features(model: SelfExplaining, loaded: bool, **options: Any) -> nn.Module:
    """Make timm's feature extractor of a model's architecture.

    Args:
        model: A timm model of ours without classes.
        loaded: Give the extractor the weights of the model's backbone; otherwise it draws fresh ones.
        options: Some of `OPTIONS`, and `device` and `dtype` of the extractor.
    """
    cfg = restore_cfg(model)
    source = cfg
    if loaded:
        fresh = "pre_logits." if model.anatomy.head_type == "vgg" else None  # these layers differ from timm's
        weights = {
            key: value for key, value in model.backbone.state_dict().items() if not (fresh and key.startswith(fresh))
        }
        shape = (model.in_chans, *cfg.input_size[1:])
        # with another number of classes timm accepts weights without a head
        source = replace(cfg, state_dict=weights, input_size=shape, num_classes=1, custom_load=False, source=None)
    features: TimmModule = timm.create_model(
        model.architecture, loaded, source, features_only=True, **model.backbone_args, **options
    )
    description = {key: value for key, value in asdict(cfg).items() if key not in _NOT_FOR_FEATURES}
    features.pretrained_cfg = features.default_cfg = description
    return features
