"""Post-fit CAPE to vanilla classifiers of several kinds in several ways, three seeds, and write rows.

python -m benchmarks.post_fit.study --photographs FOLDER

- Vanilla classifiers of the reproduction are trained if they do not exist.
- Features are computed once for every vanilla classifier, and every variant fits its head to them.
- Beside the variants stand CAPE with the weights of the vanilla classifier (off the shelf), and naive CAPE.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.timing import Row, environment, read_rows, replace_rows, rounded
from softcam_hub.arguments import ArgumentParser
from softcam_hub.memory import keep_freed_memory
from softcam_hub.models.heads import CAPEHead

from .classifiers import KINDS, Learnt, learn
from .variants import VARIANTS, fit, pooled

ROWS = Path(__file__).parents[1] / "results" / "post_fit.jsonl"
KEY = ("kind", "seed", "variant", "split")


@torch.no_grad()
def score(logits: Tensor, vanilla: Tensor, labels: Tensor) -> Row:
    """Return accuracies of a model and of its vanilla classifier, and how often they disagree.

    Args:
        logits: Logits of CAPE, (N, C).
        vanilla: Logits of the vanilla classifier, (N, C).
        labels: Class indices, (N,).
    """
    row: Row = {}
    for prefix, values in (("", logits), ("vanilla_", vanilla)):
        right = (values.argmax(dim=1) == labels).double()
        recalls = [right[labels == label].mean() for label in labels.unique()]
        row[f"{prefix}accuracy"] = rounded(float(right.mean()))
        row[f"{prefix}balanced_accuracy"] = rounded(float(torch.stack(recalls).mean()))
        row[f"{prefix}confidence"] = rounded(float(values.softmax(dim=1).amax(dim=1).mean()))
    row["disagreement"] = rounded(float((logits.argmax(dim=1) != vanilla.argmax(dim=1)).double().mean()))
    return row


def untrained(vanilla: nn.Linear, naive: bool) -> CAPEHead:
    """Return CAPE with the weights of a vanilla classifier."""
    head = CAPEHead(vanilla.in_features, vanilla.out_features, naive=naive)
    head.load_state_dict({**vanilla.state_dict(), "log_temperature": torch.zeros(1)})
    return head.eval()


def measure(head: CAPEHead, learnt: Learnt) -> list[Row]:
    """Return a row for the validation images and one for the test images."""
    rows = []
    for split in ("validation", "test"):
        features = learnt.features[split]
        with torch.no_grad():
            logits = torch.cat([head(part.float()) for part in features.split(64)])
            theirs = learnt.classifier(pooled(features))
        rows.append({"split": split, "images": len(logits), **score(logits, theirs, learnt.labels[split])})
    return rows


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, required=True, help="folder of NEU-DET, with manifest.csv")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=KINDS, help="vanilla classifiers")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="seeds")
    parser.add_argument("--output", type=Path, default=ROWS, help="file of the rows")
    args = parser.parse_args()
    keep_freed_memory()
    for name in args.kinds:
        for seed in args.seeds:
            known = {row["variant"] for row in read_rows(args.output) if (row["kind"], row["seed"]) == (name, seed)}
            left = {one: variant for one, variant in VARIANTS.items() if one not in known}
            if not left:
                continue
            learnt = learn(name, seed, args.photographs)
            heads = {"naive": untrained(learnt.classifier, True), "off the shelf": untrained(learnt.classifier, False)}
            train, labels = learnt.features["train"], learnt.labels["train"]
            for one, variant in left.items():
                heads[one] = fit(variant, learnt.classifier, train, labels, KINDS[name].epochs, seed)
            common = {"kind": name, "seed": seed, "trained_on": len(labels), **environment()}
            rows = [{**common, "variant": one, **row} for one, head in heads.items() for row in measure(head, learnt)]
            replace_rows(rows, args.output, KEY)
            print(f"{name}, seed {seed}: {len(rows)} rows", flush=True)


if __name__ == "__main__":
    main()
