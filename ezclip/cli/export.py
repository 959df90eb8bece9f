"""Export both towers of a model to ONNX or `torch.export`, for programs without this package.

    ezclip export --model ezclip-vit-base-patch16 --output_dir exported --format onnx

The command writes two files. The video tower maps `pixel_values` (batch, frames, 3, height, width) to `video_embeds`
(batch, dimensions). The text tower maps `input_ids` and `attention_mask` (batch, length) to `text_embeds` (batch,
dimensions). Embeddings have length 1: their products are the cosines that the model compares. Batch size and text
length are dynamic, the frames and their size fixed; all numbers are float32. Each file is read back and compared with
the model on other inputs and batch sizes. A file that differs is deleted.
"""

import copy
import logging
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.export import Dim

from ezclip.cli.parser import Parser
from ezclip.errors import ModelError
from ezclip.systems.loading import load_model
from ezclip.utils.messages import say
from modeling_ezclip import EZClipModel
from processing_ezclip import max_text_length


SUFFIXES = {"onnx": ".onnx", "torch_export": ".pt2"}
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# Largest difference between an exported embedding of length 1 and the model's
TOLERANCE = 1e-4
TRACED_BATCH_SIZE = 2
COMPARED_BATCH_SIZES = (1, 3)


class VideoTower(nn.Module):
    """The part of a model, as a copy, that embeds videos of `num_frames` frames, by default the model's number."""

    name, output_name = "video_tower", "video_embeds"

    def __init__(self, model: EZClipModel, num_frames: int | None = None):
        super().__init__()
        self.model = copy.deepcopy(model)
        del self.model.text_model, self.model.text_projection
        vision = model.config.vision_config
        self.num_frames = vision.num_frames if num_frames is None else num_frames
        self.frame_shape = (vision.num_channels, vision.image_size, vision.image_size)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return embeddings of length 1 `(B, D)` of videos `(B, T, 3, H, W)`."""
        outputs = self.model.get_video_features(pixel_values, output_last_hidden_state=False)
        return nn.functional.normalize(outputs.pooler_output, dim=-1)

    def inputs(self, batch_size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Return random inputs."""
        return {"pixel_values": torch.randn(batch_size, self.num_frames, *self.frame_shape, generator=generator)}

    def dynamic_shapes(self) -> dict[str, dict[int, Dim]]:
        """Return the dynamic dimensions of the inputs."""
        return {"pixel_values": {0: Dim("batch")}}


class TextTower(nn.Module):
    """The part of a model, as a copy, that embeds texts. Raises [`ModelError`] for an impossible end-of-text token.

    SigLIP's texts must be padded to the tower's length. If its tokenizer gives no mask, the mask is 1 everywhere.
    """

    name, output_name = "text_tower", "text_embeds"

    def __init__(self, model: EZClipModel):
        super().__init__()
        self.model = copy.deepcopy(model)
        del self.model.vision_model, self.model.visual_projection, self.model.temporal_head
        self.vocab_size = model.config.text_config.vocab_size
        self.max_length = max_text_length(model.config.text_config)
        # The token that ends a text. Only the towers of CLIP and MetaCLIP 2 look for it.
        self.eos_token_id: int = self.vocab_size - 1
        if hasattr(model.text_model, "eos_token_id") and not model.text_model.ends_at_highest:
            self.eos_token_id = model.text_model.eos_token_id
        if not 0 <= self.eos_token_id < self.vocab_size:
            raise ModelError(
                f"The end-of-text token {self.eos_token_id} of the model must be one of its {self.vocab_size} tokens. "
                "Correct `eos_token_id` in its config.json."
            )

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return embeddings of length 1 `(B, D)` of texts `(B, L)`."""
        return nn.functional.normalize(self.model.get_text_features(input_ids, attention_mask).pooler_output, dim=-1)

    def inputs(self, batch_size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Return random texts of different lengths, each with an end-of-text token and padding."""
        longest = self.max_length if batch_size == TRACED_BATCH_SIZE else (self.max_length + 3) // 2
        lengths = torch.randint(2, longest + 1, (batch_size,), generator=generator)
        lengths[0] = longest
        positions = torch.arange(longest)
        input_ids = torch.randint(0, self.vocab_size, (batch_size, longest), generator=generator)
        input_ids = torch.where(positions >= lengths[:, None] - 1, self.eos_token_id, input_ids)
        return {"input_ids": input_ids, "attention_mask": (positions < lengths[:, None]).long()}

    def dynamic_shapes(self) -> dict[str, dict[int, Dim]]:
        """Return the dynamic dimensions of the inputs."""
        shape = {0: Dim("batch"), 1: Dim("length", max=self.max_length)}
        return {"input_ids": shape, "attention_mask": shape}


Tower = VideoTower | TextTower


@torch.no_grad()
def write_torch_export(tower: Tower, path: Path):
    """Write a tower with `torch.export`."""
    inputs = tower.inputs(TRACED_BATCH_SIZE, torch.Generator().manual_seed(0))
    torch.export.save(torch.export.export(tower, (), inputs, dynamic_shapes=tower.dynamic_shapes()), path)


@torch.no_grad()
def write_onnx(tower: Tower, path: Path):
    """Write a tower as ONNX. Weights of more than 1 GB go to a file beside it."""
    inputs = tower.inputs(TRACED_BATCH_SIZE, torch.Generator().manual_seed(0))
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns about missing operators of torchvision
    torch.onnx.export(
        tower,
        (),
        path,
        kwargs=inputs,
        input_names=list(inputs),
        output_names=[tower.output_name],
        dynamic_shapes=tower.dynamic_shapes(),
        dynamo=True,
        external_data=sum(p.numel() * p.element_size() for p in tower.parameters()) > 2**30,
        verbose=False,
    )


def read_torch_export(path: Path) -> Callable[..., np.ndarray]:
    """Return a function from the inputs of an exported tower to its embeddings."""
    module = torch.export.load(path).module()
    return lambda **inputs: module(**inputs).detach().numpy()


def read_onnx(path: Path) -> Callable[..., np.ndarray]:
    """Return a function from the inputs of an ONNX tower to its embeddings."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda **inputs: session.run(None, {name: value.numpy() for name, value in inputs.items()})[0]


WRITE = {"onnx": write_onnx, "torch_export": write_torch_export}
READ = {"onnx": read_onnx, "torch_export": read_torch_export}


@torch.no_grad()
def max_difference(tower: Tower, embed: Callable[..., np.ndarray]) -> float:
    """Return the largest difference from the embeddings of a tower, on inputs that were not traced."""
    differences = []
    for seed, batch_size in enumerate(COMPARED_BATCH_SIZES, start=1):
        inputs = tower.inputs(batch_size, torch.Generator().manual_seed(seed))
        differences.append(np.abs(embed(**inputs) - tower(**inputs).numpy()).max())
    return float(np.max(differences))  # NaN if any difference is


def export(tower: Tower, output_dir: Path, file_format: str) -> str:
    """
    Write a tower to an existing folder, and compare the file with the tower.

    Return a line about file, inputs, output and difference. Raise a [`ModelError`] and write nothing if the difference
    is too large.
    """
    name = f"{tower.name}{SUFFIXES[file_format]}"
    with tempfile.TemporaryDirectory(dir=output_dir, prefix=".") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's exporters warn about their own calls
        WRITE[file_format](tower, Path(folder) / name)
        difference = max_difference(tower, READ[file_format](Path(folder) / name))
        if not difference <= TOLERANCE:  # also if it is NaN
            raise ModelError(
                f"The {tower.name} as {file_format} is {difference:.1e} from the model, more than {TOLERANCE:.0e}. It "
                "was not written. Try the other --format, or other versions of PyTorch and its exporter."
            )
        for path in Path(folder).iterdir():  # large weights are a second file
            shutil.move(path, output_dir / path.name)
    dynamic, described = tower.dynamic_shapes(), []
    for key, value in tower.inputs(1, torch.Generator()).items():
        sizes = [dynamic[key][i].__name__ if i in dynamic[key] else str(size) for i, size in enumerate(value.shape)]
        described.append(f"{key} ({', '.join(sizes)})")
    inputs = ", ".join(described)
    return f"{output_dir / name}: {inputs} -> {tower.output_name}, within {difference:.1e} of the model"


def export_model(
    name_or_path: str, output_dir: str | Path, file_format: str, num_frames: int | None = None
) -> list[str]:
    """
    Export both towers of a model, as `"onnx"` or `"torch_export"`. Return a line for each file, see [`export`].

    Raises:
        [`ModelError`]: if a package is missing, `num_frames` does not fit, or a file differs from the model.
        `OSError`: if the folder cannot be written.
    """
    if file_format == "onnx" and (missing := [name for name in ONNX_PACKAGES if find_spec(name) is None]):
        raise ModelError(f"--format onnx needs {', '.join(missing)}: python -m pip install {' '.join(missing)}")
    model = load_model(name_or_path).float().eval()
    model.set_attn_implementation("sdpa")  # the export holds PyTorch's own attention, whatever this machine uses
    config = model.config
    if num_frames not in (None, config.vision_config.num_frames) and (config.fixed_num_frames or num_frames < 1):
        raise ModelError(
            f"--num_frames {num_frames} does not fit {name_or_path}, which takes {config.vision_config.num_frames} "
            "frames. Leave the option out."
        )
    towers, output_dir = (VideoTower(model, num_frames), TextTower(model)), Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    return [export(tower, output_dir, file_format) for tower in towers]


def main(argv: list[str] | None = None):
    """Run `ezclip export` with the options `argv`, by default those of the process."""
    parser = Parser(prog="ezclip export", description=__doc__)
    parser.add_argument("--model", required=True, help="folder, or name on the Hub")
    parser.add_argument("--output_dir", required=True, help="folder to write")
    parser.add_argument("--format", required=True, choices=SUFFIXES, help="file format")
    parser.add_argument("--num_frames", type=int, help="frames of a video, if the weights do not tell")
    args = parser.parse_args(argv)
    try:
        say("\n".join(export_model(args.model, args.output_dir, args.format, args.num_frames)))
    except (ModelError, ValueError) as error:
        sys.exit(f"ezclip export: {error}")
    except OSError as error:
        sys.exit(f"ezclip export: --output_dir {args.output_dir} cannot be written ({error}). Give another.")
