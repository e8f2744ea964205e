"""One function loads every source, and tells the same of the same classifier."""

import json
import shutil

import pytest
import timm
import torch
from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

import softcam_hub
from softcam_hub.loading import find_model, load_classifier
from softcam_hub.training.objective import VanillaForTraining

NAMES = ["circle", "square", "square"]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """One vanilla classifier as a module, as a folder, and in the wrapper of transformers."""
    torch.manual_seed(0)
    vanilla = timm.create_model("test_resnet", num_classes=3).eval()
    vanilla.pretrained_cfg.update(num_classes=3, input_size=(3, 64, 64), mean=(0.1, 0.2, 0.3), label_names=NAMES)
    folder = tmp_path_factory.mktemp("vanilla")
    VanillaForTraining(vanilla, True, NAMES).save_pretrained(folder)
    vanilla.multi_label = True
    return {
        "module": vanilla,
        "folder": folder,
        "wrapper": TimmWrapperForImageClassification.from_pretrained(folder),
        "softcam": softcam_hub.convert(vanilla),
        "hugging face": softcam_hub.SoftCAMForImageClassification.from_timm(
            vanilla, id2label=dict(enumerate(NAMES)), problem_type="multi_label_classification"
        ),
    }


@pytest.mark.parametrize("source", ["module", "folder", "wrapper", "softcam", "hugging face"])
def test_every_source_says_the_same(source, sources):
    classifier = load_classifier(sources[source])
    assert classifier.label_names == NAMES
    assert classifier.labels == ["circle", "square (1)", "square (2)"]
    assert classifier.multi_label is True
    assert tuple(classifier.preprocessing["input_size"]) == (3, 64, 64)
    assert tuple(classifier.preprocessing["mean"]) == (0.1, 0.2, 0.3)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(classifier.model(images), sources["module"](images), atol=1e-5)


def test_a_wrapper_without_names_has_numbers():
    config = TimmWrapperConfig(architecture="test_resnet", num_labels=2)
    classifier = load_classifier(TimmWrapperForImageClassification(config).eval())
    assert classifier.label_names is None
    assert classifier.labels == ["0", "1"]
    assert classifier.multi_label is None


def test_prefixes_of_timm_choose_between_a_folder_and_the_hub(sources, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(sources["folder"], tmp_path / "you" / "lesions")
    assert find_model("you/lesions") == find_model("local-dir:you/lesions") == "local-dir:you/lesions"
    assert find_model("hf-hub:you/lesions") == "hf-hub:you/lesions"


@pytest.mark.parametrize("changed", ["label_names", "id2label"])
def test_class_names_that_contradict_each_other_are_refused(changed, folder):
    config = json.loads((folder / "config.json").read_text())
    names = config["label_names"]
    config[changed] = names[::-1] if changed == "label_names" else dict(enumerate(names[::-1]))
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="label_names .* contradict id2label, which names .*: change both alike"):
        load_classifier(folder)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: _cut_off(folder / "model.safetensors"), "its file of weights is damaged or was cut off"),
        (lambda folder: _write(folder, architecture=7), "architecture must be the name of a timm architecture, got 7"),
    ],
)
def test_damaged_folders_are_named(spoil, message, folder):
    spoil(folder)
    with pytest.raises(ValueError, match=message):
        load_classifier(folder)


def _cut_off(file):
    file.write_bytes(file.read_bytes()[:1000])


def _write(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_the_mode_of_a_module_stays():
    model = timm.create_model("test_resnet", num_classes=3).train()
    assert load_classifier(model).model is model
    assert model.training


def test_a_source_must_have_weights_where_timm_names_are_not_accepted():
    with pytest.raises(FileNotFoundError, match="expected a model folder or a Hub id"):
        load_classifier("test_resnet", timm_names=False)
