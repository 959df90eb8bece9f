"""README and docs/: every block of code runs, and every option, name, message and link exists."""

import argparse
import ast
import functools
import importlib
import json
import os
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from accelerate.commands.launch import launch_command_parser
from accelerate.state import AcceleratorState
from huggingface_hub import constants, hf_api
from torch.distributed.run import get_args_parser
from transformers import CLIPConfig, CLIPModel

from ezclip import EZClipProcessor
from ezclip.cli.demo import word_tokenizer
from ezclip.cli.main import COMMANDS
from ezclip.systems.loading import load_model
from ezclip.utils.synthetic_clips import DIRECTIONS, write_video
from processing_ezclip import default_image_processor
from tests.descriptions.test_descriptions import chat_server, save_speaking_model
from tests.helpers import ROOT, random_clip
from tests.hub.test_push import connect
from tests.hub_server import LoopbackHub
from tests.published import published_actionclip, published_checkpoint, published_vificlip, random_model


PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
# Pages for contributors: only their links are checked
OTHER_PAGES = ["CHANGELOG.md", "CONTRIBUTING.md"]


@dataclass(frozen=True)
class Run:
    """How the blocks of a page run: the files and Hub repositories (`hub:…`) that they leave, packages, duration."""

    outputs: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()  # the page is skipped without these packages
    is_slow: bool = False  # takes more than a few seconds


RUNS = {
    "README.md": Run(
        ("answers.csv", "ezclip-vit-base-patch16/pipeline_ezclip.py", "out/eval_results.json")
        + ("trained_on_mine/model.safetensors",)
    ),
    "docs/attention.md": Run(
        ("maps/attention.png", "maps/attention.mp4", "maps/temporal_attention.png", "rollout.png", "figure.png"),
        needs=("matplotlib",),
    ),
    "docs/classify.md": Run(
        (
            *("ezclip-vit-base-patch16/class_bank.safetensors", "own/predictions.jsonl", "streamed/predictions.jsonl"),
            *("answers.csv", "answers.parquet"),
        )
    ),
    "docs/convert.md": Run(("actionclip/model.safetensors", "vificlip/processor_config.json")),
    "docs/decoding.md": Run(("videos.csv",)),
    "docs/descriptions.md": Run(
        ("texts/all.json", "served/all.json", "out/eval_results.json", "ordered/steps.json", "steps/eval_results.json")
    ),
    "docs/evaluate.md": Run(
        (
            *("list/eval_results.json", "dataset/predictions.jsonl", "comparison/comparison.md"),
            *(f"{name}/protocol_results.json" for name in ("zero_shot", "base_to_novel", "few_shot")),
        ),
        needs=("scipy",),
        is_slow=True,
    ),
    "docs/export.md": Run(
        ("exported/video_tower.onnx", "exported/text_tower.pt2"),
        needs=("onnx", "onnxscript", "onnxruntime"),
        is_slow=True,
    ),
    "docs/few_shot.md": Run(
        ("fitted/class_bank.safetensors", "few_shot/protocol_results.json", "my_bank/class_bank.safetensors")
    ),
    "docs/merge.md": Run(
        ("merged/alpha_0.5/model.safetensors", "merged/comparison/comparison.md"), needs=("scipy",), is_slow=True
    ),
    "docs/push.md": Run(
        ("look/config.json", "hub:me/ezclip-vit-base-patch16", "hub:me/ezclip-adapters", "hub:me/ezclip-by-hand")
        + ("hub:me/ezclip-of-my-videos",)
    ),
    "docs/report.md": Run(
        ("out/report.html", "both/report.html"), needs=("scipy", "sklearn", "matplotlib"), is_slow=True
    ),
    "docs/scale.md": Run(
        ("benchmark/decode.md", "benchmark/model.md", "benchmark/text.md", "plan.json"), is_slow=True
    ),
    "docs/search.md": Run(
        ("hits.csv", "hits.html", "index/windows.arrow"), needs=("scipy", "sklearn", "matplotlib"), is_slow=True
    ),
    "docs/speed.md": Run(("benchmark/model.json", "benchmark/end-to-end.md"), is_slow=True),
    "docs/systems.md": Run(
        ("clip/eval_results.json", "actionclip/model.safetensors", "tear/eval_results.json"), is_slow=True
    ),
    "docs/timeline.md": Run(("film.srt", "film/timeline.json"), needs=("matplotlib",)),
    "docs/training.md": Run(
        ("out/checkpoint-2", "out/model.safetensors", "eight/model.safetensors", "merged/model.safetensors"),
        is_slow=True,
    ),
}
# Blocks that do not run, by page and beginning, and the reason
NOT_RUN = {
    ("docs/live.md", "ezclip live rtsp"): "cameras; tests/live/test_live.py runs the command on a file and on streams",
    ("docs/live.md", "from transformers import pipeline"): "a camera; tests/live/test_live.py iterates over streams",
    ("README.md", "python -m pip install -c constraints.txt . &&"): "installs; tests/cli/test_demo.py runs the demo",
    ("README.md", 'python -m pip install -c constraints.txt -e ".[test]"'): "installs, and runs these tests",
    ("docs/demo.md", "ezclip demo --output_dir demo\npython scripts/make_pictures.py"): (
        "tests/cli/test_demo.py runs the demo, test_pictures_from_a_demo the script"
    ),
    ("docs/app.md", 'python -m pip install ".[app]"'): "installs",
    ("docs/app.md", "ezclip app --model_name_or_path"): "serves until stopped: tests/app/test_app.py runs it",
    ("docs/app.md", "from gradio_client import"): "needs the page: tests/app/test_app.py does the same",
    ("docs/app.md", "from ezclip.cli.app import main"): "serves until stopped: tests/app/test_app.py runs it",
    (
        "docs/evaluate.md",
        "ezclip leaderboard",
    ): "data sets of the Hub: tests/leaderboard runs it on local ones",
    ("docs/evaluate.md", "import mteb"): "data sets of the Hub: tests/leaderboard runs it on local ones",
    ("docs/export.md", 'python -m pip install -c constraints.txt ".[onnx]"'): "installs",
    ("docs/export.md", 'python -m pip install -c constraints.txt ".[openvino]"'): "installs",
    ("docs/export.md", "ezclip export --model ezclip-vit-base-patch16 --engine"): (
        "random weights do not agree: tests/engines runs these commands"
    ),
    ("docs/scale.md", "ezclip run --do_predict --executor ray"): (
        "needs the extra `ray`: tests/utils/test_ray_stages.py runs on a cluster"
    ),
    ("docs/speed.md", "python scripts/benchmark.py cost"): "slow: tests/scripts/test_benchmark.py runs both commands",
    ("docs/training_with_trainer.md", "import torch"): "tests/test_trainer.py runs it and checks the result",
}
# Options that shorten the commands of a module, keep them off a GPU, or name labels that its tokenizer knows
SHORTER = {
    "run_video_zeroshot": ["--use_cpu", "--max_train_steps", "2", "--per_device_train_batch_size", "4"],
    "scripts.benchmark": ["--rounds", "1"],
    "scripts.benchmark text": ["--rounds", "1", "--label_list", "ucf_labels.csv"],
    "scripts.benchmark end-to-end": ["--rounds", "1", "--label_list", "ucf_labels.csv"],
    "ezclip.cli.compare": ["--use_cpu", "--speed_rounds", "1"],
    "ezclip.cli.merge": ["--use_cpu"],
    "ezclip.cli.describe": ["--max_new_tokens", "8"],
}

# Names in the blocks, and what the tests put in their place
CLIP = "openai/clip-vit-base-patch16"  # on a loopback Hub: a CLIP of two layers with random weights
STAND_INS = {
    "ezclip-vit-base-patch16": "an EZ-CLIP of two layers with random weights, and its processor",
    "demo/with_temporal_prompts": "the same",
    "demo/videos/novel/red cross moving left/00.mp4": "a clip of noise",
    "trained": "prompts and adapters over the CLIP on the Hub",
    "best.pt": "an EZ-CLIP as its authors' code saves it",
    "actionclip.pt": "an ActionCLIP as its authors' code saves it",
    "vificlip.pth": "a ViFi-CLIP as its authors' code saves it, of the CLIP on the Hub",
    "LANGUAGE_MODEL": "a language model with fixed answers",
    "video.mp4": "a clip of noise",
    "upload.mp4": "the same",
    "film.mp4": "noise of 22 seconds",
    "videos": "four class folders with three clips of noise each",
    "train_videos": "the same",
    "test_videos": "the same",
    "UCF-101": "the same",
    "kinetics": "the same",
    "DATA": "the same",
    "someone/videos": "a data set with a column of two videos",
    "test.txt": "a list of the clips with paths of another machine",
    "train.txt": "the same",
    "ucf_labels.csv": "their label list",
    "kinetics_400_labels.csv": "the same",
    "Kinetic_400_gpt_Class_discription_new.csv": "a text for each class",
    "ucf101_all.json": "two texts for each class",
    "steps.json": "two steps for each class",
    "systems.yaml": "the YAML block of the page",
    "EZ-CLIP": "lists of the clips, named as in the option files of the page",
    "configs": "as in the repository",
}
LLM_SERVER = "http://127.0.0.1:8000/v1"  # replaced by the address of a server on this machine
CLASSES = ["archery", "making a cake", "yoga", "juggling"]
WORDS = sorted(
    {word for name in [*CLASSES, "video of person photo red cross moving left right"] for word in name.split()}
)
WORDS += [f"word{number}" for number in range(26 - len(WORDS))]  # random_model has a vocabulary of 30

CONFIGS = ROOT / "ezclip" / "configs"
SCRIPT = re.compile(r"run_video_zeroshot|(run_video_zeroshot|scripts/\w+)\.py")


@dataclass(frozen=True)
class Block:
    """A block of code on a page. `line` is the line of its fence."""

    page: str
    line: int
    language: str
    text: str

    @property
    def reason_not_to_run(self) -> str | None:
        found = [why for (page, start), why in NOT_RUN.items() if page == self.page and self.text.startswith(start)]
        return found[0] if found else None


@functools.cache
def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks_of(page: str) -> list[Block]:
    text = text_of(page)
    return [
        Block(page, text[: found.start()].count("\n") + 1, found[1], found[2])
        for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    ]


def prose_of(page: str) -> str:
    return re.sub(r"^```.*?^```$", "", text_of(page), flags=re.DOTALL | re.MULTILINE)


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
RUNNING = [block for block in BLOCKS if block.language in ("python", "bash") and not block.reason_not_to_run]
RUN_PAGES = sorted({block.page for block in RUNNING})


# What the blocks find


@pytest.fixture(scope="module")
def clip_files(tmp_path_factory):
    """The files of the CLIP on the Hub. It has the token embedding of `vificlip.pth`."""
    model, folder = random_model("vificlip"), tmp_path_factory.mktemp("clip")
    own = CLIPConfig()
    towers = {
        name: {field: value for field, value in getattr(model.config, name).to_dict().items() if field in known}
        for name in ("text_config", "vision_config")
        if (known := getattr(own, name).to_dict().keys() - {"model_type"})
    }
    clip = CLIPModel(CLIPConfig(**towers, projection_dim=model.config.projection_dim))
    clip.text_model.embeddings.token_embedding.weight.data = model.text_model.embeddings.token_embedding.weight.data
    clip.save_pretrained(folder)
    word_tokenizer(WORDS).save_pretrained(folder)
    default_image_processor(32).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def stage(clip_files, tmp_path_factory):
    """A folder with the files of `STAND_INS`, except for those that a page contains."""
    root = tmp_path_factory.mktemp("stage")
    processor = EZClipProcessor(default_image_processor(32), word_tokenizer(WORDS))
    model = random_model()
    for name in ("ezclip-vit-base-patch16", "demo/with_temporal_prompts"):
        model.save_pretrained(root / name)
        processor.save_pretrained(root / name)
    trained = load_model(clip_files, for_training=True)
    trained.save_pretrained(root / "trained", trained_only=True, base_model_name_or_path=CLIP)
    processor.save_pretrained(root / "trained")
    torch.save(published_checkpoint(model), root / "best.pt")
    torch.save(published_actionclip(random_model("actionclip", temporal_head="mean")), root / "actionclip.pt")
    torch.save(published_vificlip(random_model("vificlip")), root / "vificlip.pth")
    save_speaking_model(
        root / "LANGUAGE_MODEL",
        {
            "<steps>": "1. One stands\n2. One moves\n3. One stops",
            "<one sentence>": "1. A person moves over a field",
            "<place>": "1. a field\n2. grass\n3. trees",
        },
    )
    write_clips(root)
    write_lists(root)
    shutil.copytree(CONFIGS, root / "ezclip" / "configs")
    return root


def write_clips(root: Path):
    lines = []
    for label, name in enumerate(CLASSES):
        for number in range(3):
            path = root / "videos" / name / f"{name.replace(' ', '_')}_{number}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_video(path, random_clip(10 * label + number))
            lines.append(f"/authors/disk/{name}/{path.name} 12 {label}")
    for name in ("train_videos", "test_videos", "UCF-101", "kinetics", "DATA"):
        shutil.copytree(root / "videos", root / name)
    for name in ("test.txt", "train.txt"):
        (root / name).write_text("\n".join(lines) + "\n")
    clip = root / "videos" / "yoga" / "yoga_0.mp4"
    copies = ["video.mp4", "upload.mp4", "demo/videos/novel/red cross moving left/00.mp4"]
    for name in [*copies, "someone/videos/test/yoga/0.mp4", "someone/videos/test/archery/1.mp4"]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(clip, root / name)
    write_video(root / "film.mp4", random_clip(99, num_frames=22 * 8))


def write_lists(root: Path):
    """Write lists, label lists and texts, also those that option files name."""
    write_labels(root / "ucf_labels.csv", CLASSES)
    write_labels(root / "kinetics_400_labels.csv", CLASSES)
    write_texts(root / "Kinetic_400_gpt_Class_discription_new.csv")
    write_texts(root / "ucf101_all.json")
    steps = {name: {"steps": [[f"a person {name}", name], "a field"]} for name in CLASSES}
    (root / "steps.json").write_text(json.dumps(steps))
    lines = (root / "test.txt").read_text().splitlines()
    for config in ("zero_shot", "base_to_novel_ucf101"):
        content = read_yaml(CONFIGS / f"{config}.yaml")
        content = read_yaml(CONFIGS / content["eval_datasets"]) if "eval_datasets" in content else {"": content}
        for option, names in ((option, names) for options in content.values() for option, names in options.items()):
            if not option.endswith(("_list", "_descriptions", "_subset")):
                continue
            for name in [names] if isinstance(names, str) else names:
                write_as_named(root / "EZ-CLIP" / name, option, lines)


def read_yaml(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def write_as_named(path: Path, option: str, lines: list[str]):
    """Write a file that an option file names: of all classes, or of the half in its name."""
    half = re.search("base|novel", path.stem)
    classes = CLASSES if half is None else CLASSES[:2] if half[0] == "base" else CLASSES[2:]
    path.parent.mkdir(parents=True, exist_ok=True)
    if option.endswith("_descriptions"):
        write_texts(path)
    elif option.endswith("_subset"):
        write_labels(path, classes[:2])
    elif option.endswith("label_list"):
        write_labels(path, classes)
    else:
        entries = [(line[:-1], CLASSES[int(line[-1])]) for line in lines]
        own = [f"{entry}{classes.index(name)}\n" for entry, name in entries if name in classes]
        path.write_text("".join(own))


def write_labels(path: Path, classes: list[str]):
    path.write_text("id,name\n" + "".join(f"{label},{name}\n" for label, name in enumerate(classes)))


def write_texts(path: Path):
    if path.suffix == ".json":
        path.write_text(json.dumps({name: [f"a person {name}", "a field"] for name in CLASSES}))
    else:
        path.write_text("".join(f"{number},{name},a person {name}\n" for number, name in enumerate(CLASSES)))


# Blocks


def run_python(block: Block, names: dict):
    exec(compile("\n" * block.line + block.text, block.page, "exec"), names)


def commands_of(block: Block) -> list[list[str]]:
    text = block.text.replace("\\\n", " ")
    return [words for line in text.splitlines() if (words := shlex.split(line, comments=True))]


def run_command(words: list[str]):
    """Run a command of ezclip, Python or `accelerate launch` in this process."""
    if words[0] == "ezclip":
        module, argv = COMMANDS[words[1]][0], words[2:]
    else:
        start = next(number for number, word in enumerate(words) if SCRIPT.fullmatch(word))
        launcher = [word for word in words[:start] if word != "-m"]
        assert launcher in (["python"], ["accelerate", "launch"], ["accelerate", "launch", "--num_processes", "8"])
        module, argv = words[start].removesuffix(".py").replace("/", "."), words[start + 1 :]
    main = importlib.import_module(module).main
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        status = main([*argv, *(SHORTER.get(f"{module} {argv[0]}") or SHORTER.get(module, []))])
    except SystemExit as ended:
        status = ended.code
    assert status in (None, 0), f"{shlex.join(words)}: {status}"


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow if page in RUNS and RUNS[page].is_slow else ()) for page in RUN_PAGES],
)
def test_blocks_run(page, stage, clip_files, tmp_path, monkeypatch):
    expected = RUNS.get(page, Run())
    for package in expected.needs:
        pytest.importorskip(package)
    folder = shutil.copytree(stage, tmp_path / "stage")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    names = {"__name__": "example"}
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with LoopbackHub().serving() as hub, chat_server() as language_model:
        hub.add(CLIP, clip_files)
        connect(hub, monkeypatch)
        # huggingface_hub and transformers keep these clients for the whole process
        monkeypatch.setattr(hf_api.api, "endpoint", hub.url)
        monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)
        # Files first, because the blocks that use them may precede them
        for block in blocks_of(page):
            if block.language == "yaml":
                (folder / "systems.yaml").write_text(block.text)
                assert "systems.yaml" in text_of(page)
        for block in (block for block in RUNNING if block.page == page):
            if block.language == "python":
                run_python(block, names)
            else:
                for words in commands_of(block):
                    run_command([language_model.url if word == LLM_SERVER else word for word in words])
        for name in expected.outputs:
            if name.startswith("hub:"):
                assert "config.json" in hub.files(name.removeprefix("hub:"))
            else:
                assert (folder / name).exists(), name


def test_exceptions_are_current():
    for page, start in NOT_RUN:
        assert sum(block.page == page and block.text.startswith(start) for block in BLOCKS) == 1, (page, start)
    assert set(RUN_PAGES) >= set(RUNS)
    code = "\n".join(block.text for block in BLOCKS)
    for name in [*STAND_INS, CLIP, LLM_SERVER]:
        assert name in code, name


def test_languages_of_blocks():
    assert {block.language for block in BLOCKS} == {"python", "bash", "json", "yaml", "bibtex", "text"}
    for block in BLOCKS:
        assert block.language != "bash" or block.reason_not_to_run or all(map(is_ours, commands_of(block))), block


def is_ours(words: list[str]) -> bool:
    return words[0] == "ezclip" or (words[0] in ("python", "accelerate") and any(map(SCRIPT.fullmatch, words)))


# Options, names, messages and links


class ParserMade(Exception):
    """Ends a command when it parses its options."""


@pytest.fixture(scope="module")
def options():
    """Every option of every command and script, and of their launchers."""
    found = {"-c", "-e", "-m", "--help"}
    for parser in (launch_command_parser(), get_args_parser()):
        found |= set(parser._option_string_actions)

    def parse(parser, *args, **kwargs):
        found.update(parser._option_string_actions)
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for command in action.choices.values():
                    found.update(command._option_string_actions)
        raise ParserMade

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse)
        pytest.importorskip("scipy")  # of compare
        scripts = [
            f"scripts.{path.stem}" for path in (ROOT / "scripts").glob("*.py") if "__main__" in path.read_text()
        ]
        for name in [*(module for module, _ in COMMANDS.values()), *scripts]:
            with pytest.raises(ParserMade):
                importlib.import_module(name).main([])
    return found


@pytest.mark.parametrize("page", PAGES)
def test_options_exist(page, options):
    named = set(re.findall(r"(?<![\w-])--[a-z]\w*(?:-\w+)*", text_of(page)))
    assert named <= options, sorted(named - options)


@pytest.mark.parametrize("page", PAGES)
def test_paths_and_names_exist(page):
    for path in re.findall(r"(?<![\w/.-])((?:scripts|configs|tests|ezclip)/[\w/]+(?:\.\w+)?)", text_of(page)):
        assert (ROOT / path).exists(), path
    for name in re.findall(r"`(ezclip(?:\.\w+)+)`", text_of(page)):
        module, attribute = name.rsplit(".", 1)
        assert hasattr(importlib.import_module(module), attribute), name


# Messages in docs/troubleshooting.md from other packages
MESSAGES_OF_OTHERS = {
    "The repository … contains custom code which must be executed": "transformers.dynamic_module_utils",
    "We couldn't connect to …": "transformers.utils.hub",
}


@pytest.fixture(scope="module")
def messages():
    """The strings in the source, with … in place of values."""
    paths = [*ROOT.glob("*_ezclip.py"), *(ROOT / "ezclip").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]
    return [text for path in paths for text in texts_in(path)]


def texts_in(path: Path) -> list[str]:
    found, tree = [], ast.parse(path.read_text(encoding="utf-8"))
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            found.append(node.value)
    return found


def test_troubleshooting_quotes_messages(messages):
    page = text_of("docs/troubleshooting.md")
    named = re.findall(r"^### `(.+)`$", page, re.MULTILINE)
    assert len(named) > 30 and set(named) >= set(MESSAGES_OF_OTHERS)
    assert page.count("### `") == len(named)
    lost = []
    for message in named:
        pattern = re.compile(".*".join(map(re.escape, message.split("…"))))
        texts = messages
        if message in MESSAGES_OF_OTHERS:
            texts = texts_in(Path(importlib.import_module(MESSAGES_OF_OTHERS[message]).__file__))
        lost += [] if any(pattern.search(text) for text in texts) else [message]
    assert not lost


SHOWN_LABELS = "red cross, blue circle, green square"


def masked(output: str) -> str:
    """Leave out what depends on the weights: scores, their bars, and which label is the best."""
    labels = "|".join(SHOWN_LABELS.split(", "))
    return re.sub(rf"'score': [\d.e-]+|'label': '\w+ \w+'|(?<=  )({labels}) +\d+\.\d %( +\S+)?", "…", output).strip()


def test_readme_shows_current_output(clip_files, tmp_path, monkeypatch, capfd, caplog):
    """The README shows a run on the demo's CLIP; this is the same run on another CLIP, so the scores differ."""
    python, command = [block.text for block in blocks_of("README.md") if block.language == "text"]
    shutil.copytree(clip_files, tmp_path / "demo" / "clip")
    words = list(dict.fromkeys([*SHOWN_LABELS.replace(",", "").split(), *WORDS]))
    word_tokenizer(words[:26]).save_pretrained(tmp_path / "demo" / "clip")
    (tmp_path / "videos").mkdir()
    for name in ("video.mp4", "videos/blue.mp4", "videos/green.mp4"):
        write_video(tmp_path / name, random_clip(len(name)))
    (tmp_path / "videos" / "broken.mp4").write_text("broken")
    monkeypatch.chdir(tmp_path)
    (block,) = (block for block in RUNNING if block.page == "README.md" and block.language == "python")
    own = re.sub(r'candidate_labels="[^"]+"', f'candidate_labels="{SHOWN_LABELS}"', block.text)
    run_python(Block("README.md", block.line, "python", own.replace(CLIP, "demo/clip")), {"__name__": "example"})
    line, answers = python.split("\n", 1)
    assert masked(capfd.readouterr().out) == masked(answers)
    assert line in caplog.messages
    (words,) = (
        commands_of(block)[0] for block in RUNNING if block.page == "README.md" and "answers.csv" in block.text
    )
    words[words.index("--labels") + 1] = SHOWN_LABELS
    with pytest.raises(AssertionError, match=": 1"):  # exit status 1: a video could not be read
        run_command([*words, "--model", "demo/clip"])
    printed = capfd.readouterr()
    shown, error = command.replace(f"{line}\n", "").split("ezclip classify: ")
    assert masked(printed.out) == masked(shown)
    assert error in printed.err


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", [*PAGES, *OTHER_PAGES])
def test_links(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(page)):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.is_file(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), target


def test_readme_links_reach_every_page():
    reached, waiting = set(), ["README.md"]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        for name in re.findall(r"\]\(([^)#\s]+\.md)", prose_of(page)):
            path = ((ROOT / page).parent / name).resolve().relative_to(ROOT).as_posix()
            waiting += [path] if path not in reached else []
    assert reached == {*PAGES, *OTHER_PAGES}


# The site, the pictures and the notebook


def test_site_lists_every_page():
    """`mkdocs build --strict`, in .ci/run, checks the rest."""
    listed, waiting = [], list(read_yaml(ROOT / "mkdocs.yml")["nav"])
    while waiting:
        for entry in waiting.pop().values():
            if isinstance(entry, list):
                waiting += entry
            else:
                listed.append(f"docs/{entry}")
    assert sorted(["README.md", *listed]) == sorted(PAGES)


def test_pictures_are_small_and_shown():
    pictures = {f"docs/pictures/{path.name}" for path in (ROOT / "docs" / "pictures").iterdir()}
    assert all((ROOT / name).stat().st_size < 300_000 for name in pictures)
    shown = {
        ((ROOT / page).parent / target).relative_to(ROOT).as_posix()
        for page in PAGES
        for target in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text_of(page))
    }
    assert shown == pictures
    assert text_of("README.md").startswith("# ezclip\n\n![")


def test_readme_has_the_figures_of_models():
    """README.md repeats a part of docs/models.md."""
    rows = text_of("docs/models.md").splitlines()
    named = re.findall(r"`([\w-]+/[\w.-]+)` (\d\d\.\d)", text_of("README.md"))
    assert len(named) > 10
    for name, figure in named:
        (row,) = (row for row in rows if row.startswith(f"| [`{name}`](https://huggingface.co/{name})"))
        assert row.endswith(f"| {figure} |")
    for figures in re.findall(r"\d\d\.\d / \d\d\.\d / \d\d\.\d", text_of("README.md")):
        assert figures in text_of("docs/models.md")


@pytest.mark.parametrize("page", PAGES)
def test_demo_never_passes_for_a_general_model(page):
    if "demo/with_temporal_prompts" in text_of(page) or "pictures/" in text_of(page):
        assert re.search(r"knows\s+coloured\s+shapes\s+only|and\s+nothing\s+else", text_of(page))


def test_pictures_from_a_demo(tmp_path):
    """The script runs on the folder of a demo; here its models have random weights."""
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    make_pictures = importlib.import_module("scripts.make_pictures")
    words = ["a", *make_pictures.SUBJECT.split(), "moving", *DIRECTIONS]
    tokenizer = word_tokenizer(words + [f"word{number}" for number in range(26 - len(words))])
    for name in make_pictures.MODELS:
        random_model().save_pretrained(tmp_path / name)
        EZClipProcessor(default_image_processor(32), tokenizer).save_pretrained(tmp_path / name)
    labels = [f"{make_pictures.SUBJECT} moving {direction}" for direction in DIRECTIONS]
    lines = []
    for label in labels:
        for number in range(6):
            path = tmp_path / "videos" / "novel" / label / f"{number:02d}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_video(path, random_clip(number))
            predictions = [{"label": name, "score": 0.25} for name in labels]
            lines.append(json.dumps({"video": str(path), "label": label, "predictions": predictions}) + "\n")
    results = tmp_path / "without_temporal_prompts" / "novel" / "predictions.jsonl"
    results.parent.mkdir()
    results.write_text("".join(lines))
    make_pictures.main([str(tmp_path), "--output_dir", str(tmp_path / "pictures")])
    drawn = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert drawn == {path.name for path in (ROOT / "docs" / "pictures").iterdir()}


def test_notebook(stage, clip_files, tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(ROOT / "examples" / "quickstart.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    monkeypatch.setenv("EZCLIP_MODEL", str(clip_files))
    monkeypatch.setenv("EZCLIP_VIDEOS", str(stage / "videos"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs for cell in codes[1:])
    assert "yoga_0.mp4" in codes[3].outputs[-1].data["text/plain"]
    assert "image/png" in codes[2].outputs[-1].data
