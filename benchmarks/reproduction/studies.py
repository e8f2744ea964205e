"""The studies by which the papers' claims are judged: data sets, backbones and the runs that are trained on them."""

from dataclasses import dataclass, field
from typing import Any

from softcam_hub.data.lesions import VARIANTS

SOFTCAM = ("softcam", "softcam-sparse")
CAPE = ("cape-direct", "cape-ts", "cape-pf")


@dataclass(frozen=True)
class Study:
    """A data set and a backbone, with the runs that are trained on them.

    Args:
        data: Name of a generated data set.
        runs: Recipes that are run beside `vanilla`.
        backbone: Backbone that replaces test_resnet, the backbone of the recipes.
        sweep: Values of l1 for further runs of `softcam-sparse`.
        fine_tuned: Start the runs from the trained vanilla classifier. Its post-hoc maps are not compared
            then, because it was trained for fewer epochs.
        limit: Number of test images to explain.
        settings: Settings that differ from the recipes.
        penalty: l1 of `softcam-sparse`; that of the recipe by default.
        photographs: The data is a folder of photographs, and networks start from ImageNet's weights.
        located: Classes whose images count for localisation; every image with a mask by default.
        resolution: The study only shows what finer or coarser maps change: the vanilla classifier is trained,
            and its maps are located.
    """

    data: str
    runs: tuple[str, ...]
    backbone: str = "test_resnet"
    sweep: tuple[float, ...] = ()
    fine_tuned: bool = False
    limit: int = 96
    settings: dict[str, Any] = field(default_factory=dict)
    penalty: float | None = None
    photographs: bool = False
    located: tuple[str, ...] = ()
    resolution: bool = False


SMALL = {  # the longest study comes first, so that no core waits for long at the end
    "lesions": Study("lesions", (*SOFTCAM, *CAPE), sweep=(0.003, 0.1, 1.0)),
    "marks": Study(
        "marks",
        ("cape-ts", "cape-ts-selective", "cape-pf", "cape-pf-selective"),
        settings={"train_count": 3072, "eval_count": 480, "epochs": 12},
    ),
    "fine-tuning": Study("lesions", SOFTCAM, sweep=(0.1, 0.3, 1.0, 3.0), fine_tuned=True),
    "screening": Study("screening", (*SOFTCAM, "cape-pf")),
    "second backbone": Study(
        "lesions", (*SOFTCAM, "cape-pf"), "test_efficientnet", settings={"model_args": "output_stride=8"}
    ),
}

SMALL_BOXES = ("scratches", "inclusion", "rolled-in_scale", "patches")
"""Classes of steel whose boxes leave most of the image free. Where boxes fill an image, localisation says nothing."""


def _steel(stride: int, size: int = 224, runs: tuple[str, ...] = ()) -> Study:
    settings = {
        "model_args": "" if stride == 32 else f"output_stride={stride}",
        "image_size": size,
        "batch_size": 32,
        "epochs": 6,
        "lr": 5e-4,
    }
    return Study(
        "neu-det",
        runs,
        "tf_efficientnet_lite0",
        limit=120,
        settings=settings,
        penalty=0.3,
        photographs=True,
        located=SMALL_BOXES,
        resolution=not runs,
    )


STEEL = {
    "steel": _steel(16, runs=(*SOFTCAM, *CAPE, "cape-pf-selective")),
    "steel, stride 32": _steel(32),
    "steel, stride 8": _steel(8),
    "steel, 160 px": _steel(16, 160),
    "steel, 320 px": _steel(16, 320),
}

CLASS_COUNTS = {**{data: len(classes) for data, classes in VARIANTS.items()}, STEEL["steel"].data: 6}
"""Data set -> number of classes."""

JUDGED = (*SMALL, "steel")
"""Studies that decide on the claims on all data."""

_AT = {"resnet50": ("output_stride=16", 1e-3), "vgg16": ("", 1e-4), "swinv2_base_window8_256": ("", 1e-4)}
"""Backbone -> its arguments and learning rate."""

_LARGE = {"train_count": 6000, "eval_count": 800, "epochs": 20, "mixed_precision": "bf16", "pretrained": True}
LARGE = {
    f"{backbone} at {size}": Study(
        "lesions",
        (*SOFTCAM, *(CAPE[:2] if backbone == "vgg16" else CAPE)),
        backbone,
        limit=200,
        settings={"model_args": args, "lr": lr, "image_size": size, "data_size": size, **_LARGE},
    )
    for backbone, (args, lr) in _AT.items()
    for size in (224, 448)
}

_TINY = {"train_count": 64, "eval_count": 16, "image_size": 64, "data_size": 64, "epochs": 1, "warmup_epochs": 0}
QUICK = {
    "quick": Study("lesions", (*SOFTCAM, *CAPE), sweep=(1.0,), limit=8, settings=_TINY),
    "quick fine-tuning": Study("lesions", ("softcam",), fine_tuned=True, limit=8, settings=_TINY),
}
