"""Arithmetic and printed command of scripts/plan_scale.py."""

import json
import shlex

import pytest
from accelerate.commands.launch import launch_command_parser

from ezclip.cli.arguments import parse_args
from scripts import plan_scale


def forward_row(precision, rate):
    return {"model": "ezclip", "pass": "forward", "precision": precision, "clips_per_second": rate}


def write_benchmark(folder, accelerator="H100", decode_rates=(10.0, 40.0), forward=((8, 200.0), (32, 400.0))):
    """Write results of benchmark.py: videos of 10 s and 1 MB."""
    videos = [
        {"bytes": 1_000_000, "duration": 10.0, "readers": {"ezclip": {"clips_per_second_per_core": rate}}}
        for rate in decode_rates
    ]
    machine = {"cores": 16, "threads": 4, "accelerator": accelerator}
    rows = [
        {
            "batch_size": size,
            "rows": [
                forward_row("float32", rate / 4),
                forward_row("autocast", rate),
                # Rows that the plan ignores: other precisions and passes than `ezclip run` has, another model
                forward_row("bf16", 10 * rate),
                {**forward_row("autocast", 10 * rate), "pass": "step"},
                {**forward_row("autocast", 10 * rate), "model": "XCLIPModel"},
                {"model": "ezclip", "pass": "forward", "precision": "autocast", "failed": "out of memory"},
            ],
        }
        for size, rate in forward
    ]
    banks = [
        {"way": "padded to 77 tokens", "seconds": {"median": 1.0}},
        {"way": "class bank", "seconds": {"median": 36.0}},
        {"way": "class bank", "failed": "no bf16"},
    ]
    folder.mkdir(exist_ok=True)
    for name, content in (
        ("decode", {"machine": machine, "videos": videos}),
        ("model", {"machine": machine, "model": "ezclip", "batches": rows}),
        ("text", {"rows": banks}),
    ):
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def run(folder, *options) -> dict:
    output_file = folder / "plan.json"
    plan_scale.main(["--benchmark", str(folder), "--output_file", str(output_file), *options])
    return json.loads(output_file.read_text())


def test_moved_machine(tmp_path, capsys):
    folder = write_benchmark(tmp_path)
    assert run(folder)["costs"]["machine_moved"] is None and "quiet machine" not in capsys.readouterr().out
    decode = json.loads((folder / "decode.json").read_text())
    decode["videos"][1]["readers"]["ezclip"]["machine_moved"] = 0.34
    (folder / "decode.json").write_text(json.dumps(decode))
    assert run(folder)["costs"]["machine_moved"] == 0.34
    assert "34%" in (printed := capsys.readouterr().out) and "quiet machine" in printed


def test_plan_with_accelerators(tmp_path, capsys):
    folder = write_benchmark(tmp_path / "new")
    result = run(folder, "--cores_per_node", "64", "--accelerators_per_node", "8")
    # (1/10 + 1/40) / 2 = 1/16 s of a core; the fastest batch of ours: 32, in mixed precision
    assert result["costs"]["decode_seconds"] == pytest.approx(1 / 16)
    assert result["costs"]["forward_seconds"] == pytest.approx(1 / 400)
    assert (result["costs"]["batch_size"], result["costs"]["precision"]) == (32, "autocast")
    assert result["cores_per_accelerator"] == pytest.approx(25)
    assert result["clips_per_second"] == pytest.approx(64 * 16) and result["limit"] == "decoding"
    clips, hours = result["plans"].values()
    assert clips["decode_core_hours"] == pytest.approx(1e6 / 16 / 3600)
    assert clips["forward_hours"] == pytest.approx(1e6 / 400 / 3600)
    assert clips["storage_bytes"] == pytest.approx(1e12)
    assert clips["num_nodes"] == 1 and clips["hours"] == pytest.approx((1e6 / 1024 + 36) / 3600)
    assert clips["network_bytes_per_second_per_node"] == pytest.approx(1024e6)
    # 360 million clips of 10 s in a day without the time of the bank: 4.07 nodes
    assert hours["num_clips"] == pytest.approx(3.6e8) and hours["num_nodes"] == 5
    assert hours["hours"] < 24 and hours["network_bytes_per_second"] == pytest.approx(5 * 1024e6)
    more = run(folder, "--cores_per_node", "256", "--accelerators_per_node", "8")
    assert more["clips_per_second"] == pytest.approx(8 * 400) and more["limit"] == "accelerators"
    text = capsys.readouterr().out
    assert "Limit: decoding." in text and "needs 25.0 cores" in text and "has 8.0" in text


def test_plan_without_accelerators(tmp_path):
    folder = write_benchmark(tmp_path, accelerator=None, forward=[(2, 4.0)])
    result = run(folder, "--seconds_per_clip", "40", "--hours", "100", "--nodes", "3")
    # 4 threads embed 4 clips per second, so embedding a clip takes a second of a core
    clips, hours = result["plans"].values()
    assert result["clips_per_second"] == pytest.approx(16 / (1 + 1 / 16))
    assert clips["num_nodes"] == 3 and clips["hours"] == pytest.approx((1e6 * (1 + 1 / 16) / 48 + 36) / 3600)
    # Four times as long: four times the bytes and the decoding, the same embedding
    assert hours["num_clips"] == pytest.approx(9000)
    assert hours["decode_core_hours"] == pytest.approx(9000 * 4 / 16 / 3600)
    assert hours["forward_hours"] == pytest.approx(9000 / 3600)
    assert hours["storage_bytes"] == pytest.approx(9000 * 4e6)


@pytest.mark.parametrize(
    ("accelerator", "options", "processes"),
    [
        ("H100", ["--nodes", "4", "--accelerators_per_node", "8"], 32),
        ("H100", ["--nodes", "1"], None),
        (None, ["--nodes", "2"], 2),
    ],
)
def test_printed_command_parses(tmp_path, accelerator, options, processes):
    command = run(write_benchmark(tmp_path, accelerator), *options)["command"]
    words = shlex.split(command.replace("\\\n", " ").replace("RANK", "0"))
    assert words[:2] == ["accelerate", "launch"]
    launch = launch_command_parser().parse_args(words[2:])
    assert launch.num_processes == processes and launch.training_script == "run_video_zeroshot.py"
    _, data_args, args = parse_args([*launch.training_script_args, "--candidate_labels", "yoga"])
    assert data_args.streaming and args.do_predict and args.mixed_precision == "bf16"
    assert args.per_device_eval_batch_size == 32 and args.use_cpu == (accelerator is None)
    # 25 cores per accelerator would be balanced, but 1 or 8 processes share 16 cores
    workers = 0 if accelerator is None else 2 if "8" in options else 16
    assert args.dataloader_num_workers == workers


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--clips", "0"], "--clips must be a number above 0, got 0.0."),
        (["--hours", "nan"], "--hours must be a number above 0, got nan."),
        (["--accelerators_per_node", "-1"], "--accelerators_per_node must be at least 0, got -1."),
        (["--accelerators_per_node", "0"], "model.json"),
        (["--deadline_hours", "0.01"], "36 s"),
    ],
)
def test_wrong_usage(tmp_path, options, message, capsys):
    with pytest.raises(SystemExit) as caught:
        run(write_benchmark(tmp_path), *options)
    assert caught.value.code == 2 and message in capsys.readouterr().err


def test_missing_or_broken_benchmark(tmp_path, capsys):
    for content, message in ((None, "model.json is missing"), ("{", "cannot be read"), ("{}", "KeyError")):
        write_benchmark(tmp_path)
        path = tmp_path / "model.json"
        path.unlink() if content is None else path.write_text(content)
        with pytest.raises(SystemExit) as caught:
            run(tmp_path)
        assert caught.value.code == 2 and message in capsys.readouterr().err
