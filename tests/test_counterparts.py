"""Classifiers of transformers and torchvision, converted through the timm architecture that computes the same."""

import copy
import warnings

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, create_transform, resolve_data_config
from timm.models import save_for_hf
from torch import nn
from torchvision import models as tv
from torchvision.models.resnet import BasicBlock
from torchvision.transforms._presets import ImageClassification
from transformers import (
    AutoModelForImageClassification,
    BitImageProcessor,
    ConvNextImageProcessor,
    DeiTImageProcessor,
    EfficientNetImageProcessor,
    MobileViTImageProcessor,
    ViTImageProcessor,
)

import softcam_hub
from softcam_hub import SoftCAMForImageClassification
from softcam_hub.loading import load_classifier
from softcam_hub.models import counterparts
from softcam_hub.models.layer_pairs import pair, translate
from softcam_hub.models.other_preprocessing import read_preprocessing

LABELS = {0: "scratch", 1: "inclusion", 2: "crack"}


def hugging_face(name, **settings):
    config = getattr(transformers, f"{name}Config")(id2label=LABELS, **settings)
    return getattr(transformers, f"{name}ForImageClassification")(config)


SMALL = {
    "torchvision ResNet": (lambda: tv.resnet18(num_classes=3), "resnet18"),
    "torchvision MobileNetV3": (lambda: tv.mobilenet_v3_small(num_classes=3), "mobilenetv3_small_100"),
    "transformers ResNet": (
        lambda: hugging_face("ResNet", depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], layer_type="basic"),
        "resnet18",
    ),
    "transformers ConvNeXt V2": (
        lambda: hugging_face("ConvNextV2", depths=[2, 2, 6, 2], hidden_sizes=[40, 80, 160, 320]),
        "convnextv2_atto",
    ),
}
LARGE = {
    "torchvision ResNeXt": (lambda: tv.resnext50_32x4d(num_classes=3), "resnext50_32x4d"),
    "torchvision RegNetX": (lambda: tv.regnet_x_400mf(num_classes=3), "regnetx_004_tv"),
    "torchvision RegNetY": (lambda: tv.regnet_y_400mf(num_classes=3), "regnety_004"),
    "torchvision EfficientNet": (lambda: tv.efficientnet_b0(num_classes=3), "efficientnet_b0"),
    "torchvision EfficientNetV2": (lambda: tv.efficientnet_v2_s(num_classes=3), "efficientnetv2_s"),
    "torchvision ConvNeXt": (lambda: tv.convnext_tiny(num_classes=3), "convnext_tiny"),
    "torchvision DenseNet": (lambda: tv.densenet121(num_classes=3), "densenet121"),
    "torchvision Swin": (lambda: tv.swin_t(num_classes=3), "swin_tiny_patch4_window7_224"),
    "torchvision Swin V2": (lambda: tv.swin_v2_t(num_classes=3), "swinv2_tiny_window8_256"),
    "transformers ResNet-50": (lambda: hugging_face("ResNet"), "resnet50"),
    "transformers RegNet": (lambda: hugging_face("RegNet"), "regnety_040"),
    "transformers ConvNeXt": (lambda: hugging_face("ConvNext"), "convnext_tiny"),
    "transformers Swin V2 as it comes": (lambda: hugging_face("Swinv2"), "swinv2_tiny_window8_256"),
    "transformers Swin with windows of 8": (
        lambda: hugging_face("Swin", window_size=8, image_size=256),
        "swin_tiny_patch4_window7_224",
    ),
    "transformers EfficientNet": (
        lambda: hugging_face("EfficientNet", width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280),
        "tf_efficientnet_b0",
    ),
}


@torch.no_grad()
def trained(make):
    """A classifier in eval mode, each of whose weights and statistics differs from the next, as after training."""
    torch.manual_seed(0)
    model = make().eval()
    counterparts.randomise(model)
    for name, buffer in model.named_buffers():
        if name.endswith("num_batches_tracked"):
            buffer.fill_(7)
    return model


def logits_of(model, images):
    answer = model(images)
    return getattr(answer, "logits", answer)


def convert(model, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return softcam_hub.convert(model, *args, **kwargs)


@torch.no_grad()
@pytest.mark.parametrize("case", [*SMALL, *(pytest.param(case, marks=pytest.mark.slow) for case in LARGE)])
def test_a_classifier_keeps_its_logits_and_its_maps_average_to_them(case, tmp_path):
    make, name = {**SMALL, **LARGE}[case]
    theirs = trained(make)

    model = convert(theirs)

    assert model.architecture == name
    assert not model.training
    images = torch.randn(2, *model.input_size, generator=torch.Generator().manual_seed(2))
    expected, logits = logits_of(theirs, images), model(images)
    bound = 1e-4 * float(expected.abs().max())
    assert torch.allclose(logits, expected, rtol=0, atol=bound)
    maps = model.explain(images, classes=[[0, 1, 2]]).maps
    assert torch.allclose(maps.mean(dim=(2, 3)), expected, rtol=0, atol=bound)
    save_for_hf(model, tmp_path)
    assert torch.equal(load_classifier(tmp_path).model(images), logits)


@torch.no_grad()
def test_cape_and_the_hugging_face_model_start_from_the_same_weights(tmp_path):
    theirs = trained(SMALL["torchvision ResNet"][0])
    images = torch.randn(2, 3, 224, 224)

    cape = convert(theirs, "cape")
    softcam = SoftCAMForImageClassification.from_timm(convert(theirs)).eval()
    softcam.save_pretrained(tmp_path)

    assert torch.equal(cape.head.weight, theirs.fc.weight)
    assert torch.allclose(AutoModelForImageClassification.from_pretrained(tmp_path)(images).logits, theirs(images))


def test_statistics_and_mode_of_the_source_stay():
    theirs = trained(SMALL["torchvision ResNet"][0]).train()
    before = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}

    model = convert(theirs)

    assert theirs.training
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in theirs.state_dict().items())
    assert int(model.backbone.bn1.num_batches_tracked) == 7


def test_a_network_with_another_number_of_channels_and_its_class_names():
    theirs = trained(lambda: hugging_face("ResNet", num_channels=1, problem_type="multi_label_classification"))

    model = convert(theirs)

    assert model.in_chans == 1
    assert model.labels == tuple(LABELS.values())
    assert model.multi_label


@torch.no_grad()
def test_wrong_pairs_show_in_a_new_network_although_its_own_logits_hide_them():
    """The blocks of a new ConvNeXt scale their output by a millionth, and are alike."""
    torch.manual_seed(0)
    theirs, ours = tv.convnext_tiny(num_classes=3).eval(), timm.create_model("convnext_tiny", num_classes=3).eval()
    image = torch.randn(1, 3, 64, 64)
    pairs = pair(theirs, ours, image)
    one, other = [i for i, (use, _) in enumerate(pairs) if ".block.3" in str(use.weights)][:2]
    swapped = list(pairs)
    swapped[one], swapped[other] = (pairs[one][0], pairs[other][1]), (pairs[other][0], pairs[one][1])

    def error(chosen, source):
        ours.load_state_dict(translate(chosen, source, ours), strict=False)
        return float((ours(image) - source(image)).abs().max() / source(image).abs().max())

    random = copy.deepcopy(theirs)
    counterparts.randomise(random)
    assert error(swapped, theirs) < 1e-4
    assert error(swapped, random) > 1e-3
    assert error(pairs, random) < 1e-4


class OtherPool(tv.ResNet):
    def forward(self, x):
        features = self.layer4(self.layer3(self.layer2(self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(x))))))))
        return self.fc(features.amax(dim=(2, 3)))


REFUSED = {
    "another activation": (
        lambda: exchange(tv.resnet18(num_classes=3), nn.ReLU, nn.GELU),
        "resnet18 has as many weights",
    ),
    "another pool, in a class of the user": (
        lambda: OtherPool(BasicBlock, [2, 2, 2, 2], num_classes=3),
        "resnet18 has as many weights",
    ),
    "class token": (lambda: tv.vit_b_16(num_classes=3), "vit_base_patch16_224 has as many weights"),
    "unknown": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(2)),
        "got Sequential. timm has no",
    ),
    "unknown to timm": (
        lambda: tv.squeezenet1_1(num_classes=3),
        r"SqueezeNet. timm has no .*build\('softcam_resnet50'",
    ),
}


def exchange(model, old, new):
    for name, layer in list(model.named_modules()):
        if isinstance(layer, old):
            model.set_submodule(name, new())
    return model


@pytest.mark.slow  # each is compared with many architectures
@pytest.mark.parametrize("case", REFUSED)
def test_a_classifier_without_a_counterpart_is_refused(case):
    make, sentence = REFUSED[case]
    model = make()
    if case == "unknown":
        model(torch.zeros(1, 3, 8, 8))
    with pytest.raises(TypeError, match=sentence):
        convert(trained(lambda: model))


NOISE = np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8)
PICTURE = Image.fromarray(NOISE).resize((320, 256))  # libraries round an odd margin of a crop differently

PROCESSORS = {
    "shortest edge, centre": BitImageProcessor(size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}),
    "another aspect ratio": ViTImageProcessor(
        size={"height": 64, "width": 96}, image_mean=[0.5] * 3, image_std=[0.25] * 3
    ),
    "ConvNeXt": ConvNextImageProcessor(size={"shortest_edge": 224}, crop_pct=0.875),
    "ConvNeXt, large": ConvNextImageProcessor(size={"shortest_edge": 384}, crop_pct=0.875),
    "not normalized": BitImageProcessor(do_normalize=False),
    "height and width, centre": DeiTImageProcessor(),
    "EfficientNet": EfficientNetImageProcessor(
        size={"height": 224, "width": 224}, image_std=[0.47853944, 0.4732864, 0.47434163], resample=3
    ),
    "weights of torchvision": tv.EfficientNet_B0_Weights.IMAGENET1K_V1,
    "transforms of torchvision": tv.ResNet18_Weights.IMAGENET1K_V1.transforms(),
}


def prepared_by_them(preprocessing):
    if hasattr(preprocessing, "image_mean"):
        return preprocessing(PICTURE, return_tensors="pt")["pixel_values"][0]
    return getattr(preprocessing, "transforms", lambda: preprocessing)()(PICTURE)


@pytest.mark.parametrize("case", PROCESSORS)
def test_images_are_prepared_as_the_other_library_does(case):
    cfg = read_preprocessing(PROCESSORS[case])
    transform = create_transform(**resolve_data_config({}, pretrained_cfg=cfg))

    ours, theirs = transform(PICTURE), prepared_by_them(PROCESSORS[case])

    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().mean() < 0.01 * theirs.std()


def test_weights_of_torchvision_name_the_classes():
    model = softcam_hub.convert(tv.resnet18(), preprocessing=tv.ResNet18_Weights.IMAGENET1K_V1)
    assert model.labels[0] == "tench"
    assert model.pretrained_cfg["crop_pct"] == 0.875


def test_without_preprocessing_a_warning_says_how_images_are_prepared():
    with pytest.warns(UserWarning, match="224 x 224 px with ImageNet's mean") as found:
        model = softcam_hub.convert(tv.resnet18(num_classes=3))
    assert found[0].filename == __file__
    assert model.pretrained_cfg["mean"] == IMAGENET_DEFAULT_MEAN


WRONG = {
    "a timm model": (
        lambda: timm.create_model("test_resnet"),
        BitImageProcessor(),
        ValueError,
        "leave preprocessing out",
    ),
    "no processor": (lambda: tv.resnet18(), "center", TypeError, "got str$"),
    "another scale": (lambda: tv.resnet18(), BitImageProcessor(rescale_factor=1.0), ValueError, "to 0..1: expected"),
    "no size": (lambda: tv.resnet18(), BitImageProcessor(do_resize=False), ValueError, "has do_resize=False"),
    "BGR": (lambda: tv.resnet18(), MobileViTImageProcessor(), ValueError, "in the order BGR"),
    "longest edge": (
        lambda: tv.resnet18(),
        BitImageProcessor(size={"shortest_edge": 256, "longest_edge": 300}),
        ValueError,
        "a limit of the longest edge",
    ),
    "no square": (
        lambda: tv.resnet18(),
        ImageClassification(crop_size=(224, 320)),
        ValueError,
        "resize and crop to squares",
    ),
    "other channels": (
        lambda: hugging_face(
            "ResNet", num_channels=1, depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], layer_type="basic"
        ),
        tv.ResNet18_Weights.IMAGENET1K_V1,
        ValueError,
        "normalises 3 channels, and this model takes 1",
    ),
}


def test_half_precision_hides_no_other_network():
    model = exchange(trained(lambda: tv.resnet18(num_classes=3)), nn.ReLU, lambda: nn.LeakyReLU(0.05)).bfloat16()
    assert counterparts.find_counterpart(model) is None
    found = counterparts.find_counterpart(trained(lambda: tv.resnet18(num_classes=3)).bfloat16())
    assert found is not None
    assert found.fc.weight.dtype == torch.bfloat16


def test_random_state_hooks_and_tuples():
    theirs, calls = trained(SMALL["transformers ResNet"][0]), []
    theirs.config.return_dict = False
    theirs.register_forward_hook(lambda *_: calls.append(1))
    before = torch.get_rng_state()
    assert counterparts.find_counterpart(theirs) is not None
    assert torch.equal(torch.get_rng_state(), before)
    assert calls == []


@pytest.mark.slow
def test_logits_are_compared_at_the_size_of_the_images():
    theirs = trained(LARGE["transformers EfficientNet"][0])
    assert counterparts.find_counterpart(theirs, (256, 256)) is not None
    assert counterparts.find_counterpart(theirs, (240, 240)) is None  # their padding does not depend on the size


@pytest.mark.slow
def test_a_network_of_one_size_takes_the_size_of_the_preprocessing():
    theirs, processor = trained(lambda: hugging_face("Swin")), ViTImageProcessor(size={"height": 448, "width": 448})
    model = softcam_hub.convert(theirs, preprocessing=processor)
    assert model.input_size == (3, 448, 448)
    assert model(torch.randn(1, 3, 448, 448)).shape == (1, 3)


@pytest.mark.parametrize("case", WRONG)
def test_wrong_preprocessing_is_refused(case):
    make, preprocessing, error, sentence = WRONG[case]
    with pytest.raises(error, match=sentence):
        softcam_hub.convert(make(), preprocessing=preprocessing)
