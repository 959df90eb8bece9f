"""Training in `transformers.Trainer`: the example of the documentation, and what its arguments do."""

import re

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainingArguments

from ezclip import EZClipModel, EZClipProcessor
from ezclip.utils.synthetic_clips import write_video
from tests.helpers import ROOT, tiny_config


@pytest.fixture(scope="module")
def finished(tiny_folder, tmp_path_factory):
    """The names that the example leaves, run as it stands in the document but for its paths, sizes and rate."""
    root = tmp_path_factory.mktemp("trainer")
    rng = np.random.default_rng(0)
    for split, count in {"train": 4, "test": 3}.items():
        # Bright or dark: the frozen weights are random, and see little more.
        for name, darkest in {"red circle": 200, "green square": 0}.items():
            for clip in range(count):
                path = root / split / name / f"{clip}.mp4"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_video(path, rng.integers(darkest, darkest + 56, (8, 48, 48, 3), dtype=np.uint8))
    (block,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "training_with_trainer.md").read_text(encoding="utf-8"), re.DOTALL
    )
    values = {
        "MODEL = ": str(tiny_folder),
        "TRAIN_DIR = ": str(root / "train"),
        "EVAL_DIR = ": str(root / "test"),
        "OUTPUT_DIR = ": str(root / "out"),
        "    num_train_epochs=": 12,
        "    per_device_train_batch_size=": 4,
        "    per_device_eval_batch_size=": 4,
        "    learning_rate=": 2e-2,
        "    logging_steps=": 2,
        "    seed=": 3,
    }
    for name, value in values.items():
        block, count = re.subn(rf"(?m)^({name}).*?(,?)$", rf"\g<1>{value!r}\g<2>", block)
        assert count == 1, name
    block, count = re.subn(r"(?m)^(args = TrainingArguments\()$", r"\1\n    use_cpu=True, report_to='none',", block)
    assert count == 1
    names = {"__name__": "example"}
    exec(compile(block, "training_with_trainer.md", "exec"), names)
    return names


def test_the_example_learns(finished):
    history = finished["trainer"].state.log_history
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert len(losses) == 12
    assert sum(losses[-3:]) / 3 < 0.7 * losses[0]
    accuracies = [entry["eval_top1"] for entry in history if "eval_top1" in entry]
    assert accuracies[0] < 0.7 and accuracies[-1] == 1.0
    # Frames, crops and texts were drawn anew for each epoch.
    assert finished["trainer"].train_dataset.epoch == 11


def test_the_example_counts_each_video_once(finished):
    predictions, model = finished["predictions"], finished["trainer"].model
    assert predictions.predictions.shape == (6, model.config.projection_dim)
    assert predictions.label_ids.tolist() == [0, 0, 0, 1, 1, 1]  # "green square" is the first class
    bank = finished["ClassBank"].build(model.eval(), finished["processor"], ["green square", "red circle"])
    best = bank.probabilities(torch.from_numpy(predictions.predictions)).argmax(dim=-1)
    hits = (best == torch.from_numpy(predictions.label_ids)).float().mean().item()
    assert predictions.metrics["test_top1"] == pytest.approx(hits)
    history = finished["trainer"].state.log_history
    assert max(entry["eval_top1"] for entry in history if "eval_top1" in entry) == pytest.approx(hits)


def test_the_example_changes_prompts_and_adapters_alone(finished, tiny_folder):
    before = EZClipModel.from_pretrained(tiny_folder).state_dict()
    after = finished["model"].state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    trained = {name for name in before if "temporal_prompt" in name or "adapter" in name}
    assert changed == trained
    optimized = sum(p.numel() for group in finished["trainer"].optimizer.param_groups for p in group["params"])
    assert optimized == sum(before[name].numel() for name in trained)


def test_what_the_example_saved_is_what_it_trained(finished):
    assert isinstance(finished["processor"], EZClipProcessor)
    in_memory, from_disk = finished["trainer"].model.eval(), finished["model"].eval()
    item = finished["trainer"].eval_dataset[0]
    inputs = finished["processor"](text=["a red circle", "a green square moving left"], return_tensors="pt")
    inputs["pixel_values"] = finished["processor"].normalize(item["frames"][None])
    with torch.no_grad():
        assert torch.equal(in_memory(**inputs).logits_per_video, from_disk(**inputs).logits_per_video)


class Stream(torch.utils.data.IterableDataset):
    """The same two videos, of two classes, over and over."""

    def __iter__(self):
        generator = torch.Generator().manual_seed(0)
        texts = torch.tensor([[1, 2, 3, 29], [1, 4, 3, 29]])
        videos = torch.randn(2, 8, 3, 32, 32, generator=generator)
        while True:
            for label in (0, 1):
                yield {"pixel_values": videos[label], "input_ids": texts[label], "label": label}


def pairs(items) -> dict:
    """A batch without labels: every video is a class of its own."""
    names = ("pixel_values", "input_ids")
    return {name: torch.stack([item[name] for item in items]) for name in names} | {"return_loss": True}


def test_pairs_without_labels(tmp_path):
    torch.manual_seed(0)
    model = EZClipModel(tiny_config())
    args = TrainingArguments(
        output_dir=tmp_path, max_steps=25, per_device_train_batch_size=2, per_device_eval_batch_size=2, label_names=[],
        learning_rate=1e-2, save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    two = [item for item, _ in zip(Stream(), range(2))]
    trainer = Trainer(model=model, args=args, train_dataset=Stream(), eval_dataset=two, data_collator=pairs)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    assert after < before
    with torch.no_grad():
        assert after == pytest.approx(model.eval()(**pairs(two)).loss.item(), abs=1e-6)


def update(output_dir, dropout=True, **arguments) -> torch.Tensor:
    """What one step of plain gradient descent adds to the trained weights: (number of weights,)."""
    torch.manual_seed(0)
    config = tiny_config()
    if not dropout:
        for tower in (config.text_config, config.vision_config):
            tower.attention_dropout = tower.drop_path_rate = 0.0
        config.vision_config.temporal_prompt_dropout = 0.0
    model = EZClipModel(config)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before = torch.cat([parameter.detach().flatten() for parameter in trained])
    args = TrainingArguments(
        output_dir=output_dir, max_steps=1, per_device_train_batch_size=2, optim="sgd", learning_rate=1.0,
        max_grad_norm=0, save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True, **arguments,
    )  # fmt: skip
    Trainer(model=model, args=args, train_dataset=Stream()).train()
    return torch.cat([parameter.detach().flatten() for parameter in trained]) - before


def test_checkpointing_changes_no_gradient(tmp_path):
    # The option was called `gradient_checkpointing` before transformers had this name.
    name = "activation_checkpointing"
    name = name if hasattr(TrainingArguments, name) else "gradient_checkpointing"
    plain = update(tmp_path)
    assert plain.norm() > 0.1
    torch.testing.assert_close(update(tmp_path, **{name: True}), plain)


def test_gradients_of_accumulated_batches_are_averaged(tmp_path):
    plain = update(tmp_path, dropout=False)
    torch.testing.assert_close(update(tmp_path, dropout=False, gradient_accumulation_steps=2), plain)


def test_bfloat16_takes_nearly_the_same_step(tmp_path):
    plain, half = update(tmp_path, dropout=False), update(tmp_path, dropout=False, bf16=True)
    assert half.dtype == torch.float32 and not torch.equal(half, plain)
    assert torch.nn.functional.cosine_similarity(plain, half, dim=0) > 0.99
