"""What an EZ-CLIP model is: CLIP's two towers, and what is added to them to read time.

EZ-CLIP (Ahmad, Chanda and Rawat, "EZ-CLIP: Efficient Zeroshot Video Action Recognition") keeps CLIP frozen and
adds temporal prompts and adapters. Each addition is a field of a tower's configuration and can be switched off;
with all of them off the model is CLIP with its frame embeddings averaged.
"""

import math

from transformers import CLIPTextConfig, CLIPVisionConfig, PretrainedConfig


TEMPORAL_PROMPTS = ("deep", "shallow", "none")


def _check_rates(config, names):
    for name in names:
        if not 0.0 <= getattr(config, name) < 1.0:
            raise ValueError(f"`{name}` is a probability in [0, 1), got {getattr(config, name)}.")
    if config.adapter_ratio <= 0 or int(config.hidden_size * config.adapter_ratio) < 1:
        raise ValueError(
            f"`adapter_ratio` ({config.adapter_ratio}) must leave the adapter at least one of the "
            f"{config.hidden_size} channels."
        )


class EZClipTextConfig(CLIPTextConfig):
    r"""
    Configuration of [`EZClipTextModel`]: CLIP's text tower with an adapter in every block.

    Args:
        use_adapter (`bool`, *optional*, defaults to `True`):
            Whether every block has an adapter between its attention and its MLP.
        adapter_ratio (`float`, *optional*, defaults to 0.25):
            Width of the adapters as a fraction of `hidden_size`.
        attention_dropout (`float`, *optional*, defaults to 0.1):
            Dropout of the attention weights of the last block; it rises linearly from 0 in the first.
        drop_path_rate (`float`, *optional*, defaults to 0.1):
            Probability that the last block skips a residual branch for a sample (stochastic depth); it rises linearly
            from 0 in the first block.
        kwargs:
            The fields of [`CLIPTextConfig`].
    """

    model_type = "ezclip_text_model"
    base_config_key = "text_config"

    def __init__(self, use_adapter=True, adapter_ratio=0.25, attention_dropout=0.1, drop_path_rate=0.1, **kwargs):
        super().__init__(attention_dropout=attention_dropout, **kwargs)
        self.use_adapter = use_adapter
        self.adapter_ratio = adapter_ratio
        self.drop_path_rate = drop_path_rate
        _check_rates(self, ("attention_dropout", "drop_path_rate"))


class EZClipVisionConfig(CLIPVisionConfig):
    r"""
    Configuration of [`EZClipVisionModel`]: CLIP's vision tower, reading the frames of a video together.

    Args:
        num_frames (`int`, *optional*, defaults to 8):
            Frames of a video. Temporal prompts and the temporal embedding have one row for each of them.
        temporal_prompt (`str`, *optional*, defaults to `"deep"`):
            Where a temporal token is added to each frame: `"deep"` (every block), `"shallow"` (the first) or `"none"`.
        temporal_prompt_init_range (`float`, *optional*):
            Prompts are drawn from U(-r, r). Defaults to the published sqrt(6 / (3 * 16 * 16 + hidden_size)), 0.0625
            for ViT-B. A prompted token passes its block's attention without a residual, so a small model with many
            tokens a frame may need a wider range to learn from time at all.
        temporal_prompt_dropout (`float`, *optional*, defaults to 0.1):
            Dropout of the prompt vectors.
        use_temporal_embedding (`bool`, *optional*, defaults to `True`):
            Whether an embedding of the frame's place in time is added to its tokens. It starts at zero and stays
            frozen in EZ-CLIP. Without it and without temporal prompts the model takes any number of frames.
        use_temporal_adapter (`bool`, *optional*, defaults to `False`):
            Whether every block first attends over time at each token's position, through an adapter ("T_Adapter").
        use_adapter (`bool`, *optional*, defaults to `True`):
            Whether every block has an adapter between its attention and its MLP.
        adapter_ratio (`float`, *optional*, defaults to 0.25):
            Width of the adapters as a fraction of `hidden_size`.
        attention_dropout (`float`, *optional*, defaults to 0.1):
            Dropout of the attention weights of the last block; it rises linearly from 0 in the first.
        drop_path_rate (`float`, *optional*, defaults to 0.1):
            Probability that the last block skips a residual branch for a video (stochastic depth); it rises linearly
            from 0 in the first block.
        embedding_dropout (`float`, *optional*, defaults to 0.0):
            Dropout of the embedded patches, before the first LayerNorm.
        kwargs:
            The fields of [`CLIPVisionConfig`].
    """

    model_type = "ezclip_vision_model"
    base_config_key = "vision_config"

    def __init__(
        self,
        num_frames=8,
        temporal_prompt="deep",
        temporal_prompt_init_range=None,
        temporal_prompt_dropout=0.1,
        use_temporal_embedding=True,
        use_temporal_adapter=False,
        use_adapter=True,
        adapter_ratio=0.25,
        attention_dropout=0.1,
        drop_path_rate=0.1,
        embedding_dropout=0.0,
        **kwargs,
    ):
        super().__init__(attention_dropout=attention_dropout, **kwargs)
        if temporal_prompt_init_range is None:
            temporal_prompt_init_range = math.sqrt(6.0 / (3 * 16 * 16 + self.hidden_size))
        self.num_frames = num_frames
        self.temporal_prompt = temporal_prompt
        self.temporal_prompt_init_range = temporal_prompt_init_range
        self.temporal_prompt_dropout = temporal_prompt_dropout
        self.use_temporal_embedding = use_temporal_embedding
        self.use_temporal_adapter = use_temporal_adapter
        self.use_adapter = use_adapter
        self.adapter_ratio = adapter_ratio
        self.drop_path_rate = drop_path_rate
        self.embedding_dropout = embedding_dropout
        if num_frames < 1:
            raise ValueError(f"`num_frames` must be at least 1, got {num_frames}.")
        if not 0.0 <= temporal_prompt_init_range < math.inf:
            raise ValueError(
                f"`temporal_prompt_init_range` must be a number of at least 0, got {temporal_prompt_init_range}."
            )
        if temporal_prompt not in TEMPORAL_PROMPTS:
            raise ValueError(f"`temporal_prompt` must be one of {TEMPORAL_PROMPTS}, got {temporal_prompt!r}.")
        _check_rates(self, ("attention_dropout", "drop_path_rate", "temporal_prompt_dropout", "embedding_dropout"))

    @property
    def fixed_num_frames(self) -> bool:
        """Whether a weight has one row per frame, so that a video must have exactly `num_frames` frames."""
        return self.use_temporal_embedding or self.temporal_prompt != "none"


class EZClipConfig(PretrainedConfig):
    r"""
    Configuration of [`EZClipModel`]. The defaults are EZ-CLIP ViT-B/32 with 8 frames.

    Args:
        text_config (`dict` or [`EZClipTextConfig`], *optional*):
            The text tower.
        vision_config (`dict` or [`EZClipVisionConfig`], *optional*):
            The vision tower, with everything temporal.
        projection_dim (`int`, *optional*, defaults to 512):
            Dimension of the space that videos and texts share.
        logit_scale_init_value (`float`, *optional*, defaults to 2.6592):
            Initial value of `logit_scale`, the logarithm of the factor on the cosines.
        motion_loss_weight (`float`, *optional*, defaults to 1.0):
            Weight of the loss that rewards motion ("Motion_loss"; "Temporal Feature Diversity" in T2L).
        freeze_backbone (`bool`, *optional*, defaults to `True`):
            Whether only prompts and adapters are trainable, as published.
        initializer_factor (`float`, *optional*, defaults to 1.0):
            Factor on the standard deviation of CLIP's own initial weights.
        base_model_name_or_path (`str`, *optional*):
            Where the weights that were not trained come from: a folder, or a name on the Hub. Saved with checkpoints
            of trained weights alone; see [`EZClipModel.save_pretrained`].

    Example:

    ```python
    >>> from ezclip import EZClipConfig, EZClipModel

    >>> config = EZClipConfig(vision_config={"patch_size": 16, "num_frames": 16, "temporal_prompt": "shallow"})
    >>> model = EZClipModel(config)
    ```
    """

    model_type = "ezclip"
    # Of what the model returns, `Trainer` gathers the video embeddings alone: the rest is of texts, or of a batch.
    keys_to_ignore_at_inference = [
        *("loss_video", "loss_text", "loss_motion", "logits_per_video", "logits_per_text", "text_embeds"),
        *("frame_embeds", "text_model_output", "vision_model_output"),
    ]
    sub_configs = {"text_config": EZClipTextConfig, "vision_config": EZClipVisionConfig}

    def __init__(
        self,
        text_config=None,
        vision_config=None,
        projection_dim=512,
        logit_scale_init_value=2.6592,
        motion_loss_weight=1.0,
        freeze_backbone=True,
        initializer_factor=1.0,
        base_model_name_or_path=None,
        **kwargs,
    ):
        self.text_config = self._tower(EZClipTextConfig, text_config)
        self.vision_config = self._tower(EZClipVisionConfig, vision_config)
        self.projection_dim = projection_dim
        self.logit_scale_init_value = logit_scale_init_value
        self.motion_loss_weight = motion_loss_weight
        self.freeze_backbone = freeze_backbone
        self.initializer_factor = initializer_factor
        self.base_model_name_or_path = base_model_name_or_path
        kwargs.pop("model_type", None)
        super().__init__(**kwargs)

    @staticmethod
    def _tower(config_class, config):
        config = {} if config is None else dict(config) if isinstance(config, dict) else config.to_dict()
        if config.pop("model_type", config_class.model_type) != config_class.model_type:
            # CLIP's zero is no choice that was made for EZ-CLIP.
            config.pop("attention_dropout", None)
        return config_class(**config)


EZClipConfig.register_for_auto_class()

__all__ = ["EZClipConfig", "EZClipTextConfig", "EZClipVisionConfig"]
