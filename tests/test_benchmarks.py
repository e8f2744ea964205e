"""The benchmark scripts run, their rows say what README's tables need, and the tables are those of the rows."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command):
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False, cwd=ROOT)


def test_readme_shows_the_committed_rows():
    done = run("benchmarks/tables.py", "--check")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_heads_benchmark_runs(tmp_path):
    done = run("benchmarks/heads.py", "--quick", "--threads", "1", "--out", str(tmp_path / "rows.jsonl"))
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert {row["comparison"] for row in rows} == {
        "softcam logits",
        "softcam explained",
        "cape explained",
        "control",
        "cape formula",
    }
    assert all(row["ratio"] > 0 for row in rows)


@pytest.mark.slow
def test_training_benchmark_runs():
    done = run("benchmarks/training.py", "--quick")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["ratio"] > 1


@pytest.mark.slow
@pytest.mark.parametrize("script", ["explainers", "peer_table"])
def test_benchmarks_beside_peers_run(script):
    done = run(f"benchmarks/{script}.py", "--quick")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert all(row["ratio"] > 0 for row in rows)
    if script == "peer_table":
        assert {row["peer"] for row in rows} == {"torchcam", "pytorch-grad-cam"}
        assert all(row["difference_of_average_drop"] < 1e-5 for row in rows), "both sides measure the same"
    else:
        assert {row["side"] for row in rows} == {"ours", "captum", "torchcam", "pytorch-grad-cam"}
