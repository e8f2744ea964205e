"""Pushes by the real client over HTTP: what arrives, and what is refused before anything is sent."""

import argparse
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from helpers.pushing import CODE, REPO, writes
from huggingface_hub import HfApi, parse_eval_result_entries
from transformers import AutoModelForImageClassification, Trainer, TrainingArguments

import softcam_hub
from softcam_hub import SoftCAMForImageClassification
from softcam_hub.commands import push as push_command
from softcam_hub.hub import push
from softcam_hub.hub.cards import PLACEHOLDER_REPO, check_card, read_rows
from softcam_hub.training import EvidenceTrainer, ExplanationCallback

# --- what arrives ------------------------------------------------------------------------------------------------------


def test_all_files_of_a_model_arrive(hub, folder, monkeypatch):
    monkeypatch.chdir(folder.parent)  # where the recipe's output is no path; that of the rows' model is one anywhere
    done = push(folder, REPO)
    there = hub.files(REPO)
    beside = {file.name for file in folder.iterdir()}
    assert there.keys() == beside | CODE
    assert done.files == {name: len(content) for name, content in there.items()}
    assert {name for name in beside if there[name] != (folder / name).read_bytes()} == {"README.md", "rows.jsonl"}
    card = there["README.md"].decode()
    assert PLACEHOLDER_REPO not in card
    assert card == (folder / "README.md").read_text().replace(PLACEHOLDER_REPO, REPO)
    assert done.url == f"{hub.url}/{REPO}/commit/{HfApi(endpoint=hub.url).repo_info(REPO).sha}"
    assert not HfApi(endpoint=hub.url).repo_info(REPO).private


def test_local_paths_are_removed_from_published_records(hub, folder):
    home = folder.parent / "home of ada"
    metrics, recipe = (
        json.loads((folder / "metrics.json").read_text()),
        yaml.safe_load((folder / "recipe.yaml").read_text()),
    )
    rows = read_rows(folder / "rows.jsonl")
    local = {"data": f"{home}/patients", "init": f"{home}/runs/vanilla"}
    (folder / "metrics.json").write_text(json.dumps({**metrics, "data": local["data"]}))
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**recipe, **local}))
    (folder / "rows.jsonl").write_text("".join(json.dumps({**row, **local}) + "\n" for row in rows))
    done = push(folder, REPO)
    there = hub.files(REPO)
    assert not [name for name, content in there.items() if b"home of ada" in content]
    assert done.files == {name: len(content) for name, content in there.items()}
    told = {"data": "patients", "init": "vanilla"}
    assert json.loads(there["metrics.json"]) == {**metrics, "data": "patients"}
    pushed = yaml.safe_load(there["recipe.yaml"])
    assert {**pushed, "output": recipe["output"]} == {**recipe, **told}
    expected = [{**row, **told, "model": "model", "thresholds_from": "tuning"} for row in rows]
    assert [json.loads(line) for line in there["rows.jsonl"].splitlines()] == expected
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["data"] == local["data"]


def test_the_accuracy_on_a_data_set_of_the_hub_is_a_result_that_the_hub_reads(hub, folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    assert not any(".eval_results" in name for name in push(folder, REPO, dry_run=True).files), "lesions is local"
    (folder / "metrics.json").write_text(json.dumps({**metrics, "data": "tester/eyes"}))
    push(folder, REPO)
    (result,) = parse_eval_result_entries(yaml.safe_load(hub.files(REPO)[".eval_results/eyes.yaml"]))
    assert (result.dataset_id, result.value) == ("tester/eyes", metrics["test_accuracy"])
    assert result.notes == "accuracy on the test split"


def test_one_commit_and_none_where_nothing_changed(hub, folder):
    push(folder, REPO)
    assert sum("/commit/" in path for path in writes(hub)) == 1
    assert push(folder, REPO).url is None


def test_the_code_is_what_save_pretrained_writes(hub, folder, tmp_path):
    AutoModelForImageClassification.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    push(folder, REPO)
    push(tmp_path / "saved", "tester/saved")
    first, second = hub.files(REPO), hub.files("tester/saved")
    assert {name: first[name] for name in CODE} == {name: second[name] for name in CODE}
    check_card(second["README.md"].decode(), present=set(second))  # a card was made of what the folder tells
    assert "No scores were recorded with this model" in second["README.md"].decode()


def test_an_edited_card_is_kept(hub, folder):
    card = folder / "README.md"
    card.write_text(card.read_text().replace("## Limitations\n", "## Limitations\n\nAsk Ada first.\n"))
    push(folder, REPO)
    assert b"Ask Ada first." in hub.files(REPO)["README.md"]


OLD = ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
THEIRS = (
    "notes.txt",
    "fp16/model.safetensors",
    "adapter_model.safetensors",
    "model_ema.safetensors",
    "training_args.bin",
)


def test_older_weights_are_deleted_and_other_files_are_kept(hub, folder):
    hub.add_repo(REPO, dict.fromkeys((*OLD, *THEIRS), b"old"))
    assert sorted(push(folder, REPO, dry_run=True).deleted) == sorted(OLD)
    assert sorted(push(folder, REPO, dry_run=True, revision="new").deleted) == sorted(OLD)
    assert writes(hub) == []
    done = push(folder, REPO)
    assert hub.files(REPO).keys() == {file.name for file in folder.iterdir()} | CODE | set(THEIRS)
    assert sorted(done.deleted) == sorted(OLD)
    assert all(f"delete  {name}" in done.describe() for name in OLD)
    assert push(folder, REPO, message="again").deleted == []


def test_nothing_is_deleted_in_spaces(hub):
    hub.add_repo("tester/explanation_scores", {"model-00001-of-00002.safetensors": b"mine"}, repo_type="space")
    assert push("scores", "tester/explanation_scores", repo_type="space").deleted == []
    assert "model-00001-of-00002.safetensors" in hub.files("tester/explanation_scores", repo_type="space")


def test_pictures_of_all_formats_and_onnx_are_published(hub, folder):
    for name in ("photo.jpg", "photo.webp", "model.onnx"):
        (folder / name).write_bytes(b"x")
    card = folder / "README.md"
    card.write_text(card.read_text() + "\n![mine](photo.jpg)\n")
    assert {"photo.jpg", "photo.webp", "model.onnx"} <= push(folder, REPO).files.keys()


def test_exports_in_the_folder_onnx_go_along(hub, folder):
    published = ("model.onnx", "model_fp16.onnx", "model-0f.onnx", "model-0f.onnx.data")
    left_out = ["onnx/model.pt2", "onnx/notes.txt", "onnx/older/"]
    for name in (*published, "model.pt2", "notes.txt", "older/model.onnx", ".softcam_hub.unfinished-1.onnx"):
        (folder / "onnx" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "onnx" / name).write_text(name)
    (folder / "large.onnx.data").write_text("weights of a file at the root")
    done = push(folder, REPO)
    there = hub.files(REPO)
    assert {name for name in there if name.startswith("onnx")} == {f"onnx/{name}" for name in published}
    assert all(there[f"onnx/{name}"] == name.encode() for name in published)
    assert there["large.onnx.data"] == b"weights of a file at the root"
    assert done.left_out == left_out


def test_a_folder_onnx_without_exports_is_left_out_as_any_other(hub, folder):
    (folder / "onnx").mkdir()
    assert push(folder, REPO, dry_run=True).left_out == ["onnx/"]
    (folder / "onnx" / "model.pkl").write_text("secret")
    done = push(folder, REPO, dry_run=True)
    assert done.left_out == ["onnx/"]
    assert not any(name.startswith("onnx") for name in done.files)


def test_hidden_files_folders_and_other_types_are_left_out_and_listed(hub, folder):
    left_out = ["checkpoint-5/", "events.tfevents", "notes.pkl", "optimizer.bin", "training_args.bin"]
    for name in (".draft.json", "checkpoint-5/optimizer.pt", *left_out[1:]):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("secret")
    assert push(folder, REPO, dry_run=True).left_out == left_out
    done = push(folder, REPO)
    assert done.left_out == left_out
    assert all(f"left out  {name}\n" in f"{done.describe()}\n" for name in left_out)
    assert hub.files(REPO).keys() == {file.name for file in Path(softcam_hub.CAPE_LESIONS).iterdir()} | CODE


def test_a_branch_is_made_and_main_stays(hub, folder):
    before = hub.add_repo(REPO, {"notes.txt": b"mine"})
    push(folder, REPO, revision="v2")
    assert "model.safetensors" in hub.files(REPO, "v2")
    assert HfApi(endpoint=hub.url).repo_info(REPO).sha == before
    (folder / "README.md").write_text((folder / "README.md").read_text() + "\nMore.\n")
    push(folder, REPO, revision="v2")
    assert b"More." in hub.files(REPO, "v2")["README.md"]


def test_a_pull_request_leaves_main_alone(hub, folder):
    hub.add_repo(REPO, {"notes.txt": b"mine"})
    done = push(folder, REPO, create_pr=True)
    assert done.url == f"{hub.url}/{REPO}/discussions/1"
    assert hub.files(REPO) == {"notes.txt": b"mine"}
    assert "model.safetensors" in hub.files(REPO, "refs/pr/1")
    push(folder, REPO, revision="refs/pr/1", message="again")
    assert hub.files(REPO) == {"notes.txt": b"mine"}


def test_a_new_repository_can_be_private(hub, folder):
    push(folder, REPO, private=True)
    assert HfApi(endpoint=hub.url, token="hf_test").repo_info(REPO).private
    push(folder, REPO, private=True, message="again")


def test_private_is_refused_for_an_existing_public_repository(hub, folder):
    hub.add_repo(REPO, {"notes.txt": b"mine"})
    with pytest.raises(FileExistsError, match="exists and is public"):
        push(folder, REPO, private=True)
    assert hub.files(REPO) == {"notes.txt": b"mine"}
    assert writes(hub) == []


def test_a_dry_run_lists_and_sends_nothing(hub, folder, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    done = push(folder, REPO, dry_run=True)
    assert {method for method, _ in hub.requests} == {"GET"}
    assert done.deleted == []
    weights = (folder / "model.safetensors").stat().st_size
    assert f"{weights:,}  model.safetensors" in done.describe()
    assert done.describe().endswith(f"{sum(done.files.values()):,}  bytes in {len(done.files)} files")
    assert done.url is None


# --- what is refused before anything is sent ---------------------------------------------------------------------------


def break_code(folder):
    card = folder / "README.md"
    card.write_text(card.read_text().replace("import timm, torch", "import timm,, torch"))


BAD = {
    "no folder": (shutil.rmtree, FileNotFoundError, "^there is no folder "),
    "no config": (lambda f: (f / "config.json").unlink(), FileNotFoundError, "save_pretrained writes one"),
    "broken config": (lambda f: (f / "config.json").write_text("{"), ValueError, "cannot be read"),
    "another model": (
        lambda f: (f / "config.json").write_text('{"architecture": "resnet50"}'),
        ValueError,
        "no model of ours: its architecture is 'resnet50'",
    ),
    "timm's export": (
        lambda f: (f / "config.json").write_text('{"architecture": "cape_resnet50"}'),
        ValueError,
        "save it again",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), FileNotFoundError, "no weights"),
    "a gap": (
        lambda f: (f / "README.md").write_text((f / "README.md").read_text() + "\n## Training data\n"),
        ValueError,
        "says nothing under '## Training data'",
    ),
    "no metadata": (lambda f: (f / "README.md").write_text("# Model\n\nMine.\n"), ValueError, "lacks license"),
    "a lost picture": (lambda f: (f / "examples.png").unlink(), ValueError, "shows examples.png, which is not beside"),
    "broken code": (break_code, ValueError, "does not parse"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_folder_is_refused(case, hub, folder):
    spoil, error, message = BAD[case]
    spoil(folder)
    with pytest.raises(error, match=message):
        push(folder, REPO)
    assert hub.requests == []


def test_a_run_folder_is_refused_with_a_hint_at_its_model(hub, folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="did you mean .*model"):
        push(tmp_path, REPO)


@pytest.mark.parametrize(
    "name", ["tiny", "a/b/c", "tester/", "tester/ti ny", "datasets/tester/tiny", "x--y/z", PLACEHOLDER_REPO, ""]
)
def test_a_bad_name_is_refused(name, hub, folder):
    with pytest.raises(ValueError, match="is not the name of a repository"):
        push(folder, name)
    assert hub.requests == []


def test_a_push_without_a_token_is_refused(hub, folder, monkeypatch):
    monkeypatch.setattr("softcam_hub.hub.commit.get_token", lambda: None)
    with pytest.raises(PermissionError, match="hf auth login"):
        push(folder, REPO)
    assert hub.requests == []


# --- Spaces ------------------------------------------------------------------------------------------------------------


def test_the_scores_become_a_space(hub):
    done = push("scores", "tester/explanation_scores", repo_type="space")
    there = hub.files("tester/explanation_scores", repo_type="space")
    assert {"app.py", "explanation_scores.py", "requirements.txt", "README.md", "faithfulness.py"} <= there.keys()
    assert 'evaluate.load("tester/explanation_scores")' in there["README.md"].decode()
    assert "<user>" not in there["README.md"].decode()
    assert done.url.startswith(f"{hub.url}/spaces/tester/explanation_scores/commit/")


def test_the_demo_goes_with_the_package_that_it_imports(hub):
    listed = push("demo", "tester/page", repo_type="space", dry_run=True).files
    assert {"app.py", "requirements.txt", "README.md", "softcam_hub/demo/page.py"} <= set(listed)
    assert "softcam_hub/assets/cape_lesions/model.safetensors" in listed
    assert not any("__pycache__" in name for name in listed)
    assert hub.requests == []


def test_a_space_is_named_like_its_module(hub):
    with pytest.raises(ValueError, match="name the Space tester/explanation_scores"):
        push("scores", "tester/scores", repo_type="space")
    with pytest.raises(ValueError, match="repo_type='dataset' is not possible: expected 'model' or 'space'"):
        push("scores", "tester/explanation_scores", repo_type="dataset")
    with pytest.raises(ValueError, match="no Space 'score': expected scores, demo, or a folder"):
        push("score", "tester/explanation_scores", repo_type="space")
    assert hub.requests == []


# --- the command -------------------------------------------------------------------------------------------------------


def command(*words):
    parser = argparse.ArgumentParser()
    push_command.add_arguments(parser)
    push_command.run(parser.parse_args([str(word) for word in words]))


def test_the_push_command_pushes_models_and_spaces(hub, folder, capsys):
    command(folder, REPO, "--dry-run")
    assert "nothing was sent" in capsys.readouterr().out
    assert writes(hub) == []
    command("--private", "--branch", "v2", folder, REPO, "--message", "first")
    assert "model.safetensors" in hub.files(REPO, "v2")
    assert f"{hub.url}/{REPO}/commit/" in capsys.readouterr().out
    command(folder, REPO, "--branch", "v2")
    assert "holds all of this already" in capsys.readouterr().out
    command("--space", "scores", "tester/explanation_scores")
    assert "app.py" in hub.files("tester/explanation_scores", repo_type="space")


# --- Trainer -----------------------------------------------------------------------------------------------------------


def trained(trainer_class, output, **options):
    """Train a small model for one step."""
    model = SoftCAMForImageClassification.from_timm("softcam_test_resnet", pretrained=False, num_labels=3, l1=1e-4)
    data = [{"pixel_values": torch.rand(3, 64, 64), "labels": i % 3} for i in range(6)]
    options |= {"max_steps": 1, "per_device_train_batch_size": 3, "use_cpu": True, "report_to": "none"}
    settings = TrainingArguments(output, hub_model_id=REPO, hub_token="hf_test", **options)
    trainer = trainer_class(model, settings, train_dataset=data, eval_dataset=data)
    trainer.add_callback(ExplanationCallback(trainer))
    trainer.train()
    return trainer


@pytest.mark.parametrize("name", ["out", "out/checkpoint-1"])
def test_folders_of_the_stock_trainer_are_published_without_its_state(name, hub, tmp_path):
    trainer = trained(Trainer, tmp_path / "out", save_strategy="steps", save_steps=1)
    trainer.save_model()
    trainer.save_state()
    trainer.create_model_card()
    folder = tmp_path / name
    done = push(folder, REPO)
    there = hub.files(REPO)
    assert {"config.json", "model.safetensors", "README.md"} <= there.keys()
    assert not [file for file in there if "training_args" in file or "state" in file or "optimizer" in file]
    assert {"training_args.bin", "trainer_state.json"} <= set(done.left_out)
    assert ("optimizer.pt" in done.left_out) == (folder.name == "checkpoint-1")
    check_card(there["README.md"].decode(), present=set(there))
    assert str(tmp_path).encode() not in b"".join(there.values())


def test_push_to_hub_of_the_trainer_publishes_our_card(hub, tmp_path):
    trainer = trained(EvidenceTrainer, tmp_path / "out")
    scores = trainer.evaluate()
    trainer.push_to_hub(dataset="tester/pictures", license="mit")
    there = hub.files(REPO)
    card = there["README.md"].decode()
    check_card(card, [json.loads(there["metrics.json"]), json.loads(there["config.json"])], set(there))
    assert f"| sparseness | {scores['eval_sparseness']:.3f} |" in card
    assert "trained with `EvidenceTrainer`" in card
    assert "max_steps: 1" in card
    assert "datasets:\n- tester/pictures" in card
    assert "runtime" not in card
