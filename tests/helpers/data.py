"""Images, manifests and samples for the tests of data."""

import io
import struct
import zlib

import datasets
import numpy as np
from PIL import Image

from softcam_hub.data.columns import Columns
from softcam_hub.data.config import DataConfig
from softcam_hub.data.samples import Samples
from softcam_hub.data.splits import load_splits

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"

PREPROCESSING = {
    "input_size": (3, 32, 32),
    "mean": (0.5, 0.4, 0.3),
    "std": (0.2, 0.2, 0.2),
    "interpolation": "bicubic",
    "crop_pct": 0.8,
    "crop_mode": "center",
}


def paint(path, colour=(200, 30, 30)):
    """Write an image of 12×10 pixels of one colour, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), colour).save(path)
    return path


def load(data, hold_out=0.0, **settings):
    """Load the splits of a data set with the settings of a `DataConfig`, undivided unless a test asks for it."""
    return load_splits(DataConfig(str(data), hold_out=hold_out, **settings))


def manifest(folder, text, images=12):
    """Write a manifest and the images images/0.png, images/1.png, ... beside it, and return its path."""
    for number in range(images):
        paint(folder / f"images/{number}.png", (10 * number, 0, 0))
    path = folder / "table.csv"
    path.write_text(text)
    return path


def manifest_text(*cells, header="image,label"):
    """Return the text of a manifest: its header, and a line for each image with its further cells."""
    return "\n".join([header, *(f"images/{number}.png,{cell}" for number, cell in enumerate(cells))]) + "\n"


def embedded_samples(*contents, **settings):
    """Return samples of embedded images with the label 0."""
    cells = {"image": [{"bytes": content, "path": None} for content in contents]}
    data = datasets.Dataset.from_dict(cells, features=datasets.Features({"image": datasets.Image()}))
    return Samples(data, np.zeros(len(contents), dtype=np.int64), Columns("image", "label"), **settings)


def encode(image, **options):
    """Return the content of an image file."""
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()


def decompression_bomb():
    """Return a PNG of one pixel whose header announces 400 million pixels."""
    file = io.BytesIO()
    Image.new("1", (1, 1)).save(file, "PNG")
    content = file.getvalue()
    header = b"IHDR" + struct.pack(">II", 20_000, 20_000) + content[24:29]
    return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]
