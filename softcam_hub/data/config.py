"""The options that say which data to train and evaluate on and how training changes images, checked before all else."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from .fields import Count, NotNegative, Probability, ProperShare, Share, WholeNumber, check_ranges, flag
from .lesions import VARIANTS

AUTOMATIC_HOLD_OUT = 0.2
"""Share of the training split that is held out where data have no validation split and settings name no share."""

_CROP_MODES = {"squash": "squash", "pad": "border", "crop": "center"}
"""Setting `resize` -> timm's `crop_mode`."""


@dataclass
class DataConfig:
    """Source of images, labels and masks, and their division into splits. Each field has its own `help`."""

    _argument_group_name: ClassVar[str] = "data"

    data: str = flag(
        "lesions",
        f"Data set: a generated variant ({', '.join(VARIANTS)}), an image folder, a folder written by save_to_disk, "
        "a .csv or .parquet manifest, or the id of a data set on the Hugging Face Hub.",
    )
    data_name: str | None = flag(None, "Named configuration of a data set on the Hub.")
    train_split: str = flag("train", "Split to train on.")
    validation_split: str = flag("validation", "Split to validate on, if there is one; '' for none.")
    test_split: str = flag("test", "Split to test on, if there is one; '' for none.")
    train_count: Count = flag(2000, "Number of training images to generate (generated variants only).")
    eval_count: Count = flag(400, "Number of validation images, and of test images, to generate (variants only).")
    data_size: int = flag(128, "Side of generated images in pixels.")
    data_seed: WholeNumber = flag(0, "Seed of generated images, of hold_out and of folds.")
    image_column: str = flag("image", "Column of images: embedded images, or paths relative to the manifest.")
    label_column: str = flag("label", "Column of labels. If it is absent, a column 'labels' is read in its place.")
    mask_column: str = flag("mask", "Column of ground-truth masks (non-zero is lesion), if there is one.")
    boxes_column: str = flag("boxes", "Column of ground-truth boxes [[x0, y0, x1, y1], ...] in pixels, if any.")
    hold_out: ProperShare | None = flag(
        None,
        "Share of the training split, stratified by class, to validate on in place of a validation split; by default "
        f"{AUTOMATIC_HOLD_OUT} where the data have no validation split, and 0 where they have one.",
    )
    folds: WholeNumber = flag(
        0, "Divide the training split into this many folds and test on one, in place of a test split."
    )
    fold: WholeNumber = flag(0, "Fold to test on, from 0.")
    group_column: str | None = flag(None, "Column of persons (or the like) that hold_out and folds never divide.")
    streaming: bool = flag(False, "Read the training split as a stream, without downloading it first.")
    remote_images: bool = flag(
        False,
        "Read images at addresses (https://..., s3://..., zip://...::...) that the data name. By default only local "
        "files and files of the Hub data set are read.",
    )
    unreadable: str = flag(
        "stop", "What to do about images that cannot be read: 'stop', or 'skip', which checks all images first."
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        self._check_names()
        self._check_folds()
        if self.streaming and (self.hold_out or self.folds):
            raise ValueError("a stream cannot be divided: set streaming=False for hold_out or folds")

    def _check_names(self) -> None:
        for name in ("data", "train_split", "image_column", "label_column"):
            if not getattr(self, name):
                raise ValueError(f"{name} must not be empty")
        names = [name for name in (self.train_split, self.validation_split, self.test_split) if name]
        if len(set(names)) < len(names):
            raise ValueError(f"train_split, validation_split and test_split must differ, got {', '.join(names)}")
        if self.unreadable not in ("stop", "skip"):
            raise ValueError(f"unreadable must be 'stop' or 'skip', got {self.unreadable!r}")

    def _check_folds(self) -> None:
        if self.folds == 1:
            raise ValueError("folds must be 0 (no cross-validation) or at least 2, got 1")
        if self.fold and not self.folds:
            raise ValueError(f"fold is {self.fold} but folds is 0: set folds to the number of folds")
        if self.folds and self.fold >= self.folds:
            raise ValueError(f"fold must be from 0 to {self.folds - 1} with folds={self.folds}, got {self.fold}")

    @property
    def optional_splits(self) -> list[str]:
        """Names of the splits that are read, if the data have them, beside the training split."""
        validation = [] if self.hold_out else [self.validation_split]
        test = [] if self.folds else [self.test_split]
        return [name for name in validation + test if name]


@dataclass
class AugmentationConfig:
    """Augmentation of training images. The `help` of each field describes it."""

    _argument_group_name: ClassVar[str] = "augmentation"

    augment: bool = flag(True, "Augment training images. Without it they get the evaluation transform.")
    resize: Literal["squash", "pad", "crop", "model"] | None = flag(
        None,
        "Way in which images of any shape come to the shape of the input: squash (the whole image, with another ratio "
        "of its sides), pad (the whole image, with a border), crop (ImageNet's: the centre alone), or model (as the "
        "weights to start from were trained); by default squash, and model where the classifier of --init is kept.",
    )
    crop_scale: Share = flag(1.0, "Smallest share of the image that a random crop shows; 1 for no random crop.")
    hflip: Probability = flag(0.5, "Probability of a horizontal flip.")
    vflip: Probability = flag(0.0, "Probability of a vertical flip.")
    color_jitter: NotNegative = flag(0.0, "Strength of random changes of brightness, contrast and saturation.")
    auto_augment: str | None = flag(None, "Policy of timm, such as rand-m9-mstd0.5, in place of color_jitter.")
    erase: Probability = flag(0.0, "Probability of erasing a random rectangle.")
    delete_cells: bool = flag(
        False,
        "Delete one random cell of a 4x4 grid from every second training image, which brings the images of the measure "
        "idsds into the domain of the model.",
    )
    eval_crop: Share | None = flag(
        None,
        "Share of the resized side that evaluation crops; by default 1 (all) with resize squash or pad, and the "
        "model's own otherwise.",
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        known = ("model", *_CROP_MODES)
        if self.resize is not None and self.resize not in known:
            raise ValueError(f"unknown resize {self.resize!r}: expected one of {', '.join(known)}")
        if self.delete_cells and not self.augment:
            raise ValueError(
                "delete_cells changes training images, but augment is off: leave out one of them (hflip=0 turns off "
                "the mirroring alone; features of images with deleted cells are not cached)"
            )

    @property
    def crop(self) -> dict[str, Any]:
        """Entries of timm's `pretrained_cfg` that these settings decide in place of the model: the evaluation crop."""
        chosen: dict[str, Any] = {}
        if self.resize in _CROP_MODES:
            chosen["crop_mode"] = _CROP_MODES[self.resize]
        if self.resize in ("squash", "pad"):
            chosen["crop_pct"] = 1.0
        if self.eval_crop is not None:
            chosen["crop_pct"] = self.eval_crop
        return chosen
