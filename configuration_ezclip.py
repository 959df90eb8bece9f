"""Configurations of the model: the two towers of a dual encoder, and what is added to them to read time.

EZ-CLIP (Ahmad, Chanda and Rawat, "EZ-CLIP: Efficient Zeroshot Video Action Recognition") keeps CLIP frozen and
adds temporal prompts and adapters. ActionCLIP (Wang, Xing and Liu, "ActionCLIP: A New Paradigm for Video Action
Recognition") trains all of CLIP and adds a temporal head, a temporal shift or joint space-time attention. Each
addition is a field of a configuration and can be switched off. With all of them off the model is CLIP with its frame
embeddings averaged. `PRESETS` names the published systems.

The towers may be those of CLIP, MetaCLIP 2, AltCLIP, Chinese-CLIP, SigLIP or SigLIP 2: see `TEXT_TOWERS` and
`VISION_TOWERS`.
"""

import copy
import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, get_args

from huggingface_hub.dataclasses import strict, validated_field
from transformers import (
    AltCLIPTextConfig,
    AltCLIPVisionConfig,
    ChineseCLIPTextConfig,
    ChineseCLIPVisionConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
    MetaClip2TextConfig,
    MetaClip2VisionConfig,
    PretrainedConfig,
    Siglip2TextConfig,
    Siglip2VisionConfig,
    SiglipTextConfig,
    SiglipVisionConfig,
    TimmWrapperConfig,
)


# ---- Size limits ----


# Far beyond what was ever published, and far below what would exhaust a machine.
MAX_SIZES = {
    "hidden_size": 2**16,
    "intermediate_size": 2**18,
    "projection_dim": 2**16,
    "projection_size": 2**16,  # SigLIP's `projection_dim`, and the width of AltCLIP's texts before the projection
    "project_dim": 2**16,
    "num_hidden_layers": 1000,
    "temporal_head_layers": 1000,
    "num_attention_heads": 2**12,
    "num_frames": 2**12,
    "num_channels": 2**10,
    "num_patches": 2**20,
    "image_size": 2**14,
    "patch_size": 2**14,
    "vocab_size": 2**20,
    "max_position_embeddings": 2**20,
    "type_vocab_size": 2**16,
    "num_labels": 2**16,
    # of an image processor
    "shortest_edge": 2**14,
    "height": 2**14,
    "width": 2**14,
}
MAX_ADAPTER_RATIO = 64
# The largest CLIP, EVA-CLIP, has 18 billion.
MAX_PARAMETERS = 20 * 10**9


def check_sizes(values: dict):
    """
    Check the values whose names are in `MAX_SIZES`; ignore the others.

    Raises:
        `ValueError`: if a size is not a whole number, or out of range.
    """
    for name, largest in MAX_SIZES.items():
        if name not in values:
            continue
        value = values[name]
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise ValueError(f"`{name}` must be a whole number, got {truncated_repr(value)}.")
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {truncated_repr(value)}.")
        if value > largest:
            raise ValueError(f"`{name}` must be at most {largest:,}, got {truncated_repr(value)}.")


def check_numbers(values: dict):
    """
    Check that every value is a finite number.

    Raises:
        `ValueError`: if one is not.
    """
    for name, value in values.items():
        if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
            raise ValueError(f"`{name}` must be a number, got {truncated_repr(value)}.")


def truncated_repr(value) -> str:
    """Return `repr(value)`, cut to 60 characters."""
    text = repr(value) if not isinstance(value, Integral) or abs(value) < 10**30 else "a number of over 30 digits"
    return text if len(text) <= 60 else f"{text[:60]}…"


def _check_probabilities(config: PretrainedConfig, *names: str):
    check_numbers({name: getattr(config, name) for name in names})
    for name in names:
        if not 0.0 <= getattr(config, name) < 1.0:
            raise ValueError(f"`{name}` must be a probability in [0, 1), got {getattr(config, name)}.")


def _check_tower(config):
    """Raise if a tower's sizes are out of range, or do not fit each other."""
    sizes = {name: getattr(config, name) for name in MAX_SIZES if name in config.__dataclass_fields__}
    if sizes.get("projection_size", 0) is None:  # SigLIP's default, which is `hidden_size`
        del sizes["projection_size"]
    check_sizes(sizes)
    if config.hidden_size % config.num_attention_heads:
        raise ValueError(
            f"`num_attention_heads` ({config.num_attention_heads}) must divide `hidden_size` ({config.hidden_size})."
        )
    check_numbers({"adapter_ratio": config.adapter_ratio, "layer_norm_eps": config.layer_norm_eps})
    if config.adapter_ratio > MAX_ADAPTER_RATIO:
        raise ValueError(f"`adapter_ratio` must be at most {MAX_ADAPTER_RATIO}, got {config.adapter_ratio}.")
    if config.adapter_ratio <= 0 or int(config.hidden_size * config.adapter_ratio) < 1:
        raise ValueError(
            f"`adapter_ratio` ({config.adapter_ratio}) must leave the adapter at least one of the "
            f"{config.hidden_size} channels."
        )
    _check_num_parameters(_estimate_tower_parameters(config))


def _published_prompt_range(config) -> float:
    return math.sqrt(6.0 / (3 * 16 * 16 + config.hidden_size))


def _check_patches(config):
    """Raise if frames of a vision tower are smaller than its patches."""
    if config.patch_size > config.image_size:
        raise ValueError(f"`patch_size` ({config.patch_size}) must be at most `image_size` ({config.image_size}).")


def _estimate_tower_parameters(config) -> int:
    """Count the parameters of a tower that grow with more than one of its sizes."""
    width, frames = config.hidden_size, getattr(config, "num_frames", 0)
    block = 4 * width**2 + 2 * width * config.intermediate_size
    adapters = config.use_adapter + getattr(config, "use_temporal_adapter", False)
    block += adapters * 2 * width * int(width * config.adapter_ratio)
    if getattr(config, "temporal_prompt", "none") == "deep":
        block += frames * width
    if hasattr(config, "vocab_size"):
        names = ("vocab_size", "max_position_embeddings", "type_vocab_size", "project_dim", "projection_size")
        rows = sum(getattr(config, name, 0) or 0 for name in names)
    else:
        rows = config.num_channels * config.patch_size**2 + (config.image_size // config.patch_size) ** 2 + frames
    return config.num_hidden_layers * block + rows * width


def _check_num_parameters(count: int):
    if count > MAX_PARAMETERS:
        raise ValueError(
            f"The configuration asks for about {count:,} parameters, and at most {MAX_PARAMETERS:,} are allowed. "
            "Reduce its sizes: layers, channels, tokens or frames."
        )


# ---- Configurations ----


TemporalPrompt = Literal["deep", "shallow", "none"]
TemporalHead = Literal["mean", "transformer", "lstm", "conv1d", "transformer_cls"]
TEMPORAL_PROMPTS = get_args(TemporalPrompt)
TEMPORAL_HEADS = get_args(TemporalHead)
ScoreFunction = Literal["softmax", "sigmoid"]
SCORE_FUNCTIONS = get_args(ScoreFunction)

# The dual encoders of transformers whose towers the model takes: model type and name
BASE_MODELS = {
    "clip": "CLIP",
    "metaclip_2": "MetaCLIP 2",
    "altclip": "AltCLIP",
    "chinese_clip": "Chinese-CLIP",
    "siglip": "SigLIP",
    "siglip2": "SigLIP 2",
}
# The model types whose folders load: theirs and this package's
MODEL_TYPES = tuple(
    f"{name}{tower}" for name in (*BASE_MODELS, "ezclip") for tower in ("", "_text_model", "_vision_model")
)

PIPELINE_TASK = "zero-shot-video-classification"
# Where `transformers.pipeline` finds the pipeline's code, in the format of config.json
CUSTOM_PIPELINES = {
    PIPELINE_TASK: {
        "impl": "pipeline_ezclip.ZeroShotVideoClassificationPipeline",
        "pt": ["AutoModel"],
        "type": "multimodal",
    }
}


# File of class embeddings, saved beside a model's weights
CLASS_BANK_NAME = "class_bank.safetensors"

# CLIP's towers, nothing added
PLAIN_TEXT = {"use_adapter": False, "attention_dropout": 0.0, "drop_path_rate": 0.0}
PLAIN_VISION = {**PLAIN_TEXT, "temporal_prompt": "none", "use_temporal_embedding": False}
FULLY_TRAINED = {"text_config": PLAIN_TEXT, "freeze_backbone": False, "motion_loss_weight": 0.0}
PRESETS: dict[str, dict[str, Any]] = {
    # deep prompts, adapters in both towers, motion loss: the defaults of the configurations
    "ezclip": {},
    # the released models: "Transf"; other heads by `temporal_head`
    "actionclip": {**FULLY_TRAINED, "vision_config": PLAIN_VISION, "temporal_head": "transformer"},
    "actionclip_tsm": {**FULLY_TRAINED, "vision_config": {**PLAIN_VISION, "use_temporal_shift": True}},
    "actionclip_joint": {
        **FULLY_TRAINED,
        "vision_config": {**PLAIN_VISION, "use_joint_attention": True, "use_temporal_embedding": True},
    },
    "vificlip": {**FULLY_TRAINED, "vision_config": {**PLAIN_VISION, "num_frames": 32}},
    "clip": {"text_config": PLAIN_TEXT, "vision_config": PLAIN_VISION, "motion_loss_weight": 0.0},
    "tear": {
        "text_config": PLAIN_TEXT,
        "vision_config": {**PLAIN_VISION, "num_frames": 16},
        "motion_loss_weight": 0.0,
    },
}


def describe_plain(name_or_path: str, model_type: str) -> str:
    """Return what is said of a plain dual encoder, one of the `BASE_MODELS`."""
    return (
        f"{name_or_path} is plain {BASE_MODELS[model_type]}: frames are embedded one by one and averaged; nothing was "
        "trained on videos."
    )


def check_model_type(config: dict, name_or_path, model_types: tuple[str, ...] = MODEL_TYPES):
    """
    Raise if a saved configuration is not of one of `model_types`.

    Raises:
        `ValueError`: names the model type. Other models would load with random or wrong weights.
    """
    model_type = config.get("model_type")
    if model_type not in (None, *model_types):
        raise ValueError(
            f"{name_or_path} must be an EZ-CLIP or another dual encoder, got model_type {model_type!r}. Model types "
            f"that load: {', '.join(model_types)}."
        )


# The mixins of configurations have no fields of `PretrainedConfig`: these would override those of a tower.
_Mixin = PretrainedConfig if TYPE_CHECKING else object


class _CheckedConfig(_Mixin):
    """A configuration that loads only from folders of certain model types."""

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        """Return the saved configuration as a `dict`; see [`check_model_type`]."""
        config, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        check_model_type(config, pretrained_model_name_or_path, cls.loadable_types())
        if isinstance(tower := config.get(cls.base_config_key), dict) and "model_type" in tower:
            check_model_type(tower, pretrained_model_name_or_path, cls.loadable_types())
        return config, kwargs

    @classmethod
    def loadable_types(cls) -> tuple[str, ...]:
        """Return the model types of the folders that load."""
        return MODEL_TYPES


@strict
@dataclass
class AdapterFields(_CheckedConfig):
    """Fields of every tower, see [`EZClipTextConfig`]."""

    use_adapter: bool = True
    adapter_ratio: int | float = 0.25

    def __post_init__(self, **kwargs):
        # Before transformers makes a `dict` of `num_labels` entries. `@strict` calls validators again at the end.
        check_sizes(kwargs)
        self.validate_architecture()
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Raise `ValueError` if a field is out of range, or the fields do not fit each other."""
        _check_tower(self)

    @classmethod
    def loadable_types(cls) -> tuple[str, ...]:
        """Return the model types of the folders that load: of the same tower, or of a whole model with it."""
        family, tower, _ = cls.model_type.rsplit("_", 2)
        own = (family, cls.model_type, "ezclip")
        return (*own, "clip", f"clip_{tower}_model") if family == "ezclip" else own


@strict
@dataclass
class BlockFields(AdapterFields):
    """Fields of every tower of pre-norm blocks, see [`EZClipTextConfig`]."""

    if TYPE_CHECKING:
        attention_dropout: Any = 0.1  # towers differ in its type
    else:
        attention_dropout: int | float = 0.1
    drop_path_rate: int | float = 0.1

    def validate_architecture(self):
        """Raise `ValueError` if a field is out of range, or the fields do not fit each other."""
        super().validate_architecture()
        _check_probabilities(self, "attention_dropout", "drop_path_rate")


@strict
class EZClipTextConfig(BlockFields, CLIPTextConfig):
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


@strict
class EZClipMetaClip2TextConfig(BlockFields, MetaClip2TextConfig):
    """MetaCLIP 2's text tower with adapters. Unlike CLIP's, its `eos_token_id` of 2 means token number 2."""


@strict
class EZClipSiglipTextConfig(BlockFields, SiglipTextConfig):
    """SigLIP's text tower with adapters."""


@strict
class EZClipSiglip2TextConfig(BlockFields, Siglip2TextConfig):
    """SigLIP 2's text tower with adapters."""


@strict
class EZClipAltCLIPTextConfig(AdapterFields, AltCLIPTextConfig):
    """AltCLIP's text tower, an XLM-RoBERTa, with adapters. It has its own dropout."""


@strict
class EZClipChineseCLIPTextConfig(AdapterFields, ChineseCLIPTextConfig):
    """Chinese-CLIP's text tower, a BERT, with adapters. It has its own dropout."""


# Fields of a vision tower that begins as CLIP's does
CLIP_FIELDS = ("use_temporal_embedding", "use_temporal_shift", "use_joint_attention", "embedding_dropout")


@strict
@dataclass
class TemporalFields(BlockFields):
    """Fields of every vision tower, see [`EZClipVisionConfig`]."""

    has_clip_embeddings = True

    num_frames: int = 8
    temporal_prompt: TemporalPrompt = "deep"
    temporal_prompt_init_range: int | float | None = None
    temporal_prompt_dropout: int | float = 0.1
    use_temporal_embedding: bool = True
    use_temporal_adapter: bool = False
    use_temporal_shift: bool = False
    use_joint_attention: bool = False
    embedding_dropout: int | float = 0.0

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.temporal_prompt_init_range is None:
            self.temporal_prompt_init_range = _published_prompt_range(self)

    def validate_architecture(self):
        """Raise `ValueError` if a field is out of range, or the fields do not fit each other."""
        super().validate_architecture()
        _check_patches(self)
        _check_probabilities(self, "temporal_prompt_dropout", "embedding_dropout")
        if self.temporal_prompt_init_range is not None:
            check_numbers({"temporal_prompt_init_range": self.temporal_prompt_init_range})
            if self.temporal_prompt_init_range < 0.0:
                raise ValueError(
                    f"`temporal_prompt_init_range` must be at least 0, got {self.temporal_prompt_init_range}."
                )
        for name in () if self.has_clip_embeddings else CLIP_FIELDS:
            if value := getattr(self, name):
                raise ValueError(
                    f"`{name}` must be {type(value)()} with a {self.model_type!r}, got {value}: it needs CLIP's CLS "
                    "token and embeddings, which MetaCLIP 2, AltCLIP and Chinese-CLIP have too. Leave it out, or "
                    "replace the preset 'actionclip_tsm' or 'actionclip_joint' by 'actionclip'."
                )
        connects_frames = self.temporal_prompt != "none" or self.use_temporal_adapter or self.use_temporal_shift
        if self.use_joint_attention and connects_frames:
            raise ValueError(
                "`use_joint_attention` leaves no frames to connect: use `temporal_prompt='none'` with it, and neither "
                "`use_temporal_adapter` nor `use_temporal_shift`."
            )

    @property
    def fixed_num_frames(self) -> bool:
        """Return whether a weight has one row per frame, so that a video must have exactly `num_frames` frames."""
        return self.use_temporal_embedding or self.temporal_prompt != "none"


@strict
class EZClipVisionConfig(TemporalFields, CLIPVisionConfig):
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
        use_temporal_shift (`bool`, *optional*, defaults to `False`):
            Whether every block first takes an eighth of the channels of a frame's patches from the next frame, and
            another from the previous one (ActionCLIP's in-network prompt "Shift").
        use_joint_attention (`bool`, *optional*, defaults to `False`):
            Whether one CLS token and the patches of all frames attend to each other (ActionCLIP's pre-network prompt
            "Joint"), instead of the tokens of each frame among themselves. A video has one embedding then. The
            temporal embedding tells its frames apart.
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


@strict
class EZClipMetaClip2VisionConfig(TemporalFields, MetaClip2VisionConfig):
    """MetaCLIP 2's vision tower over time. It equals CLIP's."""


@strict
class EZClipAltCLIPVisionConfig(TemporalFields, AltCLIPVisionConfig):
    """AltCLIP's vision tower over time. It equals CLIP's."""


@strict
class EZClipChineseCLIPVisionConfig(TemporalFields, ChineseCLIPVisionConfig):
    """Chinese-CLIP's vision tower over time. It equals CLIP's."""


@strict
@dataclass
class PooledTemporalFields(TemporalFields):
    """Fields of a vision tower that has no CLS token and pools its patches by attention."""

    has_clip_embeddings = False

    use_temporal_embedding: bool = False
    vision_use_head: bool = True

    def validate_architecture(self):
        """Raise `ValueError` if a field is out of range, or the fields do not fit each other."""
        super().validate_architecture()
        if not self.vision_use_head:
            raise ValueError("`vision_use_head` must be True, got False: without it the tower does not pool patches.")


@strict
class EZClipSiglipVisionConfig(PooledTemporalFields, SiglipVisionConfig):
    """SigLIP's vision tower over time."""


@strict
class EZClipSiglip2VisionConfig(PooledTemporalFields, Siglip2VisionConfig):
    """SigLIP 2's vision tower over time ("NaFlex"). Frames are squares of `num_patches` patches, or patch lists."""

    @property
    def image_size(self) -> int:
        """Return the side of a square frame of `num_patches` patches, in pixels."""
        size: Any = self.patch_size
        return math.isqrt(self.num_patches) * size


@strict
class EZClipTimmVisionConfig(TemporalFields, TimmWrapperConfig):
    """PE-Core's vision tower over time: timm's `architecture`, changed by `model_args`, without its last layer.

    timm knows the sizes of an architecture. They are written to config.json, so that only the model needs timm.
    (Bolya et al., "Perception Encoder: The best visual embeddings are not at the output of the network".)
    """

    has_clip_embeddings = False

    hidden_size: int | None = None
    num_hidden_layers: int | None = None
    num_attention_heads: int | None = None
    intermediate_size: int | None = None
    image_size: int | None = None
    patch_size: int | None = None
    num_channels: int = 3
    layer_norm_eps: float = 1e-5
    use_temporal_embedding: bool = False

    def __post_init__(self, **kwargs):
        if not self.architecture.startswith("vit_pe_core_"):
            raise ValueError(f"`architecture` must be one of timm's vit_pe_core_*, got {self.architecture!r}.")
        if self.hidden_size is None:
            self._take_sizes_from_timm()
        super().__post_init__(**kwargs)

    def _take_sizes_from_timm(self):
        try:
            import timm
            import torch
        except ImportError as error:
            raise ImportError(f"{self.architecture!r} needs timm: `pip install timm`.") from error
        with torch.device("meta"):
            model = timm.create_model(self.architecture, num_classes=0, **(self.model_args or {}))
        block, (image_size, _), (patch_size, _) = (
            model.blocks[0],
            model.patch_embed.img_size,
            model.patch_embed.patch_size,
        )
        self.hidden_size, self.num_hidden_layers = model.embed_dim, len(model.blocks)
        self.num_attention_heads, self.intermediate_size = block.attn.num_heads, block.mlp.fc1.out_features
        self.image_size, self.patch_size = image_size, patch_size

    @classmethod
    def loadable_types(cls) -> tuple[str, ...]:
        """Return the model types of the folders that load."""
        return (cls.model_type, "ezclip")


_TEXT_CONFIGS = (
    *(EZClipMetaClip2TextConfig, EZClipAltCLIPTextConfig, EZClipChineseCLIPTextConfig),
    *(EZClipSiglipTextConfig, EZClipSiglip2TextConfig),
)
_VISION_CONFIGS = (
    *(EZClipMetaClip2VisionConfig, EZClipAltCLIPVisionConfig, EZClipChineseCLIPVisionConfig),
    *(EZClipSiglipVisionConfig, EZClipSiglip2VisionConfig, EZClipTimmVisionConfig),
)
# Configurations of towers, by model type; that of CLIP's own towers too
TEXT_TOWERS = {
    "clip_text_model": EZClipTextConfig,
    **{config.model_type: config for config in (EZClipTextConfig, *_TEXT_CONFIGS)},
}
VISION_TOWERS = {
    "clip_vision_model": EZClipVisionConfig,
    **{config.model_type: config for config in (EZClipVisionConfig, *_VISION_CONFIGS)},
}


# Values of fields that config.json leaves out
UNSET = {"scope": None, "function_to_apply": "softmax"}


class CarriedPipelines(dict):
    """
    Pipelines whose code a checkpoint carries, by task, as `transformers.pipeline` reads them.

    Called without a task, `pipeline` takes the task from the keys. If the task is `in` this dict, `pipeline` asks for
    `trust_remote_code`. If this package has registered the same pipeline, no remote code is needed, so `in` is false.
    """

    def __contains__(self, task) -> bool:
        from transformers.pipelines import PIPELINE_REGISTRY

        registered = PIPELINE_REGISTRY.supported_tasks.get(task, {}).get("impl")
        own_pipeline = __name__.replace("configuration_ezclip", "pipeline_ezclip")
        return super().__contains__(task) and getattr(registered, "__module__", None) != own_pipeline


def _check_tower_config(value):
    if not (value is None or isinstance(value, (dict, PretrainedConfig))):
        raise ValueError(f"A tower's configuration must be a `dict` or a configuration, got {truncated_repr(value)}.")


@strict
class EZClipConfig(_CheckedConfig, PretrainedConfig):
    r"""
    Configuration of [`EZClipModel`]. The defaults are EZ-CLIP ViT-B/32 with 8 frames.

    Args:
        text_config (`dict` or [`PretrainedConfig`], *optional*):
            The text tower: an [`EZClipTextConfig`], or a configuration with one of the `TEXT_TOWERS` as `model_type`.
        vision_config (`dict` or [`PretrainedConfig`], *optional*):
            The vision tower, with everything temporal: an [`EZClipVisionConfig`], or one of the `VISION_TOWERS`.
        projection_dim (`int`, *optional*, defaults to 512):
            Dimension of the space that videos and texts share. SigLIP projects nothing: there it is the width of the
            vision tower.
        logit_scale_init_value (`float`, *optional*, defaults to 2.6592):
            Initial value of `logit_scale`, the logarithm of the factor on the cosines.
        motion_loss_weight (`float`, *optional*, defaults to 1.0):
            Weight of the loss that rewards motion ("Motion_loss"; "Temporal Feature Diversity" in T2L).
        freeze_backbone (`bool`, *optional*, defaults to `True`):
            Whether only prompts, adapters and the temporal head are trainable, as in EZ-CLIP.
        temporal_head (`str`, *optional*, defaults to `"mean"`):
            How frame embeddings become a video embedding: by their `"mean"`, or by one of ActionCLIP's heads,
            `"transformer"` ("Transf"), `"lstm"` ("LSTM"), `"conv1d"` ("Conv_1D"), `"transformer_cls"` ("Transf_cls").
        temporal_head_layers (`int`, *optional*, defaults to 6):
            Number of blocks of the transformer heads.
        temporal_head_dropout (`float`, *optional*, defaults to 0.1):
            Dropout in the head `"transformer_cls"`.
        conv1d_scrambles_frames (`bool`, *optional*, defaults to `False`):
            Whether the head `"conv1d"` convolves over channels instead of time, as the published code does (it
            reshapes where it should transpose). Converted checkpoints were trained so.
        initializer_factor (`float`, *optional*, defaults to 1.0):
            Factor on the standard deviation of CLIP's own initial weights.
        base_model_name_or_path (`str`, *optional*):
            Folder or Hub name that holds the frozen weights. Saved only with checkpoints of trained weights; see
            [`EZClipModel.save_pretrained`].
        scope (`str`, *optional*):
            What the model was trained for, in one sentence. The pipeline shows it with its first answer.
        function_to_apply (`str`, *optional*, defaults to `"softmax"`):
            How cosines become scores: `"softmax"` over the labels with a factor of 100, as in all published
            evaluations on videos, or `"sigmoid"` per label with the model's own factor and bias, as in SigLIP.

    Example:

    ```python
    >>> from ezclip import EZClipConfig, EZClipModel

    >>> config = EZClipConfig(vision_config={"patch_size": 16, "num_frames": 16, "temporal_prompt": "shallow"})
    >>> model = EZClipModel(config)
    ```
    """

    model_type = "ezclip"
    # `Trainer` gathers `video_embeds` only: the other outputs belong to texts, or to a whole batch.
    keys_to_ignore_at_inference = [
        *("loss_video", "loss_text", "loss_motion", "logits_per_video", "logits_per_text", "text_embeds"),
        *("frame_embeds", "text_model_output", "vision_model_output"),
    ]
    sub_configs = {"text_config": EZClipTextConfig, "vision_config": EZClipVisionConfig}

    # A `dict` or a configuration of a tower; one of the classes in TEXT_TOWERS or VISION_TOWERS once made
    text_config: Any = validated_field(_check_tower_config, default=None)
    vision_config: Any = validated_field(_check_tower_config, default=None)
    projection_dim: int = 512
    logit_scale_init_value: int | float = 2.6592
    motion_loss_weight: int | float = 1.0
    freeze_backbone: bool = True
    temporal_head: TemporalHead = "mean"
    temporal_head_layers: int = 6
    temporal_head_dropout: int | float = 0.1
    conv1d_scrambles_frames: bool = False
    initializer_factor: int | float = 1.0
    base_model_name_or_path: str | None = None
    scope: str | None = None
    function_to_apply: ScoreFunction = "softmax"

    def __post_init__(self, **kwargs):
        check_sizes(kwargs)
        towers = self._make_towers(self.text_config, self.vision_config, family=kwargs.get("model_type"))
        self.text_config, self.vision_config = towers
        if not self.has_visual_projection:
            self.projection_dim = self.vision_config.hidden_size
        self.validate_architecture()
        # "clip" or the like when the fields come from such a folder; and `custom_pipelines` is a property.
        for name in ("model_type", "custom_pipelines"):
            kwargs.pop(name, None)
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Raise `ValueError` if a field is out of range, or head and towers do not fit each other."""
        check_sizes({"projection_dim": self.projection_dim, "temporal_head_layers": self.temporal_head_layers})
        names = ("logit_scale_init_value", "motion_loss_weight", "initializer_factor")
        check_numbers({name: getattr(self, name) for name in names})
        _check_probabilities(self, "temporal_head_dropout")
        if self.temporal_head != "mean" and self.vision_config.use_joint_attention:
            raise ValueError(
                f"The temporal head {self.temporal_head!r} joins frames, and with `use_joint_attention` a video has "
                "one embedding. Leave one of them out."
            )
        num_frames, num_positions = self.vision_config.num_frames, self.text_config.max_position_embeddings
        if self.temporal_head == "transformer" and num_frames > num_positions:
            raise ValueError(
                f"The temporal head 'transformer' has as many positions as the text tower, {num_positions}, and "
                f"`num_frames` is {num_frames}. Take at most {num_positions} frames."
            )
        text_dim = getattr(self.text_config, "projection_size", self.projection_dim)
        if text_dim != self.projection_dim:
            raise ValueError(
                f"`text_config.projection_size` must be {self.projection_dim}, the dimension of the videos, got "
                f"{text_dim}."
            )
        heads = {"transformer": self.text_config.num_attention_heads, "transformer_cls": 8}.get(self.temporal_head, 1)
        if self.projection_dim % heads:
            raise ValueError(
                f"`projection_dim` must be a multiple of {heads}, the attention heads of the temporal head "
                f"{self.temporal_head!r}, got {self.projection_dim}."
            )

        towers, width = (self.text_config, self.vision_config), self.projection_dim
        block = {"transformer": 12 * width**2, "transformer_cls": 4 * width**2 + 4096 * width}
        head = self.temporal_head_layers * block[self.temporal_head] if self.temporal_head in block else 0
        head += 8 * width**2 * (self.temporal_head == "lstm")
        projections = sum(tower.hidden_size * width for tower in towers)
        _check_num_parameters(sum(map(_estimate_tower_parameters, towers)) + projections + head)

    @property
    def custom_pipelines(self) -> CarriedPipelines:
        """Return the pipelines saved with a checkpoint, as a copy: `pipeline` replaces names in it by classes."""
        return CarriedPipelines(copy.deepcopy(CUSTOM_PIPELINES))

    def to_dict(self) -> dict:
        """Return `custom_pipelines` and all fields, but unset ones of `UNSET`, as config.json holds them."""
        fields = {**super().to_dict(), "custom_pipelines": copy.deepcopy(CUSTOM_PIPELINES)}
        return {name: value for name, value in fields.items() if name not in UNSET or value != UNSET[name]}

    @classmethod
    def from_preset(cls, name: str, text_config=None, vision_config=None, **kwargs) -> "EZClipConfig":
        r"""
        Return the configuration of a published system, on CLIP ViT-B/32 unless the towers say otherwise.

        Args:
            name (`str`):
                `"ezclip"`, `"actionclip"` (`"actionclip_tsm"` with the temporal shift, `"actionclip_joint"` with joint
                space-time attention), `"vificlip"`, `"tear"` or `"clip"`.
            text_config (`dict` or [`PretrainedConfig`], *optional*), vision_config (the same, *optional*):
                The towers of a plain dual encoder, or a `dict` of fields that override those of the system.
            kwargs:
                Other fields of [`EZClipConfig`].

        Raises:
            `ValueError`: if there is no such preset, or a tower is already an EZ-CLIP configuration.
        """
        if name not in PRESETS:
            raise ValueError(f"`preset` must be one of {tuple(PRESETS)}, got {name!r}.")
        for tower, config in (("text_config", text_config), ("vision_config", vision_config)):
            model_type = config.get("model_type") if isinstance(config, dict) else getattr(config, "model_type", None)
            if str(model_type).startswith("ezclip"):
                raise ValueError(
                    f"`{tower}` must be a `dict` of fields or the tower of a plain dual encoder with the preset "
                    f"{name!r}, got a complete {model_type!r} configuration."
                )
        preset = PRESETS[name]
        towers = cls._make_towers(text_config, vision_config, preset)
        return cls(**{**preset, **kwargs, **dict(zip(("text_config", "vision_config"), towers))})

    @property
    def fixed_num_frames(self) -> bool:
        """Return whether a weight has one row per frame, so that a video must have exactly so many frames."""
        return self.vision_config.fixed_num_frames or self.temporal_head == "transformer_cls"

    @property
    def has_visual_projection(self) -> bool:
        """Return whether frame embeddings are projected. SigLIP's vision towers pool into the shared space."""
        return not isinstance(self.vision_config, PooledTemporalFields)

    @property
    def has_logit_bias(self) -> bool:
        """Return whether logits have a bias, as in SigLIP."""
        return not self.has_visual_projection

    @property
    def has_text_projection(self) -> bool:
        """Return whether text embeddings are projected. SigLIP's text towers have their own last layer."""
        return not hasattr(self.text_config, "projection_size")

    @staticmethod
    def _make_towers(text_config, vision_config, preset: dict | None = None, family: str | None = None) -> list:
        """Make the configurations of both towers. A tower without a `model_type` is of the family of the other."""
        towers = []
        for config in (text_config, vision_config):
            _check_tower_config(config)
            towers.append(config.to_dict() if isinstance(config, PretrainedConfig) else dict(config or {}))
        types = [config.pop("model_type", None) for config in towers]
        known = (("text", TEXT_TOWERS), ("vision", VISION_TOWERS))
        named = [name for name in types if any(name in classes for _, classes in known)]
        families = [name.rsplit("_", 2)[0] for name in named if name.endswith("_model")]
        families += [family] if family in BASE_MODELS else []
        family = families[0] if families else "ezclip"
        for index, (name, classes) in enumerate(known):
            model_type = types[index] or f"{family}_{name}_model"
            if model_type not in classes:
                raise ValueError(f"`{name}_config.model_type` must be one of {tuple(classes)}, got {model_type!r}.")
            config_class, config = classes[model_type], towers[index]
            if types[index] and not types[index].startswith("ezclip") and "use_adapter" not in config:
                # The default of a plain tower, 0, was not chosen for EZ-CLIP.
                config.pop("attention_dropout", None)
            own = (preset or {}).get(f"{name}_config", {})
            own = {field: value for field, value in own.items() if field in config_class.__dataclass_fields__}
            towers[index] = config_class(**{**own, **config})
        return towers


EZClipConfig.register_for_auto_class()


__all__ = ["EZClipConfig", "EZClipTextConfig", "EZClipVisionConfig"]
