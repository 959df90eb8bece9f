"""Export both towers of a model for programs without this package: to ONNX, or as `torch.export` has it.

    python scripts/export_model.py --model ezclip-vit-base-patch16 --output_dir exported --format onnx

writes two files: the video tower, `pixel_values` (batch, frames, 3, height, width) to `video_embeds` (batch,
dimensions); and the text tower, `input_ids` and `attention_mask` (batch, length) to `text_embeds` (batch, dimensions).
Embeddings have length 1: their products are the cosines that the model compares. Batch size and length of the texts
are free, frames and their size fixed; all is float32. Each file is read back and compared with the model, on other
inputs and other batch sizes, and stays only if it agrees.
"""

import argparse
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

from ezclip.errors import ModelError
from ezclip.systems.loading import load_model
from modeling_ezclip import EZClipModel


SUFFIXES = {"onnx": ".onnx", "torch_export": ".pt2"}
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# Largest difference of an embedding of length 1 from the model's
TOLERANCE = 1e-4
# Batch sizes of the inputs that are traced, and of those that are compared
TRACED, COMPARED = 2, (1, 3)


class VideoTower(nn.Module):
    """Pixels of videos to their embeddings."""

    name, output_name = "video_tower", "video_embeds"

    def __init__(self, model: EZClipModel, num_frames: int | None = None):
        super().__init__()
        self.model = copy.deepcopy(model)
        del self.model.text_model, self.model.text_projection
        vision = model.config.vision_config
        self.num_frames = vision.num_frames if num_frames is None else num_frames
        self.frame_shape = (vision.num_channels, vision.image_size, vision.image_size)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        outputs = self.model.get_video_features(pixel_values, output_last_hidden_state=False)
        return nn.functional.normalize(outputs.pooler_output, dim=-1)

    def inputs(self, batch_size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {"pixel_values": torch.randn(batch_size, self.num_frames, *self.frame_shape, generator=generator)}

    def dynamic_shapes(self) -> dict[str, dict[int, Dim]]:
        return {"pixel_values": {0: Dim("batch")}}


class TextTower(nn.Module):
    """Tokens of texts to their embeddings."""

    name, output_name = "text_tower", "text_embeds"

    def __init__(self, model: EZClipModel):
        super().__init__()
        self.model = copy.deepcopy(model)
        del self.model.vision_model, self.model.visual_projection, self.model.temporal_head
        self.vocab_size = model.config.text_config.vocab_size
        self.max_length = model.config.text_config.max_position_embeddings
        eos_token_id = model.config.text_config.eos_token_id
        if not 0 <= eos_token_id < self.vocab_size:
            raise ModelError(
                f"The end-of-text token of the model, {eos_token_id}, is none of its {self.vocab_size}. Mend "
                "`eos_token_id` in its config.json."
            )
        self.end = self.vocab_size - 1 if eos_token_id == 2 else eos_token_id  # 2 stands for the last

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(self.model.get_text_features(input_ids, attention_mask).pooler_output, dim=-1)

    def inputs(self, batch_size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Texts of different lengths, the end of text last and padding behind it."""
        longest = self.max_length if batch_size == TRACED else (self.max_length + 3) // 2
        lengths = torch.randint(2, longest + 1, (batch_size,), generator=generator)
        lengths[0] = longest
        places = torch.arange(longest)
        input_ids = torch.randint(0, self.vocab_size, (batch_size, longest), generator=generator)
        input_ids = torch.where(places >= lengths[:, None] - 1, self.end, input_ids)
        return {"input_ids": input_ids, "attention_mask": (places < lengths[:, None]).long()}

    def dynamic_shapes(self) -> dict[str, dict[int, Dim]]:
        shape = {0: Dim("batch"), 1: Dim("length", max=self.max_length)}
        return {"input_ids": shape, "attention_mask": shape}


Tower = VideoTower | TextTower


@torch.no_grad()
def write_torch_export(tower: Tower, path: Path):
    inputs = tower.inputs(TRACED, torch.Generator().manual_seed(0))
    torch.export.save(torch.export.export(tower, (), inputs, dynamic_shapes=tower.dynamic_shapes()), path)


@torch.no_grad()
def write_onnx(tower: Tower, path: Path):
    inputs = tower.inputs(TRACED, torch.Generator().manual_seed(0))
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it says which of torchvision's operators it does without
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
    module = torch.export.load(path).module()
    return lambda **inputs: module(**inputs).detach().numpy()


def read_onnx(path: Path) -> Callable[..., np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda **inputs: session.run(None, {name: value.numpy() for name, value in inputs.items()})[0]


WRITE = {"onnx": write_onnx, "torch_export": write_torch_export}
READ = {"onnx": read_onnx, "torch_export": read_torch_export}


@torch.no_grad()
def difference(tower: Tower, embed: Callable[..., np.ndarray]) -> float:
    """The largest difference of embeddings from the tower's, on inputs that it was not traced with."""
    differences = []
    for seed, batch_size in enumerate(COMPARED, start=1):
        inputs = tower.inputs(batch_size, torch.Generator().manual_seed(seed))
        differences.append(np.abs(embed(**inputs) - tower(**inputs).numpy()).max())
    return float(np.max(differences))  # NaN if one is


def export(tower: Tower, output_dir: Path, file_format: str) -> str:
    """
    Write a tower, and compare what was written with it.

    Args:
        tower (`VideoTower` or `TextTower`):
            The tower.
        output_dir (`Path`):
            A folder that exists.
        file_format (`str`):
            `"onnx"` or `"torch_export"`.

    Returns:
        `str`: a line that says what was written and how far it is from the model.

    Raises:
        [`ModelError`]: if it is too far from it. Nothing is left of it then.
    """
    name = f"{tower.name}{SUFFIXES[file_format]}"
    with tempfile.TemporaryDirectory(dir=output_dir, prefix=".") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch to itself
        WRITE[file_format](tower, Path(folder) / name)
        distance = difference(tower, READ[file_format](Path(folder) / name))
        if not distance <= TOLERANCE:
            raise ModelError(
                f"The {tower.name} as {file_format} is {distance:.1e} from the model, more than {TOLERANCE:.0e}; it "
                "was not written. Try the other --format, or other versions of PyTorch and its exporter."
            )
        for path in Path(folder).iterdir():  # weights of more than 1 GB are a file beside
            shutil.move(path, output_dir / path.name)
    inputs = tower.inputs(1, torch.Generator())
    shapes = {
        key: ("batch", "length") if key in ("input_ids", "attention_mask") else ("batch", *value.shape[1:])
        for key, value in inputs.items()
    }
    described = ", ".join(f"{key} ({', '.join(map(str, shape))})" for key, shape in shapes.items())
    return f"{output_dir / name}: {described} -> {tower.output_name}, within {distance:.1e} of the model"


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder, or name on the Hub")
    parser.add_argument("--output_dir", required=True, help="folder to write")
    parser.add_argument("--format", required=True, choices=SUFFIXES, help="what to write")
    parser.add_argument("--num_frames", type=int, help="frames of a video, where the weights do not tell")
    args = parser.parse_args(argv)
    if args.format == "onnx" and (lacking := [name for name in ONNX_PACKAGES if find_spec(name) is None]):
        sys.exit(
            f"export_model.py: --format onnx needs {', '.join(lacking)}: python -m pip install {' '.join(lacking)}"
        )
    try:
        # Whatever it is on a machine, attention is PyTorch's own function in what is exported.
        model = load_model(args.model).float().eval()
        model.set_attn_implementation("sdpa")
        config = model.config
        own = config.vision_config.num_frames
        if args.num_frames not in (None, own) and (config.fixed_num_frames or args.num_frames < 1):
            raise ModelError(
                f"--num_frames {args.num_frames} does not fit {args.model}, which takes {own} frames. Leave the "
                "option out."
            )
        towers, output_dir = (VideoTower(model, args.num_frames), TextTower(model)), Path(args.output_dir)
        output_dir.mkdir(parents=True, exist_ok=True)
        for tower in towers:
            print(export(tower, output_dir, args.format))
    except (ModelError, ValueError) as error:
        sys.exit(f"export_model.py: {error}")
    except OSError as error:
        sys.exit(f"export_model.py: --output_dir {args.output_dir} cannot be written ({error}). Give another.")


if __name__ == "__main__":
    main()
