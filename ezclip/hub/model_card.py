"""Model cards that fill themselves in: what a configuration, its weights and the files of a run say, and no more."""

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from yaml import YAMLError

from configuration_ezclip import PIPELINE_TASK
from ezclip.errors import DataError, ModelError
from ezclip.hub.card_records import Outcome, RunRecords
from ezclip.systems.citations import describe_system
from modeling_ezclip import EZClipModel
from pipeline_ezclip import ClassBank
from processing_ezclip import EZClipProcessor


# The Hub knows no zero-shot video task: of its own, this is the one of other models that compare videos with texts
# (X-CLIP) and the one by which people look for them. The task of our pipeline is a tag.
PIPELINE_TAG = "video-classification"
TAGS = ("video", PIPELINE_TASK, "action-recognition", "clip", "ezclip")
REQUIREMENTS = '"transformers>=5.6.2" torch av safetensors pillow'
# What tells a card that was written here, and left as it was, from one that a person wrote or changed
SIGNATURE = re.compile(r"\n<!-- written by ezclip, sha256 ([0-9a-f]{64}) -->\s*\Z")
# What transformers' own card says beside the template that huggingface_hub has for all cards, and in its metadata
GENERATED = "This model card has been automatically generated."
GENERATED_METADATA = {"library_name", "tags"}
# Options of training in the order of a card, by their names in `TrainingRecipe`
RECIPE = (
    *("learning_rate", "prompt_learning_rate", "head_learning_rate", "text_learning_rate", "weight_decay"),
    *("warmup_ratio", "max_grad_norm", "mixed_precision", "seed"),
)


@dataclass
class CardFacts:
    """
    What a card says that no file of a model does.

    Args:
        repo_id (`str`):
            The repository: its name stands in the code to copy.
        license (`str`, *optional*):
            Licence of the weights, an identifier of the Hub.
        base_model (`str`, *optional*):
            What was trained from, a name on the Hub.
        train_datasets (`list[str]`, *optional*):
            What was trained on, names on the Hub.
        eval_dataset (`str`, *optional*):
            What `eval_results.json` is of, a name as on the Hub. Results of a data set without a name are in the text
            alone.
    """

    repo_id: str
    license: str | None = None
    base_model: str | None = None
    train_datasets: list[str] = field(default_factory=list)
    eval_dataset: str | None = None

    def check(self):
        """
        That names can be names on the Hub, and the licence one of its identifiers. `base_model` may be a folder still.

        Raises:
            [`ModelError`]: if one cannot.
        """
        if not is_hub_name(self.repo_id):
            raise ModelError(
                f"{self.repo_id!r} cannot be the name of a repository. Give USER/NAME or ORGANISATION/NAME, each of "
                "letters, digits, -, _ and ., at most 96 of them, without -- and .. among them."
            )
        for name in [*self.train_datasets, *([] if self.eval_dataset is None else [self.eval_dataset])]:
            if not is_hub_name(name):
                raise ModelError(
                    f"{name!r} cannot be the name of a data set on the Hub. Give NAME or USER/NAME, each of letters, "
                    "digits, -, _ and ., or leave it out and write it into the card."
                )
        if self.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", self.license):
            raise ModelError(
                f"{self.license!r} cannot be a licence: the Hub's identifiers are of small letters, digits, - and ., "
                "such as mit, apache-2.0, cc-by-nc-4.0; of others say `other`."
            )


def is_hub_name(name: str) -> bool:
    """Whether a name can be that of something on the Hub."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def make_card(
    folder: str | Path,
    model: EZClipModel,
    processor: EZClipProcessor,
    facts: CardFacts,
    trained_only: bool = False,
    bank: ClassBank | None = None,
) -> ModelCard:
    """
    The card of a model.

    Args:
        folder (`str` or `Path`):
            What training and evaluation left: `results.json`, `eval_results.json`, `train_results.json`,
            `trainer_state.json`, `protocol_results.json`, as far as they are there.
        model ([`EZClipModel`]):
            The model.
        processor ([`EZClipProcessor`]):
            Its processor.
        facts ([`CardFacts`]):
            What those do not know.
        trained_only (`bool`, *optional*, defaults to `False`):
            Whether the repository holds trained weights alone.
        bank ([`ClassBank`], *optional*):
            Class embeddings that stand beside the model.

    Returns:
        `huggingface_hub.ModelCard`: signed, see [`is_untouched`].

    Raises:
        [`DataError`]: if a file of results is not what training and evaluation write; if there is none of what
            `eval_dataset` names.
    """
    records = RunRecords.read(folder, facts.eval_dataset)
    if facts.eval_dataset is not None and not records.results:
        raise DataError(
            f"{folder} has no results that could be of {facts.eval_dataset!r}: neither its eval_results.json nor its "
            "results.json has an `eval_top1`. Evaluate the model first, or leave the data set out."
        )
    system = describe_system(model.config, processor.sampling)
    name = facts.repo_id.rpartition("/")[2]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=PIPELINE_TAG,
        tags=[*TAGS, *(system.presets[:1] if system.presets[:1] != ["ezclip"] else [])],
        license=facts.license,
        base_model=facts.base_model,
        base_model_relation="adapter" if trained_only and facts.base_model else None,
        datasets=facts.train_datasets or None,
        metrics=["accuracy"] if records.results else None,
        model_name=name,
        eval_results=_eval_results(records) or None,
    )
    if data.eval_results is None:
        data.model_name = None  # it goes with them
    sections = [
        f"# {name}",
        system.text,
        _sizes(model, processor, facts, trained_only),
        _use(facts.repo_id, model, bank),
        _training(records, facts, model),
        _results(records),
        _licence(facts),
        _citations(system.citations),
    ]
    text = "\n\n".join(section for section in sections if section)
    return ModelCard(_sign(f"---\n{data.to_yaml()}\n---\n\n{text}\n"))


def is_untouched(content: str) -> bool:
    """
    Whether a card was made here, or by transformers from its template, and nobody has changed it since, so that a
    newer one may take its place.
    """
    content = content.replace("\r\n", "\n")
    if (signature := SIGNATURE.search(content)) is not None:
        return signature[1] == _digest(content[: signature.start()])
    if GENERATED not in content:
        return False
    try:
        card = ModelCard(content, ignore_metadata_errors=True)
    except (ValueError, YAMLError):
        return False
    lines, template = (
        [line.strip() for line in text.splitlines() if line.strip() and GENERATED not in line]
        for text in (card.text, ModelCard.from_template(ModelCardData()).text)
    )
    return lines == template and card.data.to_dict().keys() <= GENERATED_METADATA


def _sign(content: str) -> str:
    return f"{content}\n<!-- written by ezclip, sha256 {_digest(content)} -->\n"


def _digest(content: str) -> str:
    return hashlib.sha256(content.strip().encode()).hexdigest()


def _eval_results(records: RunRecords) -> list[EvalResult]:
    """Results of named data sets: a model index has no others."""
    return [
        EvalResult(
            task_type=PIPELINE_TAG,
            task_name="Zero-Shot Video Classification",
            dataset_type=result.dataset,
            dataset_name=result.dataset,
            dataset_split=result.test or None,
            metric_type="accuracy",
            metric_name=f"{label} accuracy",
            metric_value=round(result.metrics[key], 6),
        )
        for result in records.results
        if result.dataset is not None and is_hub_name(result.dataset)
        for key, label in (("eval_top1", "top-1"), ("eval_top5", "top-5"))
        if key == "eval_top1" or _has_top5(result)
    ]


def _has_top5(result: Outcome) -> bool:
    """Whether top-5 says something. Of five classes or fewer it is 1 whatever the model does; of more hardly ever."""
    return result.metrics.get("eval_top5", 1.0) < 1.0


def _sizes(model: EZClipModel, processor: EZClipProcessor, facts: CardFacts, trained_only: bool) -> str:
    config, vision = model.config, model.config.vision_config
    total, trained = model.num_parameters(), model.num_parameters(only_trainable=True)
    which = ", all of them trained" if trained == total else f", of which {trained:,} are trained" if trained else ""
    frames = "exactly" if config.fixed_num_frames else "by default"
    lines = [
        f"- Parameters: {total:,}{which}.",
        f"- A video is read as {processor.num_frames} frames ({frames}) of {vision.image_size} × {vision.image_size} "
        f"pixels, in patches of {vision.patch_size} × {vision.patch_size}.",
        f"- Videos and texts are compared in {config.projection_dim} dimensions.",
    ]
    if trained_only:
        lines.append(
            f"- This repository holds the trained weights alone. They are loaded over "
            f"[{facts.base_model}](https://huggingface.co/{facts.base_model}), which is downloaded with them and "
            "checked to be what they were trained from."
        )
    return "\n".join(lines)


def _use(repo_id: str, model: EZClipModel, bank: ClassBank | None) -> str:
    text = f"""## Use

```bash
pip install {REQUIREMENTS}
```

```python
from transformers import pipeline

classifier = pipeline("{PIPELINE_TASK}", model="{repo_id}", trust_remote_code=True)
classifier("video.mp4", candidate_labels=["archery", "making a cake"])
```

It averages the probabilities under 16 templates, and compares by cosines times 100, as the published evaluations do.
What a video may show that is none of the classes goes into `background_labels`; `min_score` is the least score to
return. The task, `{PIPELINE_TASK}`, comes with the code in this repository; the Hub, which knows no zero-shot task of
videos, lists the model under `{PIPELINE_TAG}`.

Model and processor by themselves compare with the sentences as they are given, and by cosines times the model's own
scale, {model.logit_scale.exp():.4g}:

```python
import torch
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("{repo_id}", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("{repo_id}", trust_remote_code=True)

labels = ["archery", "making a cake"]
inputs = processor(videos="video.mp4", text=[f"a video of {{label}}" for label in labels], return_tensors="pt")
with torch.no_grad():
    probabilities = model(**inputs).logits_per_video.softmax(dim=-1)
```"""
    if bank is not None:
        shown = ", ".join(bank.labels[:5])
        text += (
            f"\n\n`class_bank.safetensors` holds the embeddings of {len(bank.labels):,} classes"
            f"{' (' + shown + (', …' if len(bank.labels) > 5 else '') + ')'}. Without `candidate_labels` the pipeline "
            "chooses among them."
        )
        if bank.background_labels:
            text += f" {len(bank.background_labels):,} of them stand for what is none of the others."
    return text


def _training(records: RunRecords, facts: CardFacts, model: EZClipModel) -> str:
    lines, is_trained = [], model.num_parameters(only_trainable=True) > 0
    if facts.train_datasets:
        lines.append(f"- Data: {', '.join(facts.train_datasets)}.")
    if is_trained and facts.base_model is not None:
        lines.append(f"- Started from {facts.base_model}.")
    elif is_trained:
        lines.append("- What it started from is not recorded.")
    if records.steps is not None:
        epochs = f" ({records.epochs:g} epochs)" if records.epochs is not None else ""
        batch = f" of {records.batch_size} videos" if records.batch_size is not None else ""
        lines.append(f"- {records.steps:,} steps{batch}{epochs}.")
    elif is_trained:
        lines.append("- How it was trained is not recorded.")
    recipe = [f"{name} {records.recipe[name]}" for name in RECIPE if records.recipe.get(name) is not None]
    if recipe:
        lines.append(f"- AdamW, warm-up and cosine at every step: {', '.join(recipe)}.")
    if records.loss is not None:
        lines.append(f"- Loss at the last logged step: {records.loss:.4g}.")
    if records.runtime is not None and records.runtime >= 1:
        processes = f" on {records.num_processes} processes" if records.num_processes > 1 else ""
        device = f" ({records.device})" if records.device is not None else ""
        lines.append(f"- The last run took {records.runtime:,.0f} s{processes}{device}.")
    if records.bad_train_videos:
        lines.append(f"- {records.bad_train_videos:,} training videos could not be read and were replaced by others.")
    return "## Training\n\n" + "\n".join(lines) if lines else ""


def _results(records: RunRecords) -> str:
    parts = [_results_table(records.results)] if records.results else []
    if any(result.dataset is None for result in records.results):
        parts.append("Of which data set these videos are is not recorded.")
    if bad := sum(result.metrics.get("eval_bad_videos", 0) for result in records.results):
        parts.append(f"{bad:,} videos could not be read and are not counted.")
    if records.protocol_table is not None:
        parts.append(
            f"All {records.num_experiments} models of the protocol {records.protocol}, of which this is one:\n\n"
            f"{records.protocol_table.strip()}"
        )
    protocol = f", protocol {records.protocol}" if records.protocol is not None else ""
    return "\n\n".join([f"## Results{protocol}", *(parts or ["None are recorded."])])


def _results_table(results: list[Outcome]) -> str:
    """Of the columns those in which something stands."""
    columns = {
        "data set": [result.dataset or "" for result in results],
        "test": [result.test for result in results],
        "top-1 (%)": [f"{100 * result.metrics['eval_top1']:.1f}" for result in results],
        "top-5 (%)": [f"{100 * result.metrics['eval_top5']:.1f}" if _has_top5(result) else "" for result in results],
        "videos": [
            f"{result.metrics['eval_samples']:,}" if "eval_samples" in result.metrics else "" for result in results
        ],
    }
    columns = {name: cells for name, cells in columns.items() if any(cells)}
    rows = [list(columns), ["---"] * len(columns), *zip(*columns.values())]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _licence(facts: CardFacts) -> str:
    weights = f"The weights: {facts.license}." if facts.license else "The licence of the weights is not stated."
    return f"## Licence\n\n{weights} The code in this repository is that of the package ezclip: MIT."


def _citations(citations: list[str]) -> str:
    return "## Citation\n\n```bibtex\n" + "\n".join(citations) + "\n```" if citations else ""
