"""Model cards that fill themselves in from a configuration, its weights and the files of a run."""

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
from ezclip.systems.citations import describe_system, tower_family
from ezclip.utils.tables import as_markdown_table, escape_markdown
from modeling_ezclip import EZClipModel
from pipeline_ezclip import ClassBank
from processing_ezclip import EZClipProcessor
from video_ezclip import printable


TEMPLATE = Path(__file__).with_name("model_card_template.md")
# The Hub has no zero-shot video task. Similar models (X-CLIP) have this one. The task of our pipeline is a tag.
PIPELINE_TAG = "video-classification"
TAGS = ("video", PIPELINE_TASK, "action-recognition", "ezclip")
TOWER_TAGS = {"ezclip": "clip", "timm_wrapper": "pe-core"}  # where they are not the name of the family
REQUIREMENTS = '"transformers>=5.6.2" torch av safetensors pillow'
# The last line of a card written here. Its digest no longer fits once somebody has changed the card.
SIGNATURE = re.compile(r"\n<!-- written by ezclip, sha256 ([0-9a-f]{64}) -->\s*\Z")
# transformers' own card: this sentence, the default template of huggingface_hub, and these metadata
TRANSFORMERS_SENTENCE = "This model card has been automatically generated."
TRANSFORMERS_METADATA = {"library_name", "tags"}
# Fields of `TrainingRecipe` that a card names, in this order
RECIPE_FIELDS = (
    *("learning_rate", "prompt_learning_rate", "head_learning_rate", "text_learning_rate", "weight_decay"),
    *("warmup_ratio", "average_last", "max_grad_norm", "mixed_precision", "seed"),
)


@dataclass
class CardFacts:
    """
    Facts for a card that no file of a model holds.

    Args:
        repo_id (`str`):
            The repository. Its name stands in the code to copy.
        license (`str`, *optional*):
            Licence of the weights, as the Hub names it.
        base_model (`str`, *optional*):
            The model that training started from, a name on the Hub.
        train_datasets (`list[str]`, *optional*):
            The data sets of the training, names on the Hub.
        eval_dataset (`str`, *optional*):
            The data set of `eval_results.json`, a name on the Hub. Results of an unnamed data set are in the text, not
            in the metadata.
    """

    repo_id: str
    license: str | None = None
    base_model: str | None = None
    train_datasets: list[str] = field(default_factory=list)
    eval_dataset: str | None = None

    def check(self):
        """
        Check the names and the licence by the rules of the Hub. `base_model` may still be a folder.

        Raises:
            [`ModelError`]: if the Hub would refuse one of them.
        """
        if not is_hub_name(self.repo_id):
            raise ModelError(
                f"{self.repo_id!r} cannot be the name of a repository. Give USER/NAME or ORGANISATION/NAME, each of "
                "letters, digits, -, _ and ., at most 96 characters, without -- and .. in them."
            )
        for name in [*self.train_datasets, self.eval_dataset]:
            if name is not None and not is_hub_name(name):
                raise ModelError(
                    f"{name!r} cannot be the name of a data set on the Hub. Give NAME or USER/NAME, each of letters, "
                    "digits, -, _ and ., or leave it out and write it into the card."
                )
        if self.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", self.license):
            raise ModelError(
                f"--license must be an identifier of the Hub such as mit, apache-2.0 or cc-by-nc-4.0, got "
                f"{self.license!r}. For a licence that the Hub does not know, give `other`."
            )


def is_hub_name(name: str) -> bool:
    """Return whether the Hub allows a name."""
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
    Make the card of a model.

    Args:
        folder (`str` or `Path`):
            The folder with the files of training and evaluation, as far as they exist: `results.json`,
            `eval_results.json`, `train_results.json`, `trainer_state.json`, `protocol_results.json`.
        model ([`EZClipModel`]):
            The model.
        processor ([`EZClipProcessor`]):
            Its processor.
        facts ([`CardFacts`]):
            What the files do not hold.
        trained_only (`bool`, *optional*, defaults to `False`):
            Whether the repository holds trained weights alone.
        bank ([`ClassBank`], *optional*):
            Class embeddings beside the model.

    Returns:
        `huggingface_hub.ModelCard`: with a signature, see [`is_untouched`].

    Raises:
        [`DataError`]: if a file of results cannot be understood, or the folder has no results and `eval_dataset` is
            given.
    """
    records = RunRecords.read(folder, facts.eval_dataset)
    if facts.eval_dataset is not None and not records.results:
        raise DataError(
            f"{folder} has no results for --eval_dataset {facts.eval_dataset!r}: there is no `eval_top1` in its "
            "eval_results.json or results.json. Evaluate the model first, or leave the option out."
        )
    system = describe_system(model.config, processor.sampling)
    tower = TOWER_TAGS.get(family := tower_family(model.config), family.replace("_", "-"))
    is_fast = getattr(processor.tokenizer, "is_fast", True)  # SigLIP's tokenizer is not
    extra = ["timm"] * (family == "timm_wrapper") + ["sentencepiece"] * (not is_fast)
    name = facts.repo_id.rpartition("/")[2]
    eval_results = _eval_results(records) or None
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=PIPELINE_TAG,
        tags=[*TAGS, tower, *(preset for preset in system.presets[:1] if preset not in ("ezclip", tower))],
        license=facts.license,
        base_model=facts.base_model,
        base_model_relation="adapter" if trained_only and facts.base_model else None,
        datasets=facts.train_datasets or None,
        metrics=["accuracy"] if records.results else None,
        model_name=name if eval_results else None,  # belongs to the results
        eval_results=eval_results,
    )
    card = ModelCard.from_template(
        data,
        template_str=TEMPLATE.read_text(encoding="utf-8"),
        name=name,
        system=system,
        facts=facts,
        records=records,
        bank=bank,
        labels=[escape_markdown(label) for label in bank.labels[:5]] if bank is not None else [],
        config=model.config,
        vision=model.config.vision_config,
        num_frames=processor.num_frames,
        num_parameters=model.num_parameters(),
        num_trained=model.num_parameters(only_trainable=True),
        logit_scale=model.logit_scale.exp().item(),
        trained_only=trained_only,
        requirements=" ".join([REQUIREMENTS, *extra]),
        task=PIPELINE_TASK,
        escape=escape_markdown,
        recipe=[
            f"{key} {escape_markdown(str(records.recipe[key]))}"
            for key in RECIPE_FIELDS
            if records.recipe.get(key) is not None
        ],
        results_table=_results_table(records.results) if records.results else "",
        num_bad_videos=sum(result.metrics.get("eval_bad_videos", 0) for result in records.results),
    )
    # Sections that the template leaves out leave blank lines.
    content = re.sub(r"\n{3,}", "\n\n", str(card)).rstrip() + "\n"
    return ModelCard(f"{content}\n<!-- written by ezclip, sha256 {_digest(content)} -->\n")


def is_untouched(content: str) -> bool:
    """Return whether a card was generated, by ezclip or transformers, and not changed since. It may be replaced."""
    content = content.replace("\r\n", "\n")
    if (signature := SIGNATURE.search(content)) is not None:
        return signature[1] == _digest(content[: signature.start()])
    if TRANSFORMERS_SENTENCE not in content:
        return False
    try:
        card = ModelCard(content, ignore_metadata_errors=True)
    except (ValueError, YAMLError, RecursionError):
        return False
    lines, template = (
        [line.strip() for line in text.splitlines() if line.strip() and TRANSFORMERS_SENTENCE not in line]
        for text in (card.text, ModelCard.from_template(ModelCardData()).text)
    )
    return lines == template and card.data.to_dict().keys() <= TRANSFORMERS_METADATA


def _digest(content: str) -> str:
    return hashlib.sha256(content.strip().encode()).hexdigest()


def _eval_results(records: RunRecords) -> list[EvalResult]:
    """Return the results of named data sets. A model index holds no others."""
    return [
        EvalResult(
            task_type=PIPELINE_TAG,
            task_name="Zero-Shot Video Classification",
            dataset_type=result.dataset,
            dataset_name=result.dataset,
            dataset_split=printable(" ".join(result.test.split())) or None,
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
    # With five classes or fewer, top-5 is 1 whatever the model does; with more, hardly ever.
    return result.metrics.get("eval_top5", 1.0) < 1.0


def _results_table(results: list[Outcome]) -> str:
    """Return a Markdown table without empty columns."""
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
    return as_markdown_table(list(columns), [list(row) for row in zip(*columns.values())])
