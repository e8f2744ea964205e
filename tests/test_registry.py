"""Names and tags: what timm lists, and the committed table against the installed timm."""

from pathlib import Path

import pytest
import timm
from helpers.warm import warm_python
from timm.models import get_arch_pretrained_cfgs, get_pretrained_cfg

from softcam_hub import registry
from softcam_hub.architectures import EXACT, architectures
from softcam_hub.models.anatomy import examine
from softcam_hub.models.backbone import NoEvidenceMap


def test_every_architecture_of_the_table_is_listed():
    expected = {name for name in architectures() if timm.is_model(name)} | {"swinv2_b"}
    for family in ("softcam", "cape"):
        assert {name.removeprefix(f"{family}_") for name in timm.list_models(f"{family}_*")} == expected


def test_the_table_counts_1093_exact_architectures_of_this_timm():
    exact = [name for name, kind in architectures().items() if kind in EXACT]
    assert len(exact) == 1093
    assert len(set(exact)) == 1093
    page = (Path(__file__).parents[1] / "docs" / "models.md").read_text(encoding="utf-8")
    trained = len(architectures()) - 1093
    assert f"1093 are exact, and {trained} more have a head to train" in page
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert f"1093 keep their predictions exactly in SoftCAM, and {trained} more have a head to train" in readme


def test_the_module_lists_every_name_once_as_modules_of_timm_do():
    ours = sorted(name for name in registry.__all__ if name.startswith(("softcam_", "cape_")))
    assert ours == sorted(set(timm.list_models("softcam_*") + timm.list_models("cape_*")))
    assert all(callable(getattr(registry, name)) for name in ours)


def test_tags_are_timms_own_with_the_same_default():
    for architecture in ("resnet50", "convnext_tiny", "vit_base_patch16_224", "swinv2_base_window8_256"):
        tags = {name.removeprefix(architecture) for name in get_arch_pretrained_cfgs(architecture)}
        ours = f"cape_{architecture}"
        assert {name.removeprefix(ours) for name in get_arch_pretrained_cfgs(ours)} == tags
        default, expected = get_pretrained_cfg(ours), get_pretrained_cfg(architecture)
        assert (default.tag, default.hf_hub_id) == (expected.tag, expected.hf_hub_id)
        assert default.classifier == "head"
        assert default.architecture == ours


def test_pretrained_names_are_those_of_timm():
    ours = {name.removeprefix("softcam_") for name in timm.list_pretrained("softcam_*")}
    theirs = {name for name in timm.list_pretrained() if name.split(".")[0] in architectures()}
    unreadable = {name for name in theirs - ours if get_pretrained_cfg(name).custom_load}
    assert theirs - ours == unreadable
    assert {name for name in ours - theirs if not name.startswith("swinv2_b.")} == set()


def test_stem_paths_lie_below_the_backbone():
    assert get_pretrained_cfg("cape_resnet50").first_conv == "backbone.conv1"
    assert get_pretrained_cfg("cape_selecsls42b").first_conv == "backbone.stem.0"
    assert isinstance(get_pretrained_cfg("cape_twins_svt_small").first_conv, str)
    several = [n for n in architectures() if isinstance(get_pretrained_cfg(n).first_conv, tuple | list)]
    assert several
    assert all(part.startswith("backbone.") for part in get_pretrained_cfg(f"cape_{several[0]}").first_conv)


@pytest.mark.parametrize("alias", ["cape_swinv2_b", "softcam_swinv2_b"])
def test_alias_builds_the_paper_model(alias):
    model = timm.create_model(
        alias, num_classes=2, img_size=64, embed_dim=24, num_heads=(1, 2, 4, 8), depths=(1, 1, 1, 1)
    )
    assert model.pretrained_cfg["architecture"] == alias.replace("swinv2_b", "swinv2_base_window8_256")
    assert get_pretrained_cfg(alias).hf_hub_id == "timm/swinv2_base_window8_256.ms_in1k"


def test_unknown_names_in_the_table_are_skipped(monkeypatch):
    monkeypatch.setattr(registry, "architectures", lambda: {"resnet18": "linear", "a_model_of_tomorrow": "linear"})
    monkeypatch.setattr(registry, "default_cfgs", {})
    registry.register()
    assert not timm.is_model("softcam_a_model_of_tomorrow")
    assert timm.is_model("softcam_resnet18")


SAMPLE = [(name, kind) for name, kind in architectures().items()][::25]


@pytest.mark.parametrize(("architecture", "head_type"), SAMPLE)
def test_a_sample_of_the_table_is_true(architecture, head_type):
    assert examine(architecture).head_type == head_type


REFUSED = {
    "crossvit_9_240": "it classifies from several feature maps instead of one",
    "pit_ti_224": "its features keep no patch tokens, only class tokens",
    "mobilenetv5_300m_enc": "it is an encoder without a classifier",
}


@pytest.mark.parametrize("architecture", REFUSED)
def test_what_is_not_in_the_table_is_refused_with_its_reason(architecture):
    assert architecture not in architectures()
    with pytest.raises(NoEvidenceMap) as error:
        examine(architecture)
    assert str(error.value) == REFUSED[architecture]


def test_a_head_with_a_layer_of_an_unknown_kind_is_refused():
    reason = r"between its pool and its classifier stand layers of an unknown kind \(conv_head, act2\)"
    with pytest.raises(NoEvidenceMap, match=reason):
        examine("mobilenetv3_small_050", act_layer="mish")
    assert examine("mobilenetv3_small_050").hidden == ("conv_head", "act2")


@pytest.mark.slow
def test_the_table_is_true():
    done = warm_python().run("-m", "tools.probe_timm", "--check", "--every=25")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the table is up to date" in done.stdout
