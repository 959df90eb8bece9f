"""Small configurations and inputs for each preset, as transformers' tests expect them."""

import torch

from ezclip import EZClipConfig


TOWER = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
START, END, PADDING, VOCAB_SIZE = 97, 98, 1, 99


class EZClipTester:
    """
    Configuration and inputs of the whole model, and the sizes that the tests read.

    Args:
        parent (`unittest.TestCase`):
            The test case.
        preset (`str`, *optional*, defaults to `"ezclip"`):
            The published system, as [`EZClipConfig.from_preset`] names it.
        family (`str`, *optional*):
            The towers' family, if not CLIP: a model type of transformers.
        towers (`dict`, *optional*), vision_config (`dict`, *optional*):
            Further fields of both towers, and of the vision tower.
        kwargs:
            Further fields of [`EZClipConfig`].
    """

    is_training = True
    batch_size = 4
    num_frames = 3
    image_size, patch_size = 16, 8
    seq_length = 7  # tokens of a text
    hidden_size, num_hidden_layers, num_attention_heads = 32, 2, 4

    def __init__(self, parent, preset: str = "ezclip", family=None, towers=None, vision_config=None, **kwargs):
        self.parent = parent
        self.preset, self.kwargs = preset, kwargs
        self.types = {} if family is None else {n: {"model_type": f"{family}_{n}_model"} for n in ("text", "vision")}
        self.towers = {**TOWER, **(towers or {})}
        self.vision_config = vision_config or {}

    def get_config(self) -> EZClipConfig:
        vision_config = {"image_size": self.image_size, "patch_size": self.patch_size, "num_frames": self.num_frames}
        special_tokens = {"bos_token_id": START, "eos_token_id": END, "pad_token_id": PADDING}
        text_config = {**self.towers, **special_tokens, "vocab_size": VOCAB_SIZE, "max_position_embeddings": 16}
        return EZClipConfig.from_preset(
            self.preset,
            vision_config={**self.towers, **vision_config, **self.vision_config, **self.types.get("vision", {})},
            text_config={**text_config, **self.types.get("text", {})},
            projection_dim=32,
            temporal_head_layers=2,
            **self.kwargs,
        )

    def pixel_values(self) -> torch.Tensor:
        return torch.rand(self.batch_size, self.num_frames, 3, self.image_size, self.image_size)

    def texts(self) -> dict[str, torch.Tensor]:
        """Return texts of several lengths: start, words, end, padding."""
        input_ids = torch.randint(PADDING + 1, START, (self.batch_size, self.seq_length))
        input_ids[:, 0] = START
        attention_mask = torch.ones_like(input_ids)
        for row in range(self.batch_size):
            end = self.seq_length - 1 - row % 3
            input_ids[row, end] = END
            input_ids[row, end + 1 :] = PADDING
            attention_mask[row, end + 1 :] = 0
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), {**self.texts(), "pixel_values": self.pixel_values()}


class EZClipVisionTester(EZClipTester):
    is_training = False  # a tower has no loss

    def __init__(self, parent, preset: str = "ezclip", **kwargs):
        super().__init__(parent, preset, **kwargs)
        config = self.get_config()
        joined_frames = self.num_frames if config.use_joint_attention else 1
        self.seq_length = 1 + joined_frames * (self.image_size // self.patch_size) ** 2
        self.attention_length = self.seq_length + (config.temporal_prompt != "none")

    def get_config(self):
        return super().get_config().vision_config

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), {"pixel_values": self.pixel_values()}


class EZClipTextTester(EZClipTester):
    is_training = False  # a tower has no loss

    def get_config(self):
        return super().get_config().text_config

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), self.texts()
