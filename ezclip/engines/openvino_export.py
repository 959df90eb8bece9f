"""Export a model for OpenVINO, in float32, bfloat16 or int8, and measure what that loses."""

import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ezclip.constants import ENGINE_RECORD_NAME
from ezclip.data.isolated_reader import IsolatedReader
from ezclip.encoders.openvino_engine import FILES, PRECISIONS, OpenVINOEncoder, import_openvino
from ezclip.engines.agreement import Agreement, compare_embeddings
from ezclip.engines.towers import TextTower, VideoTower, write_onnx
from ezclip.errors import ModelError
from ezclip.evaluation.identity import describe_model
from ezclip.systems.loading import check_fit, load_model, load_processor
from ezclip.utils.digests import digest_file
from ezclip.utils.files import write_json
from ezclip.utils.messages import say
from pipeline_ezclip import ClassBank
from video_ezclip import VideoReadError


# The share of equal best labels that an export promises
MIN_AGREEMENT = 0.99
# Float32 must be the model; see also `ezclip export --format`.
FLOAT32_TOLERANCE = 1e-4
# Largest difference of a clip's embedding between batches
BATCH_TOLERANCE = 1e-3
NUM_CALIBRATION_VIDEOS = 64
MIN_JUDGED = 8


@torch.no_grad()
def export_openvino(
    name_or_path: str,
    output_dir: str | Path,
    dtype: str,
    videos: Iterable[str],
    candidate_labels: Sequence[str],
    num_calibration_videos: int = NUM_CALIBRATION_VIDEOS,
    min_agreement: float = MIN_AGREEMENT,
    num_frames: int | None = None,
) -> Agreement:
    """
    Export both towers of a model to a folder that `--engine openvino` runs, with a record of its agreement.

    int8 are the linear layers over the patches of frames: nine tenths of the work. The patch convolution, the
    products of attention, temporal prompts and adapters stay in bfloat16, and the text tower in float32.

    Args:
        name_or_path (`str`):
            The model: a folder, or a name on the Hub.
        output_dir (`str` or `Path`):
            The folder to write. It must not hold another export.
        dtype (`str`):
            `"float32"`, `"bfloat16"` or `"int8"`.
        videos (`Iterable[str]`):
            Video files, such as those that the model is for. Files with the same content count once. For int8, some
            calibrate, and the others are judged; otherwise all are judged.
        candidate_labels (`Sequence[str]`):
            The labels whose best one is compared.
        num_calibration_videos (`int`, *optional*, defaults to 64):
            Number of videos that calibrate int8.
        min_agreement (`float`, *optional*, defaults to 0.99):
            Lowest share of equal best labels.
        num_frames (`int`, *optional*):
            Frames of a video, if the weights do not tell.

    Returns:
        [`Agreement`], as it stands in the folder.

    Raises:
        [`ModelError`]: if OpenVINO or NNCF is missing, there are too few videos that can be read, the folder holds
        something, or the export agrees less than promised. Then nothing is written.
    """
    if dtype not in PRECISIONS:
        raise ModelError(f"--dtype must be one of {', '.join(PRECISIONS)} with --engine openvino, got {dtype!r}.")
    if not 0 <= min_agreement <= 1:
        raise ModelError(f"--min_agreement must be a share in [0, 1], got {min_agreement}.")
    if num_calibration_videos < 1:
        raise ModelError(f"--num_calibration_videos must be at least 1, got {num_calibration_videos}.")
    if len(set(candidate_labels)) < 2:
        raise ModelError(f"--labels must be at least two, to compare the best one, got {len(set(candidate_labels))}.")
    openvino, output_dir = import_openvino(), Path(output_dir)
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise ModelError(f"--output_dir must be a new or empty folder, got {output_dir}.")
    model, processor = load_model(name_or_path).float().eval(), load_processor(name_or_path, num_frames=num_frames)
    check_fit(model, processor)
    model.set_attn_implementation("sdpa")
    bank = ClassBank.build(model, processor, list(candidate_labels))
    frames = read_contents(videos, processor)
    # A digest says nothing about a video, so its order is a fair draw.
    names = sorted(frames)
    num_calibrating = num_calibration_videos if dtype == "int8" else 0
    calibrating, judged = names[:num_calibrating], names[num_calibrating:]
    if len(judged) < MIN_JUDGED:
        raise ModelError(
            f"{len(names)} different videos can be read, and {num_calibrating} of them calibrate, so {len(judged)} "
            f"would be judged; at least {MIN_JUDGED} must be. Give more --videos, or fewer --num_calibration_videos."
        )
    say(f"{len(calibrating)} videos calibrate, {len(judged)} are judged, {len(bank.labels)} labels.")

    def pixels_of(names: Sequence[str]) -> torch.Tensor:
        return processor.normalize(np.stack([frames[name] for name in names]))

    towers = {"video_tower": VideoTower(model, processor.num_frames).eval(), "text_tower": TextTower(model).eval()}
    width = getattr(model.config.vision_config, "hidden_size", 0)
    with tempfile.TemporaryDirectory() as temporary:
        onnx, folder = Path(temporary, "onnx"), Path(temporary, "export")
        onnx.mkdir()
        folder.mkdir()
        for name, tower in towers.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PyTorch's exporter warns about its own calls
                write_onnx(tower, onnx / f"{name}.onnx")
            graph = openvino.Core().read_model(onnx / f"{name}.onnx")
            if dtype == "int8" and name == "video_tower":
                graph = quantize(graph, [pixels_of([one]).numpy() for one in calibrating], processor.num_frames, width)
            openvino.save_model(graph, folder / f"{name}.xml", compress_to_fp16=False)
        model.config.save_pretrained(folder)
        processor.save_pretrained(folder)
        bias, packages = model.logit_bias, ("openvino", "torch", *(["nncf"] if dtype == "int8" else []))
        record: dict[str, Any] = {
            "engine": "openvino",
            "dtype": dtype,
            "versions": {name: version(name) for name in packages},
            "source": {"name_or_path": str(name_or_path), "weights": describe_model(model)["weights"]},
            "num_frames": processor.num_frames,
            "logit_scale": model.logit_scale.tolist(),
            "logit_bias": None if bias is None else bias.tolist(),
            "eos_token_id": model.eos_token_id,
            "files": {name: digest_file(folder / name) for name in FILES},
            "num_labels": len(bank.labels),
            "calibration_videos": calibrating,
            "judged_videos": judged,
        }
        write_json(folder / ENGINE_RECORD_NAME, record)
        exported = OpenVINOEncoder(folder)
        expected = torch.cat([towers["video_tower"](pixels_of([name])) for name in judged])
        actual = torch.cat([exported.encode_videos(pixels_of([name])) for name in judged])
        exported_bank = ClassBank.build(exported, processor, bank.labels)
        agreement = compare_embeddings((model, bank, expected), (exported, exported_bank, actual))
        in_a_batch = exported.encode_videos(pixels_of(judged[:3]))
        record["batch_difference"] = (in_a_batch - actual[:3]).abs().max().item()
        record["largest_difference"] = (expected - actual).abs().max().item()
        record["agreement"] = asdict(agreement)
        check(record, agreement, min_agreement)
        write_json(folder / ENGINE_RECORD_NAME, record)
        output_dir.mkdir(parents=True, exist_ok=True)
        # The record last: without it, a folder is no export.
        for path in sorted(folder.iterdir(), key=lambda path: path.name == ENGINE_RECORD_NAME):
            shutil.move(path, output_dir / path.name)
    return agreement


def read_contents(videos: Iterable[str], processor: Any) -> dict[str, np.ndarray]:
    """Read the cropped frames `(T, H, W, 3)` of videos, by the SHA-256 of their file. Say what cannot be read."""
    frames: dict[str, np.ndarray] = {}
    with IsolatedReader() as read:
        for video in videos:
            try:
                key = digest_file(video)
                if key not in frames:
                    frames[key], _ = processor.read_clip(video, processor.get_sampler(), read=read)
            except (VideoReadError, OSError) as error:
                say(f"Left out: {error}")
    return frames


def quantize(graph: Any, samples: list[np.ndarray], num_frames: int, hidden_size: int) -> Any:
    """Return the graph with int8 linear layers, calibrated by NNCF on `samples`, each `(1, T, 3, H, W)`."""
    try:
        import nncf
    except ImportError as error:
        raise ModelError(f'int8 needs NNCF ({error}): python -m pip install "ezclip[openvino]"') from error
    kept = [
        node.get_friendly_name()
        for node in graph.get_ordered_ops()
        if node.get_type_name() in ("MatMul", "Convolution") and not _is_wide_linear(node, num_frames, hidden_size)
    ]
    nncf.set_log_level(logging.ERROR)
    return nncf.quantize(
        graph,
        nncf.Dataset(samples),
        subset_size=len(samples),
        model_type=nncf.ModelType.TRANSFORMER,
        ignored_scope=nncf.IgnoredScope(names=kept),
    )


def _is_wide_linear(node: Any, num_frames: int, hidden_size: int) -> bool:
    """Return whether a product is a linear layer over the patches of a frame, and no narrow one of an adapter.

    Int8 elsewhere gains little, and the patch convolution alone took the best label from 7 % of the demo's videos.
    """
    if node.get_type_name() != "MatMul":
        return False
    tokens, weight = (value.get_partial_shape() for value in node.inputs())
    if len(tokens) != 3 or len(weight) != 2:
        return False
    sizes = [dimension.get_length() for dimension in weight]
    return str(tokens[1]) not in ("1", str(num_frames)) and min(sizes) >= hidden_size


def check(record: dict, agreement: Agreement, min_agreement: float):
    """Raise [`ModelError`] if an export loses more than it promises, or depends on the batch."""
    problem = None
    if not record["batch_difference"] <= BATCH_TOLERANCE:
        problem = f"its embeddings change by {record['batch_difference']:.1e} with the batch"
    elif record["dtype"] == "float32" and not record["largest_difference"] <= FLOAT32_TOLERANCE:
        problem = f"it is {record['largest_difference']:.1e} from the model, more than {FLOAT32_TOLERANCE:.0e}"
    elif agreement.equal_top1 < min_agreement:
        problem = f"it agrees too little: {agreement}. At least {min_agreement:.1%} equal best labels are promised"
    if problem is not None:
        more = "more --num_calibration_videos, " if record["dtype"] == "int8" else ""
        raise ModelError(
            f"The export in {record['dtype']} was not written: {problem}. Give {more}another --dtype, or a lower "
            "--min_agreement."
        )
