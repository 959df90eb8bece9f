from .alignment import (
    Alignment as Alignment,
    alignment_of as alignment_of,
    describe_alignment as describe_alignment,
    draw_alignment as draw_alignment,
)
from .figures import draw_attention as draw_attention, draw_temporal_attention as draw_temporal_attention
from .maps import (
    attention_maps as attention_maps,
    relevance_maps as relevance_maps,
    temporal_attention as temporal_attention,
)
from .overlay import write_overlay as write_overlay
from .video_attention import (
    VideoAttention as VideoAttention,
    describe_attention as describe_attention,
    look_at_video as look_at_video,
)
