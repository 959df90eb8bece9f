"""What a model is: CLIP's two towers, and what is added to them to read time.

EZ-CLIP (Ahmad, Chanda and Rawat, "EZ-CLIP: Efficient Zeroshot Video Action Recognition") keeps CLIP frozen and
adds temporal prompts and adapters; ActionCLIP (Wang, Xing and Liu, "ActionCLIP: A New Paradigm for Video Action
Recognition") trains all of CLIP and adds a temporal head, a temporal shift or joint space-time attention. Each
addition is a field of a configuration and can be switched off; with all of them off the model is CLIP with its frame
embeddings averaged. The published systems are the points of this space that `PRESETS` names.
"""

import copy
import math
from numbers import Integral, Real

from transformers import CLIPTextConfig, CLIPVisionConfig, PretrainedConfig


# ---- Size limits ----


# Far beyond what was ever published, and far below what would take a machine down by itself.
LARGEST = {
    "hidden_size": 2**16,
    "intermediate_size": 2**18,
    "projection_dim": 2**16,
    "num_hidden_layers": 1000,
    "temporal_head_layers": 1000,
    "num_attention_heads": 2**12,
    "num_frames": 2**12,
    "num_channels": 2**10,
    "image_size": 2**14,
    "patch_size": 2**14,
    "vocab_size": 2**20,
    "max_position_embeddings": 2**20,
    "num_labels": 2**20,
    # of an image processor
    "shortest_edge": 2**14,
    "height": 2**14,
    "width": 2**14,
}
LARGEST_ADAPTER_RATIO = 64
# The largest CLIP there is, EVA-CLIP, has 18 billion.
MOST_WEIGHTS = 20 * 10**9


def check_sizes(values: dict):
    """
    That what is given of the fields of `LARGEST` are sizes.

    Raises:
        `ValueError`: if one is no whole number, or out of range.
    """
    for name, largest in LARGEST.items():
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
    That every value is a finite number.

    Raises:
        `ValueError`: if one is not.
    """
    for name, value in values.items():
        if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
            raise ValueError(f"`{name}` must be a number, got {truncated_repr(value)}.")


def check_flags(values: dict):
    """
    That every value is `True` or `False`.

    Raises:
        `ValueError`: if one is not.
    """
    for name, value in values.items():
        if not isinstance(value, bool):
            raise ValueError(f"`{name}` must be true or false, got {truncated_repr(value)}.")


def check_tower(values: dict):
    """
    That heads divide the channels of a tower, and a patch fits into a frame.

    Raises:
        `ValueError`: if they do not.
    """
    if values["hidden_size"] % values["num_attention_heads"]:
        raise ValueError(
            f"`num_attention_heads` ({values['num_attention_heads']}) must divide `hidden_size` "
            f"({values['hidden_size']})."
        )
    if values.get("patch_size", 1) > values.get("image_size", 1):
        raise ValueError(
            f"`patch_size` ({values['patch_size']}) must be at most `image_size` ({values['image_size']}), of which a "
            "patch is a part."
        )


def count_tower_weights(config) -> int:
    """About how many weights a tower has: all that grow with more than one of its sizes."""
    width, frames = config.hidden_size, getattr(config, "num_frames", 0)
    block = 4 * width**2 + 2 * width * config.intermediate_size
    adapters = bool(config.use_adapter) + bool(getattr(config, "use_temporal_adapter", False))
    block += adapters * 2 * width * int(width * config.adapter_ratio)
    if getattr(config, "temporal_prompt", "none") == "deep":
        block += frames * width
    if hasattr(config, "vocab_size"):
        rows = config.vocab_size + config.max_position_embeddings
    else:
        rows = config.num_channels * config.patch_size**2 + (config.image_size // config.patch_size) ** 2 + frames
    return config.num_hidden_layers * block + rows * width


def check_number_of_weights(count: int):
    """
    That a model is none that no machine holds.

    Raises:
        `ValueError`: if it is.
    """
    if count > MOST_WEIGHTS:
        raise ValueError(
            f"The configuration asks for about {count:,} weights, and at most {MOST_WEIGHTS:,} are made. Look at its "
            "sizes: layers, channels, tokens and frames."
        )


def truncated_repr(value) -> str:
    """A value in few characters."""
    text = repr(value) if not isinstance(value, Integral) or abs(value) < 10**30 else "a number of over 30 digits"
    return text if len(text) <= 60 else f"{text[:60]}…"


# ---- Configurations ----


SWITCHES = ("use_adapter", "use_temporal_embedding", "use_temporal_adapter", "use_temporal_shift")
SWITCHES += ("use_joint_attention",)
TEMPORAL_PROMPTS = ("deep", "shallow", "none")
TEMPORAL_HEADS = ("mean", "transformer", "lstm", "conv1d", "transformer_cls")

PIPELINE_TASK = "zero-shot-video-classification"
# Where `pipeline` finds the code of the pipeline, in the words of config.json
CUSTOM_PIPELINES = {
    PIPELINE_TASK: {
        "impl": "pipeline_ezclip.ZeroShotVideoClassificationPipeline",
        "pt": ["AutoModel"],
        "type": "multimodal",
    }
}

# Embeddings of classes that stand beside a model's weights
CLASS_BANK_NAME = "class_bank.safetensors"

# CLIP's towers as they are.
PLAIN_TEXT = {"use_adapter": False, "attention_dropout": 0.0, "drop_path_rate": 0.0}
PLAIN_VISION = {**PLAIN_TEXT, "temporal_prompt": "none", "use_temporal_embedding": False}
FULLY_TRAINED = {"text_config": PLAIN_TEXT, "freeze_backbone": False, "motion_loss_weight": 0.0}
PRESETS = {
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


def _check_tower(config_class, fields: dict):
    """That a tower can be of the sizes that its fields and the defaults of CLIP give it, before CLIP looks at them."""
    defaults = {name: getattr(config_class, name, None) for name in LARGEST}
    values = {name: fields.get(name, default) for name, default in defaults.items() if isinstance(default, int)}
    check_sizes({**values, **fields})
    check_tower(values)


def _check_rates(config, names):
    check_flags({name: getattr(config, name) for name in SWITCHES if hasattr(config, name)})
    check_numbers({name: getattr(config, name) for name in (*names, "adapter_ratio", "layer_norm_eps")})
    for name in names:
        if not 0.0 <= getattr(config, name) < 1.0:
            raise ValueError(f"`{name}` is a probability in [0, 1), got {getattr(config, name)}.")
    if config.adapter_ratio > LARGEST_ADAPTER_RATIO:
        raise ValueError(f"`adapter_ratio` must be at most {LARGEST_ADAPTER_RATIO}, got {config.adapter_ratio}.")
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
        _check_tower(CLIPTextConfig, kwargs)
        check_numbers({"attention_dropout": attention_dropout})
        super().__init__(attention_dropout=attention_dropout, **kwargs)
        self.use_adapter = use_adapter
        self.adapter_ratio = adapter_ratio
        self.drop_path_rate = drop_path_rate
        _check_rates(self, ("attention_dropout", "drop_path_rate"))
        check_number_of_weights(count_tower_weights(self))


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
    base_config_key = "vision_config"

    def __init__(
        self,
        num_frames=8,
        temporal_prompt="deep",
        temporal_prompt_init_range=None,
        temporal_prompt_dropout=0.1,
        use_temporal_embedding=True,
        use_temporal_adapter=False,
        use_temporal_shift=False,
        use_joint_attention=False,
        use_adapter=True,
        adapter_ratio=0.25,
        attention_dropout=0.1,
        drop_path_rate=0.1,
        embedding_dropout=0.0,
        **kwargs,
    ):
        _check_tower(CLIPVisionConfig, {**kwargs, "num_frames": num_frames})
        check_numbers({"attention_dropout": attention_dropout})
        super().__init__(attention_dropout=attention_dropout, **kwargs)
        if temporal_prompt_init_range is None:
            temporal_prompt_init_range = math.sqrt(6.0 / (3 * 16 * 16 + self.hidden_size))
        self.num_frames = num_frames
        self.temporal_prompt = temporal_prompt
        self.temporal_prompt_init_range = temporal_prompt_init_range
        self.temporal_prompt_dropout = temporal_prompt_dropout
        self.use_temporal_embedding = use_temporal_embedding
        self.use_temporal_adapter = use_temporal_adapter
        self.use_temporal_shift = use_temporal_shift
        self.use_joint_attention = use_joint_attention
        self.use_adapter = use_adapter
        self.adapter_ratio = adapter_ratio
        self.drop_path_rate = drop_path_rate
        self.embedding_dropout = embedding_dropout
        check_numbers({"temporal_prompt_init_range": temporal_prompt_init_range})
        if temporal_prompt_init_range < 0.0:
            raise ValueError(
                f"`temporal_prompt_init_range` must be a number of at least 0, got {temporal_prompt_init_range}."
            )
        if temporal_prompt not in TEMPORAL_PROMPTS:
            raise ValueError(f"`temporal_prompt` must be one of {TEMPORAL_PROMPTS}, got {temporal_prompt!r}.")
        if use_joint_attention and (temporal_prompt != "none" or use_temporal_adapter or use_temporal_shift):
            raise ValueError(
                "`use_joint_attention` leaves no frames to connect: it goes with `temporal_prompt` 'none' and without "
                "`use_temporal_adapter` and `use_temporal_shift`."
            )
        _check_rates(self, ("attention_dropout", "drop_path_rate", "temporal_prompt_dropout", "embedding_dropout"))
        check_number_of_weights(count_tower_weights(self))

    @property
    def fixed_num_frames(self) -> bool:
        """Whether a weight has one row per frame, so that a video must have exactly `num_frames` frames."""
        return self.use_temporal_embedding or self.temporal_prompt != "none"


class CarriedPipelines(dict):
    """
    The pipelines whose code a checkpoint carries, by task, as `transformers.pipeline` reads them.

    Where no task is asked for, `pipeline` takes it from the keys; where the task is `in` them, it wants leave to run
    the checkpoint's code. With the pipeline of this very package registered there is no need to, so it is not.
    """

    def __contains__(self, task) -> bool:
        from transformers.pipelines import PIPELINE_REGISTRY

        registered = PIPELINE_REGISTRY.supported_tasks.get(task, {}).get("impl")
        own_pipeline = __name__.replace("configuration_ezclip", "pipeline_ezclip")
        return super().__contains__(task) and getattr(registered, "__module__", None) != own_pipeline


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
            Whether only prompts, adapters and the temporal head are trainable, as EZ-CLIP has it, and not all weights.
        temporal_head (`str`, *optional*, defaults to `"mean"`):
            What makes the embedding of a video of those of its frames: their `"mean"`, or one of ActionCLIP's heads,
            `"transformer"` ("Transf"), `"lstm"` ("LSTM"), `"conv1d"` ("Conv_1D"), `"transformer_cls"` ("Transf_cls").
        temporal_head_layers (`int`, *optional*, defaults to 6):
            Blocks of the heads that are transformers.
        temporal_head_dropout (`float`, *optional*, defaults to 0.1):
            Dropout in the head `"transformer_cls"`.
        conv1d_scrambles_frames (`bool`, *optional*, defaults to `False`):
            Whether the head `"conv1d"` takes the frames' channels for time, as the published code does, which
            reinterprets memory where it should transpose. Converted checkpoints were trained so.
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
        temporal_head="mean",
        temporal_head_layers=6,
        temporal_head_dropout=0.1,
        conv1d_scrambles_frames=False,
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
        self.temporal_head = temporal_head
        self.temporal_head_layers = temporal_head_layers
        self.temporal_head_dropout = temporal_head_dropout
        self.conv1d_scrambles_frames = conv1d_scrambles_frames
        self.initializer_factor = initializer_factor
        self.base_model_name_or_path = base_model_name_or_path
        kwargs.pop("model_type", None)
        kwargs.pop("custom_pipelines", None)
        check_sizes(kwargs)
        super().__init__(**kwargs)
        self._check_head()
        self._check_size()

    @property
    def custom_pipelines(self) -> CarriedPipelines:
        """The pipelines whose code goes with a checkpoint. (A copy: `pipeline` puts classes in the place of names.)"""
        return CarriedPipelines(copy.deepcopy(CUSTOM_PIPELINES))

    def to_dict(self) -> dict:
        return {**super().to_dict(), "custom_pipelines": copy.deepcopy(CUSTOM_PIPELINES)}

    @classmethod
    def from_preset(cls, name: str, text_config=None, vision_config=None, **kwargs) -> "EZClipConfig":
        r"""
        The configuration of a published system, on CLIP ViT-B/32 unless the towers say otherwise.

        Args:
            name (`str`):
                `"ezclip"`, `"actionclip"` (`"actionclip_tsm"` with the temporal shift, `"actionclip_joint"` with joint
                space-time attention), `"vificlip"`, `"tear"` or `"clip"`.
            text_config (`dict` or [`PretrainedConfig`], *optional*), vision_config (the same, *optional*):
                The towers of a plain CLIP, or a `dict` of fields that go before those of the system.
            kwargs:
                Other fields of [`EZClipConfig`].

        Raises:
            `ValueError`: if there is no such preset, or a tower leaves nothing to it.
        """
        if name not in PRESETS:
            raise ValueError(f"`preset` must be one of {tuple(PRESETS)}, got {name!r}.")
        for tower, config in (("text_config", text_config), ("vision_config", vision_config)):
            model_type = config.get("model_type") if isinstance(config, dict) else getattr(config, "model_type", None)
            if (model_type or "").startswith("ezclip"):
                raise ValueError(
                    f"`{tower}` is a whole configuration of this package and leaves nothing to the preset {name!r}. "
                    "Give a `dict` of fields, or the tower of a plain CLIP."
                )
        preset = PRESETS[name]
        towers = {
            "text_config": cls._tower(EZClipTextConfig, text_config, preset.get("text_config")),
            "vision_config": cls._tower(EZClipVisionConfig, vision_config, preset.get("vision_config")),
        }
        return cls(**{**preset, **kwargs, **towers})

    @property
    def fixed_num_frames(self) -> bool:
        """Whether a weight has one row per frame, so that a video must have exactly so many frames."""
        return self.vision_config.fixed_num_frames or self.temporal_head == "transformer_cls"

    def _check_head(self):
        if self.temporal_head not in TEMPORAL_HEADS:
            raise ValueError(f"`temporal_head` must be one of {TEMPORAL_HEADS}, got {self.temporal_head!r}.")
        check_sizes({name: getattr(self, name) for name in ("projection_dim", "temporal_head_layers")})
        check_flags({name: getattr(self, name) for name in ("freeze_backbone", "conv1d_scrambles_frames")})
        names = ("temporal_head_dropout", "logit_scale_init_value", "motion_loss_weight", "initializer_factor")
        check_numbers({name: getattr(self, name) for name in names})
        if not 0.0 <= self.temporal_head_dropout < 1.0:
            raise ValueError(f"`temporal_head_dropout` is a probability in [0, 1), got {self.temporal_head_dropout}.")
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
        heads = {"transformer": self.text_config.num_attention_heads, "transformer_cls": 8}.get(self.temporal_head, 1)
        if self.projection_dim % heads:
            raise ValueError(
                f"The temporal head {self.temporal_head!r} has {heads} attention heads, which do not divide "
                f"`projection_dim` ({self.projection_dim})."
            )

    def _check_size(self):
        towers = (self.text_config, self.vision_config)
        width = self.projection_dim
        block = {"transformer": 12 * width**2, "transformer_cls": 4 * width**2 + 4096 * width}
        head = self.temporal_head_layers * block[self.temporal_head] if self.temporal_head in block else 0
        head += 8 * width**2 * (self.temporal_head == "lstm")
        projections = sum(tower.hidden_size * width for tower in towers)
        check_number_of_weights(sum(map(count_tower_weights, towers)) + projections + head)

    @staticmethod
    def _tower(config_class, config, preset=None):
        if not (config is None or isinstance(config, (dict, PretrainedConfig))):
            raise ValueError(
                f"`{config_class.base_config_key}` must be a configuration, got {truncated_repr(config)}."
            )
        config = {} if config is None else dict(config) if isinstance(config, dict) else config.to_dict()
        if config.pop("model_type", config_class.model_type) != config_class.model_type:
            # CLIP's zero is no choice that was made for EZ-CLIP.
            config.pop("attention_dropout", None)
        return config_class(**{**(preset or {}), **config})


EZClipConfig.register_for_auto_class()


__all__ = ["EZClipConfig", "EZClipTextConfig", "EZClipVisionConfig"]
