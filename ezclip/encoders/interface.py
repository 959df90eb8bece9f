"""The interface of a dual encoder of videos and texts."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from transformers import PretrainedConfig


@runtime_checkable
class VideoTextEncoder(Protocol):
    """
    A model that embeds videos and texts in one space. [`EZClipModel`] is one; [`as_encoder`] makes others.

    A `torch.nn.Module` that has these members runs in the pipeline, the evaluator, `classify_videos` and
    `find_segments`. Four more are optional:

    - `score(videos, texts)`: similarities `(B, N)`, float32, of what `encode_videos` and `encode_texts` returned. It
      is for models that do not compare two vectors by their cosine. Without it, both are normalised and compared.
    - `encode_frames(pixel_values)`: `(B, 1 + T, D)`, not normalised: what `encode_videos` returns, then the embedding
      of each frame. Classes that are described by steps in order need it, see [`StepBank`].
    - `scoring` ([`Scoring`]): the function, the scale and the bias that make scores of similarities. Without it,
      they are multiplied by 100 and go through a softmax over the labels.
    - `eos_token_id` (`int`): the token at which the text tower reads a text. Without it, none is asked of the
      tokenizer.

    How videos become pixels and texts become tokens is not the model's: it has an [`EZClipProcessor`] that knows the
    number of frames, their size, how they are resized and normalised (`image_processor`), the length of padded texts
    (`text_padding`) and the end token (`tokenizer`).
    """

    @property
    def config(self) -> PretrainedConfig:
        """Return the configuration. Results are identified by it, so it must say what the model computes.

        Its `text_config` has `vocab_size` and `max_position_embeddings`.
        """
        ...

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the weights, which is that of `pixel_values`."""
        ...

    def encode_videos(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        Embed videos.

        Args:
            pixel_values (`torch.Tensor` of shape `(B, T, C, H, W)`):
                Frames of B videos, normalised by the processor.

        Returns:
            `torch.Tensor` of shape `(B, D)`, not normalised. With `score` the shape may be `(B, R, D)`: then the first
            row is the embedding of the video, and the others are what `score` needs besides.
        """
        ...

    def encode_texts(self, tokens: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """
        Embed texts.

        Args:
            tokens (`Mapping[str, torch.Tensor]`):
                The tokenizer's output for N texts: `input_ids` and usually `attention_mask`, of shape
                `(N, sequence_length)`.

        Returns:
            `torch.Tensor` of shape `(N, D)`, not normalised.
        """
        ...
