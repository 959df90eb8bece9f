"""Ask a language model of transformers, or an endpoint with OpenAI's protocol."""

import http.client
import io
import json
import logging as python_logging
import multiprocessing
import os
import random
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.pool import IMapIterator, ThreadPool
from typing import Any
from urllib.parse import quote

import requests
import torch
from requests.adapters import HTTPAdapter, Retry
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor, LogitsProcessorList
from urllib3 import Timeout
from urllib3.exceptions import HTTPError, InvalidHeader, MaxRetryError, ResponseError

from checkpoint_ezclip import check_folder
from ezclip.descriptions.questions import Question
from ezclip.errors import ModelError
from ezclip.utils.messages import get_logger
from video_ezclip import clean


logger = get_logger(__name__)

MAX_ANSWER_BYTES = 2**20  # of an answer of a server, headers included
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
            check_folder(name_or_path)
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
    """Retries of urllib3 that warn if the server asks for a long wait, and give up beyond `backoff_max` seconds."""

    def parse_retry_after(self, retry_after: str) -> float:
        """Return the seconds in the header, or 0 if it is invalid."""
        try:
            return super().parse_retry_after(retry_after)
        except (InvalidHeader, ValueError, OverflowError):
            return 0

    def get_retry_after(self, response) -> float | None:
        """Return the seconds that the server asks to wait, if any."""
        seconds = super().get_retry_after(response)
        if seconds is not None and seconds > MIN_ANNOUNCED_WAIT:
            logger.warning(f"The server answered {response.status} and asks to wait for {seconds:.0f} s.")
        return seconds

    def increment(
        self, method=None, url=None, response=None, error=None, _pool: Any = None, _stacktrace=None
    ) -> Retry:
        """Return the retries that are left. Raise if there are none, or the wait is too long."""
        wait = response.headers.get("Retry-After") if response is not None else None
        if wait is not None and self.parse_retry_after(wait) > self.backoff_max:
            raise MaxRetryError(_pool, url, ResponseError("the server asks for too long a wait"))
        retries = super().increment(method, url, response, error, _pool, _stacktrace)
        if response is not None:
            response.close()  # else urllib3 reads the rest of it
        return retries


class BoundedSocketFile(io.RawIOBase):
    """Read an answer from a socket, up to `MAX_ANSWER_BYTES` and within the timeout of the socket in all."""

    def __init__(self, sock, file: io.RawIOBase):
        self.sock, self.file = sock, file
        self.deadline, self.num_bytes = time.monotonic() + sock.gettimeout(), 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer) -> int | None:
        """Read some bytes. Raise `OSError` beyond one of the limits."""
        seconds = self.deadline - time.monotonic()
        if seconds <= 0:
            raise TimeoutError("timed out")
        self.sock.settimeout(seconds)
        count = self.file.readinto(buffer)
        self.num_bytes += count or 0
        if self.num_bytes > MAX_ANSWER_BYTES:
            raise OSError(f"the answer has more than {MAX_ANSWER_BYTES:,} bytes")
        return count

    def close(self):
        """Close the file of the socket."""
        self.file.close()
        super().close()


class BoundedResponse(http.client.HTTPResponse):
    """An answer whose status, headers and body are read through a [`BoundedSocketFile`]."""

    def __init__(self, sock, *args, **kwargs):
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(BoundedSocketFile(sock, self.fp.detach()))


class BoundedAdapter(HTTPAdapter):
    """Connections, also those of a proxy, that read a [`BoundedResponse`]."""

    def get_connection_with_tls_context(self, request, verify, proxies=None, cert=None):
        """Return the connections of an address."""
        pool: Any = super().get_connection_with_tls_context(request, verify, proxies, cert)
        if pool.ConnectionCls.response_class is not BoundedResponse:
            pool.ConnectionCls = type("BoundedConnection", (pool.ConnectionCls,), {"response_class": BoundedResponse})
        return pool


class DirectSession(requests.Session):
    """A session that does not read where a redirect leads to."""

    def get_redirect_target(self, resp) -> None:
        """Return None."""


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
            Seconds for an answer, from the connection to its last byte. An answer that takes longer fails.
        max_retries (`int`):
            Number of retries after 408, 429, 5xx or no answer. A retry waits as long as the server asks for, or
            0, 2, 4, 8 … seconds. A request fails if the server asks for more than `timeout` and 10 s.

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
        self.num_requests = num_requests
        self.timeout: Any = Timeout(total=timeout)  # the types of requests lack it
        retries = PatientRetry(
            max_retries,
            backoff_factor=1,
            backoff_jitter=1,
            backoff_max=max(timeout, MIN_ANNOUNCED_WAIT),
            status_forcelist=(408, 429, 500, 502, 503, 504),
            allowed_methods=None,
            raise_on_status=False,
        )
        # urllib3 logs lines that a server sent. They may hold the key.
        python_logging.getLogger("urllib3").setLevel(python_logging.ERROR)
        self.session = DirectSession()
        self.session.headers["Accept-Encoding"] = "identity"  # a body is not decompressed
        key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not (key.isascii() and key.isprintable()):
            raise ModelError("OPENAI_API_KEY must be printable ASCII, got other characters. Set it to the key alone.")
        self.key = _pattern_of_key(key) if key else None

        def add_key(request: requests.PreparedRequest) -> requests.PreparedRequest:
            if key:
                request.headers["Authorization"] = f"Bearer {key}"
            return request

        self.session.auth = add_key  # also without a key: else requests takes a password from ~/.netrc
        # First without retries, so that a wrong address fails at once. The answer does not matter.
        self._mount(BoundedAdapter())
        try:
            self.session.get(f"{base_url}/models", timeout=self.timeout, stream=True).close()
        except (requests.RequestException, HTTPError, ValueError) as error:
            raise ModelError(
                f"--base_url {base_url} cannot be reached ({self._shown(error)}). Start the server, or correct the "
                "address: it ends before /chat/completions."
            ) from None  # a traceback of the cause may hold the key
        self._mount(BoundedAdapter(pool_maxsize=num_requests, max_retries=retries))

    def _mount(self, adapter: HTTPAdapter):
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, adapter)

    def _shown(self, text: object) -> str:
        """Return a text of the server in one short line without the key."""
        text = str(text)
        return _shortened(text if self.key is None else self.key.sub("***", text))

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
            with self.session.post(self.url, json=body, timeout=self.timeout, stream=True) as response:
                content = b"".join(response.raw.stream(decode_content=False))
        except (requests.RequestException, HTTPError, ValueError) as error:
            return Answer(problem=f"the server does not answer ({self._shown(error)})")
        said = self._shown(content.decode(errors="replace")) or self._shown(response.reason)
        status = f"the server answered {response.status_code} ({said})"
        if 300 <= response.status_code < 400 or response.status_code in (401, 402, 403, 404, 405):
            raise ModelError(
                f"{self.url}: {status}. Check --base_url (the address before /chat/completions), --model (a name that "
                "the server has) and the key in the environment variable OPENAI_API_KEY."
            )
        if not response.ok:
            wait = response.headers.get("Retry-After")
            return Answer(problem=status if wait is None else f"{status}, Retry-After: {self._shown(wait)}")
        try:
            choice = json.loads(content)["choices"][0]
            text, finish_reason = choice["message"]["content"], choice.get("finish_reason")
            if not isinstance(text, str | None):
                raise TypeError("its content is not a string")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return Answer(problem=f"{status}, which is not a chat completion")
        if not text:
            return Answer(problem="it is empty")
        if self.key is not None and self.key.search(text):
            return Answer(problem="it holds the key in OPENAI_API_KEY")
        if finish_reason == "length":
            return Answer(text, f"it was cut after {self.max_new_tokens} tokens")
        return Answer(text, "the server's content filter blocked it" if finish_reason == "content_filter" else None)


def _pattern_of_key(key: str) -> re.Pattern:
    r"""Return a pattern for a key as it is, in JSON (`\/`) and in a URL. A short one, as "none", is a whole word."""
    in_json = r"\\?".join(map(re.escape, key))
    pattern = f"{in_json}|{re.escape(quote(key, safe=''))}"
    return re.compile(pattern if len(key) >= 8 else rf"(?<![A-Za-z0-9])(?:{pattern})(?![A-Za-z0-9])")


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


def _shortened(value: object) -> str:
    return clean(" ".join(str(value).split()))[:300]
