"""Run `ConfigTester` of transformers on our configurations."""

import unittest

import pytest

from configuration_ezclip import EZClipTextConfig, EZClipVisionConfig
from ezclip import EZClipConfig
from tests.hf.testers import EZClipTester
from tests.hf.transformers_suite.test_configuration_common import ConfigTester


pytestmark = pytest.mark.slow


class EZClipConfigTest(unittest.TestCase):
    def setUp(self):
        self.model_tester = EZClipTester(self)

    def test_whole(self):
        ConfigTester(
            self,
            config_class=EZClipConfig,
            has_text_modality=False,  # the vocabulary belongs to the text tower
            common_properties=["projection_dim", "logit_scale_init_value", "temporal_head"],
            temporal_head="transformer",
            projection_dim=32,
        ).run_common_tests()

    def test_vision(self):
        ConfigTester(
            self,
            config_class=EZClipVisionConfig,
            has_text_modality=False,
            hidden_size=24,
            num_frames=3,
            temporal_prompt="shallow",
        ).run_common_tests()

    def test_text(self):
        ConfigTester(self, config_class=EZClipTextConfig, hidden_size=24, adapter_ratio=0.5).run_common_tests()
