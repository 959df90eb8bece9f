"""Language models that answer questions: one of transformers, or an endpoint that speaks OpenAI's protocol."""

import multiprocessing
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.pool import IMapIterator, ThreadPool

import requests
import torch
from requests.adapters import HTTPAdapter, Retry
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor, LogitsProcessorList
from transformers.utils import logging
from urllib3.exceptions import InvalidHeader

from ezclip.descriptions.questions import Question
from ezclip.errors import ModelError


logger = logging.get_logger(__name__)

MAX_FAILURES_IN_A_ROW = 5
ANNOUNCED_WAIT = 10  # seconds; shorter ones are not worth a word
LONGEST_WAIT = 1  # seconds until a Ctrl-C is seen


@dataclass(frozen=True)
class Answer:
    """
    What came back for a question.

    Args:
        text (`str`):
            The words of the language model, if any came.
        problem (`str`, *optional*):
            Why there is no answer, or not a whole one.
    """

    text: str = ""
    problem: str | None = None


class SeededSampling(LogitsProcessor):
    """
    Leaves of every row of scores `(B, vocabulary)` the token that is drawn, with a generator for each row: what one
    row draws does not depend on the others, as it does where `generate` samples.

    Args:
        seeds (`list[int]`):
            B seeds.
        temperature (`float`):
            What scores are divided by, above 0.
    """

    def __init__(self, seeds: list[int], temperature: float):
        self.generators, self.temperature = [random.Random(seed) for seed in seeds], temperature

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        totals = torch.softmax(scores.float() / self.temperature, dim=-1).cumsum(dim=-1)
        # 24 bits: a float32 holds them, so that a draw stays below 1.
        draws = torch.tensor([[generator.getrandbits(24) / 2**24] for generator in self.generators])
        drawn = torch.searchsorted(totals, draws.to(totals) * totals[:, -1:], right=True)
        return torch.full_like(scores, -torch.inf).scatter(-1, drawn, 0.0)


class TransformersModel:
    """
    A text-generation model of transformers, asked in batches: by its chat template, or with plain text if it has none.

    Args:
        name_or_path (`str`):
            A folder, or a name on the Hub.
        seed (`int`):
            Seed of the run.
        temperature (`float`):
            Of the sampling; 0 takes the likeliest token.
        max_new_tokens (`int`):
            Tokens of an answer.
        batch_size (`int`):
            Questions at a time.
        dtype (`str`):
            Of the weights: `"auto"`, or a name that torch has.

    Raises:
        [`ModelError`]: if it cannot be loaded.
    """

    def __init__(
        self, name_or_path: str, seed: int, temperature: float, max_new_tokens: int, batch_size: int, dtype: str
    ):
        self.seed, self.temperature = seed, temperature
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(name_or_path, padding_side="left")
            self.model = AutoModelForCausalLM.from_pretrained(name_or_path, dtype=dtype, device_map="auto").eval()
        except (OSError, ValueError) as error:
            raise ModelError(
                f"No text-generation model at {name_or_path!r} ({_shortened(error)}). Give a folder or a Hub "
                "name that AutoModelForCausalLM loads."
            ) from error
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token or self.tokenizer.convert_ids_to_tokens(0)
        self.max_length = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    def ask(self, questions: list[Question]) -> Iterator[tuple[Question, Answer]]:
        """Each question with its answer, a batch after the other."""
        for start in range(0, len(questions), self.batch_size):
            batch, prompts = [], []
            for question in questions[start : start + self.batch_size]:
                prompt = self._prompt(question)
                needed = len(self._tokenize(prompt).input_ids) + self.max_new_tokens
                if self.max_length is not None and needed > self.max_length:
                    problem = f"with --max_new_tokens it needs {needed} tokens, and the model reads {self.max_length}"
                    yield question, Answer(problem=problem)
                else:
                    batch.append(question)
                    prompts.append(prompt)
            if batch:
                yield from zip(batch, self._generate(batch, prompts))

    def _prompt(self, question: Question) -> str:
        if self.tokenizer.chat_template:
            return self.tokenizer.apply_chat_template(
                question.messages(), tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
        parts = [
            f"Answer:\n{message['content']}" if message["role"] == "assistant" else message["content"]
            for message in question.messages()
        ]
        return "\n\n".join([*parts, "Answer:\n1."])

    def _tokenize(self, prompts: str | list[str], **kwargs):
        # A chat template writes the special tokens itself.
        return self.tokenizer(prompts, add_special_tokens=not self.tokenizer.chat_template, **kwargs)

    @torch.inference_mode()
    def _generate(self, questions: list[Question], prompts: list[str]) -> list[Answer]:
        inputs = self._tokenize(prompts, padding=True, return_tensors="pt", return_token_type_ids=False)
        options = dict.fromkeys(("max_length", "temperature", "top_p", "top_k")) | {"do_sample": False, "num_beams": 1}
        if self.temperature > 0:
            sampling = SeededSampling([question.seed(self.seed) for question in questions], self.temperature)
            options["logits_processor"] = LogitsProcessorList([sampling])
        if not self.tokenizer.chat_template:  # goes on with other things after a blank line
            options |= {"stop_strings": ["\n\n"], "tokenizer": self.tokenizer}
        try:
            output = self.model.generate(
                **inputs.to(self.model.device),
                max_new_tokens=self.max_new_tokens,
                pad_token_id=self.tokenizer.pad_token_id,
                **options,
            )
        except torch.cuda.OutOfMemoryError as error:
            raise ModelError(
                f"The GPU has not enough memory for {len(questions)} questions at a time. Give a --batch_size below "
                f"{self.batch_size}, or --dtype bfloat16."
            ) from error
        return [self._answer(tokens) for tokens in output[:, inputs.input_ids.shape[1] :]]

    def _answer(self, tokens: torch.LongTensor) -> Answer:
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        end_ids = self.model.generation_config.eos_token_id  # one, several or none
        is_whole = end_ids is not None and bool(torch.isin(tokens.cpu(), torch.tensor(end_ids)).any())
        if not self.tokenizer.chat_template:
            text, end, _ = text.partition("\n\n")
            text, is_whole = f"1.{text}", is_whole or bool(end)
        return Answer(text, None if is_whole else f"it was cut after {self.max_new_tokens} tokens")


class BearerKey(requests.auth.AuthBase):
    """A key in the header, or none: given as `auth`, requests takes no other from ~/.netrc."""

    def __init__(self, key: str):
        self.key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self.key:
            request.headers["Authorization"] = f"Bearer {self.key}"
        return request


class PatientRetry(Retry):
    """urllib3's retries, which say so where a server asks for a long wait."""

    def get_retry_after(self, response) -> float | None:
        try:
            seconds = super().get_retry_after(response)
        except InvalidHeader:
            return None
        if seconds is not None and seconds > ANNOUNCED_WAIT:
            logger.warning(f"The server answered {response.status} and asks to wait for {seconds:.0f} s.")
        return seconds


class Endpoint:
    """
    A server that speaks the chat-completions protocol of OpenAI, asked by several threads.

    Args:
        base_url (`str`):
            What stands before `/chat/completions`.
        model (`str`):
            The server's name of the model.
        seed (`int`), temperature (`float`), max_new_tokens (`int`):
            As for [`TransformersModel`].
        num_requests (`int`):
            Questions at a time.
        timeout (`float`):
            Seconds without a word after which a request is given up.
        max_retries (`int`):
            How often a request is sent again that was refused for now (408, 429, 5xx) or not answered, after the
            time that the server asks for, or 0, 2, 4, 8 … seconds.

    Raises:
        [`ModelError`]: if nothing can be reached there.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        seed: int,
        temperature: float,
        max_new_tokens: int,
        num_requests: int,
        timeout: float,
        max_retries: int,
    ):
        base_url = base_url.rstrip("/")
        self.url, self.model = f"{base_url}/chat/completions", model
        self.seed, self.temperature, self.max_new_tokens = seed, temperature, max_new_tokens
        self.num_requests, self.timeout = num_requests, timeout
        retries = PatientRetry(
            max_retries,
            backoff_factor=1,
            backoff_jitter=1,
            status_forcelist=(408, 429, 500, 502, 503, 504),
            allowed_methods=None,
            raise_on_status=False,
        )
        self.session = requests.Session()
        key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not (key.isascii() and key.isprintable()):
            raise ModelError("OPENAI_API_KEY has characters that no key has. Set it to the key alone.")
        self.session.auth = BearerKey(key)
        try:  # once, so that a wrong address is told at once; what it answers to this does not matter
            self.session.get(f"{base_url}/models", timeout=timeout, allow_redirects=False)
        except requests.RequestException as error:
            raise ModelError(
                f"--base_url {base_url} cannot be reached ({_shortened(error)}). Is the server running, and is this "
                "what stands before /chat/completions?"
            ) from error
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, HTTPAdapter(pool_maxsize=num_requests, max_retries=retries))

    def ask(self, questions: list[Question]) -> Iterator[tuple[Question, Answer]]:
        """
        Each question with its answer, as they come.

        Raises:
            [`ModelError`]: if the server refuses for good, or several requests in a row fail.
        """
        num_failures = 0
        # Its threads end with the process, whatever they wait for.
        with ThreadPool(self.num_requests) as pool:
            answers = pool.imap_unordered(lambda question: (question, self._post(question)), questions)
            for question, answer in interruptible(answers):
                yield question, answer
                num_failures = 0 if answer.text else num_failures + 1
                if num_failures == MAX_FAILURES_IN_A_ROW:
                    raise ModelError(
                        f"{num_failures} requests in a row to {self.url} failed; of the last, {answer.problem}. See "
                        "to the server, and give the same command again to go on."
                    )

    def _post(self, question: Question) -> Answer:
        body = {
            "model": self.model,
            "messages": question.messages(),
            "temperature": self.temperature,
            "max_tokens": self.max_new_tokens,
            "seed": question.seed(self.seed),
        }
        try:
            response = self.session.post(self.url, json=body, timeout=self.timeout, allow_redirects=False)
        except requests.RequestException as error:
            return Answer(problem=f"the server does not answer ({_shortened(error)})")
        said = f"the server answered {response.status_code} ({_shortened(response.text) or response.reason})"
        if 300 <= response.status_code < 400 or response.status_code in (401, 402, 403, 404, 405):
            raise ModelError(
                f"{self.url}: {said}. --base_url is what stands before /chat/completions, --model a name that the "
                "server has, and a key, where it wants one, is read from the environment variable OPENAI_API_KEY."
            )
        if not response.ok:
            return Answer(problem=said)
        try:
            choice = response.json()["choices"][0]
            text, ended = choice["message"]["content"], choice.get("finish_reason")
            if not isinstance(text, str | None):
                raise TypeError("its content is no string")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return Answer(problem=f"{said}, which is no chat completion")
        problems = {
            "length": f"it was cut after {self.max_new_tokens} tokens",
            "content_filter": "the server's filter held it back",
        }
        return Answer(text or "", problems.get(ended) or (None if text else "it is empty"))


def interruptible(results: IMapIterator) -> Iterator:
    """The results of a pool. A wait without end can miss a Ctrl-C that comes as it begins, so it is cut in pieces."""
    while True:
        try:
            result = results.next(timeout=LONGEST_WAIT)
        except multiprocessing.TimeoutError:
            continue
        except StopIteration:
            return
        yield result


def _shortened(what) -> str:
    return " ".join(str(what).split())[:300]
