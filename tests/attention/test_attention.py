"""Attention maps against independent implementations, and their pictures."""

import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

import av
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPVisionModel

from configuration_ezclip import PRESETS
from ezclip import EZClipConfig, EZClipModel, EZClipProcessor, VideoReadError
from ezclip.attention.figures import attention_figure, draw_attention, draw_temporal_attention
from ezclip.attention.maps import attention_maps, relevance_maps, temporal_attention
from ezclip.attention.overlay import write_overlay
from ezclip.attention.video_attention import describe_attention, look_at_video
from ezclip.cli.attention import main
from ezclip.cli.demo import word_tokenizer
from ezclip.errors import DataError, ModelError
from ezclip.systems.base import plain_clip
from ezclip.systems.loading import load_model
from ezclip.utils.synthetic_clips import write_video
from processing_ezclip import default_image_processor
from tests.helpers import WORDS, random_clip


T, H, W = 3, 32, 48  # frames, and their size: 2 x 3 patches
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
TEXT = {"vocab_size": 30, "max_position_embeddings": 16, "eos_token_id": 29}
SYSTEMS = [*PRESETS, "shallow"]
each_system = pytest.mark.parametrize("system", SYSTEMS)


def make_model(system: str = "ezclip", **vision) -> EZClipModel:
    """Return a model with uneven attention."""
    vision = {"image_size": 32, "patch_size": 16, "num_frames": T, "temporal_prompt_init_range": 1.0, **vision}
    if system == "shallow":
        system, vision["temporal_prompt"] = "ezclip", "shallow"
    config = EZClipConfig.from_preset(
        system, vision_config={**TOWER, **vision}, text_config={**TOWER, **TEXT}, projection_dim=16
    )
    torch.manual_seed(0)
    model = EZClipModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "q_proj.weight" in name or "k_proj.weight" in name or "up_proj" in name:
                parameter.normal_(std=0.5)
    return model


def make_pixels(batch: int = 1, height: int = H, width: int = W) -> torch.Tensor:
    return torch.randn(batch, T, 3, height, width, generator=torch.Generator().manual_seed(1))


def make_texts(count: int = 2) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(count, 16, generator=torch.Generator().manual_seed(2)), dim=-1)


def over_all_tokens(
    model: EZClipModel, blocks: list[torch.Tensor], temporal: list[torch.Tensor]
) -> list[torch.Tensor]:
    """Return the mean attention of each block as a matrix over the tokens of all frames."""
    matrices = []
    for number, block in enumerate(blocks):
        block = block.mean(dim=1)
        frames = len(block)
        length = 1 + 6 * (T // frames)
        matrix = torch.zeros(frames * length, frames * length, dtype=torch.float64)
        for t in range(frames):
            rows = slice(t * length, (t + 1) * length)
            matrix[rows, rows] += block[t, :length, :length]
            if block.shape[-1] > length:
                for s in range(frames):
                    share = temporal[number].mean(dim=1)[0, t, s] / length
                    matrix[rows, s * length : (s + 1) * length] += block[t, :length, -1:] * share
        matrices.append(matrix)
    return matrices


def record(model: EZClipModel, pixel_values: torch.Tensor):
    model.set_attn_implementation("eager")
    outputs = model.get_video_features(
        pixel_values, interpolate_pos_encoding=True, output_attentions=True, output_temporal_attentions=True
    )
    model.set_attn_implementation("sdpa")
    return outputs


def maps_of(matrix: torch.Tensor) -> np.ndarray:
    """Return the attention of the CLS tokens to the patches of each frame."""
    frames = T if len(matrix) % (7 * T) == 0 else 1
    length = len(matrix) // frames
    rows = matrix[::length].sum(dim=0).view(frames, length)
    return rows[:, 1:].reshape(1, T, 2, 3).detach().numpy()


@pytest.fixture(scope="module")
def clip_folder_of_transformers(tmp_path_factory):
    """A CLIP saved by transformers, with a tokenizer."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(3)
    config = CLIPConfig(
        vision_config={**TOWER, "image_size": 32, "patch_size": 16}, text_config={**TOWER, **TEXT}, projection_dim=16
    )
    CLIPModel(config).save_pretrained(folder)
    make_processor().tokenizer.save_pretrained(folder)
    return folder


def make_processor(image_size: int = 32) -> EZClipProcessor:
    words = [*WORDS, *(f"word{number}" for number in range(30 - len(word_tokenizer(WORDS))))]
    return EZClipProcessor(default_image_processor(image_size), word_tokenizer(words), num_frames=T)


# ---- Arrays ----


@pytest.mark.parametrize("width", [32, 48])
def test_plain_clip_matches_transformers(clip_folder_of_transformers, tmp_path, width):
    model = load_model(clip_folder_of_transformers, for_training=True, vision_config={"num_frames": T})
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_()  # as after training
    model.save_pretrained(tmp_path, trained_only=True)
    model = load_model(tmp_path)
    theirs = CLIPVisionModel.from_pretrained(clip_folder_of_transformers, attn_implementation="eager").eval()
    pixel_values = make_pixels(2, width=width)
    with torch.no_grad():
        attentions = theirs(
            pixel_values.flatten(0, 1), output_attentions=True, interpolate_pos_encoding=True
        ).attentions
    expected = attentions[-1][:, :, 0, 1:].mean(dim=1).view(2, T, 2, width // 16).numpy()
    found = attention_maps(plain_clip(model), pixel_values, interpolate_pos_encoding=True)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(attention_maps(model, pixel_values, interpolate_pos_encoding=True) - expected).max() > 1e-3


@each_system
def test_attention_maps(system):
    model, pixel_values = make_model(system), make_pixels()
    outputs = record(model, pixel_values)
    matrices = over_all_tokens(model, outputs.attentions, outputs.temporal_attentions)
    for matrix in matrices:
        torch.testing.assert_close(matrix.sum(dim=-1), torch.ones(len(matrix), dtype=torch.float64))

    last = attention_maps(model, pixel_values, interpolate_pos_encoding=True)
    cls_rows = outputs.attentions[-1].mean(dim=1)[:, 0, 1 : 1 + (6 * T if len(outputs.attentions[-1]) == 1 else 6)]
    np.testing.assert_allclose(last, cls_rows.detach().reshape(1, T, 2, 3).numpy(), atol=1e-6)

    rollout = torch.eye(len(matrices[0]), dtype=torch.float64)
    for matrix in matrices:
        rollout = (matrix + torch.eye(len(matrix))) / 2 @ rollout
    found = attention_maps(model, pixel_values, "rollout", interpolate_pos_encoding=True)
    np.testing.assert_allclose(found, maps_of(rollout), atol=1e-6)
    assert found.dtype == np.float32 and found.shape == (1, T, 2, 3)
    num_cls_tokens = 1 if system == "actionclip_joint" else T
    for maps in (last, found):
        assert (maps >= 0).all() and 0.1 < maps.sum() < num_cls_tokens


@each_system
def test_relevance_maps(system):
    model, pixel_values, texts = make_model(system), make_pixels(), make_texts()
    found = relevance_maps(model, pixel_values, texts, interpolate_pos_encoding=True)
    assert found.dtype == np.float32 and found.shape == (1, 2, T, 2, 3) and (found >= 0).all()
    for number, text in enumerate(texts):
        outputs = record(model, pixel_values.clone().requires_grad_())
        for weights in outputs.attentions:
            weights.retain_grad()
        score = model.logit_scale.exp() * torch.cosine_similarity(outputs.pooler_output[0], text, dim=0)
        score.backward()
        blocks = [(weights.grad * weights).clamp(min=0).detach() for weights in outputs.attentions]
        relevance = torch.eye(len(over_all_tokens(model, blocks[:1], outputs.temporal_attentions)[0])).double()
        for matrix in over_all_tokens(model, blocks, [w.detach() for w in outputs.temporal_attentions]):
            relevance = relevance + matrix @ relevance
        np.testing.assert_allclose(found[:, number], maps_of(relevance), rtol=1e-3, atol=1e-6)
    assert np.abs(found[:, 0] - found[:, 1]).max() > 1e-3 * found.max()


def test_temporal_attention():
    model, pixel_values = make_model(), make_pixels(2)
    with torch.no_grad():
        hidden = model.get_video_features(
            pixel_values, interpolate_pos_encoding=True, output_hidden_states=True
        ).hidden_states
    heads = temporal_attention(model, pixel_values, average_heads=False, interpolate_pos_encoding=True)
    assert heads.shape == (2, 3, 2, T, T)
    for number, layer in enumerate(model.vision_model.encoder.layers):
        with torch.no_grad():
            summaries = layer.layer_norm1(hidden[number].mean(dim=1).view(2, T, 32) + layer.temporal_prompt)
            query, key = (
                projection(summaries).view(2, T, 2, 16).transpose(1, 2)
                for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj)
            )
            expected = (query @ key.transpose(-1, -2) / 4).softmax(dim=-1)
        np.testing.assert_allclose(heads[:, number], expected.numpy(), atol=1e-5)
    means = temporal_attention(model, pixel_values, interpolate_pos_encoding=True)
    np.testing.assert_allclose(means, heads.mean(axis=2), atol=1e-6)
    np.testing.assert_allclose(means.sum(axis=-1), 1.0, atol=1e-5)
    assert np.abs(means - 1 / T).max() > 0.05


def test_temporal_attention_to_equal_frames():
    model = make_model()
    pixel_values = make_pixels(height=32, width=32)[:, :1].expand(-1, T, -1, -1, -1)
    assert np.abs(temporal_attention(model, pixel_values) - 1 / T).max() > 0.01
    with torch.no_grad():
        for layer in model.vision_model.encoder.layers:
            layer.temporal_prompt.zero_()
    np.testing.assert_allclose(temporal_attention(model, pixel_values), 1 / T, atol=1e-6)


def test_temporal_attention_needs_prompts():
    assert temporal_attention(make_model("shallow"), make_pixels(2, 32, 32)).shape == (2, 1, T, T)
    for system in set(PRESETS) - {"ezclip"}:
        with pytest.raises(ModelError, match="`temporal_prompt` .* 'none'"):
            temporal_attention(make_model(system), make_pixels(1, 32, 32))


def test_batch():
    model, pixel_values = make_model(), make_pixels(2, 32, 32)
    for look in (
        lambda pixels: attention_maps(model, pixels),
        lambda pixels: attention_maps(model, pixels, "rollout"),
        lambda pixels: relevance_maps(model, pixels, make_texts()),
        lambda pixels: temporal_attention(model, pixels),
    ):
        alone = np.concatenate([look(pixel_values[:1]), look(pixel_values[1:])])
        np.testing.assert_allclose(look(pixel_values), alone, rtol=1e-4, atol=1e-6)


def test_model_state_is_restored():
    model, pixel_values = make_model(), make_pixels(1, 32, 32)
    expected = relevance_maps(model, pixel_values, make_texts())
    model.train()
    model.text_model.eval()
    before = {name: module.training for name, module in model.named_modules()}
    with torch.inference_mode():
        inputs = pixel_values.clone(), make_texts().clone()
        np.testing.assert_allclose(relevance_maps(model, *inputs), expected, rtol=1e-5)
    temporal_attention(model, pixel_values)
    with pytest.raises(ValueError, match="frames"):
        attention_maps(model, pixel_values[:, :2])
    assert {name: module.training for name, module in model.named_modules()} == before
    assert model.vision_model.config._attn_implementation == model.config._attn_implementation == "sdpa"
    assert all(parameter.grad is None for parameter in model.parameters())


def test_threads():
    model, pixel_values = make_model(), make_pixels(1, 32, 32)
    expected = attention_maps(model, pixel_values, "rollout")
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: attention_maps(model, pixel_values, "rollout"), range(12)):
            np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert model.config._attn_implementation == "sdpa"


def test_plain_clip_shares_weights(clip_folder_of_transformers):
    model = load_model(clip_folder_of_transformers, for_training=True, vision_config={"num_frames": T})
    clip = plain_clip(model)
    assert {p.data_ptr() for p in clip.parameters()} <= {p.data_ptr() for p in model.parameters()}
    assert not any("prompt" in name or "adapter" in name for name, _ in clip.named_parameters())
    theirs = CLIPModel.from_pretrained(clip_folder_of_transformers).eval()
    tokens = torch.tensor([[28, 3, 4, 29]])
    with torch.no_grad():
        torch.testing.assert_close(
            clip.get_text_features(tokens).pooler_output, theirs.get_text_features(tokens).pooler_output
        )
    assert model.config.vision_config.temporal_prompt == "deep"


def test_bad_arguments():
    model, pixel_values = make_model(), make_pixels(1, 32, 32)
    with pytest.raises(ValueError, match="`method` must be one of"):
        attention_maps(model, pixel_values, "flow")
    for texts in (torch.zeros(0, 16), torch.zeros(16), torch.zeros(2, 5)):
        with pytest.raises(DataError, match=r"shape \(classes, 16\)"):
            relevance_maps(model, pixel_values, texts)


# ---- Pictures ----


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """1.5 s of noise at 8 frames per second, wider than high."""
    path = tmp_path_factory.mktemp("video") / "noise <b> $1$.mp4"
    write_video(path, random_clip(5, num_frames=12, height=48, width=96))
    return path


def test_frames_and_crop(video):
    attention = look_at_video(video, make_model(), make_processor())
    assert attention.metadata.frames_indices == [1, 5, 9] and attention.frames.shape == (T, 48, 96, 3)
    # Resized to 36 x 72, cropped to 32 x 32
    assert attention.crop == pytest.approx((20 / 0.75, 2 / 0.75, 52 / 0.75, 34 / 0.75))
    assert attention.rows[0].covered == pytest.approx(attention.crop)
    assert [row.name for row in attention.rows] == ["plain CLIP", "model"]
    pixel_values = make_processor()(videos=video, return_tensors="pt").pixel_values
    np.testing.assert_array_equal(attention.rows[1].maps, attention_maps(make_model(), pixel_values)[0])
    np.testing.assert_array_equal(attention.temporal, temporal_attention(make_model(), pixel_values)[0])
    # 11 patches of 12 pixels cover 132 of 140 pixels.
    model = make_model("clip", image_size=140, patch_size=12)
    row = look_at_video(video, model, make_processor(140)).rows[0]
    assert row.maps.shape == (T, 11, 11)
    height, width = row.covered[3] - row.covered[1], row.covered[2] - row.covered[0]
    assert height == pytest.approx(width) == pytest.approx(132 / 160 * 48)


def test_labels(video):
    model, labels = make_model(), ["red circle", "green square"]
    attention = look_at_video(video, model, make_processor(), labels, templates="a {}")
    assert [(row.name, row.label) for row in attention.rows] == [
        (name, label) for label in labels for name in ("plain CLIP", "model")
    ]
    assert sum(row.probability for row in attention.rows[1::2]) == pytest.approx(1)
    words = describe_attention(attention).splitlines()
    assert len(words) == 5 and words[2].startswith(
        f"model ({attention.rows[1].probability:.0%}), red circle: most at "
    )
    assert look_at_video(video, model, make_processor(), "red circle").rows[0].probability is None


def test_baseline(video):
    processor = make_processor()
    assert [row.name for row in look_at_video(video, make_model("vificlip"), processor).rows] == ["model"]
    attention = look_at_video(video, make_model("actionclip"), processor)
    assert [row.name for row in attention.rows] == ["its CLIP, trained", "model"] and attention.temporal is None
    other = make_model("clip", patch_size=8), make_processor()
    attention = look_at_video(video, make_model(), processor, baseline=other)
    assert [row.maps.shape for row in attention.rows] == [(T, 4, 4), (T, 2, 2)]
    with pytest.raises(ModelError, match="baseline takes 5 frames of a video and the model 3"):
        look_at_video(video, make_model(), processor, baseline=(make_model(num_frames=5), processor))


def test_light_is_high(video):
    attention = look_at_video(video, make_model(), make_processor())
    for row in attention.rows:
        row.maps = np.zeros((T, 2, 2), dtype=np.float32)
        row.maps[1, 0, 1] = 0.2
    picture = draw_attention(attention)
    grey = np.asarray(picture.convert("L"), dtype=float)
    # The second column, in the row of the model
    left, top = 260 + 186, 75 + 2 * 186
    tile = grey[top : top + 180, left : left + 180]
    quarters = {
        (y, x): tile[90 * y + 20 : 90 * y + 70, 90 * x + 20 : 90 * x + 70].mean() for y in (0, 1) for x in (0, 1)
    }
    light = quarters.pop((0, 1))
    assert light > 120 and light > 2 * max(quarters.values())
    assert grey[top : top + 180, left - 186 : left - 6].mean() < 60


def test_unusual_labels_and_many_frames(video):
    labels = ["赤い $x$", "<script>alert(1)</script> " + "long " * 40]
    model = make_model(num_frames=20)
    processor = make_processor()
    processor.num_frames = 20
    picture = attention_figure(video, model, processor, labels, templates="a {}")
    assert picture.mode == "RGB" and picture.size == (260 + 12 * 186 + 6, 150 + 5 * 186)
    attention = look_at_video(video, model, processor)
    assert draw_temporal_attention(attention.temporal).size[0] > 500
    # Uniform maps have no scale.
    attention.rows[0].maps = np.zeros_like(attention.rows[0].maps)
    draw_attention(attention)


def frames_of(path) -> list[tuple[float, np.ndarray]]:
    with av.open(str(path)) as container:
        return [(frame.time, frame.to_ndarray(format="gray")) for frame in container.decode(video=0)]


def test_overlay(video, tmp_path):
    attention = look_at_video(video, make_model(), make_processor())
    for row in attention.rows:
        row.maps = np.zeros((T, 2, 2), dtype=np.float32)
        row.maps[1] = 1.0
    write_overlay(attention, video, tmp_path / "overlay.mp4")
    frames = frames_of(tmp_path / "overlay.mp4")
    assert [time for time, _ in frames] == pytest.approx([number / 8 for number in range(12)], abs=1e-3)
    assert frames[0][1].shape == (56 + 160, 2 * 320)
    middles = [image[56 + 60 : 56 + 100, 320 + 140 : 320 + 180].mean() for _, image in frames]
    # Frames 1, 5 and 9 were sampled. On a tie the first is nearest.
    assert [middle > 128 for middle in middles] == [3 < number <= 7 for number in range(12)]
    assert max(image[56:, 330:380].mean() for _, image in frames) < 60  # outside of the crop


def test_overlay_of_part_and_untimed_frames(video, tmp_path):
    attention = look_at_video(video, make_model(), make_processor(), start=0.5, end=1.0)
    write_overlay(attention, video, tmp_path / "part.mp4")
    assert [time for time, _ in frames_of(tmp_path / "part.mp4")] == pytest.approx([0, 0.125, 0.25, 0.375], abs=1e-3)
    clip = random_clip(6, num_frames=5, height=33, width=41)
    attention = look_at_video(clip, make_model("clip"), make_processor())
    assert attention.when(0) == "frame 0" and "frame" in describe_attention(attention)
    write_overlay(attention, clip, tmp_path / "frames.mp4")
    frames = frames_of(tmp_path / "frames.mp4")
    assert [time for time, _ in frames] == pytest.approx([0, 0.04, 0.08, 0.12, 0.16], abs=1e-3)
    assert frames[0][1].shape == (56 + 258, 320)


def test_overlay_in_chunks(video, tmp_path, monkeypatch):
    attention = look_at_video(video, make_model(), make_processor())
    write_overlay(attention, video, tmp_path / "at_once.mp4")
    monkeypatch.setattr("ezclip.attention.overlay.MAX_CHUNK_BYTES", 5 * 48 * 96 * 3)
    write_overlay(attention, video, tmp_path / "in_parts.mp4")
    for (time, image), (other_time, other) in zip(
        frames_of(tmp_path / "at_once.mp4"), frames_of(tmp_path / "in_parts.mp4"), strict=True
    ):
        assert time == other_time and (image == other).all()


@pytest.mark.parametrize(
    ("labels", "method", "message"),
    [
        (None, "relevance", "give labels"),
        (["red"], "rollout", "same for all labels"),
        (["red"], "last", "same for all labels"),
        ([f"word{number}" for number in range(7)], None, "at most 6 entries, got 7"),
        (None, "flow", "`method` .* 'flow'"),
        (["red", "red"], None, "repeated"),
    ],
)
def test_bad_requests(video, labels, method, message):
    with pytest.raises(ValueError, match=message):
        look_at_video(video, make_model(), make_processor(), labels, method)


def test_without_matplotlib(video, monkeypatch):
    attention = look_at_video(video, make_model(), make_processor())
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="pip install"):
        draw_temporal_attention(attention.temporal)


def test_missing_video(tmp_path):
    with pytest.raises(VideoReadError, match="does not exist"):
        look_at_video(tmp_path / "none.mp4", make_model(), make_processor())


# ---- Command ----


def run_command(tiny_folder, video, *options: str):
    main([str(video), "--model_name_or_path", str(tiny_folder), "--use_cpu", *options])


def test_command_output_dir(tiny_folder, video, clip_folder_of_transformers, tmp_path, capsys):
    options = ["--labels", "red circle, green", "--templates", "a {}", "--output_dir", str(tmp_path)]
    run_command(tiny_folder, video, *options, "--baseline", str(clip_folder_of_transformers))
    names = ["attention.png", "attention.mp4", "temporal_attention.png"]
    printed = capsys.readouterr().out
    assert all(str(tmp_path / name) in printed for name in names)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    with Image.open(tmp_path / "attention.png") as picture:
        assert "baseline (" in picture.text["Description"] and picture.text["Description"] in printed
    assert len(frames_of(tmp_path / "attention.mp4")) == 12


def test_command_on_a_folder_of_videos(video, tmp_path):
    shutil.copy(video, tmp_path)
    argv = [str(tmp_path), "--model_name_or_path", "no/model", "--use_cpu", "--output_dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="is a folder of 1 video"):  # before the model is loaded
        main(argv)


def test_command_output_file(tiny_folder, video, tmp_path):
    run_command(tiny_folder, video, "--method", "rollout", "--output_file", str(tmp_path / "new" / "map.PNG"))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["map.PNG"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "relevance"], "give labels"),
        (["--labels", *"abcdefg"], "at most 6"),
        (["--baseline", "nowhere"], "No model at 'nowhere'"),
        (["--start", "99"], "is over at"),
        (["--templates", "no place", "--labels", "red"], "no place"),
    ],
)
def test_command_errors(tiny_folder, video, tmp_path, options, message):
    with pytest.raises(SystemExit) as stop:
        run_command(tiny_folder, video, *options, "--output_dir", str(tmp_path / "out"))
    assert str(stop.value).startswith("ezclip attention: ") and message in str(stop.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output_file", "map.jpg"], "--output_file must end in .png or .mp4"),
        ([], "One of --output_dir, --output_file must be given"),
    ],
)
def test_command_needs_output(tmp_path, capsys, options, message):
    with pytest.raises(SystemExit) as stop:
        run_command(tmp_path, "none.mp4", *options)
    assert stop.value.code == 2 and message in capsys.readouterr().err
