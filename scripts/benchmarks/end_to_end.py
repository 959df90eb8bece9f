"""`end-to-end`: from files to predictions that are written, next to a plain loop that does the same."""

import argparse
import copy
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import av
import numpy as np
import torch
import transformers
from accelerate import Accelerator, PartialState

from ezclip.data.isolated_reader import IsolatedReader
from ezclip.data.labels import read_label_list
from ezclip.data.sources import VideoSplit, load_files
from ezclip.evaluation.sharded_prediction import predict_shards
from ezclip.systems.macs import count_macs
from ezclip.utils.tables import as_markdown_table
from ezclip.utils.timing import compare, describe_machine, machine_as_text, measure, summarize
from modeling_ezclip import EZClipModel
from pipeline_ezclip import ClassBank
from processing_ezclip import EZClipProcessor
from scripts.benchmarks.decode import find_videos
from scripts.benchmarks.matrix import MatrixProducts, is_faster_in_bf16, rates_as_text, share_of
from scripts.benchmarks.models import describe_model, name_of_model, vision_shapes
from scripts.benchmarks.report import ratio_as_text, share_as_text, spread_as_text
from scripts.benchmarks.text import load, make_labels
from video_ezclip import FrameSampler


OURS, LOOP = "ezclip", "PyAV in sequence + CLIPImageProcessor"
TOP_K = 5
# Clips of the round that is not counted
WARM_UP = 4


def read_all(path: str, sample: FrameSampler) -> list[np.ndarray]:
    """Decode a whole video and return the wanted frames, as PyAV's examples do."""
    with av.open(path, metadata_errors="ignore") as container:
        frames = list(container.decode(container.streams.best("video")))
    return [frames[index].to_ndarray(format="rgb24") for index in sample(len(frames))]


@dataclass
class Task:
    """
    What all ways do.

    Args:
        models (`dict[str, EZClipModel]`):
            The same model for each way, with weights in float32.
        processor ([`EZClipProcessor`]):
            How frames are sampled, and made pixels of.
        bank ([`ClassBank`]):
            The classes.
        accelerator (`Accelerator`):
            Where to compute.
        args (`argparse.Namespace`):
            The options of the command.
        read ([`IsolatedReader`]):
            What reads videos as `run_video_zeroshot.py` does.
        folder (`Path`):
            Where to write, each time into a folder of its own.
    """

    models: dict[str, EZClipModel]
    processor: EZClipProcessor
    bank: ClassBank
    accelerator: Accelerator
    args: argparse.Namespace
    read: IsolatedReader
    folder: Path

    def __post_init__(self):
        self.numbers = count()

    def new_folder(self) -> Path:
        """Return a new folder for predictions."""
        folder = self.folder / str(next(self.numbers))
        folder.mkdir()
        return folder

    def predict(self, split: VideoSplit) -> dict[str, dict]:
        """Predict as `ezclip run --do_predict` does."""
        folder = self.new_folder()
        predict_shards(
            self.models[OURS],
            self.bank,
            split,
            self.processor,
            folder,
            {},
            self.accelerator,
            batch_size=self.args.batch_size,
            num_workers=self.args.num_workers,
            top_k=TOP_K,
            read=self.read,
        )
        return read_predictions(folder)

    @torch.no_grad()
    def loop(self, paths: list[str]) -> dict[str, dict]:
        """Predict one clip after the other: full decode, CLIP's image processor, float32."""
        options = self.processor.image_processor.to_dict()
        image_processor = transformers.CLIPImageProcessor.from_dict(options)
        sample, folder, device = self.processor.get_sampler(), self.new_folder(), self.accelerator.device
        model = self.models[LOOP].to(device).eval()
        with open(folder / "predictions.jsonl", "w", encoding="utf-8") as file:
            for path in paths:
                try:
                    images = read_all(path, sample)
                except (av.FFmpegError, IndexError):
                    continue
                pixels = image_processor(images, return_tensors="pt")["pixel_values"][None].to(device)
                scores = self.bank.probabilities(model.get_video_features(pixels).pooler_output)[0]
                best = scores.argsort(descending=True, stable=True)[:TOP_K].tolist()
                predictions = [{"label": self.bank.labels[i], "score": float(scores[i])} for i in best]
                file.write(json.dumps({"video": path, "predictions": predictions}) + "\n")
        return read_predictions(folder)


def read_predictions(folder: Path) -> dict[str, dict]:
    """Label and score of the best class of each video."""
    lines = map(json.loads, (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines())
    return {line["video"]: line["predictions"][0] for line in lines}


def run(args: argparse.Namespace) -> dict:
    """Time both ways, and compare their predictions."""
    paths = find_videos(args.videos)
    labels = make_labels(args.num_labels or 100) if args.label_list is None else read_label_list(args.label_list)
    labels = labels[: args.num_labels]
    model, processor = load(args, labels)
    device = PartialState(cpu=args.use_cpu).device
    precision = args.mixed_precision or ("bf16" if is_faster_in_bf16(device) else "no")
    accelerator = Accelerator(cpu=args.use_cpu, mixed_precision=precision)
    bank = ClassBank.build(model.to(device), processor, labels)
    precisions = {OURS: "bf16" if precision == "bf16" else "float32", LOOP: "float32"}
    products = MatrixProducts(vision_shapes(model.config, args.batch_size), dict.fromkeys(precisions.values()), device)
    with IsolatedReader() as read, tempfile.TemporaryDirectory() as folder:
        models = {OURS: model, LOOP: copy.deepcopy(model)}
        task, found = Task(models, processor, bank, accelerator, args, read, Path(folder)), {}

        def contenders(paths: list[str]) -> dict[str, Callable[[], None]]:
            """Return both ways by name."""
            split = load_files(paths)
            return {
                OURS: lambda: found.update({OURS: task.predict(split)}),
                LOOP: lambda: found.update({LOOP: task.loop(paths)}),
            }

        timings = measure(
            {**contenders(paths), **products.contenders()},
            args.rounds,
            device,
            may_fail=True,
            warm_up=contenders(paths[:WARM_UP]),
        )
    rates, rows = products.rates(timings), []
    macs = {way: count_macs(model, processor.num_frames, output_last_hidden_state=way == LOOP) for way in precisions}
    for way, used in precisions.items():
        row, timing = {"way": way, "precision": used}, timings[way]
        if timing.failed is not None:
            rows.append({**row, "failed": timing.failed})
            continue
        seconds = summarize(timing.wall)
        row |= {"seconds": seconds, "clips_per_second": len(paths) / seconds["median"], "num_read": len(found[way])}
        row["share_of_matrix_rate"] = share_of(macs[way] * len(paths), seconds["median"], rates, used)
        if way == OURS and timings[LOOP].failed is None:
            row["times_faster"] = compare(timings[LOOP].wall, timing.wall)
        rows.append(row)
    return {
        "machine": describe_machine(device),
        "model": name_of_model(args),
        "size": describe_model(model),
        "num_clips": len(paths),
        "num_bytes": sum(map(os.path.getsize, paths)),
        "num_labels": len(labels),
        "num_frames": processor.num_frames,
        "batch_size": args.batch_size,
        "num_workers": args.num_workers,
        "mixed_precision": precision,
        "rounds": args.rounds,
        "matrix": rates,
        "rows": rows,
        "agreement": agreement(found.get(OURS, {}), found.get(LOOP, {})),
    }


def agreement(ours: dict[str, dict], theirs: dict[str, dict]) -> dict:
    """Count the videos with the same best label, with another one, and read by one way only."""
    both = [video for video in ours if video in theirs]
    different = [video for video in both if ours[video]["label"] != theirs[video]["label"]]
    return {
        "num_compared": len(both),
        "num_same": len(both) - len(different),
        "different": [{"video": video, OURS: ours[video], LOOP: theirs[video]} for video in different],
        "read_by_one": sorted(set(ours) ^ set(theirs)),
    }


def as_text(result: dict) -> str:
    """Return the tables of a result as text."""
    header = ["way", "precision", "s (quartiles)", "clips/s", "of the matrix rate", "times faster (rounds)", "read"]
    rows = [[row["way"], row["precision"], *_cells(row)] for row in result["rows"]]
    same = result["agreement"]
    lines = [f"The best label is the same for {same['num_same']} of {same['num_compared']} clips that both read."]
    for one in same["different"]:
        ours, theirs = (f"{one[way]['label']!r} ({one[way]['score']:.4f})" for way in (OURS, LOOP))
        lines.append(f"{Path(one['video']).name}: {ours}, by the loop {theirs}.")
    lines += [f"{Path(video).name}: read by one of them alone." for video in same["read_by_one"]]
    workers = result["num_workers"]
    parts = [
        machine_as_text(result["machine"]),
        f"{result['num_clips']} clips ({result['num_bytes'] / 1e6:.1f} MB), from file to predictions among "
        f"{result['num_labels']} classes on the disk. {result['model']}: {result['size']}. {OURS}: batch "
        f"{result['batch_size']}, {workers} processes that decode; the loop: one clip at a time. Median of "
        f"{result['rounds']} rounds.",
        as_markdown_table(header, rows),
        rates_as_text(result["matrix"]),
        "\n".join(f"- {line}" for line in lines),
    ]
    return "\n\n".join(parts)


def _cells(row: dict) -> list[str]:
    if "failed" in row:
        return [f"failed: {row['failed']}", *["-"] * 4]
    return [
        spread_as_text(row["seconds"]),
        f"{row['clips_per_second']:.3g}",
        share_as_text(row["share_of_matrix_rate"]),
        ratio_as_text(row.get("times_faster")),
        str(row["num_read"]),
    ]
