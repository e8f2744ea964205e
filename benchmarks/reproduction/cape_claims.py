"""Judge the claims of the CAPE paper, and the claims of both papers about costs."""

from collections.abc import Callable
from dataclasses import replace

from .findings import Column, Findings, Row, best_of, mean, minus, spread, with_seeds
from .studies import CLASS_COUNTS, JUDGED
from .verdicts import MAY_LOSE, NOT_MEASURED, Claim, Part, always, part

SAME = 0.5
"""Difference in points of accuracy that counts as equal."""

ADDS_UP = 1e-5
"""Largest error of maps that add up to the prediction."""

LOW_COST, HIGH_COST = 1.1, 100.0
"""Largest cost of all our maps, and least cost of Score-CAM, in forwards of the vanilla classifier."""

MANY = 10
"""Least number of classes that counts as many."""

UNTRAINED = ("naive", "off-the-shelf")

Table = dict[str, list[Row]]
"""Map -> its rows of all seeds."""


def adds_up(findings: Findings, studies: tuple[str, ...]) -> list[Part]:
    """Judge C1: the maps of every run of a family add up to the prediction."""
    parts = []
    for study in studies:
        for family in ("softcam", "cape"):
            runs = [run for run in findings.runs(study) if run.startswith(family)]
            columns = {run: findings.trained(study, run, "completeness_error") for run in runs}
            for run in runs:
                where = {"run": run, "explainer": family}
                columns[f"{run} explained"] = findings.column(study, "explanation", "completeness_error", **where)
            worst = best_of(columns)
            figure = f"largest mean error {max(worst.values(), default=0):.1e}"
            below = always(lambda value: value <= ADDS_UP)
            parts += part(study, f"{len(runs)} run{'s' * (len(runs) > 1)}", f"{family} adds up", figure, worst, below)
    return parts


def order_of_accuracy(findings: Findings, studies: tuple[str, ...]) -> list[Part]:
    """Judge C2: bootstrapped CAPE lies between the vanilla classifier and the other variants."""
    parts = []
    for study in studies:
        lower = {name: findings.column(study, "variant", "accuracy", variant=name) for name in UNTRAINED}
        lower["direct"] = findings.trained(study, "cape-direct", "accuracy")
        lower = {name: column for name, column in lower.items() if column}
        vanilla, below = findings.trained(study, "vanilla", "accuracy"), best_of(lower)
        for run in ("cape-ts", "cape-pf"):
            ours = findings.trained(study, run, "accuracy")
            others = ", ".join(f"{name} {spread(column)}" for name, column in lower.items())
            comparisons = (
                ("vanilla ≥ CAPE", vanilla, minus(vanilla, ours), ""),
                ("CAPE ≥ other variants", below, minus(ours, below), f" ({others})"),
            )
            for measure, compared, gap, remark in comparisons:
                figure = f"{spread(ours)} against {spread(compared)}: gap {spread(gap, sign='+')}{remark}"
                parts += part(study, run, measure, figure, gap, lambda gap: mean(gap) >= -SAME)
    return parts


def leads(findings: Findings, studies: tuple[str, ...]) -> list[Part]:
    """Judge C3: the maps that lead the Borda ranking and mIoU."""
    parts = []
    for study in studies:
        table = findings.table1(study)
        if not any(name.startswith("mu-cape") for name in table):
            continue
        data = findings.rows(study, "training")[0]["data"]
        parts += _leads_borda(study, table)
        many, few = CLASS_COUNTS[data] >= MANY, CLASS_COUNTS[data] == 2
        expected, measure = ("cape",), "CAPE leads mIoU"
        if few:
            expected, measure = ("cam", "lift-cam"), "CAM or LIFT-CAM leads mIoU"
        found = _leads_overlap(findings, study, table, measure, expected)
        parts += found if many or few else [replace(one, holds=None) for one in found]
    return parts


def _leads_borda(study: str, table: Table) -> list[Part]:
    """Judge whether a µ-CAPE map has the most Borda points, on average and in every seed.

    Points of significant ranks must be more than those of every other map, where there are values of the images.
    """
    columns, significant = _columns(table, "borda"), _columns(table, "significant_borda")
    if not columns:
        return []
    expected = [one for one in columns if is_map(one, ("mu-cape",))]
    figure, first = _first_three(columns, lambda value: -value)
    holds = any(one in expected for one in first)
    ahead = _ahead(columns, expected)
    holds = holds and min(ahead.values(), default=0) >= 0
    figure += f"; µ-CAPE ahead by {with_seeds(ahead, '+.0f')}" if ahead else ""
    complete = all(significant.get(one, {}).keys() == column.keys() for one, column in columns.items())
    if complete:
        figure += f"; of significant ranks: {_first_three(significant, lambda value: -value)[0]}"
        holds = holds and min(_ahead(significant, expected).values(), default=1) > 0
    found = part(study, "all maps", "µ-CAPE leads Borda", figure, best_of(columns), lambda _: holds)
    return found if complete else [replace(one, lacks_interval=True) for one in found]


def _ahead(columns: dict[str, Column], expected: list[str]) -> Column:
    """Return by how much the best of the expected maps is above the best of the others, in every seed."""
    ours, theirs = _split(columns, expected)
    return minus(best_of(ours), best_of(theirs))


def _leads_overlap(findings: Findings, study: str, table: Table, measure: str, kinds: tuple[str, ...]) -> list[Part]:
    """Judge whether a map of the expected kinds has the lowest mIoU, on average and, with values, beyond doubt.

    With values of the images, it must be the lowest in every seed, as printed, and the interval of its difference to
    the best map of another kind must exclude 0. Maps that are equal to it in all images do not count as others.
    """
    columns = _columns(table, "miou")
    if not columns:
        return []
    figure, first = _first_three(columns, lambda value: value)
    holds = any(is_map(one, kinds) for one in first)
    expected, others = _split(columns, [one for one in columns if is_map(one, kinds)])
    maps = {one: {row["seed"]: (row["run"], row["explainer"]) for row in table[one]} for one in columns}
    complete = bool(expected) and all(findings.strata(study, maps[one], "miou") for one in columns)
    if complete:
        leader = min(expected, key=lambda one: mean(expected[one]))
        compared = {one: findings.difference(study, "miou", maps[one], maps[leader]) for one in others}
        rivals = [one for one, found in compared.items() if found and any((found.difference, found.low, found.high))]
        for rival in sorted(rivals, key=lambda one: mean(columns[one]))[:1]:
            found = compared[rival]
            figure += f"; {leader} is lower than {rival} by {found.difference:.1f} [{found.low:.1f}, {found.high:.1f}]"
            lowest = best_of({one: columns[one] for one in rivals}, min)
            holds = (
                holds and found.low > 0 and all(round(gap, 1) >= 0 for gap in minus(lowest, columns[leader]).values())
            )
    parts = part(study, "all maps", measure, figure, columns[first[0]], lambda _: holds)
    return parts if complete else [replace(one, lacks_interval=True) for one in parts]


def _split(columns: dict[str, Column], names: list[str]) -> tuple[dict[str, Column], dict[str, Column]]:
    """Return the columns of the named maps, and those of all others."""
    chosen = {one: column for one, column in columns.items() if one in names}
    return chosen, {one: column for one, column in columns.items() if one not in names}


def is_map(name: str, expected: tuple[str, ...]) -> bool:
    """Tell whether a map is one of the expected kinds; its name may end with the run in brackets."""
    return name.split(" (")[0] in expected


def _columns(table: Table, name: str) -> dict[str, Column]:
    """Return a column of every map that has it."""
    columns = {
        one: {row["seed"]: row[name] for row in rows if row.get(name) is not None} for one, rows in table.items()
    }
    return {one: column for one, column in columns.items() if column}


def _first_three(columns: dict[str, Column], key: Callable[[float], float]) -> tuple[str, list[str]]:
    """Name the first three maps with their numbers, and return all maps that share the first place.

    Args:
        columns: Numbers of every map.
        key: Function that sorts the best mean first.
    """
    ranked = sorted(columns, key=lambda one: key(mean(columns[one])))
    first = [one for one in ranked if mean(columns[one]) == mean(columns[ranked[0]])]
    return ", ".join(f"{one} {spread(columns[one])}" for one in ranked[: max(3, len(first))]), first


def selective_helps(findings: Findings, studies: tuple[str, ...]) -> list[Part]:
    """Judge C4: selective divergence raises the accuracy."""
    parts = []
    for study in studies:
        for run in ("cape-ts", "cape-pf"):
            ours, plain = (findings.trained(study, one, "accuracy") for one in (f"{run}-selective", run))
            gain = minus(ours, plain)
            figure = f"{spread(ours)} against {spread(plain)}: {spread(gain, sign='+')}"
            parts += part(study, run, "accuracy", figure, gain, always(lambda value: value > 0))
    return parts


def confidence_is_low(findings: Findings, studies: tuple[str, ...]) -> list[Part]:
    """Judge C5: the confidence of bootstrapped CAPE is too low, and another temperature corrects it."""
    return [
        one
        for study in studies
        for run in findings.runs(study, "calibration")
        if run in ("cape-ts", "cape-pf")
        for one in _judge_confidence(findings, study, run)
    ]


def _judge_confidence(findings: Findings, study: str, run: str) -> list[Part]:
    def column(name: str, temperature: str = "learnt") -> Column:
        return findings.column(study, "calibration", name, run=run, temperature=temperature)

    confidence, accuracy = (
        {seed: 100 * value for seed, value in column(name).items()} for name in ("confidence", "accuracy")
    )
    figure = f"confidence {spread(confidence)}, accuracy {spread(accuracy)}"
    gap = minus(accuracy, confidence)
    parts = part(study, run, "confidence too low", figure, gap, always(lambda value: value > MAY_LOSE))
    learnt = column("calibration_error")
    for way in ("divided by T", "fitted"):
        error = column("calibration_error", way)
        figure = f"calibration error {spread(error, '.3f')} against {spread(learnt, '.3f')}"
        parts += part(study, run, f"T' {way}", figure, minus(error, learnt), always(lambda value: value < 0))
    worst = best_of({way: column("completeness_error", way) for way in ("learnt", "divided by T", "fitted")})
    figure = f"largest error {max(worst.values(), default=0):.1e}"
    return parts + part(study, run, "completeness", figure, worst, always(lambda value: value <= ADDS_UP))


def costs(findings: Findings, studies: tuple[str, ...]) -> list[Part]:
    """Judge C6: the cost of one forward with all maps, and of Score-CAM, in no study and without seeds."""
    ours = [
        _cost(
            f"{family}, all maps",
            [row["ratio"] for row in findings.heads if row["comparison"] == f"{family} explained"],
            lambda ratio: ratio <= LOW_COST,
        )
        for family in ("softcam", "cape")
    ]
    score_cam = [row["ratio"] for row in findings.explainers if (row["method"], row["side"]) == ("score-cam", "ours")]
    return [*ours, _cost("Score-CAM, one class", score_cam, lambda ratio: ratio >= HIGH_COST)]


def _cost(measure: str, ratios: list[float], test: Callable[[float], bool]) -> Part:
    if not ratios:
        return Part("-", "-", measure, NOT_MEASURED, None)
    figure = " to ".join(dict.fromkeys(f"{end(ratios):.4g}" for end in (min, max))) + " vanilla forwards"
    return Part("-", "-", measure, figure, all(test(ratio) for ratio in ratios))


CAPE_CLAIMS = [
    Claim(
        "C1",
        "Maps add up to the prediction: CAPE's to the probability, SoftCAM's as a mean to the logit.",
        f"The mean absolute error on test images is at most {ADDS_UP:g} in every run and seed.",
        adds_up,
        JUDGED,
    ),
    Claim(
        "C2",
        "The vanilla classifier is at least as accurate as bootstrapped CAPE (TS, PF), and bootstrapped CAPE "
        "at least as accurate as the other variants of CAPE: off the shelf, naive, and trained directly.",
        f"In each of the two comparisons, the mean difference is not below -{SAME:g} point. Of the other "
        f"variants, the best of each seed counts.",
        order_of_accuracy,
        JUDGED,
    ),
    Claim(
        "C3",
        "µ-CAPE leads the Borda ranking. CAPE leads mIoU with many classes; with two classes CAM or LIFT-CAM does.",
        "The named map has the best mean over seeds, among the post-hoc maps of the vanilla classifier and "
        "the maps of bootstrapped CAPE. Where there are values of the images, it leads in every seed; in mIoU, the "
        "interval of the difference to the best other map excludes 0, and it has more Borda points of significant "
        "ranks than every other map. With three to nine classes, the leader in mIoU is shown but decides nothing.",
        leads,
        JUDGED,
    ),
    Claim(
        "C4",
        "Selective divergence (eq. 11) helps with many classes.",
        "The accuracy with selective divergence is above the accuracy without it in every seed.",
        selective_helps,
        ("marks",),
    ),
    Claim(
        "C5",
        "The confidence of bootstrapped CAPE is below its accuracy. Dividing T' by T, or fitting T' to "
        "validation data, corrects that, and maps still add up.",
        f"The confidence is more than {MAY_LOSE:g} point below the accuracy in every seed. The calibration "
        f"error is lower than with the learnt T' in every seed. The largest completeness error is at most "
        f"{ADDS_UP:g} at every T'.",
        confidence_is_low,
        JUDGED,
    ),
    Claim(
        "C6",
        "SoftCAM and CAPE cost about as much as the vanilla classifier, and Score-CAM many times as much.",
        f"One forward with all maps takes at most {LOW_COST:g} times as long as the vanilla forward, for "
        f"every network and batch that was measured. Score-CAM takes at least {HIGH_COST:g} times as long.",
        costs,
    ),
]
