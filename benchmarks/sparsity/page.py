"""Derive docs/sparsity.md and its curves from the rows: python -m benchmarks.sparsity.page [--check]"""

import re
import statistics
import sys
from pathlib import Path

from benchmarks.timing import Row, read_rows
from softcam_hub.arguments import ArgumentParser
from softcam_hub.evaluation.report import markdown
from softcam_hub.figures.charts import Panel, curves

from .candidates import CANDIDATES
from .features import STUDIES
from .fine_tune import PLANS
from .rule import CHOICE, RULE, SEEDS, Verdict, choose, is_screened, judge, ranking, references, shortfall
from .screen import ROWS

DOCUMENT = Path(__file__).parents[2] / "docs" / "sparsity.md"
PICTURE = DOCUMENT.with_name("sparsity.png")

COLUMNS = {
    "accuracy": "accuracy",
    "zeros": "zeros",
    "gini": "Gini",
    "gini_positive": "Gini of M⁺",
    "precision": "top-k precision",
    "precision_10": "top 10",
    "mass": "activation precision",
    "cancellation": "cancellation",
}
RATIOS = ("gini", "gini_positive", "cancellation")
"""Columns that are not shown in percent."""

ABOUT = """# What makes maps sparse

The SoftCAM paper promises sparse maps, and its L1 penalty does not deliver them: an L1 on evidence makes it smaller,
not sparser ([Reproduction](reproduction.md)). This page screens other ways, under a rule that was written before the
first row. `python -m benchmarks.sparsity.page` derives the page from `benchmarks/results/sparsity.jsonl`.
"""


def document(rows: list[Row]) -> str:
    """Return the page."""
    parts = [ABOUT, f"## The rule\n\n{RULE}\n\n{CHOICE}\n", outcome(rows), reading(rows), candidates()]
    return "\n".join([*parts, *(table(rows, study) for study in STUDIES), fine_tuning(rows)])


def candidates() -> str:
    """List every candidate with its formula."""
    body = [
        [f"`{name}`", one.formula, ", ".join(f"{value:g}" for value in one.grid) if one.parameter else ""]
        for name, one in CANDIDATES.items()
    ]
    text = (
        "E = W·F is the evidence without the bias and M' = E + b. Where E is set to zero, b stays outside of the map: "
        "the logit is the mean of the map plus b. Maps of the CAPE kind sum to the probability.\n\n"
    )
    return f"## Candidates\n\n{text}{_left(markdown(['candidate', 'map, penalty or saliency', 'values'], body))}\n"


def outcome(rows: list[Row]) -> str:
    """Say which candidates go on, and how far they are from the rule."""
    title = "## Outcome of the screening\n\n"
    ranked = ranking(rows, tuple(PLANS)) if is_screened(rows, tuple(PLANS)) else []
    if not ranked:
        return f"{title}Not run yet.\n"
    missing = {(candidate, value): points for points, _, candidate, value in ranked}
    chosen = choose(rows, tuple(PLANS))
    names = " and ".join(f"{_name(*one)} (shortfall {missing[one]:.1f} points)" for one in chosen)
    keeping = sum(points == 0 for points in missing.values())
    keep = {0: "none keeps", 1: "one keeps"}.get(keeping, f"{keeping} keep")
    return (
        f"{title}The next stage fine-tunes {names}. Of {len(missing)} settings, {keep} the rule on frozen "
        "features, where one seed decides nothing.\n\n![Accuracy and top-k precision over the Gini coefficient of the "
        "maps, a line for every candidate over the values of its parameter.](sparsity.png)\n"
    )


PLACED = (
    "*Better placed* is the number of seeds with a higher top-k precision than dense SoftCAM and every post-hoc CAM, "
    "and in brackets the distance to the best of them in points, seed by seed. Score-CAM explains the first images "
    "only, and is compared on these. A study with fewer than three seeds was not continued: one seed in which a "
    "candidate is not better placed decides against it."
)

FOLLOWS = """**What follows.** The package has no option for sparse maps, because none of the candidates passes. The
best trade-off is `threshold-annealed`, τ = 1.5: {threshold_annealed_zeros} % of its cells are zero on lesions and on
steel. Its accuracy is {threshold_annealed_accuracy} % beside {dense_accuracy} % of dense SoftCAM, and
{threshold_annealed_mass} % of its map lie inside the annotation beside {dense_mass} %. Its highest patches lie worse:
top-k precision is {threshold_annealed_precision} % beside {dense_precision} %.

"""

READING = """## How to read it

- **L1 does not do it.** From dense SoftCAM to λ = 1 the Gini coefficient goes from {gini:dense,0,lesions} to
  {gini:l1,1,lesions} on lesions and from {gini:dense,0,steel} to {gini:l1,1,steel} on steel, and accuracy from
  {accuracy:dense,0,lesions} to {accuracy:l1,1,lesions} % and from {accuracy:dense,0,steel} to {accuracy:l1,1,steel} %.
- **Hoyer and entropy penalties move it a little**, and make no zeros: at λ = 3 Hoyer has a Gini coefficient of
  {gini:hoyer,3,lesions} and {gini:hoyer,3,steel}. With smaller weights maps on steel even become flatter: the penalty
  first takes away evidence of opposite sign, and what is left is more even. Top-k precision gains all the same:
  {precision:hoyer,3,lesions} against {precision:dense,0,lesions} % on lesions.
- **A soft threshold in units of the map's own mean does it.** With τ = 1.25 there are {zeros:threshold,1.25,lesions} %
  and {zeros:threshold,1.25,steel} % exact zeros, and the highest patches lie better than those of dense SoftCAM
  ({precision:threshold,1.25,lesions} against {precision:dense,0,lesions} %, {precision:threshold,1.25,steel} against
  {precision:dense,0,steel} %). Accuracy on steel is {accuracy:threshold,1.25,steel} against {accuracy:dense,0,steel} %,
  which are few images, and the reason why no setting keeps the whole rule there. At τ = 2 some maps are empty, because
  no cell of a flat map is twice its mean: letting τ grow during training avoids most of that on steel, not on lesions.
- **One threshold for all classes of an image is worse**: it empties the maps of the classes that lose, and leaves
  that of the predicted class dense.
- **Zeros of another kind cost more.** With κ = 0.4 `attended` has {zeros:attended,0.4,lesions} and
  {zeros:attended,0.4,steel} % zeros, and a top-k precision of {precision:attended,0.4,lesions} and
  {precision:attended,0.4,steel} %: better than dense maps on lesions, worse on steel. The highest share of cells loses
  a little on both, and rectified maps make few zeros.
- **CAPE's saliency reads the wrong thing.** A mean over classes is what cross-entropy leaves to chance. Entmax on
  logsumexp − mean, which shared evidence cannot change, has a top-k precision of {precision:cape-contrast,0.25,lesions}
  and {precision:cape-contrast,0.25,steel} %, where entmax on the mean has {precision:cape-entmax,0.25,lesions} and
  {precision:cape-entmax,0.25,steel} %. It misses the rule, and is a better CAPE.
- **More of the map lies inside** with almost every kind of zeros: {mass:attended,0.8,lesions} % on lesions with
  `attended`, κ = 0.8, and {mass:dense,0,lesions} % dense.

**Limits.** One seed, frozen backbones, heads only; dense SoftCAM has {accuracy:dense,0,steel} % on validation images
of steel, so that a single image decides about 0.4 points. Where a map has fewer patches with evidence than the 30 that
top-k precision asks for, patches of zeros in reading order fill up: the measure punishes very sparse maps, and the
columns *top 10* and *activation precision* stand beside it. Maps are drawn without the correction of their place.
Score-CAM is not among the post-hoc CAMs here. The two candidates that go on are one map, trained in two ways;
`attended` is the next of another kind. With τ = 0.5 `threshold` is sparse by its Gini coefficient alone:
{zeros:threshold,0.5,lesions} and {zeros:threshold,0.5,steel} % of its cells are zero.
A trial on steel at a stride of 32 was seen before the rows: it led to `attended`, to `threshold-annealed` and to
narrower grids, and to the choice of the stride of 16 for the ranking.
"""


def reading(rows: list[Row]) -> str:
    """Say what the screening shows, with its numbers in place of {measure:candidate,value,study}."""
    if not is_screened(rows, tuple(PLANS)):
        return ""
    found = {
        (row["candidate"], f"{row['value']:g}", row["study"].split(",")[0]): row
        for row in rows
        if row["stage"] == "screening" and row["study"] in PLANS
    }

    def number(match: re.Match[str]) -> str:
        row = found.get((match[2], match[3], match[4]), {})
        return _cell(row.get(match[1]), match[1])

    return re.sub(r"{(\w+):([\w-]+),([\d.]+),(\w+)}", number, READING)


def best_of_each(rows: list[Row]) -> list[tuple[str, float]]:
    """Return every candidate with its best value, references too, in the order of the candidates."""
    best = {candidate: value for _, _, candidate, value in reversed(ranking(rows, tuple(PLANS), with_references=True))}
    return [(name, best[name]) for name in CANDIDATES if name in best]


def table(rows: list[Row], study: str) -> str:
    """Render one line for the best setting of every candidate on one study, and one for every post-hoc CAM."""
    shown = [row for row in rows if row["stage"] == "screening" and row["study"] == study]
    if not shown:
        return f"## Screening: {study}\n\nNot run yet.\n"
    dense, cams = references(rows, study, "screening", 0)
    by_setting = {(row["candidate"], row["value"]): row for row in shown}
    body = []
    for setting in best_of_each(rows):
        row = by_setting[setting]
        body.append([_name(*setting), *_cells(row), f"{shortfall(row, dense, cams):.1f}"])
    body += [[row["candidate"], *_cells(row), ""] for row in cams]
    about = (
        f"{dense['images']} validation images, {dense['located']} of them count for localisation; maps of "
        f"{dense['grid']}×{dense['grid']}; {dense['epochs']} epochs, seed {dense['seed']}."
    )
    return f"## Screening: {study}\n\n{about}\n\n{markdown(['setting', *COLUMNS.values(), 'shortfall'], body)}\n"


def _name(candidate: str, value: float) -> str:
    parameter = CANDIDATES[candidate].parameter
    return f"`{candidate}`" + (f", {parameter} = {value:g}" if parameter else "")


def _verdict(verdict: Verdict | None) -> list[str]:
    if verdict is None:
        return ["-", "-", "-"]
    better = sum(margin > 0 for margin in verdict.margins)
    margins = ", ".join(f"{100 * margin:+.1f}" for margin in verdict.margins)
    seeds = f"{better} of {len(verdict.margins)} seeds ({margins})"
    change = f"{100 * verdict.accuracy:+.1f} ± {100 * verdict.interval:.1f}: {'yes' if verdict.is_accurate else 'no'}"
    return [change, "yes" if verdict.is_sparse else "no", seeds]


def _cells(row: Row) -> list[str]:
    return [_cell(row.get(name), name) for name in COLUMNS]


def _cell(value: float | None, name: str) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if name in RATIOS else f"{100 * value:.1f}"


def _left(table: str) -> str:
    return table.replace("---:", "---")


def panels(rows: list[Row]) -> list[Panel]:
    """Return accuracy and top-k precision over the Gini coefficient, for each study that chooses."""
    found = []
    for study in PLANS:
        for name in ("accuracy", "precision"):
            lines: dict[str, list[tuple[float, float]]] = {}
            for row in rows:
                if row["stage"] == "screening" and row["study"] == study and "accuracy" in row:
                    lines.setdefault(row["candidate"], []).append((row["gini"], 100 * row[name]))
            found.append((f"{study}: {COLUMNS[name]} in %", lines))
    return found


def fine_tuning(rows: list[Row]) -> str:
    """Render the fine-tuned candidates and the verdict of the rule, or say that they have not been run."""
    title = "## Fine-tuning\n\n"
    tuned = [row for row in rows if row["stage"] == "fine-tuning" and "accuracy" in row]
    if not tuned:
        missing = "Not run yet, so that no candidate has passed and none is an option of the package."
        return f"{title}{missing} `python -m benchmarks.sparsity.fine_tune` runs it.\n"
    settings = list(dict.fromkeys((row["candidate"], row["value"]) for row in tuned))
    body = []
    for study in PLANS:
        for setting in settings:
            of = [row for row in tuned if row["study"] == study and (row["candidate"], row["value"]) == setting]
            if of:
                means = {name: statistics.fmean(row[name] for row in of) for name in COLUMNS}
                verdict = judge(rows, study, setting[0]) if setting[0] != "dense" else None
                body.append([study, _name(*setting), str(len(of)), *_cells(means), *_verdict(verdict)])
    header = ["study", "setting", "seeds", *COLUMNS.values(), "accuracy kept", "sparse", "better placed"]
    text = f"{result(rows, settings)}\n\n{follows(rows)}Means over seeds, test images. {PLACED}\n\n"
    return f"{title}{text}{markdown(header, body)}\n"


def follows(rows: list[Row]) -> str:
    """Say what a user may take from the candidate with the most zeros, if it was fine-tuned on all studies."""
    means: dict[str, list[dict[str, float]]] = {}
    for name in ("dense", "threshold-annealed"):
        for study in PLANS:
            of = [row for row in rows if row["stage"] == "fine-tuning" and row["study"] == study]
            of = [row for row in of if row["candidate"] == name and "accuracy" in row]
            if of:
                columns = ("accuracy", "zeros", "mass", "precision")
                means.setdefault(name, []).append(
                    {one: 100 * statistics.fmean(row[one] for row in of) for one in columns}
                )
    if any(len(means.get(name, [])) < len(PLANS) for name in ("dense", "threshold-annealed")):
        return ""
    numbers = {
        f"{name}_{column}": " and ".join(f"{mean[column]:.1f}" for mean in means[name])
        for name in means
        for column in means[name][0]
    }
    return FOLLOWS.format(**{name.replace("-", "_"): value for name, value in numbers.items()})


def result(rows: list[Row], settings: list[tuple[str, float]]) -> str:
    """Say which candidates pass, and which ones no further seed can help."""
    sentences = []
    for candidate, value in settings:
        verdicts = [verdict for study in PLANS if (verdict := judge(rows, study, candidate))]
        if candidate == "dense":
            continue
        if len(verdicts) == len(PLANS) and all(verdict.passes for verdict in verdicts):
            outcome = "keeps the rule"
        elif any(verdict.is_out for verdict in verdicts):
            outcome = f"does not keep the rule, because {_reasons(verdicts)}"
        else:
            outcome = "is not decided yet"
        sentences.append(f"{_name(candidate, value)} {outcome}.")
    return "\n".join(f"- {sentence}" for sentence in sentences)


def _reasons(verdicts: list[Verdict]) -> str:
    """Say what of the rule a candidate does not keep, as far as no further seed can change it."""
    reasons = ["its top-k precision is not the highest in every seed"]
    whole = [verdict for verdict in verdicts if len(verdict.margins) >= SEEDS]
    if not all(verdict.is_sparse for verdict in whole):
        reasons.append("its maps are not sparse enough")
    if not all(verdict.is_accurate for verdict in whole):
        reasons.append("its accuracy is too low")
    return " and ".join(reasons)


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="compare only; exit 1 where the page differs from the rows"
    )
    check, rows = parser.parse_args().check, read_rows(ROWS)
    new = document(rows)
    if check:
        if not PICTURE.exists() or DOCUMENT.read_text(encoding="utf-8") != new:
            sys.exit("docs/sparsity.md differs from the rows: run `python -m benchmarks.sparsity.page`")
        return
    DOCUMENT.write_text(new, encoding="utf-8")
    curves(panels(rows), "Gini coefficient of the map of the predicted class", height=260).save(PICTURE)


if __name__ == "__main__":
    main()
