"""The small model that comes with the package, as timm loads it."""

import timm

from softcam_hub import CAPE_LESIONS


def load_shipped(pretrained=True, **options):
    """Return the model with its weights and its alignment; without them where `pretrained` is False."""
    return timm.create_model(f"local-dir:{CAPE_LESIONS}", pretrained=pretrained, **options)
