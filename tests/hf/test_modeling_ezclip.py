"""Run `ModelTesterMixin` of transformers on our models, for the published systems whose modules differ.

A comment gives the reason of each override and skip here; all other tests are skipped by their own rules.
"""

import unittest
from unittest.mock import patch

import pytest
from torch import nn

from ezclip import EZClipModel
from modeling_ezclip import EZClipTextModel, EZClipVisionModel
from tests.hf.testers import EZClipTester, EZClipTextTester, EZClipVisionTester
from tests.hf.transformers_suite.test_modeling_common import ModelTesterMixin


pytestmark = pytest.mark.slow


class EveryModelTests(ModelTesterMixin):
    # This test is skipped by the year of the copyright in a model's file, unless this is set.
    test_can_init_all_missing_weights_before_2023 = True
    preset = "ezclip"


class VisionModelTests(EveryModelTests):
    all_model_classes = (EZClipVisionModel,)
    test_resize_embeddings = False  # a vision tower has no vocabulary

    def setUp(self):
        self.model_tester = EZClipVisionTester(self, self.preset)

    def test_attention_outputs(self):
        # A frame's temporal token is in the attention, but not among the hidden states.
        with patch.object(self.model_tester, "encoder_seq_length", self.model_tester.attention_length, create=True):
            super().test_attention_outputs()

    def test_model_get_set_embeddings(self):
        # The input embedding is CLIP's convolution over patches; their test expects an `nn.Embedding`.
        model = EZClipVisionModel(self.model_tester.get_config())
        assert isinstance(model.get_input_embeddings(), nn.Conv2d)
        assert model.get_output_embeddings() is None
        embedding = nn.Conv2d(3, model.config.hidden_size, kernel_size=4, stride=4)
        model.set_input_embeddings(embedding)
        assert model.get_input_embeddings() is embedding


class EZClipVisionModelTest(VisionModelTests, unittest.TestCase):
    pass


class EZClipShallowVisionModelTest(VisionModelTests, unittest.TestCase):
    """A prompt only in the first block, and the temporal adapter."""

    def setUp(self):
        self.model_tester = EZClipVisionTester(
            self, vision_config={"temporal_prompt": "shallow", "use_temporal_adapter": True}
        )


class ActionClipShiftVisionModelTest(VisionModelTests, unittest.TestCase):
    preset = "actionclip_tsm"


class ActionClipJointVisionModelTest(VisionModelTests, unittest.TestCase):
    preset = "actionclip_joint"


class ClipVisionModelTest(VisionModelTests, unittest.TestCase):
    preset = "clip"


class TextModelTests(EveryModelTests):
    all_model_classes = (EZClipTextModel,)

    def setUp(self):
        self.model_tester = EZClipTextTester(self, self.preset)


class EZClipTextModelTest(TextModelTests, unittest.TestCase):
    pass


class ClipTextModelTest(TextModelTests, unittest.TestCase):
    preset = "clip"


IN_THE_TOWERS = "hidden states and attentions are in the outputs of the towers, whose own tests cover them"


class ModelTests(EveryModelTests):
    all_model_classes = (EZClipModel,)
    additional_model_inputs = ["pixel_values"]
    _is_composite = True
    # Our `last_hidden_state` has a row per frame; their test expects one per video.
    skip_test_video_features_output_shape = True
    temporal_head, family = "mean", None

    def setUp(self):
        self.model_tester = EZClipTester(self, self.preset, self.family, temporal_head=self.temporal_head)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        # They have no labels for our class; without labels each video is a class of its own.
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        return {**inputs, "return_loss": True} if return_labels else inputs

    def _video_features_prepare_config_and_inputs(self):
        # Our argument is `pixel_values`; theirs is `pixel_values_videos`.
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        return config, {"pixel_values": inputs["pixel_values"]}

    @unittest.skip(IN_THE_TOWERS)
    def test_attention_outputs(self):
        pass

    @unittest.skip(IN_THE_TOWERS)
    def test_hidden_states_output(self):
        pass

    @unittest.skip(IN_THE_TOWERS)
    def test_retain_grad_hidden_states_attentions(self):
        pass


class EZClipModelTest(ModelTests, unittest.TestCase):
    pass


class ActionClipModelTest(ModelTests, unittest.TestCase):
    preset, temporal_head = "actionclip", "transformer"


class ActionClipClsModelTest(ModelTests, unittest.TestCase):
    preset, temporal_head = "actionclip", "transformer_cls"


class ActionClipLstmModelTest(ModelTests, unittest.TestCase):
    preset, temporal_head = "actionclip", "lstm"


class ActionClipConvModelTest(ModelTests, unittest.TestCase):
    preset, temporal_head = "actionclip", "conv1d"


class ActionClipJointModelTest(ModelTests, unittest.TestCase):
    preset = "actionclip_joint"


class SiglipTowersModelTest(ModelTests, unittest.TestCase):
    family = "siglip"

    @unittest.skip("SigLIP knows its attention by the class that our blocks replace; its files lack no such weight")
    def test_can_init_all_missing_weights(self):
        pass


class ChineseClipTowersModelTest(ModelTests, unittest.TestCase):
    """Its text tower is a BERT."""

    family = "chinese_clip"


class ClipModelTest(ModelTests, unittest.TestCase):
    preset = "clip"

    def setUp(self):
        # The preset trains nothing: frozen, its loss has no gradient for the tests of training.
        self.model_tester = EZClipTester(self, self.preset, freeze_backbone=False)
