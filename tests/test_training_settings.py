"""The settings of a run: flags, recipes, and the values that are refused."""

import re
from pathlib import Path

import pytest

from softcam_hub.models.losses import zeroing_l1
from softcam_hub.training import Config, make_config, parse, recipes
from softcam_hub.training.config import LOWER_IS_BETTER, SCORES
from softcam_hub.training.parsing import make_parser


def test_flags_are_grouped_and_every_setting_is_explained():
    text = make_parser().format_help()
    for title in ("model:", "data:", "augmentation:", "optimization:", "run:"):
        assert f"\n{title}" in text
    for name in Config().flat():
        assert re.search(rf"--{name.replace('_', '-')}\s", text)
    assert all(name in "".join(text.split()) for name in recipes())


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_of_the_package_is_parsed(name):
    config = parse(["--recipe", name])
    assert config.run.output == f"runs/{name}" + ("/0" if config.data.folds else "")
    said = Path(name).name.partition("-")[0]
    named_after_data = ("lesions", "finetune")  # these may have any family
    assert config.model.family in (None, said) or said in named_after_data
    assert (config.model.family is None) == ("vanilla" in name)


PENALTIES = {
    "softcam-fundus-sparse": (5, 5e-5, (0.01, 0.1)),
    "softcam-oct-sparse": (4, 5e-4, (0.2, 0.77)),
    "softcam-chest-xray-sparse": (2, 8e-4, (0.41, 0.51)),
}
"""Recipe -> number of classes, the authors' λ1, and the range of their λ1 for this data set in our unit."""


@pytest.mark.parametrize("name", PENALTIES)
def test_the_penalty_of_a_recipe_is_the_one_of_the_authors_in_our_unit(name):
    classes, theirs, (least, most) = PENALTIES[name]
    config = parse(["--recipe", name])
    cells = (config.model.image_size // 32) ** 2  # a map of ResNet-50
    assert config.model.l1 == pytest.approx(theirs * classes * cells, rel=0.002)
    assert least <= config.model.l1 <= most < zeroing_l1(classes)
    assert config.model.model == "softcam_resnet50"


def test_flags_override_a_recipe_and_notes_are_ignored(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("model: softcam_resnet18\nl1: 1e-3\nepochs: 7\nnotes: {time: one hour}\n")
    config = parse(["--recipe", str(recipe), "--epochs", "3"])
    assert (config.model.model, config.model.l1, config.optimization.epochs) == ("softcam_resnet18", 0.001, 3)
    (tmp_path / "above.yaml").write_text(f"base: {recipe}\nl1: 0.5\n")
    config = parse(["--recipe", str(tmp_path / "above.yaml")])
    assert (config.model.model, config.model.l1, config.optimization.epochs) == ("softcam_resnet18", 0.5, 7)


def test_the_base_of_a_recipe_lies_beside_it(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    for name, epochs in {"below.yaml": 9, "mine/below.yaml": 4}.items():
        Path(name).write_text(f"epochs: {epochs}\nmixed_precision: no\n")
    Path("mine/above.yaml").write_text("base: below.yaml\nlr: 0.5\n")
    config = parse(["--recipe", "mine/above.yaml"])
    assert (config.optimization.epochs, config.optimization.lr, config.run.mixed_precision) == (4, 0.5, "no")
    Path("mine/below.yaml").write_text("base: above.yaml\n")
    with pytest.raises(
        ValueError, match="recipe .*/above.yaml is based on itself, .*above.yaml -> .*below.yaml -> .*above"
    ):
        parse(["--recipe", "mine/above.yaml"])


def test_every_fold_starts_from_its_own_vanilla_classifier():
    for fold in range(5):
        found = parse(["--recipe", "cape-cmml-pf", "--fold", str(fold)])
        vanilla = parse(["--recipe", "cape-cmml-vanilla", "--fold", str(fold)])
        assert found.model.init == f"{vanilla.run.output}/model" == f"runs/cape-cmml-vanilla/{fold}/model"
        assert found.run.output == f"runs/cape-cmml-pf/{fold}"


@pytest.mark.parametrize("name", [name for name in recipes() if name.startswith("cape-imagenet")])
def test_no_epoch_of_imagenet_is_chosen_on_the_test_images(name):
    config = parse(["--recipe", name])
    assert (config.data.hold_out, config.data.validation_split, config.data.test_split) == (0.02, "", "validation")
    assert config.data.optional_splits == ["validation"]
    assert config.model.pretrained == (config.model.mode == "post-fit")
    assert config.model.timm_name == ("resnet50.tv_in1k" if config.model.pretrained else "resnet50")


BAD_FLAGS = {
    "--epocs 3": "unknown option '--epocs': did you mean --epochs\\?; see --help",
    "--batch-sise 3": "unknown option '--batch-sise': did you mean --batch-size\\?",
    "--epochs three": "invalid int value: 'three'",
    "--epochs 0": "epochs must be at least 1",
    "--lr nan": "lr must be at least 0, got nan",
    "--lr -1": "lr must be at least 0",
    "--schedule cosin": "'cosin' is not a choice: did you mean cosine",
    "--recipe lesions-cap": "no recipe 'lesions-cap': did you mean lesions-cape",
    "--recipe": "expected one argument",
    "--augment perhaps": "perhaps",
    "--temperature 0": "temperature must be above 0 and finite",
    "--mode post-fit --temperatures 1,-2": "temperature must be above 0 and finite, got -2",
    "--mode post": "'post' is not a choice: did you mean post-fit\\?",
    "--model softcam_resnet18 --mode direct --selective": "selective is an option of cape_\\* models",
    "--model cape_resnet18 --l1 0.1": "l1 is an option of softcam_\\* models",
    "--temperature 3": "temperature is an option of CAPE's teacher, and mode 'direct' has none: leave it out",
    "--selective": "selective is an option of CAPE's teacher, and mode 'direct' has none: leave it out",
    "--mode post-fit --balance loss": "balance=loss changes the cross-entropy, but mode 'post-fit' learns from the te",
    "--mode post-fit --label-smoothing 0.1": "label_smoothing=0.1 changes the cross-entropy, but mode 'post-fit'",
    "--mode from-scratch --alpha 0 --balance loss": "balance=loss changes the cross-entropy, but mode 'from-scratch'",
    "--model resnet18 --freeze-backbone": "freeze_backbone needs a self-explaining model",
    "--model-args scales=x": "scales must be a whole number from 1 to 5, got 'x'",
    "--model-args output_stride": "expected name=value pairs, such as 'output_stride=8', got 'output_stride'",
    "--pretrained --init x": "init and pretrained both name the weights to start from",
    "--resume --overwrite": "give one of them",
    "--image-size 8": "image_size must be at least 32, got 8",
    "--ema 1": "ema must be in \\(0, 1\\), got 1",
    "--warmup-epochs 10": "warmup_epochs must be below epochs=10, got 10.0",
    "--label-smoothing 1": "label_smoothing must be in \\[0, 1\\), got 1",
    "--clip-grad 0": "clip_grad must be above 0",
    "--l1 -0.5": "l1 must be at least 0, got -0.5",
    "--l2 nan": "l2 must be at least 0, got nan",
    "--workers -1": "workers must be at least 0",
    "--cache-limit 0": "cache_limit must be above 0, got 0",
    "--hflip nan": "hflip must be in \\[0, 1\\], got nan",
    "--lr inf": "lr must be at least 0 and finite, got inf",
    "--resize squish": "'squish' is not a choice: did you mean squash",
    "--select acuracy": "'acuracy' is not a choice: did you mean accuracy",
}


@pytest.mark.parametrize("flags", BAD_FLAGS)
def test_wrong_settings_are_refused_with_a_message(flags):
    with pytest.raises(ValueError, match=BAD_FLAGS[flags]):
        parse(flags.split())


def test_home_means_the_same_in_every_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    config = make_config(output="~/runs/x", cache_dir="~/cache", mode="post-fit", augment=False)
    assert (config.run.output, config.run.cache_dir) == ("/home/somebody/runs/x", "/home/somebody/cache")
    assert make_config().run.cache_dir == make_config(output="runs/x").run.cache_dir


def test_scores_of_which_less_is_better():
    assert set(LOWER_IS_BETTER) <= set(SCORES)
    higher = {"accuracy", "balanced_accuracy", "auc", "kappa", "confidence", "teacher_accuracy", "teacher_confidence"}
    assert set(SCORES) - set(LOWER_IS_BETTER) == higher | {"sparseness"}


def test_options_that_the_mode_uses_are_accepted():
    parse(["--mode", "post-fit", "--alpha", "0.5", "--balance", "loss", "--label-smoothing", "0.1"])
    parse(["--mode", "post-fit", "--balance", "sampling", "--selective", "--temperature", "3"])
    parse(["--model", "softcam_resnet18", "--balance", "loss"])
    parse(["--model", "resnet18", "--label-smoothing", "0.1"])


def test_an_invalid_recipe_is_refused(tmp_path):
    broken = tmp_path / "broken.yaml"
    for text, expected in {
        "epocs: 3": "sets 'epocs', which is not a setting: did you mean epochs\\?",
        "epochs: [": "is not valid YAML",
        "- epochs": "must hold names and values, but holds a list: a recipe has a line `name: value` for every",
        "1: x": "must hold names and values, but holds names that are no text",
        "base: 3": "'base' in .*broken.yaml must be the name of a recipe or of a YAML file, got 3",
    }.items():
        broken.write_text(text)
        with pytest.raises(ValueError, match=expected):
            parse(["--recipe", str(broken)])
    with pytest.raises(
        ValueError, match="make_config\\(\\) sets 'epoch', which is not a setting: did you mean epochs\\?"
    ):
        make_config(epoch=3)
