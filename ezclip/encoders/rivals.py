"""Dual encoders of transformers as [`VideoTextEncoder`]s: the methods that each family lacks."""

import copy
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from ezclip.encoders.pixels import make_processor
from modeling_ezclip import EZClipModel
from pipeline_ezclip import Scoring


class RivalEncoder(PreTrainedModel):
    """
    The methods of a [`VideoTextEncoder`] on top of a dual encoder of transformers, see [`as_encoder`].

    A family adds `encode_videos`.
    """

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:  # the modules of the family's own class
            ...

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
        eos_token_id = self.config.text_config.eos_token_id
        return None if eos_token_id == 2 else eos_token_id  # 2 stands for the token with the highest number

    @property
    def scoring(self) -> Scoring:
        """Return the model's own scores: a softmax of the cosines times its trained factor."""
        if hasattr(self, "temperature"):
            return Scoring(logit_scale=1 / float(self.temperature.detach()))
        return Scoring(logit_scale=float(self.logit_scale.detach().exp()))

    def encode_texts(self, tokens: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Embed N texts, given as the tokenizer's output, as `(N, D)`, not normalised."""
        texts = self.get_text_features(**tokens)
        return texts.pooler_output

    def _check_num_frames(self, pixel_values: torch.Tensor):
        if (given := pixel_values.shape[1]) != self.num_frames:
            raise ValueError(f"`num_frames` must be {self.num_frames} for {self.name_or_path!r}, got {given}.")


class ImageMethods(RivalEncoder):
    """Encoders of images: a video is the mean of its frames' embeddings, as in plain CLIP."""

    def encode_videos(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Embed videos `(B, T, C, H, W)` as `(B, D)`, not normalised."""
        return self._embed_frames(pixel_values).mean(dim=1)

    def encode_frames(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Embed videos `(B, T, C, H, W)` and their frames as `(B, 1 + T, D)`, not normalised; the video is first."""
        frames = self._embed_frames(pixel_values)
        return torch.cat([frames.mean(dim=1, keepdim=True), frames], dim=1)

    def _embed_frames(self, pixel_values: torch.Tensor) -> torch.Tensor:
        frames = self.get_image_features(pixel_values=pixel_values.flatten(0, 1))
        return frames.pooler_output.unflatten(0, pixel_values.shape[:2])


class AIMv2Methods(ImageMethods):
    """[`Aimv2Model`], whose factor on the cosines has an upper limit."""

    @property
    def scoring(self) -> Scoring:
        """Return the model's own scores; see [`RivalEncoder`]."""
        return Scoring(logit_scale=float(self.logit_scale.detach().clamp(0.0, self.max_log_logit_scale).exp()))


class XCLIPMethods(RivalEncoder):
    """
    [`XCLIPModel`] (Ni et al., "Expanding Language-Image Pretrained Models for General Video Recognition").

    Its texts are prompted by the patches of the video, so that a score is no cosine of two embeddings.
    """

    @property
    def eos_token_id(self) -> None:
        """Return `None`: the text tower reads the token with the highest number."""

    @property
    def num_frames(self) -> int:
        """Return how many frames the model takes: its messages and positions are of so many."""
        return self.config.vision_config.num_frames

    def encode_videos(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Embed videos `(B, T, C, H, W)` as `(B, 1 + L, D)`: the video, and its L patches, averaged over time."""
        self._check_num_frames(pixel_values)
        outputs = self.vision_model(pixel_values=pixel_values.flatten(0, 1))
        frames = self.visual_projection(outputs.pooler_output).unflatten(0, pixel_values.shape[:2])
        patches = self.prompts_visual_layernorm(outputs.last_hidden_state[:, 1:]) @ self.prompts_visual_projection
        patches = patches.unflatten(0, pixel_values.shape[:2]).mean(dim=1)
        return torch.cat([self.mit(frames).pooler_output[:, None], patches], dim=1)

    def score(self, videos: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        """Return the cosines `(B, N)` of embedded videos `(B, 1 + L, D)` and texts `(N, D)`, which they prompt."""
        videos, texts = videos.to(self.dtype), texts.to(self.dtype)[None]
        # One video at a time: all together are (B, N, D), and more in the layers of the prompts.
        return torch.cat([self._score_one(video[None], texts) for video in videos])

    def _score_one(self, video: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        texts = texts + self.prompts_generator(texts, video[:, 1:])
        video, texts = (torch.nn.functional.normalize(embeds, dim=-1) for embeds in (video[:, 0], texts))
        return torch.einsum("bd,bnd->bn", video, texts)


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
        self._check_num_frames(pixel_values)
        return self.get_video_features(pixel_values_videos=pixel_values).pooler_output.squeeze(1)


class PeVideoMethods(RivalEncoder):
    """
    [`PeVideoModel`], the video branch of PE-AV (Vyas et al., "Pushing the Frontier of Audiovisual Perception").

    Its similarities are products of embeddings that are not normalised. It was trained with a sigmoid.
    """

    @property
    def eos_token_id(self) -> None:
        """Return `None`: the text tower reads the first token."""

    @property
    def image_size(self) -> None:
        """Return `None`: the size is that of a timm model, which the processor knows."""

    @property
    def scoring(self) -> Scoring:
        """Return the model's own factor, which is no logarithm, and bias."""
        factor, bias = self.text_video_logit_scale.detach(), self.text_video_logit_bias.detach()
        return Scoring(logit_scale=float(factor), logit_bias=float(bias))

    def encode_videos(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Embed videos `(B, T, C, H, W)` as `(B, D)`."""
        return self.video_head(self.video_encoder(pixel_values_videos=pixel_values).pooler_output)

    def encode_texts(self, tokens: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Embed N texts, given as the tokenizer's output, as `(N, D)`."""
        outputs = self.text_model(**tokens, output_hidden_states=True)
        return self.text_video_head(outputs.hidden_states[-1][:, 0])

    def score(self, videos: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        """Return the products `(B, N)` of embedded videos `(B, D)` and texts `(N, D)`."""
        return videos.to(self.dtype) @ texts.to(self.dtype).T


# What every command takes: see `load_encoder`.
DualEncoder = EZClipModel | RivalEncoder

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
    if isinstance(model, RivalEncoder):
        return model.eval()
    if model.config.model_type == "pe_audio_video":  # the published PE-AV also hears
        encoder: Any = copy.copy(model.video_model)
        encoder.name_or_path = model.name_or_path
    else:
        encoder = copy.copy(model)
    encoder.__class__ = _add_methods(METHODS.get(encoder.config.model_type, ImageMethods), type(encoder))
    return encoder.eval()


def wrap_rival(model: PreTrainedModel, processor) -> tuple[RivalEncoder, Any]:
    """
    Return a model and its processor, as `transformers.pipeline` loads them, as an encoder and an [`EZClipProcessor`].

    An [`EZClipProcessor`] is returned unchanged, and so is a processor without a tokenizer or pixels.

    Raises:
        `ValueError`: see [`make_processor`].
    """
    tokenizer = getattr(processor, "tokenizer", None)
    part = getattr(processor, "video_processor", None) or getattr(processor, "image_processor", None)
    if not hasattr(processor, "get_prompts") and tokenizer is not None and part is not None:
        processor = make_processor(model.config, part.to_dict(), tokenizer)
    return as_encoder(model), processor


@functools.cache
def _add_methods(methods: type[RivalEncoder], model_class: type[PreTrainedModel]) -> type[RivalEncoder]:
    return type(f"{model_class.__name__}Encoder", (methods, model_class), {})
