"""Push to a Hub on this machine, and load from it in a process without ezclip."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, constants
from safetensors.torch import load_file, save_file
from transformers.utils.hub import create_and_tag_model_card

import run_video_zeroshot
from ezclip import ClassBank, EZClipConfig, EZClipModel, EZClipProcessor
from ezclip.cli import push as push_to_hub
from ezclip.cli.demo import word_tokenizer
from ezclip.errors import ModelError
from ezclip.evaluation.protocols import summarize
from ezclip.systems.citations import CITATIONS, describe_system
from ezclip.systems.loading import load_model, load_processor
from ezclip.utils.synthetic_clips import write_video
from processing_ezclip import default_image_processor
from tests.helpers import ROOT, VOCAB_SIZE, WORDS, edit_config, make_clip, random_clip, train
from tests.hub_server import TOKEN, LoopbackHub, check_metadata


BASE = "org/clip"
LABELS = ["red circle", "green square"]
WEIGHTS = "model.safetensors"
ROOT_MODULES = {path.name for path in ROOT.glob("*_ezclip.py")}


def connect(hub: LoopbackHub, monkeypatch):
    """Make this process use a Hub on this machine, with a token and without waits between attempts."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    )
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)


def run(*argv):
    push_to_hub.main(list(map(str, argv)))


def error_of(*argv) -> str:
    with pytest.raises(SystemExit) as caught:
        run(*argv)
    return caught.value.code


@pytest.fixture
def hub(clip, monkeypatch, tmp_path):
    """Return a Hub with a plain CLIP; this process uses it with an empty cache."""
    with LoopbackHub().serving() as hub:
        hub.add(BASE, clip)
        connect(hub, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield hub


@pytest.fixture(scope="module")
def models(clip, tmp_path_factory):
    """Return a folder with one trained model: `whole`, with class embeddings, and `trained` weights alone."""
    root = tmp_path_factory.mktemp("models")
    model = train(load_model(clip, for_training=True)).eval()
    processor = EZClipProcessor(default_image_processor(32), word_tokenizer(WORDS))
    model.save_pretrained(root / "whole")
    model.save_pretrained(root / "trained", trained_only=True)
    for name in ("whole", "trained"):
        processor.save_pretrained(root / name)
    ClassBank.build(model, processor, LABELS, templates="a {}").save_pretrained(root / "whole")
    return root


@pytest.fixture
def whole(models, tmp_path):
    return shutil.copytree(models / "whole", tmp_path / "whole")


@pytest.fixture
def trained(models, tmp_path):
    return shutil.copytree(models / "trained", tmp_path / "trained")


# From push to prediction

ELSEWHERE = """
import json, sys
sys.modules["ezclip"] = None  # importing it raises
import torch
from transformers import AutoConfig, AutoModel, AutoProcessor, pipeline
from transformers.dynamic_module_utils import get_class_from_dynamic_module

labels, trust, answers = ["red circle", "green square"], {"trust_remote_code": True}, {}
for name in ("me/whole", "me/trained"):
    assert AutoConfig.from_pretrained(name, **trust).model_type == "ezclip"
    model, processor = AutoModel.from_pretrained(name, **trust), AutoProcessor.from_pretrained(name, **trust)
    inputs = processor(videos="video.mp4", text=[f"a {label}" for label in labels], return_tensors="pt")
    with torch.no_grad():
        answers[name] = model(**inputs).logits_per_video.tolist()
    classifier = pipeline("zero-shot-video-classification", model=name, **trust)
    (best, _) = classifier("video.mp4", candidate_labels=labels, hypothesis_template="a {}")
    answers[name + " pipeline"] = best["label"]
bank = get_class_from_dynamic_module("pipeline_ezclip.ClassBank", "me/whole").from_pretrained("me/whole")
answers["bank"] = bank.labels
json.dump(answers, open(sys.argv[1], "w"))
"""


@pytest.fixture(scope="module")
def pushed(clip, models, tmp_path_factory):
    """Return a Hub with both forms of the model pushed, and a folder with a video."""
    folder = tmp_path_factory.mktemp("elsewhere")
    write_video(folder / "video.mp4", random_clip(0))
    with LoopbackHub().serving() as hub, pytest.MonkeyPatch.context() as monkeypatch:
        hub.add(BASE, clip)
        connect(hub, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "own cache"))
        run("--model", models / "whole", "--repo_id", "me/whole", "--license", "mit")
        run("--model", models / "trained", "--repo_id", "me/trained", "--base_model_name_or_path", BASE)
        monkeypatch.undo()
        yield hub, folder


def run_elsewhere(code, hub, folder, *argv, python=sys.executable, offline=False):
    """Return the JSON that a process without ezclip and with its own cache writes."""
    environment = {
        **os.environ,
        **hub.environment,
        "HF_HOME": str(folder / "home"),
        "HF_HUB_OFFLINE": str(int(offline)),
    }
    for name in ("HF_HUB_CACHE", "HF_MODULES_CACHE", "HF_TOKEN"):
        environment.pop(name, None)
    answers = folder / "answers.json"
    answers.unlink(missing_ok=True)
    # -P: the working folder is not on the path
    result = subprocess.run(
        [str(python), "-P", "-c", code, str(answers), *map(str, argv)],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(answers.read_text())


def check_answers(answers, models, folder):
    model, processor = EZClipModel.from_pretrained(models / "whole"), EZClipProcessor.from_pretrained(models / "whole")
    text = [f"a {label}" for label in LABELS]
    with torch.no_grad():
        inputs = processor(videos=str(folder / "video.mp4"), text=text, return_tensors="pt")
        expected = model(**inputs).logits_per_video
    for name in ("me/whole", "me/trained"):
        torch.testing.assert_close(torch.tensor(answers[name]), expected, atol=1e-4, rtol=1e-5)
        assert answers[f"{name} pipeline"] == LABELS[expected.argmax()]
    assert answers["bank"] == LABELS


@pytest.mark.slow
def test_load_elsewhere(pushed, models):
    hub, folder = pushed
    check_answers(run_elsewhere(ELSEWHERE, hub, folder), models, folder)
    fetched = hub.asked("GET", f"/{BASE}/resolve/.*{WEIGHTS}")
    assert fetched  # the base of what was trained alone
    num_requests = len(hub.requests)
    check_answers(run_elsewhere(ELSEWHERE, hub, folder, offline=True), models, folder)
    assert len(hub.requests) == num_requests


WITHOUT_AV = """
import importlib.abc, json, sys
sys.modules["ezclip"] = None


class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "av":
            raise ModuleNotFoundError("No module named 'av'", name=name)


sys.meta_path.insert(0, Missing())
from transformers import AutoProcessor

errors = {}
for name in sys.argv[2:]:
    try:
        AutoProcessor.from_pretrained(name, trust_remote_code=True)
    except ImportError as error:
        errors[name] = str(error)
json.dump(errors, open(sys.argv[1], "w"))
"""


def test_missing_dependency(pushed, models, tmp_path):
    hub, folder = pushed
    ignored = shutil.ignore_patterns(".*", "tests", "docs", "examples", "shared")
    shutil.copytree(ROOT, tmp_path / "clone", ignore=ignored)
    for path in (models / "whole").iterdir():
        if path.suffix != ".py":
            shutil.copy(path, tmp_path / "clone")
    names = [models / "whole", "me/whole", tmp_path / "clone"]
    errors = run_elsewhere(WITHOUT_AV, hub, folder, *names)
    assert set(errors) == set(map(str, names))
    for error in errors.values():
        assert re.search(r"\bav\b", error) and "_ezclip" not in error, error


@pytest.mark.slow
def test_load_in_fresh_environment(pushed, models, tmp_path):
    hub, folder = pushed
    if (Path(sysconfig.get_path("purelib")) / "ezclip").exists():
        pytest.skip("ezclip is installed where its requirements are, and not in place: they cannot be had without it")
    venv.create(tmp_path / "fresh", symlinks=True)
    python = tmp_path / "fresh" / "bin" / "python"
    (purelib,) = (tmp_path / "fresh").glob("lib/python*/site-packages")
    # A line of a .pth file is a folder whose own .pth files, those of packages installed in place, do not count.
    (purelib / "requirements.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    probe = [
        python,
        "-P",
        "-c",
        "import importlib.util as u; print(u.find_spec('ezclip'), u.find_spec('transformers'))",
    ]
    found = subprocess.run(probe, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert found.startswith("None ModuleSpec")
    shutil.copytree(folder, tmp_path / "work", ignore=shutil.ignore_patterns("home"))
    for offline in (False, True):
        answers = run_elsewhere(ELSEWHERE, hub, tmp_path / "work", python=python, offline=offline)
        check_answers(answers, models, folder)


def test_pushed_files(pushed, models):
    hub, _ = pushed
    expected = {path.name for path in (models / "whole").iterdir()} | {"README.md", ".gitattributes"}
    assert set(hub.files("me/whole")) == expected
    assert set(hub.files("me/trained")) == expected - {"class_bank.safetensors"}
    assert hub.files("me/trained")[WEIGHTS] == (models / "trained" / WEIGHTS).read_bytes()
    assert json.loads(hub.files("me/trained")["config.json"])["base_model_name_or_path"] == BASE
    for repo_id in ("me/whole", "me/trained"):
        assert len(hub.repositories[repo_id].branches["main"]) == 3  # initial, created, pushed
        assert {name for name in hub.files(repo_id) if name.endswith(".py")} == ROOT_MODULES and len(ROOT_MODULES) <= 6
        for name, content in hub.files(repo_id).items():
            assert str(models).encode() not in content, name


def test_dry_run(models, tmp_path, capsys):
    run("--model", models / "whole", "--repo_id", "me/whole", "--dry_run", tmp_path / "look")
    assert {path.name for path in (tmp_path / "look").iterdir()} >= {"README.md", WEIGHTS, "modeling_ezclip.py"}
    size = (tmp_path / "look" / WEIGHTS).stat().st_size
    assert f"{size:,}  {WEIGHTS}" in capsys.readouterr().out
    again = error_of("--model", models / "whole", "--repo_id", "me/whole", "--dry_run", tmp_path / "look")
    assert "--dry_run must be an empty folder" in again


def test_run_files_are_not_pushed(whole, tmp_path):
    for name in ("checkpoint-3/optimizer.bin", "best_model/model.safetensors", "events.out.tfevents", "loss.png"):
        (whole / name).parent.mkdir(exist_ok=True)
        (whole / name).write_text("not for others")
    (whole / "predictions.jsonl").write_text('{"video": "/home/me/secret.mp4"}')
    run("--model", whole, "--repo_id", "me/whole", "--dry_run", tmp_path / "look")
    pushed = {path.relative_to(tmp_path / "look").as_posix() for path in (tmp_path / "look").rglob("*")}
    assert "modeling_ezclip.py" in pushed
    assert not [name for name in pushed if "/" in name or name.endswith((".png", "jsonl")) or "tfevents" in name]


# Whole model or trained weights alone


def test_whole_from_trained(hub, trained):
    run("--model", trained, "--repo_id", "me/merged", "--whole")
    assert json.loads(hub.files("me/merged")["config.json"])["base_model_name_or_path"] is None
    assert len(hub.files("me/merged")[WEIGHTS]) > 2 * (trained / WEIGHTS).stat().st_size
    card = ModelCard(hub.files("me/merged")["README.md"].decode())
    assert not card.data.base_model and "- The starting weights are not recorded." in card.text
    edit_config(trained, base_model_name_or_path=BASE)
    run("--model", trained, "--repo_id", "me/merged", "--whole")
    card = ModelCard(hub.files("me/merged")["README.md"].decode())
    assert card.data.base_model == BASE and "base_model_relation" not in card.data.to_dict()


def test_trained_from_whole(hub, whole, trained, tmp_path):
    arguments = ("--model", whole, "--repo_id", "me/part", "--trained_only")
    assert "does not say what it was trained from" in error_of(*arguments)
    run(*arguments, "--base_model_name_or_path", BASE)
    (tmp_path / WEIGHTS).write_bytes(hub.files("me/part")[WEIGHTS])
    assert hub.repositories["me/part"].head().message == f"Upload the weights of an EZClipModel trained from {BASE}"
    part, expected = load_file(tmp_path / WEIGHTS), load_file(trained / WEIGHTS)
    assert part.keys() == expected.keys() and all(torch.equal(part[name], expected[name]) for name in part)


def test_fully_trained_model(hub, clip, tmp_path):
    load_model(clip, preset="vificlip").save_pretrained(tmp_path / "all")
    EZClipProcessor(default_image_processor(32), word_tokenizer(WORDS)).save_pretrained(tmp_path / "all")
    arguments = ("--model", tmp_path / "all", "--repo_id", "me/all", "--trained_only")
    run(*arguments, "--base_model_name_or_path", BASE)
    card = hub.files("me/all")["README.md"].decode()
    assert "all of them trained" in card and "holds the trained weights alone" not in card


def test_base_must_be_on_the_hub(hub, trained, whole, clip, tmp_path):
    arguments = ("--model", trained, "--repo_id", "me/trained")
    assert f"was trained from the folder {clip}, which others do not have. Give the name" in error_of(*arguments)
    assert "which others do not have" in error_of(*arguments, "--base_model_name_or_path", clip)
    assert "'org/none', the base of" in error_of(*arguments, "--base_model_name_or_path", "org/none")
    run(*arguments, "--whole", "--base_model_name_or_path", clip, "--dry_run", tmp_path / "merged")  # it is loaded
    assert "base_model" not in (tmp_path / "merged" / "README.md").read_text()
    for base in (clip, "./gone"):
        said = error_of("--model", whole, "--repo_id", "me/whole", "--base_model_name_or_path", base)
        assert f"--base_model_name_or_path must be a name on the Hub for a whole model, got {base}" in said
    hub.repositories[BASE].private = True
    assert "cannot be loaded" in error_of(*arguments, "--base_model_name_or_path", BASE)
    hub.repositories[BASE].private = False
    hub.fail("GET", f"/api/models/{BASE}$", times=float("inf"), status=404)
    assert f"The base {BASE} cannot be looked up" in error_of(*arguments, "--base_model_name_or_path", BASE)
    assert hub.repositories.keys() == {BASE}  # nothing is made that stays empty


def test_wrong_base(hub, trained, whole, tmp_path):
    make_clip(tmp_path / "other", seed=1, vocab_size=VOCAB_SIZE)
    hub.add("org/other", tmp_path / "other")
    for folder in (trained, whole):
        arguments = ("--model", folder, "--repo_id", "me/trained", "--trained_only")
        said = error_of(*arguments, "--base_model_name_or_path", "org/other")
        assert "'org/other' is not the model that" in said
    assert "me/trained" not in hub.repositories


# Folders and options that are refused


def test_local_paths(whole, hub):
    path = whole / "processor_config.json"
    content = json.loads(path.read_text())
    content["image_processor"]["_name_or_path"] = "/home/me/processor"  # read by nothing: left out
    path.write_text(json.dumps(content))
    run("--model", whole, "--repo_id", "me/whole")
    assert b"/home/me" not in b"".join(hub.files("me/whole").values())
    edit_config(whole, corpus="/home/me/corpus")
    said = error_of("--model", whole, "--repo_id", "me/whole")
    assert "`corpus` in config.json" in said and "/home/me/corpus" in said


def test_unusable_folders(hub, whole, tmp_path):
    assert "has no config.json" in error_of("--model", tmp_path, "--repo_id", "me/x")
    bank = ClassBank.from_pretrained(whole)
    ClassBank(["a"], torch.ones(1, 1, 5)).save_pretrained(whole)
    assert "embeddings of 5 dimensions, and the model's have 16" in error_of("--model", whole, "--repo_id", "me/x")
    ClassBank(bank.labels, bank.embeds, -bank.probe).save_pretrained(whole)
    said = error_of("--model", whole, "--repo_id", "me/x")
    assert f"{whole} cannot be pushed with its class_bank.safetensors: " in said and "another model" in said
    (whole / "class_bank.safetensors").write_bytes(b"no")
    assert "class_bank.safetensors holds no class bank" in error_of("--model", whole, "--repo_id", "me/x")
    (whole / "class_bank.safetensors").unlink()
    (whole / "tokenizer.json").unlink()
    reason = "has no processor (the files of its tokenizer are missing). "
    assert reason in error_of("--model", whole, "--repo_id", "me/x")
    with pytest.raises(ModelError, match=re.escape(reason)):
        load_processor(whole)
    (whole / "processor_config.json").unlink()
    assert "has no processor" in error_of("--model", whole, "--repo_id", "me/x")
    (whole / WEIGHTS).write_bytes(b"cut")
    assert "cannot be loaded" in error_of("--model", whole, "--repo_id", "me/x")
    assert "me/x" not in hub.repositories


def test_impossible_names_and_licences(hub, whole, tmp_path):
    for options, message in (
        (["--license", "Apache 2.0"], "got 'Apache 2.0'"),
        (["--dataset", "me/videos", "my data set"], "'my data set' cannot be the name of a data set"),
        (["--eval_dataset", "my data set"], "'my data set' cannot be the name of a data set"),
        (["--repo_id", "me/--x"], "'me/--x' cannot be the name of a repository"),
        (["--eval_dataset", "UCF-101"], "no results for --eval_dataset 'UCF-101'"),
    ):
        for more in ([], ["--dry_run", tmp_path / "look"]):
            assert message in error_of("--model", whole, "--repo_id", "me/x", *options, *more)
    said = error_of("--model", whole, "--repo_id", "me/x", "--license", "unheard-of")  # which the Hub alone knows
    assert "The Hub refuses the metadata of README.md" in said and "must be one of" in said
    assert hub.repositories.keys() == {BASE}


# Interruptions and refusals


@pytest.mark.parametrize("failure", [{"after_bytes": 5000}, {"status": 500}, {"status": 503}])
def test_retry_after_short_failure(hub, whole, failure):
    hub.fail("PUT", "/lfs/", times=2, **failure)
    run("--model", whole, "--repo_id", "me/whole")
    assert hub.files("me/whole")[WEIGHTS]


def test_repeat_after_interruption(hub, whole):
    arguments = ("--model", whole, "--repo_id", "me/whole")
    run(*arguments)
    before = hub.repositories["me/whole"].head()
    weights = load_file(whole / WEIGHTS)
    weights["logit_scale"] += 1.0
    save_file(weights, whole / WEIGHTS, metadata={"format": "pt"})
    bank = ClassBank.from_pretrained(whole)
    ClassBank(bank.labels, bank.embeds.flip(1)).save_pretrained(whole)
    sent = whole / "class_bank.safetensors"

    name = {path: f"/lfs/{hashlib.sha256(path.read_bytes()).hexdigest()}" for path in (whole / WEIGHTS, sent)}
    hub.fail("PUT", name[whole / WEIGHTS], times=float("inf"), after_bytes=5000)
    said = error_of(*arguments)
    assert "me/whole cannot be written: the connection to the Hub failed" in said and "Push again" in said
    assert hub.repositories["me/whole"].head() is before  # all of the earlier model
    assert hub.asked("PUT", name[sent])

    hub.failures.clear()
    hub.requests.clear()
    run(*arguments)
    assert hub.asked("PUT", "/lfs/") == [name[whole / WEIGHTS]]  # the other one had arrived
    assert hub.files("me/whole")[WEIGHTS] == (whole / WEIGHTS).read_bytes()
    hub.requests.clear()
    run(*arguments)
    assert not hub.asked("POST", "/commit/")  # nothing has changed


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("POST", "/commit/", 500, "the Hub fails .500"),
        ("POST", "/commit/", 409, "something else is changing it .*Push again"),
        ("POST", "/commit/", 412, "something else is changing it .*Push again"),
        ("POST", "/preupload/", 403, "the token does not permit that"),
        ("POST", "/repos/create", 401, "the Hub rejects the token"),
        ("POST", "/repos/create", 402, "the Hub refuses it .402"),
        ("HEAD", "/README.md", None, "the connection to the Hub failed"),
        ("POST", "/repos/create", None, "the connection to the Hub failed"),
    ],
)
def test_hub_errors(hub, whole, method, path, status, message):
    times = float("inf") if status is None else 1
    said = "Invalid credentials in Authorization header" if status == 401 else ""
    hub.fail(method, path, times=times, status=status, message=said)
    arguments = ("--model", whole, "--repo_id", "me/whole")
    said = error_of(*arguments)
    assert re.search(f"me/whole cannot be (created|written): {message}", said) and len(said.splitlines()) == 1
    hub.failures.clear()
    run(*arguments)
    assert WEIGHTS in hub.files("me/whole")


def test_missing_permission(hub, whole, monkeypatch):
    arguments = ("--model", whole, "--repo_id")
    assert "the token does not permit that" in error_of(*arguments, "org/mine")
    for name in ("a/b/c", "me/--x", "me/ x", "me/x.git"):
        assert f"{name!r} cannot be the name of a repository" in error_of(*arguments, name)
    hub.fail("GET", "/whoami", status=401, message="Invalid credentials in Authorization header")
    assert "x cannot be created: the Hub rejects the token" in error_of(*arguments, "x")
    monkeypatch.setenv("HF_TOKEN", "hf_unknown")
    assert "the Hub rejects the token" in error_of(*arguments, "me/x")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere")
    assert "There is no token to write me/x with" in error_of(*arguments, "me/x")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in error_of(*arguments, "me/x")
    assert "me/x" not in hub.repositories


def test_private(hub, whole):
    run("--model", whole, "--repo_id", "me/secret", "--private")
    assert hub.repositories["me/secret"].private
    run("--model", whole, "--repo_id", "me/secret", "--private")
    run("--model", whole, "--repo_id", "me/open")
    commits = len(hub.repositories["me/open"].branches["main"])
    said = error_of("--model", whole, "--repo_id", "me/open", "--private")
    assert "me/open must be private" in said and "--private" in said
    assert len(hub.repositories["me/open"].branches["main"]) == commits


def test_branches_and_pull_requests(hub, whole, capsys):
    run("--model", whole, "--repo_id", "me/whole", "--revision", "v1", "--commit_message", "first")
    assert hub.repositories["me/whole"].head("v1").message == "first" and WEIGHTS not in hub.files("me/whole")
    run("--model", whole, "--repo_id", "me/whole", "--create_pr")
    assert f"{hub.url}/me/whole/discussions/1" in capsys.readouterr().out
    assert WEIGHTS in hub.files("me/whole", "refs/pr/1") and WEIGHTS not in hub.files("me/whole")


def test_stale_files_are_deleted(hub, whole):
    hub.add("me/whole", {"model-00001-of-00002.safetensors": b"old", "model.safetensors.index.json": b"{}"})
    hub.add("me/whole", {"model.fp16.safetensors": b"old", "class_bank.safetensors": b"old", "notes.md": b"mine"})
    hub.add("me/whole", {"layers_ezclip.py": b"old"})
    (whole / "class_bank.safetensors").unlink()
    run("--model", whole, "--repo_id", "me/whole")
    files = hub.files("me/whole")
    assert [name for name in files if name.endswith((".safetensors", "index.json"))] == [WEIGHTS]
    assert files["notes.md"] == b"mine" and {name for name in files if name.endswith(".py")} == ROOT_MODULES


# The card


def card_of(*arguments) -> tuple[ModelCard, str]:
    """Return the card of a dry run."""
    folder = Path(arguments[arguments.index("--dry_run") + 1])
    run(*arguments)
    content = (folder / "README.md").read_text(encoding="utf-8")
    assert check_metadata(content) == ([], [])
    return ModelCard(content), content


def test_card(pushed):
    hub, _ = pushed
    for repo_id in ("me/whole", "me/trained"):
        content = hub.files(repo_id)["README.md"].decode()
        assert check_metadata(content) == ([], [])
        data = ModelCard(content).data
        assert data.library_name == "transformers" and data.pipeline_tag == "video-classification"
        assert {"zero-shot-video-classification", "ezclip"} <= set(data.tags)
        assert "model-index" not in content and "## Results\n\nNone are recorded.\n" in content
        assert "lists the model under `video-classification`" in content and "own\nscale, " in content
        assert "EZ-CLIP" in content and "ahmad2023ezclip" in content and "wang2021actionclip" not in content
        assert f'model="{repo_id}", trust_remote_code=True' in content
        assert "8 frames (exactly) of 32 × 32 pixels" in content
    whole, trained = (ModelCard(hub.files(f"me/{name}")["README.md"].decode()) for name in ("whole", "trained"))
    assert whole.data.license == "mit" and trained.data.license is None
    assert whole.data.base_model is None and trained.data.base_model == BASE
    assert trained.data.base_model_relation == "adapter" and "holds the trained weights alone" in trained.text
    unknown = "- The training is not recorded.\n\n##"
    assert f"## Training\n\n- The starting weights are not recorded.\n{unknown}" in whole.text
    assert f"## Training\n\n- Started from {BASE}.\n{unknown}" in trained.text
    assert "The weights: mit." in whole.text and "The licence of the weights is not stated." in trained.text
    assert "the embeddings of 2 classes (red circle, green square). Without `candidate_labels`" in whole.text
    assert hub.repositories["me/whole"].head().message == "Upload EZClipModel"


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def scores(top1, top5=1.0, samples=10, bad=0):
    return {"eval_top1": top1, "eval_top5": top5, "eval_samples": samples, "eval_bad_videos": bad}


def test_card_of_evaluated_model(whole, tmp_path):
    write_json(whole / "eval_results.json", scores(0.625, 0.875, 1600, bad=3))
    arguments = ["--model", whole, "--repo_id", "me/whole", "--dry_run"]
    card, text = card_of(*arguments, tmp_path / "unnamed")
    assert card.data.eval_results is None  # an index has results of named data sets alone
    assert "| top-1 (%) | top-5 (%) | videos |\n| --- | --- | --- |\n| 62.5 | 87.5 | 1,600 |\n" in text
    assert "The data set of these videos is not recorded." in text and "3 videos could not be read" in text
    card, text = card_of(*arguments, tmp_path / "named", "--eval_dataset", "UCF-101", "--dataset", "me/kinetics")
    results = {result.metric_name: result for result in card.data.eval_results}
    assert results["top-1 accuracy"].metric_value == 0.625 and results["top-5 accuracy"].metric_value == 0.875
    assert {result.dataset_name for result in results.values()} == {"UCF-101"}
    assert card.data.datasets == ["me/kinetics"] and "- Data: me/kinetics." in text
    assert "| UCF-101 | 62.5 | 87.5 | 1,600 |" in text
    # Of a few classes top-5 is 1 whatever the model does
    write_json(whole / "eval_results.json", scores(0.625, 1.0, 1600))
    card, text = card_of(*arguments, tmp_path / "few", "--eval_dataset", "UCF-101")
    assert [result.metric_name for result in card.data.eval_results] == ["top-1 accuracy"] and "top-5" not in text


def test_card_says_what_a_model_knows(whole, tmp_path):
    edit_config(whole, scope="A toy: it knows <b>two</b> classes.")
    _, text = card_of("--model", whole, "--repo_id", "me/whole", "--dry_run", tmp_path / "look")
    assert "# whole\n\n**A toy: it knows \\<b\\>two\\</b\\> classes.**\n\nZero-shot" in text


def test_card_of_transformers_trainer(whole, tmp_path):
    arguments = ["--model", whole, "--repo_id", "me/whole", "--dry_run"]
    # What `save_metrics` and `save_state` of a `Trainer` write, without and with `compute_metrics`
    evaluation = {"epoch": 1.0, "eval_loss": 1.5, "eval_runtime": 0.2, "eval_samples_per_second": 20.0}
    log = [{"epoch": 1.0, "loss": 1.25, "step": 2}, {"epoch": 1.0, "train_loss": 1.2, "train_runtime": 0.3}]
    state = {"global_step": 2, "epoch": 1.0, "train_batch_size": 4, "log_history": log}
    write_json(whole / "eval_results.json", evaluation)
    write_json(whole / "train_results.json", {"epoch": 1.0, "train_loss": 1.2, "train_runtime": 0.3})
    write_json(whole / "trainer_state.json", state)
    write_json(whole / "checkpoint-2" / "trainer_state.json", state)
    _, text = card_of(*arguments, tmp_path / "loss")
    assert "## Results\n\nNone are recorded." in text and "Loss at the last logged step: 1.25." in text
    assert "- 2 steps (1 epochs)." in text and "AdamW" not in text and "The last run took" not in text
    write_json(whole / "eval_results.json", {**evaluation, "eval_top1": 0.5, "eval_top5": 0.75})
    write_json(whole / "train_results.json", {"epoch": 1.0, "train_loss": 1.2, "train_runtime": 42.3})
    _, text = card_of(*arguments, tmp_path / "accuracy", "--eval_dataset", "UCF-101")
    assert "| data set | top-1 (%) | top-5 (%) |\n| --- | --- | --- |\n| UCF-101 | 50.0 | 75.0 |\n\n" in text
    assert "- The last run took 42 s.\n" in text


def test_card_of_zero_shot_protocol(whole, tmp_path):
    tests = {"hmdb51/split1": scores(0.5, 0.9), "hmdb51/split2": scores(0.6, 0.9), "ucf101/split1": scores(0.8)}
    settings = {"learning_rate": 1e-4, "seed": 42, "videos of train": "5 videos, digest 0"}
    write_json(whole / "results.json", {"settings": settings, "results": tests})
    content = {"protocol": "zero_shot", "std_ddof": 1, "experiments": {"": tests}, "summary": {}}
    write_json(whole / "protocol_results.json", content)
    card, text = card_of("--model", whole, "--repo_id", "me/whole", "--dry_run", tmp_path / "look")
    found = {(r.dataset_name, r.dataset_split): r.metric_value for r in card.data.eval_results if "1" in r.metric_name}
    assert {r.dataset_name for r in card.data.eval_results if "5" in r.metric_name} == {"hmdb51"}
    assert found == {("hmdb51", "split1"): 0.5, ("hmdb51", "split2"): 0.6, ("ucf101", "split1"): 0.8}
    assert "## Results, protocol zero_shot" in text and "| hmdb51 | split2 | 60.0 | 90.0 | 10 |" in text
    assert (
        "| ucf101 | split1 | 80.0 |  | 10 |" in text and "not recorded.\n\n##" not in text.partition("## Results")[2]
    )
    assert "AdamW, warm-up and cosine at every step: learning_rate 0.0001, seed 42" in text
    del settings["videos of train"]  # an evaluation: its options of training mean nothing
    write_json(whole / "results.json", {"settings": settings, "results": tests})
    assert "AdamW" not in card_of("--model", whole, "--repo_id", "me/whole", "--dry_run", tmp_path / "untrained")[1]


def test_card_of_one_of_several_models(whole, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole, out / "seed1")
    results = {f"seed{n}": {"base": scores(0.8), "novel": scores(0.1 * n)} for n in (1, 2, 3)}
    write_json(out / "protocol_results.json", summarize("base_to_novel", results))
    write_json(out / "seed1" / "results.json", {"settings": {}, "results": results["seed1"]})
    _, text = card_of("--model", out / "seed1", "--repo_id", "me/x", "--dry_run", tmp_path / "look")
    assert "| test | top-1 (%) | videos |" in text and "| novel | 10.0 | 10 |" in text
    assert "one of 3 models of the protocol base_to_novel" in text
    assert "| mean | 80.0 ± 0.0 | 20.0 ± 10.0 | 32.0" in text
    shutil.copytree(whole, out / "unrelated")
    _, text = card_of("--model", out / "unrelated", "--repo_id", "me/x", "--dry_run", tmp_path / "other")
    assert "## Results\n\nNone are recorded." in text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("eval_results.json", "{"),
        ("eval_results.json", json.dumps({"eval_top1": 62.5, "eval_top5": 1.0, "eval_samples": 1})),
        ("eval_results.json", json.dumps({"eval_top1": 0.5, "eval_top5": None})),
        ("eval_results.json", json.dumps({"eval_top1": 0.5, "eval_samples": -1})),
        ("results.json", json.dumps({"results": {"": scores(0.5)}})),
        ("trainer_state.json", "[]"),
        ("trainer_state.json", json.dumps({"global_step": 1, "log_history": [{"loss": []}]})),
        ("train_results.json", json.dumps({"performance": []})),
    ],
)
def test_damaged_results(whole, tmp_path, name, content):
    (whole / name).write_text(content)
    said = error_of("--model", whole, "--repo_id", "me/x", "--dry_run", tmp_path / "look")
    assert f"{whole / name} is not what training and evaluation write" in said and "remove the file" in said


def test_edited_card_stays(hub, whole, caplog):
    arguments = ("--model", whole, "--repo_id", "me/whole")
    run(*arguments)
    first = hub.files("me/whole")["README.md"]
    run(*arguments, "--license", "mit")
    second = hub.files("me/whole")["README.md"]
    assert first != second and b"license: mit" in second  # written here: a newer one takes its place
    edited = second.replace(b"# whole", b"# Whole, by me")
    hub.add("me/whole", {"README.md": edited})
    run(*arguments)
    assert hub.files("me/whole")["README.md"] == edited
    assert "README.md of me/whole was written or changed by hand and stays" in caplog.text
    run(*arguments, "--overwrite_card")
    assert hub.files("me/whole")["README.md"] == first
    own = "---\nlicense: mit\n---\n# Mine\n"
    (whole / "README.md").write_text(own)
    run(*arguments)
    assert hub.files("me/whole")["README.md"].decode() == own and (whole / "README.md").read_text() == own
    (whole / "README.md").write_text("---\nlicense: unheard-of\n---\n")
    assert "The Hub refuses the metadata of README.md" in error_of(*arguments, "--overwrite_card")
    (whole / "README.md").write_text("---\nlicense: [\n---\n")
    assert "The Hub refuses the metadata of README.md" in error_of(*arguments, "--overwrite_card")


def test_card_not_in_utf8(hub, whole, caplog):
    latin = "# Modèle\n".encode("latin-1")
    hub.add("me/whole", {"README.md": latin})
    run("--model", whole, "--repo_id", "me/whole")
    assert hub.files("me/whole")["README.md"] == latin and "changed by hand and stays" in caplog.text
    (whole / "README.md").write_bytes(latin)
    said = error_of("--model", whole, "--repo_id", "me/whole")
    assert f"{whole / 'README.md'} must be text in UTF-8" in said


def test_transformers_card(hub, whole):
    hub.add("me/whole", {})
    template = str(create_and_tag_model_card("me/whole", tags=["video"])).encode()  # of any `push_to_hub`
    assert b"# Model Card for Model ID" in template
    for edited in (
        template.replace(b"Model ID", b"Mine", 1),
        template.replace(b"library", b"license: mit\nlibrary", 1),
    ):
        hub.add("me/whole", {"README.md": edited})
        run("--model", whole, "--repo_id", "me/whole")
        assert hub.files("me/whole")["README.md"] == edited
    hub.add("me/whole", {"README.md": template})
    (whole / "README.md").write_bytes(template)
    run("--model", whole, "--repo_id", "me/whole")
    assert b"# whole" in hub.files("me/whole")["README.md"]


@pytest.mark.parametrize(
    ("preset", "fields", "sampling", "presets", "cited", "said"),
    [
        ("ezclip", {}, "uniform", ["ezclip"], ["ezclip"], "in every vision block; adapters stand in both towers"),
        (
            "ezclip",
            {"vision_config": {"temporal_prompt": "shallow"}},
            "uniform",
            ["ezclip"],
            ["ezclip"],
            "the first vision",
        ),
        ("actionclip", {}, "uniform", ["actionclip"], ["actionclip"], "a transformer of 6 layers joins"),
        ("actionclip_tsm", {}, "uniform", ["actionclip"], ["actionclip"], "are shifted over time"),
        ("actionclip_joint", {}, "uniform", ["actionclip"], ["actionclip"], "patches of all frames attend"),
        ("vificlip", {}, "uniform", ["vificlip", "actionclip"], ["vificlip", "actionclip"], "ViFi-CLIP"),
        ("tear", {}, "tear", ["tear"], ["tear"], "without training"),
        ("clip", {}, "uniform", ["clip"], [], "Plain CLIP on videos"),
        ("ezclip", {"temporal_head": "lstm"}, "uniform", [], ["ezclip", "actionclip"], "an LSTM joins"),
    ],
)
def test_describe_system(preset, fields, sampling, presets, cited, said):
    system = describe_system(EZClipConfig.from_preset(preset, **fields), sampling)
    assert system.presets == presets and said in system.text
    assert system.citations == [CITATIONS[name] for name in cited]


def test_citations_are_in_readme():
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    for entry in CITATIONS.values():
        assert " ".join(entry.split()) in readme


# After training


@pytest.fixture
def training(tiny_folder, clip_folder, tmp_path):
    arguments = ["--use_cpu", "--model_name_or_path", tiny_folder, "--train_dir", clip_folder, "--do_train"]
    arguments += ["--validation_dir", clip_folder, "--do_eval", "--logging_steps", 1, "--templates", "a {}"]
    arguments += ["--per_device_train_batch_size", 3, "--max_train_steps", 2, "--learning_rate", "1e-2"]
    return list(map(str, [*arguments, "--push_to_hub", "--output_dir", tmp_path / "out"]))


def test_push_after_training(hub, training, tmp_path, capsys):
    run_video_zeroshot.main([*training, "--hub_model_id", "me/new", "--hub_private_repo"])
    assert hub.repositories["me/new"].private
    assert hub.files("me/new")[WEIGHTS] == (tmp_path / "out" / WEIGHTS).read_bytes()
    text = hub.files("me/new")["README.md"].decode()
    results = json.loads((tmp_path / "out" / "eval_results.json").read_text())
    assert f"| {100 * results['eval_top1']:.1f} | 5 |" in text and "top-5" not in text  # of two classes
    assert "- 2 steps of 3 videos (1 epochs)." in text
    assert "learning_rate 0.01" in text and "weight_decay 0.2" in text and "seed 42" in text
    assert "1 training videos could not be read" in text
    assert str(tmp_path) not in text
    assert f"{hub.url}/me/new/commit/" in capsys.readouterr().out


def test_repository_before_training(hub, training, tmp_path, monkeypatch):
    def refused(*more):
        with pytest.raises(SystemExit) as caught:
            run_video_zeroshot.main([*training, *more])
        return str(caught.value.code)

    said = refused("--save_trained_only")
    assert "was trained from the folder" in said and said.endswith(
        "start from a name on the Hub (--model_name_or_path)."
    )
    assert "Leave out --save_trained_only" in said and "--whole" not in said
    assert "cannot be the name" in refused("--hub_model_id", "a/b/c")
    assert "the token does not permit that" in refused("--hub_model_id", "org/new")
    assert "cannot be created" in refused("--hub_model_id", "org/new")
    assert not (tmp_path / "out" / WEIGHTS).exists() and not hub.repositories.keys() - {BASE}


def test_failed_push_after_training(hub, training, tmp_path):
    hub.fail("POST", "/commit/", status=500)
    with pytest.raises(SystemExit) as caught:
        run_video_zeroshot.main(training)  # to a repository of the folder's name
    folder = tmp_path / "out"
    assert f"--model {folder} --repo_id me/out" in caught.value.code
    assert (folder / "eval_results.json").exists()
    run("--model", folder, "--repo_id", "me/out")
    assert hub.files("me/out")[WEIGHTS] == (folder / WEIGHTS).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--push_to_hub", "--do_eval"], "--push_to_hub needs --do_train"),
        (["--hub_model_id", "me/x", "--do_train"], "are for --push_to_hub"),
    ],
)
def test_contradicting_options(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_video_zeroshot.main([*arguments, "--output_dir", str(tmp_path), "--model_name_or_path", "x"])
    assert message in capsys.readouterr().err
