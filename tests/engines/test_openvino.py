"""Exports for OpenVINO: agreement with the model, and every command that runs them."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from ezclip import ClassBank, classify_videos
from ezclip.cli import export as export_command
from ezclip.constants import ENGINE_RECORD_NAME
from ezclip.encoders.openvino_engine import FILES
from ezclip.engines import Agreement, compare_embeddings
from ezclip.engines.openvino_export import check, export_openvino
from ezclip.errors import ModelError
from ezclip.evaluation.identity import describe_model
from ezclip.systems.loading import load_classifier, load_encoder, load_model, load_processor
from ezclip.utils.digests import digest_file
from ezclip.utils.synthetic_clips import write_video
from scripts import benchmark
from tests.helpers import make_model, random_clip


pytest.importorskip("openvino", reason="OpenVINO is not installed: ezclip[openvino]")
pytest.importorskip("nncf", reason="NNCF is not installed: ezclip[openvino]")

LABELS = ["red circle", "green square", "blue circle"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """24 clips, and a copy of one."""
    folder = tmp_path_factory.mktemp("videos")
    paths = [folder / f"{seed}.mp4" for seed in range(24)]
    for seed, path in enumerate(paths):
        write_video(path, random_clip(seed))
    return [str(path) for path in (*paths, shutil.copy(paths[3], folder / "copy.mp4"))]


@pytest.fixture
def export(tiny_folder, videos, tmp_path):
    """Return a function that exports the tiny model and returns the folder and its record."""

    def make(dtype, **options):
        folder = tmp_path / dtype
        options = {"num_calibration_videos": 8, "min_agreement": 0.0, **options}
        export_openvino(str(tiny_folder), folder, dtype, videos, LABELS, **options)
        return folder, json.loads((folder / ENGINE_RECORD_NAME).read_text(encoding="utf-8"))

    return make


@pytest.mark.parametrize("dtype, least_cosine", [("float32", 0.999999), ("bfloat16", 0.99), ("int8", 0.9)])
def test_export_agrees_with_its_model(export, tiny_folder, videos, dtype, least_cosine):
    folder, record = export(dtype)
    calibrating, judged = record["calibration_videos"], record["judged_videos"]
    assert len(calibrating) == (8 if dtype == "int8" else 0)
    assert not set(calibrating) & set(judged)
    assert sorted([*calibrating, *judged]) == sorted({digest_file(video) for video in videos})  # the copy counts once
    assert record["agreement"]["num_videos"] == len(judged) and record["batch_difference"] <= 1e-3
    exported, model = load_encoder(folder, engine="openvino"), load_model(tiny_folder)
    inputs = load_processor(tiny_folder)(videos=videos[:3], text=LABELS, return_tensors="pt")
    with torch.no_grad():
        for actual, expected in (
            (exported.encode_videos(inputs["pixel_values"]), model.encode_videos(inputs["pixel_values"])),
            (exported.encode_texts(inputs), model.encode_texts(inputs)),
        ):
            assert torch.nn.functional.cosine_similarity(actual, expected).min() > least_cosine
    assert describe_model(exported) != describe_model(model)


def test_pipeline_and_classify(export, videos):
    folder, _ = export("bfloat16")
    classifier = load_classifier(folder, engine="openvino")
    assert classifier(videos[0], LABELS)[0]["label"] in LABELS
    alone, together = (list(classify_videos(classifier, some, LABELS)) for some in (videos[2:3], videos))
    assert together[2].predictions == alone[0].predictions and len(together) == len(videos)


def test_threads_do_not_share_answers(export, videos):
    folder, _ = export("float32")
    exported, processor = load_encoder(folder, engine="openvino"), load_processor(folder)
    pixels = processor(videos=videos[:2], return_tensors="pt")["pixel_values"]
    alone = [exported.encode_videos(one[None]) for one in pixels]

    def embed(number: int) -> list[torch.Tensor]:
        return [exported.encode_videos(pixels[number][None]) for _ in range(50)]

    with ThreadPoolExecutor(2) as pool:
        for expected, found in zip(alone, pool.map(embed, range(2))):
            assert all(torch.equal(one, expected) for one in found)


def test_steps_need_frames(export):
    folder, _ = export("float32")
    model, processor = load_encoder(folder, engine="openvino"), load_processor(folder)
    with pytest.raises((ModelError, ValueError), match="frames"):
        ClassBank.build(model, processor, ["red"], descriptions={"red": {"steps": ["circle", "square"]}})


def test_wrong_folders(export, tiny_folder):
    folder, _ = export("float32")
    with pytest.raises(ModelError, match="--engine openvino"):
        load_encoder(folder)
    with pytest.raises(ModelError, match="ezclip export --engine openvino"):
        load_encoder(tiny_folder, engine="openvino")
    with pytest.raises(ModelError, match="--dtype"):
        load_classifier(folder, dtype="bfloat16", engine="openvino")
    with pytest.raises(ModelError, match="training"):
        load_encoder(folder, for_training=True, engine="openvino")
    with open(folder / "video_tower.bin", "r+b") as file:
        file.write(b"damage")
    with pytest.raises(ModelError, match=r"video_tower\.bin"):
        load_encoder(folder, engine="openvino")


def test_export_that_loses_too_much():
    model_embeds = torch.eye(3) + 0.1
    agreement = Agreement(10, 9, 0.9, [0.6, 0.98], [0.9, 0.95], [0.8, 0.9])
    record = {"dtype": "int8", "batch_difference": 0.0, "largest_difference": 0.1}
    check(record, agreement, 0.9)
    with pytest.raises(ModelError, match=r"9 of 10.*--min_agreement"):
        check(record, agreement, 0.95)
    with pytest.raises(ModelError, match="batch"):
        check({**record, "batch_difference": 0.01}, agreement, 0.0)
    with pytest.raises(ModelError, match="from the model"):
        check({**record, "dtype": "float32"}, agreement, 0.0)
    model, bank = make_model(), ClassBank(["a", "b", "c"], torch.eye(3)[None])
    other_bank = ClassBank(["a", "b", "c"], torch.eye(3)[None, [1, 0, 2]])
    found = compare_embeddings((model, bank, model_embeds), (model, other_bank, model_embeds))
    assert found.num_equal == 1 and found.cosine[0] == pytest.approx(1)  # its own texts count
    found = compare_embeddings((model, bank, model_embeds), (model, bank, model_embeds[[0, 1, 1]]))
    assert found.num_equal == 2 and found.equal_top1 == pytest.approx(2 / 3)
    assert 0 < found.cosine[0] < 1 and found.centred_cosine[0] == pytest.approx(-0.5)
    low, high = found.equal_top1_interval
    assert 0 < low < 2 / 3 < high < 1


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"files": {}}, r"video_tower\.xml is not"),
        ({"files": []}, "no complete export"),
        ({"engine": "tensorrt"}, "tensorrt"),
        ({"logit_scale": None}, "no complete export"),
        ({"logit_scale": float("nan")}, "finite"),
        ({"logit_bias": [1.0, 2.0]}, "no complete export"),
        ({"num_frames": None}, "num_frames"),
    ],
)
def test_damaged_record(tiny_folder, tmp_path, changes, message):
    folder = shutil.copytree(tiny_folder, tmp_path / "export")
    for name in FILES:
        (folder / name).write_text(name)
    record = {"engine": "openvino", "dtype": "int8", "logit_scale": 1.0, "logit_bias": None, "eos_token_id": 0}
    record |= {"num_frames": 8, "files": {name: digest_file(folder / name) for name in FILES}}
    (folder / ENGINE_RECORD_NAME).write_text(json.dumps(record))
    load_encoder(folder, engine="openvino")
    (folder / ENGINE_RECORD_NAME).write_text(json.dumps(record | changes))
    with pytest.raises(ModelError, match=message):
        load_encoder(folder, engine="openvino")


def test_inputs_that_do_not_fit(export):
    exported = load_encoder(export("float32")[0], engine="openvino")
    vision = exported.config.vision_config
    size, frames = vision.image_size, exported.num_frames
    for shape in ((1, frames // 2, 3, size, size), (1, frames, 3, 2 * size, 2 * size), (frames, 3, size, size)):
        with pytest.raises(ModelError, match="video_tower takes"):
            exported.encode_videos(torch.zeros(shape))
    assert exported.encode_videos(torch.zeros(2, frames, 3, size, size, requires_grad=True)).shape[0] == 2
    with pytest.raises(ModelError, match="text_tower takes"):
        exported.encode_texts({"input_ids": torch.ones(1, 400, dtype=torch.long)})


@pytest.mark.parametrize("number", [0, -8])
def test_no_calibration_videos(export, tmp_path, number):
    with pytest.raises(ModelError, match=f"--num_calibration_videos must be at least 1, got {number}"):
        export("int8", num_calibration_videos=number)
    assert not (tmp_path / "int8").exists()


def test_one_label_says_nothing(tiny_folder, videos, tmp_path):
    with pytest.raises(ModelError, match="at least two"):
        export_openvino(str(tiny_folder), tmp_path / "out", "float32", videos, ["red circle"])


def test_too_few_videos(export, tmp_path):
    with pytest.raises(ModelError, match="--num_calibration_videos"):
        export("int8", num_calibration_videos=20)
    assert not (tmp_path / "int8").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        (["--engine", "openvino"], "--labels"),
        (["--engine", "openvino", "--labels", "a, b"], "--videos"),
        (["--format", "onnx", "--dtype", "int8"], "--dtype"),
        ([], "--engine"),
    ],
)
def test_wrong_options(tiny_folder, tmp_path, options, message, capsys):
    with pytest.raises(SystemExit) as exit:
        export_command.main(["--model", str(tiny_folder), "--output_dir", str(tmp_path / "out"), *options])
    assert message in f"{exit.value} {capsys.readouterr().err}" and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_benchmark(export, tiny_folder, videos, tmp_path):
    folder, _ = export("bfloat16")
    name, labels = f"{folder} (openvino, bfloat16)", tmp_path / "labels.csv"
    labels.write_text("id,name\n" + "".join(f"{number},{label}\n" for number, label in enumerate(LABELS)))
    common = ["--model_name_or_path", tiny_folder, "--use_cpu", "--rounds", 1, "--exports", folder]
    common += ["--output_dir", tmp_path / "out"]
    for command in (
        ["model", "--batch_sizes", 1, "--passes", "forward", "--precisions", "bf16"],
        ["end-to-end", *videos[:4], "--label_list", labels, "--num_workers", 0, "--mixed_precision", "no"],
    ):
        benchmark.main([str(part) for part in (*command, *common)])
    model, files = (json.loads((tmp_path / "out" / f"{kind}.json").read_text()) for kind in ("model", "end-to-end"))
    (row,) = (row for row in model["batches"][0]["rows"] if row["model"] == name)
    ours = f"{tiny_folder.name}, PyTorch's kernels"
    (torch_row,) = (row for row in model["batches"][0]["rows"] if row["model"] == ours)
    seconds, torch_seconds = (one["seconds"]["median"] for one in (row, torch_row))
    assert row["against"]["torch_bf16"]["ratio"] == pytest.approx(seconds / torch_seconds)
    assert [row["way"] for row in files["rows"]][1] == name
    assert files["agreement"][name]["num_compared"] == 4


def test_command(tiny_folder, videos, tmp_path, capsys):
    options = ["--videos", *videos, "--labels", ", ".join(LABELS), "--min_agreement", "0"]
    export_command.main(
        ["--model", str(tiny_folder), "--output_dir", str(tmp_path / "out"), "--engine", "openvino", *options]
    )
    assert "24 are judged, 3 labels" in (text := capsys.readouterr().out) and "95 % interval" in text
    assert np.isfinite(json.loads((tmp_path / "out" / ENGINE_RECORD_NAME).read_text())["batch_difference"])
