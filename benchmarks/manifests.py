"""Read and write manifests, the tables of images that `--data` takes."""

import csv
from pathlib import Path

from .timing import Row


def read_manifest(file: Path) -> list[Row]:
    """Return the rows of a manifest, with the whole path of each image."""
    with file.open(newline="", encoding="utf-8") as source:
        return [{**row, "image": str((file.parent / row["image"]).resolve())} for row in csv.DictReader(source)]


def write_manifest(rows: list[Row], file: Path) -> None:
    """Write the rows of a manifest."""
    with file.open("w", newline="", encoding="utf-8") as target:
        writer = csv.DictWriter(target, rows[0])
        writer.writeheader()
        writer.writerows(rows)
