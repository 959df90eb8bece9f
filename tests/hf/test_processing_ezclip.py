"""Run `ProcessorTesterMixin` of transformers on our processor.

Their tests pass images to the image processor; the tests here pass videos instead.
"""

import unittest
from unittest.mock import patch

import numpy as np
import pytest
import torch

from ezclip import EZClipProcessor
from ezclip.cli.demo import word_tokenizer
from processing_ezclip import default_image_processor
from tests.hf.transformers_suite.test_processing_common import ProcessorTesterMixin


pytestmark = pytest.mark.slow

WORDS = ["lower", "newer", "upper", "older", "longer", "string"]
NAMED_ARGUMENTS = "sampling and decoding are named arguments of a call, `num_frames` with the processor's as default"
TESTS_OF_ARGUMENTS = (
    *("test_call_arguments_default_none", "test_call_arguments_not_in_attributes"),
    *("test_call_arguments_not_in_processor_kwargs", "test_init_arguments_not_in_processor_kwargs"),
)


class EZClipProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = EZClipProcessor

    def setUp(self):
        if self._testMethodName in TESTS_OF_ARGUMENTS:
            self.skipTest(NAMED_ARGUMENTS)

    @classmethod
    def _setup_tokenizer(cls):
        return word_tokenizer(WORDS)

    @classmethod
    def _setup_image_processor(cls):
        return default_image_processor(32)

    @staticmethod
    def prepare_processor_dict():
        return {"num_frames": 4, "split_camel_case": False, "sampling": "tear"}

    def prepare_images_inputs(self, *args, **kwargs):
        self.skipTest("the processor takes videos, not images")

    prepare_image_inputs = prepare_images_inputs  # the name in transformers 5.6

    def prepare_videos_inputs(self, batch_size=None):
        videos = list(np.random.default_rng(0).integers(0, 255, (batch_size or 1, 8, 48, 64, 3), dtype=np.uint8))
        return videos[0] if batch_size is None else videos

    def test_processor_with_multiple_inputs(self):
        processor = self.get_processor()
        texts, videos = self.prepare_text_inputs(batch_size=2), self.prepare_videos_inputs(batch_size=2)
        inputs = processor(videos=videos, text=texts, return_tensors="pt")
        assert set(inputs) == set(processor.model_input_names)
        assert inputs.pixel_values.shape == (2, 4, 3, 32, 32)
        assert inputs.input_ids.shape == inputs.attention_mask.shape == (2, 6)
        with pytest.raises(ValueError, match="needs `videos`, `text`, or both"):
            processor()

    def test_model_input_names(self):
        # Videos or text alone return only their own inputs.
        processor = self.get_processor()
        assert list(processor(videos=self.prepare_videos_inputs())) == ["pixel_values"]
        assert list(processor(text=self.prepare_text_inputs())) == ["input_ids", "attention_mask"]
        assert processor.model_input_names == ["pixel_values", "input_ids", "attention_mask"]

    def test_image_processor_defaults_preserved_by_image_kwargs(self):
        # Arguments of the image processor apply to videos.
        processor, video = self.get_processor(), self.prepare_videos_inputs()
        expected = processor(videos=video, return_tensors="pt").pixel_values
        components = self.prepare_components()
        components["image_processor"] = self.get_component(
            "image_processor", rescale_factor=-1 / 255, image_mean=[0.0] * 3, image_std=[1.0] * 3
        )
        pixels = EZClipProcessor(**components, **self.prepare_processor_dict())(videos=video, return_tensors="pt")
        mean, std = (torch.tensor(getattr(processor.image_processor, f"image_{name}")) for name in ("mean", "std"))
        torch.testing.assert_close(-pixels.pixel_values, expected * std.view(3, 1, 1) + mean.view(3, 1, 1))
        components["image_processor"] = self.get_component("image_processor", do_rescale=False, do_normalize=False)
        levels = EZClipProcessor(**components, **self.prepare_processor_dict())(videos=video, return_tensors="pt")
        torch.testing.assert_close(levels.pixel_values, -255 * pixels.pixel_values)

    def test_tokenizer_kwargs(self):
        # As keywords or in a dictionary, with and without videos; not both ways, and no unknown names.
        processor, videos = self.get_processor(), self.prepare_videos_inputs(batch_size=2)
        texts, options = self.prepare_text_inputs(batch_size=2), {"padding": "max_length", "max_length": 11}
        for kwargs in (
            options,
            {"text_kwargs": options},
            {"text_kwargs": {"max_length": 11}, "padding": "max_length"},
        ):
            for videos_or_none in (videos, None):
                inputs = processor(videos=videos_or_none, text=texts, return_tensors="pt", **kwargs)
                assert inputs.input_ids.shape == (2, 11)
        with pytest.raises(ValueError, match="'padding'.*given twice"):
            processor(text=texts, videos=videos, text_kwargs={"padding": "do_not_pad"}, padding="max_length")
        for unknown in ("num_frame", "images", "videos_kwargs"):
            with pytest.raises(TypeError, match=unknown):
                processor(text=texts, videos=videos, **{unknown: 4})

    # Saving custom code adds its file to the saved processor, which a loaded processor does not have.
    @patch.object(EZClipProcessor, "_auto_class", None)
    def test_processor_from_and_save_pretrained(self):
        super().test_processor_from_and_save_pretrained()

    @patch.object(EZClipProcessor, "_auto_class", None)
    def test_processor_from_and_save_pretrained_as_nested_dict(self):
        super().test_processor_from_and_save_pretrained_as_nested_dict()
