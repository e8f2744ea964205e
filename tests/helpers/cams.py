"""Networks with a layer to explain, and the activations and gradients there, for tests of class activation maps."""

import timm
import torch
import torch.nn.functional as F
from conftest import randomise
from timm.layers import ClassifierHead
from timm.models.vgg import ConvMlp

CLASSES = torch.tensor([[0, 3], [4, 1]])
SWIN = {"img_size": 64, "embed_dim": 24, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 8), "window_size": 2}


def maps_of(raw):
    return raw


def channels_last(raw):
    return raw.permute(0, 3, 1, 2)


def tokens(raw):
    return raw[:, 1:].transpose(1, 2).unflatten(2, (10, 10))


NETWORKS = {
    "resnet18": ({}, 128),
    "vgg11_bn": ({}, 64),
    "swinv2_tiny_window8_256": (SWIN, 64),
    "test_vit": ({}, 160),
}


PLACES = [
    ("resnet18", None, "layer4", maps_of),
    ("resnet18", "layer3", "layer3", maps_of),
    ("resnet18", "layer4.0.bn2", "layer4.0.bn2", maps_of),  # beside a shortcut, and before a ReLU that writes in place
    ("vgg11_bn", None, "features", maps_of),
    ("vgg11_bn", "features.21", "features.21", maps_of),
    ("swinv2_tiny_window8_256", None, "norm", channels_last),
    ("swinv2_tiny_window8_256", "layers.2", "layers.2", channels_last),
    ("test_vit", None, "blocks.5.norm1", tokens),
    ("test_vit", "blocks.2", "blocks.2", tokens),
]
"""(network, layer as asked for, the module that this is, how its output lies)."""


def make_networks():
    """Make every network of `NETWORKS` with its images, as {name: (model, images)}."""
    torch.manual_seed(1)
    made = {}
    for name, (options, size) in NETWORKS.items():
        model = timm.create_model(name, num_classes=5, **options)
        if name == "vgg11_bn":  # the same head, 32 times narrower: its 120 million weights are slow to run
            model.pre_logits, model.head = ConvMlp(512, 128, 7), ClassifierHead(128, 5)
        randomise(model).double().eval()  # so that only a wrong formula shows
        made[name] = model, torch.randn(2, 3, size, size, dtype=torch.float64)
        teach(*made[name])
    return made


def small_resnet():
    return randomise(timm.create_model("test_resnet", num_classes=5)).double().eval()


@torch.no_grad()
def teach(model, images):
    """Weights that tell locations apart, as those of a trained classifier do: large, and blind to what all share."""
    fc = dict(model.named_modules())[model.pretrained_cfg["classifier"]]
    read = []
    handle = fc.register_forward_hook(lambda _, inputs, __: read.append(inputs[0]))
    model(images)
    handle.remove()
    shared = F.normalize(read[0].mean(dim=0), dim=0)
    fc.weight.mul_(10)
    fc.weight.sub_((fc.weight @ shared)[:, None] * shared)


def place_id(place):
    return f"{place[0]}-{place[1] or 'last'}"


def activations_and_gradients(model, images, module, to_maps, classes):
    """A (B, K, H, W) and g (B, k, K, H, W), one class at a time and with the whole network in the graph."""
    kept = []

    def keep(_, __, output):
        kept.append(output)
        return output.clone()  # the next layer may write in place

    handle = model.get_submodule(module).register_forward_hook(keep)
    columns = []
    for column in classes.T:
        kept.clear()
        logits = model(images)
        columns.append(torch.autograd.grad(logits.gather(1, column[:, None]).sum(), kept[0])[0])
    handle.remove()
    return to_maps(kept[0]).detach(), torch.stack([to_maps(column) for column in columns], dim=1)


def replaced(model, image, module, raw):
    """Logits (C,) of one image if the module had given `raw`."""
    handle = model.get_submodule(module).register_forward_hook(lambda *_: raw)
    with torch.no_grad():
        logits = model(image[None])[0]
    handle.remove()
    return logits
