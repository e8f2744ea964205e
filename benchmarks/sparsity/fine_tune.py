"""Fine-tune the candidates that the screening chose, three seeds, and measure them on test images.

python -m benchmarks.sparsity.fine_tune --data-folder DATA                   # an estimate: six hours of one core
python -m benchmarks.sparsity.fine_tune --studies lesions --seeds 0 --quick  # a smoke test that writes no row

- The package trains a vanilla classifier for every study and seed, with ordinary settings. Dense SoftCAM and the
  candidates start from it and are fine-tuned with their backbones, for as many epochs, on the same batches. BatchNorm
  keeps its statistics.
- Dense SoftCAM *is* the vanilla classifier after the same training: it has its predictions, and post-hoc CAMs explain
  it.
  Score-CAM runs the network once per channel, and explains the first images only; it is compared on these.
- Maps are drawn where their cells look, measured on 32 validation images of every fine-tuned network, along the axes
  on which the measurement counts for all networks of a seed, so that none of them is drawn in another way.
- Rows hold the hits and the top-k precision of every image. A finished network is not trained again, and training of
  a vanilla classifier that was interrupted goes on.
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import save_for_hf
from torch import Tensor
from torch.utils.data import DataLoader

import softcam_hub
from benchmarks.imagenet_weights import imagenet_folder
from benchmarks.timing import Row, environment, read_rows, replace_rows, rounded
from softcam_hub.arguments import ArgumentParser
from softcam_hub.data.config import AugmentationConfig
from softcam_hub.data.samples import ImageDataset
from softcam_hub.data.splits import Splits
from softcam_hub.data.transforms import make_transforms
from softcam_hub.loading import load_classifier
from softcam_hub.training import parse, run

from .features import RUNS, STUDIES, Features, compute, file_name
from .heads import Heads, Setting, predict
from .measures import (
    VanillaClassifier,
    first_located,
    hits,
    locate,
    measure,
    post_hoc,
    precisions,
    rounded_row,
    score_cam,
)
from .rule import choose, is_screened
from .screen import DENSE, KEY, ROWS, add_data_arguments

BATCH, MEASURED = 32, 32


@dataclass(frozen=True)
class FineTuning:
    """How a study is fine-tuned.

    Args:
        vanilla: Settings of the package's training of the vanilla classifier.
        epochs: Epochs of fine-tuning.
        lr: Learning rate of fine-tuning.
        score_cam: Number of located images that Score-CAM explains.
    """

    vanilla: dict[str, Any] = field(default_factory=dict)
    epochs: int = 4
    lr: float = 1e-3
    score_cam: int = 64


PLANS = {
    "lesions": FineTuning({"recipe": "lesions-vanilla", "channels_last": True}),
    "steel, stride 16": FineTuning(
        {
            "model": "tf_efficientnet_lite0",
            "model_args": "output_stride=16",
            "image_size": 224,
            "batch_size": BATCH,
            "epochs": 6,
            "optimizer": "adamw",
            "lr": 5e-4,
            "weight_decay": 0.02,
            "warmup_epochs": 1,
            "vflip": 0.5,
            "channels_last": True,
        },
        epochs=3,
        lr=2e-4,
        score_cam=12,
    ),
}


class Experiment:
    """One study with one seed, whose networks are kept in runs/sparsity/fine-tuning/.

    Args:
        name: Name of the study.
        seed: Seed of the vanilla classifier, of its data where they are generated, and of the order of images.
        data_folder: Folder of all data.
        quick: Train and measure a few images only.
    """

    def __init__(self, name: str, seed: int, data_folder: Path, quick: bool = False) -> None:
        self.name, self.seed, self.data_folder, self.quick = name, seed, data_folder, quick
        self.study, self.plan = STUDIES[name], PLANS[name]
        self.folder = RUNS / "fine-tuning" / file_name(name) / str(seed)
        if quick:
            self.folder, self.plan = self.folder.with_name("quick"), replace(self.plan, epochs=1, score_cam=2)
        if self.study.counts:
            counts = {"train_count": 64, "eval_count": 16} if quick else self.study.counts
            self.study = replace(self.study, counts={**counts, "data_seed": seed})

    @cached_property
    def splits(self) -> Splits:
        """Images of all splits."""
        return self.study.splits(self.data_folder)

    @cached_property
    def vanilla(self) -> Path:
        """Folder of the vanilla classifier, which is trained where it does not exist."""
        output = self.folder / "vanilla"
        if (output / "metrics.json").exists():
            return output / "model"
        settings = {**self.plan.vanilla, "output": output, "seed": self.seed, **self.study.counts}
        if not self.study.counts:
            settings |= {"data": self.data_folder / self.study.data, "init": imagenet_folder()}
        if self.quick:
            settings |= {"epochs": 1, "warmup_epochs": 0}
        resume = ["--resume"] if (output / "settings.yaml").exists() else []
        run(parse([*(f"--{option.replace('_', '-')}={value}" for option, value in settings.items()), *resume]))
        return output / "model"

    def network(self, setting: Setting) -> Any:
        """Return the SoftCAM model that was fine-tuned with a setting, from its folder or trained now."""
        folder = self.folder / f"{setting.candidate}-{setting.value:g}"
        if not (folder / "config.json").exists():
            began = time.monotonic()
            classifier = load_classifier(self.vanilla, **self.study.options)
            model = softcam_hub.convert(classifier.model, "softcam")
            fine_tune(model, setting, self.training_images(classifier.preprocessing), self.plan, self.seed)
            seconds = {"seconds": rounded(time.monotonic() - began)}
            (self.folder / f"{folder.name}.json").write_text(json.dumps(seconds))
            save_for_hf(model.to(memory_format=torch.contiguous_format), folder, safe_serialization=True)
        return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()

    def rows(self, settings: list[Setting]) -> list[Row]:
        """Fine-tune and measure all settings; dense SoftCAM has the rows of post-hoc CAMs too."""
        networks = {setting: self.network(setting) for setting in settings}
        preprocessing = load_classifier(self.vanilla, **self.study.options).preprocessing
        images = self.measured_images(preprocessing)
        measured = {one: softcam_hub.measure_alignment(model, images) for one, model in networks.items()}
        counts = [all(axis) for axis in zip(*(one.accepted for one in measured.values()), strict=True)]
        return [
            row
            for setting, model in networks.items()
            for row in self.measure(setting, model, preprocessing, measured[setting], counts)
        ]

    def measure(
        self, setting: Setting, model: Any, preprocessing: dict[str, Any], measured: Any, counts: list[bool]
    ) -> list[Row]:
        """Measure a fine-tuned network on test images.

        Args:
            setting: Candidate and value.
            model: Fine-tuned SoftCAM model.
            preprocessing: How images are prepared.
            measured: Where the cells of the network look.
            counts: Whether maps are drawn there, for rows and columns.
        """
        starts = [start if use else None for start, use in zip(measured.alignment.start, counts, strict=True)]
        model.alignment = replace(measured.alignment, start=(starts[0], starts[1]))
        images = self.study.images(self.splits, preprocessing, "test")
        features = compute(model, self.study, self.splits, images)
        heads = Heads(model.head.weight.detach()[None], model.head.bias.detach()[None])
        logits, maps = predict(setting, heads, 0, features)
        numbers = {**measure(logits, maps, features), "hits": hits(logits, features)}
        located = {setting.candidate: maps[torch.arange(len(maps)), features.labels]}
        if setting == DENSE:
            located |= {f"post-hoc {name}": found for name, found in post_hoc(heads, 0, features).items()}
        common = {
            "stage": "fine-tuning",
            "study": self.name,
            "seed": self.seed,
            "images": len(features.labels),
            "grid": features.side,
            "offset": list(measured.offset),
            "accepted": list(measured.accepted),
            "aligned": counts,
            "epochs": self.plan.epochs,
            "batch_size": BATCH,
            "lr": self.plan.lr,
            **environment(),
            **json.loads((self.folder / f"{setting.candidate}-{setting.value:g}.json").read_text()),
        }
        rows = [_row(name, setting.value, found, features) for name, found in located.items()]
        if setting == DENSE:
            few = first_located(features, self.plan.score_cam)
            found = score_cam(VanillaClassifier(heads, 0, model), images, features, self.plan.score_cam)
            rows.append(_row("post-hoc score-cam", 0.0, found, few))
        rows[0] |= numbers
        return [{**common, **row} for row in rows]

    def training_images(self, preprocessing: dict[str, Any]) -> ImageDataset:
        """Return the training images, flipped at random."""
        augmentation = AugmentationConfig(vflip=0.5, resize="model")
        transform, _ = make_transforms(self.study.prepared(preprocessing), augmentation)
        return ImageDataset(self.splits.train, transform, seed=self.seed)

    def measured_images(self, preprocessing: dict[str, Any]) -> Tensor:
        """Return the validation images on which it is measured where cells look, evenly from all of the split."""
        images = self.study.images(self.splits, preprocessing, "validation")
        step = max(1, len(images) // MEASURED)
        return torch.stack([images[index]["pixel_values"] for index in range(0, len(images), step)][:MEASURED])


def _row(candidate: str, value: float, maps: Tensor, features: Features) -> Row:
    """Return the localisation of the maps (N, H, W) of the true labels, of all images and of each."""
    located = rounded_row(locate(maps, features))
    return {"candidate": candidate, "value": value, **located, "precisions": precisions(maps, features)}


def fine_tune(model: Any, setting: Setting, images: ImageDataset, plan: FineTuning, seed: int) -> None:
    """Train backbone and head of a SoftCAM model with the composition and the penalty of a setting.

    Args:
        model: SoftCAM model whose evidence the setting composes.
        setting: Candidate and value.
        images: Training images with augmentation.
        plan: Epochs and learning rate.
        seed: Seed of the order of images.
    """
    model.eval()  # BatchNorm keeps its statistics
    model.to(memory_format=torch.channels_last)  # a third less time
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.lr, weight_decay=0.02)
    batches = len(images) // BATCH
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, plan.epochs * batches)
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(plan.epochs):
        order = [(epoch, index) for index in torch.randperm(len(images), generator=generator).tolist()]
        for batch in DataLoader(images, BATCH, sampler=order, drop_last=True):
            evidence, bias = evidence_of(model, batch["pixel_values"])
            optimizer.zero_grad()
            setting.loss(evidence, bias, batch["labels"], epoch / plan.epochs).backward()
            optimizer.step()
            schedule.step()


def evidence_of(model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the evidence W·F (B, C, H, W) without the bias, and the bias (C,)."""
    bias = model.head.bias
    return model.head.evidence(model.forward_features(images)) - bias[:, None, None], bias


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_arguments(parser)
    parser.add_argument("--studies", nargs="*", default=list(PLANS), choices=PLANS, help="studies to run")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="seeds to run")
    parser.add_argument("--quick", action="store_true", help="a few images, and no rows are written")
    args = parser.parse_args()
    screened, settings = read_rows(ROWS), [DENSE, Setting("threshold", 1.0)]
    if not args.quick:
        if not is_screened(screened, tuple(PLANS)):
            sys.exit(f"{ROWS} has no rows of the screening: run `python -m benchmarks.sparsity.screen` first")
        settings = [DENSE, *(Setting(*one) for one in choose(screened, tuple(PLANS)))]
    for study in args.studies:
        for seed in args.seeds:
            known = {tuple(row[name] for name in KEY) for row in read_rows(args.output)}
            wanted = {("fine-tuning", study, one.candidate, one.value, seed) for one in settings}
            if wanted <= known and not args.quick:
                continue
            rows = Experiment(study, seed, args.data_folder, args.quick).rows(settings)
            accuracy = {row["candidate"]: row["accuracy"] for row in rows if "accuracy" in row}
            print(f"{study}, seed {seed}: accuracy {accuracy}", flush=True)
            if not args.quick:
                replace_rows(rows, args.output, KEY)


if __name__ == "__main__":
    main()
