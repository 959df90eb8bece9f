"""Zero-shot video action recognition in transformers: a video and any list of labels in, the right label out."""

from pathlib import Path

from transformers import AutoConfig, AutoModel, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY


# In a clone or an editable install the modules that the Hub also gets stand at the repository root; in an installed
# package setup.py has put them beside this file.
_root = Path(__file__).resolve().parent.parent
if (_root / "setup.py").is_file() and (_root / "modeling_ezclip.py").is_file():
    __path__.append(str(_root))

from .class_bank_ezclip import ClassBank  # noqa: E402
from .configuration_ezclip import PIPELINE_TASK, EZClipConfig, EZClipTextConfig, EZClipVisionConfig  # noqa: E402
from .modeling_ezclip import EZClipModel, EZClipTextModel, EZClipVisionModel  # noqa: E402
from .pipeline_ezclip import ZeroShotVideoClassificationPipeline  # noqa: E402
from .processing_ezclip import EZClipProcessor  # noqa: E402
from .video_ezclip import VideoReadError  # noqa: E402


# With this package at hand, its folders and repositories load without `trust_remote_code`.
AutoConfig.register(EZClipConfig.model_type, EZClipConfig, exist_ok=True)
AutoModel.register(EZClipConfig, EZClipModel, exist_ok=True)
AutoProcessor.register(EZClipConfig, EZClipProcessor, exist_ok=True)
PIPELINE_REGISTRY.register_pipeline(
    PIPELINE_TASK, ZeroShotVideoClassificationPipeline, pt_model=AutoModel, type="multimodal"
)

__version__ = "0.1.0"

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
]
