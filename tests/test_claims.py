"""The rules that judge the papers' claims, on rows made by hand; the page is what the rows say; settings of the runs."""

import json
import re
import sys
from pathlib import Path

import pytest
import timm
from helpers.claim_rows import explained, rows, training

from benchmarks.reproduction import cape_claims, claims, softcam_claims, study_tables
from benchmarks.reproduction.chain import Chain
from benchmarks.reproduction.findings import Findings, spread
from benchmarks.reproduction.studies import LARGE, SMALL
from benchmarks.reproduction.verdicts import NOT_MEASURED, Part, verdict
from benchmarks.timing import replace_rows

ROOT = Path(__file__).parents[1]


def words(parts):
    return {f"{part.run}: {part.measure}": part.word for part in parts}


@pytest.mark.parametrize(
    ("holding", "expected"),
    [
        ([], "not tested here"),
        ([None, None], "not tested here"),
        ([True, None, True], "holds"),
        ([False, False], "does not hold"),
        ([True, False, True], "mixed: even 2 of 2, odd 0 of 1"),
        ([True, False, False], "mixed: even 1 of 2, odd 0 of 1"),
    ],
)
def test_verdict(holding, expected):
    assert (
        verdict([Part("study", "run", ("even", "odd")[i % 2], "1", holds) for i, holds in enumerate(holding)])
        == expected
    )


def test_verdict_tells_what_was_not_measured():
    parts = [Part("a", "run", "one", "1", True), Part("a", "run", "two", NOT_MEASURED, None)]
    assert verdict(parts) == "holds; not measured yet: two"


@pytest.mark.parametrize(
    ("accuracy", "auc", "expected"),
    [
        ((0.95, 0.94, 0.96), 0.985, "holds"),
        ((0.93, 0.94, 0.93), 0.985, "mixed: accuracy 0 of 1, AUC 1 of 1"),
        ((0.93, 0.94, 0.93), 0.97, "does not hold"),
    ],
)
def test_s1_softcam_may_lose_a_point_and_a_hundredth(accuracy, auc, expected):
    found = Findings(training("vanilla", (0.96, 0.95, 0.96)) + training("softcam", accuracy, auc))
    parts = softcam_claims.keeps_accuracy(found, ("lesions",))
    assert verdict(parts) == expected
    assert parts[0].figure.startswith(f"{spread(dict(enumerate(100 * a for a in accuracy)))} against 95.7 ± 0.6: -")


def test_two_seeds_decide_nothing():
    found = training("vanilla", 0.9) + training("softcam", 0.9)
    parts = softcam_claims.keeps_accuracy(Findings([row for row in found if row["seed"] < 2]), ("lesions",))
    assert len(parts) == 2
    assert verdict(parts) == "not tested here"


def test_s2_native_maps_must_beat_the_best_post_hoc_map_of_every_seed_and_not_the_floors():
    found = [
        *training("softcam", 0.9),
        *explained("softcam", "softcam", localization_precision=(50.0, 50.0, 50.0), activation_precision=30.0),
        *explained(
            "vanilla", "cam", localization_precision=(49.0, 10.0, 10.0), activation_precision=(20.0, 31.0, 20.0)
        ),
        *explained("vanilla", "fd-cam", localization_precision=(10.0, 49.0, 49.0), activation_precision=1.0),
        *explained("vanilla", "random", localization_precision=99.0, activation_precision=99.0),
    ]
    parts = softcam_claims.localises(Findings(found), ("lesions",))
    assert words(parts) == {"softcam: top-k precision": "yes", "softcam: activation precision": "no"}
    assert parts[0].figure == "50.0 ± 0.0 against 49.0 ± 0.0 (cam, fd-cam)"


@pytest.mark.parametrize(("ours", "word"), [((10.0, 19.0, 19.9), "yes"), ((10.0, 10.0, 21.0), "no")])
def test_s3_less_confidence_must_be_left(ours, word):
    found = [
        *training("softcam", 0.9),
        *explained("softcam", "softcam", topk_sensitivity=ours),
        *explained("vanilla", "cam", topk_sensitivity=20.0),
        *explained("vanilla", "fd-cam", topk_sensitivity=40.0),
    ]
    assert words(softcam_claims.occlusion_counts(Findings(found), ("lesions",))) == {"softcam: top-k sensitivity": word}


def sweep_rows(accuracy, sparseness, covering):
    found = []
    for run, l1, *values in zip(
        ("softcam", "softcam-sparse", "softcam-l1-0.3", "softcam-l1-1"),
        (0.0, 0.03, 0.3, 1.0),
        accuracy,
        sparseness,
        covering,
        strict=True,
    ):
        found += training(run, values[0], l1=l1, test_sparseness=values[1], test_confidence=values[0])
        found += explained(run, "softcam", activation_sensitivity=values[2])
    return Findings(found)


def test_s4_is_judged_where_accuracy_has_not_fallen_yet():
    found = sweep_rows((0.95, 0.96, 0.945, 0.5), (0.5, 0.6, 0.7, 0.1), (40.0, 30.0, 20.0, 90.0))
    parts = softcam_claims.trades(found, ("lesions",))
    assert [part.word for part in parts] == ["yes", "yes", "-"]
    assert parts[0].run == "λ = 0.3"
    assert parts[2].figure.startswith("from λ = 1 on")


def test_s4_fails_where_sparser_maps_cover_more():
    found = sweep_rows((0.95, 0.95, 0.95, 0.95), (0.5, 0.6, 0.7, 0.8), (40.0, 40.0, 40.0, (41.0, 30.0, 30.0)))
    parts = softcam_claims.trades(found, ("lesions",))
    assert [part.word for part in parts] == ["yes", "no", "-"]
    assert parts[2].figure.startswith("not up to λ = 1 ")


def test_s4_fails_where_the_smallest_penalty_costs_accuracy():
    found = sweep_rows((0.95, 0.93, 0.945, 0.5), (0.5, 0.6, 0.7, 0.8), (40.0, 30.0, 20.0, 10.0))
    parts = softcam_claims.trades(found, ("lesions",))
    assert [(part.run, part.word) for part in parts] == [("λ = 0.03", "no"), ("every λ", "-")]
    assert parts[0].figure == "-2.0 ± 0.0"


def test_the_table_of_penalties_has_the_measures_of_evidence_where_they_are_measured():
    found = sweep_rows(*[(0.9, 0.9, 0.9, 0.9)] * 3)
    assert "positive cells" not in study_tables.penalties(found, "lesions")
    measured = explained("softcam", "softcam", evidence_precision=12.5, share_of_positive_annotated=(20.0, 30.0, 40.0))
    header, _, first, second, *_ = study_tables.penalties(Findings(found.reproduction + measured), "lesions").split(
        "\n"
    )
    assert header.endswith("| precision above 1 | positive cells, annotated |")
    assert first.endswith("| 12.5 ± 0.0 | 30.0 ± 10.0 |")
    assert second.endswith("| - | - |")


def test_s4_needs_a_sweep():
    assert softcam_claims.trades(Findings(training("softcam", 0.9)), ("lesions",)) == []


def test_c1_takes_the_worst_run():
    found = training("cape-pf", 0.9, test_completeness_error=1e-7)
    found += training("cape-ts", 0.9, test_completeness_error=(1e-7, 1e-7, 1e-3))
    found += training("softcam", 0.9, test_completeness_error=0.0)
    found += explained("softcam", "softcam", completeness_error=1e-6)
    parts = cape_claims.adds_up(Findings(found), ("lesions",))
    assert "1.0e-06" in parts[0].figure, "the benchmark's error counts, too"
    assert words(parts) == {"1 run: softcam adds up": "yes", "2 runs: cape adds up": "no"}
    assert "1.0e-03" in parts[1].figure


def test_c2_compares_percent_of_variants_with_shares_of_runs():
    found = training("vanilla", 0.90) + training("cape-pf", 0.894) + training("cape-ts", 0.91)
    found += training("cape-direct", 0.88) + rows("lesions", "variant", {"accuracy": 89.7}, variant="naive")
    parts = cape_claims.order_of_accuracy(Findings(found), ("lesions",))
    assert words(parts) == {
        "cape-ts: vanilla ≥ CAPE": "no",
        "cape-ts: CAPE ≥ other variants": "yes",
        "cape-pf: vanilla ≥ CAPE": "yes",
        "cape-pf: CAPE ≥ other variants": "yes",
    }
    assert "naive 89.7" in parts[-1].figure


def table_row(run, explainer, study, drop, iou):
    same = {"increase_in_confidence": 1.0, "average_drop_in_deletion": 1.0, "adcc": 1.0}
    return explained(run, explainer, study, average_drop=drop, miou=iou, **same)


@pytest.mark.parametrize(
    ("study", "expected"),
    [
        ("screening", {"all maps: µ-CAPE leads Borda": "yes", "all maps: CAM or LIFT-CAM leads mIoU": "no"}),
        ("lesions", {"all maps: µ-CAPE leads Borda": "yes", "all maps: CAPE leads mIoU": "-"}),
        ("marks", {"all maps: µ-CAPE leads Borda": "yes", "all maps: CAPE leads mIoU": "yes"}),
    ],
)
def test_c3_ranks_the_maps_of_two_runs_with_the_same_names_apart(study, expected):
    found = [
        *training("vanilla", 0.9, study=study),
        *table_row("vanilla", "cam", study, drop=30.0, iou=50.0),
        *table_row("vanilla", "random", study, drop=1.0, iou=1.0),
        *table_row("cape-pf", "cape", study, drop=40.0, iou=10.0),
        *table_row("cape-pf", "mu-cape", study, drop=10.0, iou=20.0),
        *table_row("cape-ts", "mu-cape", study, drop=50.0, iou=60.0),
    ]
    parts = cape_claims.leads(Findings(found), (study,))
    assert words(parts) == expected
    assert parts[0].figure.startswith("mu-cape (PF) 14.0 ± 0.0")  # 3 + 2, and 3 in each of three ties


def test_c4_must_help_in_every_seed():
    found = training("cape-ts", 0.5) + training("cape-ts-selective", (0.6, 0.6, 0.5))
    found += training("cape-pf", 0.5) + training("cape-pf-selective", 0.51)
    parts = cape_claims.selective_helps(Findings(found), ("lesions",))
    assert words(parts) == {"cape-ts: accuracy": "no", "cape-pf: accuracy": "yes"}


def calibrated(temperature, error, confidence=0.8, completeness=1e-7):
    values = {"accuracy": 0.9, "confidence": confidence, "calibration_error": error, "value": 1.0, "loss": 0.3}
    return rows(
        "lesions", "calibration", {**values, "completeness_error": completeness}, run="cape-ts", temperature=temperature
    )


def test_c5_low_confidence_and_both_corrections():
    found = calibrated("learnt", 0.1) + calibrated("fitted", 0.02) + calibrated("divided by T", 0.12, completeness=1e-3)
    parts = cape_claims.confidence_is_low(Findings(found), ("lesions",))
    assert words(parts) == {
        "cape-ts: confidence too low": "yes",
        "cape-ts: T' divided by T": "no",
        "cape-ts: T' fitted": "yes",
        "cape-ts: completeness": "no",
    }


def test_c6_says_what_is_missing():
    heads = [{"comparison": f"{family} explained", "ratio": 1.02} for family in ("softcam", "cape")]
    assert verdict(cape_claims.costs(Findings(heads=heads), ())) == "holds; not measured yet: Score-CAM, one class"
    score_cam = [{"method": "score-cam", "side": "ours", "ratio": 2900.0}]
    assert verdict(cape_claims.costs(Findings(heads=heads, explainers=score_cam), ())) == "holds"
    heads[1]["ratio"] = 1.3
    assert "mixed" in verdict(cape_claims.costs(Findings(heads=heads, explainers=score_cam), ()))


def all_rows():
    """Enough for every table and curve of one study."""
    found = sweep_rows((0.95, 0.96, 0.945, 0.5), (0.5, 0.6, 0.7, 0.1), (40.0, 30.0, 20.0, 90.0)).reproduction
    found += training("vanilla", 0.95) + training("cape-pf", 0.94)
    curves = {f"{name}_curve": ([1.0, 2.0],) * 3 for name in ("localization_precision", "topk_sensitivity")}
    for run, name in (("vanilla", "cam"), ("vanilla", "random"), ("cape-pf", "cape"), ("cape-pf", "mu-cape")):
        found += explained(run, name, localization_precision=10.0, average_drop=5.0, topk_sensitivity=50.0, **curves)
    found += [{**row, "run": "cape-pf"} for way in ("learnt", "fitted") for row in calibrated(way, 0.1)]
    where = {"machine": "a machine", "torch": "1", "timm": "2", "threads": 1}
    return [*found, *rows("lesions", "chain", {"seconds": 3600.0}, **where)]


def test_the_page_has_what_the_rows_have(monkeypatch, tmp_path):
    found = Findings(all_rows())
    page = claims.document(found)
    assert "add up to 3.0 hours of a core" in page
    assert "a machine, torch 1, timm 2" in page
    for claim in claims.CLAIMS:
        assert f"| {claim.code} | {claim.says} | {verdict(claim.judge(found, claim.studies))} |" in page
    assert page.count("not run here") == 8 * len(LARGE)
    assert "## Study: lesions" in page
    assert "## Study: marks" not in page
    assert "**Not run yet:** the studies marks, fine-tuning, screening, second backbone." in page
    assert "The studies on photographs are not run yet." in page
    assert claims.drawn(found) == ["precision", "sensitivity", "sparsity"]
    assert {claims.CURVES[name](found).width for name in claims.drawn(found)} == {450, 900}, "one study or one page"


def test_check_tells_a_page_that_differs(monkeypatch, tmp_path):
    monkeypatch.setattr(claims, "DOCUMENT", tmp_path / "reproduction.md")
    monkeypatch.setattr(claims, "read", lambda: Findings(all_rows()))
    monkeypatch.setattr(sys, "argv", ["claims.py"])
    claims.main()
    monkeypatch.setattr(sys, "argv", ["claims.py", "--check"])
    claims.main()
    claims.DOCUMENT.write_text(claims.DOCUMENT.read_text().replace("95.0", "95.1"))
    with pytest.raises(SystemExit, match="differs from the rows"):
        claims.main()


def test_the_committed_page_is_that_of_the_rows(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["claims.py", "--check"])
    claims.main()


def test_readme_counts_the_verdicts():
    numbers = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight"]
    page = (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")
    verdicts = re.findall(r"^\| [SC]\d \| .* \| (holds|does not hold|mixed)", page, re.MULTILINE)
    assert len(verdicts) == 11
    counts = [numbers[verdicts.count(word)] for word in ("holds", "mixed", "does not hold")]
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"Of eleven claims, {counts[0]} hold, {counts[1]} hold in part, and {counts[2]} do not hold." in readme


def test_rows_of_a_chain_replace_its_earlier_ones(tmp_path):
    for seed, value in ((1, 1), (0, 2), (1, 3)):
        row = {"study": "a", "seed": seed, "value": value}
        replace_rows([row], tmp_path / "rows.jsonl", ("study", "seed"))
    kept = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [(row["seed"], row["value"]) for row in kept] == [(0, 2), (1, 3)]


@pytest.mark.parametrize("name", [*SMALL, *LARGE])
def test_every_run_of_a_study_has_the_same_budget(name):
    study = {**SMALL, **LARGE}[name]
    chain = Chain(name, study, 1)
    configs = [chain.config(recipe) for recipe in ("vanilla", *study.runs)]
    configs += [chain.config("softcam-sparse", l1) for l1 in study.sweep]
    budgets = {(c.optimization.epochs, c.optimization.batch_size, str(c.data), c.model.image_size) for c in configs}
    assert len(budgets) == 1
    assert len({config.run.output for config in configs}) == len(configs)
    assert {config.model.timm_name for config in configs} == {study.backbone}
    assert {(config.run.seed, config.data.data_seed) for config in configs} == {(1, 1)}
    assert all(config.run.select == "accuracy" and config.data.validation_split for config in configs)
    assert configs[0].model.init is None
    starts = {config.model.init for config in configs[1:] if config.model.mode != "post-fit"}
    start = chain.vanilla if study.fine_tuned else chain.start
    assert starts == {None if study.backbone == "vgg16" else str(start)}


def test_the_large_variant_suits_its_networks():
    assert {LARGE[f"vgg16 at {size}"].runs[-1] for size in (224, 448)} == {"cape-ts"}, "VGG has no post-fitting"
    swin = Chain("swin", LARGE["swinv2_base_window8_256 at 448"], 0).config("cape-pf")
    assert swin.model.architecture_args() == {"img_size": 448}
    assert swin.model.init
    assert not swin.model.pretrained
    assert swin.optimization.lr == 0.1, "the head alone has a rate of its own"
    assert swin.run.mixed_precision == "bf16"
    resnet = Chain("resnet", LARGE["resnet50 at 224"], 0).config("cape-ts").model
    network = timm.create_model(resnet.timm_name, num_classes=0, **resnet.architecture_args())
    assert network.feature_info[-1]["reduction"] == 16


def test_localisation_is_judged_for_maps_drawn_as_squares_too():
    squares = {"run": "softcam", "explainer": "softcam", "explains": "model", "images": 8, "annotated": 6}
    found = [
        *training("vanilla", 0.9),
        *training("softcam", 0.9),
        *explained("softcam", "softcam", localization_precision=50.0, topk_sensitivity=60.0),
        *explained("vanilla", "cam", localization_precision=49.0, topk_sensitivity=61.0),
        *explained("vanilla", "guided-backprop", localization_precision=30.0, topk_sensitivity=80.0),
        *rows("lesions", "not aligned", {"localization_precision": (20.0, 21.0, 22.0)}, **squares),
        *rows(
            "lesions",
            "not aligned",
            {"localization_precision": 19.0},
            **{**squares, "run": "vanilla", "explainer": "cam"},
        ),
    ]
    findings = Findings(found)
    drawn = findings.drawn_as_squares()
    assert findings.native("lesions", "softcam", "localization_precision") == {0: 50.0, 1: 50.0, 2: 50.0}
    assert drawn.native("lesions", "softcam", "localization_precision") == {0: 20.0, 1: 21.0, 2: 22.0}
    assert drawn.native("lesions", "softcam", "topk_sensitivity") == {0: 60.0, 1: 60.0, 2: 60.0}
    assert drawn.post_hoc("lesions", "localization_precision")["guided-backprop"] == {0: 30.0, 1: 30.0, 2: 30.0}
    s2 = next(claim for claim in claims.CLAIMS if claim.code == "S2")
    text = claims.section(findings, s2)
    assert "*Verdict: holds; without interval: 1 of 1 part.*" in text  # 50 is above 49
    assert (
        "*With maps drawn as squares that fill the image: does not hold; without interval: 1 of 1 part.*" in text
    )  # 20 to 22 are below 30
    page = claims.study_section(findings, "lesions")
    assert "| softcam | 21.0 ± 1.0 → 50.0 ± 0.0 |" in page
    assert "| cam | 19.0 ± 0.0 → 49.0 ± 0.0 |" in page
