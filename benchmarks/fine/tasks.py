"""The two tasks on which ways to finer maps are tried: photographs of steel, and generated lesions."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import timm
from torch import nn

import softcam_hub
from softcam_hub.data.config import DataConfig
from softcam_hub.data.splits import Splits, load_splits

from ..imagenet_weights import imagenet_folder


@dataclass(frozen=True)
class Task:
    """Images, a network and how it is trained.

    Args:
        name: Name in the rows.
        data: Data set.
        make_model: Function from the stride of the last features to a SoftCAM model with a fresh head.
        side: Side of the images in pixels.
        larger_side: Side of larger images, from which maps learn, or which the rival with larger images sees.
        epochs: Number of epochs.
        lr: Largest learning rate.
        fine_lr: Largest learning rate of the heads of finer features.
        upside_down: Whether training images are flipped upside down as well as left to right.
        fine_strides: Strides of the finer features, the finest first.
        warmup_epochs: Number of epochs over which the learning rate rises.
    """

    name: str
    data: DataConfig
    make_model: Callable[[int], nn.Module]
    side: int
    larger_side: int
    epochs: int
    lr: float
    fine_lr: float
    upside_down: bool
    fine_strides: tuple[int, ...] = (8, 16)
    warmup_epochs: int = 1

    def splits(self) -> Splits:
        """Load the images."""
        return load_splits(self.data)


def steel(manifest: Path) -> Task:
    """Six kinds of defects of steel in photographs; EfficientNet-Lite0 with ImageNet's weights is fine-tuned."""

    def make_model(stride: int) -> nn.Module:
        options = {} if stride == 32 else {"output_stride": stride}
        source = timm.create_model(f"local-dir:{imagenet_folder()}", pretrained=True, **options)
        model = softcam_hub.convert(source)
        model.reset_classifier(6)
        return model

    return Task("steel", DataConfig(data=str(manifest)), make_model, 224, 320, 6, 5e-4, 5e-3, False)


def lesions() -> Task:
    """Four classes of generated fundus-like images; a small ResNet is trained from scratch."""

    def make_model(stride: int) -> nn.Module:
        return timm.create_model("softcam_test_resnet", num_classes=4, output_stride=stride, avg_down=False)

    data = DataConfig(data="lesions", data_size=128, train_count=3000, eval_count=600)
    return Task("lesions", data, make_model, 128, 192, 10, 4e-3, 4e-3, True)
