"""Ask a language model for class texts, and write them in TEAR's format: {class name: [text, ...]}.

    ezclip describe --label_list ucf_labels.csv --model_name_or_path MODEL --output_dir texts
    ezclip describe --candidate_labels archery "making a cake" \\
        --base_url http://127.0.0.1:8000/v1 --model NAME --output_dir texts

The command writes decomposition.json (the action in 3 steps), description.json (1 text about the visible action),
context.json (the place, then objects) and all.json with all three. `--kinds steps` writes steps.json, the action as 2
to 5 steps in order with 3 wordings each: {class name: {"steps": [[wording, ...], ...]}}. If an answer is in another
form, it asks again with the reason. Repeat the same command to go on after an interruption. Exit status: 0 if all
texts are written, 1 if some are missing or the run failed, 130 after Ctrl-C. The environment variable OPENAI_API_KEY
holds the key of the endpoint.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from threading import TIMEOUT_MAX

from tqdm.auto import tqdm

from configuration_ezclip import truncated_repr
from ezclip.cli.parser import Parser
from ezclip.data.labels import read_label_list
from ezclip.descriptions.language_models import Endpoint, TransformersModel
from ezclip.descriptions.questions import (
    KINDS,
    TEAR_KINDS,
    FormError,
    Kind,
    Question,
    prompts_digest,
    without_thoughts,
)
from ezclip.errors import DataError, ModelError
from ezclip.utils.files import as_json_line, write_json
from ezclip.utils.messages import say
from processing_ezclip import label_key


# Options of only one backend, with their defaults
MODEL_OPTIONS = {"batch_size": 8, "dtype": "auto"}
ENDPOINT_OPTIONS = {"num_requests": 8, "timeout": 300.0, "max_retries": 5}


class Journal:
    """
    Keep the accepted answers in a file of JSON lines, from which an interrupted run goes on.

    The first line holds the settings that the answers depend on. A run goes on only with the same settings.

    Raises:
        [`DataError`]: if the file has other settings, is damaged, or cannot be read or written.
    """

    def __init__(self, path: Path, settings: dict):
        self.path = path
        self.texts: dict[tuple[str, str], list[str]] = {}  # by kind and class name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "a+b") as file:
                file.seek(0)
                content = file.read()
                complete = content.rfind(b"\n") + 1
                file.truncate(complete)  # a killed run may leave a part of a line
        except OSError as error:
            raise DataError(f"{path} cannot be opened ({error.strerror}). Give another --output_dir.") from error
        lines = content[:complete].splitlines()
        if not lines:
            self._write({"settings": settings})
        for number, line in enumerate(lines, start=1):
            if number == 1:
                self._check_settings(line, settings)
            else:
                self._read(line, number)

    def add(self, question: Question, texts: list[str]):
        """Write an accepted answer."""
        self._write({"kind": question.kind.name, "class": question.class_name, "texts": texts})
        self.texts[question.kind.name, question.class_name] = texts

    def _write(self, entry: dict):
        try:
            with open(self.path, "ab") as file:
                file.write(as_json_line(entry).encode())
        except OSError as error:
            raise DataError(f"{self.path} cannot be written ({error.strerror}). Is the disk full?") from error

    def _check_settings(self, line: bytes, settings: dict):
        try:
            earlier = json.loads(line)["settings"]
            names = sorted(earlier.keys() | settings.keys())
            if not all(map(str.isidentifier, names)):
                raise ValueError("its settings have other names")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(
                f"{self.path} must begin with the settings of a run. Give another --output_dir."
            ) from error
        changed = [
            f"{name} {truncated_repr(earlier.get(name))}, now {truncated_repr(settings.get(name))}"
            for name in names
            if earlier.get(name) != settings.get(name)
        ]
        if changed:
            raise DataError(
                f"{self.path} holds answers of a run with other settings: {', '.join(changed)}. Give the earlier "
                "settings, or another --output_dir."
            )

    def _read(self, line: bytes, number: int):
        try:
            entry = json.loads(line)
            kind, class_name, texts = entry["kind"], entry["class"], entry["texts"]
            if not (isinstance(texts, list) and all(isinstance(text, str) for text in [kind, class_name, *texts])):
                raise ValueError("its entries have other types")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(
                f"Line {number} of {self.path} is damaged ({error}). Remove that line to ask again, or give another "
                "--output_dir."
            ) from error
        self.texts[kind, class_name] = texts


def ask_all(
    backend: TransformersModel | Endpoint, questions: list[Question], journal: Journal, max_attempts: int
) -> list[Question]:
    """Ask each question until its answer is accepted. Return those that fail, each with its last problem."""
    order = {(question.kind, question.class_name): position for position, question in enumerate(questions)}
    with tqdm(desc="Asking", unit="answer", total=len(questions)) as bar:
        for _ in range(max_attempts):
            refused = []
            for question, answer in backend.ask(questions):
                text = without_thoughts(answer.text)
                try:
                    if answer.problem is not None:
                        raise FormError(answer.problem)
                    journal.add(question, question.read(text))
                    bar.update()
                except FormError as error:
                    refused.append(question.again(str(error), text))
                    bar.set_postfix({"asked again": len(refused)})
            # The answers of an endpoint arrive in any order.
            questions = sorted(refused, key=lambda question: order[question.kind, question.class_name])
    return questions


def read_class_names(label_list: str | None, candidate_labels: list[str]) -> list[str]:
    """Return the class names of a label list, followed by `candidate_labels`."""
    names = [*(read_label_list(label_list) if label_list is not None else []), *map(str.strip, candidate_labels)]
    by_key = {}
    for name in names:
        if not any(map(str.isalnum, name)) or not name.isprintable():
            raise DataError(f"A label must have letters and only printable characters, got {name!r}.")
        other = by_key.setdefault(label_key(name), name)
        if other is not name:
            raise DataError(f"Labels must differ in more than case and blanks, got {other!r} and {name!r}.")
    return names


def write_texts(output_dir: Path, class_names: list[str], kinds: list[Kind], journal: Journal):
    """Write a file for each kind, and `all.json` if `kinds` has TEAR's three."""
    contents = {
        kind.name: {
            name: kind.describe(texts) for name in class_names if (texts := journal.texts.get((kind.name, name)))
        }
        for kind in kinds
    }
    if contents.keys() >= set(TEAR_KINDS):
        # Leave out a class that lacks a kind, so that all classes have the same kinds of text.
        complete = [name for name in class_names if all(name in contents[kind] for kind in TEAR_KINDS)]
        contents["all"] = {name: [text for kind in TEAR_KINDS for text in contents[kind][name]] for name in complete}
    for name, content in contents.items():
        if content:
            path = output_dir / f"{name}.json"
            try:
                write_json(path, content)
            except OSError as error:
                raise DataError(
                    f"{path} cannot be written ({error.strerror}). {journal.path.name} keeps the answers: run the "
                    "same command again to go on."
                ) from error
            say(f"{path}: {len(content)} of {len(class_names)} classes")


def describe_classes(args: argparse.Namespace) -> str | None:
    """Ask for the texts that are missing and write the files. Return why answers are missing, or `None`."""
    class_names = read_class_names(args.label_list, args.candidate_labels)
    kinds = [kind for kind in KINDS.values() if kind.name in args.kinds]
    output_dir = Path(args.output_dir)
    journal_path = output_dir / "journal.jsonl"
    for name in (*KINDS, "all"):
        if (output_dir / f"{name}.json").exists() and not journal_path.exists():
            raise DataError(
                f"{output_dir} has a {name}.json that `ezclip describe` did not write. Give another --output_dir."
            )
    settings = {
        "model": args.model_name_or_path or args.model,
        "dtype": args.dtype,
        "prompts": prompts_digest(),
        "seed": args.seed,
        "temperature": args.temperature,
    }
    journal = Journal(journal_path, settings)
    questions = [Question(kind, name) for kind in kinds for name in class_names]
    missing = [question for question in questions if (question.kind.name, question.class_name) not in journal.texts]
    if len(missing) < len(questions):
        say(f"{journal_path} already has {len(questions) - len(missing)} of {len(questions)} answers.")
    failed = ask_all(load_backend(args), missing, journal, args.max_attempts) if missing else []
    write_texts(output_dir, class_names, kinds, journal)
    if not failed:
        return None
    lines = [f"{len(failed)} of {len(questions)} answers are missing (--max_attempts {args.max_attempts}):"]
    lines += [f"  {question.kind.name} of {question.class_name!r}: {question.problem}" for question in failed]
    lines.append("The files lack them. Run the same command with more --max_attempts to ask for them again.")
    return "\n".join(lines)


def load_backend(args: argparse.Namespace) -> TransformersModel | Endpoint:
    """Load the language model of the options."""
    sampling = {"seed": args.seed, "temperature": args.temperature, "max_new_tokens": args.max_new_tokens}
    if args.base_url is None:
        return TransformersModel(args.model_name_or_path, **sampling, batch_size=args.batch_size, dtype=args.dtype)
    return Endpoint(
        args.base_url,
        args.model,
        **sampling,
        num_requests=args.num_requests,
        timeout=args.timeout,
        max_retries=args.max_retries,
    )


def make_parser() -> Parser:
    """Return the parser of `ezclip describe`."""
    parser = Parser(prog="ezclip describe", description=__doc__)
    parser.add_argument("--label_list", help="published list of classes: `id,name` or `id name` on each line")
    parser.add_argument("--candidate_labels", nargs="+", default=[], metavar="LABEL", help="class names")
    parser.add_argument("--output_dir", required=True, help="folder to write, or to go on with")
    parser.add_argument(
        "--kinds",
        nargs="+",
        choices=KINDS,
        default=list(TEAR_KINDS),
        help="kinds of text (default: TEAR's, which are all but steps)",
    )
    parser.add_argument("--max_attempts", type=int, default=4, help="attempts for each text")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampling")
    parser.add_argument("--temperature", type=float, default=0.7, help="temperature of the sampling; 0: no sampling")
    parser.add_argument("--max_new_tokens", type=int, default=512, help="maximum tokens of an answer")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model_name_or_path", help="text-generation model of transformers: Hub name or folder")
    source.add_argument("--base_url", help="OpenAI-compatible endpoint, such as http://127.0.0.1:8000/v1")
    local = parser.add_argument_group("with --model_name_or_path")
    local.add_argument("--batch_size", type=int, help=f"questions at a time (default: {MODEL_OPTIONS['batch_size']})")
    local.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16", "float16"), help="dtype of the weights (default: auto)"
    )
    endpoint = parser.add_argument_group("with --base_url")
    endpoint.add_argument("--model", help="name of the model on the server")
    endpoint.add_argument(
        "--num_requests", type=int, help=f"requests at a time (default: {ENDPOINT_OPTIONS['num_requests']})"
    )
    endpoint.add_argument(
        "--timeout", type=float, help=f"seconds for an answer (default: {ENDPOINT_OPTIONS['timeout']:g})"
    )
    endpoint.add_argument(
        "--max_retries", type=int, help=f"retries of a failed request (default: {ENDPOINT_OPTIONS['max_retries']})"
    )
    return parser


def complete_options(parser: Parser, args: argparse.Namespace):
    """Check the options and set the defaults of the chosen backend. Exit with a message if an option is wrong."""
    if args.label_list is None and not args.candidate_labels:
        parser.error("there are no classes: give --label_list, --candidate_labels or both.")
    if args.base_url is None:
        defaults, others, option = MODEL_OPTIONS, {"model": None, **ENDPOINT_OPTIONS}, "--base_url"
    else:
        defaults, others, option = ENDPOINT_OPTIONS, MODEL_OPTIONS, "--model_name_or_path"
    for name in others:
        if getattr(args, name) is not None:
            parser.error(f"--{name} is for {option}.")
    for name, default in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    if args.base_url is not None:
        if not args.model:
            parser.error("--base_url needs --model, the name of the model on the server.")
        if not args.base_url.lower().startswith(("http://", "https://")):
            parser.error(f"--base_url must be an address like http://127.0.0.1:8000/v1, got {args.base_url!r}.")
    minima = {"max_attempts": 1, "max_new_tokens": 1, "batch_size": 1, "num_requests": 1, "max_retries": 0}
    for name, minimum in minima.items():
        value = getattr(args, name)
        if value is not None and value < minimum:
            parser.error(f"--{name} must be at least {minimum}, got {value}.")
    if args.timeout is not None and not 0 < args.timeout <= TIMEOUT_MAX:
        parser.error(f"--timeout must be a number of seconds above 0, got {args.timeout}.")
    if not 0 <= args.temperature < math.inf:
        parser.error(f"--temperature must be 0 or more, got {args.temperature}.")


def main(argv: list[str] | None = None) -> int:
    """Run `ezclip describe` with the options `argv`, by default those of the process. Return the exit status."""
    parser = make_parser()
    args = parser.parse_args(argv)
    complete_options(parser, args)
    try:
        missing = describe_classes(args)
    except (DataError, ModelError) as error:
        sys.exit(f"ezclip describe: {error}")
    except KeyboardInterrupt:
        say(
            f"\nezclip describe: stopped. Run the same command again to go on from {args.output_dir}/journal.jsonl.",
            file=sys.stderr,
        )
        return 130
    if missing is not None:
        say(f"ezclip describe: {missing}", file=sys.stderr)
    return int(missing is not None)
