"""Tables of explanations on generated lesions: means over seeds, their intervals, and the number of every seed."""

import numpy as np
import pytest

from benchmarks import averages, explanation_tables
from benchmarks.agreement import average_agreement
from softcam_hub.evaluation.localisation_rows import SIZES
from softcam_hub.evaluation.statistics import bootstrap_means

COMMON = {"images": 30, "annotated": 20, "data": "d", "split": "test", "torch": "1", "timm": "2", "device": "cpu"}


def values_of(explainer, seed, ious):
    return {"explainer": explainer, "explains": "model", "seed": seed, "label": [0] * 30, "iou": ious}


def row_of(values, **more):
    """Return the row of a benchmark whose images have these values."""
    mious = 100 * np.array(values["iou"])
    low, high = bootstrap_means([mious[None]]).interval()[:, 0].tolist()
    key = {name: values[name] for name in ("explainer", "explains", "seed")}
    return {**key, "miou": float(mious.mean()), "miou_interval": [low, high], **COMMON, **more}


RISING = [round(0.01 * number, 2) for number in range(30)]
HALVES_CHANGED = RISING[15:] + RISING[:15]


def study(*seeds):
    """CAM is worse by 1 on average, on other images; the random map is worse on all of them."""
    measured = []
    for seed in seeds:
        shift = 0.1 * seed
        measured.append(values_of("cam", seed, [round(value + shift + 0.01, 2) for value in HALVES_CHANGED]))
        measured.append(values_of("cape", seed, [round(value + shift, 2) for value in RISING]))
        measured.append(values_of("random", seed, [round(value + shift + 0.3, 2) for value in RISING]))
    return measured


@pytest.fixture
def tables(monkeypatch):
    def use(measured):
        monkeypatch.setattr(explanation_tables, "read_values", lambda name: measured)

    return use


def test_one_seed_marks_all_that_cannot_be_told_from_the_best(tables):
    measured = study(0)
    rows = [row_of(values) for values in measured]
    tables([])
    assert "| cam | model | 15.5 |\n| cape | model | **14.5** |" in explanation_tables.explanations_table(rows)
    tables(measured)
    text = explanation_tables.explanations_table(rows)
    assert "| cam | model | **15.5** |\n| cape | model | **14.5** |\n| random | model | 44.5 |" in text
    low, high = rows[0]["miou_interval"]
    assert f"| cam | model | 15.5 [{low:.1f}, {high:.1f}] |" in text
    assert "cannot be told from it" in text
    assert "one run of each model, seed 0" in text
    assert explanation_tables.with_interval(rows[0], "miou") == f"15.5 [{low:.1f}, {high:.1f}]"
    assert explanation_tables.with_interval({"miou": 15.5}, "miou") == "15.5"


def test_several_seeds_have_one_interval_of_their_mean_and_the_number_of_each(tables):
    measured = study(0, 1)
    tables(measured)
    pxap = {"cam": 40.0, "cape": 50.0, "random": 3.0}
    rows = [
        row_of(values, pxap=pxap[values["explainer"]] + values["seed"], pxap_interval=[35, 45]) for values in measured
    ]
    rows[0]["torch"] = "0"
    text = explanation_tables.explanations_table(rows[::-1])
    assert "| cam | model | **20.5** |\n| cape | model | **19.5** |\n| random | model | 49.5 |" in text
    ious = [100 * np.array(values["iou"]) for values in measured if values["explainer"] == "cam"]
    low, high = bootstrap_means([np.mean(ious, axis=0)[None]]).interval()[:, 0].tolist()
    assert f"| cam | model | 15.5, 25.5 [{low:.1f}, {high:.1f}] |" in text
    assert "| cam | model | 40.0 [35.0, 45.0], 41.0 [35.0, 45.0] |" in text, "PxAP is no mean over images"
    assert "| cam | model | 40.5 |\n| cape | model | **50.5** |\n| random | model | 3.5 |" in text
    assert "means over the runs of the seeds 0, 1; torch 0, timm 2, cpu; torch 1, timm 2, cpu" in text


def test_points_of_significant_ranks_come_from_the_mean_of_every_image(tables):
    measured = study(0, 1)
    for values in measured:
        values |= {"confidence": [0.9] * 30, "kept": [0.9 - iou / 2 for iou in values["iou"]]}
    tables(measured)
    rows = [row_of(values) for values in measured]
    for row, values in zip(rows, measured, strict=True):
        row["average_drop"] = float(np.mean(100 * (0.9 - np.array(values["kept"])) / 0.9))
    text = explanation_tables.explanations_table(rows)
    header, _, cam, cape, _ = ([cell.strip() for cell in line.split("|")] for line in text.splitlines()[2:7])
    points = [header.index("BC ↑"), header.index("BC, significant ↑")]
    assert [cam[place].strip("*") for place in points] == ["4", "6"], "second twice, but not to be told from the first"
    assert [cape[place].strip("*") for place in points] == ["6", "6"]


def test_explainers_of_different_seeds_are_refused(tables):
    tables([])
    rows = [row_of(values) for values in study(0, 1)]
    with pytest.raises(
        ValueError, match=r"random of model was measured with the seeds \[0\], and others with \[0, 1\]"
    ):
        explanation_tables.explanations_table(rows[:-1])


@pytest.mark.parametrize("render", ["summary_table", "sizes_table", "methods_table"])
def test_the_other_tables_show_means_over_seeds(render, tables):
    tables([])
    sizes = {"limits": [0.1, 0.2]}
    rows = []
    for seed in (0, 1):
        groups = {size: {"images": 10, "hit_rate": 20.0 + seed, "activation_precision": 4.0} for size in SIZES}
        scores = dict.fromkeys((*explanation_tables.SUMMARY, *explanation_tables.CHOICE), 30.0 + seed)
        rows += [
            {"explainer": name, "explains": of, "seed": seed, **scores, "by_size": sizes | groups}
            for name, of in explanation_tables.SUMMARISED
        ]
    models = [
        {"recipe": of, "seed": seed, "test_accuracy": 0.9} for _, of in explanation_tables.SUMMARISED for seed in (0, 1)
    ]
    costs = [{"method": "cam", "side": "ours", "batch": 1, "ratio": 1.02, "model": "resnet50"}]
    given = {"summary_table": [models], "methods_table": [costs]}.get(render, [])
    text = getattr(explanation_tables, render)(*given, rows)
    expected = {
        "summary_table": "| `cam` of `lesions-vanilla` | 90.0 ± 0.0 % | - | 30.5 | 30.5 | 30.5 |",
        "sizes_table": "| cam | lesions-vanilla | 20.5 | 20.5 | 20.5 | 4.0 | 4.0 | 4.0 |",
        "methods_table": "| `cam` | 1.02 | `resnet50` | 30.5 | 30.5 | 30.5 |",
    }
    assert expected[render] in text


def test_without_values_of_some_seed_the_mean_has_no_interval_and_nothing_is_compared(tables):
    measured = study(0, 1)
    tables(measured[:-1])
    rows = [row_of(values) for values in measured]
    text = explanation_tables.explanations_table(rows)
    assert "| cam | model | 20.5 |\n| cape | model | **19.5** |" in text
    (low, high), (lower, upper) = (row["miou_interval"] for row in rows if row["explainer"] == "random")
    assert f"| random | model | 44.5 [{low:.1f}, {high:.1f}], 54.5 [{lower:.1f}, {upper:.1f}] |" in text
    assert "cannot be told from it" not in text


def test_numbers_curves_and_groups_are_averaged_and_what_differs_is_left_out():
    first = {
        "explainer": "cam",
        "explains": "m",
        "seed": 1,
        "data": "d",
        "model": "a",
        "gini": 0.5,
        "curve": [1.0, 3.0],
    }
    first |= {"by_size": {"small": {"images": 10, "hit_rate": 20.0}}, "only_here": 1.0, "map_offset": None}
    second = {**first, "seed": 0, "model": "b", "gini": 1.0, "curve": [3.0, 4.0], "map_offset": [0.1, 0.2]}
    second |= {"by_size": {"small": {"images": 10, "hit_rate": 40.0}}}
    del second["only_here"]
    ((found,), _) = averages.average_over_seeds([first, second])
    assert found.pop(averages.SEEDS) == [second, first]
    assert found == {
        "explainer": "cam",
        "explains": "m",
        "data": "d",
        "gini": 0.75,
        "curve": [2.0, 3.5],
        "by_size": {"small": {"images": 10, "hit_rate": 30.0}},
    }


def test_cells_of_all_seeds_are_counted_together(tables):
    """Two images with 20 cells each in two seeds, and two bins: cells on a lesion, and all cells."""
    cells = {0: [[2, 0, 19, 1], [4, 1, 18, 2]], 1: [[2, 1, 19, 1], [6, 0, 20, 0]]}
    keys = [{"explainer": explainer, "explains": model} for explainer, model in explanation_tables.SUMMARISED]
    tables([{**key, "seed": seed, "mass_histogram": counts} for seed, counts in cells.items() for key in keys])
    rows = [{**key, "seed": seed, "reliability": {"borders": [0.1]}} for seed in cells for key in keys]
    text = explanation_tables.reliability_table(rows)
    assert "| map | explains | 0 to 0.1 | 0.1 to 1 |" in text
    # of the first image 4 of 38 cells touch a lesion, of the second 10 of 38; with a high mass 1 of 2 and 1 of 2
    assert "| cam | lesions-vanilla | 18.4 [10.5, 26.3] (76) | 50.0 [50.0, 50.0] (4) |" in text
    assert "and the number of cells; cells of the runs of the seeds 0, 1." in text


def test_lesions_are_grouped_by_size_as_by_the_benchmark(tables):
    areas = [0.001, 0.004, None, 0.002, 0.003, 0.006, 0.005]
    hits = {0: [1, 0, None, 1, 1, 1, 0], 1: [1, 0, None, 0, 1, 1, 1]}
    key = {"explainer": "cam", "explains": "model"}
    precisions = [0.5] * 7
    tables(
        [
            {
                **key,
                "seed": seed,
                "label": [1] * 7,
                "annotated_area": areas,
                "hit_rate": of,
                "activation_precision": precisions,
            }
            for seed, of in hits.items()
        ]
    )
    rows = []
    for seed, (small, medium, large) in {0: (100.0, 50.0, 50.0), 1: (50.0, 50.0, 100.0)}.items():
        scores = zip(SIZES, (small, medium, large), strict=True)
        groups = {size: {"images": 2, "hit_rate": score, "activation_precision": 50.0} for size, score in scores}
        by_size = {"limits": [100 * (0.002 + 0.001 * 2 / 3), 100 * (0.004 + 0.001 / 3)]} | groups
        row = {**key, "seed": seed, "hit_rate": np.mean([100 * hit for hit in hits[seed] if hit is not None])}
        rows.append({**row, "activation_precision": 50.0, "by_size": by_size})
    text = explanation_tables.sizes_table(rows)
    assert "| cam | model | 75.0 [50.0, 100.0] | 50.0 [0.0, 100.0] | 75.0 [50.0, 100.0] | 50.0 | 50.0 | 50.0 |" in text
    rows[0]["by_size"]["small"]["images"] = rows[1]["by_size"]["small"]["images"] = 3  # not the images of the values
    assert "| cam | model | 75.0 | 50.0 [0.0, 100.0] |" in explanation_tables.sizes_table(rows)


def test_values_of_another_run_give_no_interval():
    values = study(0, 1)
    rows = [row_of(one) for one in values if one["explainer"] == "cam"]
    seeds = averages.values_of_seeds(values)
    assert "miou_interval" in averages.average_over_seeds(rows, seeds)[0][0]
    rows[1]["miou"] += 1
    assert "miou_interval" not in averages.average_over_seeds(rows, seeds)[0][0]


def test_values_of_both_signs_are_rounded_and_belong_to_their_mean_nevertheless():
    exact = np.random.default_rng(0).uniform(-1, 1, 200)
    exact += 0.0019 - exact.mean()
    rounded = np.array([float(f"{value:.4g}") for value in exact])
    rounded[0] += 4e-4  # a mean of 200 values, off by 2e-6, as 4 digits allow
    assert abs(rounded.mean() / exact.mean() - 1) > 1e-3
    rows = [{"explainer": "cam", "explains": "m", "seed": seed, "causal_rank": exact.mean()} for seed in (0, 1)]
    values = {seed: {("cam", "m"): {"causal_rank": rounded}} for seed in (0, 1)}
    assert "causal_rank_interval" in averages.average_over_seeds(rows, values)[0][0]


def test_the_agreement_over_seeds_keeps_the_fewest_compared_images():
    first = {"correlation": {"cam": 1.0, "cape": 0.5, "random": 0.1}}
    first["compared_images"] = {"cam": 200, "cape": 190, "random": 200}
    second = {"correlation": {"cam": 1.0, "cape": 0.7, "random": None}}
    second["compared_images"] = {"cam": 200, "cape": 195, "random": 0}
    rows = [{"explainer": "cam", "explains": "model", "seed": seed, **one} for seed, one in enumerate((first, second))]
    (found,) = average_agreement(rows)
    assert found["correlation"] == {"cam": 1.0, "cape": pytest.approx(0.6), "random": None}
    assert found["compared_images"] == {"cam": 200, "cape": 190, "random": 0}


def test_an_interval_is_that_of_the_mean_over_seeds_where_seeds_lack_values_of_different_images():
    """One image of ten has a value in one seed only, and would weigh as much as the others if seeds were joined first."""
    first = np.array([0.1, 0.2, 0.1, 0.2, 0.1, 0.2, 0.1, 0.2, 0.1, np.nan])
    second = np.full(10, np.nan)
    second[[0, 9]] = 0.9, 1.0
    rows = [
        {"explainer": "cam", "explains": "m", "seed": seed, "causal_rank": float(np.nanmean(of_seed))}
        for seed, of_seed in enumerate((first, second))
    ]
    values = {seed: {("cam", "m"): {"causal_rank": of_seed}} for seed, of_seed in enumerate((first, second))}
    (row,), joined = averages.average_over_seeds(rows, values)
    low, high = row["causal_rank_interval"]
    assert row["causal_rank"] == pytest.approx((first[:9].mean() + 0.95) / 2)
    assert low < row["causal_rank"] < high
    assert np.nanmean(joined["cam", "m"]["causal_rank"]) < low
