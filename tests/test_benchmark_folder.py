"""The folder of a benchmark: foreign files stay, values are kept for the same settings only, kills lose nothing."""

import json
import re

import pytest
from helpers.benchmark import CLASSES, DATA, run_benchmark, vanilla_model, write_lesions
from helpers.crashes import every_crash
from helpers.outputs import content, fill, full_disk, used_by_another_process
from helpers.processes import finish, kill, start

from softcam_hub import output_folder
from softcam_hub.cli import main
from softcam_hub.evaluation import benchmark
from softcam_hub.evaluation.folder import NAMES, SETTINGS
from softcam_hub.files import DRAFT
from softcam_hub.output_folder import RECORD
from softcam_hub.training.objective import VanillaForTraining

SMALL = {**DATA, "explainers": "centre random", "measures": "table", "limit": 2, "shard_size": 1}
WORDS = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
FILES = {SETTINGS, "shards/00000.json", "shards/00001.json", "rows.jsonl", "table1.md"}


def measure(output, **changes):
    return benchmark(vanilla_model(), output, **{**SMALL, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The files of a benchmark, and its rows."""
    folder = tmp_path_factory.mktemp("finished")
    rows = measure(folder)
    return content(folder), rows


@pytest.fixture
def out(finished, tmp_path):
    """A folder with a finished benchmark."""
    write(finished[0], tmp_path)
    return tmp_path


def write(files, folder):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text)


# --- whose the folder is ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "theirs",
    [
        *("rows.jsonl", "values.jsonl", "curves.png", "table1.md", "table2.md", "table2.jsonl"),
        *(SETTINGS, "shards/00000.json", "shards/notes.txt", "notes.txt", "photographs/cat.jpg"),
    ],
)
def test_a_folder_of_somebody_else_is_refused(theirs, overwrite, tmp_path):
    fill(tmp_path, theirs)
    before = content(tmp_path)
    with pytest.raises(FileExistsError, match=rf"is left alone: it holds '{theirs.split('/')[0]}' but no record of a"):
        measure(tmp_path, overwrite=overwrite)
    assert content(tmp_path) == before


def test_overwriting_deletes_the_files_of_the_benchmark_only(finished, out):
    fill(out, "notes.txt", "table.tex", "shards.txt", "pictures/curves.png")
    theirs = {name: text for name, text in content(out).items() if name not in finished[0]}
    before = (out / "rows.jsonl").read_bytes()
    measure(out, overwrite=True, seed=1)
    after = content(out)
    assert {name: after[name] for name in theirs} == theirs
    assert after["rows.jsonl"] != before
    assert after.keys() == finished[0].keys() | theirs.keys()


def test_the_record_names_every_file(finished):
    assert finished[0].keys() == FILES | {RECORD}
    assert json.loads(finished[0][RECORD]) == {"kind": "benchmark", "format": 1, "names": NAMES}


@pytest.mark.parametrize("link", ["rows.jsonl", "table1.md", SETTINGS, "shards/00001.json", "shards"])
@pytest.mark.parametrize("dangling", [False, True])
def test_links_are_not_followed(link, dangling, out, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    target = elsewhere / "nothing" if dangling else elsewhere / "kept"
    if not dangling:
        (out / link).rename(target)
    elif link == "shards":
        (out / link).rename(elsewhere / "shards")
    else:
        (out / link).unlink()
    (out / link).symlink_to(target)
    before = content(elsewhere)
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="is a link, and nothing is written through links"):
            measure(out, overwrite=overwrite)
    assert content(elsewhere) == before


# --- benchmarks made before there were records -----------------------------------------------------------------------


@pytest.mark.parametrize("lost", [(), ("rows.jsonl", "table1.md"), ("shards/00001.json", "rows.jsonl")])
def test_an_earlier_benchmark_without_a_record_goes_on_but_is_not_overwritten(lost, finished, out):
    for name in (RECORD, *lost):
        (out / name).unlink()
    (out / "shards" / "00001.unfinished").write_text("[{")  # left by an earlier release that was killed
    with pytest.raises(FileExistsError, match="nothing says that its files may be deleted"):
        measure(out, overwrite=True)
    assert measure(out) == finished[1]
    after = content(out)
    assert after.pop("shards/00001.unfinished")
    assert after == finished[0]


def test_a_benchmark_that_calls_the_vanilla_classifier_twin_is_continued(finished, out):
    (out / "rows.jsonl").unlink()
    for file in (out / SETTINGS, *(out / "shards").iterdir()):
        text = re.sub(r', \{"sha256": "\w+"\}', "", file.read_text())  # earlier releases wrote no digest
        assert '"vanilla"' in text
        file.write_text(text.replace('"vanilla"', '"twin"'))
    assert measure(out) == finished[1]
    assert (out / "rows.jsonl").read_bytes() == finished[0]["rows.jsonl"]


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"model": "x"}', "\x00\x01", '{"seed": 0, "data": "mine"}'])
def test_settings_of_something_else_are_no_earlier_benchmark(text, out):
    (out / RECORD).unlink()
    (out / SETTINGS).write_text(text)
    before = content(out)
    with pytest.raises(FileExistsError, match=r"rows\.jsonl.* it is not an earlier benchmark"):
        measure(out)
    assert content(out) == before


@pytest.mark.parametrize("name", ["notes.txt", "1.json", "00000.json.bak", "deep/00000.json"])
def test_foreign_shards_are_no_earlier_benchmark(name, out):
    (out / RECORD).unlink()
    fill(out, f"shards/{name}")
    with pytest.raises(FileExistsError, match="it is not an earlier benchmark"):
        measure(out)


# --- nothing is lost before everything is known to be good -----------------------------------------------------------


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ({"explainers": "cape"}, "cape"),
        ({"patch": 1000}, "patch must be at most 64"),
        ({"split": "validation", "validation_split": ""}, "no validation split"),
        ({"measures": "localisation", "data": "{images}"}, "neither masks nor boxes"),
    ],
)
def test_a_mistake_with_overwrite_deletes_nothing(mistake, message, out, tmp_path_factory):
    images = write_lesions(tmp_path_factory.mktemp("images"))
    before = content(out)
    changes = {name: value.format(images=images) if name == "data" else value for name, value in mistake.items()}
    with pytest.raises(ValueError, match=message):
        measure(out, overwrite=True, **changes)
    assert content(out) == before


def test_a_model_that_cannot_be_loaded_deletes_nothing(out, tmp_path_factory, capsys):
    before, empty = content(out), str(tmp_path_factory.mktemp("empty"))
    assert main(["benchmark", "--model", empty, "--output", str(out), "--overwrite", *WORDS]) == 1
    assert f"there is no config.json in {empty}" in capsys.readouterr().err
    assert content(out) == before


@pytest.mark.parametrize("text", ["", "{", "[]", '"text"', "\x00"])
def test_damaged_settings_are_named_and_nothing_is_lost(text, out):
    (out / SETTINGS).write_text(text)
    before = content(out)
    with pytest.raises(ValueError, match=r"settings\.json is damaged.*--overwrite"):
        measure(out)
    assert content(out) == before


def test_values_without_settings_are_refused(out):
    (out / SETTINGS).unlink()
    with pytest.raises(ValueError, match=r"holds values in shards but no settings\.json"):
        measure(out, seed=1)
    assert measure(out, seed=1, overwrite=True)[0]["seed"] == 1


def test_a_full_disk_is_told_and_the_benchmark_goes_on_later(tmp_path):
    options = {"limit": 10, "shard_size": 10}
    rows = measure(tmp_path / "whole", **options)
    size = (tmp_path / "whole" / "shards" / "00000.json").stat().st_size
    message = r"^\S*00000\.json could not be written \(File too large\).*Make room.*run the same command"
    with full_disk(size - 1), pytest.raises(OSError, match=message):
        measure(tmp_path / "out", **options)
    assert not list((tmp_path / "out").rglob(f"{DRAFT}*"))
    assert measure(tmp_path / "out", **options) == rows
    assert content(tmp_path / "out") == content(tmp_path / "whole")


# --- one process at a time -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accuracy", [False, True])
def test_a_second_benchmark_in_the_folder_is_refused(accuracy, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(output_folder, "LOCK_TIMEOUT", 0.1)
    words = ["accuracy", "--vanilla", "resnet18"] if accuracy else ["benchmark"]
    with used_by_another_process(tmp_path):
        assert main([*words, "--output", str(tmp_path)]) == 1
    assert f"another process is writing to {tmp_path}" in capsys.readouterr().err
    assert content(tmp_path) == {}


@pytest.mark.slow
def test_two_processes_keep_the_folder_until_both_have_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(output_folder, "LOCK_TIMEOUT", 0.1)
    VanillaForTraining(vanilla_model(), False, CLASSES).save_pretrained(tmp_path / "model")
    options = {**DATA, "batch_size": 1, "shard_size": 1, "explainers": "grad-cam random", "eval_count": 24}
    ranks = start(run_benchmark, tmp_path / "model", None, tmp_path / "out", options, 2, processes=2)
    try:
        while not list((tmp_path / "out" / "shards").glob("*.json")):
            assert all(process.is_alive() for process in ranks)
        with pytest.raises(BlockingIOError, match="another process is writing"):
            benchmark(tmp_path / "model", tmp_path / "out", **options)
        finish(ranks)
    finally:
        kill(ranks)
    monkeypatch.setattr(output_folder, "LOCK_TIMEOUT", 30)
    before = (tmp_path / "out" / "rows.jsonl").stat().st_mtime_ns
    assert len(benchmark(tmp_path / "model", tmp_path / "out", **options)) == 2
    assert (tmp_path / "out" / "rows.jsonl").stat().st_mtime_ns > before


# --- accuracies ------------------------------------------------------------------------------------------------------


@pytest.fixture
def run_folder(tmp_path):
    """The files of a finished run that `softcam-hub accuracy` reads."""
    fill(tmp_path, "run/metrics.json")
    (tmp_path / "run" / "metrics.json").write_text(json.dumps({"test_accuracy": 0.9}))
    (tmp_path / "run" / "settings.yaml").write_text("model: cape_resnet18\nmode: direct\ndata: lesions\n")
    return tmp_path / "run"


def accuracies(run, out):
    return main(["accuracy", str(run), "--output", str(out)])


def test_accuracies_come_beside_a_benchmark_and_are_replaced(run_folder, finished, tmp_path):
    write(finished[0], tmp_path / "out")
    for _ in range(2):
        assert accuracies(run_folder, tmp_path / "out") == 0
    assert content(tmp_path / "out").keys() == finished[0].keys() | {"table2.jsonl", "table2.md"}


@pytest.mark.parametrize("theirs", ["table2.md", "table2.jsonl", "notes.txt"])
def test_accuracies_replace_nothing_of_somebody_else(theirs, run_folder, tmp_path, capsys):
    fill(tmp_path / "out", theirs)
    assert accuracies(run_folder, tmp_path / "out") == 1
    assert f"it holds '{theirs}' but no record of a benchmark" in capsys.readouterr().err
    assert content(tmp_path / "out") == {theirs: f"content of {theirs}".encode()}


def test_accuracies_of_an_earlier_release_are_replaced(run_folder, tmp_path):
    accuracies(run_folder, tmp_path / "out")
    first = content(tmp_path / "out")
    (tmp_path / "out" / RECORD).unlink()
    assert accuracies(run_folder, tmp_path / "out") == 0
    assert content(tmp_path / "out") == first


# --- kills -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_benchmark_that_is_killed_at_any_moment_goes_on(finished, tmp_path):
    out = tmp_path / "out"
    options = {"measures": "table localisation", "per_image": True}
    assert every_crash(out, lambda: measure(out, **options), grouped=True) > 10
    assert content(out).keys() == FILES | {RECORD, "curves.png", "localisation.md", "values.jsonl"}


@pytest.mark.slow
def test_overwriting_that_is_killed_at_any_moment_leaves_no_values_of_the_earlier_settings(out):
    def again():
        if (out / SETTINGS).exists() and json.loads((out / SETTINGS).read_text())["seed"] == 0:
            with pytest.raises(ValueError, match="holds a benchmark with seed=0"):
                measure(out, seed=1)
            measure(out, seed=1, overwrite=True)
        else:
            measure(out, seed=1)

    assert every_crash(out, lambda: measure(out, seed=1, overwrite=True), again, grouped=True) > 10
