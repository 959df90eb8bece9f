"""Compare the numbers of a report with independent arithmetic, and check hostile names and broken files."""

import base64
import hashlib
import io
import json
import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file

import run_video_zeroshot
from ezclip import EZClipModel, EZClipProcessor
from ezclip.errors import DataError


for package in ("jinja2", "matplotlib", "scipy", "sklearn"):
    pytest.importorskip(package)

from ezclip.cli import report as report_script  # noqa: E402
from ezclip.report import write_report  # noqa: E402


SIX = ["archery", "making a cake", "yoga", "juggling", "playing guitar", "surfing"]


class Page(HTMLParser):
    """Parse a report into text, tables and pictures of each section."""

    def __init__(self, path: Path):
        super().__init__()
        self.sections, self.section, self.tags, self.addresses = {}, None, [], []
        self.cell, self.heading, self.hidden = None, None, False
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        self.addresses += [value for name, value in attributes.items() if name in ("src", "href", "srcset", "action")]
        if tag in ("script", "style"):
            self.hidden = True
        if tag == "section":
            self.section = {"text": "", "tables": [], "images": []}
        if self.section is None:
            return
        if tag == "h2":
            self.heading = ""
        elif tag == "table":
            self.section["tables"].append([])
        elif tag == "tr":
            self.section["tables"][-1].append([])
        elif tag in ("td", "th"):
            self.cell = ""
        elif tag == "img":
            self.section["images"].append(attributes)

    def handle_endtag(self, tag):
        self.hidden = False
        if self.section is not None and tag in ("dt", "dd", "strong", "p", "td", "th", "h3", "h4"):
            self.section["text"] += " "
        if tag == "h2":
            self.sections[self.heading] = self.section
            self.heading = None
        elif tag in ("td", "th"):
            self.section["tables"][-1][-1].append(" ".join(self.cell.split()))
            self.cell = None

    def handle_data(self, data):
        if self.hidden or self.section is None:
            return
        if self.heading is not None:
            self.heading += data
        elif self.cell is not None:
            self.cell += data
        self.section["text"] += data

    def text(self, section: str) -> str:
        return " ".join(self.sections[section]["text"].split())

    def rows(self, section: str, table: int = 0) -> list[dict]:
        head, *rows = self.sections[section]["tables"][table]
        return [dict(zip(head, row)) for row in rows]


def read_page(path: Path) -> Page:
    """Parse a page and check that it is complete and has no external references."""
    page = Page(path)
    assert all(address.startswith(("#", "data:image/")) for address in page.addresses), page.addresses
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert {tag for tag, _ in page.tags}.isdisjoint({"iframe", "object", "embed", "link", "form", "base"})
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "url(" not in page.source and "@import" not in page.source
    (policy,) = (attributes["content"] for tag, attributes in page.tags if attributes.get("http-equiv"))
    (script,) = re.findall(r"<script>(.*?)</script>", page.source, re.DOTALL)
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy
    assert policy.startswith("default-src 'none'; img-src data:;")
    for section in page.sections.values():
        for image in section["images"]:
            assert image["alt"].strip()
            kind, content = image["src"].removeprefix("data:image/").split(";base64,")
            opened = Image.open(io.BytesIO(base64.b64decode(content)))
            assert opened.format.lower() == kind
            assert opened.size == (int(image["width"]), int(image["height"]))
    return page


def write_run(folder: Path, labels, predicted, scores, names=SIX, videos=None, settings=None, embeds=None) -> Path:
    """Write the files of an evaluation; `predicted` `(n, k)` are class indices, best first."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "predictions.jsonl", "w", encoding="utf-8") as file:
        for row, (label, ranked, own) in enumerate(zip(labels, predicted, scores)):
            line = {"video": videos[row] if videos else f"/nowhere/{row}.mp4"}
            line |= {} if label is None else {"label": names[label]}
            line["predictions"] = [{"label": names[i], "score": float(s)} for i, s in zip(ranked, own)]
            file.write(json.dumps(line) + "\n")
    digest = {"predictions_sha256": hashlib.sha256((folder / "predictions.jsonl").read_bytes()).hexdigest()}
    if settings is not None:
        content = {**digest, **settings, "class_names": list(names)}
        (folder / "eval_settings.json").write_text(json.dumps(content))
    if embeds is not None:
        save_file({"video_embeds": embeds.astype(np.float32)}, folder / "video_embeds.safetensors", metadata=digest)
    return folder


def draw_run(num_classes: int, num_videos: int, k: int = 5, seed: int = 0, skill: float = 1.0):
    """Return labels, ranked classes and scores of a simulated model whose accuracy increases with its score."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num_videos) % num_classes
    logits = rng.normal(size=(num_videos, num_classes))
    logits[np.arange(num_videos), labels] += skill + rng.exponential(skill, num_videos)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    ranked = np.argsort(-probabilities, axis=1)[:, :k]
    return labels, ranked, np.take_along_axis(probabilities, ranked, axis=1)


def wilson(hits: int, total: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval by its formula."""
    z, p = 1.959963984540054, hits / total
    middle = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    return max(0.0, middle - half), min(1.0, middle + half)


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


@pytest.fixture(scope="module")
def six(tmp_path_factory):
    """Report a run of 60 videos of six classes with all optional files."""
    labels, ranked, scores = draw_run(6, 60)
    embeds = np.eye(6)[labels] + np.random.default_rng(1).normal(size=(60, 6)) * 0.2
    folder = write_run(
        tmp_path_factory.mktemp("runs") / "six",
        labels,
        ranked,
        scores,
        settings={"model_name_or_path": "tiny", "templates": ["a {}", "some {}"], "seed": 42, "nested": {"a": [1, 2]}},
        embeds=embeds / np.linalg.norm(embeds, axis=1, keepdims=True),
    )
    bad = {"video": "broken.mp4", "reason": "is an empty file. Fetch it again."}
    (folder / "bad_videos.jsonl").write_text(json.dumps(bad) + "\n")
    top1 = float((ranked[:, 0] == labels).mean())
    results = {"eval_top1": top1, "eval_samples": 60, "eval_bad_videos": 1}
    (folder / "eval_results.json").write_text(json.dumps(results))
    path = write_report(folder)
    assert path == folder / "report.html"
    return folder, read_page(path), labels, ranked, scores


def test_reliability_of_sigmoid_pairs(tmp_path):
    # 2 of 4 pairs at 0.75 are right, and 1 of 4 at 0.25: error (0.25 * 4 + 0 * 4) / 8.
    labels, predicted = [0, 0, 1, 2], [(0, 1), (1, 0), (2, 3), (2, 4)]
    scores = [(0.75, 0.25)] * 4
    settings = {"scoring": {"function_to_apply": "sigmoid", "logit_scale": 90.0, "logit_bias": -25.0}}
    folder = write_run(tmp_path / "run", labels, predicted, scores, settings=settings)
    text = Page(write_report(folder, sample_frames=False)).text("Calibration")
    assert "8 pairs of a video and a label, up to 2 labels of each video" in text
    assert "Expected calibration error 12.5 %" in text and "mean score is 50.0 %" in text
    assert "the accuracy is 37.5 %" in text
    softmax = write_run(tmp_path / "softmax", labels, predicted, scores, settings={})
    assert "Expected calibration error 25.0 %" in Page(write_report(softmax, sample_frames=False)).text("Calibration")


def test_none_of_these(tmp_path):
    folder = write_run(tmp_path / "run", [0, 0, 1], [(0,), (1,), (1,)], [(0.9,), (0.6,), (0.8,)], settings={})
    path = folder / "predictions.jsonl"
    first, *others = path.read_text(encoding="utf-8").splitlines()
    none = json.dumps({**json.loads(first), "predictions": [{"label": None, "score": 0.7}]})
    path.write_text("\n".join([none, *others]) + "\n", encoding="utf-8")
    (folder / "eval_settings.json").unlink()
    page = Page(write_report(folder, sample_frames=False))
    assert "33.3 %" in page.text("Results") and "(none of these)" in page.source


def test_headline_accuracies(six):
    _, page, labels, ranked, _ = six
    hits = ranked[:, 0] == labels
    among = (ranked == labels[:, None]).any(axis=1)
    text = page.text("Results")
    for name, found in (("top-1 accuracy", hits), ("top-5 accuracy", among)):
        low, high = wilson(int(found.sum()), 60)
        assert f"{name} {percent(found.mean())} ({percent(low)} to {percent(high)})" in text
    assert f"mean per-class top-1 {percent(np.mean([hits[labels == c].mean() for c in range(6)]))}" in text
    assert f"chance {percent(1 / 6)}" in text and "unreadable videos 1" in text
    assert 'class="notes"' not in page.source  # eval_results.json agrees


def test_classes_pairs_calibration(six):
    folder, page, labels, ranked, scores = six
    best = ranked[:, 0]
    rows = page.rows("Per-class accuracy")
    assert [row["class"] for row in rows] == SIX
    for index, row in enumerate(rows):
        own = best[labels == index]
        assert row["accuracy"] == percent((own == index).mean())
        assert (int(row["correct"]), int(row["videos"])) == ((own == index).sum(), 10)
        assert int(row["predicted"]) == (best == index).sum()
        wrong = np.bincount(own[own != index], minlength=6)
        assert int(row["count"]) == wrong.max()
        assert wrong.max() == 0 or wrong[SIX.index(row["most confused with"])] == wrong.max()
    pairs = page.rows("Most confused classes")
    counts = np.zeros((6, 6), int)
    np.add.at(counts, (labels, best), 1)
    totals = [counts[a, b] + counts[b, a] for a in range(6) for b in range(a)]
    assert [int(row["videos"]) + int(row["reverse"]) for row in pairs] == sorted(totals)[::-1][: len(pairs)]
    for row in pairs:
        assert int(row["videos"]) == counts[SIX.index(row["class"]), SIX.index(row["predicted as"])]
    assert "/nowhere/" in page.text("Most confused classes") and "the video does not exist." in page.source

    confidence, error = scores[:, 0], 0.0
    for low in np.arange(10) / 10:
        inside = (confidence >= low) & (confidence < low + 0.1)
        if inside.any():
            error += abs((best == labels)[inside].sum() - confidence[inside].sum()) / 60
    assert f"Expected calibration error {percent(error)}." in page.text("Calibration")
    names = {path.name for path in (folder / "report_pictures").iterdir()}
    expected = {"calibration.png", "class_accuracy.png", "confusion_matrix.png", "embedding_map.png"}
    assert names == expected
    for name in names:
        Image.open(folder / "report_pictures" / name).verify()
    assert "60 videos by t-SNE" in page.text("Embedding map")


def test_bad_videos_and_settings(six):
    _, page, *_ = six
    assert page.rows("Unreadable videos") == [{"video": "broken.mp4", "reason": "is an empty file. Fetch it again."}]
    settings = {row["setting"]: row["value"] for row in page.rows("Settings")}
    assert settings == {
        "model_name_or_path": "tiny",
        "templates": "a {} · some {}",
        "seed": "42",
        "nested.a": "[1, 2]",
    }


def test_confused_classes_are_neighbours(tmp_path):
    names = [f"class {number}" for number in range(400)]
    cliques = [[7, 120, 333, 250], [18, 399, 201]]
    labels = np.repeat(np.arange(400), 3)
    best = labels.copy()
    rng = np.random.default_rng(0)
    stray = rng.choice(1200, 60, replace=False)
    best[stray] = rng.integers(400, size=60)
    for clique in cliques:
        for place, index in enumerate(clique):
            best[labels == index] = [index, clique[place - 1], clique[(place + 1) % len(clique)]]
    scores = np.full((1200, 1), 0.5)
    folder = write_run(tmp_path / "run", labels, best[:, None], scores, names, settings={})
    page = read_page(write_report(folder, sample_frames=False))
    rows = page.rows("Per-class accuracy")
    assert len(rows) == 400
    assert sorted(int(row["position"]) for row in rows) == list(range(1, 401))
    for clique in cliques:
        places = [int(rows[index]["position"]) for index in clique]
        assert max(places) - min(places) < len(clique) + 2, places  # one stray class is allowed
    assert {path.stem for path in (folder / "report_pictures").iterdir()} >= {"confusion_matrix", "confusion_groups"}
    groups = page.sections["Confusion matrix"]["images"][1]["alt"]
    assert all(f"class {index}" in groups for clique in cliques for index in clique)
    with Image.open(folder / "report_pictures" / "confusion_matrix.png") as picture:
        assert min(picture.size) >= 3 * 400  # at least three pixels per class
    assert "Sample frames are turned off." in page.text("Most confused classes")
    assert "top-5" not in page.text("Results")  # one prediction per video


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "تسلق الجبال",
    "打太极拳",
    "$\\frac{1}{0}$ {{ 7 * 7 }} %s",
    "a\u202eb\nc\x07d",
    "long " * 60,
    "",
    "🏄",
]


def test_hostile_names(tmp_path):
    size = len(HOSTILE)
    labels = np.arange(size * 2) % size
    ranked = np.stack([(labels + 1) % size, labels], axis=1)
    scores = np.tile([0.6, 0.3], (len(labels), 1))
    videos = [f"https://example.org/<b>{row}</b>.mp4" for row in range(len(labels))]
    folder = write_run(tmp_path / "<i>run</i>", labels, ranked, scores, HOSTILE, videos, {"<u>": "</style><script>"})
    page = read_page(write_report(folder, names=["</title><script>"]))
    found = [row["class"] for row in page.rows("Per-class accuracy")]
    assert found == [" ".join(name.replace("\x07", "\ufffd").split()) for name in HOSTILE]
    assert "49" not in "".join(found)
    assert "https://example.org/<b>0</b>.mp4" in page.text("Most confused classes")  # never fetched
    assert page.text("Most confused classes").count("the video does not exist.") == 18
    assert [row["setting"] for row in page.rows("Settings")] == ["<u>"]


def test_no_labels(tmp_path):
    _, ranked, scores = draw_run(6, 30, k=3)
    path = write_run(tmp_path / "run", [None] * 30, ranked, scores) / "predictions.jsonl"
    old = tmp_path / "out" / "report_pictures" / "confusion_matrix.png"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"of an earlier report")
    page = read_page(write_report(path, tmp_path / "out"))
    assert {path.stem for path in old.parent.iterdir()} == {"predicted_classes", "scores"}
    assert "accuracy" not in page.text("Results") and "has no labels" in page.text("Results")
    assert [*page.sections] == ["Results", "Videos", "Predicted classes", "Scores", "Unreadable videos", "Settings"]
    rows = page.rows("Predicted classes")
    assert {row["class"]: int(row["videos"]) for row in rows} == {
        SIX[index]: int((ranked[:, 0] == index).sum()) for index in set(ranked[:, 0].tolist())
    }
    assert percent(scores[:, 0].mean()) in page.text("Scores")
    assert "were not saved" in page.text("Settings") and "total unknown" in page.text("Results")


def cards_of(page: Page) -> list[dict]:
    return [attributes for tag, attributes in page.tags if tag == "li" and "data-video" in attributes]


def test_gallery(clip_folder, tmp_path):
    """Each video has its frames or the reason why not, and its labels; nothing is fetched."""
    good, bad = clip_folder / "red_circle" / "a.mp4", clip_folder / "GreenSquare" / "broken.mp4"
    videos = [str(good), str(bad), "https://example.org/a.mp4", '"><script>alert(1)</script>.mp4']
    names = ["yoga", '"><i>&', "做蛋糕"]
    ranked, scores = np.array([[0, 1], [1, 2], [2, 0], [1, 0]]), np.array([[0.9, 0.1]] * 4)
    folder = write_run(tmp_path / "run", [None] * 4, ranked, scores, names, videos)
    page = read_page(write_report(folder))
    (image,) = page.sections["Videos"]["images"]
    assert "yoga" in image["alt"] and int(image["height"]) == 80
    shown = page.text("Videos")
    assert "is cut off" in shown and shown.count("does not exist") == 2
    assert [card["data-video"] for card in cards_of(page)] == videos
    assert [card["data-label"] for card in cards_of(page)] == [names[index] for index in ranked[:, 0]]
    assert {card["data-score"] for card in cards_of(page)} == {"0.900000"}
    assert all(f"{name} 0.90" in shown and f"{name} 0.10" in shown for name in names)
    assert "Calibration" not in page.source and "accuracy" not in page.text("Results")

    page = read_page(write_report(folder, tmp_path / "without", sample_frames=False))
    assert not page.sections["Videos"]["images"] and "turned off" in page.text("Videos")


def test_gallery_is_bounded(clip_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("ezclip.report.gallery.MAX_STRIPS", 2)
    monkeypatch.setattr("ezclip.report.gallery.MAX_CARDS", 5)
    video = str(clip_folder / "red_circle" / "a.mp4")
    folder = write_run(
        tmp_path / "run", [None] * 7, np.tile([0, 1], (7, 1)), np.tile([0.7, 0.3], (7, 1)), SIX, [video] * 7
    )
    page = read_page(write_report(folder))
    assert len(page.sections["Videos"]["images"]) == 2 and len(cards_of(page)) == 5
    assert "The first 5 are here, all are in predictions.jsonl. The first 2 have frames." in page.text("Videos")


def test_reports_of_predictions_side_by_side(tmp_path):
    _, ranked, scores = draw_run(6, 30, k=3)
    folders = [write_run(tmp_path / name, [None] * 30, ranked, scores) for name in "ab"]
    page = read_page(write_report(folders, tmp_path / "both", sample_frames=False))
    assert len(cards_of(page)) == 60 and "Comparison" in page.sections


@pytest.mark.parametrize("num_videos, names", [(1, ["yoga"]), (7, ["yoga"]), (1, ["yoga", "surfing"])])
def test_smallest_runs(num_videos, names, tmp_path):
    ranked = np.tile(np.arange(len(names))[::-1], (num_videos, 1))
    scores = np.tile(np.linspace(1, 0, len(names) + 1)[:-1], (num_videos, 1))
    embeds = np.tile([1.0, 0.0], (num_videos, 1))  # all equal
    folder = write_run(tmp_path / "run", [0] * num_videos, ranked, scores, names, settings={}, embeds=embeds)
    page = read_page(write_report(folder))
    assert f"top-1 accuracy {'100.0' if len(names) == 1 else '0.0'} %" in page.text("Results")
    assert ("at least 5 videos" in page.text("Embedding map")) == (num_videos < 5)


GOOD = '{"video": "a.mp4", "label": "yoga", "predictions": [{"label": "yoga", "score": 0.5}]}\n'


@pytest.mark.parametrize(
    "line, reason",
    [
        ('{"video": "b.mp4", "predictions": [{"label": "yo', "incomplete"),
        ("[1]\n", "not an object"),
        ('{"predictions": [{"label": "yoga", "score": 0.5}]}\n', "`video` is null"),
        ('{"video": "b.mp4", "label": 3, "predictions": [{"label": "yoga", "score": 0.5}]}\n', "`label` is 3"),
        ('{"video": "b.mp4", "predictions": []}\n', "`predictions` is []"),
        ('{"video": "b.mp4", "predictions": [{"label": "yoga"}]}\n', "a prediction is"),
        ('{"video": "b.mp4", "predictions": [{"label": "yoga", "score": NaN}]}\n', "the score of"),
        ('{"video": "b.mp4", "predictions": [{"label": "yoga", "score": 5}]}\n', "from 0 to 1"),
        (
            '{"video": "b.mp4", "predictions": [{"label": "a", "score": 0.1}, {"label": "b", "score": 0.2}]}\n',
            "The best comes first",
        ),
        (
            '{"video": "b.mp4", "predictions": [{"label": "a", "score": 0.2}, {"label": "a", "score": 0.2}]}\n',
            "predicted twice",
        ),
        ("\xff\xfe\n", "not JSON"),
        ("[" * 100_000 + "\n", "not JSON"),
    ],
)
def test_broken_lines(line, reason, tmp_path):
    (tmp_path / "predictions.jsonl").write_bytes((GOOD * 2 + line).encode("latin-1"))
    with pytest.raises(DataError, match="line 3") as caught:
        write_report(tmp_path)
    assert reason.lower() in str(caught.value).lower()
    assert not (tmp_path / "report.html").exists()


def test_missing_and_empty_files(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        write_report(tmp_path)
    (tmp_path / "predictions.jsonl").write_text("\n")
    with pytest.raises(DataError, match="is empty"):
        write_report(tmp_path)
    (tmp_path / "predictions.jsonl").write_text(GOOD)
    (tmp_path / "eval_results.json").write_text("{")
    with pytest.raises(DataError, match=r"eval_results\.json is damaged"):
        write_report(tmp_path)
    with pytest.raises(ValueError, match="output_dir"):
        write_report([tmp_path, tmp_path])
    with pytest.raises(ValueError, match="at least one"):
        write_report([])


def test_files_of_other_predictions(tmp_path):
    labels, ranked, scores = draw_run(6, 12)
    folder = write_run(tmp_path / "run", labels, ranked, scores, settings={"seed": 1}, embeds=np.eye(12))
    (folder / "eval_results.json").write_text('{"eval_top1": 0.123, "eval_samples": 12, "eval_bad_videos": 2}')
    with open(folder / "predictions.jsonl", "a") as file:
        file.write(GOOD)
    page = read_page(write_report(folder))
    assert "a top-1 of 0.123 on 12 videos" in page.source
    assert "counts 2 videos that could not be read, bad_videos.jsonl names 0" in page.source
    assert "video_embeds.safetensors belongs to other predictions" in page.source
    assert page.sections["Embedding map"]["images"] == []
    assert "were not saved" in page.text("Settings")


def test_two_runs(tmp_path):
    folders, hits = [], []
    for number, (skill, used) in enumerate([(1.0, range(0, 50)), (0.2, range(10, 60))]):
        labels, ranked, scores = draw_run(6, 60, seed=number, skill=skill)
        rows, videos = list(used), [f"/nowhere/{row}.mp4" for row in used]
        settings = {"seed": 42, "skill": skill}
        # The second run has the classes in another order
        order = np.arange(6) if number == 0 else np.arange(6)[::-1]
        own = (order[labels[rows]], order[ranked[rows]], scores[rows])
        names = [SIX[index] for index in order]
        folders.append(write_run(tmp_path / str(number) / "out", *own, names, videos, settings))
        hits.append((ranked[:, 0] == labels)[10:50])
    page = read_page(write_report(folders, tmp_path / "both"))
    assert "Videos in all runs: 40" in page.text("Comparison")
    first, second = page.rows("Comparison", 0)
    assert first["run"] == str(folders[0]) and second["run"] == str(folders[1])  # both folders are named "out"
    for row, found in zip((first, second), hits):
        low, high = wilson(int(found.sum()), 40)
        assert row["top-1"] == f"{percent(found.mean())} ({percent(low)} to {percent(high)})"
    (pair,) = page.rows("Comparison", 1)
    only_first, only_second = int((hits[0] & ~hits[1]).sum()), int((hits[1] & ~hits[0]).sum())
    assert (int(pair["only first right"]), int(pair["only second right"])) == (only_first, only_second)
    total = only_first + only_second
    tail = sum(math.comb(total, i) for i in range(min(only_first, only_second) + 1)) / 2**total
    assert float(pair["p"]) == pytest.approx(min(1.0, 2 * tail), rel=0.05)
    differing = page.rows("Comparison", 3)
    assert [list(row.values()) for row in differing] == [["skill", "1.0", "0.2"]]
    classes = {row["class"]: row for row in page.rows("Comparison", 2)}
    labels = np.arange(60)[10:50] % 6
    for index, name in enumerate(SIX):
        for found, folder in zip(hits, folders):
            assert classes[name][str(folder)] == percent(found[labels == index].mean())
    assert len(page.sections["Confusion matrix"]["images"]) == 2
    pictures = {path.stem for path in (tmp_path / "both" / "report_pictures").iterdir()}
    assert {"class_differences", "confusion_matrix_1", "confusion_matrix_2"} <= pictures


def test_incomparable_runs(tmp_path):
    labels, ranked, scores = draw_run(6, 12)
    one = write_run(tmp_path / "one", labels, ranked, scores)
    other = write_run(tmp_path / "other", (labels + 1) % 6, ranked, scores)
    with pytest.raises(DataError, match=r"/nowhere/0\.mp4 is 'archery' in .*one and 'making a cake' in .*other"):
        write_report([one, other], tmp_path / "both")
    apart = write_run(tmp_path / "apart", labels, ranked, scores, videos=[f"{row}.mp4" for row in range(12)])
    page = read_page(write_report([one, apart], tmp_path / "both", names=["1", "2"]))
    assert "Videos in all runs: 0" in page.text("Comparison")
    with pytest.raises(ValueError, match="different"):
        write_report([one, apart], tmp_path / "both", names=["same", "same"])


@pytest.fixture(scope="module")
def evaluated(tiny_folder, clip_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluated")
    options = ["--model_name_or_path", str(tiny_folder), "--use_cpu", "--output_dir", str(out), "--templates", "a {}"]
    run_video_zeroshot.main([*options, "--do_eval", "--report", "--validation_dir", str(clip_folder)])
    return out


def test_report_of_evaluation(evaluated, tiny_folder, clip_folder, tmp_path):
    page = read_page(evaluated / "report.html")
    results = json.loads((evaluated / "eval_results.json").read_text())
    assert f"top-1 accuracy {percent(results['eval_top1'])}" in page.text("Results")
    assert 'class="notes"' not in page.source
    (bad,) = page.rows("Unreadable videos")
    assert bad["video"].endswith("broken.mp4")
    settings = {row["setting"]: row["value"] for row in page.rows("Settings")}
    assert settings["model_name_or_path"] == str(tiny_folder) and settings["templates"] == "a {}"
    assert settings["num_frames"] == "8" and "learning_rate" not in settings
    strips = page.sections["Most confused classes"]["images"]
    assert len(strips) == round(5 * (1 - results["eval_top1"])) > 0
    assert all(image["src"].startswith("data:image/jpeg") for image in strips)

    model, processor = EZClipModel.from_pretrained(tiny_folder).eval(), EZClipProcessor.from_pretrained(tiny_folder)
    lines = [json.loads(line) for line in (evaluated / "predictions.jsonl").read_text().splitlines()]
    with torch.no_grad():
        inputs = processor(videos=[line["video"] for line in lines], return_tensors="pt")
        expected = torch.nn.functional.normalize(model.get_video_features(**inputs).pooler_output, dim=-1)
    embeds = load_file(evaluated / "video_embeds.safetensors")["video_embeds"]
    np.testing.assert_allclose(embeds, expected.numpy(), atol=1e-5)

    # An evaluation without --report removes old files
    out = tmp_path / "again"
    out.mkdir()
    (out / "video_embeds.safetensors").write_bytes(b"old")
    options = ["--model_name_or_path", str(tiny_folder), "--use_cpu", "--output_dir", str(out)]
    run_video_zeroshot.main([*options, "--do_eval", "--validation_dir", str(clip_folder)])
    assert not (out / "video_embeds.safetensors").exists() and not (out / "report.html").exists()


def test_report_of_prediction(evaluated, tiny_folder, clip_folder, tmp_path, capsys):
    out = tmp_path / "predicted"
    options = ["--model_name_or_path", str(tiny_folder), "--use_cpu", "--output_dir", str(out), "--do_predict"]
    videos = [str(path) for path in sorted(clip_folder.glob("red_circle/*.mp4"))]
    labels = ["--candidate_labels", "red circle", "green square", "--templates", "a {}"]
    run_video_zeroshot.main([*options, "--report", "--videos", *videos, *labels])
    page = read_page(out / "report.html")
    assert "has no labels" in page.text("Results") and "classes 2" in page.text("Results")
    assert dict(row.values() for row in page.rows("Settings"))["templates"] == "a {}"
    assert len(page.sections["Videos"]["images"]) == len(videos)

    capsys.readouterr()
    report_script.main([str(evaluated), str(out), "--output_dir", str(tmp_path / "both"), "--no_sample_frames"])
    assert capsys.readouterr().out.strip() == str(tmp_path / "both" / "report.html")
    page = read_page(tmp_path / "both" / "report.html")
    assert "Videos in all runs: 3" in page.text("Comparison") and "data:image/jpeg" not in page.source
    with pytest.raises(SystemExit, match=r"ezclip report: .* does not exist"):
        report_script.main([str(tmp_path / "none")])


def test_missing_package(tiny_folder, clip_folder, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("ezclip.report")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(SystemExit, match=r"needs sklearn.*pip install 'ezclip\[report\]'"):
        report_script.main([str(tmp_path)])
    monkeypatch.setattr(run_video_zeroshot, "Runner", None)
    options = ["--model_name_or_path", str(tiny_folder), "--use_cpu", "--output_dir", str(tmp_path), "--do_eval"]
    with pytest.raises(SystemExit, match=r"--report: A report needs sklearn"):
        run_video_zeroshot.main([*options, "--report", "--validation_dir", str(clip_folder)])


def test_report_option_without_evaluation(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_video_zeroshot.main(["--do_train", "--model_name_or_path", "m", "--report", "--output_dir", str(tmp_path)])
    assert "ezclip run: --report " in capsys.readouterr().err
