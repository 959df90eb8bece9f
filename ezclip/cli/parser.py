"""The parser of every command: an error is one sentence with the nearest option, help shows real defaults."""

import argparse
import dataclasses
import re
import sys
from collections.abc import Container, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Never, TypeVar

from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from ezclip.constants import EXECUTOR_HELP, EXECUTORS
from ezclip.encoders.openvino_engine import ENGINES
from ezclip.utils.messages import exit_with


# Names that users of transformers and of other tools expect, and the options that do their work here
OTHER_NAMES = {
    "batch_size": ("per_device_eval_batch_size", "per_device_train_batch_size"),
    "bf16": ("mixed_precision",),
    "checkpoint": ("model_name_or_path",),
    "classes": ("candidate_labels", "labels"),
    "config_name": ("dataset_config_name",),
    "cpu": ("use_cpu", "device"),
    "data_dir": ("train_dir", "validation_dir", "video_dir"),
    "dataset": ("dataset_name",),
    "device": ("use_cpu",),
    "epochs": ("num_train_epochs",),
    "eval_strategy": ("eval_steps",),
    "evaluation_strategy": ("eval_steps",),
    "fp16": ("mixed_precision",),
    "frames": ("num_frames",),
    "gradient_accumulation_steps": ("micro_batch_size",),
    "hypothesis_template": ("templates",),
    "input": ("videos",),
    "labels": ("candidate_labels",),
    "labels_file": ("label_list",),
    "lr": ("learning_rate",),
    "max_steps": ("max_train_steps",),
    "model": ("model_name_or_path",),
    "model_name": ("model_name_or_path",),
    "model_path": ("model_name_or_path",),
    "no_cuda": ("use_cpu", "device"),
    "num_workers": ("dataloader_num_workers",),
    "output": ("output_dir", "output_file"),
    "per_gpu_train_batch_size": ("per_device_train_batch_size",),
    "predict": ("do_predict",),
    "prompts": ("templates",),
    "resume": ("resume_from_checkpoint",),
    "save_strategy": ("save_steps",),
    "split": ("eval_split_name", "split_name"),
    "test_dir": ("validation_dir",),
    "test_file": ("validation_list",),
    "tokenizer": ("tokenizer_name",),
    "train": ("do_train",),
    "train_file": ("train_list",),
    "validation_file": ("validation_list",),
    "video": ("videos",),
    "video_path": ("videos",),
    "warmup_steps": ("warmup_ratio",),
}
NUM_SUGGESTIONS = 3

Options = TypeVar("Options")


class Parser(HfArgumentParser):
    """
    A parser of dataclasses, or of arguments added one by one.

    A wrong option, value or word ends the process with status 2 and one sentence on standard error. Shortened options
    are not accepted; the message names the whole option.
    """

    def __init__(self, dataclass_types: type | Iterable[type] | None = None, **kwargs: Any):
        # `exit_on_error=False` raises the errors that `parse_known_args` rewords.
        kwargs = {"formatter_class": HelpFormatter, "allow_abbrev": False, "exit_on_error": False, **kwargs}
        super().__init__(dataclass_types, **kwargs)  # pyright: ignore[reportArgumentType]
        self.register("type", int, to_int)
        self.register("type", float, to_float)
        self.register("type", string_to_bool, to_bool)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Parse the arguments. An argument that is not known is an error, so the list of them is empty."""
        args = sys.argv[1:] if args is None else list(args)
        if (unknown := find_unknown(args, self._option_string_actions)) is not None:
            self.error(describe_unknown(unknown, self._option_string_actions))
        try:
            namespace, words = super().parse_known_args(args, namespace)
        except argparse.ArgumentError as error:
            self.error(self._reword(error))
        if words:
            self.error(f"No option takes {words[0]!r}.")
        return namespace, []

    def parse_groups(self, args: Sequence[str] | None = None) -> dict[str, Any]:
        """Parse the arguments and return the values of all options, whatever dataclass they are of, by name."""
        parsed = self.parse_args_into_dataclasses(args, look_for_args_file=False)
        return {name: value for group in parsed for name, value in vars(group).items()}

    def error(self, message: str) -> Never:
        """Print one sentence with the name of the command, and exit with status 2."""
        # Messages of argparse that reach only this method
        if found := re.match(r"the following arguments are required: (.*)", message):
            message = f"{' and '.join(name.split('/')[0] for name in found[1].split(', '))} must be given."
        elif found := re.match(r"one of the arguments (.*) is required", message):
            message = f"One of {', '.join(found[1].split())} must be given."
        exit_with(f"{self.prog}: {message} See `{self.prog} --help`.", 2)

    def _reword(self, error: argparse.ArgumentError) -> str:
        """Return the message of an error of argparse by the name of the option, without its other spellings."""
        option, message = (error.argument_name or "").split("/")[0], str(error.message)
        if message.startswith("expected"):
            return f"{option} needs a value{', or several' if 'at least' in message else ''}."
        if found := re.match(r"invalid choice: (.*?) \(choose from", message):
            actions = (a for a in self._actions if option in (*a.option_strings, a.metavar, a.dest))
            choices = [str(choice) for choice in next(actions).choices or ()]
            nearest = describe_nearest(found[1].strip("'\""), choices)
            return f"{option} must be one of {', '.join(choices)}, got {found[1]}{nearest}."
        if found := re.match(r"ignored explicit argument (.*)", message):
            return f"{option} takes no value, got {found[1]}."
        if found := re.match(r"not allowed with argument (.*)", message):
            return f"{option} and {found[1].split('/')[0]} exclude each other: give one of them."
        return f"{option} {message}".strip()


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Shows an option by one name with its real default. The usage names only what must be given."""

    def __init__(self, prog: str, **kwargs: Any):
        super().__init__(prog, **{"max_help_position": 34, **kwargs})

    def _format_usage(self, usage, actions, groups, prefix) -> str:
        groups = [group for group in groups if group.required]
        needed = [action for group in groups for action in group._group_actions]
        actions = [a for a in actions if a.required or a in needed or not a.option_strings]
        actions.append(argparse.Action([], "options", nargs="?", metavar="OPTIONS"))
        return " ".join(super()._format_usage(usage, actions, groups, prefix).split()) + "\n\n"

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        # HfArgumentParser adds each option with dashes too.
        names = [name for name in action.option_strings if "-" not in name.lstrip("-")]
        if action.nargs != 0 and not _is_switch(action):
            names[-1] += f" {self._format_args(action, self._get_default_metavar_for_optional(action))}"
        return ", ".join(names)

    def _format_args(self, action, default_metavar) -> str:
        text = super()._format_args(action, default_metavar)
        return f"{text.split()[0]} ..." if action.nargs == "+" else text

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        short = {int: "N", float: "X"}.get(action.type)  # pyright: ignore[reportArgumentType, reportCallIssue]
        word = action.dest.rpartition("_")[2].upper()
        return short or (word.removesuffix("S") if action.nargs == "+" else word)

    def _metavar_formatter(self, action, default_metavar):
        if action.metavar is None and action.choices is not None:
            return lambda size: (default_metavar,) * size
        return super()._metavar_formatter(action, default_metavar)

    def _get_help_string(self, action: argparse.Action) -> str:
        help, notes = (action.help or "").rstrip(), []
        if action.choices is not None:
            notes.append(f"one of {', '.join(map(str, action.choices))}")
        value = action.default
        is_shown = not isinstance(value, bool) and value not in (None, [], argparse.SUPPRESS)
        if is_shown and action.option_strings and "efault" not in help:
            default = f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else value
            notes.append(f"default: {str(default).replace('%', '%%')}")
        if not notes:
            return help
        if help.endswith("."):
            return " ".join([help, *(f"{note[0].upper()}{note[1:]}." for note in notes)])
        if help.endswith(")"):
            return f"{help[:-1]}; {'; '.join(notes)})"
        return f"{help} ({'; '.join(notes)})"


def _is_switch(action: argparse.Action) -> bool:
    return action.nargs == "?" and action.type is string_to_bool


def group_fields(groups: Mapping[str, Sequence[str]], *of: type, names: Container[str] | None = None) -> list[type]:
    """
    Return dataclasses whose options `--help` shows as groups.

    Args:
        groups (`Mapping`):
            By title, the names of the fields in a group. A name that no dataclass has is left out.
        of (`type`):
            Dataclasses without default factories. Each has a group, `_argument_group_name`, for its other fields.
        names (`Container`, *optional*):
            Names of the fields to take, by default all.
    """
    owners = {field.name: (field, owner) for owner in of for field in dataclasses.fields(owner)}
    titles = {name: title for title, listed in groups.items() for name in listed}
    grouped = {title: [] for title in groups}
    for name in (*titles, *owners):
        if name not in owners or (names is not None and name not in names):
            continue
        field, owner = owners.pop(name)
        copy = dataclasses.field(default=field.default, metadata=field.metadata)
        grouped[titles.get(name) or owner._argument_group_name].append((name, field.type, copy))
    return [
        dataclasses.make_dataclass("Group", fields, namespace={"_argument_group_name": title})
        for title, fields in grouped.items()
        if fields
    ]


def fill(of: type[Options], values: Mapping[str, Any]) -> Options:
    """Return a dataclass with the values of its fields; a field without a value has its default."""
    names = [field.name for field in dataclasses.fields(of)]  # pyright: ignore[reportArgumentType]
    return of(**{name: values[name] for name in names if name in values})


def find_unknown(args: Sequence[str], options: Container[str]) -> str | None:
    """Return the first argument that argparse takes for an option and that is none."""
    for word in args:
        if word == "--":
            break
        name = word.partition("=")[0]
        is_option = word[:1] == "-" and len(word) > 1 and " " not in word and not re.match(r"-\.?\d", word)
        if is_option and name not in options:
            return name
    return None


def describe_unknown(option: str, options: Iterable[str]) -> str:
    """Return a sentence about an option that does not exist, with the nearest ones that do."""
    by_name = {name.removeprefix("--"): name for name in options if name.startswith("--") and "-" not in name[2:]}
    name = option.lstrip("-").replace("-", "_").lower()
    others = [by_name[other] for other in OTHER_NAMES.get(name, ()) if other in by_name]
    if others:
        return f"There is no option {option}: here it is {' or '.join(others)}."
    return f"There is no option {option}{describe_nearest(name, list(by_name), prefix='--')}."


def describe_nearest(value: str, choices: Sequence[str], prefix: str = "") -> str:
    """Return the end of a sentence that names the choices nearest to a value, or nothing if none is near."""
    ways = (
        [choice for choice in choices if choice.startswith(value)],
        get_close_matches(value, choices, 1),
        [choice for choice in choices if f"_{value}_" in f"_{choice}_"],
        # a short form with a slip
        [choice for choice in choices if get_close_matches(value, [choice[: len(value) + 1]], cutoff=0.8)],
    )
    near = next((found for found in ways if value and 1 <= len(found) <= NUM_SUGGESTIONS), [])
    if not near:
        return ""
    return f"; the nearest {'is' if len(near) == 1 else 'are'} {', '.join(prefix + choice for choice in near)}"


def add_device(group):
    """Add `--device` to a parser or a group of its arguments."""
    group.add_argument("--device", help="cpu, cuda, cuda:1, mps, … (default: a GPU if there is one)")


def add_engine(group):
    """Add `--engine`, which runs an export in place of a model, to a parser or a group of its arguments."""
    group.add_argument("--engine", choices=ENGINES, help="the model is a folder of `ezclip export --engine`")


def add_dtype(group):
    """Add `--dtype`, that of the weights, to a parser or a group of its arguments."""
    group.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="precision (default: that of the stored weights)",
    )


def add_executor(group):
    """Add `--executor`, what runs the work, to a parser or a group of its arguments."""
    group.add_argument("--executor", choices=EXECUTORS, default=EXECUTORS[0], help=EXECUTOR_HELP)


def to_int(text: str) -> int:
    """Convert the value of an option."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}.") from None


def to_float(text: str) -> float:
    """Convert the value of an option."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}.") from None


def to_bool(text: str | bool) -> bool:
    """Convert the value of an option."""
    try:
        return string_to_bool(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"must be true or false, got {text!r}.") from None
