"""Derive docs/reproduction.md and its curves from the rows in `benchmarks/results/`.

python -m benchmarks.reproduction.claims            # write the document and the curves
python -m benchmarks.reproduction.claims --check    # exit 1 where the document differs from the rows

The text of the page is in this module, and the claims and rules are in `softcam_claims.py` and
`cape_claims.py`. Numbers and verdicts are computed from the rows.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from softcam_hub.arguments import ArgumentParser
from softcam_hub.evaluation.report import markdown

from .cape_claims import CAPE_CLAIMS
from .circumstances import circumstances
from .findings import ALL_LOCATED, LOCALISED, NOT_ALIGNED, Findings, mean, read
from .softcam_claims import SOFTCAM_CLAIMS, sweep
from .studies import JUDGED, LARGE, SMALL, STEEL
from .study_tables import (
    alignment,
    by_class,
    explanations,
    few_images,
    over_k,
    over_penalty,
    penalties,
    points,
    predictions,
    resolution,
    temperatures,
)
from .verdicts import SEEDS, WITHOUT_INTERVAL, Claim, verdict

DOCUMENT = Path(__file__).parents[2] / "docs" / "reproduction.md"

CLAIMS = [*SOFTCAM_CLAIMS, *CAPE_CLAIMS]

INTRODUCTION = """# The papers' claims, put to the test

This page tests the claims of the SoftCAM and CAPE papers with this implementation. Most studies train small
networks on generated images, with three seeds. The study *steel* fine-tunes EfficientNet-Lite0 from ImageNet's
weights on photographs of steel ([NEU-DET](first_data_set.md)). `make reproduce` and `make reproduce-steel` train,
measure and write the page. `make claims` computes every number and every verdict from the rows in
`benchmarks/results/`. The rules were written before the rows.
"""

HOW = f"""A claim is judged in parts, such as one study and one measure. A claim *holds* if all of its parts hold, *does
not hold* if none of them holds, and is *mixed* otherwise. *Top-k precision 2 of 4* means that two of the four
parts on top-k precision hold. A claim is *not tested here* if no part has rows of at least {SEEDS} seeds.

That one map is better than another holds if it is better in every seed, and if the 95 % interval of the difference
excludes 0. The interval is a bootstrap over the images of every seed, on which both maps are compared
([Scores](scores.md#intervals-and-which-methods-can-be-told-apart)). Every seed of generated images has test images of
its own; the photographs are the same in all seeds, and are drawn in all of them at once. The interval takes the seeds
as they are: three seeds are too few for an interval over seeds, and none is given. A part {WITHOUT_INTERVAL} has no
values of the images, and is judged by its seeds alone; a verdict counts such parts.
"""

LEARNT = """## What follows for the defaults

These sentences are not computed. They are conclusions from the tables above.

- **Penalty.** With C classes that exclude one another and λ ≥ C - 1, a network learns nothing: maps of zero
  have the least loss for every image (training warns of this). A tenth of C - 1 keeps the accuracy of a
  network that is already trained. With a penalty from the first step and as little training as here, far
  smaller values slow learning down. Therefore fine-tune with a penalty (`--pretrained`, `--init`). The
  recipes for fundus, OCT and chest X-ray have the λ that the SoftCAM authors trained with, in our unit
  (theirs times C·H·W), which is 0.06 to 0.5 and below C - 1.
- **Sparsity.** A penalty makes evidence smaller, and does not concentrate it on fewer locations: where the
  accuracy is kept, the Gini index falls (S4). The reason is no accident of these runs. The logit z is the
  mean of the map, so that mean|M'| ≥ |z|, with equality for every map of one sign: at the same logit a flat
  map, a half-empty map and a single spike cost the same, and all cells of one sign have the same gradient.
- **Mode.** Post-fitting takes seconds, and reaches the accuracy of training from scratch with a teacher. CAPE
  trained directly is another model. With as little training as here, its accuracy differs most between seeds,
  and its confidence is nearest to its accuracy.
- **Temperature.** After bootstrapping, use `--calibrate` or `fit_temperature`. The tables show the cost in
  accuracy, which a temperature of the vanilla classifier does not have: T' weighs locations against one
  another, too.
- **Selective divergence** did not help, and is off by default.
- **Learning rates** were not searched.
"""

PHOTOGRAPHS = """## What photographs changed

These sentences are not computed. They are read from the study *steel*, which has three seeds.

- **Accuracy tells nothing apart here.** All runs, also naive CAPE and CAPE off the shelf, are between 99 and 100 % on
  444 test images; one image is 0.2 %.
- **SoftCAM's map is that of CAM**, as on generated images. The penalty changes its activation precision by -1.5 to
  +0.6 points, which is less than seeds differ.
- **CAPE has more of its map in the boxes** than every class activation map, in every seed: 52 to 53 % with a teacher
  beside at most 47 % (activation precision, means). Top-k precision (72 beside 72 to 73 %) and pointing game (60 to 62
  beside 61 to 62 %) are about the same: CAPE's peaks are no better placed, but less of its map lies beside the boxes.
- **CAPE trained directly**, which led by far on generated lesions, varies most: 48, 60 and 50 % of its map are in the
  boxes, and its highest patches are placed worse than CAM's on average (top-k precision 68 %). A teacher makes it
  steady.
- **The selective divergence ruins a map more often than not**: in two of three seeds its CAPE map lies in the boxes no
  better than a bump in the middle of the image, at an accuracy of 99 % and more. Its µ-CAPE map is not harmed.
- **Where boxes fill the image** (crazing, pitted surfaces), a map that knows nothing has a top-k precision of 61 to
  88 %, and one that only knows the middle 74 to 97 %.
- **Place.** All maps of this study are drawn as squares, since no place could be measured for these fine-tuned
  networks. With frozen ImageNet weights the same architecture can be measured ([Place of maps](alignment.md)). Of the
  networks in the table above, that of stride 32 could be: its CAM scores as squares do (top-k precision 75.8 beside
  75.7 %).
- **Confidence.** CAPE's is too low on photographs, too. A fitted T' corrects it, at a cost of a tenth of a point on
  average at most. As the validation images have next to no mistakes, the search for T' ends at its limit for TS in two
  of three seeds: this T' means no more than "as sharp as was tried".
- **Resolution.** With seed 0, a stride of 32 is no worse than one of 16 (pointing game 64 beside 62 %), whose training
  steps cost 2.3 times as much ([Finer maps](models.md#finer-maps)), and images of 160 px are worse (54 %). One seed
  decides nothing.
"""

LIMITS = """## What this does not show

- The images of all studies but *steel* are synthetic: pictures like a fundus, with drawn lesions or marks. They
  have exact masks and no label noise. Results on them may not hold on photographs of patients, and nothing here is
  a diagnosis. The photographs of *steel* show six kinds of defects of hot-rolled strips, with boxes that fill much of
  the image in two of the classes.
- The networks of these studies are tiny (timm's `test_*` architectures) and trained from scratch for minutes. That of
  *steel* is small, and fine-tuned for six epochs. The papers fine-tune ResNet-50, VGG-16 and Swin Transformers from
  ImageNet for hours.
- Score-CAM, Guided Backprop and Integrated Gradients are not among the post-hoc maps of generated images. Score-CAM
  needs a forward per channel and image, and the other two explain pixels. There S2, S3 and C3 compare with the seven
  other CAM methods. On *steel* Guided Backprop is measured; Score-CAM and Integrated Gradients are not yet.
- Without a penalty, SoftCAM is the vanilla classifier with its linear layer before the pool. From the same
  first weights it becomes the same network. S1 therefore holds for `softcam` by construction, and S2 and S3
  compare its map with the map of CAM, from which it differs by the bias. The effect of a penalty is shown by
  `softcam-sparse`.
- A map is drawn where its cells look if that could be measured along an axis. Some of these networks are near the
  limit of what counts, and then chance decides: `softcam` and the vanilla classifier are the same network, and one is
  moved where the other is not. Drawn as squares, their maps score alike. Differences between them, and between
  networks of which one is moved, are therefore no differences between methods.
- What squares would say is told for localisation (S2, S4). Occluding the highest patches (S3) was measured with aligned
  maps alone, and on the second backbone (S5) no map is moved, so that its maps are squares.
- Penalties, learning rates and temperatures are those of the recipes, and on *steel* one learning rate (5e-4) for all
  runs that train the backbone, and λ1 = 0.3. They are the same for every seed, and were not searched for each method.
  Another choice may change an order that is within the spread.
- Three seeds can tell a large difference from none, but not a small one. The spread covers images, weights
  and batches together.
"""

PLACED = ("S2", "S4", "S5")
"""Claims on localisation, whose verdicts are told for maps that are drawn as squares, too."""

SCORED = ("S3", "C3")
"""Claims on scores for which the network has to run again, which `--places-only` leaves out."""

ALIGNED = "Localisation in %, with maps drawn as squares that fill the image → drawn where their cells look:\n"

OF_CLASSES = """Top-k precision / activation precision in % by class of the image, means over seeds. *Small boxes* are
the images of scratches, inclusion, rolled-in scale and patches, which count for localisation in all tables above:
"""

OF_FEW_IMAGES = """Slow post-hoc methods explain few images. SoftCAM's maps on the same images stand below each, mean ±
standard deviation over seeds; places are those of the classes with small boxes among them:
"""

CURVES: dict[str, Callable[[Findings], Image.Image]] = {
    "precision": lambda findings: over_k(findings, with_masks(findings), "localization_precision", True),
    "sensitivity": lambda findings: over_k(findings, with_masks(findings), "topk_sensitivity", False),
    "sparsity": lambda findings: over_penalty(findings, with_sweeps(findings)),
}
CAPTIONS = {
    "precision": "Share of the k highest patches that touch a lesion.",
    "sensitivity": "Share of the confidence that is left when the k highest patches are occluded.",
    "sparsity": "Effect of the penalty on predictions and maps, trained from scratch (lesions) and fine-tuned.",
}


def with_masks(findings: Findings) -> list[str]:
    """Return the studies with annotated images."""
    return [study for study in JUDGED if findings.post_hoc(study, "localization_precision")]


def with_sweeps(findings: Findings) -> list[str]:
    """Return the studies with several penalties."""
    return [study for study in SMALL if len(sweep(findings, study)) > 2]


def document(findings: Findings) -> str:
    """Write the page."""
    trained = [study for study in JUDGED if findings.rows(study, "training")]
    return "\n".join(
        [
            INTRODUCTION,
            circumstances(findings),
            f"## Verdicts\n\n{HOW}",
            markdown_left(
                ["claim", "what it says", "verdict"],
                [[c.code, c.says, verdict(c.judge(findings, c.studies))] for c in CLAIMS],
            ),
            *(section(findings, claim) for claim in CLAIMS),
            "## Curves\n",
            *(f"![{CAPTIONS[name]}](reproduction-{name}.png)\n\n{CAPTIONS[name]}\n" for name in drawn(findings)),
            *(study_section(findings, study) for study in trained),
            *filter(None, [resolution_section(findings)]),
            large(findings),
            *([PHOTOGRAPHS] if findings.rows("steel", "training") else []),
            LEARNT,
            LIMITS,
        ]
    )


def section(findings: Findings, claim: Claim) -> str:
    """Write rule, verdict and parts of a claim."""
    parts = claim.judge(findings, claim.studies)
    body = [[part.study, part.run, part.measure, part.figure, part.word] for part in parts]
    table = markdown_left(["study", "run", "part", "figure", "holds"], body) if parts else "There are no rows.\n"
    squares = ""
    if claim.code in PLACED and any(findings.rows(study, NOT_ALIGNED) for study in claim.studies):
        before = verdict(claim.judge(findings.drawn_as_squares(), claim.studies))
        squares = f"*With maps drawn as squares that fill the image: {before}.*\n\n"
    only_places = ""
    if claim.code in SCORED and findings.rows("steel", "training") and "steel" not in {part.study for part in parts}:
        only_places = "*Nothing of the study steel: of its maps the places alone were measured.*\n\n"
    head = f"### {claim.code}. {claim.says}\n\n*Rule.* {claim.rule}\n\n*Verdict: {verdict(parts)}.*"
    return f"{head}\n\n{squares}{only_places}{table}"


def study_section(findings: Findings, study: str) -> str:
    """Write the tables of a study."""
    rows = findings.rows(study, "training")
    shown = findings.rows(study, "explanation")
    start = ""
    if {**SMALL, **STEEL, **LARGE}[study].fine_tuned:
        start = " of the vanilla classifier, and as many of every run that starts from it"
    budget = f"{rows[0]['images']} training images, {rows[0]['epochs']} epochs{start}"
    explained = f"{shown[0]['images']} test images explained"
    placed = findings.rows(study, LOCALISED, **{"class": ALL_LOCATED})
    if not any("average_drop" in row for row in shown):
        explained += ", of whose maps the places alone were measured (`--places-only`)"
    elif placed:
        explained += f", and places measured on all {placed[0]['annotated']} of the classes with small boxes"
    title = f"## Study: {study}\n\nData `{rows[0]['data']}`, {budget}; {explained}.\n"
    parts = [title, predictions(findings, study)]
    if len(sweep(findings, study)) > 2:
        parts.append(penalties(findings, study))
    parts.append(explanations(findings, study))
    if findings.rows(study, NOT_ALIGNED):
        parts += [ALIGNED, alignment(findings, study)]
    if findings.rows(study, LOCALISED):
        parts += [OF_CLASSES, by_class(findings, study)]
    if few := few_images(findings, study):
        parts += [OF_FEW_IMAGES, few]
    if findings.runs(study, "calibration"):
        parts += [*filter(None, [points(findings, study)]), temperatures(findings, study)]
    return "\n".join(parts)


def resolution_section(findings: Findings) -> str:
    """Write what finer and coarser maps change on photographs."""
    if not any(findings.rows(name, LOCALISED) for name, study in STEEL.items() if study.resolution):
        return ""
    moved = [name for name in STEEL if findings.rows(name, NOT_ALIGNED)]
    place = f" Maps of {' and '.join(f'*{name}*' for name in moved)} are drawn where their cells look." if moved else ""
    return (
        "## Map resolution\n\nThe vanilla classifier of the study *steel*, fine-tuned at other strides and sizes of "
        "images. CAM explains it, on the test images of the classes with small boxes. Maps are drawn as squares where "
        f"no place could be measured.{place}\n\n"
        f"{resolution(findings, STEEL)}"
    )


def large(findings: Findings) -> str:
    """Write the larger variant: a verdict for each study and claim, where the study was run."""
    codes = [claim for claim in CLAIMS if claim.code in ("S1", "S2", "S3", "C1", "C2", "C3", "C5")]
    body = []
    for study in LARGE:
        if not findings.rows(study, "training"):
            body.append([study, *["not run here"] * (len(codes) + 1)])
            continue
        accuracy = {run: findings.trained(study, run, "accuracy") for run in findings.runs(study)}
        line = ", ".join(f"{run} {mean(column):.1f}" for run, column in accuracy.items())
        body.append([study, line, *(verdict(claim.judge(findings, (study,))) for claim in codes)])
    table = markdown_left(["study", "accuracy in %", *(claim.code for claim in codes)], body)
    more = "\n".join(study_section(findings, study) for study in LARGE if findings.rows(study, "training"))
    return (
        "## The larger variant\n\n`make reproduce-large` runs ResNet-50, VGG-16 and SwinV2 at 224 and 448 px, "
        f"with timm's weights, on a GPU.\n\n{table}\n{more}"
    )


def markdown_left(header: list[str], body: list[list[str]]) -> str:
    """Format a table of text."""
    return markdown(header, body).replace("---:", "---")


def drawn(findings: Findings) -> list[str]:
    """Return the names of the curves that the rows suffice for."""
    annotated = with_masks(findings)
    return [name for name in CURVES if annotated and (name != "sparsity" or with_sweeps(findings))]


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare only; exit 1 where the document differs")
    check, findings = parser.parse_args().check, read()
    new = document(findings)
    if check:
        complete = DOCUMENT.exists() and all(picture(name).exists() for name in drawn(findings))
        if not complete or DOCUMENT.read_text(encoding="utf-8") != new:
            sys.exit("docs/reproduction.md differs from the rows: run `python -m benchmarks.reproduction.claims`")
        return
    DOCUMENT.write_text(new, encoding="utf-8")
    for name in drawn(findings):
        CURVES[name](findings).save(picture(name))


def picture(name: str) -> Path:
    """Return the file of a curve."""
    return DOCUMENT.with_name(f"reproduction-{name}.png")


if __name__ == "__main__":
    main()
