"""The vanilla classifiers that CAPE is post-fitted to: fine-tuned, under-trained, and linear probes of frozen features.

- *lesions*, *marks* and *steel* are the vanilla classifiers of the reproduction. They are trained now where
  `make reproduce` and `make reproduce-steel` have not trained them.
- *under-trained* has seen one epoch of steel instead of six.
- A *linear probe* is a classifier of the pooled, frozen features of ImageNet's backbone, fitted to the end.
- A *short linear probe* has seen three epochs instead, from the first weights that timm gives a new classifier.
- *unbalanced* steel has fewer training images of every further class, down to a sixteenth.
"""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

import softcam_hub
from benchmarks.alignment.steel import fit_classifier
from benchmarks.manifests import read_manifest, write_manifest
from benchmarks.reproduction.chain import Chain
from benchmarks.reproduction.steel import SteelChain
from benchmarks.reproduction.studies import SMALL, STEEL
from benchmarks.timing import Row
from softcam_hub.data.samples import Samples
from softcam_hub.evaluation.shards import make_dataset, stack_samples
from softcam_hub.loading import LoadedClassifier, load_classifier

from .variants import pooled

SPLITS = ("train", "validation", "test")
BATCH = 32
SHORT_EPOCHS, SHORT_LR = 3, 1e-3
"""Epochs and learning rate of a short linear probe."""

SMALLEST_SHARE = 1 / 16
"""Share of the training images that the last class of unbalanced steel keeps; the first one keeps all."""


@dataclass(frozen=True)
class Kind:
    """A kind of vanilla classifier.

    Args:
        study: Study of the reproduction that it belongs to.
        epochs: Epochs of its training, and of post-fitting to it.
        under_trained: It is trained for one epoch.
        probe: It is a linear probe of ImageNet's features.
        short: The probe is trained for a few epochs instead of to the end.
        unbalanced: It learns from fewer images of every further class.
    """

    study: str
    epochs: int
    under_trained: bool = False
    probe: bool = False
    short: bool = False
    unbalanced: bool = False


KINDS = {
    "lesions": Kind("lesions", 8),
    "marks": Kind("marks", 12),
    "steel": Kind("steel", 6),
    "steel, under-trained": Kind("steel", 6, under_trained=True),
    "steel, linear probe": Kind("steel", 6, probe=True),
    "steel, unbalanced": Kind("steel", 6, unbalanced=True),
    "steel, unbalanced, linear probe": Kind("steel", 6, probe=True, unbalanced=True),
    "steel, short linear probe": Kind("steel", 6, probe=True, short=True),
    "steel, unbalanced, short linear probe": Kind("steel", 6, probe=True, short=True, unbalanced=True),
}


class SteelKind(SteelChain):
    """Steel for a vanilla classifier that the reproduction does not train.

    Args:
        name: Name of the vanilla classifier.
        seed: Seed of the classifier's first weights and of batches.
        photographs: Folder of the photographs, with manifest.csv.
    """

    def __init__(self, name: str, seed: int, photographs: Path) -> None:
        super().__init__(name, STEEL["steel"], seed, photographs, Path("runs") / "post-fit")
        self.kind = KINDS[name]

    @cached_property
    def manifest(self) -> Path:
        """Manifest of the images, with fewer training images where the classes are unbalanced."""
        file = super().manifest
        if self.kind.unbalanced:
            thin_out(file)
        return file

    def settings(self, recipe: str) -> dict[str, Any]:
        """Return the settings by which a run differs from its recipe."""
        return super().settings(recipe) | ({"epochs": 1, "warmup_epochs": 0} if self.kind.under_trained else {})

    def train(self) -> Path:
        """Return the folder of the vanilla classifier, that of ImageNet for a linear probe.

        It is trained now if it does not exist.
        """
        self.save_start()
        if self.kind.probe:
            return self.start
        return self.train_vanilla()


@dataclass(frozen=True)
class Learnt:
    """A vanilla classifier with the features of all splits.

    Args:
        classifier: Linear classifier of pooled features.
        features: Features (N, K, H, W) in half precision, by split.
        labels: Class indices (N,), by split.
    """

    classifier: nn.Linear
    features: dict[str, Tensor]
    labels: dict[str, Tensor]


def learn(name: str, seed: int, photographs: Path) -> Learnt:
    """Train or load a vanilla classifier, and compute the features of all images.

    Args:
        name: Name in `KINDS`.
        seed: Seed of the vanilla classifier.
        photographs: Folder of NEU-DET, with manifest.csv.
    """
    kind = KINDS[name]
    if kind.under_trained or kind.probe or kind.unbalanced:
        chain: Chain = SteelKind(name, seed, photographs)
        folder = chain.train()
    else:
        chain = SteelChain(name, STEEL[name], seed, photographs) if name in STEEL else Chain(name, SMALL[name], seed)
        chain.save_start()
        folder = chain.train_vanilla()
    vanilla = load_classifier(folder)
    model = softcam_hub.convert(vanilla.model, "softcam").eval()
    parts = {split: _features(model, vanilla, getattr(chain.splits, split)) for split in SPLITS}
    features, labels = ({split: part[index] for split, part in parts.items()} for index in range(2))
    classifier = nn.Linear(*model.head.weight.shape[::-1])
    classifier.load_state_dict({"weight": model.head.weight.detach(), "bias": model.head.bias.detach()})
    if kind.probe:
        fit = partial(fit_briefly, architecture=chain.study.backbone, seed=seed) if kind.short else fit_classifier
        classifier = fit(pooled(features["train"]), labels["train"], len(chain.splits.classes))
    return Learnt(classifier, features, labels)


def fit_briefly(features: Tensor, labels: Tensor, classes: int, architecture: str, seed: int) -> nn.Linear:
    """Train a linear classifier of pooled features for a few epochs of AdamW.

    Args:
        features: Pooled features (N, K).
        labels: Class indices (N,).
        classes: Number of classes.
        architecture: timm name of the network, whose new classifiers have first weights of their own.
        seed: Seed of the first weights and of batches.
    """
    torch.manual_seed(seed)
    linear = timm.create_model(architecture, num_classes=classes).get_classifier()
    optimizer = torch.optim.AdamW(linear.parameters(), lr=SHORT_LR)
    for _ in range(SHORT_EPOCHS):
        for chosen in torch.randperm(len(labels)).split(BATCH):
            loss = nn.functional.cross_entropy(linear(features[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return linear.eval().requires_grad_(False)


@torch.no_grad()
def _features(model: nn.Module, vanilla: LoadedClassifier, samples: Samples) -> tuple[Tensor, Tensor]:
    """Return features in half precision, and labels."""
    images, features, labels = make_dataset(vanilla.preprocessing, samples), [], []
    for first in range(0, len(images), BATCH):
        some = [images[index] for index in range(first, min(first + BATCH, len(images)))]
        pixels, some_labels = stack_samples(some, ("pixel_values", "labels"), torch.device("cpu"))
        features.append(model.forward_features(pixels).half())
        labels.append(some_labels)
    return torch.cat(features), torch.cat(labels)


def thin_out(manifest: Path) -> None:
    """Leave out training images, so that every further class has fewer of them.

    Args:
        manifest: File to change.
    """
    rows = read_manifest(manifest)
    names = sorted({row["label"] for row in rows})
    share = {name: SMALLEST_SHARE ** (index / (len(names) - 1)) for index, name in enumerate(names)}
    counts = Counter(row["label"] for row in rows if row["split"] == "train")
    kept: list[Row] = []
    seen: Counter[str] = Counter()
    for row in rows:
        if row["split"] == "train":
            seen[row["label"]] += 1
            if seen[row["label"]] > max(1, round(share[row["label"]] * counts[row["label"]])):
                continue
        kept.append(row)
    write_manifest(kept, manifest)
