"""What the tests of cards share: the committed cards, the scores of the shipped model, and rows of explanations."""

import json
from pathlib import Path

import softcam_hub

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
CARDS = {file.stem: file.read_text() for file in (ROOT / "model_cards").glob("*.md")}
LESIONS = json.loads((Path(softcam_hub.CAPE_LESIONS) / "metrics.json").read_text())
EXPLANATIONS = [
    {"recipe": "r", "explainer": "cape", "average_drop": 12.3456, "miou": 0.25, "images": 64, "seconds": 1.5},
    {"recipe": "r", "explainer": "grad-cam", "average_drop": 20.5, "adcc": 61.0, "images": 64, "seconds": 2.5},
]
