"""Try evidence of several depths, which gives finer maps of the same image, on photographs of steel; write rows.

python -m benchmarks.scales --photographs FOLDER                       # two hours of a core
python -m benchmarks.scales --photographs FOLDER plain --seeds 0       # one variant

The network is SoftCAM with ImageNet's weights. A 1x1 convolution on the features of stride 16, and one on those of
stride 8, add their evidence to that of stride 32 on the finest grid. The coarse evidence is enlarged to equal squares,
so that the mean of the sum is the logit as ever. The fine weights are zero at the start, where the logits are those of
the plain network, and the fine features are normalised without parameters.

- *plain*: evidence of stride 32 alone.
- *scales*: three depths, trained together and no more.
- *scales, coarse dropped*: for half of the images of a batch, the loss is computed without the coarse evidence as well.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import softcam_hub
from softcam_hub.arguments import ArgumentParser
from softcam_hub.data.config import DataConfig
from softcam_hub.data.splits import load_splits
from softcam_hub.evaluation.report import markdown
from softcam_hub.evaluation.shards import make_dataset, stack_samples
from softcam_hub.evaluation.statistics import bootstrap_means
from softcam_hub.explanation_scores.localization import activation_precision, hit_rate, pointing_game
from softcam_hub.memory import keep_freed_memory
from softcam_hub.models.heads import select

from .imagenet_weights import imagenet_folder
from .reproduction.steel import missing_manifest
from .timing import Row, environment, read_rows, replace_rows, rounded

ROWS = Path(__file__).parent / "results" / "scales.jsonl"
STRIDES = (8, 16)
EPOCHS, BATCH, LR, FINE_LR, WARMUP = 6, 32, 5e-4, 5e-3, 33
VARIANTS = {"plain": (False, 0.0), "scales": (True, 0.0), "scales, coarse dropped": (True, 0.5)}
"""Name -> whether there are fine scales, and the share of images whose coarse evidence is dropped."""

SCORES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "hit_rate": hit_rate,
    "pointing_game": pointing_game,
    "activation_precision": activation_precision,
}
SMALL = 1 / 3
"""Share of the images with the smallest annotations that are told by themselves."""


class ScaledEvidence(nn.Module):
    """SoftCAM whose evidence is the sum of that of several depths.

    Args:
        model: SoftCAM of timm.
        fine: Whether there is evidence of finer strides than that of the last features.
    """

    def __init__(self, model: nn.Module, fine: bool) -> None:
        super().__init__()
        self.model = model
        found = {entry["reduction"]: number for number, entry in enumerate(model.backbone.feature_info)}
        self.indices = [found[stride] for stride in STRIDES] if fine else []
        channels = [model.backbone.feature_info[index]["num_chs"] for index in self.indices]
        self.norms = nn.ModuleList(nn.BatchNorm2d(count, affine=False) for count in channels)
        self.heads = nn.ModuleList(nn.Conv2d(count, model.num_classes, 1, bias=False) for count in channels)
        for head in self.heads:
            nn.init.zeros_(head.weight)

    def terms(self, pixels: Tensor) -> list[Tensor]:
        """Return the evidence (B, C, H, W) of every depth, the finest first and the coarse one last."""
        if not self.indices:
            return [self.model.head(self.model.forward_features(pixels), kind="evidence")[1]]
        last, finer = self.model.backbone.forward_intermediates(pixels, indices=self.indices)
        fine = [head(norm(one)) for head, norm, one in zip(self.heads, self.norms, finer, strict=True)]
        return [*fine, self.model.head(last, kind="evidence")[1]]


def add(terms: list[Tensor], kept: Tensor | None = None) -> Tensor:
    """Add evidence on the finest grid.

    Args:
        terms: Evidence of every depth, the coarse one last.
        kept: Weight (B, 1, 1, 1) of the coarse evidence of every image; 1 by default.
    """
    size = terms[0].shape[-2:]
    *finer, coarse = (F.interpolate(term, size=size, mode="nearest") for term in terms)
    return sum(finer, coarse if kept is None else coarse * kept)


def train(
    network: ScaledEvidence, batches: Callable[[int], Iterator[tuple[Tensor, Tensor]]], steps: int, drop: float
) -> None:
    """Train all weights with AdamW and a cosine.

    Args:
        network: Network, which is changed.
        batches: Function from the number of an epoch to its images and labels.
        steps: Number of updates of an epoch.
        drop: Share of images whose coarse evidence is dropped in a second term of the loss.
    """
    groups = [
        {"params": [*network.model.parameters()], "lr": LR},
        {"params": [*network.heads.parameters()], "lr": FINE_LR},
    ]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=0.02)
    total = EPOCHS * steps
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * min(step, total) / total))
    )
    network.train()
    for epoch in range(EPOCHS):
        for pixels, labels in batches(epoch):
            terms = network.terms(pixels)
            loss = F.cross_entropy(add(terms).mean(dim=(2, 3)), labels)
            if drop:
                kept = (torch.rand(len(labels), 1, 1, 1) >= drop).float()
                loss = 0.5 * loss + 0.5 * F.cross_entropy(add(terms, kept).mean(dim=(2, 3)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def score(network: ScaledEvidence, images: Any) -> Row:
    """Return accuracy, and the scores of the map of the true class for every image.

    Args:
        network: Trained network.
        images: Test images with their annotations.
    """
    network.eval()
    values: dict[str, list[float]] = {name: [] for name in (*SCORES, "right", "area")}
    for first in range(0, len(images), BATCH):
        some = [images[index] for index in range(first, min(first + BATCH, len(images)))]
        pixels, labels, masks = stack_samples(some, ("pixel_values", "labels", "mask"), torch.device("cpu"))
        evidence = add(network.terms(pixels))
        maps = select(evidence, labels[:, None]).relu()
        maps = F.interpolate(maps, size=masks.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
        for name, function in SCORES.items():
            values[name] += [rounded(value) for value in function(maps, masks).tolist()]
        values["right"] += (evidence.mean(dim=(2, 3)).argmax(dim=1) == labels).float().tolist()
        values["area"] += [rounded(value) for value in masks.float().mean(dim=(1, 2)).tolist()]
    return {"accuracy": rounded(float(np.mean(values.pop("right")))), "images": len(images), "values": values}


def measure(variant: str, seed: int, manifest: Path) -> Row:
    """Train a variant with a seed, and score it on the test images.

    Args:
        variant: One of `VARIANTS`.
        seed: Seed of the classifier and of batches.
        manifest: Manifest of NEU-DET.
    """
    fine, drop = VARIANTS[variant]
    torch.manual_seed(seed)
    splits = load_splits(DataConfig(data=str(manifest)))
    model = softcam_hub.convert(timm.create_model(f"local-dir:{imagenet_folder()}", pretrained=True))
    model.reset_classifier(len(splits.classes))
    network = ScaledEvidence(model, fine).to(memory_format=torch.channels_last)
    # the photographs have 200 pixels a side, so that the whole data set fits into memory
    preprocessing = {**model.preprocessing, "crop_pct": 1.0}  # whole images
    known = make_dataset(preprocessing, splits.train)
    pixels, labels = stack_samples(
        [known[index] for index in range(len(known))], ("pixel_values", "labels"), torch.device("cpu")
    )

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.Generator().manual_seed(1000 * seed + epoch)
        for chosen in torch.randperm(len(labels), generator=order).split(BATCH):
            flipped = (torch.rand(len(chosen), 1, 1, 1, generator=order) < 0.5).expand_as(pixels[chosen])
            images = torch.where(flipped, pixels[chosen].flip(-1), pixels[chosen])
            yield images.contiguous(memory_format=torch.channels_last), labels[chosen]

    train(network, batches, math.ceil(len(labels) / BATCH), drop)
    scores = score(network, make_dataset(preprocessing, splits.test, masks=True))
    return {"variant": variant, "seed": seed, "trained_on": len(labels), **scores, **environment()}


def scales_table(rows: list[Row]) -> str:
    """Render one line per variant: means over seeds, and the mean gain beside the plain network with its interval."""
    by_variant = {
        name: sorted((row for row in rows if row["variant"] == name), key=lambda row: row["seed"]) for name in VARIANTS
    }
    header = [
        "evidence",
        "accuracy",
        *(
            f"{title}{part}"
            for title in ("hit rate", "pointing game", "activation precision")
            for part in ("", ", small")
        ),
    ]
    body = []
    for name, of in by_variant.items():
        if not of:
            continue
        cells = [f"{100 * np.mean([row['accuracy'] for row in of]):.1f}"]
        for measure_name in SCORES:
            for small in (False, True):
                ours = [_chosen(row, measure_name, small) for row in of]
                cell = f"{100 * np.mean([values.mean() for values in ours]):.1f}"
                if name != "plain":
                    plain = [_chosen(row, measure_name, small) for row in by_variant["plain"]]
                    gain = bootstrap_means([(one - other)[None] for one, other in zip(ours, plain, strict=True)])
                    low, high = gain.interval()
                    cell += f" ({100 * gain.estimate[0]:+.1f} [{100 * low[0]:+.1f}, {100 * high[0]:+.1f}])"
                cells.append(cell)
        body.append([name, *cells])
    seeds = sorted({row["seed"] for row in rows})
    first = rows[0]
    return (
        f"Percent, on {first['images']} test photographs of NEU-DET; means over the runs with seed "
        f"{', '.join(map(str, seeds))}, and in brackets the gain beside *plain* on the same images with its 95 % "
        "interval. The hit rate is the pointing game with the usual tolerance; *small* is the third of the images with "
        "the smallest boxes. "
        f"{first['machine']}, torch {first['torch']}.\n\n"
    ) + markdown(header, body)


def _chosen(row: Row, name: str, small: bool) -> np.ndarray:
    """Return the values of all images, or of those with the smallest annotations."""
    values, area = np.array(row["values"][name]), np.array(row["values"]["area"])
    return values[area <= np.quantile(area, SMALL)] if small else values


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", default=list(VARIANTS), help="variants to train; all by default")
    parser.add_argument("--photographs", type=Path, required=True, help="folder of NEU-DET, with manifest.csv")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="seeds")
    parser.add_argument("--output", type=Path, default=ROWS, help="file of the rows")
    arguments = parser.parse_args()
    for variant in arguments.variants:
        if variant not in VARIANTS:
            parser.error(f"unknown variant {variant!r}: expected some of {', '.join(map(repr, VARIANTS))}")
    if not (arguments.photographs / "manifest.csv").is_file():
        parser.error(missing_manifest(arguments.photographs))
    keep_freed_memory()
    torch.set_num_threads(1)
    for seed in arguments.seeds:
        for variant in arguments.variants:
            if (variant, seed) in {(row["variant"], row["seed"]) for row in read_rows(arguments.output)}:
                continue
            row = measure(variant, seed, arguments.photographs / "manifest.csv")
            replace_rows([row], arguments.output, ("variant", "seed"))
            means = {name: rounded(float(np.mean(values))) for name, values in row["values"].items()}
            print(variant, seed, row["accuracy"], means, flush=True)


if __name__ == "__main__":
    main()
