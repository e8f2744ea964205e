"""The layer at which a network is explained where the user names none, on networks small enough to check by eye."""

import pytest
import torch
from torch import nn

from softcam_hub.explainers.layer_search import find_last_map, find_last_read_by_class_tokens, get_layer
from softcam_hub.explainers.layouts import Hints


class Network(nn.Module):
    """Two convolutions, each halving the sides, a pool and a linear layer; `stem.0` and `last` give maps."""

    def __init__(self, stride=2):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1))
        self.last = nn.Conv2d(6, 8, 3, stride=stride, padding=1)
        self.fc = nn.Linear(8, 5)

    def forward(self, images):
        return self.fc(self.last(self.stem(images)).mean(dim=(2, 3)))


def find(model, size):
    return find_last_map(model, model, torch.randn(1, 3, size, size), Hints())


def test_the_last_module_whose_output_has_locations_is_found():
    assert find(Network(), 32) == "last"


def test_a_layer_is_named_by_its_path_or_passed_as_a_module():
    model = Network()
    assert get_layer(model, "stem.0") is model.stem[0]
    assert get_layer(model, model.last) is model.last


def test_a_layer_that_the_model_does_not_have_is_refused_with_the_names_at_its_top():
    with pytest.raises(ValueError, match="Network has no layer 'layer4': expected a dotted path below stem, last, fc"):
        get_layer(Network(), "layer4")
    with pytest.raises(ValueError, match="layer is no module of this model"):
        get_layer(Network(), nn.Conv2d(3, 3, 1))


def test_images_so_small_that_the_last_map_is_one_location_are_refused():
    with pytest.raises(ValueError, match=r"images of 8x8 pixels are too small: .* 'last', have one .* such as 'stem'"):
        find(Network(stride=4), 8)


def test_a_small_map_is_taken_where_larger_images_lead_to_the_same_layer():
    assert find(Network(), 8) == "last"


def test_a_network_of_one_input_size_keeps_its_small_map():
    model = Network()

    def run(images):
        assert images.shape[-1] == 8, "this network takes one size"
        return model(images)

    assert find_last_map(model, run, torch.randn(1, 3, 8, 8), Hints()) == "last"


def test_a_network_without_locations_is_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    with pytest.raises(ValueError, match="Sequential has no spatial features to explain: pass layer="):
        find(model, 8)


def test_the_search_leaves_no_hook_behind():
    model = Network()
    find(model, 32)
    with pytest.raises(ValueError, match="no spatial features"):
        find(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), 8)
    assert not any(module._forward_hooks for module in model.modules())


def test_the_norm_before_the_last_attention_is_found_by_its_name():
    block = lambda: nn.ModuleDict({"norm1": nn.LayerNorm(4), "mlp": nn.Linear(4, 4), "norm2": nn.LayerNorm(4)})  # noqa: E731
    model = nn.ModuleDict({"blocks": nn.ModuleList([block(), block()]), "norm": nn.LayerNorm(4)})
    assert find_last_read_by_class_tokens(model) == "blocks.1.norm1"
    with pytest.raises(ValueError, match="Network classifies by its class tokens alone"):
        find_last_read_by_class_tokens(Network())
