"""Judge the claims of the SoftCAM paper.

SoftCAM's maps are compared with the post-hoc method that is best in the same seed and measure.
"""

from softcam_hub.evaluation.significance import compare_methods

from .findings import SUBSET, Findings, best_of, mean, minus, spread, with_seeds
from .verdicts import MAY_LOSE, MAY_LOSE_AUC, Claim, Part, better_map, part

LOCALISATION = {
    "localization_precision": "top-k precision",
    "activation_precision": "activation precision",
    "activation_sensitivity": "activation sensitivity",
}


def softcam_runs(findings: Findings, study: str) -> list[str]:
    """Return the SoftCAM runs of a study, without those of a sweep."""
    return [run for run in findings.runs(study) if run in ("softcam", "softcam-sparse")]


def keeps_accuracy(findings: Findings, studies: tuple[str, ...]) -> list[Part]:
    """Judge S1: SoftCAM keeps accuracy and AUC."""
    parts = []
    for study in studies:
        for run in softcam_runs(findings, study):
            for name, measure, loss, form in (
                ("accuracy", "accuracy", MAY_LOSE, ".1f"),
                ("auc", "AUC", MAY_LOSE_AUC, ".4f"),
            ):
                ours, theirs = (findings.trained(study, one, name) for one in (run, "vanilla"))
                gain = minus(ours, theirs)
                figure = f"{spread(ours, form)} against {spread(theirs, form)}: {spread(gain, form, '+')}"
                parts += part(study, run, measure, figure, gain, lambda gain, loss=loss: mean(gain) >= -loss)
    return parts


def compare_with_post_hoc(
    findings: Findings, study: str, run: str, name: str, measure: str, higher: bool = True
) -> list[Part]:
    """Judge whether SoftCAM's map is better than the vanilla classifier's best post-hoc map in every seed.

    Args:
        findings: Rows of all studies.
        study: Name of the study.
        run: SoftCAM run.
        name: Name of the column.
        measure: Name of the part.
        higher: A higher value is better.
    """
    ours, rivals = findings.native(study, run, name), findings.post_hoc(study, name)
    best = best_of(rivals, max if higher else min)
    chosen = {seed: [one for one, column in rivals.items() if column.get(seed) == best[seed]] for seed in best}
    gain = minus(ours, best) if higher else minus(best, ours)
    maps = dict.fromkeys(gain, (run, "softcam")), {seed: ("vanilla", chosen[seed][0]) for seed in gain}
    images = findings.difference(study, name, *(maps if higher else reversed(maps)))
    show = spread if images is None else with_seeds
    names = ", ".join(sorted({one for names in chosen.values() for one in names}))
    figure = f"{show(ours)} against {show(best)} ({names})"
    return better_map(study, run, measure, figure, gain, images)


def localises(findings: Findings, studies: tuple[str, ...]) -> list[Part]:
    """Judge S2: SoftCAM's maps localise better than post-hoc maps."""
    parts = []
    for study in studies:
        for run in softcam_runs(findings, study):
            for name, measure in LOCALISATION.items():
                parts += compare_with_post_hoc(findings, study, run, name, measure)
                parts += compare_on_few_images(findings, study, run, name, measure)
    return parts


def compare_on_few_images(findings: Findings, study: str, run: str, name: str, measure: str) -> list[Part]:
    """Judge whether SoftCAM's map is better than that of each slow post-hoc method, on the images that it explains."""
    parts = []
    slow = {row["of"]: row["annotated"] for row in findings.rows(study, SUBSET, run="vanilla")}
    for of, count in slow.items():
        ours, theirs = (findings.column(study, SUBSET, name, run=one, of=of) for one in (run, "vanilla"))
        first = findings.few_images(study, of, run, "softcam", name)
        second = findings.few_images(study, of, "vanilla", of, name)
        images = compare_methods(first, second) if first and second else None
        show = spread if images is None else with_seeds
        figure = f"{show(ours)} against {show(theirs)} ({of}, {count} images)"
        parts += better_map(study, run, measure, figure, minus(ours, theirs), images)
    return parts


def occlusion_counts(findings: Findings, studies: tuple[str, ...]) -> list[Part]:
    """Judge S3: occluding the highest patches lowers the confidence more than with post-hoc maps."""
    return [
        one
        for study in studies
        for run in softcam_runs(findings, study)
        for one in compare_with_post_hoc(findings, study, run, "topk_sensitivity", "top-k sensitivity", higher=False)
    ]


def second_family(findings: Findings, studies: tuple[str, ...]) -> list[Part]:
    """Judge S5: S1 to S3 on another family of backbones."""
    return [one for judge in (keeps_accuracy, localises, occlusion_counts) for one in judge(findings, studies)]


def sweep(findings: Findings, study: str) -> dict[float, str]:
    """Return λ -> SoftCAM run with this penalty, in order of λ."""
    rows = [row for row in findings.rows(study, "training") if row["run"].startswith("softcam")]
    return dict(sorted({row["l1"]: row["run"] for row in rows}.items()))


def trades(findings: Findings, studies: tuple[str, ...]) -> list[Part]:
    """Judge S4: the penalty makes maps sparser and less complete."""
    return [one for study in studies if len(sweep(findings, study)) > 2 for one in _trade(findings, study)]


def _trade(findings: Findings, study: str) -> list[Part]:
    runs = sweep(findings, study)
    accuracy = {l1: findings.trained(study, run, "accuracy") for l1, run in runs.items()}
    lost = [l1 for l1 in runs if mean(accuracy[0.0]) - mean(accuracy[l1]) > MAY_LOSE]
    figures = ", ".join(f"{l1:g}: {spread(column)}" for l1, column in accuracy.items())
    falls = f"from λ = {lost[0]:g} on" if lost else f"not up to λ = {max(runs):g}"
    remark = Part(study, "every λ", "accuracy falls", f"{falls} ({figures})", None)
    kept = max(l1 for l1 in runs if l1 < min(lost, default=float("inf")))
    if kept == 0.0:
        loss = minus(accuracy[lost[0]], accuracy[0.0])
        return [*part(study, f"λ = {lost[0]:g}", "accuracy kept", spread(loss), loss, lambda _: False), remark]
    return [*_trade_at(findings, study, kept, runs), remark]


def _trade_at(findings: Findings, study: str, l1: float, runs: dict[float, str]) -> list[Part]:
    """Judge whether the maps at a penalty are sparser, and cover less of the lesion, than those without a penalty.

    The Gini index of every seed is that of all test images, and the interval that of the explained ones.
    """
    sparse, plain = runs[l1], runs[0.0]
    gini = [findings.trained(study, one, "sparseness") for one in (sparse, plain)]
    covers = [findings.native(study, one, "activation_sensitivity") for one in (sparse, plain)]
    maps = [dict.fromkeys(findings.seeds(study), (one, "softcam")) for one in (sparse, plain)]
    images = [findings.difference(study, "gini", *maps)]
    images.append(findings.difference(study, "activation_sensitivity", *reversed(maps)))
    gini_figure, covers_figure = (
        " against ".join((spread if compared is None else with_seeds)(column, form) for column in columns)
        for columns, compared, form in ((gini, images[0], ".3f"), (covers, images[1], ".1f"))
    )
    sparser, at, less = minus(*gini), f"λ = {l1:g}", minus(*reversed(covers))
    return [
        *better_map(study, at, "sparser maps", f"Gini {gini_figure}", sparser, images[0], ".3f"),
        *better_map(
            study, at, "less of the lesion covered", f"activation sensitivity {covers_figure}", less, images[1]
        ),
    ]


SOFTCAM_CLAIMS = [
    Claim(
        "S1",
        "SoftCAM keeps the accuracy and the AUC of the vanilla classifier, with two classes and with more.",
        f"The mean over seeds of the difference to the vanilla classifier is not below -{MAY_LOSE:g} point "
        f"of accuracy, and not below -{MAY_LOSE_AUC:g} of AUC.",
        keeps_accuracy,
        ("screening", "lesions", "steel"),
    ),
    Claim(
        "S2",
        "SoftCAM's maps localise better than post-hoc maps of the vanilla classifier.",
        "The native map is better than the best post-hoc map in every seed, and the interval of the difference "
        "excludes 0. The best post-hoc method is chosen for each measure and seed.",
        localises,
        ("screening", "lesions", "steel"),
    ),
    Claim(
        "S3",
        "Occluding the highest patches of SoftCAM's maps lowers the confidence more than with post-hoc maps.",
        "The share of the confidence that is left (mean over k = 1 to 30) is lower than with the best "
        "post-hoc map in every seed, and the interval of the difference excludes 0.",
        occlusion_counts,
        ("screening", "lesions", "steel"),
    ),
    Claim(
        "S4",
        "The penalty trades completeness of the maps for sparsity.",
        f"At the largest λ before the mean accuracy falls by more than {MAY_LOSE:g} point, the maps are "
        "sparser, and cover less of the lesion, than at λ = 0 in every seed, and the intervals of both differences "
        "exclude 0. The claim fails if the smallest λ costs as much accuracy. The line *accuracy falls* "
        "says from which λ on it does.",
        trades,
        ("lesions", "fine-tuning"),
    ),
    Claim(
        "S5",
        "S1 to S3 hold on a second backbone family.",
        "The rules are those of S1, S2 and S3.",
        second_family,
        ("second backbone",),
    ),
]
