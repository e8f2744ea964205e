"""Measure where the cells of a network with real ImageNet weights look, on photographs and on noise.

python -m benchmarks.alignment.real_weights --photographs FOLDER    # three minutes; rows go to benchmarks/results/

The folder of photographs holds a manifest.csv with a column `image`, such as that of NEU-DET. The network is
EfficientNet-Lite0, at two strides. By its padding the cells would look half a cell down and right.
"""

from collections.abc import Iterator
from pathlib import Path

import softcam_hub
from softcam_hub.models.flip_registration import IMAGES, NOISE_IMAGES, measure_alignment

from ..timing import Row
from .photographs import ARCHITECTURE, choose_files, load_network, measure_strides

ROWS = Path(__file__).parents[1] / "results" / "alignment_real_weights.jsonl"
TOLERANCE = 0.1
"""Largest difference in cells between two measurements that agree."""


def measure(stride: int, photographs: list[Row]) -> Iterator[Row]:
    """Yield a row for photographs and one for noise, and whether they agree."""
    vanilla = load_network(stride)
    rows = []
    for name, images in (("photographs", choose_files(photographs)), ("noise", None)):
        measurement = measure_alignment(softcam_hub.convert(vanilla), images)
        row = {
            "architecture": ARCHITECTURE,
            "stride": stride,
            "images": name,
            "count": NOISE_IMAGES if images is None else IMAGES,
        }
        row |= {"offset": list(measurement.offset), "accepted": list(measurement.accepted)}
        rows.append(row | {"spread": list(measurement.spread), "correlation": list(measurement.correlation)})
    differences = [abs(first - second) for first, second in zip(*(row["offset"] for row in rows), strict=True)]
    yield from (row | {"agree": max(differences) <= TOLERANCE} for row in rows)


if __name__ == "__main__":
    measure_strides(__doc__, measure, ROWS)
