"""The towers of a model as modules of their own, and the ONNX files that every engine starts from."""

import copy
import logging
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.export import Dim

from ezclip.errors import ModelError
from modeling_ezclip import EZClipModel
from processing_ezclip import max_text_length


TRACED_BATCH_SIZE = 2


class VideoTower(nn.Module):
    """The part of a model, as a copy, that embeds videos of `num_frames` frames, by default the model's number."""

    name, output_name = "video_tower", "video_embeds"

    def __init__(self, model: EZClipModel, num_frames: int | None = None):
        super().__init__()
        self.model = copy.deepcopy(model)
        del self.model.text_model, self.model.text_projection
        vision = model.config.vision_config
        self.num_frames = vision.num_frames if num_frames is None else num_frames
        self.frame_shape = (vision.num_channels, vision.image_size, vision.image_size)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return embeddings of length 1 `(B, D)` of videos `(B, T, 3, H, W)`."""
        return nn.functional.normalize(self.model.encode_videos(pixel_values), dim=-1)

    def inputs(self, batch_size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Return random inputs."""
        return {"pixel_values": torch.randn(batch_size, self.num_frames, *self.frame_shape, generator=generator)}

    def dynamic_shapes(self) -> dict[str, dict[int, Dim]]:
        """Return the dynamic dimensions of the inputs."""
        return {"pixel_values": {0: Dim("batch")}}


class TextTower(nn.Module):
    """The part of a model, as a copy, that embeds texts. Raises [`ModelError`] for an impossible end-of-text token.

    SigLIP's texts must be padded to the tower's length. If its tokenizer gives no mask, the mask is 1 everywhere.
    """

    name, output_name = "text_tower", "text_embeds"

    def __init__(self, model: EZClipModel):
        super().__init__()
        self.model = copy.deepcopy(model)
        del self.model.vision_model, self.model.visual_projection, self.model.temporal_head
        self.vocab_size = model.config.text_config.vocab_size
        self.max_length = max_text_length(model.config.text_config)
        # The token that ends a text. Only the towers of CLIP and MetaCLIP 2 look for it.
        self.eos_token_id: int = self.vocab_size - 1
        if hasattr(model.text_model, "eos_token_id") and not model.text_model.ends_at_highest:
            self.eos_token_id = model.text_model.eos_token_id
        if not 0 <= self.eos_token_id < self.vocab_size:
            raise ModelError(
                f"The end-of-text token {self.eos_token_id} of the model must be one of its {self.vocab_size} tokens. "
                "Correct `eos_token_id` in its config.json."
            )

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return embeddings of length 1 `(B, D)` of texts `(B, L)`."""
        features: Any = self.model.get_text_features(cast(torch.LongTensor, input_ids), attention_mask)
        return nn.functional.normalize(features.pooler_output, dim=-1)

    def inputs(self, batch_size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Return random texts of different lengths, each with an end-of-text token and padding."""
        longest = self.max_length if batch_size == TRACED_BATCH_SIZE else (self.max_length + 3) // 2
        lengths = torch.randint(2, longest + 1, (batch_size,), generator=generator)
        lengths[0] = longest
        positions = torch.arange(longest)
        input_ids = torch.randint(0, self.vocab_size, (batch_size, longest), generator=generator)
        input_ids = torch.where(positions >= lengths[:, None] - 1, self.eos_token_id, input_ids)
        return {"input_ids": input_ids, "attention_mask": (positions < lengths[:, None]).long()}

    def dynamic_shapes(self) -> dict[str, dict[int, Dim]]:
        """Return the dynamic dimensions of the inputs."""
        shape = {0: Dim("batch"), 1: Dim("length", max=self.max_length)}
        return {"input_ids": shape, "attention_mask": shape}


Tower = VideoTower | TextTower


@torch.no_grad()
def write_onnx(tower: Tower, path: Path):
    """Write a tower as ONNX. Weights of more than 1 GB go to a file beside it."""
    inputs = tower.inputs(TRACED_BATCH_SIZE, torch.Generator().manual_seed(0))
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns about missing operators of torchvision
    torch.onnx.export(
        tower,
        (),
        path,
        kwargs=inputs,
        input_names=list(inputs),
        output_names=[tower.output_name],
        dynamic_shapes=tower.dynamic_shapes(),
        dynamo=True,
        external_data=sum(p.numel() * p.element_size() for p in tower.parameters()) > 2**30,
        verbose=False,
    )
