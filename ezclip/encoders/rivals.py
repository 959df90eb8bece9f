"""Dual encoders of transformers as [`VideoTextEncoder`]s: the methods that each family lacks."""

import copy
import functools
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from pipeline_ezclip import Scoring


class RivalEncoder(PreTrainedModel):
    """
    The methods of a [`VideoTextEncoder`] on top of a dual encoder of transformers, see [`as_encoder`].

    Here for encoders of images: a video is the mean of its frames' embeddings, as in plain CLIP.
    """

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Return the height and width of the frames, or `None` if the configuration does not say it."""
        size = self.config.vision_config.image_size
        return (size, size) if isinstance(size, int) else tuple(size)

    @property
    def num_frames(self) -> int | None:
        """Return how many frames the model takes, or `None` for any number."""
        return None

    @property
    def eos_token_id(self) -> int | None:
        """Return the token at which a text is read, or `None` if it is no certain token."""
        return self.config.text_config.eos_token_id

    @property
    def scoring(self) -> Scoring:
        """Return the model's own scores: a softmax of the cosines times its trained factor."""
        if hasattr(self, "temperature"):
            return Scoring(logit_scale=1 / float(self.temperature))
        return Scoring(logit_scale=float(self.logit_scale.exp()))

    def encode_videos(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Embed videos `(B, T, C, H, W)` as `(B, D)`, not normalised."""
        frames: Any = self.get_image_features(pixel_values=pixel_values.flatten(0, 1))
        return frames.pooler_output.unflatten(0, pixel_values.shape[:2]).mean(dim=1)

    def encode_texts(self, tokens: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Embed N texts, given as the tokenizer's output, as `(N, D)`, not normalised."""
        texts: Any = self.get_text_features(**tokens)
        return texts.pooler_output


class AIMv2Methods(RivalEncoder):
    """[`Aimv2Model`], whose factor on the cosines has an upper limit."""

    @property
    def scoring(self) -> Scoring:
        """Return the model's own scores; see [`RivalEncoder`]."""
        return Scoring(logit_scale=float(self.logit_scale.clamp(0.0, self.max_log_logit_scale).exp()))


class XCLIPMethods(RivalEncoder):
    """
    [`XCLIPModel`] (Ni et al., "Expanding Language-Image Pretrained Models for General Video Recognition").

    Its texts are prompted by the patches of the video, so that a score is no cosine of two embeddings.
    """

    eos_token_id = None  # the token with the highest number

    @property
    def num_frames(self) -> int:
        """Return how many frames the model takes: its messages and positions are of so many."""
        return self.config.vision_config.num_frames

    @property
    def scoring(self) -> Scoring:
        """Return a softmax of the logits of [`score`], which have the trained factor."""
        return Scoring(logit_scale=1.0)

    def encode_videos(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Embed videos `(B, T, C, H, W)` as `(B, 1 + L, D)`: the video, and its L patches, averaged over time."""
        outputs = self.vision_model(pixel_values=pixel_values.flatten(0, 1))
        frames = self.visual_projection(outputs.pooler_output).unflatten(0, pixel_values.shape[:2])
        patches = self.prompts_visual_layernorm(outputs.last_hidden_state[:, 1:]) @ self.prompts_visual_projection
        patches = patches.unflatten(0, pixel_values.shape[:2]).mean(dim=1)
        return torch.cat([self.mit(frames).pooler_output[:, None], patches], dim=1)

    def score(self, videos: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        """Return the logits `(B, N)` of embedded videos `(B, 1 + L, D)` and texts `(N, D)`."""
        videos, texts = videos.to(self.dtype), texts.to(self.dtype).expand(len(videos), -1, -1)
        texts = texts + self.prompts_generator(texts, videos[:, 1:])
        videos, texts = (torch.nn.functional.normalize(embeds, dim=-1) for embeds in (videos[:, 0], texts))
        return torch.einsum("bd,bnd->bn", videos, self.logit_scale.exp() * texts)


class VideoPrismMethods(RivalEncoder):
    """
    [`VideoPrismClipModel`] (Zhao et al., "VideoPrism: A Foundational Visual Encoder for Video Understanding").

    It has no trained factor. The authors' demonstration divides cosines by a temperature of 0.01 before a softmax over
    the texts; the model's `logits_per_video` are a softmax over the videos.
    """

    @property
    def num_frames(self) -> int:
        """Return how many frames the model has positions for."""
        return self.config.vision_config.num_frames

    @property
    def scoring(self) -> Scoring:
        """Return a softmax of the cosines times 100, as in the authors' demonstration."""
        return Scoring(logit_scale=100.0)

    def encode_videos(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Embed videos `(B, T, C, H, W)` as `(B, D)`."""
        return self.get_video_features(pixel_values_videos=pixel_values).pooler_output.squeeze(1)


class PeVideoMethods(RivalEncoder):
    """
    [`PeVideoModel`], the video branch of PE-AV (Vyas et al., "Pushing the Frontier of Audiovisual Perception").

    Its logits are products of embeddings that are not normalised, times a factor, plus a bias.
    """

    eos_token_id = None  # the first token is read
    image_size = None  # of a timm model

    @property
    def scoring(self) -> Scoring:
        """Return a softmax of the logits of [`score`]."""
        return Scoring(logit_scale=1.0)

    def encode_videos(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Embed videos `(B, T, C, H, W)` as `(B, D)`."""
        return self.video_head(self.video_encoder(pixel_values_videos=pixel_values).pooler_output)

    def encode_texts(self, tokens: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Embed N texts, given as the tokenizer's output, as `(N, D)`."""
        outputs = self.text_model(**tokens, output_hidden_states=True)
        return self.text_video_head(outputs.hidden_states[-1][:, 0])

    def score(self, videos: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        """Return the logits `(B, N)` of embedded videos `(B, D)` and texts `(N, D)`."""
        products = videos.to(self.dtype) @ texts.to(self.dtype).T
        return products * self.text_video_logit_scale + self.text_video_logit_bias


METHODS = {
    "aimv2": AIMv2Methods,
    "pe_video": PeVideoMethods,
    "videoprism": VideoPrismMethods,
    "xclip": XCLIPMethods,
}


def as_encoder(model: PreTrainedModel) -> RivalEncoder:
    """
    Return a dual encoder of transformers, of one of `RIVALS`, as a [`VideoTextEncoder`] in evaluation mode.

    The two share their weights.

    Example:

    ```python
    >>> encoder = as_encoder(XCLIPModel.from_pretrained("microsoft/xclip-base-patch32"))
    >>> encoder.encode_videos(pixel_values)  # (B, 1 + L, D)
    ```
    """
    encoder = copy.copy(model)
    encoder.__class__ = _add_methods(METHODS.get(model.config.model_type, RivalEncoder), type(model))
    return encoder.eval()


@functools.cache
def _add_methods(methods: type[RivalEncoder], model_class: type[PreTrainedModel]) -> type[RivalEncoder]:
    return type(f"{model_class.__name__}Encoder", (methods, model_class), {})
