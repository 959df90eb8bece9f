"""Export both towers of a model to ONNX or `torch.export`, for programs without this package, or for an engine.

    ezclip export --model ezclip-vit-base-patch16 --output_dir exported --format onnx
    ezclip export --model ezclip-vit-base-patch16 --output_dir exported_int8 --engine openvino --dtype int8 \\
        --videos films --labels "yoga, making a cake, archery"
    ezclip classify holiday --labels "surfing, cooking" --model exported_int8 --engine openvino

With `--engine`, the export is compared with the model on videos, by content other ones than calibrate int8. It is not
written if it loses more than it promises; engine.json says what it loses.

With `--format`, the command writes two files. The video tower maps `pixel_values` (batch, frames, 3, height, width) to
`video_embeds` (batch, dimensions). The text tower maps `input_ids` and `attention_mask` (batch, length) to
`text_embeds` (batch, dimensions). Embeddings have length 1: their products are the cosines that the model compares.
Batch size and text length are dynamic, the frames and their size fixed; all numbers are float32. Each file is read
back and compared with the model on other inputs and batch sizes. A file that differs is deleted.
"""

import argparse
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from ezclip.cli.parser import Parser
from ezclip.data.labels import read_labels, split_labels
from ezclip.data.sources import find_videos
from ezclip.encoders.openvino_engine import ENGINES, PRECISIONS
from ezclip.engines.openvino_export import MIN_AGREEMENT, NUM_CALIBRATION_VIDEOS, export_openvino
from ezclip.engines.towers import TRACED_BATCH_SIZE, TextTower, Tower, VideoTower, write_onnx
from ezclip.errors import DataError, ModelError
from ezclip.systems.loading import load_model
from ezclip.utils.messages import say


SUFFIXES = {"onnx": ".onnx", "torch_export": ".pt2"}
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# Largest difference between an exported embedding of length 1 and the model's
TOLERANCE = 1e-4
COMPARED_BATCH_SIZES = (1, 3)


@torch.no_grad()
def write_torch_export(tower: Tower, path: Path):
    """Write a tower with `torch.export`."""
    inputs = tower.inputs(TRACED_BATCH_SIZE, torch.Generator().manual_seed(0))
    torch.export.save(torch.export.export(tower, (), inputs, dynamic_shapes=tower.dynamic_shapes()), path)


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
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--format", choices=SUFFIXES, help="file format for other programs")
    kind.add_argument("--engine", choices=ENGINES, help="engine for the commands of ezclip that have --engine")
    parser.add_argument("--num_frames", type=int, help="frames of a video, if the weights do not tell")
    engine = parser.add_argument_group("for --engine")
    engine.add_argument("--dtype", choices=PRECISIONS, help="number format (default: bfloat16)")
    engine.add_argument("--videos", nargs="+", help="files and folders of videos to calibrate and to judge by")
    engine.add_argument("--labels", nargs="+", help="labels to judge by; a single argument is split at its commas")
    engine.add_argument("--labels_file", help="file with a label a line, or a published label list")
    engine.add_argument(
        "--num_calibration_videos", type=int, help=f"videos that calibrate int8 (default: {NUM_CALIBRATION_VIDEOS})"
    )
    engine.add_argument(
        "--min_agreement", type=float, help=f"lowest share of equal best labels (default: {MIN_AGREEMENT})"
    )
    args = parser.parse_args(argv)
    try:
        if args.engine is not None:
            export_to_engine(args)
            return
        of_engine = ("dtype", "videos", "labels", "labels_file", "num_calibration_videos", "min_agreement")
        if given := [f"--{name}" for name in of_engine if getattr(args, name) is not None]:
            parser.error(f"{', '.join(given)} must come with --engine, got --format {args.format}.")
        say("\n".join(export_model(args.model, args.output_dir, args.format, args.num_frames)))
    except (DataError, ModelError, ValueError) as error:
        sys.exit(f"ezclip export: {error}")
    except OSError as error:
        sys.exit(f"ezclip export: --output_dir {args.output_dir} cannot be written ({error}). Give another.")


def export_to_engine(args: argparse.Namespace):
    """Export for an engine, and print the agreement."""
    if (args.labels is None) == (args.labels_file is None):
        raise DataError("Give either --labels or --labels_file: an export is judged by its best labels.")
    if not args.videos:
        raise DataError("Give --videos: an export is judged on videos. Use such as the model is for.")
    labels = read_labels(args.labels_file) if args.labels is None else split_labels(args.labels)
    chosen = {name: getattr(args, name) for name in ("num_calibration_videos", "min_agreement", "num_frames")}
    agreement = export_openvino(
        args.model,
        args.output_dir,
        args.dtype or "bfloat16",
        find_videos(args.videos),
        labels,
        **{name: value for name, value in chosen.items() if value is not None},
    )
    say(f"{args.output_dir}: {agreement}")
