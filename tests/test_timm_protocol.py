"""What timm's own test suite found: feature extraction, unpooled features, tracing, scripting, pruning."""

import pytest
import timm
import torch
from conftest import randomise, relative_error
from timm.layers import set_scriptable
from timm.models import save_for_hf
from torch import fx
from torchvision.models.feature_extraction import create_feature_extractor

import softcam_hub
from softcam_hub.models import classifier

TINY_VIT = {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 2}
TINY_HIERA = {"img_size": 64, "embed_dim": 24, "stages": (1, 1, 1, 1), "num_heads": 1}
TRACED = {
    "resnet": ("test_resnet", {}),
    "convnext": ("test_convnext", {}),
    "mambaout": ("test_mambaout", {}),
    "patches with a norm": ("vit_tiny_patch16_dinov3_qkvb", TINY_VIT),
    "patches and a class token": ("vit_tiny_patch16_224", TINY_VIT),
    "resampled positions": ("test_vit", {"img_size": 64}),
}
every_traced = pytest.mark.parametrize("backbone", TRACED)
every_family = pytest.mark.parametrize("family", ["softcam", "cape"])


def make(family, backbone="resnet", **options):
    architecture, args = TRACED[backbone]
    return randomise(timm.create_model(f"{family}_{architecture}", **{"num_classes": 5, **args, **options})).eval()


def images(batch=2):
    return torch.randn(batch, 3, 64, 64)


@pytest.mark.parametrize("feature_cls", ["list", "dict", "hook", "fx", "getter"])
def test_features_come_from_the_extractor_that_was_asked_for(feature_cls):
    options = {"features_only": True, "feature_cls": feature_cls, "out_indices": (1, 2)}
    ours = timm.create_model("softcam_test_resnet", **options).eval()
    vanilla = timm.create_model("test_resnet", **options).eval()
    assert type(ours) is type(vanilla)
    vanilla.load_state_dict(ours.state_dict())
    x = images()
    found, expected = (list(f.values()) if isinstance(f, dict) else f for f in (ours(x), vanilla(x)))
    assert [torch.equal(a, b) for a, b in zip(found, expected, strict=True)] == [True, True]
    assert "num_classes" not in ours.pretrained_cfg


def test_feature_cfg_is_passed_on():
    model = timm.create_model("cape_test_resnet", features_only=True, feature_cfg={"feature_cls": "getter"})
    assert type(model).__name__ == "FeatureGetterNet"


@pytest.mark.parametrize("architecture", ["softcam_test_resnet", "softcam_test_vit"])
def test_features_only_takes_the_weights_of_a_folder(architecture, tmp_path):
    options = {"img_size": 64} if "vit" in architecture else {}
    model = randomise(timm.create_model(architecture, num_classes=5, in_chans=1, **options)).eval()
    save_for_hf(model, tmp_path, safe_serialization=True)
    features = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, features_only=True, out_indices=(0,)).eval()
    x = torch.randn(1, 1, 64, 64)
    expected = model.forward_intermediates(x, indices=[0], intermediates_only=True)
    assert torch.equal(features(x)[0], expected[0])
    assert "state_dict" not in features.pretrained_cfg


def test_features_only_checkpoints_gradients():
    model, x = timm.create_model("softcam_test_resnet", features_only=True).train(), images()
    gradients = []
    for enable in (False, True):
        model.zero_grad()
        model.set_grad_checkpointing(enable)
        sum(feature.square().mean() for feature in model(x)).backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


@torch.no_grad()
def test_early_indices_of_a_hiera_leave_the_features_whole():
    model, x = timm.create_model("softcam_hiera_tiny_224", num_classes=5, **TINY_HIERA).eval(), images()
    final, intermediates = model.forward_intermediates(x, indices=[0, 1])
    assert len(intermediates) == 2
    torch.testing.assert_close(final, model.forward_features(x))
    ours = softcam_hub.SoftCAMForImageClassification.from_timm(model).eval()
    torch.testing.assert_close(ours(x, output_hidden_states=[0]).logits, model(x))


def test_hiera_takes_indices():
    """Its `forward_intermediates` has a mask before the indices."""
    model, x = timm.create_model("softcam_hiera_tiny_224", num_classes=5, **TINY_HIERA).eval(), images()
    final, chosen = model.forward_intermediates(x, indices=[1, 3])
    assert [feature.shape[2:] for feature in chosen] == [(8, 8), (2, 2)]
    assert torch.equal(final, model.forward_features(x))
    features = timm.create_model("softcam_hiera_tiny_224", features_only=True, out_indices=(1, 3), **TINY_HIERA)
    assert len(features(x)) == 2


@every_family
@every_traced
def test_features_without_pool(family, backbone):
    model, x = make(family, backbone, num_classes=0, global_pool=""), images()
    assert torch.equal(model(x), model.forward_features(x))
    assert torch.equal(model.forward_head(model.forward_features(x), pre_logits=True), model(x))
    model.reset_classifier(0, "avg")
    assert relative_error(model(x), model.forward_features(x).mean(dim=(2, 3))) < 1e-6
    model.reset_classifier(0, "")
    assert model(x).ndim == 4
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    model.reset_classifier(0)
    assert model(x).ndim == 2


@pytest.mark.parametrize("error", [ValueError, AssertionError])
@pytest.mark.parametrize(("pool", "classes"), [("max", 0), ("catavgmax", 5), ("", 5), ("token", 0)])
def test_an_unsupported_pool_raises_our_error_and_timms(error, pool, classes):
    with pytest.raises(error, match="is not possible: evidence is averaged into logits, expected 'avg'"):
        make("softcam", num_classes=classes, global_pool=pool)
    with pytest.raises(error, match="is not possible: evidence is averaged into logits, expected 'avg'"):
        make("softcam").reset_classifier(classes, pool)


@pytest.mark.parametrize("method", ["set_input_size", "init_weights"])
@pytest.mark.parametrize("architecture", ["test_resnet", "test_vit", "swin_tiny_patch4_window7_224", "iformer_t"])
def test_a_method_is_there_where_the_backbone_has_it(method, architecture):
    with torch.device("meta"):
        ours, vanilla = timm.create_model(f"softcam_{architecture}"), timm.create_model(architecture)
    assert hasattr(ours, method) == hasattr(vanilla, method)


@every_family
def test_init_weights_after_to_empty(family):
    args = {"dims": (16, 24, 32, 48), "depths": (1, 1, 3, 3), "attn_groups": (0, 0, 1, 1), "num_classes": 5}
    model = timm.create_model(f"{family}_iformer_t", device="meta", **args).to_empty(device="cpu").eval()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(float("nan") if tensor.is_floating_point() else 0)
    model.init_weights()
    assert model(images()).isfinite().all()


def test_a_new_head_has_no_names_of_the_old_classes():
    model = timm.create_model(f"local-dir:{softcam_hub.CAPE_LESIONS}", pretrained=True)
    assert "exudate" in model.labels
    model.reset_classifier(4)
    assert model.labels == ("0", "1", "2", "3")
    assert softcam_hub.CAPEForImageClassification.from_timm(model).config.id2label[0] == "LABEL_0"


def test_features_have_no_prefix_tokens():
    assert make("softcam", "patches and a class token").num_prefix_tokens == 0


@every_family
@every_traced
def test_symbolic_trace(family, backbone):
    model, x = make(family, backbone), images()
    traced = fx.symbolic_trace(model)
    assert torch.equal(traced(x), model(x))
    other = images(batch=3)
    assert torch.equal(traced(other), model(other))


def test_symbolic_trace_of_the_naive_variant():
    model, x = make("cape", naive=True), images()
    assert torch.equal(fx.symbolic_trace(model)(x), model(x))


@every_family
def test_feature_extractor_of_torchvision(family):
    model, x = make(family), images()
    found = create_feature_extractor(model, {"backbone.layer1": "early", "head": "logits"})(x)
    assert torch.equal(found["early"], model.forward_intermediates(x, [1], intermediates_only=True)[0])


@every_family
@every_traced
def test_script(family, backbone, tmp_path):
    with set_scriptable(True):
        model = make(family, backbone)
    x = images()
    scripted = torch.jit.script(model)
    torch.jit.save(scripted, tmp_path / "model.pt")
    assert relative_error(torch.jit.load(tmp_path / "model.pt")(x), model(x)) < 1e-6


@pytest.mark.parametrize("index", [0, 1, 2])
def test_pruned_blocks_leave_their_width(index):
    model, x = timm.create_model("softcam_test_efficientnet", num_classes=5).eval(), images()
    model.prune_intermediate_layers([index], extra_blocks=True)
    model.reset_classifier(7, "avg")
    features = model.forward_features(x)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.num_features)
    assert features.shape[1] == model.num_features
    assert model(x).shape == (2, 7)


def test_pruning_without_the_head_keeps_the_prediction():
    model, x = make("softcam", "convnext"), images()
    expected = model(x)
    model.prune_intermediate_layers([len(model.feature_info) - 1], prune_head=False)
    assert torch.equal(model(x), expected)


def test_class_tokens_that_pruning_removes_are_not_looked_for():
    """CaiT puts its class token behind the patches' layers, which are all that is left."""
    model = timm.create_model("softcam_cait_xxs24_224", img_size=64, embed_dim=48, depth=2, num_heads=2).eval()
    model.prune_intermediate_layers([0])
    assert model.forward_features(images()).shape == (2, 48, 4, 4)


def test_a_patch_size_that_does_not_divide_the_default_image():
    """The architecture is examined with an image of its default size, 546 pixels here, in whole patches."""
    model = timm.create_model(
        "softcam_deepseek_vit_412m", num_classes=5, embed_dim=32, depth=1, num_heads=2, patch_size=8, out_features=48
    ).eval()
    assert model.forward_features(images()).shape[2:] == (8, 8)


def test_the_checkpoint_filter_is_where_timm_looks_for_it():
    small, large = (timm.create_model("softcam_test_vit", num_classes=5, img_size=size) for size in (64, 96))
    weights = classifier.checkpoint_filter_fn(randomise(small).state_dict(), large)
    large.load_state_dict(weights)
    assert torch.equal(large.head.weight, small.head.weight)


def test_patch_dictionaries_are_refused_with_a_sentence():
    args = {"embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 5}
    model = timm.create_model("softcam_naflexvit_base_patch16_gap", **args)
    patches = {"patches": torch.randn(1, 4, 768), "patch_coord": torch.zeros(1, 4, 2, dtype=torch.long)}
    with pytest.raises(TypeError, match=r"got dict: .*NaFlex"):
        model(patches)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_features_of_a_pruned_hiera_lie_where_its_intermediate_features_lie(index):
    model = timm.create_model("softcam_hiera_tiny_224", embed_dim=16, num_heads=1, stages=(1, 1, 1, 1)).eval()
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = model.forward_intermediates(images, indices=[index], intermediates_only=True)[0]
        model.prune_intermediate_layers([index], prune_norm=True)
        torch.testing.assert_close(model.forward_features(images), expected)


@pytest.mark.parametrize(
    ("architecture", "size"),
    [("vit_tiny_patch16_224", (3, 224, 224)), ("deepseek_vit_412m", (3, 544, 544))],  # one size only, and any
)
def test_the_default_size_fits_another_patch_size(architecture, size):
    model = timm.create_model(
        f"softcam_{architecture}", patch_size=10 if size[1] == 224 else 8, embed_dim=32, depth=2, num_heads=2
    )
    assert model.input_size == size
    model.prune_intermediate_layers([0])
    assert model.num_features == 32
