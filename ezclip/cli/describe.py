"""Ask a language model for texts of classes, and write them in TEAR's format: {class name: [text, ...]}.

    python scripts/generate_descriptions.py --label_list ucf_labels.csv --model_name_or_path MODEL --output_dir texts
    python scripts/generate_descriptions.py --candidate_labels archery "making a cake" \\
        --base_url http://127.0.0.1:8000/v1 --model NAME --output_dir texts

Writes decomposition.json (the action in 3 steps), description.json (what one sees, 1 text), context.json (the place,
then things) and, of all three, all.json. An answer in another form is asked again, with the reason. The same command
goes on where it was stopped. Exit status: 0 if all texts are there, 1 if some are missing or the run could not go on,
130 if it was stopped. A key for the endpoint is read from the environment variable OPENAI_API_KEY.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from threading import TIMEOUT_MAX
from urllib.parse import urlsplit

from tqdm.auto import tqdm

from ezclip.data.labels import read_label_list
from ezclip.descriptions.language_models import Endpoint, TransformersModel
from ezclip.descriptions.questions import KINDS, FormError, Kind, Question, prompts_digest, without_thoughts
from ezclip.errors import DataError, ModelError
from ezclip.utils.files import write_json
from processing_ezclip import label_key


# Options of one back end, with their defaults
MODEL_OPTIONS = {"batch_size": 8, "dtype": "auto"}
ENDPOINT_OPTIONS = {"num_requests": 8, "timeout": 300.0, "max_retries": 5}


class Journal:
    """
    The answers that were accepted, a line of JSON each, written at once, so that a run that is cut off goes on there.

    Its first line holds the settings. It is a context manager that opens and closes the file.

    Args:
        path (`str` or `Path`):
            The file; its folder is made.
        settings (`dict`):
            What decides the answers, of types that JSON has.

    Raises:
        [`DataError`]: if the file is of other settings, is damaged, or cannot be read or written.
    """

    def __init__(self, path: str | Path, settings: dict):
        self.path, self.settings = Path(path), settings
        self.texts: dict[tuple[str, str], list[str]] = {}  # by kind and class name

    def __enter__(self) -> "Journal":
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a+b")
            self._file.seek(0)
            content = self._file.read()
        except OSError as error:
            raise DataError(f"{self.path} cannot be opened ({error.strerror}). Give another --output_dir.") from error
        try:
            whole = content.rfind(b"\n") + 1
            self._file.truncate(whole)  # what a run that was killed wrote of a line
            lines = content[:whole].splitlines()
            if lines:
                self._check_settings(lines[0])
                for number, line in enumerate(lines[1:], start=2):
                    self._read(line, number)
            else:
                self._write({"settings": self.settings})
        except DataError:
            self._file.close()
            raise
        return self

    def __exit__(self, *_):
        self._file.close()

    def add(self, question: Question, texts: list[str]):
        """Keep an answer."""
        self._write({"kind": question.kind.name, "class": question.class_name, "texts": texts})
        self.texts[question.kind.name, question.class_name] = texts

    def _write(self, entry: dict):
        try:
            self._file.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise DataError(f"{self.path} cannot be written ({error.strerror}). Is the disk full?") from error

    def _check_settings(self, line: bytes):
        try:
            settings = json.loads(line)["settings"]
            names = settings.keys() | self.settings.keys()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{self.path} does not begin with the settings of a run. Give another --output_dir."
            ) from error
        changed = sorted(name for name in names if settings.get(name) != self.settings.get(name))
        if changed:
            differences = ", ".join(
                f"{name} {settings.get(name)!r}, now {self.settings.get(name)!r}" for name in changed
            )
            raise DataError(
                f"{self.path} holds answers of a run with other settings: {differences}. Give the settings it had, or "
                "another --output_dir."
            )

    def _read(self, line: bytes, number: int):
        try:
            entry = json.loads(line)
            kind, class_name, texts = entry["kind"], entry["class"], entry["texts"]
            if not (isinstance(texts, list) and all(isinstance(text, str) for text in [kind, class_name, *texts])):
                raise ValueError("its entries have other types")
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"Line {number} of {self.path} is damaged ({error}). Remove that line to have it asked again, or give "
                "another --output_dir."
            ) from error
        self.texts[kind, class_name] = texts


def ask_all(
    backend: TransformersModel | Endpoint, questions: list[Question], journal: Journal, max_attempts: int
) -> list[Question]:
    """
    Ask until every answer is in its form, or was asked for `max_attempts` times; the journal gets those that are.

    Returns:
        `list[Question]`: what has no answer, each with its last problem.
    """
    places = {(question.kind, question.class_name): place for place, question in enumerate(questions)}
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
            # Answers of an endpoint come in any order
            questions = sorted(refused, key=lambda question: places[question.kind, question.class_name])
    return questions


def read_class_names(args: argparse.Namespace) -> list[str]:
    """The classes of both options, in their order."""
    names = [name.strip() for name in args.candidate_labels or []]
    if args.label_list is not None:
        names = read_label_list(args.label_list) + names
    by_key = {}
    for name in names:
        if not label_key(name) or not name.isprintable():
            raise DataError(f"{name!r} is no label: it has no letters, or characters that cannot be shown.")
        other = by_key.setdefault(label_key(name), name)
        if other is not name:
            raise DataError(f"The labels {other!r} and {name!r} are the same, or differ in case and blanks alone.")
    return names


def write_texts(output_dir: Path, class_names: list[str], kinds: list[Kind], journal: Journal) -> dict[str, int]:
    """
    Write a file for each kind, and `all.json` where all kinds were asked for.

    Returns:
        `dict[str, int]`: the files that were written, with their numbers of classes.
    """
    contents = {
        kind.name: {name: texts for name in class_names if (texts := journal.texts.get((kind.name, name)))}
        for kind in kinds
    }
    if len(kinds) == len(KINDS):
        # A class without one of them is left out, so that all classes have the same kinds of text.
        whole = [name for name in class_names if all(name in content for content in contents.values())]
        contents["all"] = {name: [text for kind in kinds for text in contents[kind.name][name]] for name in whole}
    contents = {f"{name}.json": content for name, content in contents.items() if content}
    try:
        for name, content in contents.items():
            write_json(output_dir / name, content)
    except OSError as error:
        raise DataError(
            f"{output_dir} cannot be written to ({error.strerror}). The answers are in {journal.path.name}: the same "
            "command goes on from there."
        ) from error
    return {name: len(content) for name, content in contents.items()}


def run(args: argparse.Namespace) -> int:
    class_names = read_class_names(args)
    kinds = [kind for kind in KINDS.values() if kind.name in args.kinds]
    output_dir = Path(args.output_dir)
    journal_path = output_dir / "journal.jsonl"
    for name in (*KINDS, "all"):
        if (output_dir / f"{name}.json").exists() and not journal_path.exists():
            raise DataError(
                f"{output_dir} has a {name}.json that this script did not write. Give another --output_dir."
            )

    model = args.model_name_or_path or args.model
    settings = {
        "model": model,
        "dtype": args.dtype,
        "prompts": prompts_digest(),
        "seed": args.seed,
        "temperature": args.temperature,
    }
    with Journal(journal_path, settings) as journal:
        questions = [Question(kind, name) for kind in kinds for name in class_names]
        missing = [
            question for question in questions if (question.kind.name, question.class_name) not in journal.texts
        ]
        if len(missing) < len(questions):
            print(f"{len(questions) - len(missing)} of {len(questions)} answers are in {journal_path} already.")
        failed = ask_all(make_backend(args), missing, journal, args.max_attempts) if missing else []
        for name, count in write_texts(output_dir, class_names, kinds, journal).items():
            print(f"{output_dir / name}: {count} of {len(class_names)} classes")

    if failed:
        message = summarise(failed, len(questions), args.max_attempts)
        print(f"generate_descriptions.py: {message}", file=sys.stderr)
    return int(bool(failed))


def summarise(failed: list[Question], total: int, max_attempts: int) -> str:
    lines = [f"{len(failed)} of {total} answers are missing (--max_attempts {max_attempts}):"]
    lines += [f"  {question.kind.name} of {question.class_name!r}: {question.problem}" for question in failed]
    lines.append("They are not in the files. The same command with more --max_attempts asks for them alone.")
    return "\n".join(lines)


def make_backend(args: argparse.Namespace) -> TransformersModel | Endpoint:
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


# ---- The command ----


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--label_list", help="published list of classes: `id,name` or `id name` a line")
    parser.add_argument("--candidate_labels", nargs="+", metavar="LABEL", help="class names")
    parser.add_argument("--output_dir", required=True, help="folder to write, or to go on with")
    parser.add_argument(
        "--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="what to ask for (default: all three)"
    )
    parser.add_argument("--max_attempts", type=int, default=4, help="how often each text is asked for (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling (%(default)s)")
    parser.add_argument("--temperature", type=float, default=0.7, help="of the sampling, or 0 (%(default)g)")
    parser.add_argument("--max_new_tokens", type=int, default=512, help="tokens of an answer (%(default)s)")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model_name_or_path", help="text-generation model of transformers: Hub name or folder")
    source.add_argument("--base_url", help="OpenAI-compatible endpoint, such as http://127.0.0.1:8000/v1")
    local = parser.add_argument_group("with --model_name_or_path")
    local.add_argument("--batch_size", type=int, help=f"questions at a time ({MODEL_OPTIONS['batch_size']})")
    local.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), help="of the weights (auto)")
    endpoint = parser.add_argument_group("with --base_url")
    endpoint.add_argument("--model", help="the server's name of the model")
    endpoint.add_argument("--num_requests", type=int, help=f"at a time ({ENDPOINT_OPTIONS['num_requests']})")
    endpoint.add_argument(
        "--timeout", type=float, help=f"seconds to wait for an answer ({ENDPOINT_OPTIONS['timeout']:g})"
    )
    endpoint.add_argument(
        "--max_retries", type=int, help=f"of a request that fails or is refused ({ENDPOINT_OPTIONS['max_retries']})"
    )
    return parser


def complete_options(parser: argparse.ArgumentParser, args: argparse.Namespace):
    """That options belong to the back end and are in their range; what is not given gets its default."""
    if args.label_list is None and not args.candidate_labels:
        parser.error("no classes: give --label_list, --candidate_labels or both.")
    if args.base_url is None:
        own, foreign, option = MODEL_OPTIONS, {"model": None, **ENDPOINT_OPTIONS}, "--base_url"
    else:
        own, foreign, option = ENDPOINT_OPTIONS, MODEL_OPTIONS, "--model_name_or_path"
    for name in foreign:
        if getattr(args, name) is not None:
            parser.error(f"--{name} is for {option}.")
    for name, default in own.items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    if args.base_url is not None:
        if not args.model:
            parser.error("--base_url needs --model, the name by which the server has the model.")
        try:
            address = urlsplit(args.base_url)
            is_address = address.scheme in ("http", "https") and address.hostname and address.port != 0
        except ValueError:
            is_address = False
        if not is_address:
            parser.error(f"--base_url must be an address like http://127.0.0.1:8000/v1, got {args.base_url!r}.")
    for name in ("max_attempts", "max_new_tokens", "batch_size", "num_requests"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}.")
    if args.max_retries is not None and args.max_retries < 0:
        parser.error(f"--max_retries must be at least 0, got {args.max_retries}.")
    if args.timeout is not None and not 0 < args.timeout <= TIMEOUT_MAX:
        parser.error(f"--timeout must be a number of seconds above 0, got {args.timeout}.")
    if not (args.temperature >= 0 and math.isfinite(args.temperature)):
        parser.error(f"--temperature must be 0 or more, got {args.temperature}.")


def main(argv: list[str] | None = None) -> int:
    parser = make_parser()
    args = parser.parse_args(argv)
    complete_options(parser, args)
    try:
        return run(args)
    except (DataError, ModelError) as error:
        sys.exit(f"generate_descriptions.py: {error}")
    except KeyboardInterrupt:
        print(
            f"\ngenerate_descriptions.py: stopped. The same command goes on from {args.output_dir}/journal.jsonl.",
            file=sys.stderr,
        )
        return 130


if __name__ == "__main__":
    sys.exit(main())
