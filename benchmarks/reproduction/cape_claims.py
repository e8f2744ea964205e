"""The claims of the CAPE paper and their rules, and what both papers say about costs."""

from collections.abc import Callable
from dataclasses import replace

from softcam_hub.data.lesions import VARIANTS

from .findings import Column, Findings, best_of, mean, minus, spread
from .reproduce import SMALL
from .verdicts import MAY_LOSE, NOT_MEASURED, Claim, Part, always, part

SAME = 0.5
"""Points of accuracy that count as equal."""

ADDS_UP = 1e-5
"""The largest error of a sum."""

CHEAP, DEAR = 1.1, 100.0
"""Vanilla forwards that all maps of ours may take, and that Score-CAM takes at least."""

MANY = 10
"""Classes from which on a data set has many."""

UNTRAINED = ("naive", "off-the-shelf")


def adds_up(found: Findings, studies: tuple[str, ...]) -> list[Part]:
    """Of the runs of a family; SoftCAM's logits are those of the pooled features where its maps are benchmarked."""
    parts = []
    for study in studies:
        for family in ("softcam", "cape"):
            runs = [run for run in found.runs(study) if run.startswith(family)]
            columns = {run: found.trained(study, run, "completeness_error") for run in runs}
            for run in runs:
                where = {"run": run, "explainer": family}
                columns[f"{run} explained"] = found.column(study, "explanation", "completeness_error", **where)
            worst = best_of(columns)
            figure = f"largest mean error {max(worst.values(), default=0):.1e}"
            below = always(lambda value: value <= ADDS_UP)
            parts += part(study, f"{len(runs)} run{'s' * (len(runs) > 1)}", f"{family} adds up", figure, worst, below)
    return parts


def order_of_accuracy(found: Findings, studies: tuple[str, ...]) -> list[Part]:
    parts = []
    for study in studies:
        lower = {name: found.column(study, "variant", "accuracy", variant=name) for name in UNTRAINED}
        lower["direct"] = found.trained(study, "cape-direct", "accuracy")
        lower = {name: column for name, column in lower.items() if column}
        vanilla, below = found.trained(study, "vanilla", "accuracy"), best_of(lower)
        for run in ("cape-ts", "cape-pf"):
            ours = found.trained(study, run, "accuracy")
            for what, gap in (("vanilla ≥ it", minus(vanilla, ours)), ("it ≥ the rest", minus(ours, below))):
                best = vanilla if what.startswith("vanilla") else below
                figure = f"{spread(ours)} beside {spread(best)}: gap {spread(gap, sign='+')}"
                if best is below:
                    figure += f" ({', '.join(f'{name} {spread(column)}' for name, column in lower.items())})"
                parts += part(study, run, what, figure, gap, lambda gap: mean(gap) >= -SAME)
    return parts


def leads(found: Findings, studies: tuple[str, ...]) -> list[Part]:
    parts = []
    for study in studies:
        table = found.table1(study)
        if not any(name.startswith("mu-cape") for name in table):
            continue
        data = found.rows(study, "training")[0]["data"]
        parts += _leader(study, table, "borda", "µ-CAPE leads Borda", ("mu-cape",), lambda value: -value)
        many, few = len(VARIANTS[data]) >= MANY, len(VARIANTS[data]) == 2
        who, what = (("cam", "lift-cam"), "CAM or LIFT-CAM leads mIoU") if few else (("cape",), "CAPE leads mIoU")
        parts += [
            one if many or few else replace(one, holds=None)
            for one in _leader(study, table, "miou", what, who, lambda value: value)
        ]
    return parts


def _leader(
    study: str, table: dict, name: str, what: str, who: tuple[str, ...], key: Callable[[float], float]
) -> list[Part]:
    """Whether one of `who` has the best mean of a column; the first three are named."""
    columns = {
        one: {row["seed"]: row[name] for row in rows if row.get(name) is not None} for one, rows in table.items()
    }
    columns = {one: column for one, column in columns.items() if column}
    if not columns:
        return []
    ranked = sorted(columns, key=lambda one: key(mean(columns[one])))
    best = mean(columns[ranked[0]])
    first = [one for one in ranked if mean(columns[one]) == best]
    figure = ", ".join(f"{one} {spread(columns[one])}" for one in ranked[: max(3, len(first))])
    holds = any(one.split(" (")[0] in who for one in first)
    return part(study, "all maps", what, figure, columns[ranked[0]], lambda _: holds)


def selective_helps(found: Findings, studies: tuple[str, ...]) -> list[Part]:
    parts = []
    for study in studies:
        for run in ("cape-ts", "cape-pf"):
            ours, plain = (found.trained(study, one, "accuracy") for one in (f"{run}-selective", run))
            gain = minus(ours, plain)
            figure = f"{spread(ours)} against {spread(plain)}: {spread(gain, sign='+')}"
            parts += part(study, run, "accuracy", figure, gain, always(lambda value: value > 0))
    return parts


def confidence_is_soft(found: Findings, studies: tuple[str, ...]) -> list[Part]:
    return [
        one
        for study in studies
        for run in found.runs(study, "calibration")
        if run in ("cape-ts", "cape-pf")
        for one in _softness(found, study, run)
    ]


def _softness(found: Findings, study: str, run: str) -> list[Part]:
    def column(name: str, temperature: str = "learnt") -> Column:
        return found.column(study, "calibration", name, run=run, temperature=temperature)

    confidence, accuracy = (
        {seed: 100 * value for seed, value in column(name).items()} for name in ("confidence", "accuracy")
    )
    figure = f"confidence {spread(confidence)}, accuracy {spread(accuracy)}"
    gap = minus(accuracy, confidence)
    parts = part(study, run, "soft", figure, gap, always(lambda value: value > MAY_LOSE))
    learnt = column("calibration_error")
    for way in ("divided by T", "fitted"):
        error = column("calibration_error", way)
        figure = f"calibration error {spread(error, '.3f')} against {spread(learnt, '.3f')}"
        parts += part(study, run, f"T' {way}", figure, minus(error, learnt), always(lambda value: value < 0))
    worst = best_of({way: column("completeness_error", way) for way in ("learnt", "divided by T", "fitted")})
    figure = f"largest error {max(worst.values(), default=0):.1e}"
    return parts + part(study, run, "completeness", figure, worst, always(lambda value: value <= ADDS_UP))


def costs(found: Findings, studies: tuple[str, ...]) -> list[Part]:
    """Of one forward with all maps, and of Score-CAM; no study and no seed is needed."""
    ours = [
        _cost(
            f"{family}, all maps",
            [row["ratio"] for row in found.heads if row["comparison"] == f"{family} explained"],
            lambda ratio: ratio <= CHEAP,
        )
        for family in ("softcam", "cape")
    ]
    score_cam = [row["ratio"] for row in found.explainers if (row["method"], row["side"]) == ("score-cam", "ours")]
    return [*ours, _cost("Score-CAM, one class", score_cam, lambda ratio: ratio >= DEAR)]


def _cost(what: str, ratios: list[float], test: Callable[[float], bool]) -> Part:
    if not ratios:
        return Part("-", "-", what, NOT_MEASURED, None)
    figure = " to ".join(dict.fromkeys(f"{end(ratios):.4g}" for end in (min, max))) + " vanilla forwards"
    return Part("-", "-", what, figure, all(test(ratio) for ratio in ratios))


CAPE_CLAIMS = [
    Claim(
        "C1",
        "Maps add up to the prediction: CAPE's to the probability, SoftCAM's as a mean to the logit.",
        f"The mean absolute error on test images is at most {ADDS_UP:g} in every run and seed.",
        adds_up,
        tuple(SMALL),
    ),
    Claim(
        "C2",
        "Accuracy falls from the vanilla classifier over bootstrapped CAPE (TS, PF) to CAPE off the shelf, naive, and "
        "trained directly.",
        f"Each step of the order: the mean difference is not below -{SAME:g} point; *the rest* is the best of the "
        "others in each seed.",
        order_of_accuracy,
        tuple(SMALL),
    ),
    Claim(
        "C3",
        "µ-CAPE leads the Borda ranking. CAPE leads mIoU with many classes; with two classes CAM or LIFT-CAM does.",
        "The best mean over seeds, among the vanilla classifier's post-hoc maps and the maps of bootstrapped CAPE. "
        "With three to nine classes the leader in mIoU is shown and decides nothing.",
        leads,
        tuple(SMALL),
    ),
    Claim(
        "C4",
        "Selective divergence (eq. 11) helps with many classes.",
        "The accuracy with it is above that without it in every seed.",
        selective_helps,
        ("marks",),
    ),
    Claim(
        "C5",
        "CAPE's confidence is soft, dividing T' by T or fitting it to validation data mends that, and maps still add "
        "up.",
        f"Confidence is more than {MAY_LOSE:g} point below accuracy in every seed; the calibration error is lower than "
        f"as learnt in every seed; the largest error of completeness is at most {ADDS_UP:g} at every T'.",
        confidence_is_soft,
        tuple(SMALL),
    ),
    Claim(
        "C6",
        "SoftCAM and CAPE cost about as much as the vanilla classifier, Score-CAM many times that.",
        f"All maps in one forward take at most {CHEAP:g} times the vanilla forward on every network and batch that was "
        f"measured; Score-CAM takes at least {DEAR:g} times.",
        costs,
    ),
]
