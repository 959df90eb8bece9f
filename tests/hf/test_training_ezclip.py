"""Run `TrainingTesterMixin` of transformers on our model: loss and gradient of one batch fall to a tenth."""

import unittest

import pytest

from ezclip import EZClipModel
from tests.hf.testers import VOCAB_SIZE, EZClipTester
from tests.hf.transformers_suite.test_training_mixin import TrainingTesterMixin


pytestmark = pytest.mark.slow


class TrainingTests(TrainingTesterMixin):
    all_model_classes = (EZClipModel,)
    model_tester = None
    preset, temporal_head = "ezclip", "mean"
    training_overfit_steps = 100  # fewer than theirs are enough

    def setUp(self):
        self.model_tester = EZClipTester(
            self,
            self.preset,
            temporal_head=self.temporal_head,
            # The motion loss does not fall to zero, and no loss does with dropout.
            motion_loss_weight=0.0,
            towers={"attention_dropout": 0.0, "drop_path_rate": 0.0},
            vision_config={"temporal_prompt_dropout": 0.0},
            vocab_size=VOCAB_SIZE,  # the tests read it from the configuration
        )
        self.model_tester.batch_size = self.training_overfit_batch_size

    def _create_text_training_batch(self, batch_size, seq_length, vocab_size):
        # Their batch has only texts; ours needs videos too. Each video is a class of its own.
        _, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        return {**inputs, "return_loss": True}


class EZClipTrainingTest(TrainingTests, unittest.TestCase):
    # Only prompts and adapters are trained; the other weights are random and frozen.
    training_overfit_learning_rate = 1e-2


class ActionClipTrainingTest(TrainingTests, unittest.TestCase):
    preset, temporal_head = "actionclip", "transformer"
