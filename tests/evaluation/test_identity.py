"""What a result depends on is told by content."""

import os
import shutil

import datasets
import pytest
from PIL import Image

from ezclip import EZClipModel, EZClipProcessor
from ezclip.data.dataset import VideoDataset
from ezclip.data.identity import describe_videos
from ezclip.data.sources import load_folder, load_hub_dataset
from ezclip.errors import DataError
from ezclip.evaluation.identity import describe_model, describe_result
from ezclip.utils.settings import check_unchanged, find_differences


@pytest.fixture
def describe(tiny_folder):
    model, processor = EZClipModel.from_pretrained(tiny_folder), EZClipProcessor.from_pretrained(tiny_folder)

    def describe(split, change=None):
        if change is not None:
            change(model, processor)
        return describe_result(describe_model(model), processor, None, {"test": split}, top_k=5)

    return describe


def test_each_change_is_named(describe, clip_folder, tmp_path):
    shutil.copytree(clip_folder, tmp_path / "videos")
    split = load_folder(tmp_path / "videos")
    before = describe(split)
    assert describe(split) == before

    def change_weights(model, processor):
        model.vision_model.embeddings.class_embedding.data[0] += 1  # frozen

    assert find_differences(before, describe(split, change_weights)) == {"weights": "the weights of the model"}
    before = describe(split)

    def change_pixels(model, processor):
        processor.image_processor.image_mean = [0.0, 0.0, 0.0]

    changed = find_differences(before, describe(split, change_pixels))
    assert list(changed) == ["processor.image_processor.image_mean"]
    assert changed["processor.image_processor.image_mean"].endswith(" → [0.0, 0.0, 0.0]")
    before = describe(split)
    path = split.videos["video"][0]
    shutil.copyfile(split.videos["video"][1], path)
    os.utime(path, (1, 1))
    with pytest.raises(DataError, match=r"Changed: the content of 1 video of test\. .*--overwrite_output_dir"):
        check_unchanged(tmp_path, before, describe(split))


def test_videos_as_bytes(clip_folder, tmp_path):
    clips = sorted((clip_folder / "red_circle").iterdir())

    def make(name, paths):
        rows = [{"path": "clip.mp4", "bytes": path.read_bytes()} for path in paths]
        folder = tmp_path / name
        folder.mkdir()
        features = datasets.Features({"video": datasets.Video(decode=False), "label": datasets.Value("string")})
        content = {"video": rows, "label": ["red circle"] * len(rows)}
        datasets.Dataset.from_dict(content, features).to_parquet(folder / "test.parquet")
        return describe_videos(load_hub_dataset(str(folder), split="test"))

    first, same, other = make("a", clips[:2]), make("b", clips[:2]), make("c", [clips[0], clips[2]])
    assert first == same and first != other
    assert list(find_differences(first, other)) == ["content"]


def test_frame_folders(tmp_path):
    frames = tmp_path / "videos" / "clap" / "a"
    frames.mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (8, 8)).save(frames / f"{number}.png")
    before = describe_videos(load_folder(tmp_path / "videos"))
    Image.new("RGB", (9, 8)).save(frames / "1.png")
    assert describe_videos(load_folder(tmp_path / "videos")) != before


def test_settings_of_a_dataset_tell_its_videos(clip_folder, tiny_folder):
    """`train` without the command compares them too."""
    processor, split = EZClipProcessor.from_pretrained(tiny_folder), load_folder(clip_folder)
    settings = [VideoDataset(own, processor).settings() for own in (split, split, split.select(2))]
    assert settings[0] == settings[1]
    assert {name.split(".")[0] for name in find_differences(settings[0], settings[2])} == {"videos of train"}
