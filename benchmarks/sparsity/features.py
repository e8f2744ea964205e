"""Features of frozen backbones on steel and lesions, computed once and kept in runs/sparsity/.

- Lesions have the backbone of the vanilla classifier that `benchmarks.reproduction.lesions lesions-vanilla` trains.
- Steel has ImageNet's weights of tf_efficientnet_lite0, at a stride of 32 and, with the last stage dilated, of 16.
- Features are kept in half precision with channels last, so that heads of all candidates are one matrix product.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from softcam_hub.data.config import DataConfig
from softcam_hub.data.samples import ImageDataset
from softcam_hub.data.splits import Splits, load_splits
from softcam_hub.data.transforms import make_transforms, mask_transform
from softcam_hub.loading import load_classifier
from softcam_hub.models.alignment import Alignment

RUNS = Path("runs") / "sparsity"
SMALL_BOXES = ("scratches", "inclusion", "rolled-in_scale", "patches")
"""Classes of steel whose boxes leave most of the image free. Where boxes fill the image, localisation says nothing."""


@dataclass(frozen=True)
class Study:
    """A data set and a frozen backbone.

    Args:
        data: Name of a generated data set, or path of a manifest below the folder of all data.
        located: Classes whose images count for localisation; every class with a mask by default.
        size: Side of the images in pixels, or None for that of the backbone.
        counts: Numbers of generated images.
        options: Options of the backbone.
    """

    data: str
    located: tuple[str, ...] = ()
    size: int | None = None
    counts: dict[str, int] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def splits(self, data_folder: Path) -> Splits:
        """Load the images of the study."""
        manifest = data_folder / self.data
        return load_splits(DataConfig(str(manifest) if manifest.suffix else self.data, **self.counts))

    def prepared(self, preprocessing: dict[str, Any]) -> dict[str, Any]:
        """Return the preprocessing of the backbone, for whole images of the size of the study."""
        if self.size is None:
            return preprocessing
        return {**preprocessing, "input_size": (3, self.size, self.size), "crop_pct": 1.0}

    def images(self, splits: Splits, preprocessing: dict[str, Any], split: str) -> ImageDataset:
        """Return the transformed images of a split, with masks outside of the training split."""
        preprocessing = self.prepared(preprocessing)
        masks = None if split == "train" else mask_transform(preprocessing)
        return ImageDataset(getattr(splits, split), make_transforms(preprocessing)[1], masks=masks)

    def is_located(self, splits: Splits, labels: Tensor, masks: Tensor) -> Tensor:
        """Return booleans (N,), true for images that count for localisation."""
        has_mask = masks.flatten(1).any(dim=1)
        if not self.located:
            return has_mask
        return has_mask & torch.isin(labels, torch.tensor([splits.classes.index(name) for name in self.located]))


_STEEL = Path("neu-det") / "manifest.csv"
STUDIES = {
    "lesions": Study("lesions", counts={"train_count": 3000, "eval_count": 600}),
    "steel, stride 16": Study(str(_STEEL), SMALL_BOXES, 224, options={"output_stride": 16}),
    "steel, stride 32": Study(str(_STEEL), SMALL_BOXES, 224),
}


@dataclass(frozen=True)
class Features:
    """Features of the images of one split.

    Args:
        values: Features in half precision, (N, H·W, K).
        labels: Class indices, (N,).
        side: Height and width of the grid of features.
        masks: Masks (N, S, S), or an empty tensor for training images.
        located: Booleans (N,), true for images that count for localisation.
        alignment: Where the cells of the network look; its maps are drawn as squares if that is not known.
    """

    values: Tensor
    labels: Tensor
    side: int
    masks: Tensor
    located: Tensor
    alignment: Alignment | None = None


def load_features(name: str, backbone: str, data_folder: Path) -> dict[str, Features]:
    """Return the features of training and validation images, from the cache or computed now.

    Args:
        name: Name of a study.
        backbone: Folder of the classifier with the backbone.
        data_folder: Folder of all data.
    """
    file = RUNS / f"{file_name(name)}.pt"
    if not file.exists():
        study = STUDIES[name]
        classifier = load_classifier(backbone, **study.options)
        splits = study.splits(data_folder)
        found = {}
        for split in ("train", "validation"):
            images = study.images(splits, classifier.preprocessing, split)
            found[split] = vars(compute(classifier.model, study, splits, images))
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(found, file)
    return {split: Features(**parts) for split, parts in torch.load(file, weights_only=True).items()}


def file_name(study: str) -> str:
    """Return the name of a study without commas and blanks."""
    return study.replace(",", "").replace(" ", "-")


@torch.no_grad()
def compute(model: Any, study: Study, splits: Splits, images: ImageDataset) -> Features:
    """Compute the features of all images.

    Args:
        model: Backbone with `forward_features`, in eval mode.
        study: Study, which says what images count for localisation.
        splits: All images of the study.
        images: Images of one split.
    """
    values, labels, masks = [], [], []
    for batch in DataLoader(images, batch_size=32):
        features = model.forward_features(batch["pixel_values"])
        values.append(features.flatten(2).mT.half())
        labels.append(batch["labels"])
        masks.append(batch.get("mask", torch.empty(len(features), 0, 0)))
    whole = torch.cat(labels), torch.cat(masks).bool()
    is_located, alignment = study.is_located(splits, *whole), getattr(model, "alignment", None)
    return Features(torch.cat(values), whole[0], features.shape[2], whole[1], is_located, alignment)
