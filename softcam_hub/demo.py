"""`make demo`: train a small CAPE classifier on generated shapes, and explain an image that holds two of them.

python -m softcam_hub.demo --out demo_output
"""

import argparse
import random
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor, nn

from .figures import overlay, row, signed

CLASSES = ("disc", "square", "triangle")
SIDE = 96
ARCHITECTURE = "cape_test_resnet"


def draw_shapes(names: list[str], seed: int) -> Image.Image:
    """The named shapes side by side at random heights and sizes, on a mottled background."""
    rng = random.Random(seed)
    mottle = Image.frombytes("RGB", (SIDE // 4, SIDE // 4), rng.randbytes(3 * (SIDE // 4) ** 2))
    image = mottle.resize((SIDE, SIDE)).filter(ImageFilter.GaussianBlur(3))
    draw = ImageDraw.Draw(image)
    column = SIDE // len(names)
    for index, name in enumerate(names):
        radius = rng.randint(9, min(16, column // 2 - 1))
        x = rng.randint(index * column + radius, (index + 1) * column - radius)
        y = rng.randint(radius, SIDE - radius)
        fill = tuple(rng.randint(0, 255) for _ in range(3))
        box = (x - radius, y - radius, x + radius, y + radius)
        if name == "disc":
            draw.ellipse(box, fill=fill)
        else:
            draw.regular_polygon((x, y, radius), 4 if name == "square" else 3, rng.randint(0, 90), fill=fill)
    return image


def to_tensor(image: Image.Image) -> Tensor:
    """(3, H, W) in [-1, 1]."""
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(image.height, image.width, 3).permute(2, 0, 1).float() / 127.5 - 1


def batch(start: int, size: int) -> tuple[Tensor, Tensor]:
    """Images (size, 3, H, W) of one shape each, and their classes."""
    labels = [seed % len(CLASSES) for seed in range(start, start + size)]
    images = [to_tensor(draw_shapes([CLASSES[label]], start + i)) for i, label in enumerate(labels)]
    return torch.stack(images), torch.tensor(labels)


def train(model: nn.Module, steps: int, size: int = 32) -> None:
    """Cross-entropy on CAPE's own prediction."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    model.train()
    for step in range(steps):
        images, labels = batch(step * size, size)
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 50 == 0:
            print(f"step {step + 1:4d} of {steps}   loss {loss:.3f}", flush=True)


def picture(model: nn.Module, names: list[str], seed: int) -> Image.Image:
    """The image, both classes' probabilities as maps, their difference, and what µ-CAPE shows of each class."""
    image = draw_shapes(names, seed)
    classes = [CLASSES.index(name) for name in names]
    parts = model.explain(to_tensor(image)[None], classes=[classes])
    mutual = model.explain(to_tensor(image)[None], classes=[classes], kind="mu-cape")
    panels = [("image", image)]
    for name, heat, probability in zip(names, parts.heatmaps(SIDE)[0], parts.probabilities[0], strict=True):
        panels.append((f"CAPE: {name}\nsums to {float(probability):.1%}", overlay(image, heat)))
    gap = parts.difference(*classes)[0]
    panels.append((f"{names[0]} minus {names[1]}\nsums to {float(gap.sum()):+.1%}", signed(gap, (SIDE, SIDE))))
    for name, heat in zip(names, mutual.heatmaps(SIDE)[0], strict=True):
        panels.append((f"mu-CAPE: {name}\nalso what classes share", overlay(image, heat)))
    return row(panels, side=192)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo_output"), help="folder for the picture")
    parser.add_argument("--steps", type=int, default=450, help="training steps")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = timm.create_model(ARCHITECTURE, num_classes=len(CLASSES), output_stride=8)
    train(model, args.steps)
    images, labels = batch(10_000_000, 300)
    accuracy = (model.eval()(images).argmax(dim=1) == labels).float().mean()
    args.out.mkdir(parents=True, exist_ok=True)
    picture(model, ["disc", "square"], seed=3).save(args.out / "shapes.png")
    print(f"{ARCHITECTURE} on 300 new images: accuracy {accuracy:.1%}; picture in {args.out / 'shapes.png'}")


if __name__ == "__main__":
    main()
