"""Ask a language model of transformers, or an endpoint with OpenAI's protocol."""

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
MIN_ANNOUNCED_WAIT = 10  # seconds; a shorter wait gives no warning
POLL_SECONDS = 1  # longest time until Ctrl-C takes effect


@dataclass(frozen=True)
class Answer:
    """Hold the text of a language model, and why it is missing or incomplete."""

    text: str = ""
    problem: str | None = None


class SeededSampling(LogitsProcessor):
    """
    Sample each row with its own seed, so that rows do not depend on each other.

    `generate` itself samples with one generator for the whole batch.
    """

    def __init__(self, seeds: list[int], temperature: float):
        self.generators, self.temperature = [random.Random(seed) for seed in seeds], temperature

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Return scores `(B, vocabulary)` of 0 for the drawn token and -inf for all others."""
        totals = torch.softmax(scores.float() / self.temperature, dim=-1).cumsum(dim=-1)
        # A float32 holds 24 bits, so that a draw stays below 1.
        draws = torch.tensor([[generator.getrandbits(24) / 2**24] for generator in self.generators])
        drawn = torch.searchsorted(totals, draws.to(totals) * totals[:, -1:], right=True)
        return torch.full_like(scores, -torch.inf).scatter(-1, drawn, 0.0)


class TransformersModel:
    """
    A text-generation model of transformers. Questions use its chat template, or plain text if it has none.

    Args:
        name_or_path (`str`):
            A folder, or a name on the Hub.
        seed (`int`):
            Seed of the run.
        temperature (`float`):
            Temperature of the sampling; 0 takes the most likely token.
        max_new_tokens (`int`):
            Maximum number of tokens of an answer.
        batch_size (`int`):
            Number of questions in a batch.
        dtype (`str`):
            Dtype of the weights: `"auto"`, or a name in `torch`.

    Raises:
        [`ModelError`]: if the model cannot be loaded.
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
        """Yield each question with its answer, batch by batch."""
        for start in range(0, len(questions), self.batch_size):
            batch, prompts = [], []
            for question in questions[start : start + self.batch_size]:
                prompt = self._prompt(question)
                needed = len(self._tokenize(prompt).input_ids) + self.max_new_tokens
                if self.max_length is not None and needed > self.max_length:
                    problem = f"question and --max_new_tokens need {needed} tokens, the model reads {self.max_length}"
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
        if not self.tokenizer.chat_template:  # such a model begins another text after a blank line
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
                f"The GPU has too little memory for {len(questions)} questions at a time. Give a --batch_size below "
                f"{self.batch_size}, or --dtype bfloat16."
            ) from error
        return [self._answer(tokens) for tokens in output[:, inputs.input_ids.shape[1] :]]

    def _answer(self, tokens: torch.LongTensor) -> Answer:
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        end_ids = self.model.generation_config.eos_token_id  # an int, a list or None
        is_whole = end_ids is not None and bool(torch.isin(tokens.cpu(), torch.tensor(end_ids)).any())
        if not self.tokenizer.chat_template:
            text, end, _ = text.partition("\n\n")
            text, is_whole = f"1.{text}", is_whole or bool(end)
        return Answer(text, None if is_whole else f"it was cut after {self.max_new_tokens} tokens")


class PatientRetry(Retry):
    """Retries of urllib3 that warn if the server asks for a long wait."""

    def get_retry_after(self, response) -> float | None:
        """Return the seconds that the server asks to wait, if any."""
        try:
            seconds = super().get_retry_after(response)
        except InvalidHeader:
            return None
        if seconds is not None and seconds > MIN_ANNOUNCED_WAIT:
            logger.warning(f"The server answered {response.status} and asks to wait for {seconds:.0f} s.")
        return seconds


class Endpoint:
    """
    A server with OpenAI's chat-completions protocol. Several threads ask it.

    Args:
        base_url (`str`):
            The address without `/chat/completions`.
        model (`str`):
            Name of the model on the server.
        seed (`int`), temperature (`float`), max_new_tokens (`int`):
            As for [`TransformersModel`].
        num_requests (`int`):
            Number of requests at a time.
        timeout (`float`):
            Seconds without data until a request fails.
        max_retries (`int`):
            Number of retries after 408, 429, 5xx or no answer. A retry waits as long as the server asks for, or
            0, 2, 4, 8 … seconds.

    Raises:
        [`ModelError`]: if the server cannot be reached.
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
            raise ModelError("OPENAI_API_KEY must be printable ASCII, got other characters. Set it to the key alone.")

        def add_key(request: requests.PreparedRequest) -> requests.PreparedRequest:
            if key:
                request.headers["Authorization"] = f"Bearer {key}"
            return request

        self.session.auth = add_key  # also without a key: else requests takes a password from ~/.netrc
        try:  # without retries, so that a wrong address fails at once; the answer does not matter
            self.session.get(f"{base_url}/models", timeout=timeout, allow_redirects=False)
        except (requests.RequestException, ValueError) as error:
            raise ModelError(
                f"--base_url {base_url} cannot be reached ({_shortened(error)}). Start the server, or correct the "
                "address: it ends before /chat/completions."
            ) from error
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, HTTPAdapter(pool_maxsize=num_requests, max_retries=retries))

    def ask(self, questions: list[Question]) -> Iterator[tuple[Question, Answer]]:
        """
        Yield each question with its answer, in the order of the answers.

        Raises:
            [`ModelError`]: if the server refuses all requests, or several requests in a row fail.
        """
        num_failures = 0
        # Threads of a ThreadPool are daemons: they end with the process even while they wait.
        with ThreadPool(self.num_requests) as pool:
            answers = pool.imap_unordered(lambda question: (question, self._post(question)), questions)
            for question, answer in _interruptible(answers):
                yield question, answer
                num_failures = 0 if answer.text else num_failures + 1
                if num_failures == MAX_FAILURES_IN_A_ROW:
                    raise ModelError(
                        f"{num_failures} requests in a row to {self.url} failed; the last: {answer.problem}. Check "
                        "the server, then run the same command again to go on."
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
        status = f"the server answered {response.status_code} ({_shortened(response.text) or response.reason})"
        if 300 <= response.status_code < 400 or response.status_code in (401, 402, 403, 404, 405):
            raise ModelError(
                f"{self.url}: {status}. Check --base_url (the address before /chat/completions), --model (a name that "
                "the server has) and the key in the environment variable OPENAI_API_KEY."
            )
        if not response.ok:
            return Answer(problem=status)
        try:
            choice = response.json()["choices"][0]
            text, finish_reason = choice["message"]["content"], choice.get("finish_reason")
            if not isinstance(text, str | None):
                raise TypeError("its content is not a string")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return Answer(problem=f"{status}, which is not a chat completion")
        problems = {
            "length": f"it was cut after {self.max_new_tokens} tokens",
            "content_filter": "the server's content filter blocked it",
        }
        return Answer(text or "", problems.get(finish_reason) or (None if text else "it is empty"))


def _interruptible(results: IMapIterator) -> Iterator:
    """Yield the results of a pool. An endless wait can miss a Ctrl-C as it begins, so wait in short steps."""
    while True:
        try:
            result = results.next(timeout=POLL_SECONDS)
        except multiprocessing.TimeoutError:
            continue
        except StopIteration:
            return
        yield result


def _shortened(value) -> str:
    return " ".join(str(value).split())[:300]
