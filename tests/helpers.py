"""What the tests share: reference data beside the repository, small models and videos, and runs of the script."""

import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import CLIPConfig, CLIPModel

import run_video_zeroshot
from ezclip import EZClipConfig, EZClipModel
from ezclip.cli.demo import word_tokenizer


ROOT = Path(__file__).resolve().parent.parent


SHARED = ROOT.parent / "shared"


def shared_path(*parts: str) -> Path:
    """A path in the reference data; the test is skipped where it is absent."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs the reference data ../shared/{'/'.join(parts)}, which is not here")
    return path


WORDS = ["a", "photo", "of", "red", "green", "blue", "circle", "square", "moving", "left", "right"]
VOCAB_SIZE = len(word_tokenizer(WORDS))


def tiny_config(vocab_size: int = 30, vision_config: dict | None = None, **kwargs) -> EZClipConfig:
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return EZClipConfig(
        vision_config={**tower, "image_size": 32, "patch_size": 16, **(vision_config or {})},
        text_config={**tower, "vocab_size": vocab_size, "max_position_embeddings": 16, "eos_token_id": vocab_size - 1},
        projection_dim=16,
        **kwargs,
    )


def random_clip(seed: int, num_frames: int = 12, height: int = 48, width: int = 64) -> np.ndarray:
    """Smooth coloured noise that a codec keeps nearly as it is, different in every frame: (T, H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    corners = torch.from_numpy(rng.uniform(0, 255, (num_frames, 3, 3, 4)).astype(np.float32))
    frames = torch.nn.functional.interpolate(corners, size=(height, width), mode="bilinear")
    return frames.round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()


def make_model(vision_config=None, seed=0, **kwargs):
    torch.manual_seed(seed)
    model = EZClipModel(tiny_config(vision_config=vision_config, **kwargs))
    with torch.no_grad():  # fresh adapters and embeddings do nothing
        for name, parameter in model.named_parameters():
            if "adapter" in name or "temporal_embedding" in name:
                parameter.normal_(std=0.3)
    return model.eval()


def make_inputs(batch_size=3, num_frames=8, seed=1):
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(1, 28, (batch_size, 7), generator=generator)
    input_ids[:, -1] = 29
    return {
        "pixel_values": torch.randn(batch_size, num_frames, 3, 32, 32, generator=generator),
        "input_ids": input_ids,
    }


def make_clip(folder, seed=0, vocab_size=30):
    """A plain CLIP of the tiny model's sizes, saved."""
    config = tiny_config(vocab_size).to_dict()
    names = {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"}
    names |= {"image_size", "patch_size", "max_position_embeddings", "eos_token_id"}
    towers = {t: {k: v for k, v in config[t].items() if k in names} for t in ("vision_config", "text_config")}
    torch.manual_seed(seed)
    clip = CLIPModel(CLIPConfig(**towers, projection_dim=16)).eval()
    clip.save_pretrained(folder)
    return clip


def train(model, seed=0):
    """Change the weights that require gradients, as training does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def edit_config(folder, **fields):
    """Change fields of a saved configuration."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


# The clips of ../shared/clips whose action is known
ACTION_CLIPS = {
    "ROCm_vision__v_SoccerJuggling_g23_c01.avi": "SoccerJuggling",
    "ROCm_vision__v_SoccerJuggling_g24_c01.avi": "SoccerJuggling",
    "ROCm_vision__SchoolRulesHowTheyHelpUs_wave_f_nm_np1_ba_med_0.avi": "wave",
    "ROCm_vision__RATRACE_wave_f_nm_np1_fr_goo_37.avi": "wave",
    "ROCm_vision__hmdb51_Turnk_r_Pippi_Michel_cartwheel_f_cm_np2_le_med_6.avi": "cartwheel",
    "open-mmlab_mmaction2__demo.mp4": "arm wrestling",
    "OpenGVLab_Ask-Anything__making_cake.mp4": "making a cake",
    "OpenGVLab_Ask-Anything__yoga.mp4": "yoga",
    "yysijie_st-gcn__ta_chi.mp4": "tai chi",
}


def run(*argv) -> Path:
    """Run the script in this process; returns its output folder."""
    argv = ["--use_cpu", *map(str, argv)]
    run_video_zeroshot.main(argv)
    return Path(argv[argv.index("--output_dir") + 1])


def run_again(*argv) -> Path:
    """Run the script once more in this process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return run(*argv)


def refusal(*argv) -> str:
    """What the script says when data, model or folder cannot be used."""
    with pytest.raises(SystemExit) as caught:
        run_again(*argv)
    return str(caught.value.code)


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def error_of(capsys, *argv) -> str:
    """What the script says when it refuses."""
    with pytest.raises(SystemExit) as caught:
        run(*argv)
    assert caught.value.code not in (0, None)
    return f"{caught.value.code} {capsys.readouterr().err}"


def assert_same_predictions(actual: list[dict], expected: list[dict]):
    """The same labels in the same order with the same scores, by file name."""

    def by_name(lines):
        return {Path(line["video"]).name: line for line in lines}

    actual, expected = by_name(actual), by_name(expected)
    assert set(actual) == set(expected)
    for name, line in expected.items():
        assert actual[name]["label"] == line["label"]
        scores = {p["label"]: p["score"] for p in actual[name]["predictions"]}
        assert scores == pytest.approx({p["label"]: p["score"] for p in line["predictions"]}, abs=1e-5)


def cut_off(path, source):
    """A copy without its second half, of which the first half can be decoded."""
    with av.open(str(path), "w", format="matroska") as copy, av.open(str(source)) as original:
        stream = copy.add_stream_from_template(original.streams.video[0])
        for packet in original.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                copy.mux(packet)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def enable_checkpointing(model):
    """Enable gradient checkpointing, by the name that the installed transformers does not warn about."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()
