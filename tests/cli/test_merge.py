"""`ezclip merge`: folders that load everywhere, cards, repeated runs, pairs that do not fit, one table."""

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from transformers import pipeline

from checkpoint_ezclip import TrainedCheckpoint
from ezclip import EZClipModel, EZClipProcessor, load_model
from ezclip.cli import merge, push
from ezclip.cli.demo import word_tokenizer
from processing_ezclip import default_image_processor
from tests.helpers import WORDS, read_json, train


LABELS = ["red circle", "green square"]


@pytest.fixture(scope="module")
def ends(clip, tmp_path_factory):
    """A plain CLIP, and prompts and adapters trained over it, saved without the CLIP."""
    base, tuned = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("tuned")
    load_model(clip).save_pretrained(base)
    processor = EZClipProcessor(default_image_processor(32), word_tokenizer(WORDS))
    processor.save_pretrained(base)
    torch.manual_seed(0)
    train(load_model(base, for_training=True, preset="ezclip")).save_pretrained(tuned, trained_only=True)
    processor.save_pretrained(tuned)
    return base, tuned


def run(*argv):
    AcceleratorState._reset_state(reset_partial_state=True)
    merge.main([*map(str, argv), "--use_cpu"])


def refusal(*argv) -> str:
    with pytest.raises(SystemExit) as caught:
        run(*argv)
    return str(caught.value.code)


def test_merged_folder_is_an_ordinary_checkpoint(ends, clip_folder, tmp_path, capsys):
    run(*ends, "--alpha", 0.5, "--output_dir", tmp_path / "half")
    assert "Its backbone is frozen" in capsys.readouterr().out
    assert TrainedCheckpoint.find(tmp_path / "half") is None  # it needs no base
    weights, base = load_file(tmp_path / "half" / "model.safetensors"), load_model(ends[0]).state_dict()
    for name, weight in load_model(ends[1]).state_dict().items():
        torch.testing.assert_close(weights[name], base[name] if name in base else 0.5 * weight)
    classifier = pipeline("zero-shot-video-classification", model=str(tmp_path / "half"))
    video = str(next(clip_folder.glob("*/a.mp4")))
    assert {answer["label"] for answer in classifier(video, candidate_labels=LABELS)} == {*LABELS}
    push.main(["--model", str(tmp_path / "half"), "--repo_id", "me/half", "--dry_run", str(tmp_path / "look")])
    record = read_json(tmp_path / "half" / "merge.json")
    for card in (tmp_path / "half" / "README.md", tmp_path / "look" / "README.md"):
        text = card.read_text()
        assert "0.5 × that of" in text and record["base"]["weights"] in text and record["tuned"]["weights"] in text
        assert str(ends[0]) not in text  # no path of this machine


def test_ends_answer_as_they_did(ends, clip_folder, tmp_path):
    run(*ends, "--alpha", 1, 0, "--output_dir", tmp_path)
    pixel_values = torch.randn(2, 8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for alpha, end in enumerate(ends):
        merged, own = (load_model(folder).eval() for folder in (tmp_path / f"alpha_{alpha}", end))
        assert merged.state_dict().keys() == own.state_dict().keys()
        assert all(torch.equal(weight, own.state_dict()[name]) for name, weight in merged.state_dict().items())
        with torch.no_grad():
            assert torch.equal(merged.encode_videos(pixel_values), own.encode_videos(pixel_values))


def test_all_alphas_in_one_table(ends, clip_folder, tmp_path, capsys):
    pytest.importorskip("scipy")
    options = ("--validation_dir", clip_folder, "--templates", "a {}", "--output_dir", tmp_path)
    run(*ends, "--alpha", 0.25, 0.75, *options)
    systems = read_json(tmp_path / "comparison" / "comparison.json")["systems"]
    assert list(systems) == ["alpha_0", "alpha_0.25", "alpha_0.75", "alpha_1"]
    assert systems["alpha_1"]["options"]["model_name_or_path"] == str(ends[1])
    assert "| alpha_0.25 |" in (tmp_path / "comparison" / "comparison.md").read_text()
    # A second run keeps what is finished.
    before = (tmp_path / "alpha_0.25" / "model.safetensors").stat().st_mtime_ns
    run(*ends, "--alpha", 0.25, 0.75, *options)
    assert "alpha_0.25 is finished" in capsys.readouterr().out
    assert (tmp_path / "alpha_0.25" / "model.safetensors").stat().st_mtime_ns == before


def test_refusals(ends, tmp_path, capsys):
    base, tuned = ends
    run(*ends, "--alpha", 0.5, "--output_dir", tmp_path / "half")
    assert "alpha: 0.5 → 0.25" in refusal(*ends, "--alpha", 0.25, "--output_dir", tmp_path / "half")
    run(*ends, "--alpha", 0.25, "--output_dir", tmp_path / "half", "--overwrite_output_dir")
    assert read_json(tmp_path / "half" / "merge.json")["alpha"] == 0.25
    assert "is one of the models" in refusal(*ends, "--alpha", 0.5, "--output_dir", tuned, "--overwrite_output_dir")
    EZClipModel.from_pretrained(base).save_pretrained(tmp_path / "other")
    assert "holds another model" in refusal(*ends, "--alpha", 0.5, "--output_dir", tmp_path / "other")
    assert "the same weights" in refusal(base, base, "--alpha", 0.5, "--output_dir", tmp_path / "new")
    assert "lacks weights of the base" in refusal(tuned, base, "--alpha", 0.5, "--output_dir", tmp_path / "new")
    EZClipProcessor(default_image_processor(32), word_tokenizer(WORDS[::-1])).save_pretrained(tmp_path / "other")
    assert "tokenizers" in refusal(tmp_path / "other", tuned, "--alpha", 0.5, "--output_dir", tmp_path / "new")
    capsys.readouterr()
    for options, message in (
        (("--alpha", 1.5), "--alpha must be in [0, 1], got 1.5"),
        (("--alpha", "nan"), "--alpha must be in [0, 1], got nan"),
        (("--alpha", 0.5, "--templates", "a {}"), "--validation_dir"),
    ):
        assert refusal(*ends, *options, "--output_dir", tmp_path / "new") == "2"
        assert message in capsys.readouterr().err
