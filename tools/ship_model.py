"""Put the result of a training run into the package, as the small model that examples, demo and tests run on.

python -m benchmarks.reproduction.lesions lesions-cape    # trains the model, and keeps the row of its scores
python -m benchmarks.reproduction.explanations            # measures its explanations
python -m tools.ship_model runs/lesions-cape
make cards                                                # renders its card

The code of the model is left out, because the package has it.
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
"""File of a run -> name in the folder of the shipped model."""


def main() -> None:
    """Copy the files of the run that the command line names."""
    run = Path(sys.argv[1])
    ASSET.mkdir(parents=True, exist_ok=True)
    for source, name in FILES.items():
        copy_file(run / source, ASSET / name)


if __name__ == "__main__":
    main()
