"""Which classes a call of the pipeline asks for: labels embedded and kept, or a class bank that was saved."""

import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from .class_bank_ezclip import ClassBank
from .processing_ezclip import label_key, label_to_words
from .text_cache_ezclip import CACHE_DIR


TEXT_OPTIONS = ("hypothesis_template", "descriptions", "include_label", "input_conditioning")
CLASS_OPTIONS = ("candidate_labels", *TEXT_OPTIONS, "background_labels", "class_bank")
MAX_KEPT = 4  # banks of earlier calls


class ClassChoice:
    """
    Finds or builds the class banks of a pipeline.

    Args:
        pipeline ([`ZeroShotVideoClassificationPipeline`]):
            Its model embeds the texts of classes, its processor writes and tokenizes them.
        defaults (`dict`):
            Those of `CLASS_OPTIONS` that hold where a call does not say otherwise.
        local_files_only (`bool`, *optional*, defaults to `False`):
            Whether banks on the Hub are taken from the cache alone.

    Raises:
        `OSError`: if a class bank is among the defaults and is not there.
        `ValueError`: if it is damaged or does not fit the model.
    """

    def __init__(self, pipeline, defaults: dict, local_files_only: bool = False):
        self.pipeline, self.local_files_only = pipeline, local_files_only
        self._kept: OrderedDict[tuple, ClassBank] = OrderedDict()
        self._beside_model: ClassBank | None = None
        # What can be gone through only once is needed at every call.
        defaults = {n: list(value) if isinstance(value, Iterator) else value for n, value in defaults.items()}
        if "class_bank" in defaults:
            defaults["class_bank"] = self._load(defaults["class_bank"])
        self.defaults = defaults

    def choose(self, given: dict) -> ClassBank:
        """
        The classes that a call asks for.

        Args:
            given (`dict`):
                Those of `CLASS_OPTIONS` that are given.

        Returns:
            [`ClassBank`]: the classes, on the model's device.

        Raises:
            `OSError`: if a class bank is given and is not there.
            `ValueError`: if there are no classes, or the options contradict each other.
        """
        defaults = dict(self.defaults)
        if "class_bank" in given:
            defaults = {name: value for name, value in defaults.items() if name == "background_labels"}
        elif {"candidate_labels", "descriptions"} & set(given):
            defaults.pop("class_bank", None)
            defaults.pop("candidate_labels", None)  # which may be others than those described
        options = {**defaults, **given}
        background = _as_labels(options.pop("background_labels", []), "background_labels")
        descriptions = options.get("descriptions")
        if descriptions is not None and not (isinstance(descriptions, Mapping) and descriptions):
            raise ValueError(
                f"`descriptions` has for each label its text or texts: give a dictionary, not {descriptions!r}."
            )
        labels = options.pop("candidate_labels", None)
        if labels is None and descriptions is not None:
            labels = list(descriptions)
        if labels is None:
            if "class_bank" not in options:  # a default says how labels are written, and here are none
                options = {name: value for name, value in options.items() if name in given}
            bank = self._find(**options)
            return replace(bank, background_labels=background) if background else bank
        if "class_bank" in options:
            raise ValueError("A `class_bank` has its classes already: leave it out, or the labels and descriptions.")
        labels = _as_labels(labels, "candidate_labels")
        if not labels:
            raise ValueError("`candidate_labels` is empty. Give at least one label.")
        if both := sorted(set(labels) & set(background)):
            raise ValueError(f"{both[0]!r} is among the `candidate_labels` and the `background_labels`.")
        return replace(self._build(labels, background, **options), background_labels=background)

    def default_bank(self) -> ClassBank | None:
        """What a call that says nothing of classes uses, if there are any."""
        if {"candidate_labels", "descriptions", "class_bank"} & set(self.defaults):
            return self.choose({})
        return self._find_beside_model()

    def _build(
        self,
        labels: list[str],
        background: list[str],
        hypothesis_template: str | Iterable[str] | None = None,
        descriptions: Mapping[str, str | list[str]] | None = None,
        include_label: bool = False,
        input_conditioning: bool = False,
    ) -> ClassBank:
        """The classes embedded; or as they were for an earlier call, if neither texts nor weights have changed."""
        if hypothesis_template is not None and not isinstance(hypothesis_template, str):
            hypothesis_template = list(hypothesis_template)
        if descriptions is not None:
            described = {label_key(name) for name in descriptions}
            own = {label: label_to_words(label) for label in background if label_key(label) not in described}
            descriptions = {**own, **descriptions}
        texts = (hypothesis_template, descriptions, include_label, input_conditioning)
        model, processor = self.pipeline.model, self.pipeline.processor
        key = (*labels, *background), repr(texts), processor.split_camel_case, id(processor.tokenizer)
        if key not in self._kept or not self._kept[key].is_of(model):
            self._kept[key] = ClassBank.build(model, processor, [*labels, *background], *texts, cache_dir=CACHE_DIR)
            if len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def _find(self, class_bank: ClassBank | str | os.PathLike | None = None, **texts) -> ClassBank:
        if texts:
            raise ValueError(
                f"`{min(texts)}` goes with `candidate_labels`: the texts of a class bank are embedded already."
            )
        bank = self._find_beside_model() if class_bank is None else self._load(class_bank)
        if bank is None:
            raise ValueError(
                "There are no classes: give `candidate_labels`, `descriptions` or a `class_bank`. (No class bank was "
                f"saved beside the model, {self.pipeline.model.name_or_path!r}, when it was loaded.)"
            )
        return bank

    def _find_beside_model(self) -> ClassBank | None:
        model = self.pipeline.model
        if model.class_bank_file is None:
            return None
        self._beside_model = self._load(self._beside_model or ClassBank.from_file(model.class_bank_file))
        return self._beside_model

    def _load(self, class_bank: ClassBank | str | os.PathLike) -> ClassBank:
        model, place = self.pipeline.model, ""
        if not hasattr(class_bank, "embeds"):
            place = f"{str(class_bank)!r}: "
            class_bank = ClassBank.from_pretrained(class_bank, local_files_only=self.local_files_only)
        try:
            class_bank.check_model(model)
        except ValueError as error:
            raise ValueError(f"{place}{error}") from error
        if class_bank.embeds.device == model.device:
            return class_bank
        return replace(class_bank, embeds=class_bank.embeds.to(model.device))


def take_class_options(kwargs: dict) -> dict:
    """Take what is given of `CLASS_OPTIONS` out of `kwargs`."""
    several = kwargs.pop("hypothesis_templates", None)
    options = {name: kwargs.pop(name) for name in CLASS_OPTIONS if name in kwargs}
    if several is not None:
        if options.get("hypothesis_template") is not None:
            raise ValueError("`hypothesis_template` and `hypothesis_templates` are one argument: leave out one.")
        options["hypothesis_template"] = several
    return {name: value for name, value in options.items() if value is not None}


def _as_labels(labels: str | Iterable[str], name: str) -> list[str]:
    if isinstance(labels, str):
        labels = [label.strip() for label in labels.split(",") if label.strip()]
    if not isinstance(labels, Iterable) or isinstance(labels, Mapping):
        raise ValueError(f"`{name}` are names of classes, in a list or between commas; got {labels!r}.")
    labels = list(labels)
    for label in labels:
        if not isinstance(label, str) or not label_to_words(label):
            raise ValueError(f"`{name}` are names of classes; {label!r} is among them and is none.")
    return labels
