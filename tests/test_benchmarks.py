"""The benchmark scripts run, and the tables of README and docs are those of the committed rows."""

import json
import re
import sys
from itertools import product
from pathlib import Path

import pytest
from helpers.warm import warm_python

from benchmarks import hidden_layers
from benchmarks.image_sizes import image_sizes_table
from benchmarks.lesions_table import lesions_table
from benchmarks.recipes import choose, recipes_table
from benchmarks.reproduction.claims import document
from benchmarks.reproduction.findings import NOT_ALIGNED, Findings
from benchmarks.reproduction.lesions import options_of
from benchmarks.speed import heads
from benchmarks.speed.tables import scales_table, training_steps_table
from benchmarks.timing import read_rows

ROOT = Path(__file__).parents[1]


def run(*command):
    return warm_python().run(*command)


def test_readme_shows_the_committed_rows():
    done = run("-m", "benchmarks.tables", "--check")
    assert done.returncode == 0, done.stdout + done.stderr


def test_readme_tells_the_gain_of_the_rows():
    lines = (ROOT / "benchmarks" / "results" / "alignment.jsonl").read_text().splitlines()
    habit, aligned = sorted(
        (row for row in map(json.loads, lines) if row["explainer"] == "cape"), key=lambda row: row["aligned"]
    )
    down, right = aligned["map_offset"]
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"look {-down:.1f} cells up and {-right:.1f} left" in text
    assert f"{aligned['pointing_game']:.0%} of the images instead of {habit['pointing_game']:.0%}" in text.replace(
        " %", "%"
    )


@pytest.mark.slow
def test_heads_benchmark_runs():
    done = run("-m", "benchmarks.speed.heads", "--quick", "--threads", "1")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert {row["comparison"] for row in rows} == {
        "softcam logits",
        "softcam explained",
        "cape explained",
        "control",
        "cape formula",
        "many classes: control",
        "many classes: explain",
        "many classes: all maps",
    }
    assert all(row["ratio"] > 0 for row in rows)


def test_a_part_of_the_heads_benchmark_keeps_the_rows_of_the_others(tmp_path, monkeypatch):
    old = [{"comparison": name} for name in ("cape formula", "control", "many classes: explain")]
    (tmp_path / "heads.jsonl").write_text("".join(json.dumps(row) + "\n" for row in old))
    monkeypatch.setattr(heads, "ROWS", tmp_path / "heads.jsonl")
    monkeypatch.setitem(heads.PARTS, "many-classes", lambda: iter([{"comparison": "many classes: control"}]))
    monkeypatch.setattr("sys.argv", ["heads", "--parts", "many-classes", "--threads", "1"])
    heads.main()
    found = [json.loads(line)["comparison"] for line in (tmp_path / "heads.jsonl").read_text().splitlines()]
    assert found == ["cape formula", "control", "many classes: control"]


@pytest.mark.slow
def test_training_benchmark_runs():
    done = run("-m", "benchmarks.speed.training", "--quick")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["ratio"] > 1


@pytest.mark.slow
def test_benchmark_of_training_steps_runs():
    done = run("-m", "benchmarks.speed.training_steps", "--quick", "--threads", "1")
    assert done.returncode == 0, done.stderr
    rows = {row["comparison"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert list(rows) == ["control", "softcam", "cape", "penalty", "teacher"]
    assert all(row["cpu_ratio"] > 0 for row in rows.values())
    text = training_steps_table(list(rows.values()))
    assert f"px, batch 4 | SoftCAM | {rows['softcam']['ratio']:.3f} (" in text


@pytest.mark.slow
def test_benchmark_of_scales_runs():
    done = run("-m", "benchmarks.speed.scales", "--quick", "--threads", "1")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    variants = ("one scale", "three scales", "output_stride=8")
    assert [(row["variant"], row["step"]) for row in rows] == [*product(variants, ("explained", "training"))]
    dilated = {row["step"]: row["cpu_ratio"] for row in rows if row["variant"] == "output_stride=8"}
    assert dilated["training"] > 1, "a dilated backbone computes more"
    text = scales_table(rows)
    explained = next(row["cpu_ratio"] for row in rows if row["variant"] == "three scales")
    assert f"| `test_resnet` at 160 px | three scales | {explained:.2f} (" in text


@pytest.mark.slow
def test_runtimes_benchmark_runs(tmp_path):
    rows = tmp_path / "rows.jsonl"
    done = run("-m", "benchmarks.runtimes", "test_resnet", "--output", str(rows))
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    written = {(row["format"], row["precision"]) for row in found}
    assert written == {*product(["onnx"], ["fp32", "fp16", "int8"]), *product(["torch"], ["fp32", "fp16"])}
    exact = [row for row in found if row["precision"] == "fp32"]
    assert all(row["accepted"] and row["same_predictions"] == row["images"] for row in exact)
    assert all(row["probability_error"] < 1e-5 for row in exact)


@pytest.mark.slow
def test_patch_shares_benchmark_runs():
    done = run("-m", "benchmarks.patch_shares", "--quick")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [row["method"] for row in rows if "share_of_rest" not in row] == [
        "grad-cam",
        "integrated-gradients",
        "random",
    ]
    assert all(row["error"] < 1e-5 and 0 <= row["share_of_rest"] <= 1 for row in rows if "share_of_rest" in row)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no mallopt")
def test_memory_benchmark_runs():
    done = run("-m", "benchmarks.speed.memory", "--quick")
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    assert row["kept_page_faults"] < row["returned_page_faults"] / 10


@pytest.mark.slow
def test_image_sizes_benchmark_runs(tmp_path):
    rows = tmp_path / "rows.jsonl"
    options = ("--limit", "4", "--runs", str(tmp_path), "--output", str(rows))
    done = run("-m", "benchmarks.image_sizes", "cape_lesions", *options)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [(row["size"], row["map_side"]) for row in found] == [(side, side // 8) for side in (96, 128, 160, 192, 256)]
    assert image_sizes_table(found).count("`cape_lesions`") == 6
    done = run("-m", "benchmarks.image_sizes")
    assert done.returncode == 2
    assert "finetune-medium needs --photographs" in done.stderr


def test_a_recipe_for_few_images_learns_from_the_first_of_every_class(tmp_path):
    rows = [("a", "train"), ("b", "train"), ("a", "train"), ("a", "test"), ("b", "validation"), ("a", "train")]
    lines = [f"images/{number}.jpg,{label},{split}" for number, (label, split) in enumerate(rows)]
    (tmp_path / "manifest.csv").write_text("\n".join(["image,label,split", *lines]) + "\n")

    def numbers(count):
        return [int(Path(row["image"]).stem) for row in choose(tmp_path, count)]

    assert numbers(None) == [0, 1, 2, 3, 4, 5]
    assert numbers(1) == [0, 1, 3, 4]
    assert numbers(2) == [0, 1, 2, 3, 4]


def test_the_table_of_recipes_has_the_mean_and_every_seed():
    common = {"test_images": 4, "epochs": 6, "threads": 1, "machine": "m", "torch": "t", "test_balanced_accuracy": 0.5}
    rows = [
        {**common, "recipe": recipe, "seed": seed, "images": images, "test_accuracy": accuracy, "minutes": minutes}
        for recipe, seed, images, accuracy, minutes in [
            ("few", 0, 10, 0.75, 1.0),
            ("many", 2, 20, 1.0, 9.0),
            ("many", 0, 20, 0.5, 2.0),
            ("many", 1, 20, 0.75, 3.0),
        ]
    ]
    table = recipes_table(rows).splitlines()
    assert table[2] == "| `many` | 20 | 6 | 75.0% (50.0, 75.0, 100.0) | 50.0% (50.0, 50.0, 50.0) | 3 |"
    assert table[3] == "| `few` | 10 | 6 | 75.0% (75.0) | 50.0% (50.0) | 1 |"
    assert "the seeds 0, 1, 2, in parentheses every seed in order" in table[-1]


@pytest.mark.slow
def test_alignment_benchmark_runs():
    done = run("-m", "benchmarks.speed.alignment", "--quick", "--threads", "1")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [(row["comparison"], row["batch"]) for row in rows] == [
        ("explain and draw", 1),
        ("explain and draw", 8),
        ("measure", 32),
    ]
    assert 2 < rows[-1]["cpu_ratio"] < 6  # three forwards, and the registration


@pytest.mark.slow
@pytest.mark.parametrize("script", ["explainers", "peer_table"])
def test_benchmarks_beside_peers_run(script):
    done = run("-m", f"benchmarks.speed.{script}", "--quick")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert all(row["ratio"] > 0 for row in rows)
    if script == "peer_table":
        assert {row["peer"] for row in rows} == {"torchcam", "pytorch-grad-cam"}
        assert all(row["difference_of_average_drop"] < 1e-5 for row in rows), "both sides measure the same"
    else:
        assert {row["side"] for row in rows} == {"ours", "captum", "torchcam", "pytorch-grad-cam", "ours / captum"}


@pytest.mark.slow
def test_reproduction_runs_and_its_rows_make_a_page():
    done = run("-m", "benchmarks.reproduction.reproduce", "--quick")
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    rows, tuned = ([row for row in found if row["study"] == study] for study in ("quick", "quick fine-tuning"))
    kinds = {row["kind"] for row in rows}
    assert kinds - {NOT_ALIGNED} == {"training", "variant", "explanation", "values", "calibration", "chain"}
    trained = {row["run"] for row in rows if row["kind"] == "training"}
    runs = {"vanilla", "softcam", "softcam-sparse", "softcam-l1-1", "cape-direct", "cape-ts", "cape-pf"}
    assert trained == runs
    assert {row["run"] for row in rows if row["kind"] == "explanation"} == runs
    tempered = {(row["run"], row["temperature"]) for row in rows if row["kind"] == "calibration"}
    assert {("vanilla", "as trained"), ("vanilla", "fitted"), ("cape-ts", "fitted")} < tempered
    explained = {row["run"] for row in tuned if row["kind"] == "explanation"}
    assert explained == {"softcam"}, "the vanilla classifier was trained for fewer epochs, and is not compared"
    names = {"quick": "lesions", "quick fine-tuning": "fine-tuning"}
    seeds = [{**row, "study": names[row["study"]], "seed": seed} for row in found for seed in range(3)]
    page = document(Findings([{name: value for name, value in row.items() if value is not None} for row in seeds]))
    verdicts = [line for line in page.splitlines() if re.match(r"\| [SC]\d \|", line)]
    assert len(verdicts) == 11
    assert sum("not tested here" in line for line in verdicts) == 3, "a second backbone, many classes, and costs"


@pytest.mark.slow
def test_hidden_layers_benchmark_runs(tmp_path):
    rows = tmp_path / "rows.jsonl"
    done = run("-m", "benchmarks.hidden_layers", "test_mambaout", "--output", str(rows))
    assert done.returncode == 0, done.stderr
    (row,) = read_rows(rows)
    assert row["hidden"] == 3
    assert row["error"] < 1e-5
    low, high = row["cancellation_quartiles"]
    assert 1 <= low <= row["cancellation"] <= high
    assert row["spread_over_locations"] > 0.01, "the evidence depends on the location"
    assert "position_share" not in row, "CLIP's pool alone has positions"


@pytest.mark.slow
def test_the_share_of_positions_in_the_evidence_of_clip():
    assert 0 < hidden_layers.measure("resnet50_clip")["position_share"] < 1


def test_recipes_of_several_seeds_share_a_line_with_their_spread():
    common = {"recipe": "lesions-cape", "model": "m", "device": "d", "torch": "t", "threads": 1, "seconds": 10.0}
    rows = [{**common, "seed": seed, "test_accuracy": 0.9 + 0.02 * seed, "test_auc": 0.5} for seed in range(3)]
    rows.append({"recipe": "mean colour", "seed": 0, "model": "linear", "test_accuracy": 0.3})
    table = lesions_table(rows)
    assert "means over the seeds 0, 1, 2 with the standard deviation between them" in table
    assert "| `lesions-cape` | `m` | 92.0 ± 2.0 % | 0.500 ± 0.000 | - | - | - | - | 10 ± 0 |" in table
    assert "| `mean colour` | `linear` | 30.0 % | - | - | - | - | - | - |" in table
    assert "one run each with seed 0" in lesions_table(rows[:1])
    assert "fewer seeds" not in table
    small = {**common, "recipe": "lesions-small", "seed": 0, "test_accuracy": 0.9}
    assert "0, 1, 2 with the standard deviation between them; fewer seeds: `lesions-small` (0)" in lesions_table(
        [*rows, small]
    )


def test_runs_of_further_seeds_have_folders_of_their_own_and_start_from_their_own_vanilla_classifier():
    assert options_of("lesions-cape", 0) == ["--seed=0", "--output=runs/lesions-cape"]
    start, own = "runs/lesions-vanilla/model", "runs/seed-2/lesions-vanilla/model"
    assert options_of("lesions-cape-pf", 0) == ["--seed=0", "--output=runs/lesions-cape-pf", f"--init={start}"]
    assert options_of("lesions-cape-pf", 2) == ["--seed=2", "--output=runs/seed-2/lesions-cape-pf", f"--init={own}"]
