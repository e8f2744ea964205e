"""Divide the logits of a class-token transformer among patches, and measure what the shares are worth.

python -m benchmarks.patch_shares --photographs FOLDER    # twenty minutes of a core
python -m benchmarks.patch_shares --architectures         # the rest in seven architectures, random weights: a minute
python -m benchmarks.patch_shares --quick                 # a smoke test: noise, random weights, nothing written

- A small ViT with a class token learns NEU-DET from scratch: no class-token ViT with trained weights can be had without
  a network.
- `share_of_rest` is the size of what belongs to no patch beside that of the sum over the patches. Medians over the
  test images, for the predicted class.
- `agreement` asks whether shares say what happens without a patch: the Spearman correlation, image by image, of a map
  with the drop of the logit when one patch at a time is replaced by the mean of the image. Grad-CAM at the last layer
  that attention reads, integrated gradients summed over each patch, and random maps stand beside the shares.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import create_transform
from torch import Tensor, nn

import softcam_hub
from softcam_hub.arguments import ArgumentParser
from softcam_hub.data.lesions import draw
from softcam_hub.evaluation.report import markdown
from softcam_hub.explainers.patch_shares import patch_shares
from softcam_hub.explanation_scores.perturbation import patch_drops, spearman

from .hidden_layers import moved
from .manifests import read_manifest
from .timing import Row, environment, rounded, write_rows

ROWS = Path(__file__).parent / "results" / "patch_shares.jsonl"
SIZE, PATCH, DEPTH, EPOCHS, BATCH = 128, 16, 6, 30, 60
LAYERS = ("patch_embed", *(f"blocks.{index}" for index in range(DEPTH - 1)))  # after the last, no patch is read
MEASURED = 120
ARCHITECTURES = (
    *("vit_tiny_patch16_224", "deit_tiny_patch16_224", "eva02_tiny_patch14_224", "vit_small_patch14_dinov2"),
    *("vit_small_patch14_reg4_dinov2", "cait_xxs24_224", "vit_base_patch16_siglip_224"),
)
"""Transformers of every kind: class token alone, with rotary positions, registers, class attention, attention pool."""

ROWS_OF_ARCHITECTURES = ROWS.with_name("patch_shares_architectures.jsonl")
Images = tuple[Tensor, Tensor]


def make() -> nn.Module:
    """Make the ViT with random weights."""
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", img_size=SIZE, patch_size=PATCH, depth=DEPTH, num_classes=6)


def read(photographs: Path) -> dict[str, Images]:
    """Return images (N, 3, H, W) from -1 to 1 and classes (N,) of each split."""
    rows = read_manifest(photographs / "manifest.csv")
    labels = sorted({row["label"] for row in rows})
    splits: dict[str, Images] = {}
    for split in ("train", "validation", "test"):
        chosen = [row for row in rows if row["split"] == split]
        images = [
            Image.open(row["image"]).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC) for row in chosen
        ]
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)
        splits[split] = pixels / 127.5 - 1, torch.tensor([labels.index(row["label"]) for row in chosen])
    return splits


def train(model: nn.Module, images: Tensor, classes: Tensor, epochs: int) -> None:
    """Train with AdamW and one cycle of the learning rate; images are mirrored at random along both axes."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    steps = epochs * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(images))[: steps // epochs * BATCH].split(BATCH):
            inputs = images[batch]
            for axis in (2, 3):
                mirrored = torch.rand(len(inputs)) < 0.5
                inputs[mirrored] = inputs[mirrored].flip(axis)
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), classes[batch]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, classes: Tensor) -> float:
    """Return the share of images that are classified correctly."""
    return float(torch.cat([model(batch).argmax(dim=1) for batch in images.split(BATCH)]).eq(classes).float().mean())


def measure(model: nn.Module, images: Tensor, facts: Row) -> Iterator[Row]:
    """Yield a row for every layer whose tokens are divided, and for every method that stands beside."""
    side = SIZE // PATCH
    with torch.inference_mode():
        drops = patch_drops(model, images, PATCH, images.mean(dim=(2, 3), keepdim=True))

    def agreement(maps: Tensor) -> Row:
        return {"agreement": rounded(float(spearman(maps.flatten(1), drops).mean()))}

    for layer in LAYERS:
        parts = patch_shares(model, images, layer=layer)
        yield {
            "comparison": "patch shares",
            "method": f"shares of {layer}",
            **facts,
            "share_of_rest": rounded(float(parts.share_of_rest.median())),
            "error": rounded(float((parts.maps.sum(dim=(2, 3)) + parts.rest - parts.logits).abs().max())),
            **agreement(parts.maps[:, 0]),
        }
    for name in ("grad-cam", "integrated-gradients", "random"):
        maps = softcam_hub.create_explainer(name, model, signed=True)(images)[:, 0]
        maps = F.adaptive_avg_pool2d(maps, side)
        yield {"comparison": "patch shares", "method": name, **facts, **agreement(maps)}


def measure_architecture(architecture: str) -> Row:
    """Return how much of the logits belongs to no patch, for random weights that are all moved off their start."""
    torch.manual_seed(0)
    size = {"img_size": 224} if "dinov2" in architecture else {}
    with torch.no_grad():
        model = moved(timm.create_model(architecture, num_classes=10, **size)).eval()
    settings = timm.data.resolve_model_data_config(model) | {"input_size": (3, *model.patch_embed.img_size)}
    transform = create_transform(**settings)
    images = torch.stack([transform(draw(index, "test", 256).image) for index in range(8)])
    parts = patch_shares(model, images)
    error = (parts.maps.sum(dim=(2, 3)) + parts.rest - parts.logits).abs().max() / parts.logits.abs().max()
    low, middle, high = np.quantile(parts.share_of_rest.numpy(), (0.25, 0.5, 0.75))
    return {
        "architecture": architecture,
        "weights": "random",
        "images": len(images),
        "share_of_rest": rounded(float(middle)),
        "share_of_rest_quartiles": [rounded(float(low)), rounded(float(high))],
        "error": rounded(float(error)),
        **environment(),
    }


def architectures_table(rows: list[Row]) -> str:
    """Render one line per architecture: the share of the rest, and the error of the sum."""
    body = [
        [
            f"`{row['architecture']}`",
            f"{100 * row['share_of_rest']:.0f} % "
            f"({' to '.join(f'{100 * end:.0f}' for end in row['share_of_rest_quartiles'])})",
            f"{row['error']:.1e}",
        ]
        for row in rows
    ]
    return (
        f"Shares of the embeddings; random weights, {rows[0]['images']} generated images, predicted class: what the "
        "arithmetic does, and nothing about trained networks. The rest is a share of the size of both, in the median, "
        "with quartiles over the images; the error is that of the sum beside the largest logit. "
        f"torch {rows[0]['torch']}, timm {rows[0]['timm']}.\n\n"
    ) + markdown(["architecture", "rest", "error of the sum"], body)


def patch_shares_table(rows: list[Row]) -> str:
    """Render one line per layer and per method beside it."""
    row = rows[0]
    body = [
        [
            f"`{one['method']}`" if "share_of_rest" not in one else one["method"],
            f"{100 * one['share_of_rest']:.0f} %" if "share_of_rest" in one else "-",
            f"{one['agreement']:.2f}",
        ]
        for one in rows
    ]
    return (
        f"ViT with a class token, {DEPTH} blocks, patches of {PATCH} px, trained on {row['weights']} "
        f"({100 * row['accuracy']:.1f} % correct on the test split); {row['images']} test images of "
        f"{row['image_size']} px, predicted class. torch {row['torch']}, timm {row['timm']}.\n\n"
    ) + markdown(["map", "rest", "correlation with the drops of the logit"], body)


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, help="folder of NEU-DET, with manifest.csv")
    parser.add_argument("--quick", action="store_true", help="explain noise with random weights, and write nothing")
    parser.add_argument("--architectures", action="store_true", help="measure the rest in several architectures")
    args = parser.parse_args()
    if args.architectures:
        write_rows([measure_architecture(name) for name in ARCHITECTURES], ROWS_OF_ARCHITECTURES)
        return
    model = make()
    if args.quick:
        model.eval()
        images, facts = torch.randn(2, 3, SIZE, SIZE), {"weights": "random"}
    elif args.photographs is None:
        parser.error("the following arguments are required: --photographs")
    else:
        splits = read(args.photographs)
        train(model, *splits["train"], EPOCHS)
        images = splits["test"][0][:: len(splits["test"][0]) // MEASURED][:MEASURED]
        facts = {
            "weights": f"NEU-DET, {len(splits['train'][0])} images, {EPOCHS} epochs from scratch",
            "accuracy": rounded(accuracy(model, *splits["test"])),
            "images": len(images),
            "image_size": SIZE,
            **environment(),
        }
    rows = []
    for row in measure(model, images, facts):
        print(json.dumps(row), flush=True)
        rows.append(row)
    if not args.quick:
        write_rows(rows, ROWS)


if __name__ == "__main__":
    main()
