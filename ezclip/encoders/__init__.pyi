from .families import RIVALS as RIVALS, Family as Family, check_trainable as check_trainable
from .interface import VideoTextEncoder as VideoTextEncoder
from .pixels import make_processor as make_processor, read_processor as read_processor
from .rivals import (
    DualEncoder as DualEncoder,
    RivalEncoder as RivalEncoder,
    as_encoder as as_encoder,
    wrap_rival as wrap_rival,
)
