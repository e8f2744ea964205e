"""Put the result of a training run into the package, as the small model that examples, demo and tests run on.

python -m benchmarks.reproduction.lesions lesions-cape    # trains the model, and keeps the row of its scores
python -m benchmarks.reproduction.explanations            # measures its explanations
python -m tools.ship_model runs/lesions-cape
python -m tools.ship_model --measure                      # measures again where its cells lie, and draws its examples
make cards                                                # renders its card

The code of the model is left out, because the package has it.
"""

import argparse
from pathlib import Path

from softcam_hub import CAPE_LESIONS, CAPEForImageClassification, measure_alignment
from softcam_hub.arguments import ArgumentParser
from softcam_hub.data.config import DataConfig
from softcam_hub.data.lesions import draw
from softcam_hub.data.splits import load_splits
from softcam_hub.evaluation.shards import make_dataset
from softcam_hub.files import copy_file, read_mapping, write_json
from softcam_hub.loading import load_classifier
from softcam_hub.models.flip_registration import IMAGES
from softcam_hub.models.saved_format import written_args
from softcam_hub.training.reporting import draw_examples

ASSET = Path(CAPE_LESIONS)
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

EXAMPLES, FEW = "examples.png", 24
"""Picture that README shows, and number of generated images among which all of its images are."""

PAGES = Path(__file__).parents[1] / "docs"


def ship(run: Path) -> None:
    """Copy the files of a training run into the package."""
    ASSET.mkdir(parents=True, exist_ok=True)
    for source, name in FILES.items():
        copy_file(run / source, ASSET / name)


def measure(folder: Path = ASSET) -> None:
    """Measure where the cells of a lesions model lie on its first validation images, and write that into its folder.

    Args:
        folder: Model folder.
    """
    model = load_classifier(folder).model
    size = model.input_size[1]
    measurement = measure_alignment(model, [draw(index, "validation", size).image for index in range(IMAGES)])
    config = read_mapping(folder / "config.json")
    args = written_args({**config.get("model_args", {}), "alignment": measurement.alignment.as_dict()}, model.family)
    write_json(folder / "config.json", {**config, "model_args": dict(sorted(args.items()))})
    print(measurement.describe())
    splits = load_splits(DataConfig(data="lesions", data_size=size, train_count=FEW, eval_count=FEW))
    images = make_dataset(model.preprocessing, splits.test, masks=True)
    aligned = CAPEForImageClassification.from_pretrained(folder).eval()
    draw_examples(aligned, images, splits.classes, folder / EXAMPLES)


def main() -> None:
    """Ship the run that the command line names, or measure the shipped model."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("run", type=Path, nargs="?", help="output folder of the training run")
    source.add_argument("--measure", action="store_true", help="measure the shipped model, and copy nothing")
    arguments = parser.parse_args()
    if arguments.measure:
        measure()
        copy_file(ASSET / EXAMPLES, PAGES / EXAMPLES)
    else:
        ship(arguments.run)


if __name__ == "__main__":
    main()
