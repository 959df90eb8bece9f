"""Pixels, prompts and tokens."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoProcessor, AutoTokenizer, CLIPImageProcessorPil

from ezclip import EZClipProcessor
from ezclip.cli.demo import word_tokenizer
from ezclip.systems.bpe_tokenizer import load_bpe_tokenizer
from ezclip.utils.synthetic_clips import write_video
from processing_ezclip import TEMPLATES, default_image_processor, label_key, label_to_words
from tests.helpers import WORDS, random_clip, shared_path, tiny_config
from video_ezclip import tear_frame_indices, uniform_frame_indices


def test_pixels_match_published():
    meta = json.loads(shared_path("golden", "aux", "preprocess_val.json").read_text(encoding="utf-8"))
    golden = load_file(shared_path("golden", "aux", "preprocess_val.safetensors"))
    for case in meta["cases"]:
        size, crop = case["scale_size"], case["input_size"]
        image_processor = default_image_processor()
        image_processor.size, image_processor.crop_size = {"shortest_edge": size}, {"height": crop, "width": crop}
        processor = EZClipProcessor(image_processor)
        frames = golden[f"{case['index']}.frames_uint8"].numpy()
        pixels = processor.frames_to_pixels(frames)
        if case["subsampled"]:
            pixels = pixels[..., ::8, ::8]
        torch.testing.assert_close(pixels, golden[f"{case['index']}.pixel_values"], atol=1e-5, rtol=0)


def test_defaults():
    processor = EZClipProcessor()
    assert processor.image_processor.size["shortest_edge"] == 256
    assert processor.image_processor.crop_size["height"] == processor.image_processor.crop_size["width"] == 224
    assert processor.num_frames == 8
    pixel_values = processor(videos=random_clip(0), return_tensors="pt").pixel_values
    assert pixel_values.shape == (1, 8, 3, 224, 224) and pixel_values.dtype == torch.float32


def test_save_and_load(tmp_path, tiny_folder):
    processor = EZClipProcessor(
        default_image_processor(96), word_tokenizer(WORDS), num_frames=5, split_camel_case=False, sampling="tear"
    )
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "processor_config.json").read_text(encoding="utf-8"))
    assert saved["image_processor"]["size"]["shortest_edge"] == 109
    assert saved["image_processor"]["crop_size"] == {"height": 96, "width": 96}
    loaded = AutoProcessor.from_pretrained(tmp_path, trust_remote_code=True)
    assert (loaded.num_frames, loaded.split_camel_case, loaded.sampling) == (5, False, "tear")
    inputs = [p(videos=random_clip(0), text="a red circle", return_tensors="pt") for p in (processor, loaded)]
    assert all(torch.equal(inputs[0][name], inputs[1][name]) for name in ("pixel_values", "input_ids"))
    assert type(AutoProcessor.from_pretrained(tiny_folder)) is EZClipProcessor


def test_videos_and_texts(tiny_folder):
    processor = EZClipProcessor.from_pretrained(tiny_folder)
    clips = [random_clip(seed, num_frames=seed + 1) for seed in range(3)]
    inputs = processor(videos=clips, text=["a red circle", "a photo of a green square moving"], return_tensors="pt")
    assert set(inputs) == {"pixel_values", "input_ids", "attention_mask"}
    assert inputs.pixel_values.shape == (3, 8, 3, 32, 32)
    assert inputs.input_ids.shape == (2, 9)  # padded to the longest
    assert inputs.attention_mask.sum(dim=1).tolist() == [5, 9]
    alone = processor(videos=clips[1], return_tensors="pt").pixel_values
    assert torch.equal(alone[0], inputs.pixel_values[1])
    frames = [Image.fromarray(frame) for frame in clips[1]]
    assert torch.equal(processor(videos=frames, return_tensors="pt").pixel_values, alone)
    assert isinstance(processor(videos=clips[0], return_tensors="np").pixel_values, np.ndarray)


@pytest.mark.parametrize("views", [{}, {"num_clips": 2, "num_crops": 3}])
def test_do_normalize(tiny_folder, views):
    processor = EZClipProcessor.from_pretrained(tiny_folder)
    clips = [random_clip(0), random_clip(1)]
    frames = processor(videos=clips, do_normalize=False, return_tensors="pt", **views).pixel_values
    pixels = processor(videos=clips, return_tensors="pt", **views).pixel_values
    assert frames.dtype == torch.uint8 and frames.shape == (*pixels.shape[:-3], 32, 32, 3)
    assert torch.equal(processor.normalize(frames), pixels)
    # By the definition
    options = processor.image_processor
    expected = (frames.double() / 255 - torch.tensor(options.image_mean)) / torch.tensor(options.image_std)
    torch.testing.assert_close(pixels.double(), expected.movedim(-1, -3), atol=1e-6, rtol=0)
    options.do_rescale = options.do_normalize = False
    assert torch.equal(processor.normalize(frames), frames.movedim(-1, -3).float())


def test_sample(tiny_folder):
    processor = EZClipProcessor.from_pretrained(tiny_folder)
    clip = random_clip(0)
    chosen = processor(
        videos=clip, sample=lambda total_frames: [total_frames - 1, 0], return_tensors="pt"
    ).pixel_values
    assert torch.equal(chosen[0], processor.frames_to_pixels(clip[[11, 0]]))


def test_clips_and_crops(tiny_folder):
    processor = EZClipProcessor.from_pretrained(tiny_folder)
    for height, width in ((48, 80), (80, 48)):
        clip = random_clip(0, 40, height, width)
        views = processor(videos=[clip, clip], num_clips=4, num_crops=3, return_tensors="pt").pixel_values
        assert views.shape == (2, 12, 8, 3, 32, 32)
        indices = uniform_frame_indices(40, 8, num_clips=4)
        for k in range(4):
            clip_k = clip[indices[8 * k : 8 * (k + 1)]]
            assert torch.equal(views[0, 3 * k + 1], processor.frames_to_pixels(clip_k))  # the centre
            scaled = [
                np.asarray(Image.fromarray(f).resize((60, 36) if width > height else (36, 60), 3)) for f in clip_k
            ]
            for crop, offset in ((0, 0), (2, 60 - 32)):
                top, left = (2, offset) if width > height else (offset, 2)
                expected = processor.normalize(np.stack(scaled)[:, top : top + 32, left : left + 32])
                assert torch.equal(views[0, 3 * k + crop], expected)
    one = processor(videos=clip, num_crops=3, return_tensors="pt").pixel_values
    assert one.shape == (1, 3, 8, 3, 32, 32)


def test_tear_sampling():
    processor = EZClipProcessor(num_frames=6, sampling="tear")
    clip = random_clip(0, num_frames=21)
    metadata = processor(videos=clip, num_frames=5, return_metadata=True).video_metadata[0]
    assert metadata.frames_indices == tear_frame_indices(21, 5) != uniform_frame_indices(21, 5)
    assert len(processor(videos=clip).pixel_values[0]) == 6
    with pytest.raises(ValueError, match="`num_clips` .* got 2"):
        processor(videos=clip, num_clips=2)
    with pytest.raises(ValueError, match="`sampling` .* 'dense'"):
        EZClipProcessor(sampling="dense")


def test_windows_rates_and_metadata(tiny_folder, tmp_path):
    processor = EZClipProcessor.from_pretrained(tiny_folder)
    write_video(tmp_path / "a.mp4", random_clip(0, num_frames=40))  # 5 seconds
    inputs = processor(
        videos=tmp_path / "a.mp4", start=1.0, end=3.0, num_frames=4, return_metadata=True, return_tensors="pt"
    )
    (metadata,) = inputs.video_metadata
    assert metadata.frames_indices == [8 + i for i in uniform_frame_indices(16, 4)]
    assert metadata.timestamps == [index / 8 for index in metadata.frames_indices]
    assert (metadata.fps, metadata.total_num_frames, metadata.duration) == (8.0, 40, 5.0)
    inputs = processor(videos=tmp_path / "a.mp4", fps=2, return_metadata=True, return_tensors="pt")
    assert inputs.video_metadata[0].timestamps == [i / 2 for i in range(10)]
    assert inputs.pixel_values.shape == (1, 10, 3, 32, 32)
    assert "video_metadata" not in processor(videos=tmp_path / "a.mp4", return_tensors="pt")


def test_contradicting_arguments(tiny_folder, tmp_path):
    processor = EZClipProcessor.from_pretrained(tiny_folder)
    clip = random_clip(0)
    with pytest.raises(ValueError, match="`sample` and `fps` .* `num_clips`"):
        processor(videos=clip, sample=range, num_clips=2)
    with pytest.raises(ValueError, match="`num_crops` .* got 2"):
        processor(videos=clip, num_crops=2)
    for name, frames in (("a", 16), ("b", 40)):
        write_video(tmp_path / f"{name}.mp4", random_clip(0, num_frames=frames))
    with pytest.raises(ValueError, match=r"\[4, 10\]"):
        processor(videos=[tmp_path / "a.mp4", tmp_path / "b.mp4"], fps=2)


def test_bad_calls(tiny_folder):
    with pytest.raises(ValueError, match="`videos`, `text`, or both"):
        EZClipProcessor()()
    with pytest.raises(ValueError, match="`videos` .* empty"):
        EZClipProcessor()(videos=[])
    with pytest.raises(TypeError, match="num_frams"):
        EZClipProcessor()(videos=random_clip(0), num_frams=3)
    with pytest.raises(ValueError, match="`num_frames` .* got 0"):
        EZClipProcessor()(videos=random_clip(0), num_frames=0)
    with pytest.raises(ValueError, match="`text` .* empty"):
        EZClipProcessor.from_pretrained(tiny_folder)(text=[])
    with pytest.raises(ValueError, match="tokenizer"):
        EZClipProcessor()(text="a red circle")
    with pytest.raises(ValueError, match="tokenizer"):
        EZClipProcessor().save_pretrained("nowhere")
    with pytest.raises(ValueError, match="`num_frames`"):
        EZClipProcessor(num_frames=0)
    small = default_image_processor()
    small.size = {"shortest_edge": 200}
    with pytest.raises(ValueError, match="`crop_size` .* 200, got 224 x 224"):
        EZClipProcessor(small)(videos=random_clip(0))
    with pytest.raises(ValueError, match="`do_resize` and `do_center_crop`"):
        EZClipProcessor(CLIPImageProcessorPil(do_resize=False))(videos=random_clip(0))


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("ApplyEyeMakeup", "Apply Eye Makeup"),
        ("brush_hair", "brush hair"),
        ("TaiChi", "Tai Chi"),
        ("YoYo", "Yo Yo"),
        ("playing NBA2K", "playing NBA2K"),
        ("HTMLPage", "HTML Page"),
        ("tai  chi", "tai chi"),
    ],
)
def test_label_to_words(label, words):
    assert label_to_words(label) == words
    assert label_key(label) == label_key(words)


def test_prompts(tiny_folder):
    processor = EZClipProcessor.from_pretrained(tiny_folder)
    prompts = processor.get_prompts(["ApplyEyeMakeup", "brush_hair"])
    assert len(prompts) == 2 and all(len(texts) == 1 and len(texts[0]) == 16 for texts in prompts)
    assert prompts[0][0][:2] == ["a photo of action Apply Eye Makeup", "a picture of action Apply Eye Makeup"]
    assert prompts[1][0][3] == "brush hair, an action"
    assert processor.get_prompts(["wave"], "he likes to {}") == [[["he likes to wave"]]]
    assert processor.get_prompts(["wave", "run"], ["{}", "to {}"]) == [[["wave", "to wave"]], [["run", "to run"]]]
    assert processor.get_prompts(["wave"], "{}", include_label=True, input_conditioning=True) == [[["wave"]]]
    processor.split_camel_case = False
    assert processor.get_prompts(["ApplyEyeMakeup_now"], "{}") == [[["ApplyEyeMakeup now"]]]


def test_prompts_from_descriptions():
    processor, labels = EZClipProcessor(), ["ApplyEyeMakeup", "brush hair"]
    descriptions = {"Apply Eye Makeup": "someone paints {}", "Brush-Hair": ["someone combs", "hair"], "other": "?"}
    assert processor.get_prompts(labels, None, descriptions) == [
        [["someone paints {}"]],
        [["someone combs"], ["hair"]],
    ]
    assert processor.get_prompts(labels, ["a {}", "the {}"], descriptions)[1] == [
        ["a someone combs", "the someone combs"],
        ["a hair", "the hair"],
    ]
    assert processor.get_prompts(labels, "a {}", descriptions, include_label=True, input_conditioning=True) == [
        [["a Apply Eye Makeup"], ["a Apply Eye Makeup someone paints {}"]],
        [["a brush hair"], ["a brush hair someone combs"], ["a brush hair hair"]],
    ]
    # The argument is not changed.
    assert descriptions["Brush-Hair"] == ["someone combs", "hair"]


def test_templates_match_published():
    meta = json.loads(shared_path("golden", "e2e_clips_8f", "meta.json").read_text(encoding="utf-8"))
    assert list(TEMPLATES) == meta["templates"]
    shallow = json.loads(shared_path("golden", "ezclip_shallow_4f", "meta.json").read_text(encoding="utf-8"))
    prompts = EZClipProcessor(split_camel_case=False).get_prompts(shallow["class_names"])
    assert [texts[0][i] for i in range(len(TEMPLATES)) for texts in prompts] == shallow["prompts"]


def test_bad_prompts():
    processor = EZClipProcessor()
    with pytest.raises(ValueError, match="one {}.* got 'a video'"):
        processor.get_prompts(["wave"], "a video")
    with pytest.raises(ValueError, match="`templates` .* empty"):
        processor.get_prompts(["wave"], [])
    with pytest.raises(ValueError, match=r"1 of 2 classes have no description: 'wave'\. Add them"):
        processor.get_prompts(["wave", "run"], descriptions={"run": "fast"})
    with pytest.raises(ValueError, match="'run' and 'RUN'"):
        processor.get_prompts(["run"], descriptions={"run": "fast", "RUN": "slow"})
    same = {"run": "fast", "RUN": ["fast"]}
    assert processor.get_prompts(["run"], descriptions=same) == [[["fast"]]]
    for empty in ([], "", ["fast", " "], [3], None):
        with pytest.raises(ValueError, match="'run' must be a text"):
            processor.get_prompts(["run"], descriptions={"run": empty})


def test_missing_descriptions_name_the_nearest():
    labels = [f"class {number}" for number in range(40)] + ["playing NBA2K", "sword_exercise", "sword"]
    descriptions = {"playing NBA 2 K!": "x", "Sword Exercises": "x", "sword": "x", "draw sword": "x"}
    with pytest.raises(ValueError) as caught:
        EZClipProcessor().get_prompts(labels, descriptions=descriptions)
    message = str(caught.value)
    assert message.startswith("41 of 43 classes have no description: 'class 0', 'class 1', ")
    assert "'class 39', 'sword_exercise' (nearest: 'Sword Exercises'). Add them" in message


def test_truncation_warning(tiny_folder, caplog, monkeypatch):
    from transformers.utils import logging

    monkeypatch.setattr(logging.get_logger("ezclip"), "propagate", True)
    processor = EZClipProcessor.from_pretrained(tiny_folder)
    eos = processor.tokenizer.eos_token_id
    with caplog.at_level("WARNING"):
        inputs = processor(text=["red " * 14, "red " * 15, "red " * 40], return_tensors="pt")
    assert inputs.input_ids.shape == (3, tiny_config().text_config.max_position_embeddings)
    assert inputs.input_ids[:, -1].tolist() == [eos] * 3
    assert "2 of 3 texts" in caplog.text and "16 tokens" in caplog.text and "'red red" in caplog.text
    caplog.clear()
    cut = processor(text=["red " * 14, "red " * 15, "red " * 50], truncation=True, return_tensors="pt")
    assert torch.equal(cut.input_ids, inputs.input_ids) and caplog.text == ""


def test_token_ids_match_published(tmp_path):
    golden = json.loads(shared_path("golden", "aux", "tokenization.json").read_text(encoding="utf-8"))
    tokenizer = load_bpe_tokenizer(shared_path("tokenizer", "bpe_simple_vocab_16e6.txt.gz"))
    assert len(tokenizer) == 49408
    tokenizer.save_pretrained(tmp_path)
    for loaded in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert loaded(golden["texts"])["input_ids"] == golden["token_ids"]
        assert loaded.model_max_length == 77
        ids = loaded("a café, someone's dog")["input_ids"]
        assert loaded.decode(ids, skip_special_tokens=True).strip() == "a café , someone 's dog"


@pytest.mark.parametrize("content", [b"#version\na b\n", b"\x1f\x8bbroken", b"\xff\xfe"])
def test_bad_bpe_file(tmp_path, content):
    path = tmp_path / "merges.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"merges.txt .* bpe_simple_vocab_16e6.txt.gz"):
        load_bpe_tokenizer(path)
