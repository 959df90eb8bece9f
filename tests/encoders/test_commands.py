"""Other dual encoders of transformers in every command, and what they refuse."""

import numpy as np
import pytest
import torch
import transformers
import yaml
from transformers import AutoModel, AutoTokenizer, pipeline
from transformers.utils import is_timm_available

import ezclip
from ezclip import ClassBank, EZClipProcessor, classify_videos, find_segments
from ezclip.cli import compare, timeline
from ezclip.cli.main import main as run_command
from ezclip.errors import ModelError
from ezclip.evaluation.identity import describe_model
from ezclip.systems import load_bpe_tokenizer
from ezclip.systems.loading import load_classifier
from processing_ezclip import default_image_processor
from tests.encoders.families import SQUARE, TEXT, TOWER, VISION, make_rival
from tests.helpers import make_clip, make_model, read_json, read_lines, refusal, run, shared_path, train
from video_ezclip import read_frames


CLIPS = {
    "yoga": "OpenGVLab_Ask-Anything__yoga.mp4",
    "making a cake": "OpenGVLab_Ask-Anything__making_cake.mp4",
    "tai chi": "yysijie_st-gcn__ta_chi.mp4",
}
LABELS = list(CLIPS)
SYSTEMS = ["EZ-CLIP", "CLIP", "SigLIP", "SigLIP 2", "xclip", "videoprism", "tipsv2", "clipseg"]
if is_timm_available():
    SYSTEMS += ["pe_video"]


def make_system(name: str, folder):
    """Save a tiny random model of a system with CLIP's tokenizer. Returns its folder."""
    tokenizer = load_bpe_tokenizer(shared_path("tokenizer", "bpe_simple_vocab_16e6.txt.gz"))
    if name == "EZ-CLIP":
        train(make_model(vocab_size=len(tokenizer))).save_pretrained(folder)
        EZClipProcessor(default_image_processor(32), tokenizer).save_pretrained(folder)
    elif name == "CLIP":
        make_clip(folder, vocab_size=len(tokenizer))
        tokenizer.save_pretrained(folder)
    elif name == "SigLIP":
        torch.manual_seed(0)
        config = transformers.SiglipConfig(text_config={**TEXT, "projection_size": 32}, vision_config=VISION)
        transformers.SiglipModel(config).save_pretrained(folder)
        transformers.SiglipImageProcessorPil(size=SQUARE).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    elif name == "SigLIP 2":  # "NaFlex"
        torch.manual_seed(0)
        vision = {**TOWER, "patch_size": 16, "num_patches": 4}
        text = {**TEXT, "vocab_size": 49410, "projection_size": 32}  # its tokenizer class adds a token
        config = transformers.Siglip2Config(text_config=text, vision_config=vision)
        transformers.Siglip2Model(config).save_pretrained(folder)
        transformers.Siglip2ImageProcessorPil(patch_size=16, max_num_patches=4).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    else:
        make_rival(name, folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: make_system(name, tmp_path_factory.mktemp("models") / name) for name in SYSTEMS}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Class folders of real clips."""
    root = tmp_path_factory.mktemp("videos")
    for label, clip in CLIPS.items():
        (root / label).mkdir()
        (root / label / clip).symlink_to(shared_path("clips", clip))
    return root


@torch.no_grad()
def documented_scores(name: str, folder, video: str) -> list[float]:
    """Score a video as the documentation of a rival does: its tokens, its pixels, its forward."""
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ours = ezclip.load_processor(folder)
    if name == "xclip":
        image_processor = transformers.VideoMAEImageProcessorPil.from_pretrained(folder)
        own = transformers.XCLIPProcessor(image_processor, tokenizer)
        frames, _ = read_frames(video, ours.get_sampler())
        inputs = own(text=LABELS, videos=list(frames), return_tensors="pt", padding=True)
        return model(**inputs).logits_per_video.softmax(dim=1)[0].tolist()
    # These processors need torchvision; `test_scores.py` compares their pixels.
    pixels = ours(videos=video, return_tensors="pt").pixel_values
    if name in ("CLIP", "SigLIP", "SigLIP 2"):
        return averaged_frames(model, pixels[0], tokenizer, "longest" if name == "CLIP" else "max_length")
    if name == "pe_video":
        tokens = tokenizer(LABELS, return_tensors="pt", padding=True)
        logits = model(pixel_values_videos=pixels, **tokens).logits_video_text
        return logits.softmax(dim=1)[0].tolist()
    assert name == "videoprism"
    tokens = tokenizer(LABELS, return_tensors="pt", padding="max_length", max_length=64)
    outputs = model(pixel_values_videos=pixels, **tokens)
    return (outputs.video_embeds @ outputs.text_embeds.T / 0.01).softmax(dim=1)[0].tolist()


def averaged_frames(model, frames: torch.Tensor, tokenizer, padding: str) -> list[float]:
    """Score the mean of frame embeddings by a softmax of the cosines times 100, as published for CLIP on videos."""
    max_length = model.config.text_config.max_position_embeddings
    tokens = tokenizer(LABELS, return_tensors="pt", padding=padding, max_length=max_length)
    images = {"pixel_values": frames}
    if model.config.model_type == "siglip2":
        patches = frames.reshape(-1, 3, 2, 16, 2, 16).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, 16 * 16 * 3)
        shapes = torch.tensor([[2, 2]] * len(frames))
        images = {
            "pixel_values": patches,
            "pixel_attention_mask": torch.ones(len(frames), 4),
            "spatial_shapes": shapes,
        }
    video = model.get_image_features(**images).pooler_output.mean(dim=0)
    texts = model.get_text_features(**tokens).pooler_output
    return (100 * torch.nn.functional.cosine_similarity(video, texts)).softmax(dim=0).tolist()


def scores_of(predictions: list[dict]) -> list[float]:
    by_label = {one["label"]: one["score"] for one in predictions}
    return [by_label[label] for label in LABELS]


def compare_systems(folders: dict, videos, out) -> dict:
    path = out.parent / "systems.yaml"
    path.write_text(yaml.safe_dump({name: {"model_name_or_path": str(at)} for name, at in folders.items()}))
    options = ["--use_cpu", "--speed_rounds", "1", "--validation_dir", str(videos), "--templates", "{}"]
    compare.main([str(path), *options, "--output_dir", str(out)])
    return read_json(out / "comparison.json")


def test_compare_in_one_table(folders, videos, tmp_path):
    out = tmp_path / "out"
    result = compare_systems(folders, videos, out)
    assert set(result["systems"]) == set(SYSTEMS) and result["num_compared_videos"] == len(LABELS)
    rows = (out / "comparison.md").read_text()
    for name in SYSTEMS:
        costs = result["systems"][name]
        assert costs["macs_per_clip"] > 0 and costs["clips_per_second"]["median"] > 0
        assert f"\n| {name} |" in rows
        lines = read_lines(out / name / "predictions.jsonl")
        if name in ("EZ-CLIP", "tipsv2", "clipseg"):  # EZ-CLIP: see the golden tests; the others: `test_scores.py`
            continue
        for line in lines:
            video = str(shared_path("clips", line["video"].rpartition("/")[2]))
            expected = documented_scores(name, folders[name], video)
            assert scores_of(line["predictions"]) == pytest.approx(expected, abs=1e-5)


def test_compare_sees_changed_weights(folders, videos, tmp_path):
    model = AutoModel.from_pretrained(folders["xclip"])
    folder = make_rival("xclip", tmp_path / "model")
    compare_systems({"x": folder}, videos, tmp_path / "out")
    assert compare_systems({"x": folder}, videos, tmp_path / "out")["num_videos"] == len(LABELS)  # kept
    with torch.no_grad():
        model.prompts_visual_projection.add_(0.1)
    model.save_pretrained(folder)
    with pytest.raises(SystemExit) as caught:
        compare_systems({"x": folder}, videos, tmp_path / "out")
    assert "weights" in str(caught.value.code)


@pytest.mark.parametrize("name", ["xclip", "videoprism"])
def test_every_command_gives_the_same_scores(folders, videos, tmp_path, name):
    folder, video = str(folders[name]), str(shared_path("clips", CLIPS["yoga"]))
    classifier = load_classifier(folder)
    expected = scores_of(classifier(video, LABELS, hypothesis_template="{}"))
    assert np.std(expected) > 1e-3

    options = ["--model_name_or_path", folder, "--templates", "{}", "--validation_dir", videos]
    out = run("--do_eval", *options, "--report", "--output_dir", tmp_path / "eval")
    by_video = {line["video"].rpartition("/")[2]: line for line in read_lines(out / "predictions.jsonl")}
    assert scores_of(by_video[CLIPS["yoga"]]["predictions"]) == pytest.approx(expected, abs=1e-5)
    assert read_json(out / "eval_results.json")["eval_samples"] == len(LABELS)
    assert (out / "report.html").is_file()

    # The second call finds the embeddings.
    cache = {"cache_dir": tmp_path / "cache", "hypothesis_template": "{}"}
    for is_kept in (False, True):
        (answer,) = classify_videos(classifier, video, LABELS, **cache)
        assert scores_of(answer.predictions) == pytest.approx(expected, abs=1e-5)
        assert answer.is_kept == is_kept

    found = find_segments(classifier, video, LABELS, hypothesis_template="{}", window=2.0, stride=2.0)
    assert found.scores.shape[1] == len(LABELS) and np.isfinite(found.scores).all()


def test_predict(folders, videos, tmp_path):
    options = ["--model_name_or_path", folders["xclip"], "--candidate_labels", *LABELS, "--templates", "{}"]
    out = run("--do_predict", *options, "--videos", videos, "--output_dir", tmp_path)
    assert len(read_lines(out / "predictions.jsonl")) == len(LABELS)


def test_commands_of_the_shell(folders, tmp_path, capsys):
    video = str(shared_path("clips", CLIPS["yoga"]))
    assert run_command(["classify", video, "--labels", *LABELS, "--model", str(folders["xclip"])]) in (0, None)
    said = capsys.readouterr().out
    assert all(label in said for label in LABELS)
    options = ["--candidate_labels", *LABELS, "--model_name_or_path", str(folders["videoprism"])]
    assert timeline.main([video, *options, "--output_file", str(tmp_path / "a.json")]) == 0
    assert (tmp_path / "a.json").is_file()
    with pytest.raises(SystemExit) as caught:  # its positions are of four frames
        timeline.main([video, *options, "--num_frames", "6"])
    assert caught.value.code not in (0, None)
    assert "--num_frames 4" in f"{caught.value.code} {capsys.readouterr().err}"


@pytest.mark.parametrize("name", ["xclip", "clipseg"])
def test_pipeline(folders, tmp_path, name):
    folder, video = str(folders[name]), str(shared_path("clips", CLIPS["yoga"]))
    classifier = pipeline("zero-shot-video-classification", model=folder)
    expected = load_classifier(folder)(video, LABELS)
    assert scores_of(classifier(video, LABELS)) == pytest.approx(scores_of(expected), abs=1e-6)
    if name == "xclip":
        with pytest.raises(ValueError, match="`num_frames` must be 4"):
            classifier(video, LABELS, num_frames=3)
    with pytest.raises(ValueError, match=r"xclip|clipseg|X-CLIP|CLIPSeg"):
        classifier.save_pretrained(tmp_path)


def test_class_bank(folders, tmp_path):
    folder, video = folders["xclip"], str(shared_path("clips", CLIPS["yoga"]))
    classifier = load_classifier(folder)
    bank = ClassBank.build(classifier.model, classifier.processor, LABELS)
    bank.save_pretrained(tmp_path)
    answers = classifier(video, class_bank=tmp_path)
    assert scores_of(answers) == pytest.approx(scores_of(classifier(video, LABELS)), abs=1e-6)
    others = load_classifier(folders["clipseg"])  # of as many dimensions
    with pytest.raises(ValueError, match="another model"):
        others(video, class_bank=tmp_path)


def test_identity_is_of_the_content(folders, tmp_path):
    again = make_rival("xclip", tmp_path / "another name")
    descriptions = [describe_model(ezclip.load_encoder(folder)) for folder in (folders["xclip"], again)]
    assert descriptions[0] == descriptions[1]
    assert describe_model(ezclip.load_encoder(folders["clipseg"])) != descriptions[0]


def test_options_are_checked_first(folders, videos, tmp_path):
    options = ["--validation_dir", str(videos), "--use_cpu", "--output_dir", str(tmp_path / "out")]
    systems = {"first": {"model_name_or_path": str(folders["CLIP"])}}
    systems["second"] = {"model_name_or_path": str(folders["xclip"]), "function_to_apply": "sigmoid"}
    (tmp_path / "systems.yaml").write_text(yaml.safe_dump(systems))
    with pytest.raises(SystemExit, match="second: .*ezclip calibrate"):
        compare.main([str(tmp_path / "systems.yaml"), *options])
    assert not (tmp_path / "out" / "first").exists()
    named = ["--model_name_or_path", str(folders["xclip"]), "--num_crops", "3", *options]
    with pytest.raises(SystemExit, match="num_crops"):
        run_command(["calibrate", *named])


# ---- What they cannot do ----


def test_training_is_refused(folders, videos, tmp_path):
    options = ["--model_name_or_path", folders["xclip"], "--train_dir", videos, "--output_dir", tmp_path]
    message = refusal("--do_train", *options)
    assert "X-CLIP" in message and "EZ-CLIP" in message


@pytest.mark.parametrize("options", [["--preset", "tear"], ["--temporal_prompt", "deep"]])
def test_options_of_ours_are_refused(folders, videos, tmp_path, options):
    named = ["--model_name_or_path", folders["videoprism"], "--validation_dir", videos, "--output_dir", tmp_path]
    assert "VideoPrism" in refusal("--do_eval", *named, *options)


def test_attention_export_and_push_are_refused(folders, tmp_path, capsys):
    folder, video = str(folders["xclip"]), str(shared_path("clips", CLIPS["yoga"]))
    commands = [
        ["attention", video, "--model_name_or_path", folder, "--output_dir", str(tmp_path / "a")],
        ["export", "--model", folder, "--format", "onnx", "--output_dir", str(tmp_path / "b")],
    ]
    for command in commands:
        with pytest.raises(SystemExit) as caught:
            run_command(command)
        assert caught.value.code not in (0, None)
        assert "X-CLIP" in f"{caught.value.code} {capsys.readouterr().err}"
    with pytest.raises(ModelError, match="X-CLIP"):
        ezclip.load_model(folder)


def test_missing_weights(tmp_path):
    folder = make_rival("clipseg", tmp_path)
    model = AutoModel.from_pretrained(folder)
    weights = {name: weight for name, weight in model.state_dict().items() if "text_projection" not in name}
    model.save_pretrained(folder, state_dict=weights)
    with pytest.raises(ModelError, match="text_projection"):
        ezclip.load_encoder(folder)


@pytest.mark.skipif(is_timm_available(), reason="timm is installed")
def test_missing_timm(tmp_path):
    transformers.PeVideoConfig().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="pip install timm"):
        ezclip.load_encoder(tmp_path)
