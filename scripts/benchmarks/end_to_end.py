"""`end-to-end`: time files to written predictions, beside a plain loop that does the same."""

import argparse
import copy
import json
import os
import tempfile
from functools import partial
from pathlib import Path

import av
import numpy as np
import torch
import transformers
from accelerate import Accelerator

from ezclip.data.isolated_reader import IsolatedReader
from ezclip.data.sources import find_videos, load_files
from ezclip.encoders import DualEncoder, RivalEncoder
from ezclip.encoders.openvino_engine import ENGINES, load_export
from ezclip.evaluation.sharded_prediction import predict_shards
from ezclip.systems.macs import count_clip_macs, count_macs
from modeling_ezclip import EZClipModel
from pipeline_ezclip import ClassBank, score_embeds
from processing_ezclip import EZClipProcessor
from scripts.benchmarks.harness import (
    Contender,
    is_faster_in_bf16,
    kernels_as_shipped,
    measure_contenders,
    rates_as_text,
    ratio,
    results_as_table,
)
from scripts.benchmarks.models import (
    EXPORTED,
    describe_model,
    make_config,
    name_of_export,
    name_of_model,
    vision_shapes,
)
from scripts.benchmarks.text import load
from video_ezclip import FrameSampler


OURS, LOOP = "ezclip", "PyAV in sequence + CLIPImageProcessor"
TOP_K = 5
# Clips of the warm-up round
WARM_UP = 4


def read_all(path: str, sample: FrameSampler) -> list[np.ndarray]:
    """Decode a whole video and return the wanted frames, as PyAV's examples do."""
    with av.open(path, metadata_errors="ignore") as container:
        frames = list(container.decode(container.streams.best("video")))
    return [frames[index].to_ndarray(format="rgb24") for index in sample(len(frames))]


@kernels_as_shipped()
@torch.no_grad()
def predict_in_loop(
    paths: list[str], model: EZClipModel | RivalEncoder, processor: EZClipProcessor, bank: ClassBank, output_dir: Path
):
    """Predict clip by clip: decode the whole video, CLIP's image processor, float32."""
    image_processor = transformers.CLIPImageProcessor.from_dict(processor.image_processor.to_dict())
    sample = processor.get_sampler()
    with open(output_dir / "predictions.jsonl", "w", encoding="utf-8") as file:
        for path in paths:
            try:
                images = read_all(path, sample)
            except (av.FFmpegError, IndexError):
                continue
            pixels = image_processor(images, return_tensors="pt")["pixel_values"][None].to(model.device)
            scores = score_embeds(model, bank, model.encode_videos(pixels))[0]
            best = scores.argsort(descending=True, stable=True)[:TOP_K].tolist()
            predictions = [{"label": bank.labels[i], "score": float(scores[i])} for i in best]
            file.write(json.dumps({"video": path, "predictions": predictions}) + "\n")


def read_predictions(folder: Path) -> dict[str, dict]:
    """Read label and score of the best class of each video."""
    lines = map(json.loads, (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines())
    return {line["video"]: line["predictions"][0] for line in lines}


def run(args: argparse.Namespace, device: torch.device) -> dict:
    """Time both methods, and compare their predictions."""
    paths = find_videos(args.videos)
    model, processor, labels = load(args, 100)
    precision = args.mixed_precision or ("bf16" if is_faster_in_bf16(device) else "no")
    accelerator = Accelerator(cpu=args.use_cpu, mixed_precision=precision)
    bank = ClassBank.build(model.to(device), processor, labels)
    loop_model = copy.deepcopy(model)  # the accelerator prepares `model` for mixed precision
    exports = [load_export(folder, ENGINES[0]) for folder in args.exports]
    banks = {one: ClassBank.build(one, processor, labels) for one in exports}
    with IsolatedReader() as read, tempfile.TemporaryDirectory() as folder:

        def predict(model: DualEncoder, bank: ClassBank, paths: list[str]) -> dict[str, dict]:
            """Predict as `ezclip run --do_predict` does."""
            output_dir = Path(tempfile.mkdtemp(dir=folder))
            predict_shards(
                model,
                bank,
                load_files(paths),
                processor,
                output_dir,
                {},
                accelerator,
                batch_size=args.batch_size,
                num_workers=args.num_workers,
                top_k=TOP_K,
                read=read,
            )
            return read_predictions(output_dir)

        def loop(paths: list[str]) -> dict[str, dict]:
            output_dir = Path(tempfile.mkdtemp(dir=folder))
            predict_in_loop(paths, loop_model, processor, bank, output_dir)
            return read_predictions(output_dir)

        num_clips, contenders = len(paths), {}
        for name, method, used in (
            (OURS, partial(predict, model, bank), {"no": "float32"}.get(precision, precision)),
            *((name_of_export(one), partial(predict, one, own), EXPORTED) for one, own in banks.items()),
            (LOOP, loop, "float32"),
        ):
            if isinstance(model, EZClipModel):
                macs = count_macs(model, processor.num_frames, output_last_hidden_state=name == LOOP)
            else:
                macs = count_clip_macs(model, processor)
            contenders[name] = Contender(
                lambda method=method: method(paths),
                used,
                num_clips,
                num_clips * macs,
                warm_up=lambda method=method: method(paths[:WARM_UP]),
            )
        # The matrix rate is that of a ViT-B's products for models of other shapes.
        config = model.config if isinstance(model, EZClipModel) else make_config(args, None)
        shapes = vision_shapes(config, args.batch_size)
        rows, rates = measure_contenders(contenders, shapes, args.rounds, device)
    found = {name: contender.result or {} for name, contender in contenders.items()}
    for name, row in rows.items():
        row |= {"way": name, "num_read": len(found[name])}
        if name != LOOP:
            row["times_faster"] = ratio(rows, LOOP, name)
    return {
        "model": name_of_model(args),
        "size": describe_model(model.config) if isinstance(model, EZClipModel) else type(model).__name__,
        "num_clips": num_clips,
        "num_bytes": sum(map(os.path.getsize, paths)),
        "num_labels": len(labels),
        "num_frames": processor.num_frames,
        "batch_size": args.batch_size,
        "num_workers": args.num_workers,
        "mixed_precision": precision,
        "matrix": rates,
        "rows": list(rows.values()),
        "agreement": {name: agreement(found[name], found[LOOP]) for name in found if name != LOOP},
    }


def agreement(ours: dict[str, dict], theirs: dict[str, dict]) -> dict:
    """Return the number of equal best labels, the videos that differ, and those that only one method could read."""
    both = [video for video in ours if video in theirs]
    different = [video for video in both if ours[video]["label"] != theirs[video]["label"]]
    return {
        "num_compared": len(both),
        "num_same": len(both) - len(different),
        "different": [{"video": video, "ours": ours[video], "loop": theirs[video]} for video in different],
        "read_by_one": sorted(set(ours) ^ set(theirs)),
    }


def as_text(result: dict) -> list[str]:
    """Return the paragraphs and tables of a result."""
    columns = {
        "method": ("way",),
        "precision": ("precision",),
        "s (quartiles)": ("seconds", ".2f"),
        "clips/s": ("clips_per_second", ".3g"),
        "share of matrix rate": ("share_of_matrix_rate", ".0%"),
        "speedup (range)": ("times_faster", ".3f"),
        "read": ("num_read",),
    }
    lines = []
    for name, same in result["agreement"].items():
        lines.append(
            f"{name} and the loop find the same best label for {same['num_same']} of {same['num_compared']} clips "
            "that both read."
        )
        for one in same["different"]:
            ours, theirs = (f"{one[way]['label']!r} ({one[way]['score']:.4f})" for way in ("ours", "loop"))
            lines.append(f"{Path(one['video']).name}: {name} predicts {ours}, the loop {theirs}.")
        lines += [
            f"{Path(video).name}: only one of {name} and the loop could read it." for video in same["read_by_one"]
        ]
    return [
        f"{result['num_clips']} clips ({result['num_bytes'] / 1e6:.1f} MB), from files to written predictions, "
        f"{result['num_labels']} classes. {result['model']}: {result['size']}. {OURS}: batch {result['batch_size']}, "
        f"{result['num_workers']} decoding processes. The loop: one clip at a time. Median of "
        f"{result['rounds']} rounds.",
        results_as_table(result["rows"], columns),
        rates_as_text(result["matrix"]),
        "\n".join(f"- {line}" for line in lines),
    ]
