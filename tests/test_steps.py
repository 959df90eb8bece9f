"""Classes described by steps in order: the alignment with the frames, and every road that scores."""

import itertools
import json

import numpy as np
import pytest
import torch

import ezclip
from ezclip import ClassBank, ZeroShotVideoClassificationPipeline, classify_videos, find_segments
from ezclip.cli import compare, timeline
from ezclip.cli.classify import main as classify
from ezclip.utils.synthetic_clips import write_video
from pipeline_ezclip import StepBank, align_steps, embed_videos, score_embeds
from tests.encoders.families import make_rival
from tests.helpers import VOCAB_SIZE, make_model, random_clip, read_json, read_lines, refusal, run, run_again
from tests.towers import FAMILIES, make_replica


STEPS = {
    "moving left": {"steps": [["red circle right", "a circle right"], "circle", ["a red circle left"]]},
    "moving right": {"steps": ["red circle left", ["circle", "red", "a photo of red"], "circle right"]},
    "green square": {"steps": ["green square", "a photo of green"]},
    "blue": "a blue circle",
}
LABELS = list(STEPS)


def wordings(label: str) -> list[list[str]]:
    steps = STEPS[label]["steps"] if isinstance(STEPS[label], dict) else [STEPS[label]]
    return [[step] if isinstance(step, str) else step for step in steps]


@pytest.fixture(scope="module")
def classifier(tiny_folder):
    return ZeroShotVideoClassificationPipeline(
        model=ezclip.load_model(tiny_folder), processor=ezclip.load_processor(tiny_folder)
    )


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Class folders with a video each."""
    root = tmp_path_factory.mktemp("videos")
    for seed, label in enumerate(LABELS):
        (root / label).mkdir()
        write_video(root / label / "a.mp4", random_clip(seed, num_frames=16))
    return root


@pytest.fixture
def file(tmp_path):
    (tmp_path / "steps.json").write_text(json.dumps(STEPS))
    return tmp_path / "steps.json"


def all_alignments(num_frames: int, num_steps: int) -> list[tuple[int, ...]]:
    """Every monotone path: the step of each frame."""
    paths = itertools.product(range(num_steps), repeat=num_frames)
    return [path for path in paths if list(path) == sorted(path) and len(set(path)) == num_steps]


def by_brute_force(similarities: np.ndarray) -> float:
    """The best mean over all monotone paths, for similarities (T, S)."""
    frames = np.arange(len(similarities))
    return max(float(similarities[frames, list(path)].mean()) for path in all_alignments(*similarities.shape))


def expected_similarities(model, processor, pixels) -> dict[str, np.ndarray]:
    """The mean, the aligned and the reversed similarity of a video to each class, with loops of numpy."""

    def embed(texts):
        tokens = processor(text=texts, return_tensors="pt", padding=processor.text_padding)
        return torch.nn.functional.normalize(model.encode_texts(tokens), dim=-1).numpy()

    found = {"mean": [], "aligned": [], "reversed": []}
    with torch.no_grad():
        video, *frames = torch.nn.functional.normalize(model.encode_frames(pixels)[0], dim=-1).numpy()
        for label in LABELS:
            mean = np.concatenate([embed(step) for step in wordings(label)]).mean(axis=0)
            found["mean"].append(video @ mean / np.linalg.norm(mean))
            steps = np.stack([(np.stack(frames) @ embed(step).T).max(axis=1) for step in wordings(label)], axis=1)
            found["aligned"].append(by_brute_force(steps))
            found["reversed"].append(by_brute_force(steps[:, ::-1]))
    return {name: np.array(values) for name, values in found.items()}


@pytest.mark.parametrize(("num_frames", "num_steps"), [(1, 1), (6, 1), (4, 4), (7, 3), (8, 5)])
def test_alignment_is_the_best_of_all(num_frames, num_steps):
    similarities = torch.randn(num_frames, num_steps, generator=torch.Generator().manual_seed(num_frames))
    score, path = align_steps(similarities)
    best = max(all_alignments(num_frames, num_steps), key=lambda p: float(similarities[range(num_frames), p].sum()))
    assert path == list(best)
    assert score == pytest.approx(by_brute_force(similarities.numpy()), abs=1e-6)


@pytest.mark.parametrize("shape", [(2, 3), (0, 1), (2, 0)])
def test_more_steps_than_frames(shape):
    with pytest.raises(ValueError, match="frames"):
        align_steps(torch.zeros(shape))


def check_similarities(model, processor):
    size = processor.crop_size
    pixels = torch.randn(1, 8, 3, *size, generator=torch.Generator().manual_seed(3))
    expected = expected_similarities(model, processor, pixels)
    contrast = expected["aligned"] - expected["reversed"]
    base = {**expected, "both": (expected["mean"] + expected["aligned"]) / 2}
    for step_score, step_contrast in [(None, None), ("aligned", 0.5), ("both", 0.0), ("mean", 4.0), ("mean", 0.0)]:
        bank = ClassBank.build(
            model, processor, LABELS, descriptions=STEPS, step_score=step_score, step_contrast=step_contrast
        )
        assert isinstance(bank, StepBank) == ((step_score, step_contrast) != ("mean", 0.0))
        with torch.no_grad():
            similarities = bank.compare(embed_videos(model, bank, pixels))
        own = base[step_score or "aligned"] + (1.0 if step_contrast is None else step_contrast) * contrast
        assert similarities[0, 0].numpy() == pytest.approx(own, abs=2e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_tower(tmp_path, name):
    make_replica(name, tmp_path)
    for preset in ("clip", "ezclip"):
        model = ezclip.load_model(tmp_path, preset == "ezclip", preset=preset).eval()
        check_similarities(model, ezclip.load_processor(tmp_path))


def test_encoder_of_images(tmp_path):
    make_rival("groupvit", tmp_path)
    check_similarities(ezclip.load_encoder(tmp_path), ezclip.load_processor(tmp_path, num_frames=8))


def test_reversed_video_and_reversed_steps(classifier):
    model, processor = classifier.model, classifier.processor
    pixels = torch.randn(2, 8, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    steps = {"there": {"steps": ["red", "green", "blue"]}, "back": {"steps": ["blue", "green", "red"]}}
    bank = ClassBank.build(model, processor, list(steps), descriptions=steps, step_contrast=3)
    with torch.no_grad():
        frames = model.encode_frames(pixels)
        found = bank.compare(frames)
        flipped = bank.compare(torch.cat([frames[:, :1], frames[:, 1:].flip(1)], dim=1))
    torch.testing.assert_close(flipped, found.flip(-1))
    assert (found[..., 0] - found[..., 1]).abs().min() > 1e-3


def test_lists_in_order_equal_marked_steps(classifier):
    lists = {label: [step[0] for step in wordings(label)] for label in LABELS}
    marked = {label: {"steps": texts} for label, texts in lists.items()}
    build = ClassBank.build
    model, processor = classifier.model, classifier.processor
    assert not isinstance(build(model, processor, LABELS, descriptions=lists), StepBank)
    in_order = build(model, processor, LABELS, descriptions=lists, step_score="aligned")
    expected = build(model, processor, LABELS, descriptions=marked)
    assert torch.equal(in_order.steps, expected.steps) and torch.equal(in_order.step_embeds, expected.step_embeds)


def scores_of(predictions: list[dict]) -> dict:
    return {one["label"]: pytest.approx(one["score"], abs=1e-5) for one in predictions}


@pytest.mark.parametrize("options", [{}, {"step_score": "both", "step_contrast": 2.0}])
def test_every_road_gives_the_same_scores(tiny_folder, classifier, videos, file, tmp_path, options, capsys):
    paths = [str(videos / label / "a.mp4") for label in sorted(LABELS)]
    expected = [scores_of(row) for row in classifier(paths, descriptions=STEPS, **options)]
    plain = [scores_of(row) for row in classifier(paths, LABELS)]
    assert expected != plain

    # evaluation, prediction, comparison
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    model = ("--model_name_or_path", tiny_folder, "--class_descriptions", file, *words)
    out = run("--do_eval", *model, "--validation_dir", videos, "--output_dir", tmp_path / "eval")
    assert [scores_of(line["predictions"]) for line in read_lines(out / "predictions.jsonl")] == expected
    out = run_again(
        *("--do_predict", *model, "--videos", videos, "--output_dir", tmp_path / "predict"),
        *("--candidate_labels", *LABELS),
    )
    assert [scores_of(line["predictions"]) for line in read_lines(out / "predictions.jsonl")] == expected
    systems = {"steps": {"model_name_or_path": str(tiny_folder), "class_descriptions": [str(file)], **options}}
    systems["names"] = {"model_name_or_path": str(tiny_folder)}
    (tmp_path / "systems.yaml").write_text(json.dumps(systems))
    out = tmp_path / "compare"
    compare.main(
        [str(tmp_path / "systems.yaml"), *f"--validation_dir {videos} --output_dir {out}".split()]
        + ["--use_cpu", "--speed_rounds", "0"]
    )
    assert [scores_of(line["predictions"]) for line in read_lines(out / "steps" / "predictions.jsonl")] == expected
    assert [scores_of(line["predictions"]) for line in read_lines(out / "names" / "predictions.jsonl")] == plain

    # classify, with a cache that other labels without steps share; and a timeline of one window
    kept = {"cache_dir": tmp_path / "cache"}
    for _ in range(2):
        answers = list(classify_videos(classifier, paths, descriptions=STEPS, **options, **kept))
        assert [scores_of(answer.predictions) for answer in answers] == expected
        answers = list(classify_videos(classifier, paths, LABELS, **kept))
        assert [scores_of(answer.predictions) for answer in answers] == plain
    assert all(answer.is_kept for answer in answers)
    assert classify([paths[0], "--model", str(tiny_folder), "--descriptions", str(file), *map(str, words)]) == 0
    assert max(expected[0], key=lambda label: expected[0][label].expected) in capsys.readouterr().out
    found = find_segments(classifier, paths[0], descriptions=STEPS, window=9.0, smoothing=1, **options)
    assert dict(zip(found.labels, found.scores[0].tolist())) == expected[0]
    argv = [paths[0], "--model_name_or_path", str(tiny_folder), "--window", "9", "--class_descriptions", str(file)]
    assert timeline.main([*argv, *map(str, words), "--output_file", str(tmp_path / "x.json")]) == 0
    content = read_json(tmp_path / "x.json")
    assert dict(zip(content["labels"], content["scores"][0])) == expected[0]


def test_views_are_averaged(classifier, videos):
    path = str(videos / "blue" / "a.mp4")
    (together,) = [scores_of(classifier(path, descriptions=STEPS, num_clips=2))]
    views = classifier.processor(videos=path, num_clips=2, return_tensors="pt").pixel_values[0]
    bank = ClassBank.build(classifier.model, classifier.processor, LABELS, descriptions=STEPS)
    with torch.no_grad():
        scores = score_embeds(classifier.model, bank, embed_videos(classifier.model, bank, views)).mean(dim=0)
    assert dict(zip(LABELS, scores.tolist())) == together


def test_saved_bank(classifier, videos, tmp_path):
    path = str(videos / "blue" / "a.mp4")
    expected = classifier(path, descriptions=STEPS, step_contrast=1.5, background_labels="photo")
    assert {one["label"] for one in expected} == {*LABELS, None}
    steps = {**STEPS, "photo": "photo"}
    bank = ClassBank.build(classifier.model, classifier.processor, list(steps), descriptions=steps, step_contrast=1.5)
    bank.save_pretrained(tmp_path)
    found = ClassBank.from_pretrained(tmp_path)
    assert isinstance(found, StepBank) and found.step_contrast == 1.5
    assert classifier(path, class_bank=tmp_path, background_labels="photo") == expected


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"moving left": {"steps": []}}, {}, "'moving left'.*steps"),
        ({"moving left": {"steps": ["red", " "]}}, {}, "'moving left'.*steps"),
        ({"moving left": {"stages": ["red"]}}, {}, "'moving left'.*steps"),
        ({"moving left": ["red", "green"]}, {}, "'moving left' has 2 texts in no order"),
        ({"moving left": {"steps": ["red"] * 9}}, {}, r"\(8\), got 9 for 'moving left'"),
        ({}, {"step_contrast": -1}, "step_contrast.*-1"),
        ({}, {"step_contrast": float("nan")}, "step_contrast.*nan"),
        ({}, {"step_score": "best"}, "step_score.*'best'"),
        ({}, {"include_label": True}, "include_label"),
    ],
)
def test_bad_steps(classifier, videos, changes, options, message):
    with pytest.raises(ValueError, match=message):
        classifier(str(videos / "blue" / "a.mp4"), descriptions={**STEPS, **changes}, **options)


def test_steps_without_descriptions(classifier, videos, tiny_folder, tmp_path, capsys):
    with pytest.raises(ValueError, match="`step_score`"):
        classifier(str(videos / "blue" / "a.mp4"), LABELS, step_score="aligned")
    argv = ("--do_eval", "--model_name_or_path", tiny_folder, "--validation_dir", videos, "--output_dir", tmp_path)
    with pytest.raises(SystemExit):
        run(*argv, "--step_contrast", "1")
    assert "--class_descriptions" in capsys.readouterr().err


def test_too_many_steps_end_a_run_at_once(videos, tiny_folder, tmp_path):
    steps = {**STEPS, "blue": {"steps": ["blue"] * 9}}
    (tmp_path / "steps.json").write_text(json.dumps(steps))
    options = ("--model_name_or_path", tiny_folder, "--class_descriptions", tmp_path / "steps.json")
    message = refusal("--do_eval", *options, "--validation_dir", videos, "--output_dir", tmp_path / "out")
    assert "got 9 for 'blue'" in message and not (tmp_path / "out" / "eval_results.json").exists()


def test_two_files_with_steps(file, tmp_path):
    (tmp_path / "more.json").write_text(json.dumps({"Moving_Left": ["a room"]}))
    with pytest.raises(ezclip.errors.DataError, match="Moving_Left"):
        ezclip.data.labels.read_class_descriptions([file, tmp_path / "more.json"])


def test_models_without_frames(tmp_path):
    make_rival("xclip", tmp_path)
    encoder, processor = ezclip.load_encoder(tmp_path), ezclip.load_processor(tmp_path)
    with pytest.raises(ValueError, match="xclip"):
        ClassBank.build(encoder, processor, LABELS, descriptions=STEPS)
    of_mean = {"step_score": "mean", "step_contrast": 0}
    assert not isinstance(ClassBank.build(encoder, processor, LABELS, descriptions=STEPS, **of_mean), StepBank)


def test_joint_attention_has_one_frame(classifier):
    config = {"use_joint_attention": True, "use_temporal_embedding": True, "temporal_prompt": "none"}
    model = make_model({**config, "use_adapter": False}, vocab_size=VOCAB_SIZE)
    with pytest.raises(ValueError, match=r"\(1\), got 3"):
        ClassBank.build(model, classifier.processor, LABELS, descriptions=STEPS)


def test_video_embeddings_alone_are_refused(classifier):
    bank = ClassBank.build(classifier.model, classifier.processor, LABELS, descriptions=STEPS)
    with pytest.raises(ValueError, match="embed_videos"):
        bank.probabilities(torch.randn(2, 16))
