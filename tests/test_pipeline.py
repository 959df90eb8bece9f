"""pipeline("zero-shot-video-classification"): its inputs and outputs, and the code that checkpoints carry."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    pipeline,
)
from transformers.dynamic_module_utils import get_relative_import_files, get_relative_imports
from transformers.pipelines.pt_utils import KeyDataset

from ezclip import (
    ClassBank,
    EZClipConfig,
    EZClipModel,
    EZClipProcessor,
    VideoReadError,
    ZeroShotVideoClassificationPipeline,
    list_folder,
    load_model,
    load_processor,
)
from ezclip.cli.demo import word_tokenizer
from processing_ezclip import default_image_processor
from tests.helpers import ACTION_CLIPS, ROOT, WORDS, make_clip, random_clip, read_lines, run, shared_path, tiny_config


TASK = "zero-shot-video-classification"
# All Python files that a checkpoint carries
MODULES = ("checkpoint", "configuration", "modeling", "pipeline", "processing", "video")
CODE_FILES = {f"{module}_ezclip.py" for module in MODULES}
LABELS = ["red circle", "green square", "blue circle"]
PIXELS = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
TINY_TOWER = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 16}


def make(folder, **kwargs) -> ZeroShotVideoClassificationPipeline:
    return pipeline(TASK, model=str(folder), device="cpu", **kwargs)


@pytest.fixture(scope="module")
def own_folder(tmp_path_factory):
    """A saved EZ-CLIP whose classes differ by more than rounding. Tests do not change the folder."""
    folder = tmp_path_factory.mktemp("own")
    save_tiny(folder)
    return folder


def save_tiny(folder, **kwargs):
    tokenizer = word_tokenizer(WORDS)
    torch.manual_seed(0)
    model = EZClipModel(tiny_config(len(tokenizer), initializer_factor=5.0, **kwargs))
    model.save_pretrained(folder)
    EZClipProcessor(default_image_processor(32), tokenizer).save_pretrained(folder)


@pytest.fixture(scope="module")
def classifier(own_folder):
    return make(own_folder)


@pytest.fixture(scope="module")
def clips(clip_folder):
    return [str(clip_folder / "red_circle" / name) for name in ("a.mp4", "b 1.mp4", "test#c.mp4")]


def probabilities(classifier, videos, **texts) -> torch.Tensor:
    """Probabilities of `LABELS` by the calls that the README shows."""
    bank = ClassBank.build(classifier.model, classifier.processor, LABELS, **texts)
    with torch.no_grad():
        inputs = classifier.processor(videos=videos, return_tensors="pt")
        return bank.probabilities(classifier.model.get_video_features(**inputs).pooler_output)


def scores(result, labels=LABELS) -> list[float]:
    by_label = {entry["label"]: entry["score"] for entry in result}
    assert len(by_label) == len(result)
    return [by_label[label] for label in labels]


def assert_same(results, expected):
    actual = torch.tensor([scores(result) for result in results])
    torch.testing.assert_close(actual, torch.as_tensor(expected), atol=1e-5, rtol=0)


def test_labels_by_score(classifier, clips):
    result = classifier(clips[0], candidate_labels=LABELS)
    assert all(set(entry) == {"score", "label"} for entry in result)
    assert [entry["score"] for entry in result] == sorted((entry["score"] for entry in result), reverse=True)
    assert_same([result], probabilities(classifier, clips[:1]))
    assert max(scores(result)) > 0.4  # the classes differ
    json.dumps(result)


def test_labels_with_commas(classifier, clips):
    listed = classifier(clips[0], candidate_labels=LABELS)
    assert classifier(clips[0], candidate_labels=" red circle,green square, blue circle") == listed
    assert classifier(clips[0], "red circle") == [{"score": 1.0, "label": "red circle"}]


def test_kinds_of_one_video(classifier, tmp_path):
    frames = random_clip(0, 8, 32, 32)
    images = [Image.fromarray(frame) for frame in frames]
    for index, image in enumerate(images):
        image.save(tmp_path / f"{index}.png")
    expected = classifier(frames, candidate_labels=LABELS)
    same = [images, tuple(images), list(frames), torch.from_numpy(frames), frames.transpose(0, 3, 1, 2), tmp_path]
    for video in [*same, str(tmp_path), {"path": str(tmp_path), "bytes": None}]:
        assert classifier(video, candidate_labels=LABELS) == expected
    for several in ([images], [frames], frames[None], torch.from_numpy(frames)[None]):
        assert classifier(several, candidate_labels=LABELS) == [expected]


def test_files_bytes_and_rows(classifier, clips):
    expected = classifier(clips[0], candidate_labels=LABELS)
    with open(clips[0], "rb") as file:
        content = file.read()
        assert classifier(file, candidate_labels=LABELS) == expected
    for kind in (bytes, bytearray, memoryview):
        assert classifier(kind(content), candidate_labels=LABELS) == expected
    assert classifier({"path": None, "bytes": content}, candidate_labels=LABELS) == expected


@pytest.mark.parametrize("options", [{}, {"batch_size": 2}, {"batch_size": 2, "num_workers": 1}])
def test_collections_of_videos(classifier, clips, options):
    expected = probabilities(classifier, clips)
    rows = datasets.Dataset.from_dict({"video": clips}).cast_column("video", datasets.Video(decode=False))
    listed = classifier(clips, candidate_labels=LABELS, **options)
    assert isinstance(listed, list)
    assert_same(listed, expected)
    streams = {
        "generator": (clip for clip in clips),
        "iterator": iter(clips),
        "KeyDataset": KeyDataset(rows, "video"),
        "column": rows["video"],
        "streamed column": rows.to_iterable_dataset()["video"],
    }
    for name, stream in streams.items():
        results = classifier(stream, candidate_labels=LABELS, **options)
        assert not isinstance(results, list), name
        assert_same(list(results), expected)
    assert_same(classifier(tuple(clips), candidate_labels=LABELS, **options), expected)


def test_streams_are_lazy(classifier, clips):
    read = []

    def stream():
        for clip in clips:
            read.append(clip)
            yield clip

    results = classifier(stream(), candidate_labels=LABELS)
    next(iter(results))
    assert len(read) == 1


def test_no_videos(classifier):
    assert classifier([], candidate_labels=LABELS) == []
    assert list(classifier((clip for clip in ()), candidate_labels=LABELS)) == []


def test_same_scores_as_the_script(own_folder, classifier, tmp_path):
    paths = [str(shared_path("clips", name)) for name in ACTION_CLIPS]
    source = ["--model_name_or_path", own_folder, "--do_predict", "--videos", *paths, "--candidate_labels", *LABELS]
    out = run(*source, "--output_dir", tmp_path)
    lines = read_lines(out / "predictions.jsonl")
    assert [line["video"] for line in lines] == paths
    expected = [scores(line["predictions"]) for line in lines]
    assert_same(classifier(paths, candidate_labels=LABELS, batch_size=4), expected)
    assert_same([classifier(path, candidate_labels=LABELS) for path in paths[:2]], expected[:2])


def test_views_are_averaged(classifier, clips):
    bank = ClassBank.build(classifier.model, classifier.processor, LABELS)
    with torch.no_grad():
        views = classifier.processor(videos=clips, return_tensors="pt", num_clips=2, num_crops=3).pixel_values
        embeds = classifier.model.get_video_features(views.flatten(0, 1)).pooler_output
    expected = bank.probabilities(embeds).unflatten(0, (3, 6)).mean(dim=1)
    assert_same(classifier(clips, LABELS, num_clips=2, num_crops=3, batch_size=2), expected)


def test_window_and_num_frames(tmp_path, clips):
    save_tiny(tmp_path, vision_config={"temporal_prompt": "none", "use_temporal_embedding": False})
    classifier = make(tmp_path, num_frames=4)
    with torch.no_grad():
        inputs = classifier.processor(videos=clips[0], return_tensors="pt", num_frames=4, start=0.1, end=0.3)
        video_embeds = classifier.model.get_video_features(**inputs).pooler_output
    expected = ClassBank.build(classifier.model, classifier.processor, LABELS).probabilities(video_embeds)
    assert_same([classifier(clips[0], LABELS, start=0.1, end=0.3)], expected)
    assert scores(classifier(clips[0], LABELS)) != scores(classifier(clips[0], LABELS, start=0.1, end=0.3))


def test_bfloat16(own_folder, classifier, clips):
    half = make(own_folder, dtype=torch.bfloat16)
    assert half.model.dtype == torch.bfloat16
    expected = torch.tensor([scores(result) for result in classifier(clips, LABELS)])
    actual = torch.tensor([scores(result) for result in half(clips, LABELS, batch_size=3)])
    torch.testing.assert_close(actual, expected, atol=0.1, rtol=0)
    assert actual.sum(dim=1).tolist() == pytest.approx([1.0] * 3)  # compared in float32


def test_evaluation_mode(own_folder):
    model = EZClipModel.from_pretrained(own_folder).train()
    made = ZeroShotVideoClassificationPipeline(model=model, processor=EZClipProcessor.from_pretrained(own_folder))
    assert made(random_clip(0), LABELS) == made(random_clip(0), LABELS)


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        ({"hypothesis_template": "a photo of {}"}, {"templates": "a photo of {}"}),
        ({"hypothesis_template": ["a {}", "{} moving"]}, {"templates": ["a {}", "{} moving"]}),
        ({"hypothesis_templates": ("a {}", "{} moving")}, {"templates": ["a {}", "{} moving"]}),
        (
            {"descriptions": {"RedCircle": "red", "green_square": ["green", "a square"], "blue circle": "blue"}},
            {"descriptions": {"RedCircle": "red", "green_square": ["green", "a square"], "blue circle": "blue"}},
        ),
        (
            {"descriptions": dict.fromkeys(LABELS, "moving"), "include_label": True, "input_conditioning": True},
            {"descriptions": dict.fromkeys(LABELS, "moving"), "include_label": True, "input_conditioning": True},
        ),
    ],
)
def test_prompt_options(own_folder, classifier, clips, options, texts):
    expected = probabilities(classifier, clips[:1], **texts)
    assert_same([classifier(clips[0], candidate_labels=LABELS, **options)], expected)
    assert_same([make(own_folder, **options)(clips[0], candidate_labels=LABELS)], expected)


def test_descriptions_without_labels(classifier, clips):
    descriptions = {"red circle": "red", "green square": "green", "blue circle": "blue"}
    expected = probabilities(classifier, clips[:1], descriptions=descriptions)
    assert_same([classifier(clips[0], descriptions=descriptions)], expected)


def test_ensemble(classifier, clips):
    with torch.no_grad():
        inputs = classifier.processor(videos=clips[0], return_tensors="pt")
        video_embeds = classifier.model.get_video_features(**inputs).pooler_output
    bank = ClassBank.build(classifier.model, classifier.processor, LABELS)
    assert_same([classifier(clips[0], LABELS, ensemble="embedding")], bank.probabilities(video_embeds, "embedding"))


@pytest.fixture
def embedded(monkeypatch):
    """Number of texts embedded by each call. The probe of a bank is no text, and has no mask."""
    calls, original = [], EZClipModel.get_text_features

    def get_text_features(self, input_ids, attention_mask=None, **kwargs):
        if attention_mask is not None:
            calls.append(len(input_ids))
        return original(self, input_ids, attention_mask, **kwargs)

    monkeypatch.setattr(EZClipModel, "get_text_features", get_text_features)
    return calls


def test_labels_are_embedded_once(own_folder, clips, embedded):
    classifier = make(own_folder)
    first = classifier(clips, LABELS)
    assert sum(embedded) == 16 * len(LABELS)
    assert classifier(clips, LABELS) == first
    assert sum(embedded) == 16 * len(LABELS)
    classifier(clips, LABELS, hypothesis_template="a {}")
    assert sum(embedded) == 17 * len(LABELS)


def test_changed_weights_embed_labels_again(own_folder, clips):
    classifier = make(own_folder)
    before = classifier(clips[0], LABELS)
    with torch.no_grad():
        classifier.model.text_projection.weight.neg_()
    expected = probabilities(classifier, clips[:1])
    assert_same([classifier(clips[0], LABELS)], expected)
    assert scores(before) != pytest.approx(scores(classifier(clips[0], LABELS)))


def test_other_adapter_embeds_labels_again(own_folder, clips):
    peft = pytest.importorskip("peft")
    classifier = make(own_folder, candidate_labels=(label for label in LABELS))
    before = classifier(clips[0])
    config = peft.LoraConfig(target_modules=r"text_model.*(q_proj|v_proj)", r=4, init_lora_weights=False)
    with_adapter = peft.get_peft_model(classifier.model, config)
    assert scores(classifier(clips[0])) != pytest.approx(scores(before), abs=1e-3)
    with with_adapter.disable_adapter():
        assert_same([classifier(clips[0])], [scores(before)])


def test_bank_beside_the_model(own_folder, tmp_path, clips, embedded):
    shutil.copytree(own_folder, tmp_path / "model")
    words = [word for word in WORDS if word not in ("a", "of", "photo")]
    labels = [f"{a} {b} {c} {d}" for a in words for b in words for c in words for d in words[:4]]
    model, processor = EZClipModel.from_pretrained(own_folder), EZClipProcessor.from_pretrained(own_folder)
    bank = ClassBank.build(model, processor, labels, templates=["a {}", "{}"])
    bank.save_pretrained(tmp_path / "model")
    embedded.clear()
    with torch.no_grad():
        video_embeds = model.get_video_features(**processor(videos=clips, return_tensors="pt")).pooler_output
    expected = bank.probabilities(video_embeds)
    assert len(labels) == 2048
    for result, row in zip(make(tmp_path / "model")(clips, batch_size=2, top_k=3), expected):
        assert [entry["label"] for entry in result] == [labels[i] for i in row.topk(3).indices]
        assert [entry["score"] for entry in result] == pytest.approx(row.topk(3).values.tolist(), abs=1e-5)
    assert embedded == []


def test_given_class_bank(own_folder, classifier, tmp_path, clips, embedded):
    bank = ClassBank.build(classifier.model, classifier.processor, LABELS, templates="a {}")
    bank.save_pretrained(tmp_path)
    expected = probabilities(classifier, clips[:1], templates="a {}")
    embedded.clear()
    for given in (bank, tmp_path, str(tmp_path)):
        assert_same([classifier(clips[0], class_bank=given)], expected)
        assert_same([make(own_folder, class_bank=given)(clips[0])], expected)
    assert embedded == []
    # Labels of a call override the default bank.
    assert scores(make(own_folder, class_bank=bank)(clips[0], "red circle"), ["red circle"]) == [1.0]
    assert_same([make(own_folder, candidate_labels="x, y")(clips[0], class_bank=bank)], expected)


def test_class_bank_of_other_weights(own_folder, tmp_path, clips):
    shutil.copytree(own_folder, tmp_path / "model")
    classifier = make(tmp_path / "model")
    bank = ClassBank.build(classifier.model, classifier.processor, LABELS)
    bank.save_pretrained(tmp_path / "model")
    assert make(tmp_path / "model", dtype=torch.bfloat16)(clips[0])
    # A default template does not apply to the bank.
    assert make(tmp_path / "model", hypothesis_template="a {}")(clips[0])
    classifier = make(tmp_path / "model")
    classifier(clips[0])
    with torch.no_grad():
        classifier.model.vision_model.post_layernorm.weight.neg_()
    classifier(clips[0])  # the texts are the same
    with torch.no_grad():
        classifier.model.text_projection.weight.neg_()
    for options in ({}, {"class_bank": bank}, {"class_bank": tmp_path / "model"}):
        with pytest.raises(ValueError, match=r"-1.0000.*ClassBank\.build"):
            classifier(clips[0], **options)


def test_background_labels(classifier, clips):
    everything = classifier(clips[0], candidate_labels=[*LABELS, "a photo", "moving"])
    by_label = {entry["label"]: entry["score"] for entry in everything}
    result = classifier(clips[0], candidate_labels=LABELS, background_labels=["a photo", "moving"])
    assert scores(result, [*LABELS, None]) == pytest.approx(
        [*(by_label[label] for label in LABELS), by_label["a photo"] + by_label["moving"]], abs=1e-6
    )
    assert [entry["score"] for entry in result] == sorted((entry["score"] for entry in result), reverse=True)
    in_bank = ClassBank.build(classifier.model, classifier.processor, ["moving", *LABELS, "a photo"])
    again = classifier(clips[0], class_bank=in_bank, background_labels="moving, a photo")
    assert scores(again, [*LABELS, None]) == pytest.approx(scores(result, [*LABELS, None]), abs=1e-6)


def test_background_labels_are_saved(own_folder, clips, tmp_path):
    classifier = make(own_folder, candidate_labels=LABELS, background_labels="a photo, moving")
    expected = classifier(clips[0])
    assert None in [entry["label"] for entry in expected]
    classifier.save_pretrained(tmp_path)
    names = [*LABELS, None]
    assert scores(make(tmp_path)(clips[0]), names) == pytest.approx(scores(expected, names), abs=1e-5)
    assert len(make(tmp_path)(clips[0], background_labels="moving")) == len(LABELS) + 2


def test_background_labels_need_no_description(classifier, clips):
    texts = dict.fromkeys(LABELS, "moving") | {"red circle": "red"}
    expected = classifier(clips[0], descriptions={**texts, "APhoto": "A Photo"})
    by_label = {entry["label"]: entry["score"] for entry in expected}
    result = classifier(clips[0], descriptions=texts, background_labels=["APhoto"])
    assert scores(result, [*LABELS, None]) == pytest.approx(
        [by_label[label] for label in [*LABELS, "APhoto"]], abs=1e-6
    )


def test_background_can_win(classifier, clips):
    best = classifier(clips[0], candidate_labels=LABELS)[0]["label"]
    others = [label for label in LABELS if label != best]
    assert classifier(clips[0], candidate_labels=others, background_labels=best)[0]["label"] is None


def test_min_score_and_top_k(classifier, clips):
    everything = classifier(clips[0], candidate_labels=LABELS)
    assert classifier(clips[0], LABELS, top_k=2) == everything[:2]
    assert classifier(clips[0], LABELS, top_k=10) == everything
    second = everything[1]["score"]
    assert classifier(clips[0], LABELS, min_score=second) == everything[:2]
    assert classifier(clips[0], LABELS, min_score=second, top_k=1) == everything[:1]
    none_of_these = {"score": pytest.approx(1 - everything[0]["score"]), "label": None}
    assert classifier([clips[0]], LABELS, min_score=1.0) == [[none_of_these]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "`candidate_labels`, `descriptions` or a `class_bank`"),
        ({"candidate_labels": []}, "`candidate_labels` is empty"),
        ({"candidate_labels": " , "}, "`candidate_labels` is empty"),
        ({"candidate_labels": ["x", " "]}, "`candidate_labels` .* got ' '"),
        ({"candidate_labels": ["yoga", "caf\udce9"]}, r"must be valid Unicode, got 'caf\\udce9'"),
        ({"candidate_labels": [1, 2]}, r"`candidate_labels` must be strings, got 1 \(int\)"),
        ({"candidate_labels": ["x", "x"]}, "repeated: .'x'"),
        ({"candidate_labels": ["x"], "background_labels": "y, x"}, "'x' is among the `candidate_labels` and the"),
        ({"candidate_labels": ["x"], "hypothesis_template": "a photo"}, "got 'a photo'"),
        (
            {"candidate_labels": ["x"], "hypothesis_template": "{}", "hypothesis_templates": ["{}"]},
            "`hypothesis_templates`",
        ),
        ({"candidate_labels": ["x", "y"], "descriptions": {"x": "red"}}, "1 of 2 classes .* 'y'"),
        ({"candidate_labels": ["x"], "descriptions": ["red"]}, "`descriptions` .* got .'red'."),
        ({"hypothesis_template": "a {}"}, "`hypothesis_template` .* `candidate_labels`"),
        (
            {"candidate_labels": ["x"], "class_bank": ClassBank(["x"], torch.ones(1, 1, 16))},
            "`class_bank`",
        ),
        ({"candidate_labels": {"x": 1}}, "`candidate_labels` .* got {'x': 1}"),
        ({"candidate_labels": ["x", "_"]}, "`candidate_labels` .* got '_'"),
        ({"descriptions": {}}, "`descriptions` .* got {}"),
        ({"class_bank": ClassBank(["x"], torch.ones(1, 1, 7))}, "7 dimensions, .* 16"),
        (
            {"class_bank": ClassBank(["x"], torch.ones(1, 1, 16)), "background_labels": "y"},
            "no 'y'.*`background_labels`",
        ),
        ({"class_bank": ClassBank(["x"], torch.ones(1, 1, 16)), "background_labels": "x"}, "`background_labels`"),
        ({"candidate_labels": ["x"], "ensemble": "mean"}, "`ensemble` must be one of"),
        ({"candidate_labels": ["x"], "top_k": 0}, "`top_k` .* got 0"),
        ({"candidate_labels": ["x"], "top_k": 2.0}, "`top_k` .* got 2.0"),
        ({"candidate_labels": ["x"], "min_score": 50}, "`min_score` .* got 50"),
        ({"candidate_labels": ["x"], "min_score": "0.5"}, "`min_score` .* got '0.5'"),
        ({"candidate_labels": ["x"], "num_frames": 4}, "has 4 frames a video"),
        ({"candidate_labels": ["x"], "num_crops": 2}, "`num_crops` .* got 2"),
    ],
)
def test_bad_options(classifier, options, message):
    with pytest.raises(ValueError, match=message):
        classifier(random_clip(0), **options)


def test_unknown_options(classifier):
    with pytest.raises(TypeError, match="'candidate_label'.*candidate_labels"):
        classifier(random_clip(0), candidate_label=LABELS)


def test_scores_not_finite(own_folder):
    classifier = make(own_folder)
    with torch.no_grad():
        classifier.model.vision_model.post_layernorm.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        classifier(random_clip(0), LABELS)


def test_wrong_eos_token(own_folder):
    classifier = make(own_folder)
    classifier.model.config.text_config.eos_token_id = 10**6
    with pytest.raises(ValueError, match="14, .* 1000000 .*`text_config.eos_token_id`"):
        classifier(random_clip(0), LABELS)


def test_labels_are_checked_before_videos(classifier):
    with pytest.raises(ValueError, match="is empty"):
        classifier((video for video in ["missing.mp4"]), candidate_labels=[])


def test_no_video(classifier):
    for image in (Image.new("RGB", (32, 32)), np.zeros((32, 32, 3), np.uint8)):
        with pytest.raises(ValueError, match="is a picture, not a video"):
            classifier(image, candidate_labels=LABELS)
    with pytest.raises(ValueError, match="`video` is None"):
        classifier(None, candidate_labels=LABELS)
    with pytest.raises(TypeError, match="got int"):
        classifier(3, candidate_labels=LABELS)
    with pytest.raises(ValueError, match=r"dataset\['video'\]"):
        classifier(datasets.Dataset.from_dict({"video": ["a.mp4"]}), candidate_labels=LABELS)
    with pytest.raises(TypeError, match="topk"):
        classifier(random_clip(0), candidate_labels=LABELS, topk=3)


@pytest.mark.parametrize("options", [{}, {"batch_size": 2}, {"batch_size": 2, "num_workers": 1}])
def test_unreadable_video(classifier, clip_folder, clips, options):
    broken = str(clip_folder / "GreenSquare" / "broken.mp4")
    with pytest.raises(VideoReadError, match=r"broken\.mp4"):
        classifier([clips[0], broken, clips[1]], candidate_labels=LABELS, **options)
    with pytest.raises(VideoReadError, match="does not exist"):
        classifier("missing.mp4", candidate_labels=LABELS)


@pytest.mark.parametrize("options", [{}, {"batch_size": 2}, {"batch_size": 3}, {"batch_size": 2, "num_workers": 1}])
def test_skip_unreadable_videos(classifier, clip_folder, clips, options, logged):
    broken = str(clip_folder / "GreenSquare" / "broken.mp4")
    expected = [classifier(clip, candidate_labels=LABELS) for clip in clips]
    videos = [broken, clips[0], clips[1], "missing.mp4", broken, clips[2]]
    rows = datasets.Dataset.from_dict({"video": videos}).cast_column("video", datasets.Video(decode=False))
    for several in (videos, (video for video in videos), KeyDataset(rows, "video"), rows["video"]):
        results = list(classifier(several, LABELS, on_error="skip", **options))
        assert [len(result) for result in results] == [1, 3, 3, 1, 1, 3]
        for position, reason in ((0, "broken.mp4: "), (3, "missing.mp4: does not exist"), (4, "broken.mp4: ")):
            (entry,) = results[position]
            assert (entry["score"], entry["label"]) == (None, None) and reason in entry["error"]
        assert_same([results[1], results[2], results[5]], [scores(result) for result in expected])
        json.dumps(results)
    assert sum("missing.mp4: does not exist" in line for line in logged()) == 4


def test_skip_alone_and_as_default(own_folder):
    classifier = make(own_folder, on_error="skip", candidate_labels=LABELS, background_labels="a photo")
    (entry,) = classifier("missing.mp4")
    assert "does not exist" in entry["error"]
    assert all(result[0]["score"] is None for result in classifier(["a.mp4", "b.mp4", "c.mp4"], batch_size=2))
    with pytest.raises(VideoReadError):
        classifier("missing.mp4", on_error="raise")
    with pytest.raises(ValueError, match="`on_error` .* 'ignore'"):
        classifier("missing.mp4", on_error="ignore")


def test_picture_is_no_video(classifier, tmp_path):
    image = Image.fromarray(random_clip(0)[0])
    image.save(tmp_path / "photo.jpg")
    content = (tmp_path / "photo.jpg").read_bytes()
    pictures = [image, str(tmp_path / "photo.jpg"), content, {"path": None, "bytes": content}, random_clip(0)[0]]
    for picture in [*pictures, Image.open(tmp_path / "photo.jpg")]:
        with pytest.raises(VideoReadError, match="is a picture, not a video.*list of pictures"):
            classifier(picture, LABELS)
    results = classifier([*pictures[1:4], random_clip(0)], LABELS, on_error="skip")
    assert ["error" in result[0] for result in results] == [True, True, True, False]
    assert len(classifier([image], LABELS)[0]) > 0  # on purpose


def test_folder_of_videos_is_no_video(classifier, clip_folder):
    with pytest.raises(VideoReadError, match=r"is a folder of 3 videos.*a\.mp4.*list_folder") as caught:
        classifier(clip_folder / "red_circle", LABELS)
    assert "b 1.mp4" in str(caught.value)
    assert len(classifier(list_folder(clip_folder / "red_circle").videos, LABELS)) == 3


def test_scope_is_said_once(tmp_path, clips, logged):
    save_tiny(tmp_path, scope="Trained on red shapes\x1b[2J.")
    assert json.loads((tmp_path / "config.json").read_text())["scope"].startswith("Trained")
    classifier = make(tmp_path)
    assert not [line for line in logged() if "Trained on" in line]
    for _ in range(2):
        classifier(clips[0], LABELS)
    assert [line for line in logged() if "Trained on" in line] == [f"{tmp_path}: Trained on red shapes\\x1b[2J."]


def test_scope_is_saved_only_if_set(own_folder):
    assert "scope" not in json.loads((own_folder / "config.json").read_text())
    with pytest.raises(StrictDataclassError, match="scope"):
        EZClipConfig(scope=3)


@pytest.fixture(scope="module")
def clip_with_processor(tmp_path_factory):
    """Return a folder as `CLIPModel` and `CLIPProcessor` save it. Tests do not change it."""
    folder, tokenizer = tmp_path_factory.mktemp("clip"), word_tokenizer(WORDS)
    make_clip(folder, vocab_size=len(tokenizer))
    CLIPProcessor(CLIPImageProcessorPil(**PIXELS), tokenizer).save_pretrained(folder)
    return folder


def test_plain_clip(clip_with_processor, clips, logged):
    expected = pipeline(
        TASK,
        model=load_model(clip_with_processor, preset="clip"),
        processor=load_processor(clip_with_processor),
        device="cpu",
    )(clips, LABELS)
    assert not [line for line in logged() if "is plain CLIP" in line]
    assert make(clip_with_processor)(clips, LABELS) == expected
    assert make(clip_with_processor)(clips, LABELS, batch_size=2) != []
    assert sum(line.startswith(f"{clip_with_processor} is plain CLIP:") for line in logged()) == 1


def test_plain_clip_as_objects(clip_with_processor, clips):
    clip, processor = (cls.from_pretrained(clip_with_processor) for cls in (CLIPModel, CLIPProcessor))
    weights = dict(clip.named_parameters())
    classifier = pipeline(TASK, model=clip, processor=processor, device="cpu")
    assert all(p.data_ptr() == weights[name].data_ptr() for name, p in classifier.model.named_parameters())
    assert classifier(clips, LABELS) == make(clip_with_processor)(clips, LABELS)
    clip.config.scope = "Trained on red shapes."
    assert pipeline(TASK, model=clip, processor=processor).model.config.scope == clip.config.scope


def test_plain_clip_options_and_save(clip_with_processor, clips, tmp_path):
    options = {"dtype": torch.bfloat16, "model_kwargs": {"attn_implementation": "eager"}}
    classifier = make(clip_with_processor, candidate_labels=LABELS, **options)
    assert classifier.model.dtype == torch.bfloat16
    assert classifier.model.config._attn_implementation == "eager"
    expected = classifier(clips)
    classifier.save_pretrained(tmp_path)
    assert_carries_the_code(tmp_path)
    again = make(tmp_path, model_kwargs={"attn_implementation": "eager"})
    assert again.model.dtype == torch.bfloat16
    assert_same(again(clips), [scores(result) for result in expected])


def test_plain_clip_with_a_class_bank(clip_with_processor, clips, tmp_path):
    folder = tmp_path / "clip"
    shutil.copytree(clip_with_processor, folder)
    classifier = make(folder)
    ClassBank.build(classifier.model, classifier.processor, LABELS).save_pretrained(folder)
    assert_same(make(folder)(clips), [scores(result) for result in classifier(clips, LABELS)])


@pytest.mark.parametrize(
    ("missing", "message"), [("tokenizer*", "its files are missing"), ("processor_config.json", "image processor")]
)
def test_plain_clip_without_its_files(clip_with_processor, tmp_path, missing, message):
    shutil.copytree(clip_with_processor, tmp_path / "clip", ignore=shutil.ignore_patterns(missing))
    with pytest.raises((OSError, ValueError), match=message):
        make(tmp_path / "clip")


def test_half_of_clip_is_refused(tmp_path):
    CLIPVisionModel(CLIPVisionConfig(**TINY_TOWER)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"both towers, got .* of type 'clip_vision_model'"):
        pipeline(TASK, model=str(tmp_path), processor=EZClipProcessor(), device="cpu")


def test_processor_is_required(own_folder):
    with pytest.raises(ValueError, match="`processor` .* EZClipProcessor"):
        ZeroShotVideoClassificationPipeline(model=EZClipModel.from_pretrained(own_folder))


def test_task_and_remote_code_are_optional_with_the_package(own_folder):
    for options in ({}, {"task": TASK}, {"trust_remote_code": True}, {"task": TASK, "trust_remote_code": True}):
        made = pipeline(model=str(own_folder), device="cpu", **options)
        assert type(made) is ZeroShotVideoClassificationPipeline
        assert made.task == TASK


def test_save_pretrained(own_folder, tmp_path, clips):
    classifier = make(own_folder, candidate_labels=LABELS, hypothesis_template="a {}")
    expected = classifier(clips)
    for _ in range(2):
        classifier.save_pretrained(tmp_path / "saved")
    again = make(tmp_path / "saved")
    assert_same(again(clips), [scores(result) for result in expected])
    again.save_pretrained(tmp_path / "saved")  # where it was loaded from
    again.save_pretrained(tmp_path / "elsewhere")
    assert_same(make(tmp_path / "elsewhere")(clips), [scores(result) for result in expected])
    assert_carries_the_code(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="trained_only"):
        classifier.save_pretrained(tmp_path / "x", push_to_hub=True, trained_only=True)


def test_save_trained_only(own_folder, tmp_path, clips):
    model = EZClipModel.from_pretrained(own_folder)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05
    processor = EZClipProcessor.from_pretrained(own_folder)
    classifier = ZeroShotVideoClassificationPipeline(model=model, processor=processor, candidate_labels=LABELS)
    classifier.save_pretrained(tmp_path, trained_only=True, base_model_name_or_path=own_folder)
    assert os.path.getsize(tmp_path / "model.safetensors") < os.path.getsize(own_folder / "model.safetensors") / 2
    assert_carries_the_code(tmp_path)
    assert_same(make(tmp_path)(clips), [scores(result) for result in classifier(clips)])


@pytest.mark.parametrize("module", ["configuration", "modeling", "processing", "pipeline"])
def test_relative_imports_are_direct(module):
    path = ROOT / f"{module}_ezclip.py"
    needed = {Path(file).stem for file in get_relative_import_files(path)} - {path.stem}
    assert needed == set(get_relative_imports(path))


def assert_carries_the_code(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["custom_pipelines"][TASK]["impl"] == "pipeline_ezclip.ZeroShotVideoClassificationPipeline"
    assert {path.name for path in folder.glob("*.py")} == CODE_FILES


WITHOUT_THE_PACKAGE = """
import json, sys
import numpy as np, torch
from transformers import AutoConfig, AutoModel, AutoProcessor, pipeline

clip, labels, results = np.load("clip.npy"), ["red circle", "green square", "blue circle"], {}
task = "zero-shot-video-classification"
for folder in sys.argv[1:]:
    trusted = {"trust_remote_code": True}
    assert AutoConfig.from_pretrained(folder, **trusted).model_type == "ezclip"
    model = AutoModel.from_pretrained(folder, **trusted)
    processor = AutoProcessor.from_pretrained(folder, **trusted)
    assert processor(videos=clip, return_tensors="pt").pixel_values.shape == (1, 8, 3, 32, 32)
    classifier = pipeline(task, model=folder, device="cpu", **trusted)
    assert pipeline(model=folder, device="cpu", **trusted).task == task
    results[folder] = [classifier(clip, labels), classifier([clip, clip[::-1]], labels, batch_size=2)]
    (bad,), good = classifier(["missing.mp4", clip], labels, batch_size=2, on_error="skip")
    assert "does not exist" in bad["error"] and good == results[folder][0]
    try:
        pipeline(task, model=folder, trust_remote_code=False)
    except ValueError as error:
        assert "trust_remote_code=True" in str(error)
    else:
        raise AssertionError("untrusted code ran")
    # A copy saved by the model alone or by the pipeline loads again.
    model.save_pretrained(f"{folder} 2")
    processor.save_pretrained(f"{folder} 2")
    results[f"{folder} 2"] = [pipeline(model=f"{folder} 2", device="cpu", **trusted)(clip, labels)]
    classifier.save_pretrained(f"{folder} 3")
    results[f"{folder} 3"] = [pipeline(model=f"{folder} 3", device="cpu", **trusted)(clip, labels)]
    classifier.save_pretrained(folder)  # where it was loaded from
# The class bank beside a model is saved too.
for folder in ("whole", "whole 3"):
    results[folder].append([pipeline(model=folder, device="cpu", **trusted)(clip)])
assert "ezclip" not in sys.modules
print(json.dumps(results))
"""


def test_without_the_package(own_folder, classifier, tmp_path):
    make(own_folder, candidate_labels=LABELS).save_pretrained(tmp_path / "whole")
    model = EZClipModel.from_pretrained(own_folder)
    model.save_pretrained(tmp_path / "adapters", trained_only=True, base_model_name_or_path=own_folder)
    EZClipProcessor.from_pretrained(own_folder).save_pretrained(tmp_path / "adapters")
    # A clone of this repository with weights, configuration and tokenizer
    ignored = shutil.ignore_patterns(".*", "tests", "docs", "configs", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, tmp_path / "clone", ignore=ignored)
    for path in own_folder.iterdir():
        if path.suffix != ".py":
            shutil.copy(path, tmp_path / "clone")

    clip = random_clip(0, 8, 32, 32)
    np.save(tmp_path / "clip.npy", clip)
    # -P: keep the working folder off the path
    command = [sys.executable, "-P", "-c", WITHOUT_THE_PACKAGE, "whole", "adapters", "clone"]
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    results = json.loads(result.stdout)
    expected = classifier([clip, clip[::-1]], LABELS)
    assert set(results) == {f"{name}{copy}" for name in ("whole", "adapters", "clone") for copy in ("", " 2", " 3")}
    for single, *batched in results.values():
        assert_same([single], [scores(expected[0])])
        for several in batched:
            assert_same(several, [scores(one) for one in expected[: len(several)]])
    for name in ("whole", "adapters", "whole 2", "adapters 3"):
        assert_carries_the_code(tmp_path / name)
