"""Zero-shot video action recognition in transformers: score a video against any list of labels."""

from typing import TYPE_CHECKING

import lazy_loader
from transformers import AutoConfig, AutoModel, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from configuration_ezclip import PIPELINE_TASK, EZClipConfig, EZClipTextConfig, EZClipVisionConfig
from ezclip.encoders import RIVALS, wrap_rival
from modeling_ezclip import EZClipModel, EZClipTextModel, EZClipVisionModel
from pipeline_ezclip import WRAPPERS, ClassBank, ZeroShotVideoClassificationPipeline
from processing_ezclip import EZClipProcessor
from video_ezclip import ReadLimits, VideoReadError, list_folder


if TYPE_CHECKING:
    from ezclip.classification import classify_videos
    from ezclip.data import find_videos
    from ezclip.report import write_report
    from ezclip.systems import load_encoder, load_model, load_processor
    from ezclip.timeline import find_segments

__version__ = "0.2.0"

# Imported on first use: each of these rooms has dependencies that `import ezclip` does not need.
__getattr__, _, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "classification": ["classify_videos"],
        "data": ["find_videos"],
        "report": ["write_report"],
        "systems": ["load_encoder", "load_model", "load_processor"],
        "timeline": ["find_segments"],
    },
)

__all__ = [
    "ClassBank",
    "EZClipConfig",
    "EZClipModel",
    "EZClipProcessor",
    "EZClipTextConfig",
    "EZClipTextModel",
    "EZClipVisionConfig",
    "EZClipVisionModel",
    "ReadLimits",
    "VideoReadError",
    "ZeroShotVideoClassificationPipeline",
    "classify_videos",
    "find_segments",
    "find_videos",
    "list_folder",
    "load_encoder",
    "load_model",
    "load_processor",
    "write_report",
]

# With the package installed, its checkpoints load without `trust_remote_code=True`.
AutoConfig.register(EZClipConfig.model_type, EZClipConfig, exist_ok=True)
AutoModel.register(EZClipConfig, EZClipModel, exist_ok=True)
AutoProcessor.register(EZClipConfig, EZClipProcessor, exist_ok=True)
PIPELINE_REGISTRY.register_pipeline(
    PIPELINE_TASK, ZeroShotVideoClassificationPipeline, pt_model=AutoModel, type="multimodal"
)
# The pipeline takes other dual encoders of transformers too.
WRAPPERS.update(dict.fromkeys(RIVALS, wrap_rival))


def __dir__() -> list[str]:
    return sorted(__all__)
