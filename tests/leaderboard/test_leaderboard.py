"""The encoder for `mteb`, on small tasks of real clips that are built here."""

import json
from pathlib import Path

import datasets
import pytest
import torch


mteb = pytest.importorskip("mteb", reason='needs mteb: pip install "ezclip[mteb]"')

from mteb.abstasks import AbsTaskClassification, AbsTaskRetrieval  # noqa: E402
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData  # noqa: E402
from mteb.abstasks.task_metadata import TaskMetadata  # noqa: E402
from mteb.abstasks.zeroshot_classification import AbsTaskZeroShotClassification  # noqa: E402

from ezclip import ClassBank, EZClipProcessor, load_model, load_processor  # noqa: E402
from ezclip.cli.main import main  # noqa: E402
from ezclip.leaderboard import LeaderboardEncoder, evaluate_tasks  # noqa: E402
from ezclip.systems import load_bpe_tokenizer  # noqa: E402
from processing_ezclip import default_image_processor, label_to_words  # noqa: E402
from tests.helpers import ACTION_CLIPS, make_clip, shared_path  # noqa: E402


def metadata(name: str, task_type: str, category: str, main_score: str) -> TaskMetadata:
    return TaskMetadata(
        name=name,
        description="Clips whose action is known",
        dataset={"path": "local/clips", "revision": "1"},
        type=task_type,
        category=category,
        modalities=["video", "text"] if "t" in category.split("2") else ["video"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score=main_score,
    )


def clips() -> list[Path]:
    return [shared_path("clips", name) for name in ACTION_CLIPS]


ACTIONS = {name: label_to_words(label) for name, label in ACTION_CLIPS.items()}
LABELS = sorted(set(ACTIONS.values()))


def action_rows(**columns) -> datasets.Dataset:
    """A row for each clip, with its bytes as the data sets of `mteb` have them."""
    videos = [{"path": path.name, "bytes": path.read_bytes()} for path in clips()]
    features = {"video": datasets.Video(), **{name: datasets.Value("string") for name in columns}}
    return datasets.Dataset.from_dict({"video": videos, **columns}, features=datasets.Features(features))


class ClipsZeroShot(AbsTaskZeroShotClassification):
    metadata = metadata("ClipsZeroShot", "VideoZeroshotClassification", "v2t", "accuracy")
    input_column_name = "video"

    def load_data(self, **kwargs):
        self.dataset = datasets.DatasetDict({"test": action_rows(label=list(ACTIONS.values()))})
        self.data_loaded = True

    def get_candidate_labels(self):
        return LABELS


class ClipsClassification(AbsTaskClassification):
    metadata = metadata("ClipsClassification", "VideoClassification", "v2c", "accuracy")
    input_column_name = "video"
    samples_per_label, n_experiments = 1, 2

    def load_data(self, **kwargs):
        rows = action_rows(label=list(ACTIONS.values()))
        self.dataset = datasets.DatasetDict({"train": rows, "test": rows})
        self.data_loaded = True


class ClipsRetrieval(AbsTaskRetrieval):
    metadata = metadata("ClipsRetrieval", "Any2AnyRetrieval", "t2v", "ndcg_at_10")

    def load_data(self, **kwargs):
        ids = list(ACTIONS)
        queries = datasets.Dataset.from_dict({"id": LABELS, "text": LABELS})
        found = {label: {one: 1 for one in ids if ACTIONS[one] == label} for label in LABELS}
        split = RetrievalSplitData(corpus=action_rows(id=ids), queries=queries, relevant_docs=found, top_ranked=None)
        self.dataset, self.data_loaded = {"default": {"test": split}}, True


class WithAudio(ClipsZeroShot):
    metadata = ClipsZeroShot.metadata.model_copy(update={"name": "ClipsWithAudio", "modalities": ["audio", "video"]})


class Missing(ClipsZeroShot):
    metadata = ClipsZeroShot.metadata.model_copy(update={"name": "Missing"})

    def load_data(self, **kwargs):
        raise FileNotFoundError("local/missing is not on the Hub")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A plain CLIP of random weights with the tokenizer of the reference data."""
    folder = tmp_path_factory.mktemp("models") / "tiny-clip"
    tokenizer = load_bpe_tokenizer(shared_path("tokenizer", "bpe_simple_vocab_16e6.txt.gz"))
    make_clip(folder, vocab_size=len(tokenizer))
    EZClipProcessor(default_image_processor(32), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def tasks(monkeypatch) -> list[str]:
    """The tasks of this file, by name."""
    found = [ClipsZeroShot, ClipsClassification, ClipsRetrieval, WithAudio, Missing]
    for task in found:
        monkeypatch.setitem(mteb.get_tasks.__globals__["_TASKS_REGISTRY"], task.metadata.name, task)
    return [task.metadata.name for task in found]


@torch.no_grad()
def embed_clips(model, processor) -> torch.Tensor:
    """Embed the clips by their files, without mteb."""
    pixels = processor(videos=list(map(str, clips())), return_tensors="pt").pixel_values
    return torch.nn.functional.normalize(model.encode_videos(pixels), dim=-1)


def results(output_dir: Path) -> dict[str, dict]:
    found = {path.stem: json.loads(path.read_text()) for path in output_dir.rglob("*.json")}
    return {name: one["scores"]["test"][0] for name, one in found.items() if "scores" in one}


def test_tasks_through_the_command(folder, tasks, tmp_path, capsys):
    argv = ["leaderboard", "--model_name_or_path", str(folder), "--output_dir", str(tmp_path), "--tasks", *tasks[:3]]
    assert main(argv) == 0
    scores, output = results(tmp_path), capsys.readouterr().out
    assert output.startswith("3 tasks of mteb ") and "local/tiny-clip" in output and "8 frames" in output

    model, processor = load_model(folder).eval(), load_processor(folder)
    cosines = embed_clips(model, processor) @ ClassBank.build(model, processor, LABELS, "{}").embeds[0].T
    truth = torch.tensor([LABELS.index(label) for label in ACTIONS.values()])
    accuracy = (cosines.argmax(dim=1) == truth).float().mean().item()
    assert scores["ClipsZeroShot"]["accuracy"] == pytest.approx(accuracy, abs=1e-5)
    assert f" {accuracy:.4f}\n" in output
    found = truth[cosines.argmax(dim=0)] == torch.arange(len(LABELS))  # by each text
    assert scores["ClipsRetrieval"]["hit_rate_at_1"] == pytest.approx(found.float().mean().item(), abs=1e-5)
    assert 0 < scores["ClipsClassification"]["accuracy"] <= 1

    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("Clips*.json")}
    assert main(argv) == 0  # nothing is run again
    assert written == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("Clips*.json")}


def test_embeddings_are_those_of_the_model(folder):
    model, processor = load_model(folder).eval(), load_processor(folder)
    encoder = LeaderboardEncoder(model, processor)
    rows = action_rows(text=list(ACTIONS.values()))
    options = {"task_metadata": ClipsZeroShot.metadata, "hf_split": "test", "hf_subset": "default"}

    def encode(*columns):
        loader = torch.utils.data.DataLoader(rows.select_columns(list(columns)), batch_size=4, num_workers=2)
        return encoder.encode(loader, show_progress_bar=False, **options)

    videos, texts, both = encode("video"), encode("text"), encode("video", "text")
    assert both.shape == (len(ACTIONS), 16) and both.dtype == torch.float32
    torch.testing.assert_close(both, videos + texts)
    torch.testing.assert_close(torch.nn.functional.normalize(videos, dim=-1), embed_clips(model, processor))
    embeds = ClassBank.build(model, processor, LABELS, "{}").embeds[0]
    embeds = embeds[[LABELS.index(label) for label in ACTIONS.values()]]
    torch.testing.assert_close(encoder.similarity(texts, texts), embeds @ embeds.T, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="a video or a text"):
        encoder.encode(torch.utils.data.DataLoader(datasets.Dataset.from_dict({"audio": [1]})), **options)


def test_revision_follows_weights_and_frames(folder):
    model, processor = load_model(folder).eval(), load_processor(folder)

    def revision():
        return LeaderboardEncoder(model, processor).mteb_model_meta.revision

    first = revision()
    assert revision() == first
    processor.num_frames = 4
    fewer = revision()
    model.visual_projection.weight.data.mul_(2)
    assert len({first, fewer, revision()}) == 3


def test_refuse_a_file_as_output_dir(folder, tasks, tmp_path, capsys):
    (tmp_path / "out").write_text("")
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "leaderboard",
                "--model_name_or_path",
                str(folder),
                "--output_dir",
                str(tmp_path / "out"),
                "--tasks",
                tasks[0],
            ]
        )
    assert ended.value.code == 2 and "out cannot be written" in capsys.readouterr().err


def test_go_on_after_a_failed_task(folder, tasks, tmp_path, capsys):
    argv = ["leaderboard", "--model_name_or_path", str(folder), "--output_dir", str(tmp_path)]
    assert main([*argv, "--tasks", "Missing", "ClipsZeroShot"]) == 1
    assert "Missing failed: local/missing is not on the Hub" in capsys.readouterr().err
    assert list(results(tmp_path)) == ["ClipsZeroShot"]


def test_unreadable_video_fails_its_task(folder, monkeypatch, tmp_path):
    class Broken(ClipsZeroShot):
        def load_data(self, **kwargs):
            super().load_data()
            broken = [{"path": "broken.mp4", "bytes": b"no video"}, *[None] * (len(ACTIONS) - 1)]
            rows = self.dataset["test"].cast_column("video", datasets.Video(decode=False))
            rows = rows.remove_columns("video").add_column("video", broken).cast_column("video", datasets.Video())
            self.dataset["test"] = rows

    encoder = LeaderboardEncoder(load_model(folder).eval(), load_processor(folder))
    found = evaluate_tasks(encoder, [Broken()], tmp_path)
    assert not found.task_results and "broken.mp4" in found.exceptions[0].exception


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--tasks ClipsWithAudio", "--tasks must be of video"),
        ("--tasks HMDB51ZeroShott", "got 'HMDB51ZeroShott'; the nearest is HMDB51ZeroShot."),
        ("--tasks MVEB", "18 tasks"),
        ("--tasks UCF101ZeroShot", "1 task"),  # of images
        ("--batch_size 0", "--batch_size must be at least 1, got 0."),
        ("--dataloader_num_workers -1", "--dataloader_num_workers must be at least 0, got -1."),
    ],
)
def test_refuse_before_the_model_is_loaded(tasks, tmp_path, capsys, argv, message):
    with pytest.raises(SystemExit) as ended:
        main(["leaderboard", "--model_name_or_path", "missing", "--output_dir", str(tmp_path / "out"), *argv.split()])
    assert ended.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
