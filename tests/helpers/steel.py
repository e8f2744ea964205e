"""Generated images in the form of NEU-DET, the photographs of steel."""

import csv
import json

import numpy as np
from PIL import Image

CLASSES = ["crazing", "inclusion", "patches", "pitted_surface", "rolled-in_scale", "scratches"]


def make_photographs(folder, counts):
    """Write a folder in the form of NEU-DET with generated images: a square of one brightness for each class."""
    generator = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "label", "split", "boxes"])
        for label, name in enumerate(CLASSES):
            for split, count in counts.items():
                for index in range(count):
                    pixels = generator.integers(90, 130, (64, 64)).astype("uint8")
                    x, y = generator.integers(4, 40, 2).tolist()
                    pixels[y : y + 14, x : x + 14] = 20 * label + 30
                    image = f"images/{name}_{split}_{index}.png"
                    Image.fromarray(pixels).save(folder / image)
                    writer.writerow([image, name, split, json.dumps([[x, y, x + 14, y + 14]])])
