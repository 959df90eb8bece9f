"""A model that `ezclip export --engine openvino` wrote, in OpenVINO: both towers, on the CPU."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from configuration_ezclip import EZClipConfig
from ezclip.constants import ENGINE_RECORD_NAME
from ezclip.errors import ModelError, first_line
from ezclip.utils.digests import digest_file


ENGINES = ("openvino",)
# What the video tower of each dtype computes in; int8 layers are in the file, and the rest is bfloat16.
PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "int8": "bf16"}
TOWERS = ("video_tower", "text_tower")
FILES = [f"{name}{suffix}" for name in TOWERS for suffix in (".xml", ".bin")]


def import_openvino() -> Any:
    """Return the module. Raise [`ModelError`] with the way to install it."""
    try:
        import openvino
    except ImportError as error:
        raise ModelError(f'OpenVINO is needed ({error}): python -m pip install "ezclip[openvino]"') from error
    return openvino


def is_export(folder: str | Path) -> bool:
    """Return whether a folder was written by `ezclip export --engine`."""
    return Path(folder, ENGINE_RECORD_NAME).is_file()


class OpenVINOEncoder(PreTrainedModel):
    """
    A [`VideoTextEncoder`] over the files of an export. It embeds in OpenVINO with the threads that PyTorch has.

    The files are part of `config.engine`, by content, so results of an export are never taken for those of the model.

    Args:
        folder (`str` or `Path`):
            The export.

    Raises:
        [`ModelError`]: if OpenVINO is missing, or the folder is no complete export.
    """

    config_class = EZClipConfig

    def __init__(self, folder: str | Path):
        folder = Path(folder)
        try:
            record = json.loads((folder / ENGINE_RECORD_NAME).read_text(encoding="utf-8"))
            config = EZClipConfig.from_pretrained(folder)
            if record["engine"] not in ENGINES:
                raise ValueError(f"its engine must be one of {', '.join(ENGINES)}, got {record['engine']!r}")
            digests = {name: digest_file(folder / name) for name in FILES}
            if damaged := [name for name in FILES if digests[name] != record["files"].get(name)]:
                raise ValueError(f"{damaged[0]} is not the file that was exported")
            config.engine = {"name": record["engine"], "dtype": record["dtype"], "files": digests}
            super().__init__(config)
            self.logit_scale = _as_parameter(record["logit_scale"])
            self.logit_bias = None if record["logit_bias"] is None else _as_parameter(record["logit_bias"])
            self.eos_token_id: int | None = record["eos_token_id"]
            self.num_frames: int = record["num_frames"]
            if type(self.num_frames) is not int:
                raise ValueError(f"its num_frames must be an integer, got {self.num_frames!r}")
            self.precision = PRECISIONS[record["dtype"]]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(
                f"{folder} is no complete export ({first_line(error)}). Export it again: `ezclip export --engine "
                "openvino`."
            ) from error
        side = config.vision_config.image_size
        self.image_size = (side, side)
        self.folder = folder
        self.name_or_path = config.name_or_path = str(folder)
        self._compiled: dict[tuple[str, int], Any] = {}

    def encode_videos(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        Embed videos `(B, T, C, H, W)` as `(B, D)`, of length 1.

        Raises:
            [`ModelError`]: if the export takes other frames.
        """
        return self._run("video_tower", pixel_values.float())

    def encode_texts(self, tokens: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """
        Embed N texts, given as the tokenizer's output, as `(N, D)`, of length 1.

        Raises:
            [`ModelError`]: if they are longer than the export takes.
        """
        input_ids = tokens["input_ids"]
        mask = tokens["attention_mask"] if "attention_mask" in tokens else torch.ones_like(input_ids)
        return self._run("text_tower", input_ids, mask)

    def _run(self, tower: str, *inputs: torch.Tensor) -> torch.Tensor:
        key = (tower, torch.get_num_threads())
        if key not in self._compiled:
            # Texts are embedded once for all videos, so their time hardly counts.
            precision = self.precision if tower == "video_tower" else PRECISIONS["float32"]
            options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": key[1]}
            core = import_openvino().Core()
            self._compiled[key] = core.compile_model(self.folder / f"{tower}.xml", "CPU", options)
        # A request of its own: calls of several threads would share one, and its buffers.
        request = self._compiled[key].create_infer_request()
        outputs = request.infer([np.ascontiguousarray(value.detach().numpy()) for value in inputs])
        # OpenVINO returns no rows for a shape that the graph does not take.
        if len(outputs[0]) != len(inputs[0]):
            takes = self._compiled[key].inputs[0].get_partial_shape()
            raise ModelError(f"{self.folder}: its {tower} takes {takes}, got {tuple(inputs[0].shape)}.")
        return torch.from_numpy(outputs[0].astype(np.float32))

    def save_pretrained(self, *args: Any, **kwargs: Any):
        """Raise [`ModelError`]: an export is copied as a folder."""
        raise ModelError(f"{self.folder} is an export, which has no weights to save. Copy the folder.")

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_compiled": {}}


def _as_parameter(value: Any) -> nn.Parameter:
    """Return a frozen scalar. Raise `ValueError` or `TypeError` if it is no finite number."""
    if not math.isfinite(value):
        raise ValueError(f"its scale and bias must be finite, got {value}")
    return nn.Parameter(torch.tensor(float(value)), requires_grad=False)


def load_export(folder: str | Path, engine: str) -> OpenVINOEncoder:
    """
    Load an export.

    Raises:
        [`ModelError`]: if the folder is none, or of another engine.
    """
    if engine not in ENGINES:
        raise ModelError(f"--engine must be one of {', '.join(ENGINES)}, got {engine!r}.")
    if not is_export(folder):
        raise ModelError(
            f"--engine {engine} takes a folder that `ezclip export --engine {engine}` wrote, got {folder}. Export the "
            "model first, or leave --engine out."
        )
    import_openvino()
    return OpenVINOEncoder(folder).eval()
