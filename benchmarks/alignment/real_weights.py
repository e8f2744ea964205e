"""Measure where the cells of a network with real ImageNet weights look, on photographs and on noise.

python -m benchmarks.alignment.real_weights --photographs FOLDER    # three minutes; rows go to benchmarks/results/

The folder of photographs holds a manifest.csv with a column `image`, such as that of NEU-DET. The network is
EfficientNet-Lite0, at two strides. By the geometry of its padding the cells would look half a cell down and right.
"""

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import timm

import softcam_hub
from softcam_hub.arguments import ArgumentParser
from softcam_hub.models.flip_registration import IMAGES, NOISE_IMAGES, measure_alignment

from ..imagenet_weights import imagenet_folder

ARCHITECTURE = "tf_efficientnet_lite0"
ROWS = Path(__file__).parents[1] / "results" / "alignment_real_weights.jsonl"
STRIDES = (32, 16)
TOLERANCE = 0.1
"""Largest difference in cells between two measurements that agree."""


def choose_photographs(folder: Path) -> list[Path]:
    """Return images of a manifest at equal distances, so that all classes are among them."""
    with (folder / "manifest.csv").open(newline="") as file:
        names = [row["image"] for row in csv.DictReader(file)]
    return [folder / name for name in names[:: len(names) // IMAGES][:IMAGES]]


def measure(stride: int, photographs: list[Path]) -> list[dict[str, Any]]:
    """Return a row for photographs and one for noise, and whether they agree."""
    args = {} if stride == 32 else {"output_stride": stride}
    vanilla = timm.create_model(f"local-dir:{imagenet_folder(ARCHITECTURE)}", pretrained=True, **args).eval()
    rows = []
    for name, images in (("photographs", photographs), ("noise", None)):
        model = softcam_hub.convert(vanilla)
        measurement = measure_alignment(model, images)
        row = {
            "architecture": ARCHITECTURE,
            "stride": stride,
            "images": name,
            "count": NOISE_IMAGES if images is None else IMAGES,
        }
        row |= {"offset": list(measurement.offset), "accepted": list(measurement.accepted)}
        rows.append(row | {"spread": list(measurement.spread), "correlation": list(measurement.correlation)})
        print(json.dumps(rows[-1]), flush=True)
    differences = [abs(first - second) for first, second in zip(*(row["offset"] for row in rows), strict=True)]
    return [row | {"agree": max(differences) <= TOLERANCE} for row in rows]


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, required=True, help="folder with a manifest.csv")
    parser.add_argument("--output", type=Path, default=ROWS, help="file of the rows")
    arguments = parser.parse_args()
    photographs = choose_photographs(arguments.photographs)
    rows = [row for stride in STRIDES for row in measure(stride, photographs)]
    arguments.output.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


if __name__ == "__main__":
    main()
