"""Evidence of several depths: packed features against slow transcriptions, which features, exactness and weights."""

import copy
import re

import pytest
import timm
import torch
from conftest import randomise, relative_error
from helpers.scales import FAMILIES, MODELS, images, make

import softcam_hub
from softcam_hub.models.anatomy import examine
from softcam_hub.models.heads import CAPEHead, SoftCAMHead, select
from softcam_hub.models.scales import FinerFeatures, NoFinerFeatures, find_finer, fit, pack, unpack

# --- the mathematics -------------------------------------------------------------------------------------------------


def slow_evidence(head, model, x):
    """`M' = up(W·F + b) + up(W2·N(F2)) + W4·N(F4)`, cell by cell, from timm's own intermediate features."""
    last, hidden = model.backbone(x, method="forward_intermediates", stop_early=False)
    last = model.anatomy.localise(model.backbone, last, x.shape[-2:])
    rows, columns = (head.finer[-1].ratio * side for side in last.shape[2:])
    evidence = torch.zeros(len(x), head.num_classes, rows, columns)
    begin = 0
    for ratio, values, weight in [
        (1, last, head.weight),
        *((one.ratio, hidden[one.index], None) for one in head.finer),
    ]:
        if weight is None:
            weight = head.fine_weight[:, begin : begin + values.shape[1]]
            begin += values.shape[1]
            values = torch.stack([each / (each.square().mean() + 1e-6).sqrt() for each in values])
        cell = head.finer[-1].ratio // ratio
        for row in range(rows):
            for column in range(columns):
                place = (min(row // cell, values.shape[2] - 1), min(column // cell, values.shape[3] - 1))
                evidence[:, :, row, column] += values[:, :, place[0], place[1]] @ weight.T
    return evidence + head.bias[:, None, None]


@pytest.mark.parametrize("size", [(64, 96), (72, 104), (100, 72)])
@pytest.mark.parametrize("architecture", ["test_resnet", "test_efficientnet", "test_convnext"])
@torch.no_grad()
def test_evidence_is_that_of_a_slow_transcription(architecture, size):
    model, x = make(architecture=architecture), images(*size)
    _, evidence = model.head(model.forward_features(x), kind="evidence")
    assert relative_error(evidence, slow_evidence(model.head, model, x)) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("training", [False, True])
@torch.no_grad()
def test_maps_make_up_the_prediction(family, training):
    model, x = make(family).train(training), images()
    features = model.forward_features(x)
    logits, maps = model.head(features, kind=family)
    assert maps.shape == (2, 5, 8, 12)
    assert relative_error(model.head(features), logits) < 1e-5
    if family == "cape":
        torch.testing.assert_close(maps.sum(dim=(2, 3)), logits.softmax(dim=1))
    else:
        torch.testing.assert_close(maps.mean(dim=(2, 3)), logits)


@torch.no_grad()
def test_cape_on_the_fine_grid_by_hand():
    model, x = make("cape"), images()
    model.head.log_temperature.fill_(0.3)
    features = model.forward_features(x)
    evidence = model.head.evidence(features) / model.head.log_temperature.exp()
    saliency = evidence.mean(dim=1).flatten(1).softmax(dim=1).view(2, 1, 8, 12)
    torch.testing.assert_close(model.head.maps(features), evidence.softmax(dim=1) * saliency)


@pytest.mark.parametrize("kind", ["softcam", "cam", "evidence"])
@torch.no_grad()
def test_maps_of_single_classes_are_those_of_all(kind):
    model, x = make(), images()
    features, classes = model.forward_features(x), torch.tensor([[3, 1], [0, 3]])
    logits, maps = model.head(features, kind=kind)
    some_logits, some = model.head(features, kind=kind, classes=classes)
    torch.testing.assert_close(some, select(maps, classes), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(some_logits, logits.gather(1, classes), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_terms_of_all_depths_add_up():
    model, x = make(), images()
    features = model.forward_features(x)
    terms = model.head.terms(features)
    assert [tuple(term.shape[2:]) for term in terms] == [(2, 3), (4, 6), (8, 12)]
    enlarged = [
        term.repeat_interleave(8 // term.shape[2], 2).repeat_interleave(8 // term.shape[2], 3) for term in terms
    ]
    torch.testing.assert_close(sum(enlarged), model.head.evidence(features))
    assert all(term.abs().mean() > 0.01 for term in terms)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_an_explanation_is_divided_by_depth(family):
    model, x = make(family), images()
    explanation = model.explain(x, classes=[[3, 1], [0, 3]])
    parts = explanation.by_scale()
    assert {stride: tuple(part.shape[1:]) for stride, part in parts.items()} == {
        32: (2, 2, 3),
        16: (2, 4, 6),
        8: (2, 8, 12),
    }
    enlarged = [
        part.repeat_interleave(stride // 8, 2).repeat_interleave(stride // 8, 3) for stride, part in parts.items()
    ]
    evidence = select(model.head.evidence(model.forward_features(x)), explanation.classes)
    torch.testing.assert_close(sum(enlarged), evidence, atol=1e-5, rtol=1e-5)
    second = explanation[1].to(torch.float64).by_scale()
    assert {stride: tuple(part.shape) for stride, part in second.items()} == {
        32: (1, 2, 2, 3),
        16: (1, 2, 4, 6),
        8: (1, 2, 8, 12),
    }
    torch.testing.assert_close(second[8][0], parts[8][1].double())
    mirror = explanation.mirrored().by_scale()
    assert all(torch.equal(mirror[stride], part.flip(-1)) for stride, part in parts.items())
    assert [*model.explain(images(100, 72)).by_scale()] == [32, 16, 8], "strides do not depend on the size"
    with pytest.raises(ValueError, match="these maps are not divided by depth"):
        softcam_hub.build(f"{family}_test_resnet").explain(x).by_scale()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_figure_shows_the_evidence_and_its_parts(family):
    explanation = make(family).explain(images(), classes=[[3, 1], [0, 3]])
    figure = explanation.plot(by_scale=True)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[0::6] == ["image 0", "image 1"]
    assert titles[1].startswith("3\n"), "the first class of the first image"
    parts = [titles[column] for column in (2, 3, 4)]
    assert [part.split("\n")[0] for part in parts] == ["stride 32", "stride 16", "stride 8"]
    shares = [float(re.search(r"([\d.]+)\s*%", part)[1]) for part in parts]
    sizes = [term[0, 0].abs().mean() for term in explanation.terms.values()]
    assert shares == pytest.approx([100 * float(size / sum(sizes)) for size in sizes], abs=0.6)
    assert "what each depth of the network adds" in figure.get_supxlabel()


def test_packed_features_hold_every_number_once():
    finer = (FinerFeatures(1, 3, 2), FinerFeatures(0, 2, 4))
    last, hidden = torch.randn(2, 5, 3, 2), [torch.randn(2, 2, 12, 8), torch.randn(2, 3, 6, 4)]
    packed = pack(last, dict(enumerate(hidden)), finer)
    assert packed.shape == (2, 5 + 3 * 4 + 2 * 16, 3, 2)
    first, second, third = unpack(packed, 5, finer)
    assert torch.equal(first, last)
    for values, source, ratio in ((second, hidden[1], 2), (third, hidden[0], 4)):
        assert values.shape == (2, source.shape[1], ratio * ratio * 3, 2)
        found = values.flatten(1).sort(dim=1).values
        scaled = torch.stack([one / (one.square().mean() + 1e-6).sqrt() for one in source])
        torch.testing.assert_close(found, scaled.flatten(1).sort(dim=1).values)


@torch.no_grad()
def test_features_that_are_not_packed_are_refused():
    model, x = make(), images()
    with pytest.raises(ValueError, match=r"reads packed features with 1632 channels, .*got 96"):
        model.head(model.last_features(model.forward_features(x)))
    final, hidden = model.forward_intermediates(x, indices=[1], output_fmt="NCHW")
    torch.testing.assert_close(model.forward_head(final), model(x))
    assert len(hidden) == 1
    assert len(model.forward_intermediates(x, indices=[0, 1], intermediates_only=True)) == 2


def test_large_numbers_in_half_precision_do_not_overflow():
    finer = (FinerFeatures(0, 2, 2),)
    packed = pack(torch.zeros(1, 1, 2, 2).half(), {0: 300 * torch.ones(1, 2, 4, 4).half()}, finer)
    assert packed.dtype == torch.float16
    torch.testing.assert_close(packed[:, 1:], torch.ones(1, 8, 2, 2).half())


def test_features_are_cut_and_repeated_at_their_end():
    values = torch.arange(12.0).view(1, 1, 3, 4)
    assert fit(values, 3, 4) is values
    assert fit(values, 4, 2)[0, 0].tolist() == [[0, 1], [4, 5], [8, 9], [8, 9]]


def test_gradients_reach_every_depth():
    model, x = make().train(), images()
    model(x).square().sum().backward()
    for index, one in enumerate(model.anatomy.finer):
        begin = sum(each.channels for each in model.anatomy.finer[:index])
        assert model.head.fine_weight.grad[:, begin : begin + one.channels].abs().max() > 0
    assert all(weight.grad is not None for weight in model.parameters())


@torch.no_grad()
def test_dropout_drops_channels_of_the_last_features_alone():
    model = make(drop_rate=0.5).train()
    features = torch.ones_like(model.forward_features(images()))
    dropped = model.drop_features(features)
    channels = model.anatomy.channels
    assert set(dropped[:, :channels].flatten().tolist()) == {0.0, 2.0}
    assert torch.equal(dropped[:, channels:], features[:, channels:])


# --- which features --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("resnet50", [(3, 1024, 2), (2, 512, 4)]),
        ("efficientnet_b1", [(3, 112, 2), (2, 40, 4)]),  # 8x8, 15x15 and 30x30 cells of 240 px
        ("inception_v3", [(3, 768, 2), (2, 288, 4)]),  # 8x8, 17x17 and 35x35 cells of 299 px
        ("swin_tiny_patch4_window7_224", [(2, 384, 2), (1, 192, 4)]),
        ("hiera_tiny_224", [(2, 384, 2), (1, 192, 4)]),
        ("vgg16", [(4, 512, 2), (3, 512, 4)]),
        ("densenet121", [(3, 1024, 2), (2, 512, 4)]),
        ("hrnet_w18_small", [(3, 512, 2), (2, 256, 4)]),
    ],
)
def test_the_deepest_features_of_each_ratio_are_read(architecture, expected):
    found = examine(architecture, scales=3).finer
    assert [(one.index, one.channels, one.ratio) for one in found] == expected


def test_a_dilated_network_has_finer_features_still():
    model = make(scales=2, output_stride=8)
    assert model.anatomy.finer[0].ratio == 2
    assert model.explain(images()).maps.shape[2:] == (16, 24)


def test_features_that_are_missing_are_named():
    maps = [torch.empty(1, 4, 28, 28), torch.empty(1, 8, 14, 14)]
    assert find_finer(maps, (7, 7), 3) == (FinerFeatures(1, 8, 2), FinerFeatures(0, 4, 4))
    with pytest.raises(NoFinerFeatures, match=r"intermediate ones \(28x28, 14x14\) never have 8 times.*at most 3"):
        find_finer(maps, (7, 7), 4)
    with pytest.raises(NoFinerFeatures, match=r"intermediate ones \(none\) never have 2 times"):
        find_finer([], (7, 7), 2)


def test_a_vision_transformer_has_one_scale():
    with pytest.raises(
        NoFinerFeatures, match=r"softcam_test_vit2 with scales=2 is not possible: .*\(10x10\).*at most 1"
    ):
        softcam_hub.build("softcam_test_vit2", scales=2)


@pytest.mark.parametrize("scales", [0, -1, 6, True, "3", 2.0])
def test_impossible_numbers_of_scales_are_refused(scales):
    with pytest.raises(ValueError, match="scales must be a whole number from 1 to 5, got"):
        timm.create_model("softcam_test_resnet", scales=scales)


# --- exactness and weights -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_model_begins_as_the_one_without_finer_features(family):
    one = randomise(softcam_hub.build(f"{family}_test_resnet", num_classes=5)).eval()
    several = softcam_hub.build(f"{family}_test_resnet", num_classes=5, scales=3).eval()
    several.load_state_dict(one.state_dict())
    x = images()
    assert several.exact
    assert not several.reads_finer
    assert relative_error(several(x), one(x)) < 1e-6
    coarse = one.head(one.forward_features(x), kind="evidence")[1]
    fine = several.head(several.forward_features(x), kind="evidence")[1]
    torch.testing.assert_close(fine, coarse.repeat_interleave(4, 2).repeat_interleave(4, 3), atol=1e-5, rtol=1e-5)
    several.head.fine_weight[0, 0] = 1e-3
    assert not several.exact
    assert "3 scales, maps 20x20 of images 160x160" in repr(several)


@torch.no_grad()
def test_a_vanilla_classifier_comes_out_unless_finer_features_have_learnt():
    vanilla = randomise(timm.create_model("test_resnet", num_classes=5)).eval()
    model, x = softcam_hub.convert(vanilla, scales=3), images()
    assert relative_error(model(x), vanilla(x)) < 1e-5
    assert relative_error(softcam_hub.to_vanilla(model)(x), vanilla(x)) < 1e-5
    model.head.fine_weight.normal_()
    with pytest.raises(ValueError, match=r"has learnt from finer features \(scales=3\)"):
        softcam_hub.to_vanilla(model)
    model.load_state_dict(vanilla.state_dict())  # finer features have no say any more
    assert relative_error(model(x), vanilla(x)) < 1e-5


@torch.no_grad()
def test_weights_of_the_backbone_alone_leave_finer_features_as_they_are():
    model = make()
    before = model.head.fine_weight.clone()
    backbone = {name: value for name, value in model.state_dict().items() if name.startswith("backbone.")}
    model.load_state_dict(backbone, strict=False)
    head = {name: value for name, value in model.state_dict().items() if name in ("head.weight", "head.bias")}
    model.load_state_dict(head, strict=False)
    assert torch.equal(model.head.fine_weight, before)
    lacking = {name: value for name, value in model.state_dict().items() if name != "head.bias"}
    with pytest.raises(RuntimeError, match="head.bias"):
        model.load_state_dict(lacking)


def test_other_classes_begin_with_a_fresh_head(tmp_path):
    MODELS["cape"].from_timm(make("cape")).save_pretrained(tmp_path)
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=3).eval()
    assert model.head.fine_weight.shape[0] == 3
    assert not model.head.fine_weight.any()
    assert model(images()).shape == (2, 3)
    with pytest.raises(ValueError, match="this checkpoint reads finer features"):
        MODELS["cape"].from_pretrained(tmp_path, model_args={"scales": 1})


@torch.no_grad()
def test_offloaded_models_are_explained(tmp_path):
    from accelerate import cpu_offload

    for family in FAMILIES:
        model, x = make(family), images()
        expected = model.explain(x)
        offloaded = cpu_offload(copy.deepcopy(model), execution_device=torch.device("cpu"))
        found = offloaded.explain(x)
        torch.testing.assert_close(found.maps, expected.maps)
        assert all(torch.allclose(term, expected.terms[stride]) for stride, term in found.by_scale().items())
        assert not offloaded.exact


def test_a_new_head_reads_finer_features():
    model = make()
    model.reset_classifier(3)
    assert model.head.fine_weight.shape == (3, sum(one.channels for one in model.anatomy.finer))
    assert not model.head.fine_weight.any()
    model.reset_classifier(0)
    assert model(images()).shape == (2, model.num_features)
    model.reset_classifier(2)
    assert model.explain(images()).maps.shape == (2, 1, 8, 12)


def test_a_pruned_backbone_with_its_head_is_refused():
    model = make()
    model.prune_intermediate_layers([1], prune_head=False)
    with pytest.raises(ValueError, match="cells beside .* of the last ones, expected 2 times as many"):
        model.forward_features(images())


def test_a_pruned_backbone_has_lost_what_finer_features_were_of():
    model = make()
    model.prune_intermediate_layers([2])
    model.reset_classifier(4)
    assert model(images()).shape == (2, 4)
    assert not model.head.finer


class OwnEvidence(SoftCAMHead):
    def evidence(self, features):
        return super().evidence(2 * features)


class OwnSum(CAPEHead):
    def compose(self, evidence):
        return evidence.amax(dim=(2, 3))


def test_a_head_with_evidence_of_its_own_says_whether_it_reads_several_depths():
    assert OwnSum.reads_scales
    finer = (FinerFeatures(0, 2, 2),)
    with pytest.raises(ValueError, match="scales=2 is not possible: OwnEvidence computes evidence in its own way"):
        OwnEvidence(4, 3).read_finer(finer)
    OwnSum(4, 3).read_finer(finer)


@torch.no_grad()
def test_post_fitting_reads_several_depths():
    vanilla = randomise(timm.create_model("test_resnet", num_classes=5)).eval()
    model = softcam_hub.convert(vanilla, "cape", scales=2)
    result = softcam_hub.post_fit(model, torch.randn(24, 3, 64, 64), epochs=20, hold_out=0.0)
    assert result.divergence < result.divergence_before
    assert model.reads_finer
    softcam_hub.post_fit(model, torch.randn(24, 3, 64, 64), teacher=vanilla, epochs=2, hold_out=0.0)  # once more
