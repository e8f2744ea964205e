"""Every timm family that admits exact evidence: SoftCAM is the vanilla model, and CAPE's maps are its prediction.

The vanilla weights are random in every parameter, and go through the loading path that pretrained weights take. Logits
that depend on no image would hide a fault of the head, so that every member is checked for that too. A family is a timm
module together with the way its heads read the features.
"""

import pytest
import timm
import torch
from conftest import relative_error
from helpers.random_weights import check_dependence, make_vanilla
from timm.models import _registry

import softcam_hub
from softcam_hub.architectures import EXACT, architectures

MEMBERS = """
beit.norm: beit_base_patch16_224
byoanet.linear: halonet_h1
byobnet.gated: resnet50_mlp resnet50_clip
byobnet.linear: test_byobnet repvgg_a0 mobileone_s0
convmixer.linear: convmixer_1024_20_ks9_p14
convnext.gated: convnext_large_mlp
convnext.linear: convnext_tiny_hnf
convnext.norm: test_convnext convnext_atto_rms convnext_zepto_rms convnextv2_atto
cpubone.gated: cpubone_nano
csatv2.norm: csatv2
cspnet.linear: cs3darknet_focus_s
cspnext.linear: cspnext_tiny
davit.norm: davit_tiny
deepseek_vit.norm: deepseek_vit_412m
densenet.linear: densenet121
dla.linear: dla46x_c
dpn.linear: dpn48b
edgenext.norm: edgenext_xx_small
efficientformer.affine: efficientformer_l1
efficientformer_v2.affine: efficientformerv2_s0
efficientnet.linear: test_efficientnet mobilenetv2_050 tf_efficientnet_lite0 mixnet_s
efficientvit_mit.gated: efficientvit_b0 efficientvit_l1
efficientvit_msra.affine: efficientvit_m0
eva.linear: vit_tiny_patch16_dinov3_qkvb
eva.norm: eva02_tiny_patch14_224
fasternet.gated: fasternet_t0
fastvit.linear: fastvit_t8
focalnet.linear: focalnet_tiny_srf
gcvit.linear: gcvit_xxtiny
gemma4_vit.norm: gemma4_vit_167m
ghostnet.gated: ghostnet_050 ghostnetv2_100 ghostnetv3_050
hardcorenas.gated: hardcorenas_b
hgnet.gated: hgnetv2_b0 hgnet_tiny
hiera.norm: hiera_tiny_224
hieradet_sam2.norm: sam2_hiera_tiny
hrnet.linear: hrnet_w18_small
iformer.affine: iformer_t
inception_next.gated: inception_next_atto
inception_v3.linear: inception_v3
lcnetv2.gated: lcnetv2_small
levit.affine: levit_128s levit_conv_128s
lowformer.gated: lowformer_b0
mambaout.gated: test_mambaout
maxxvit.gated: coatnet_0_224 maxvit_tiny_tf_224
maxxvit.linear: test_coatnet
metaformer.gated: caformer_s18
metaformer.norm: poolformerv2_s12 poolformer_s12
mlp_mixer.linear: gmlp_ti16_224 resmlp_12_224
mobilenetv3.gated: mobilenetv3_small_050 lcnet_035 mobilenetv4_conv_small_035 fbnetv3_b
mobilenetv5.linear: mobilenetv5_base
mobilevit.linear: mobilevit_xxs mobilevitv2_050
mvitv2.linear: mvitv2_tiny
naflexvit.norm: naflexvit_base_patch16_gap
nasnet.linear: nasnetalarge
nest.linear: nest_tiny
nextvit.linear: nextvit_small
nfnet.linear: test_nfnet
pvt_v2.linear: pvt_v2_b0
qwen3_vit.norm: qwen3_vit_88m
rdnet.norm: rdnet_tiny
regnet.linear: regnetx_002 regnety_002
repghost.gated: repghostnet_050
repvit.affine: repvit_m1 repvit_m0_9
res2net.linear: res2next50
resnest.linear: resnest14d
resnet.linear: test_resnet resnet18 resnetblur50
resnetv2.linear: resnetv2_18
rexnet.linear: rexnet_100
selecsls.linear: selecsls42
senet.linear: legacy_seresnet18
sequencer.linear: sequencer2d_s
shvit.affine: shvit_s1
sknet.linear: skresnet18
starnet.linear: starnet_s050
swiftformer.affine: swiftformer_xs
swin_transformer.linear: swin_tiny_patch4_window7_224
swin_transformer_v2.linear: swinv2_tiny_window8_256
swin_transformer_v2_cr.linear: swinv2_cr_tiny_224
tiny_vit.norm: tiny_vit_5m_224
tresnet.linear: tresnet_m
twins.linear: twins_svt_small
visformer.linear: visformer_tiny
vision_transformer.linear: aimv2_large_patch14_224
vision_transformer.norm: test_vit2 test_vit4
vision_transformer_relpos.linear: vit_srelpos_small_patch16_224
vision_transformer_relpos.norm: test_vit_relpos
vision_transformer_sam.linear: samvit_base_patch16
vitamin.norm: vitamin_small_224
vovnet.linear: ese_vovnet19b_slim_dw
xception.linear: legacy_xception
xception_aligned.linear: xception41p
"""

SMALL_TRANSFORMER = {"depth": 1, "embed_dim": 64, "num_heads": 2}
REDUCED = {
    **dict.fromkeys(("aimv2_large_patch14_224", "beit_base_patch16_224", "gemma4_vit_167m"), SMALL_TRANSFORMER),
    **dict.fromkeys(("naflexvit_base_patch16_gap", "qwen3_vit_88m"), SMALL_TRANSFORMER),
    "convnext_large_mlp": {"depths": 4 * (1,), "dims": (16, 32, 64, 128), "head_hidden_size": 32},
    "deepseek_vit_412m": {**SMALL_TRANSFORMER, "patch_size": 16},
    "efficientvit_l1": {"widths": (8, 16, 32, 64, 128), "depths": 5 * (1,), "head_dim": 16, "head_widths": (128, 96)},
    "maxvit_tiny_tf_224": {"embed_dim": (32, 32, 64, 64), "depths": 4 * (1,), "stem_width": 16, "head_hidden_size": 64},
    "mobilenetv5_base": {"channel_multiplier": 0.125},
    "nasnetalarge": {"num_features": 384},
    "nextvit_small": {"depths": (1, 1, 5, 1), "stem_chs": (16, 8, 16)},
    "samvit_base_patch16": {**SMALL_TRANSFORMER, "img_size": 64},
    "tresnet_m": {"width_factor": 0.25},
}
"""Arguments that make a large member small. They leave the kind of its head as it is, which the test checks."""

ABOVE_30M = "inception_resnet_v2.linear inception_v4.linear pnasnet.linear"
"""Families that no argument brings below 30 million parameters; `tools/probe_timm.py` has examined their heads."""

COVERED = dict(line.split(": ") for line in MEMBERS.strip().splitlines())

SLOW = """
sequencer2d_s halonet_h1 swinv2_tiny_window8_256 efficientvit_m0 swin_tiny_patch4_window7_224 mvitv2_tiny davit_tiny
mobileone_s0 swinv2_cr_tiny_224 densenet121 repvit_m1 resnet50_mlp resnet50_clip coatnet_0_224 caformer_s18 hgnet_tiny
lowformer_b0 vitamin_small_224 twins_svt_small hiera_tiny_224 ghostnetv3_050 focalnet_tiny_srf nest_tiny
convnext_tiny_hnf vit_srelpos_small_patch16_224 inception_v3 sam2_hiera_tiny rdnet_tiny xception41p legacy_xception
convmixer_1024_20_ks9_p14 csatv2 resnetblur50 hrnet_w18_small res2next50 repvit_m0_9 convnextv2_atto tiny_vit_5m_224
vit_tiny_patch16_dinov3_qkvb mixnet_s iformer_t eva02_tiny_patch14_224 gcvit_xxtiny repvgg_a0 resmlp_12_224
efficientformer_l1 gmlp_ti16_224 visformer_tiny swiftformer_xs test_vit_relpos
fbnetv3_b ghostnetv2_100 maxvit_tiny_tf_224 mobilenetv5_base nasnetalarge nextvit_small selecsls42 tresnet_m
"""
"""Members that take more than a second."""


def family_of(architecture: str) -> str:
    return f"{_registry._model_to_module[architecture]}.{architectures()[architecture]}"


def test_no_family_is_missing():
    exact = {family_of(name) for name, kind in architectures().items() if kind in EXACT}
    untested = set(ABOVE_30M.split())
    assert exact == COVERED.keys() | untested
    assert not COVERED.keys() & untested


def members():
    """Return all members, the slow ones marked."""
    slow = SLOW.split()
    names = " ".join(COVERED.values()).split()
    return [pytest.param(name, marks=pytest.mark.slow) if name in slow else name for name in names]


@pytest.mark.parametrize("architecture", members())
def test_exact(architecture):
    assert architecture in COVERED[family_of(architecture)].split()
    arguments = REDUCED.get(architecture, {})
    vanilla, images = make_vanilla(architecture, classes=7, **arguments)
    source = {"state_dict": vanilla.state_dict(), "num_classes": 7}
    softcam, cape = (
        timm.create_model(
            f"{family}_{architecture}", pretrained=True, num_classes=7, pretrained_cfg_overlay=source, **arguments
        ).eval()
        for family in ("softcam", "cape")
    )
    assert softcam.anatomy.head_type == architectures()[architecture], "arguments leave the kind of the head alone"
    with torch.no_grad():
        expected, features = vanilla(images), softcam.forward_features(images)
        logits = softcam.forward_head(features)
        composed, evidence = softcam.head(features, kind="softcam")
        log_p, parts = cape.head(features, kind="cape")
    assert expected.isfinite().all()
    check_dependence(expected, evidence)
    assert relative_error(logits, expected) < 1e-5
    assert relative_error(composed, expected) < 1e-5
    assert relative_error(evidence.mean(dim=(2, 3)), logits) < 1e-5
    assert (parts.sum(dim=(2, 3)) - log_p.softmax(dim=1)).abs().max() < 1e-6
    weights = softcam.state_dict()
    others = {name: tensor for name, tensor in cape.state_dict().items() if name != "head.log_temperature"}
    assert weights.keys() == others.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in others.items())


SEVERAL_SCALES = """
test_byobnet convnext_large_mlp test_convnext cpubone_nano cs3darknet_focus_s cspnext_tiny dla46x_c dpn48b
edgenext_xx_small efficientformerv2_s0 test_efficientnet efficientvit_b0 fasternet_t0 fastvit_t8 ghostnet_050
hgnetv2_b0 hiera_tiny_224 inception_next_atto inception_v3 levit_128s test_mambaout test_coatnet poolformerv2_s12
mobilenetv3_small_050 mobilevit_xxs test_nfnet pvt_v2_b0 regnetx_002 repghostnet_050 test_resnet resnetv2_18
rexnet_100 shvit_s1 starnet_s050 swin_tiny_patch4_window7_224 ese_vovnet19b_slim_dw
"""
"""Members of families with features at three depths; `inception_v3` and `levit_128s` have sizes that do not divide."""


@pytest.mark.slow
@pytest.mark.parametrize("architecture", SEVERAL_SCALES.split())
@torch.no_grad()
def test_several_scales_begin_exact_and_stay_complete(architecture):
    arguments = REDUCED.get(architecture, {})
    vanilla, images = make_vanilla(architecture, classes=7, **arguments)
    expected = vanilla(images)
    for family in ("softcam", "cape"):
        model = softcam_hub.build(f"{family}_{architecture}", num_classes=7, scales=3, **arguments).eval()
        model.load_state_dict(vanilla.state_dict())
        features = model.forward_features(images)
        if family == "softcam":
            assert relative_error(model.head(features), expected) < 1e-5
        model.head.fine_weight.normal_(std=0.1)
        logits, maps = model.head(features, kind=family)
        assert relative_error(model.head(features), logits) < 1e-5
        last = model.last_features(features)
        assert maps.shape[2:] == (4 * last.shape[2], 4 * last.shape[3])
        if family == "softcam":
            assert relative_error(maps.mean(dim=(2, 3)), logits) < 1e-5
        else:
            assert (maps.sum(dim=(2, 3)) - logits.softmax(dim=1)).abs().max() < 1e-6


def test_several_scales_begin_exact_in_many_families():
    assert len({family_of(architecture) for architecture in SEVERAL_SCALES.split()}) >= 25
