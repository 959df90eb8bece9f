from .base import plain_clip as plain_clip
from .bpe_tokenizer import load_bpe_tokenizer as load_bpe_tokenizer
from .citations import describe_system as describe_system
from .loading import (
    check_fit as check_fit,
    load_encoder as load_encoder,
    load_model as load_model,
    load_processor as load_processor,
    load_tokenizer as load_tokenizer,
)
from .macs import count_clip_macs as count_clip_macs, count_macs as count_macs, count_macs_of as count_macs_of
from .merging import merge_models as merge_models
from .presets import make_config as make_config
