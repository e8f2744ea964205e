"""Run a measurement on photographs of steel, with a network that has real ImageNet weights, at two strides."""

import argparse
import csv
from collections.abc import Callable, Iterator
from pathlib import Path

import timm

from softcam_hub.arguments import ArgumentParser
from softcam_hub.models.backbone import TimmModule
from softcam_hub.models.flip_registration import IMAGES

from ..imagenet_weights import imagenet_folder
from ..timing import Row, print_rows, write_rows

Measure = Callable[[int, list[Row]], Iterator[Row]]
"""Function of a stride and the photographs, which yields rows."""

ARCHITECTURE = "tf_efficientnet_lite0"
STRIDES = (32, 16)


def measure_strides(description: str | None, measure: Measure, output: Path) -> None:
    """Parse the options of a program, measure at both strides, and write the rows.

    Args:
        description: Text for `--help`.
        measure: Measurement at one stride.
        output: File of the rows, unless an option names another.
    """
    parser = ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, required=True, help="folder of NEU-DET with a manifest.csv")
    parser.add_argument("--output", type=Path, default=output, help="file of the rows")
    arguments = parser.parse_args()
    photographs = read_manifest(arguments.photographs)
    rows = print_rows(row for stride in STRIDES for row in measure(stride, photographs))
    write_rows(rows, arguments.output)


def read_manifest(folder: Path) -> list[Row]:
    """Return the rows of a manifest, with the path of each photograph as `file`."""
    with (folder / "manifest.csv").open(newline="") as file:
        return [{**row, "file": folder / row["image"]} for row in csv.DictReader(file)]


def choose_files(photographs: list[Row]) -> list[Path]:
    """Return as many files as a measurement takes, at equal distances, so that all classes are among them."""
    return [row["file"] for row in photographs[:: len(photographs) // IMAGES][:IMAGES]]


def load_network(stride: int) -> TimmModule:
    """Load the vanilla network with ImageNet weights."""
    args = {} if stride == 32 else {"output_stride": stride}
    return timm.create_model(f"local-dir:{imagenet_folder(ARCHITECTURE)}", pretrained=True, **args).eval()
