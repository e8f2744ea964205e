"""Feature caches: a model with a frozen backbone, and folders that look like caches of one megabyte."""

import hashlib
import json
import os

from accelerate import Accelerator
from timm.data import resolve_data_config

from helpers.training import settings
from softcam_hub.data.samples import ImageDataset
from softcam_hub.data.splits import load_splits
from softcam_hub.data.transforms import make_transforms
from softcam_hub.output_folder import RECORD
from softcam_hub.training.feature_cache import cached_features
from softcam_hub.training.model import make_model

FROZEN = {"model": "softcam_test_resnet", "freeze_backbone": True, "augment": False, "lr": 1.0}


def frozen(output, **changes):
    """Return a model with a frozen backbone, and its validation images."""
    config = settings(output, **{**FROZEN, **changes})
    splits = load_splits(config.data)
    model = make_model(config, splits)
    data = resolve_data_config({}, pretrained_cfg=dict(model.pretrained_cfg))
    return model, ImageDataset(splits.validation, make_transforms(data, config.augmentation)[1])


def cached(model, images, folder, limit=1.0, **options):
    """Return the cached features of images, computed in this process if necessary."""
    return cached_features(model, images, Accelerator(), folder, limit, 8, **options)


MB = 1e-3


def key(name):
    """Return a name for the folder of a cache."""
    return hashlib.md5(name.encode()).hexdigest()


def write_cache(folder, recorded=True):
    """Write a folder of one megabyte that looks like a cache, with a record or without."""
    folder.mkdir(parents=True)
    (folder / "0.bin").write_bytes(bytes(1_000_000))
    if recorded:
        record = {"kind": "feature cache", "format": 1, "key": folder.name[:32]}
        (folder / RECORD).write_text(json.dumps(record))
    return folder


def folder_of_caches(folder, **ages):
    """Write caches of one megabyte each, with the number of days since their last use, and return their folder."""
    for name, age in ages.items():
        os.utime(write_cache(folder / key(name)), (1e9 - 86400 * age,) * 2)
    return folder


def names_in(folder):
    return {path.name for path in folder.iterdir()}
