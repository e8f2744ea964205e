"""The shared tests of transformers on our four model classes, and on TimmWrapper and ResNet as the control.

Run by pytest with the `tests` package of transformers' source distribution on the path.
"""

import copy
import unittest
from typing import Any, ClassVar

import torch
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin, floats_tensor
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    ResNetModel,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    TimmWrapperModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, MODEL_MAPPING_NAMES

import softcam_hub

BATCH, SIZE, CLASSES = 3, 64, 3

for family in ("SoftCAM", "CAPE"):  # the suite decides by these names which models take labels and give a loss
    MODEL_MAPPING_NAMES[family.lower()] = f"{family}Model"
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES[family.lower()] = f"{family}ForImageClassification"


class Tester:
    """What the suite asks for about one model class: its configuration and a batch of inputs."""

    is_training = True
    batch_size = BATCH
    image_size = SIZE
    num_labels = CLASSES

    def __init__(self, settings: dict[str, Any], config_class: type[PreTrainedConfig]) -> None:
        self.settings, self.config_class = settings, config_class

    def get_config(self) -> PreTrainedConfig:
        return self.config_class(**copy.deepcopy(self.settings), num_labels=CLASSES)

    def prepare_config_and_inputs_for_common(self) -> tuple[PreTrainedConfig, dict[str, torch.Tensor]]:
        return self.get_config(), {"pixel_values": floats_tensor([BATCH, 3, SIZE, SIZE])}


class Cases(ModelTesterMixin):
    """The tests of one model class; the classes below name it."""

    model_class: ClassVar[type[PreTrainedModel]]
    settings: ClassVar[dict[str, Any]]
    config_class: ClassVar[type[PreTrainedConfig]]
    has_attentions = False
    test_resize_embeddings = False
    test_torch_exportable = False

    @property
    def all_model_classes(self) -> tuple[type[PreTrainedModel]]:
        return (self.model_class,)

    def setUp(self) -> None:
        self.model_tester = Tester(self.settings, self.config_class)
        self.config_tester = ConfigTester(
            self, config_class=self.config_class, has_text_modality=False, common_properties=[], **self.settings
        )

    def test_config(self) -> None:
        self.config_tester.run_common_tests()

    def test_hidden_states_output(self) -> None:
        """All hidden states, by argument and by setting; the suite's own version reads sizes of language models."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = self.model_class(config).eval()
        with torch.no_grad():
            states = model(**inputs, output_hidden_states=True).hidden_states
            config.output_hidden_states = True
            again = self.model_class(config).eval()(**inputs).hidden_states
        sizes = [state.shape[-1] for state in states]
        assert len(sizes) >= 4
        assert sizes == sorted(sizes, reverse=True)
        assert [state.shape for state in again] == [state.shape for state in states]

    def test_hidden_states_by_index(self) -> None:
        """Chosen hidden states, as TimmWrapper allows."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = self.model_class(config).eval()
        with torch.no_grad():
            states = model(**inputs, output_hidden_states=True).hidden_states
            chosen = model(**inputs, output_hidden_states=[-2, -1]).hidden_states
        assert len(chosen) == 2
        for state, expected in zip(chosen, states[-2:], strict=True):
            torch.testing.assert_close(state, expected)


class SoftCAM:
    config_class = softcam_hub.SoftCAMConfig
    settings: ClassVar = {"architecture": "softcam_test_resnet"}


class CAPE:
    config_class = softcam_hub.CAPEConfig
    settings: ClassVar = {"architecture": "cape_test_resnet"}


class TimmWrapper:
    config_class = TimmWrapperConfig
    settings: ClassVar = {"architecture": "test_resnet"}


class ResNet:
    config_class = ResNetConfig
    settings: ClassVar = {"embedding_size": 10, "hidden_sizes": [10, 20, 30, 40], "depths": [1, 1, 2, 1]}


class SoftCAMModelTest(SoftCAM, Cases, unittest.TestCase):
    model_class = softcam_hub.SoftCAMModel


class SoftCAMForImageClassificationTest(SoftCAM, Cases, unittest.TestCase):
    model_class = softcam_hub.SoftCAMForImageClassification


class CAPEModelTest(CAPE, Cases, unittest.TestCase):
    model_class = softcam_hub.CAPEModel


class CAPEForImageClassificationTest(CAPE, Cases, unittest.TestCase):
    model_class = softcam_hub.CAPEForImageClassification


class TimmWrapperModelTest(TimmWrapper, Cases, unittest.TestCase):
    model_class = TimmWrapperModel


class TimmWrapperForImageClassificationTest(TimmWrapper, Cases, unittest.TestCase):
    model_class = TimmWrapperForImageClassification


class ResNetModelTest(ResNet, Cases, unittest.TestCase):
    model_class = ResNetModel


class ResNetForImageClassificationTest(ResNet, Cases, unittest.TestCase):
    model_class = ResNetForImageClassification
