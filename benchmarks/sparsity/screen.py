"""Screen all candidates on frozen features, and write rows to benchmarks/results/sparsity.jsonl.

softcam-hub train --recipe lesions-vanilla                # the backbone of lesions, 15 minutes
python -m benchmarks.sparsity.screen --data-folder DATA   # 20 minutes of one core
python -m benchmarks.sparsity.page                        # docs/sparsity.md

- DATA holds `neu-det/manifest.csv`, photographs of steel with the columns image, label, split and boxes.
- The vanilla classifier is trained first, as a head of zeros. Every setting then starts from it and is trained as long
  again, dense SoftCAM too, whose predictions are those of the vanilla classifier.
- Settings that have a row are not trained again.
"""

import argparse
import time
from pathlib import Path

from benchmarks.imagenet_weights import imagenet_folder
from benchmarks.timing import Row, environment, read_rows, replace_rows, rounded
from softcam_hub.arguments import ArgumentParser

from .candidates import CANDIDATES
from .features import STUDIES, load_features
from .heads import BATCH, DECAY, EPOCHS, RATE, Setting, fresh, predict, train
from .measures import locate, measure, post_hoc, rounded_row

ROWS = Path(__file__).parents[1] / "results" / "sparsity.jsonl"
KEY = ("stage", "study", "candidate", "value", "seed")
DENSE = Setting("dense", 0.0)
LESIONS = Path("runs") / "lesions-vanilla" / "model"


def missing(study: str, seed: int, rows: list[Row]) -> list[Setting]:
    """Return the settings without a row."""
    known = {tuple(row[name] for name in KEY) for row in rows}
    settings = [Setting(name, value) for name, candidate in CANDIDATES.items() for value in candidate.grid]
    return [one for one in settings if ("screening", study, one.candidate, one.value, seed) not in known]


def screen(study: str, backbone: str, data_folder: Path, settings: list[Setting], seed: int) -> list[Row]:
    """Train and measure settings on one study, and return their rows.

    Args:
        study: Name of a study.
        backbone: Folder of the classifier with the backbone.
        data_folder: Folder of all data.
        settings: Settings to train.
        seed: Seed of the order of images.
    """
    features = load_features(study, backbone, data_folder)
    began = time.monotonic()
    learnt, held_out = features["train"], features["validation"]
    start = fresh(int(learnt.labels.max()) + 1, learnt.values.shape[2])
    heads = train(settings, train([DENSE], start, learnt, seed), learnt, seed + 1)
    common = {
        "stage": "screening",
        "study": study,
        "seed": seed,
        "images": len(held_out.labels),
        "located": int(held_out.located.sum()),
        "grid": held_out.side,
        "epochs": EPOCHS,
        "batch_size": BATCH,
        "lr": RATE,
        "weight_decay": DECAY,
        **environment(),
    }
    rows = []
    for index, setting in enumerate(settings):
        numbers = measure(*predict(setting, heads, index, held_out), held_out)
        rows.append({**common, "candidate": setting.candidate, "value": setting.value, **numbers})
        if setting == DENSE:
            for name, cams in post_hoc(heads, index, held_out).items():
                located = rounded_row(locate(cams, held_out))
                rows.append({**common, "candidate": f"post-hoc {name}", "value": 0.0, **located})
    seconds = rounded(time.monotonic() - began)
    return [{**row, "settings_together": len(settings), "seconds_together": seconds} for row in rows]


def add_data_arguments(parser: ArgumentParser) -> None:
    """Add the arguments that say where images and rows are."""
    parser.add_argument("--data-folder", type=Path, default=Path(), help="folder that holds neu-det/manifest.csv")
    parser.add_argument("--output", type=Path, default=ROWS, help="file of the rows")


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_arguments(parser)
    parser.add_argument("--lesions", default=str(LESIONS), help="folder of the vanilla classifier of lesions")
    parser.add_argument("--studies", nargs="*", default=list(STUDIES), choices=STUDIES, help="studies to run")
    parser.add_argument("--seed", type=int, default=0, help="seed of the order of images")
    args = parser.parse_args()
    for study in args.studies:
        settings = missing(study, args.seed, read_rows(args.output))
        if settings:
            backbone = args.lesions if study == "lesions" else str(imagenet_folder())
            rows = screen(study, backbone, args.data_folder, settings, args.seed)
            replace_rows(rows, args.output, KEY)
            print(f"{study}: {len(rows)} rows")


if __name__ == "__main__":
    main()
