"""Zero-shot video action recognition in transformers: score a video against any list of labels."""

from importlib import import_module
from typing import TYPE_CHECKING

from transformers import AutoConfig, AutoModel, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from configuration_ezclip import PIPELINE_TASK, EZClipConfig, EZClipTextConfig, EZClipVisionConfig
from modeling_ezclip import EZClipModel, EZClipTextModel, EZClipVisionModel
from pipeline_ezclip import ClassBank, ZeroShotVideoClassificationPipeline
from processing_ezclip import EZClipProcessor
from video_ezclip import VideoReadError


if TYPE_CHECKING:
    from ezclip.report import write_report
    from ezclip.systems import load_model, load_processor
    from ezclip.timeline import find_segments

__version__ = "0.2.0"

# Imported on first use: each of these rooms has dependencies that `import ezclip` does not need.
_LAZY = {
    "find_segments": "ezclip.timeline",
    "load_model": "ezclip.systems",
    "load_processor": "ezclip.systems",
    "write_report": "ezclip.report",
}

__all__ = [
    "ClassBank",
    "EZClipConfig",
    "EZClipModel",
    "EZClipProcessor",
    "EZClipTextConfig",
    "EZClipTextModel",
    "EZClipVisionConfig",
    "EZClipVisionModel",
    "VideoReadError",
    "ZeroShotVideoClassificationPipeline",
    "find_segments",
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


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'ezclip' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
