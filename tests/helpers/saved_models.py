"""Small models of every kind of backbone with random parameters, each saved by us and by timm, and the answers they must give."""

import json

import numpy as np
import timm
import torch
from conftest import randomise
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.models import save_for_hf

from softcam_hub import CAPEForImageClassification, SoftCAMForImageClassification

CLASSES = {"softcam": SoftCAMForImageClassification, "cape": CAPEForImageClassification}
NAMES = ["asp", "bat", "cod", "doe", "eel"]
LABELS = {"id2label": dict(enumerate(NAMES)), "label2id": {name: index for index, name in enumerate(NAMES)}}
TINY_VIT = {"img_size": 64, "depth": 1, "embed_dim": 48, "num_heads": 2}
SMALL_SWIN = {"embed_dim": 24, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8], "img_size": 64, "window_size": 4}
SMALL_IMAGES = {"pretrained_cfg_overlay": {"input_size": (3, 64, 64)}}
"""For networks that take seconds to measure where their maps lie in images of their own size."""

MODELS = {
    "resnet": ("cape", "test_resnet", {}),
    "convnext": ("softcam", "test_convnext", {"output_stride": 8}),
    "swinv2": ("cape", "swinv2_tiny_window8_256", SMALL_SWIN),
    "gap-vit": ("softcam", "test_vit2", {"img_size": 64}),
    "class-token-vit": ("cape", "test_vit", {"img_size": 64}),
    "efficientnet": ("softcam", "test_efficientnet", {}),
    "mambaout": ("softcam", "test_mambaout", {}),
    "vgg": ("cape", "vgg11", {"mlp_ratio": 1 / 64, **SMALL_IMAGES}),
    "three-scales": ("cape", "test_resnet", {"scales": 3}),
}
OTHER_HEAD = {"resnet-softcam": ("softcam", "test_resnet", {})}
UNSAVED_BUFFERS = {
    "coatnet": ("softcam", "test_coatnet", {"img_size": 64}),
    "maxvit": ("cape", "test_maxvit", {"img_size": 64}),
    "eva02": ("softcam", "eva02_tiny_patch14_224", {"img_size": 56, "depth": 1}),
    "beit": ("cape", "beit_base_patch16_224", TINY_VIT),
    "levit": ("softcam", "levit_128s", {}),
    "rope-vit": ("softcam", "vit_base_patch16_rope_224", TINY_VIT),
    "dinov3": ("cape", "vit_small_patch16_dinov3", TINY_VIT),
    "blurred-resnet": ("softcam", "resnetblur18", SMALL_IMAGES),
}
ALL = {**MODELS, **OTHER_HEAD, **UNSAVED_BUFFERS}
ON_HUB = ("resnet", "swinv2", "class-token-vit")
"""Models that are pushed and loaded again: what is downloaded is a folder, and folders are those of all models."""

NO_VANILLA = ("vgg", "class-token-vit", "rope-vit", "three-scales")
EXACT = [name for name in {**MODELS, **UNSAVED_BUFFERS} if name not in NO_VANILLA]


def images(model):
    side = model.input_size if model.pretrained_cfg.get("fixed_input_size") else (3, 64, 64)
    return torch.randn(2, *side, generator=torch.Generator().manual_seed(3))


def picture():
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (90, 70, 3), dtype=np.uint8))


def make(name, **options):
    family, architecture, args = ALL[name]
    model = randomise(timm.create_model(f"{family}_{architecture}", num_classes=5, **args, **options)).eval()
    if "scales" in args:
        torch.nn.init.normal_(model.head.fine_weight, std=0.1)  # zero at first, so that an error would not show
    return model


class Saved:
    """Each model twice on disk, by our own `save_pretrained` and by timm's export; made when first asked for."""

    def __init__(self, root):
        self.root = root
        self.models, self.places, self.answers = {}, {}, {}

    def model(self, name):
        if name not in self.models:
            self.models[name] = make(name)
        return self.models[name]

    def place(self, name):
        if name not in self.places:
            model, folder = self.model(name), self.root / name
            save_for_hf(model, folder / "timm", model_config={"label_names": NAMES}, safe_serialization=True)
            CLASSES[model.family].from_timm(model, **LABELS).save_pretrained(folder / "ours")
            saved = {"ours": str(folder / "ours"), "timm": str(folder / "timm")}
            self.places[name] = {**saved, "scheme": "local-dir:", "family": model.family}
        return self.places[name]

    def ours(self, name):
        return self.place(name)["ours"]

    def answer(self, name):
        """What every door must give, computed by the timm model and timm's preprocessing."""
        if name not in self.answers:
            self.answers[name] = expected_of(self.model(name))
        return self.answers[name]


@torch.no_grad()
def expected_of(model):
    x = images(model)
    data = resolve_data_config({}, pretrained_cfg={**model.pretrained_cfg, "input_size": model.input_size})
    prepared = create_transform(**data, is_training=False)(picture())[None]
    logits, maps = model(x), model.explain(x, classes=[[3, 1]]).maps
    doors = dict.fromkeys(("auto", "timm", "exported", "features logits"), logits)
    doors |= dict.fromkeys(("auto maps", "timm maps", "exported maps"), maps)
    doors |= {"features": model.last_features(model.forward_features(x)), "processor": prepared}
    return {**doors, "scores": model(prepared)[0].softmax(dim=0)}


def edit_config(folder, drop=(), **changes):
    config = {**json.loads((folder / "config.json").read_text()), **changes}
    config = {key: value for key, value in config.items() if key not in drop}
    (folder / "config.json").write_text(json.dumps(config))
