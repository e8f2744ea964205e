"""Put the result of a training run into the package, as the small model that examples, demo and tests run on.

python -m benchmarks.reproduction.lesions lesions-cape    # trains it, and keeps the row of its scores
python -m benchmarks.reproduction.explanations            # measures its explanations
python tools/ship_model.py runs/lesions-cape
make cards                                   # renders its card

The model's code is left out: the package has it.
"""

import sys
from pathlib import Path

from softcam_hub.files import copy_file

ASSET = Path(__file__).parents[1] / "softcam_hub" / "assets" / "cape_lesions"
FILES = {
    "model/config.json": "config.json",
    "model/model.safetensors": "model.safetensors",
    "model/README.md": "README.md",
    "model/examples.png": "examples.png",
    "settings.yaml": "recipe.yaml",
    "metrics.json": "metrics.json",
    "explanations/rows.jsonl": "rows.jsonl",
}


def main() -> None:
    run = Path(sys.argv[1])
    ASSET.mkdir(parents=True, exist_ok=True)
    for source, name in FILES.items():
        copy_file(run / source, ASSET / name)


if __name__ == "__main__":
    main()
