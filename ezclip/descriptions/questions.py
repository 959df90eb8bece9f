"""Ask a language model for TEAR's three kinds of class texts, or for steps in order, and check its answers."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from processing_ezclip import label_key, label_to_words


EXAMPLE_LABEL = "winding a clock"


@dataclass(frozen=True)
class Kind:
    """
    A kind of class text.

    Args:
        name (`str`):
            Name of the kind: one of `TEAR_KINDS`, or `"steps"`.
        request (`str`):
            The request to the language model.
        form (`str`):
            The number of numbered lines in the answer, in words.
        example (`tuple[str, ...]`):
            The texts of a correct answer for the label "winding a clock".
        num_lines (`tuple[int, int]`):
            Minimum and maximum number of lines.
        max_words (`int`):
            Maximum words of a text. With the class name in front they fit CLIP's 77 tokens.
        num_wordings (`int`, *optional*, defaults to 1):
            Number of texts in a line, separated by " / ": wordings of one step.
    """

    name: str
    request: str
    form: str
    example: tuple[str, ...]
    num_lines: tuple[int, int]
    max_words: int
    num_wordings: int = 1

    def group(self, texts: Sequence[str]) -> list[list[str]]:
        """Return the texts of each line."""
        return [list(texts[i : i + self.num_wordings]) for i in range(0, len(texts), self.num_wordings)]

    def describe(self, texts: list[str]) -> list[str] | dict[str, list[list[str]]]:
        """Return the texts of a class in the form of `--class_descriptions`: a list, or the wordings of its steps."""
        return texts if self.num_wordings == 1 else {"steps": self.group(texts)}


KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            name="decomposition",
            request=(
                "Tell in exactly 3 steps how this action runs in a video, from its beginning to its end. Each step is "
                "one movement that a viewer sees, in at most 12 words."
            ),
            form="exactly 3 numbered lines",
            example=(
                "A hand opens the glass in front of the clock face",
                "The fingers turn a small key round and round",
                "The hand takes the key out and closes the glass",
            ),
            num_lines=(3, 3),
            max_words=12,
        ),
        Kind(
            name="description",
            request=(
                "Say in one sentence of at most 40 words what a viewer of such a video sees: who acts, how they move, "
                "and what they hold or touch. Leave out purposes, feelings and all else that a camera cannot show."
            ),
            form="exactly 1 numbered line",
            example=(
                "A person stands close to an old clock, holds its case with one hand and turns a key in its face with "
                "slow twists of the other.",
            ),
            num_lines=(1, 1),
            max_words=40,
        ),
        Kind(
            name="context",
            request=(
                "Name first the place where this action is mostly seen, then 2 to 4 things that are mostly in the "
                "picture, one thing a line. Each line has at most 8 words."
            ),
            form="3 to 5 numbered lines",
            example=("a living room with an old clock", "clock", "key", "hand"),
            num_lines=(3, 5),
            max_words=8,
        ),
        Kind(
            name="steps",
            request=(
                "Tell in 2 to 5 steps how this action runs in a video, from its beginning to its end. A step is what "
                "one picture of that moment shows, and the pictures of the other steps do not. Write each step in 3 "
                "wordings of at most 12 words, with / between them."
            ),
            form="2 to 5 numbered lines, each with 3 wordings and / between them",
            example=(
                *("a hand at the open glass of a clock", "an open clock face with no key in it"),
                "a person opens the front of a clock",
                *("fingers turn a small key in the clock face", "a key is in the hole of an open clock"),
                "a person winds a clock with a key",
                *("a hand closes the glass of a clock", "a closed clock and a key in the hand"),
                "a person shuts the front of a clock",
            ),
            num_lines=(2, 5),
            max_words=12,
            num_wordings=3,
        ),
    )
}
TEAR_KINDS = ("decomposition", "description", "context")
MAX_CHARACTERS_PER_WORD = 8  # a limit for scripts without blanks between words
MAX_CHARACTERS = 100_000  # of an answer with remarks; to take a longer one apart could take minutes
MAX_QUOTED = 1000  # characters of a refused answer in the next request

REQUEST = """\
"{label}" is the label of an action in a collection of videos. {request}
Answer with {form} and nothing else: no heading, no remark.

For the label "{example_label}" the answer would be:
{example}

Now answer for the label "{label}"."""
COMPLAINT = 'This cannot be used: {problem}. Answer again for the label "{label}", with {form} and nothing else.'

ITEM = re.compile(r"\W{0,3}(?:(?:step\s*)?\d{1,2}\W{0,2}[.):](?!\d)|[-*•–]\s)[*_\s]*(?P<text>.*)", re.IGNORECASE)
HEADING = re.compile(r"(?:\w+\s+){0,2}\w+\s*:")
MARKUP = re.compile(r"[{}<>|]|```")
REMARK = re.compile(
    r"(?:sure|certainly|of course|okay|here (?:is|are)|here[’']s|as an ai|as a language model|"
    r"i (?:cannot|can[’']t|am)|i[’']m|sorry|unfortunately)\b",
    re.IGNORECASE,
)


def prompts_digest() -> str:
    """Return a digest of the prompts and of the limits of accepted answers."""
    content = [REQUEST, COMPLAINT, EXAMPLE_LABEL, MAX_CHARACTERS_PER_WORD, *map(asdict, KINDS.values())]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


class FormError(ValueError):
    """An answer is not in the requested form. The language model and the user both get the message."""


@dataclass(frozen=True)
class Question:
    """
    A request for the texts of one kind and class.

    Args:
        kind (`Kind`):
            The kind of text.
        class_name (`str`):
            The class. The language model gets its name in words.
        attempt (`int`, *optional*, defaults to 0):
            Number of earlier attempts.
        problem (`str`, *optional*):
            Why the last answer was refused or is missing.
        refused (`str`, *optional*):
            The refused answer, if there was one.
    """

    kind: Kind
    class_name: str
    attempt: int = 0
    problem: str | None = None
    refused: str | None = None

    @property
    def label(self) -> str:
        """Return the class name in words."""
        return label_to_words(self.class_name)

    def messages(self) -> list[dict[str, str]]:
        """Return the conversation: the request, then a refused answer and the reason if there is one."""
        lines = enumerate(map(" / ".join, self.kind.group(self.kind.example)), start=1)
        example = "\n".join(f"{number}. {line}" for number, line in lines)
        request = REQUEST.format(
            label=self.label,
            request=self.kind.request,
            form=self.kind.form,
            example_label=EXAMPLE_LABEL,
            example=example,
        )
        messages = [{"role": "user", "content": request}]
        if self.refused:
            complaint = COMPLAINT.format(problem=self.problem, label=self.label, form=self.kind.form)
            messages += [
                {"role": "assistant", "content": self.refused[:MAX_QUOTED]},
                {"role": "user", "content": complaint},
            ]
        return messages

    def seed(self, seed: int) -> int:
        """Return a seed of 31 bits that depends only on this question and the seed of the run."""
        text = json.dumps([seed, self.kind.name, self.class_name, self.attempt])
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1

    def again(self, problem: str, refused: str | None) -> "Question":
        """Return the question for the next attempt."""
        return replace(self, attempt=self.attempt + 1, problem=problem, refused=refused)

    def read(self, answer: str) -> list[str]:
        """Return the texts of an answer. Raise [`FormError`] if it is not in the requested form."""
        lines = split_answer(answer)
        minimum, maximum = self.kind.num_lines
        if not minimum <= len(lines) <= maximum:
            wanted = f"{minimum}" if minimum == maximum else f"{minimum} to {maximum}"
            raise FormError(f"it has {len(lines)} text{'' if len(lines) == 1 else 's'}, not {wanted}")
        if (expected := self.kind.num_wordings) == 1:
            texts = lines
        else:
            wordings = [[_clean(text) for text in line.split("/")] for line in lines]
            for number, own in enumerate(wordings, start=1):
                if len(own) != expected:
                    raise FormError(f"step {number} has {len(own)} wordings, not {expected} with / between them")
            texts = [text for own in wordings for text in own]
        check_texts(texts, self.kind, self.label)
        return texts


def without_thoughts(answer: str) -> str:
    """Return an answer without the thoughts of a reasoning model; "" if they do not end with `</think>`."""
    _, _, answer = answer.rpartition("</think>")
    return "" if answer.lstrip().startswith("<think>") else answer


def split_answer(answer: str) -> list[str]:
    """
    Split an answer into texts: a JSON array of strings, numbered or bulleted lines, or else all its lines.

    A line directly below a numbered line continues it. Other lines beside numbered ones are remarks.

    Raises:
        [`FormError`]: if the answer is too long, or its JSON is invalid or not an array of strings.
    """
    if len(answer) > MAX_CHARACTERS:
        raise FormError(f"it has {len(answer):,} characters, at most {MAX_CHARACTERS:,} are allowed")
    if fenced := re.search(r"```\w*\n(.*?)```", answer, re.DOTALL):
        answer = fenced.group(1)
    answer = answer.strip()
    if answer.startswith("["):
        try:
            texts, _ = json.JSONDecoder().raw_decode(answer)
        except (ValueError, RecursionError) as error:
            raise FormError(f"it begins like JSON but is invalid ({error})") from error
        if not all(isinstance(text, str) for text in texts):
            raise FormError("it is a JSON array with other items than strings")
        return [_clean(text) for text in texts]
    lines = [line.strip() for line in answer.splitlines()]
    items, is_inside = [], False
    for line in lines:
        if ITEM.fullmatch(line):
            items.append(line)
        elif is_inside and line:
            items[-1] += f" {line}"
        is_inside = bool(items and line)
    return [_clean(text) for text in items or filter(None, lines)]


def _clean(text: str) -> str:
    """Return a text in one line, without its number, emphasis and quotation marks."""
    text = " ".join(text.split())
    if item := ITEM.fullmatch(text):
        text = item["text"]
    text = text.replace("**", "")
    quoted = re.fullmatch(r"([\"'`“‘*_])((?:(?!\1).)+)[\"'`”’*_]", text)
    return quoted[2].strip() if quoted else text


def check_texts(texts: list[str], kind: Kind, label: str):
    """Raise [`FormError`] if the texts of an answer do not fit the kind and the label."""
    for number, text in enumerate(texts, start=1):
        line, wording = divmod(number - 1, kind.num_wordings)
        name = f"text {number}" if kind.num_wordings == 1 else f"wording {wording + 1} of step {line + 1}"
        if not any(character.isalpha() for character in text):
            raise FormError(f"{name} is empty or has no letters")
        if "\ufffd" in text or not text.isprintable():
            raise FormError(f"{name} has unprintable characters")
        if markup := MARKUP.search(text):
            raise FormError(f"{name} has {markup.group()!r}, which is not plain text")
        words = len(text.split())
        if words > kind.max_words:
            raise FormError(f"{name} has {words} words, at most {kind.max_words} are allowed")
        if len(text) > (limit := kind.max_words * MAX_CHARACTERS_PER_WORD):
            raise FormError(f"{name} has {len(text)} characters, at most {limit} are allowed")
        if heading := HEADING.match(text):
            raise FormError(f"{name} begins with the heading {heading.group()!r}")
        if REMARK.match(text):
            raise FormError(f"{name} is a remark ({text[:40]!r}), not a description of the video")
        # An object may have the name of the class, as the ball of "basketball" does.
        if label_key(text) == label_key(label) and (number == 1 or kind.name != "context"):
            raise FormError(f"{name} is only the label")
    if label_key(texts[0]) == label_key(kind.example[0]) and label_key(label) != label_key(EXAMPLE_LABEL):
        raise FormError("it copies the example")
    if len({label_key(text) for text in texts}) < len(texts):
        raise FormError("a text is repeated")
