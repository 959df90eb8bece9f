from .figures import draw_attention as draw_attention
from .figures import draw_temporal_attention as draw_temporal_attention
from .maps import (
    attention_maps as attention_maps,
)
from .maps import (
    relevance_maps as relevance_maps,
)
from .maps import (
    temporal_attention as temporal_attention,
)
from .overlay import write_overlay as write_overlay
from .video_attention import (
    VideoAttention as VideoAttention,
)
from .video_attention import (
    describe_attention as describe_attention,
)
from .video_attention import (
    look_at_video as look_at_video,
)
