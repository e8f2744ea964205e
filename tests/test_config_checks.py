"""A configuration is checked whenever it is complete, however it was made, and speaks timm's words too."""

import json

import pytest
import timm
import torch
from conftest import randomise
from huggingface_hub.errors import StrictDataclassError
from timm.models import save_for_hf
from transformers import AutoConfig, AutoModelForImageClassification

from softcam_hub import CAPEConfig, CAPEForImageClassification, CAPEModel, SoftCAMConfig, SoftCAMForImageClassification

CLASSES = {"softcam": SoftCAMForImageClassification, "cape": CAPEForImageClassification}
CONFIGS = {"softcam": SoftCAMConfig, "cape": CAPEConfig}
LABELS = {0: "asp", 1: "bat", 2: "cod"}

families = pytest.mark.parametrize("family", CLASSES)


def make_config(family, **settings):
    return CONFIGS[family](**{"architecture": f"{family}_test_resnet", "id2label": LABELS, **settings})


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    torch.manual_seed(0)
    made = {family: tmp_path_factory.mktemp(family) for family in CLASSES}
    for family, folder in made.items():
        randomise(CLASSES[family](make_config(family))).save_pretrained(folder)
    return made


IMPOSSIBLE = {
    "negative l1": ("softcam", {"l1": -1.0}, "l1 weighs a penalty and must be at least 0 and finite, got -1.0"),
    "l2 not a number": ("softcam", {"l2": float("nan")}, "l2 weighs a penalty"),
    "regression, softcam": ("softcam", {"problem_type": "regression"}, "problem_type='regression' is not possible"),
    "regression, cape": ("cape", {"problem_type": "regression"}, "problem_type='regression' is not possible"),
    "several labels": (
        "cape",
        {"problem_type": "multi_label_classification"},
        "CAPE's class probabilities sum to one",
    ),
    "no classes": ("softcam", {"num_labels": 0}, "num_labels must be at least 1"),
    "one class": ("cape", {"num_labels": 1}, "num_labels=1 can neither predict nor learn"),
    "unknown mode": ("cape", {"mode": "postfit"}, "unknown mode 'postfit' for CAPE"),
    "beta without teacher": ("cape", {"beta": 0.5}, "mode 'direct' has no teacher, so beta must be 0, got 0.5"),
    "infinite temperature": ("cape", {"temperature": float("inf")}, "temperature must be above 0 and finite"),
    "classes with a gap": ("softcam", {"id2label": {0: "asp", 2: "cod"}}, "id2label must name the classes 0 to 1"),
    "other family": ("softcam", {"architecture": "cape_test_resnet"}, "use softcam_test_resnet"),
}


def from_keywords(family, settings, folder):
    """Load a model with the settings as keywords."""
    CLASSES[family].from_pretrained(folder, **settings)


def from_auto_keywords(family, settings, folder):
    """Load a configuration with the settings as keywords."""
    AutoConfig.from_pretrained(folder, **settings)


def from_attributes(family, settings, folder):
    """Set attributes of a configuration and build a model from it."""
    config = make_config(family)
    for name, value in settings.items():
        setattr(config, name, value)
    CLASSES[family](config)


def from_loaded_attributes(family, settings, folder):
    """Set attributes of a loaded configuration and load the weights with it."""
    config = AutoConfig.from_pretrained(folder)
    for name, value in settings.items():
        setattr(config, name, value)
    AutoModelForImageClassification.from_pretrained(folder, config=config)


def from_the_constructor(family, settings, folder):
    """Give the settings to the constructor."""
    labels = {} if "num_labels" in settings else {"id2label": LABELS}
    CONFIGS[family](**{"architecture": f"{family}_test_resnet", **labels, **settings})


@pytest.mark.parametrize("case", IMPOSSIBLE)
@pytest.mark.parametrize(
    "way", [from_keywords, from_auto_keywords, from_attributes, from_loaded_attributes, from_the_constructor]
)
def test_impossible_settings_are_refused(way, case, folders):
    family, settings, message = IMPOSSIBLE[case]
    with pytest.raises(ValueError, match=message):
        way(family, settings, folders[family])


def test_features_first_models_are_checked_too(folders):
    for settings in ({"mode": "postfit"}, {"problem_type": "multi_label_classification"}):
        config = make_config("cape")
        setattr(config, *next(iter(settings.items())))
        with pytest.raises(ValueError, match="mode 'postfit'|sum to one"):
            CAPEModel(config)


def test_impossible_settings_are_not_saved(folders, tmp_path):
    model = SoftCAMForImageClassification.from_pretrained(folders["softcam"])
    model.config.l1 = -1.0
    with pytest.raises(StrictDataclassError, match="l1 weighs a penalty"):
        model.save_pretrained(tmp_path / "model")
    assert not list((tmp_path / "model").iterdir())


def test_possible_settings_are_taken_at_load(folders):
    model = SoftCAMForImageClassification.from_pretrained(
        folders["softcam"], l1=0.5, problem_type="multi_label_classification", output_maps=False
    )
    assert (model.config.l1, model.multi_label, model.config.output_maps) == (0.5, True, False)
    assert model.config.id2label == LABELS


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"num_labels": 3}, LABELS),
        ({"num_labels": 2}, {0: "LABEL_0", 1: "LABEL_1"}),
        ({"id2label": {0: "x", 1: "y"}}, {0: "x", 1: "y"}),
        ({"id2label": {"0": "x", "1": "y"}, "num_labels": 2}, {0: "x", 1: "y"}),
    ],
)
def test_classes_given_at_load(settings, expected, folders):
    config = AutoConfig.from_pretrained(folders["cape"], **settings)
    assert config.id2label == expected
    assert config.label2id == {name: index for index, name in expected.items()}


@families
def test_a_configuration_takes_its_own_dictionary(family, tmp_path):
    config = make_config(family, model_args={"output_stride": 16})
    config.to_json_file(tmp_path / "config.json")
    again = [
        CONFIGS[family](**config.to_dict()),
        CONFIGS[family].from_dict(config.to_dict()),
        CONFIGS[family].from_json_file(tmp_path / "config.json"),
        AutoConfig.for_model(**config.to_dict()),
        AutoConfig.for_model(**json.loads((tmp_path / "config.json").read_text())),
    ]
    assert all(one.to_dict() == config.to_dict() for one in again)


def test_default_labels_pass_through_a_json_file(tmp_path):
    """transformers leaves its two default labels out of the file; ours still says `num_classes` for timm."""
    config = SoftCAMConfig(architecture="softcam_test_resnet")
    config.to_json_file(tmp_path / "config.json")
    assert SoftCAMConfig.from_json_file(tmp_path / "config.json").to_dict() == config.to_dict()


CONTRADICTIONS = {
    "number": ({"num_classes": 5, "label_names": None}, "num_classes=5 contradicts the 3 classes of id2label"),
    "names": ({"label_names": ["asp", "bat", "dog"]}, "label_names .* contradict id2label"),
    "number of names": ({"label_names": ["asp"]}, "label_names has 1 names, but num_classes is 3"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_dictionary_that_contradicts_itself_is_refused(case):
    changes, message = CONTRADICTIONS[case]
    written = {**make_config("softcam").to_dict(), **changes}
    for make in (lambda: SoftCAMConfig(**written), lambda: SoftCAMConfig.from_dict(written)):
        with pytest.raises(ValueError, match=message):
            make()


def test_contradictory_keywords_are_refused(folders):
    for make in (SoftCAMConfig, lambda **labels: SoftCAMConfig.from_pretrained(folders["softcam"], **labels)):
        with pytest.raises(ValueError, match="num_labels=4 contradicts id2label, which names 3 classes"):
            make(num_labels=4, id2label=LABELS)
    with pytest.raises(ValueError, match="num_classes=7 contradicts the 3 classes of id2label"):
        SoftCAMForImageClassification.from_pretrained(folders["softcam"], num_classes=7)


def test_timms_own_export_is_read(tmp_path):
    model = timm.create_model("softcam_test_resnet", num_classes=3)
    save_for_hf(model, tmp_path, model_config={"label_names": list(LABELS.values())}, safe_serialization=True)
    config = SoftCAMConfig.from_pretrained(tmp_path)
    assert config.id2label == LABELS
    assert SoftCAMConfig.from_pretrained(tmp_path, num_labels=3).id2label == LABELS


@families
def test_a_model_that_is_taken_over_has_the_configured_classes(family):
    model = timm.create_model(f"{family}_test_resnet", num_classes=5)
    with pytest.raises(ValueError, match="configuration has 3 classes, but the model that is taken over has 5"):
        CLASSES[family].from_timm(model, num_labels=3)
