"""Reports and errors of scripts/benchmark.py. No test checks a speed."""

import itertools
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import XCLIPModel

from ezclip import EZClipConfig, EZClipModel
from ezclip.systems.macs import count_macs
from ezclip.utils.synthetic_clips import write_video
from processing_ezclip import TEMPLATES
from scripts import benchmark
from scripts.benchmarks import decode, end_to_end, harness, text
from tests.encoders.families import make_rival
from tests.helpers import ROOT, random_clip, read_json


READERS = {
    "ezclip": None,
    "load_video + CLIPImageProcessor": "ezclip",
    "ezclip frames": None,
    "PyAV in sequence": "ezclip frames",
    "decord by index": "ezclip frames",
}


def run(tmp_path, command: str, *options) -> dict:
    """Return the JSON that a command writes; check that all rows of each of its tables have as many cells."""
    benchmark.main([command, *map(str, options), "--output_dir", str(tmp_path / "out")])
    for table in (tmp_path / "out" / f"{command}.md").read_text(encoding="utf-8").split("\n\n"):
        rows = [line for line in table.splitlines() if line.startswith("|")]
        assert len({row.replace(r"\|", "").count("|") for row in rows}) <= 1
    return read_json(tmp_path / "out" / f"{command}.json")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    paths = [tmp_path_factory.mktemp("videos") / name for name in ("a.mp4", "b|c.mkv")]
    for seed, path in enumerate(paths):
        write_video(path, random_clip(seed))
    return [str(path) for path in paths]


@pytest.fixture(scope="module")
def decoded(tmp_path_factory, videos):
    """The JSON and the Markdown of `decode`."""
    folder = tmp_path_factory.mktemp("out") / "new"
    command = [sys.executable, str(ROOT / "scripts" / "benchmark.py"), "decode", *videos, "--output_dir", str(folder)]
    result = subprocess.run([*command, "--rounds", "2", "--num_frames", "4"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (folder / "decode.md").read_text(encoding="utf-8") == result.stdout
    return read_json(folder / "decode.json"), result.stdout


def test_decode_report(decoded, videos):
    result, _ = decoded
    assert (result["num_frames"], result["rounds"]) == (4, 2)
    assert {"processor", "cores", "threads", "accelerator", "system", "versions"} == result["machine"].keys()
    assert result["machine"]["threads"] == 1
    assert {"python", "torch", "transformers", "av", "decord", "libavcodec"} <= result["machine"]["versions"].keys()
    assert [video["video"] for video in result["videos"]] == videos
    for video in result["videos"]:
        assert (video["width"], video["height"], video["codec"], video["total_num_frames"]) == (64, 48, "h264", 12)
        assert video["access"] in ("index", "sequence") and video["duration"] == pytest.approx(12 / 8, abs=1)
        assert video["bytes"] == Path(video["video"]).stat().st_size
        assert list(video["readers"]) == list(READERS)
        assert video["readers"]["PyAV in sequence"]["same_frames"] is True


def test_decode_ratios(decoded):
    for video in decoded[0]["videos"]:
        readers = {name: reader for name, reader in video["readers"].items() if "failed" not in reader}
        for name, reader in readers.items():
            cpu = reader["cpu_ms"]
            assert len(cpu["rounds"]) == 2 and cpu["median"] == pytest.approx(np.median(cpu["rounds"]))
            assert cpu["quartiles"] == pytest.approx(np.quantile(cpu["rounds"], (0.25, 0.75)))
            assert reader["clips_per_second_per_core"] == pytest.approx(1000 / cpu["median"])
            if READERS[name] is None:
                assert "against" not in reader
                continue
            if video["matrix"]["moved"] > harness.MOST_MOVED:
                assert reader["machine_moved"] == video["matrix"]["moved"] and "against" not in reader
                continue
            against, baseline = reader["against"], readers[READERS[name]]["cpu_ms"]
            rounds = np.divide(cpu["rounds"], baseline["rounds"])
            assert against["reader"] == READERS[name]
            assert against["ratio"] == pytest.approx(cpu["median"] / baseline["median"])
            assert against["range"] == pytest.approx([rounds.min(), rounds.max()])


def test_decode_table(decoded, videos):
    rows = [line for line in decoded[1].splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(videos) * len(READERS)
    assert len({line.replace(r"\|", "").count("|") for line in rows}) == 1
    assert r"b\|c.mkv: 64 × 48, h264, 12 frames" in decoded[1]


def test_decode_failing_rivals(tmp_path, videos, monkeypatch, capsys):
    def fail(path, sample):
        raise RuntimeError("no such codec\nstack trace")

    monkeypatch.setattr(decode, "read_with_decord", fail)
    monkeypatch.setattr(decode, "read_in_sequence", lambda path, sample: np.zeros((4, 48, 64, 3), np.uint8))
    (video,) = run(tmp_path, "decode", videos[0], "--rounds", 1, "--num_frames", 4)["videos"]
    assert video["readers"]["decord by index"] == {"result": "frames", "failed": "no such codec"}
    assert video["readers"]["PyAV in sequence"]["same_frames"] is False
    lines = capsys.readouterr().out.splitlines()
    assert any(line.endswith("| no such codec |") for line in lines)
    assert any("PyAV in sequence" in line and "| wrong frames |" in line for line in lines)


def test_decode_folder(tmp_path, videos):
    result = run(tmp_path, "decode", Path(videos[0]).parent, videos[1], "--rounds", 1)
    assert [video["video"] for video in result["videos"]] == [videos[0], videos[1]]


# Models


@pytest.fixture
def small_products(monkeypatch):
    """Small matrix products, so that measuring their rate takes no time. Their rate may move as it likes."""
    monkeypatch.setattr(harness, "SQUARES", (256,))
    monkeypatch.setattr(harness, "MOST_MOVED", float("inf"))
    monkeypatch.setattr(harness, "LEAST_SECONDS", 0.0)


def check_rates(rates: dict, precisions: set[str]):
    assert rates.keys() == precisions
    for rate in rates.values():
        assert rate["flops_per_second"]["median"] > 0
        assert len(rate["shape"]) == 3 and rate["kernel"] in ("MKL", "oneDNN", "BLAS")


@pytest.mark.parametrize(
    ("rates", "moved"),
    [([1.0, 1.0], 0), ([9.0, 10.0, 12.0], 0.3), ([10.0] * 6 + [2.0], 0), ([10.0] * 5 + [7.0, 6.0], 0.3)],
)
def test_movement(rates, moved):
    assert harness.movement(rates) == pytest.approx(moved)


def test_moved_machine(tmp_path, tiny_folder, small_products, monkeypatch, capsys):
    monkeypatch.setattr(harness, "MOST_MOVED", -1.0)  # no machine is so quiet
    options = ["--model_name_or_path", tiny_folder, "--use_cpu", "--rounds", 2, "--precisions", "float32"]
    (batch,) = run(tmp_path, "model", *options, "--passes", "forward")["batches"]
    for row in batch["rows"]:
        assert row["machine_moved"] == batch["matrix"]["float32"]["moved"]
        assert "share_of_matrix_rate" not in row and len(row["seconds"]["rounds"]) == 2
        assert all(found.keys() == {"moved"} for found in row["against"].values())
    printed = capsys.readouterr().out
    assert f"| machine moved {row['machine_moved']:.0%} |" in printed and "quiet machine" in printed


@pytest.mark.parametrize("precision", harness.DTYPES)
def test_kernels_of_products(precision):
    left, right, result = torch.randn(8, 4), torch.randn(6, 4), torch.empty(8, 6)
    left, right, result = (one.to(harness.DTYPES[precision]) for one in (left, right, result))
    for multiply in harness.find_kernels(precision, torch.device("cpu")).values():
        torch.testing.assert_close(multiply(left, right, result), left @ right.t())


def test_cost(tmp_path):
    systems = ["ezclip", "vificlip", "clip"]
    result = run(tmp_path, "cost", "--patch_size", 32, "--presets", *systems)
    rows = {row["model"]: row for row in result["models"]}
    assert list(rows) == [*systems, "CLIPVisionModel", "XCLIPModel"]
    assert rows["ezclip"]["num_trained_parameters"] < 0.04 * rows["ezclip"]["num_parameters"]
    assert rows["vificlip"]["num_frames"] == 32 and rows["vificlip"]["num_trained_parameters"] == 151_277_313
    # EZClipModel projects each frame, CLIPVisionModel does not.
    floor = rows["CLIPVisionModel"]["macs_per_clip"]
    assert rows["clip"]["macs_per_clip"] == floor + 8 * 768 * 512
    assert rows["vificlip"]["macs_per_clip"] == 4 * rows["clip"]["macs_per_clip"]
    assert 1.0 < rows["XCLIPModel"]["macs_per_clip"] / floor < 1.05


@pytest.mark.parametrize("use_adapter", [False, True])
def test_count_text_macs(use_adapter):
    config = EZClipConfig.from_preset("ezclip", {"use_adapter": use_adapter}, {"patch_size": 16})
    # Per token and block 12 products of 512 x 512, and 2 of 512 x 128 in the adapters; scores and sums per pair of
    # tokens; the projection
    for length in (77, 8):
        macs = 12 * (length * (12 * 512**2 + 2 * 512 * 128 * use_adapter) + 2 * length**2 * 512) + 512**2
        assert text.count_text_macs(config, length) == macs


def test_cost_of_a_folder(tmp_path, tiny_folder):
    result = run(tmp_path, "cost", "--model_name_or_path", tiny_folder)
    ours = result["models"][0]
    model = EZClipModel.from_pretrained(tiny_folder)
    assert ours["model"] == tiny_folder.name and ours["macs_per_clip"] == count_macs(model)
    assert ours["macs_of_embedding_alone"] == count_macs(model, output_last_hidden_state=False)
    assert all(row["macs_of_embedding_alone"] == row["macs_per_clip"] for row in result["models"][1:])  # the rivals
    assert ours["num_trained_parameters"] == model.num_parameters(only_trainable=True)


def test_model(tmp_path, tiny_folder, small_products):
    options = ["--model_name_or_path", tiny_folder, "--use_cpu", "--rounds", 2, "--batch_sizes", 1, 2]
    result = run(tmp_path, "model", *options, "--precisions", "float32", "autocast")
    clip = "CLIPVisionModel"
    assert [batch["batch_size"] for batch in result["batches"]] == [1, 2] and result["rounds"] == 2
    for batch in result["batches"]:
        check_rates(batch["matrix"], {"float32", "bf16"})
        rows = {(row["model"], row["pass"], row["precision"]): row for row in batch["rows"]}
        ours = tiny_folder.name
        assert len(rows) == len(batch["rows"]) == 2 * 5 + 2 * 6 + 2  # in float32 the published model, too
        assert not any("failed" in row for row in rows.values())
        assert rows[ours, "forward", "float32"]["macs_per_clip"] == count_macs(
            EZClipModel.from_pretrained(tiny_folder), output_last_hidden_state=False
        )
        for (name, way, precision), row in rows.items():
            seconds = row["seconds"]["median"]
            assert row["clips_per_second"] == pytest.approx(batch["batch_size"] / seconds)
            flops_per_second = 2 * row["macs_per_clip"] * row["clips_per_second"]
            limit = batch["matrix"]["float32" if precision == "float32" else "bf16"]["flops_per_second"]["median"]
            assert row["share_of_matrix_rate"] == pytest.approx(flops_per_second / limit)
            assert 0 < row["share_of_matrix_rate"] < 1.5
            baselines = {
                "clip": (clip, way, precision),
                "clip_same_kernels": (f"{clip}, same kernels", way, precision),
                "clip_float32": (clip, way, "float32"),
                "xclip": ("XCLIPModel", way, precision),
                "published": ("published EZ-CLIP", way, "float32"),
                "own_forward": (name.removesuffix(", all weights trained"), "forward", precision),
            }
            expected = {key: rows[other] for key, other in baselines.items() if other != (name, way, precision)}
            assert row["against"].keys() == expected.keys()
            for key, other in expected.items():
                rounds = np.divide(row["seconds"]["rounds"], other["seconds"]["rounds"])
                assert row["against"][key]["ratio"] == pytest.approx(seconds / other["seconds"]["median"])
                assert row["against"][key]["range"] == pytest.approx([rounds.min(), rounds.max()])
        # Frozen weights need no gradient.
        trained = rows[f"{ours}, all weights trained", "step", "float32"]["macs_per_clip"]
        assert (
            rows[ours, "forward", "float32"]["macs_per_clip"]
            < rows[ours, "step", "float32"]["macs_per_clip"]
            < trained
        )


def test_model_failing_rival(tmp_path, tiny_folder, small_products, monkeypatch, capsys):
    def fail(self, pixel_values):
        if pixel_values.device.type == "meta":  # multiply-accumulates are counted
            return get_video_features(self, pixel_values=pixel_values)
        raise RuntimeError("no kernel\nstack trace")

    get_video_features = XCLIPModel.get_video_features
    monkeypatch.setattr(XCLIPModel, "get_video_features", fail)
    options = ["--model_name_or_path", tiny_folder, "--use_cpu", "--rounds", 1, "--batch_sizes", 1]
    result = run(tmp_path, "model", *options, "--passes", "forward", "--precisions", "bf16")
    ours, clip, xclip, *_ = result["batches"][0]["rows"]
    assert xclip["failed"] == "no kernel" and "seconds" not in xclip
    assert ours["against"].keys() == {"clip", "clip_same_kernels", "torch_bf16"} and clip["clips_per_second"] > 0
    assert "| no kernel |" in capsys.readouterr().out


@pytest.mark.slow  # compiles
def test_compiled_model(tmp_path, tiny_folder, small_products):
    options = ["--model_name_or_path", tiny_folder, "--use_cpu", "--rounds", 1, "--compile", "--batch_sizes", 1]
    (batch,) = run(tmp_path, "model", *options, "--precisions", "float32")["batches"]
    rows = {(row["model"], row["pass"]): row for row in batch["rows"]}
    for name in (tiny_folder.name, "CLIPVisionModel"):
        for way in ("forward", "step"):
            row = rows[f"{name}, compiled", way]
            assert "failed" not in row and row["against"]["not_compiled"]["ratio"] > 0


@pytest.mark.slow  # a process for each command, and compiles
def test_all(tmp_path, tiny_folder, videos, labels):
    options = ["--model_name_or_path", tiny_folder, "--label_list", labels, "--use_cpu", "--rounds", 1]
    result = run(tmp_path, "all", videos[0], *options, "--batch_sizes", 1, "--precisions", "float32")
    commands = ["cost", "memory", "model", "text", "decode", "end-to-end"]
    assert list(result["commands"]) == commands
    printed = (tmp_path / "out" / "all.md").read_text(encoding="utf-8")
    for name in commands:
        assert "failed" not in result["commands"][name], result["commands"][name]
        assert f"## {name}\n" in printed and (tmp_path / "out" / f"{name}.json").exists()


@pytest.fixture
def labels(tmp_path):
    """A list of 64 labels of words that the tokenizer of the tiny model knows."""
    path, words = tmp_path / "labels.csv", itertools.permutations(["red", "green", "blue", "circle", "square", "left"])
    path.write_text("id,name\n" + "".join(f"{i},{' '.join(label)}\n" for i, label in zip(range(64), words)))
    return path


def test_text(tmp_path, tiny_folder, labels, small_products):
    options = ["--model_name_or_path", tiny_folder, "--use_cpu", "--rounds", 2, "--label_list", labels]
    result = run(tmp_path, "text", *options)
    check_rates(result["matrix"], {"float32", "bf16"})
    assert (result["num_labels"], result["num_templates"], result["longest"]) == (64, 16, 16)
    rows = {(row["way"], row["precision"]): row for row in result["rows"]}
    padded, bank, half = rows.values()
    assert next(iter(rows)) == ("padded to 16 tokens", "float32")
    assert not any("failed" in row for row in rows.values())
    assert bank["largest_difference"] < 1e-6
    assert 1e-6 < half["largest_difference"] < 0.1
    assert bank["macs"] == half["macs"] < padded["macs"]
    for row in (bank, half):
        medians = padded["seconds"]["median"] / row["seconds"]["median"]
        assert row["times_faster"]["ratio"] == pytest.approx(medians)
    for row in (padded, bank, half):
        rate = result["matrix"][row["precision"]]["flops_per_second"]["median"]
        assert row["share_of_matrix_rate"] == pytest.approx(2 * row["macs"] / row["seconds"]["median"] / rate)


def test_text_label_list(tmp_path, tiny_folder, small_products):
    labels = tmp_path / "labels.csv"
    labels.write_text("id,name\n0,red circle\n1,blue square\n2,yoga\n")
    options = ["--model_name_or_path", tiny_folder, "--label_list", labels, "--num_labels", 2]
    result = run(tmp_path, "text", *options, "--use_cpu", "--rounds", 1)
    assert result["num_labels"] == 2 and result["tokenizer"] == str(tiny_folder)
    # Start and end of text, two words of a label, and the words of a template
    tokens = [4 + len(re.findall(r"\w+|[^\w\s]+", template.replace("{}", ""))) for template in TEMPLATES]
    assert result["mean_tokens"] == pytest.approx(np.mean(tokens))


@pytest.mark.slow  # ViT-B
def test_text_without_model(tmp_path, small_products):
    result = run(tmp_path, "text", "--num_labels", 2, "--use_cpu", "--rounds", 1)
    assert (result["tokenizer"], result["longest"]) == ("a token a word", 77)
    padded, bank, _ = result["rows"]
    assert bank["largest_difference"] < 1e-5 and bank["macs"] < padded["macs"] / 4


def test_end_to_end(tmp_path, tiny_folder, videos, small_products):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(Path(videos[0]).read_bytes()[:900])
    labels = tmp_path / "labels.csv"
    labels.write_text("id,name\n0,red circle\n1,blue square\n2,green circle moving left\n")
    options = ["--model_name_or_path", tiny_folder, "--use_cpu", "--rounds", 2, "--label_list", labels]
    options += ["--mixed_precision", "no", "--num_workers", 0]
    result = run(tmp_path, "end-to-end", *videos, broken, *options)
    check_rates(result["matrix"], {"float32"})
    ours, loop = result["rows"]
    assert result["num_clips"] == 3 and ours["num_read"] == loop["num_read"] == 2
    assert result["agreement"][end_to_end.OURS] == {
        "num_compared": 2,
        "num_same": 2,
        "different": [],
        "read_by_one": [],
    }
    assert ours["times_faster"]["ratio"] == pytest.approx(loop["seconds"]["median"] / ours["seconds"]["median"])
    assert ours["clips_per_second"] == pytest.approx(3 / ours["seconds"]["median"])
    assert 0 < ours["share_of_matrix_rate"] < 1.5


def test_rivals(tmp_path, videos, small_products):
    model = ["--model_name_or_path", make_rival("xclip", tmp_path / "rival")]
    ours, clip, _ = run(tmp_path, "cost", *model)["models"]
    assert (ours["model"], ours["num_frames"], clip["model"]) == ("rival", 4, "CLIPVisionModel")
    assert 0 < ours["macs_per_clip"] < clip["macs_per_clip"]
    options = [*model, "--rounds", 1, "--use_cpu", "--num_labels", 5, "--num_workers", 0, "--mixed_precision", "no"]
    agreement = run(tmp_path, "end-to-end", *videos, *options)["agreement"][end_to_end.OURS]
    assert agreement["num_same"] == agreement["num_compared"] == len(videos)


@pytest.mark.parametrize("command", ["model", "text", "memory"])
def test_rivals_are_refused(tmp_path, command, capsys):
    with pytest.raises(SystemExit):
        benchmark.main([command, "--use_cpu", "--model_name_or_path", str(make_rival("xclip", tmp_path))])
    assert "is X-CLIP" in capsys.readouterr().err


def test_end_to_end_disagreement(tmp_path, tiny_folder, labels, videos, small_products, monkeypatch, capsys):
    read_all = end_to_end.read_all

    def misread(path, sample):
        if path == videos[1]:
            raise IndexError("no frame")
        return [255 - frame for frame in read_all(path, sample)]

    monkeypatch.setattr(end_to_end, "read_all", misread)
    monkeypatch.setattr(end_to_end, "TOP_K", 1)
    options = ["--model_name_or_path", tiny_folder, "--use_cpu", "--rounds", 1, "--label_list", labels]
    result = run(tmp_path, "end-to-end", *videos, *options, "--mixed_precision", "no", "--num_workers", 0)
    agreement = result["agreement"][end_to_end.OURS]
    assert agreement["read_by_one"] == [videos[1]] and agreement["num_compared"] == 1
    assert any(line.startswith(f"- {Path(videos[1]).name}: ") for line in capsys.readouterr().out.splitlines())


# Usage


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "required: command"),
        (["decode"], "required: VIDEO"),
        (["decode", "a.mp4", "--rounds", "0"], "--rounds: must be at least 1, got 0."),
        (["decode", "a.mp4", "--num_frames", "-1"], "--num_frames: must be at least 1, got -1."),
        (["memory", "--micro_batch_sizes", "4", "0"], "--micro_batch_sizes: must be at least 1, got 0."),
        (["model", "--batch_sizes", "4", "0"], "--batch_sizes: must be at least 1, got 0."),
        (["model", "--precisions", "fp8"], "invalid choice: 'fp8'"),
        (["text", "--num_labels", "0"], "--num_labels: must be at least 1, got 0."),
        (["text", "--label_list", "none.csv"], "none.csv"),
        (["cost", "--presets", "clap"], "invalid choice: 'clap'"),
        (["memory", "--use_cpu", "--mixed_precision", "fp16"], "--mixed_precision fp16"),
        (["cost", "--model_name_or_path", "x", "--patch_size", "16"], "--patch_size"),
        (["cost", "--model_name_or_path", "none/there"], "No model at 'none/there'"),
        (["end-to-end", "none.mp4"], "none.mp4 is neither file"),
        (["end-to-end", "a.mp4", "--num_workers", "-1"], "--num_workers: must be at least 0, got -1."),
    ],
)
def test_wrong_usage(argv, message, capsys):
    with pytest.raises(SystemExit) as caught:
        benchmark.main(argv)
    assert caught.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.slow  # a process for each row
def test_memory(tmp_path):
    # In a new process: on Linux, the peak memory of a process starts at that of its parent.
    options = ["--batch_size", "2", "--patch_size", "32", "--num_frames", "2", "--rounds", "1", "--use_cpu"]
    command = [sys.executable, str(ROOT / "scripts" / "benchmark.py"), "memory", *options, "--output_dir"]
    subprocess.run([*command, str(tmp_path)], capture_output=True, check=True)
    rows = read_json(tmp_path / "memory.json")["rows"]
    steps = [(row["all_weights_trained"], row["micro_batch_size"], row["gradient_checkpointing"]) for row in rows]
    assert steps == [(True, 2, False), (False, 2, False), (False, 1, False), (False, 2, True), (False, 1, True)]
    for row in rows:
        assert row["peak_memory_mb"] > row["memory_before_mb"] > 500
        assert row["part_of_all_weights"] == row["peak_memory_mb"] / rows[0]["peak_memory_mb"]
    assert max(row["part_of_all_weights"] for row in rows[1:]) < 0.8


def test_unusable_paths(tmp_path, videos, capsys):
    notes, empty = tmp_path / "notes.mp4", tmp_path / "empty"
    notes.write_text("not a video")
    empty.mkdir()
    for options, message in (
        ([notes], f"benchmark.py: {notes}: is not a video file"),
        ([tmp_path / "x"], f"benchmark.py: {tmp_path / 'x'} is neither file nor folder nor URL"),
        ([empty], "empty is a folder without a video"),
        ([videos[0], "--output_dir", notes], f"--output_dir must be a folder, got the file {notes}"),
    ):
        with pytest.raises(SystemExit) as caught:
            benchmark.main(["decode", *map(str, options), "--rounds", "1"])
        assert caught.value.code == 2 and message in capsys.readouterr().err
