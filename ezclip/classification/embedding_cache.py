"""Keep video embeddings by content, so that other labels need no decoding."""

import hashlib
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ezclip import __version__
from ezclip.encoders import DualEncoder
from ezclip.errors import DataError
from ezclip.evaluation.identity import describe_model, describe_processor
from ezclip.utils.digests import digest, digest_file
from ezclip.utils.files import replacing, write_json
from ezclip.utils.messages import get_logger
from processing_ezclip import EZClipProcessor
from video_ezclip import (
    VideoReadError,
    check_frame_folder,
    check_regular_file,
    describe_video,
    is_frame,
    local_path,
)


logger = get_logger(__name__)

# What tells text towers and tokenizers apart does not change the embedding of a video.
TEXT_WEIGHTS = ("text_model.", "text_projection.", "logit_scale")
TEXT_SETTINGS = ("tokenizer", "split_camel_case", "text_padding")


class EmbeddingFolder:
    """
    A folder of named tensors by the content of their video: `FOLDER/CONTENT.safetensors`.

    Names and times of the video files do not matter.

    Args:
        folder (`str` or `Path`):
            The folder. It is created with the first embedding.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def find(self, key: str) -> tuple[dict[str, torch.Tensor], str | None] | None:
        """Return the tensors of a video and the reason why it was read in part, or None."""
        path = self.path_of(key)
        try:
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in sorted(file.keys())}, (file.metadata() or {}).get(
                    "problem"
                )
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError) as error:
            logger.warning(f"{path} is damaged ({error}). Its video is read again.")
            return None

    def keep(self, key: str, tensors: dict[str, torch.Tensor], problem: str | None = None):
        """
        Write the tensors of a video.

        Raises:
            `OSError`: if the folder cannot be written.
        """
        with replacing(self.path_of(key)) as temporary:
            tensors = {name: tensor.cpu() for name, tensor in tensors.items()}
            save_file(tensors, temporary, {"problem": problem} if problem else None)

    def path_of(self, key: str) -> Path:
        """Return the path of the tensors of a video."""
        return self.folder / f"{key}.safetensors"


class EmbeddingCache(EmbeddingFolder):
    """
    A folder of video embeddings, `video_embeds` of shape `(V, D)`: `FOLDER/SETTINGS/CONTENT.safetensors`.

    An embedding is found by the content of its video, and by everything else that decides it: the weights and the
    configuration of the video tower, the pixels, how the video is read, and the version of this package.

    Args:
        folder (`str` or `Path`):
            The folder. It is created with the first embedding.
        model ([`VideoTextEncoder`]), processor ([`EZClipProcessor`]):
            What embeds the videos.
        options:
            How videos are read, in types that JSON has.
    """

    def __init__(self, folder: str | Path, model: DualEncoder, processor: EZClipProcessor, **options):
        described = describe_model(model, [name for name in model.state_dict() if name.startswith(TEXT_WEIGHTS)])
        config = {name: value for name, value in described.pop("model_config").items() if "text_config." not in name}
        pixels = {name: value for name, value in describe_processor(processor).items() if name not in TEXT_SETTINGS}
        self.settings = {"ezclip": __version__, "model_config": config, **described, "processor": pixels, **options}
        self.root = Path(folder)
        super().__init__(self.root / digest(self.settings))

    def keep(self, key: str, tensors: dict[str, torch.Tensor], problem: str | None = None):
        """
        Write the tensors of a video; see [`EmbeddingFolder.keep`].

        Raises:
            [`DataError`]: if the folder cannot be written.
        """
        try:
            if not (path := self.folder / "settings.json").exists():
                write_json(path, self.settings)
            super().keep(key, tensors, problem)
        except OSError as error:
            raise DataError(f"--cache_dir {self.root} cannot be written ({error.strerror}). Give another.") from error


def digest_video(video: str | bytes | os.PathLike) -> str:
    """
    Return a digest of the content of a video: a file, a folder of frame images, or the bytes of a file.

    Raises:
        [`VideoReadError`]: if a file does not exist, is empty, cannot be read, or is not a regular file, or if the
        folder is not one video.
    """
    if isinstance(video, bytes):
        return hashlib.sha256(video).hexdigest()
    path, name = local_path(os.fspath(video)), describe_video(video)
    try:
        if not os.path.isdir(path):
            return _digest_regular_file(path, name)
        check_frame_folder(path, name)
        frames = sorted(filter(is_frame, Path(path).iterdir()))
        # The names say the order of the frames.
        return digest([(frame.name, _digest_regular_file(frame, name)) for frame in frames])
    except OSError as error:
        raise VideoReadError(name, f"cannot be read ({error.strerror}).", "Correct its permissions.") from error


def _digest_regular_file(path: str | Path, name: str) -> str:
    check_regular_file(path, name)
    return digest_file(path)
