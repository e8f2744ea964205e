"""The claims of the SoftCAM paper and their rules.

- SoftCAM's maps are compared with the best post-hoc method of each seed, chosen by the very measure: the hardest rival.
"""

from .findings import Findings, best_of, mean, minus, spread
from .verdicts import MAY_LOSE, MAY_LOSE_AUC, Claim, Part, always, part

LOCALISATION = {
    "localization_precision": "top-k precision",
    "activation_precision": "activation precision",
    "activation_sensitivity": "activation sensitivity",
}


def softcam_runs(found: Findings, study: str) -> list[str]:
    return [run for run in found.runs(study) if run in ("softcam", "softcam-sparse")]


def keeps_accuracy(found: Findings, studies: tuple[str, ...]) -> list[Part]:
    parts = []
    for study in studies:
        for run in softcam_runs(found, study):
            for name, what, least, form in (
                ("accuracy", "accuracy", MAY_LOSE, ".1f"),
                ("auc", "AUC", MAY_LOSE_AUC, ".4f"),
            ):
                ours, theirs = (found.trained(study, one, name) for one in (run, "vanilla"))
                gain = minus(ours, theirs)
                figure = f"{spread(ours, form)} against {spread(theirs, form)}: {spread(gain, form, '+')}"
                parts += part(study, run, what, figure, gain, lambda gain, least=least: mean(gain) >= -least)
    return parts


def beside_post_hoc(found: Findings, study: str, run: str, name: str, what: str, higher: bool = True) -> list[Part]:
    """Better than the best post-hoc map of the vanilla classifier, in every seed."""
    ours, rivals = found.native(study, run, name), found.post_hoc(study, name)
    best = best_of(rivals, max if higher else min)
    names = sorted({one for one, column in rivals.items() for seed in column if column[seed] == best[seed]})
    figure = f"{spread(ours)} against {spread(best)} ({', '.join(names)})"
    gain = minus(ours, best) if higher else minus(best, ours)
    return part(study, run, what, figure, gain, always(lambda value: value > 0))


def localises(found: Findings, studies: tuple[str, ...]) -> list[Part]:
    return [
        one
        for study in studies
        for run in softcam_runs(found, study)
        for name, what in LOCALISATION.items()
        for one in beside_post_hoc(found, study, run, name, what)
    ]


def occlusion_counts(found: Findings, studies: tuple[str, ...]) -> list[Part]:
    return [
        one
        for study in studies
        for run in softcam_runs(found, study)
        for one in beside_post_hoc(found, study, run, "topk_sensitivity", "top-k sensitivity", higher=False)
    ]


def second_family(found: Findings, studies: tuple[str, ...]) -> list[Part]:
    return [one for judge in (keeps_accuracy, localises, occlusion_counts) for one in judge(found, studies)]


def sweep(found: Findings, study: str) -> dict[float, str]:
    """λ -> the SoftCAM run that has it, in order."""
    rows = [row for row in found.rows(study, "training") if row["run"].startswith("softcam")]
    return dict(sorted({row["l1"]: row["run"] for row in rows}.items()))


def trades(found: Findings, studies: tuple[str, ...]) -> list[Part]:
    return [one for study in studies if len(sweep(found, study)) > 2 for one in _trade(found, study)]


def _trade(found: Findings, study: str) -> list[Part]:
    runs = sweep(found, study)
    accuracy = {l1: found.trained(study, run, "accuracy") for l1, run in runs.items()}
    lost = [l1 for l1 in runs if mean(accuracy[0.0]) - mean(accuracy[l1]) > MAY_LOSE]
    figures = ", ".join(f"{l1:g}: {spread(column)}" for l1, column in accuracy.items())
    falls = f"from λ = {lost[0]:g} on" if lost else f"not up to λ = {max(runs):g}"
    told = Part(study, "every λ", "accuracy falls", f"{falls} ({figures})", None)
    kept = max(l1 for l1 in runs if l1 < min(lost, default=float("inf")))
    if kept == 0.0:
        loss = minus(accuracy[lost[0]], accuracy[0.0])
        return [*part(study, f"λ = {lost[0]:g}", "accuracy kept", spread(loss), loss, lambda _: False), told]
    sparseness = [found.trained(study, runs[l1], "sparseness") for l1 in (kept, 0.0)]
    covers = [found.native(study, runs[l1], "activation_sensitivity") for l1 in (kept, 0.0)]
    sparser = f"Gini {spread(sparseness[0], '.3f')} against {spread(sparseness[1], '.3f')}"
    covered = f"activation sensitivity {spread(covers[0])} against {spread(covers[1])}"
    at = f"λ = {kept:g}"
    return [
        *part(study, at, "sparser maps", sparser, minus(*sparseness), always(lambda value: value > 0)),
        *part(study, at, "less of the lesion covered", covered, minus(*covers), always(lambda value: value < 0)),
        told,
    ]


SOFTCAM_CLAIMS = [
    Claim(
        "S1",
        "SoftCAM keeps the accuracy and the AUC of the vanilla classifier, with two classes and with more.",
        f"The mean over seeds of the difference to the vanilla classifier is not below -{MAY_LOSE:g} point of "
        f"accuracy, and not below -{MAY_LOSE_AUC:g} of AUC.",
        keeps_accuracy,
        ("screening", "lesions"),
    ),
    Claim(
        "S2",
        "SoftCAM's maps localise better than post-hoc maps of the vanilla classifier.",
        "The native map is above the best post-hoc map in every seed; which post-hoc method is best is chosen anew for "
        "every measure and seed.",
        localises,
        ("screening", "lesions"),
    ),
    Claim(
        "S3",
        "Occluding the highest patches of SoftCAM's maps lowers the confidence more than with post-hoc maps.",
        "The share of the confidence that is left (mean over k = 1 to 30) is below that of the best post-hoc map in "
        "every seed.",
        occlusion_counts,
        ("screening", "lesions"),
    ),
    Claim(
        "S4",
        "The penalty trades completeness of the maps for sparsity.",
        f"At the largest λ before the mean accuracy falls by more than {MAY_LOSE:g} point, the maps are sparser, and "
        "cover less of the lesion, than at λ = 0 in every seed. It fails where the smallest λ costs as much. Where "
        "the accuracy falls is told beside.",
        trades,
        ("lesions", "fine-tuning"),
    ),
    Claim(
        "S5",
        "S1 to S3 hold on a second backbone family.",
        "The rules of S1, S2 and S3.",
        second_family,
        ("second backbone",),
    ),
]
