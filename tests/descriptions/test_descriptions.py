"""`ezclip describe` with tiny models and with a server on this machine."""

import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest
import torch
import urllib3
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from ezclip.cli import describe
from ezclip.data.labels import read_class_descriptions
from ezclip.descriptions.language_models import Endpoint, PatientRetry, TransformersModel
from ezclip.descriptions.questions import KINDS, TEAR_KINDS, FormError, Question
from ezclip.errors import ModelError
from ezclip.systems.loading import load_model, load_processor
from pipeline_ezclip import ClassBank
from tests.helpers import ROOT


LABELS = ["ApplyEyeMakeup", "kick ball", "flic_flac"]
SAMPLING = {"seed": 0, "temperature": 0.7, "max_new_tokens": 24}


@pytest.fixture(autouse=True)
def loopback_without_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def generate(output_dir, *argv) -> int:
    return describe.main([*argv, "--output_dir", str(output_dir)])


def read_files(output_dir) -> dict:
    return {path.name: path.read_text() for path in sorted(output_dir.glob("*.json"))}


# ---- The form of an answer ----


def read(kind: str, answer: str, class_name: str = "kick ball") -> list[str]:
    return Question(KINDS[kind], class_name).read(answer)


STEPS = ["The leg swings back", "The foot meets the ball", "The ball flies off"]


@pytest.mark.parametrize(
    "answer",
    [
        "1. The leg swings back\n2. The foot meets the ball\n3. The ball flies off",
        "Here they are:\n\n1) The leg swings back\n\n2) The foot meets the ball\n\n3) The ball flies off\n\nEnjoy!",
        "**Step 1:** The leg swings back\n**Step 2**: The foot meets\nthe ball\nStep 3: 'The ball flies off'",
        "- The leg swings back\n* The foot meets the ball\n• **The ball flies off**",
        "The leg swings back\nThe foot meets the ball\n\nThe ball flies off\n",
        '["The leg swings back", "1. The foot meets\\nthe ball", "The ball flies off"] I hope this helps.',
        'Gladly:\n```json\n["The leg swings back", "The foot meets the ball", "The ball flies off"]\n```\nDone.',
        "```\n1. The leg swings back\n2. The foot meets the ball\n3. “The ball flies off”\n```",
    ],
)
def test_read_answer(answer):
    assert read("decomposition", answer) == STEPS


@pytest.mark.parametrize(
    ("kind", "answer", "reason"),
    [
        ("decomposition", "1. The leg swings back\n2. The foot meets the ball", "it has 2 texts, not 3"),
        ("context", "1. field\n2. ball\n3. grass\n4. shoe\n5. goal\n6. sky", "it has 6 texts, not 3 to 5"),
        ("description", "", "it has 0 texts, not 1"),
        ("context", "1. field\n2.\n3. ball", "text 2 is empty"),
        ("context", "1. field\n2. 42\n3. ball", "text 2 is empty or has no letters"),
        ("context", "1. field\n2. Kick-Ball\n3. kick ball.", "a text is repeated"),
        ("context", "1. Kick ball\n2. ball\n3. goal", "text 1 is only the label"),
        ("description", "1. Kick Ball!", "text 1 is only the label"),
        ("description", "Action label: kick ball. Description: a foot", "begins with the heading 'Action label:'"),
        ("description", "Sure, a person kicks a ball over a field.", "is a remark"),
        ("description", "I'm sorry, but I cannot help with that.", "is a remark"),
        ("description", "a " * 41, "text 1 has 41 words, at most 40"),
        ("description", "人" * 321, "text 1 has 321 characters, at most 320"),
        ("description", "a foot\ufffd meets a ball", "unprintable"),
        ("decomposition", '["The leg swings back", ', "begins like JSON"),
        ("decomposition", '["The leg", ["The foot"], "The ball"]', "other items than strings"),
        ("decomposition", "[" * 100_000, "begins like JSON"),
        ("description", '{"texts": ["a foot meets a ball"]}', "has '{', which is not plain text"),
        ("description", "| 1. A foot meets a ball |", "has '|', which is not plain text"),
        ("description", "<answer> N/A </answer>", "has '<', which is not plain text"),
        (
            "context",
            "\n".join(f"{i}. {text}" for i, text in enumerate(KINDS["context"].example, 1)),
            "copies the example",
        ),
    ],
)
def test_refused_answer(kind, answer, reason):
    with pytest.raises(FormError, match=re.escape(reason)):
        read(kind, answer)


@pytest.mark.parametrize(
    "answer",
    [
        "1. leg back / the leg is behind / a drawn leg\n2. ball hit / foot on ball / the foot touches it",
        "1) leg back/the leg is behind/ a drawn leg\n2) ball hit / foot\non ball / the foot touches it\n\nO!",
        '- "leg back" / "the leg is behind" / "a drawn leg"\n- **ball hit** / “foot on ball” / the foot touches it',
        '["leg back / the leg is behind / a drawn leg", "ball hit / foot on ball / the foot touches it"]',
    ],
)
def test_read_steps(answer):
    texts = ["leg back", "the leg is behind", "a drawn leg", "ball hit", "foot on ball", "the foot touches it"]
    assert read("steps", answer) == texts
    assert KINDS["steps"].describe(texts) == {"steps": [texts[:3], texts[3:]]}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("1. leg back / leg behind / drawn leg", "it has 1 text, not 2 to 5"),
        ("\n".join(f"{i}. a{i} / b{i} / c{i}" for i in "123456"), "it has 6 texts, not 2 to 5"),
        ("1. leg back / leg behind / drawn leg\n2. ball hit", "step 2 has 1 wordings, not 3 with / between them"),
        ("1. a / b / c / d\n2. e / f / g", "step 1 has 4 wordings"),
        ("1. a / b / c\n2. d /  / f", "wording 2 of step 2 is empty"),
        ("1. a / b / c\n2. d / e / B", "a text is repeated"),
        ("1. a / b / c\n2. d / " + "e " * 13 + "/ f", "wording 2 of step 2 has 13 words, at most 12"),
        ("1. a / b / c\n2. d / Kick ball / f", "wording 2 of step 2 is only the label"),
        ("1. Wording 1: a / b / c\n2. d / e / f", "wording 1 of step 1 begins with the heading"),
        ("1. a | b | c\n2. d | e | f", "step 1 has 1 wordings"),
        ('[["a", "b", "c"], ["d", "e", "f"]]', "other items than strings"),
        ("1. {} / b / c\n2. d / e / f".format(KINDS["steps"].example[0]), "copies the example"),
    ],
)
def test_refused_steps(answer, reason):
    with pytest.raises(FormError, match=re.escape(reason)):
        read("steps", answer)


def test_object_named_like_the_class():
    assert read("context", "1. a sports hall\n2. basketball\n3. hoop", "Basketball")[1] == "basketball"


@pytest.mark.parametrize("kind", KINDS)
def test_example_of_a_kind(kind):
    lines = enumerate(map(" / ".join, KINDS[kind].group(KINDS[kind].example)), start=1)
    example = "\n".join(f"{number}. {line}" for number, line in lines)
    question = Question(KINDS[kind], "winding_a_clock")
    assert question.read(example) == list(KINDS[kind].example)
    (message,) = question.messages()
    assert '"winding a clock"' in message["content"] and example in message["content"]


def test_refused_answer_is_quoted():
    question = Question(KINDS["description"], "kick ball").again("it has 2 texts, not 1", "a\nb")
    messages = question.messages()
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert messages[1]["content"] == "a\nb" and "it has 2 texts, not 1" in messages[2]["content"]
    assert question.seed(0) != Question(question.kind, "kick ball").seed(0)


# ---- An endpoint ----


def good_answer(kind: str, label: str) -> str:
    if kind == "steps":
        return "\n".join(
            f"{n}. {label} begins {n} / someone at {label} {n} / picture {n} of {label}" for n in (1, 2, 3)
        )
    count = {"decomposition": 3, "description": 1, "context": 4}[kind]
    return "\n".join(f"{number}. {kind} {number} of someone at {label}" for number in range(1, count + 1))


def expected_texts(kind: str, label: str) -> list[str]:
    return [line.partition(". ")[2] for line in good_answer(kind, label).splitlines()]


class ChatServer(http.server.ThreadingHTTPServer):
    """
    A server with the chat-completions protocol.

    `reply(number, kind, label, messages, handler)` returns the text of an answer or a tuple `(status, headers, body)`.
    If it returns `None`, it has used the connection itself.
    """

    daemon_threads, request_queue_size = True, 64

    def __init__(self, reply):
        super().__init__(("127.0.0.1", 0), ChatHandler)
        self.reply, self.requests, self.lock = reply, [], threading.Lock()
        self.at_once = self.most_at_once = 0
        self.released = threading.Event()  # ends what hangs
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class ChatHandler(http.server.BaseHTTPRequestHandler):
    server: ChatServer

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.send(200, {}, b'{"data": []}')

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        request = body["messages"][0]["content"]
        label = re.match('"(.+?)" is the label', request)[1]
        kind = next(kind.name for kind in KINDS.values() if kind.request in request)
        with self.server.lock:
            number = len(self.server.requests)
            self.server.requests.append(
                {"path": self.path, "body": body, "kind": kind, "label": label, "key": self.headers["Authorization"]}
            )
            self.server.at_once += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.at_once)
        try:
            reply = self.server.reply(number, kind, label, body["messages"], self)
        finally:
            with self.server.lock:
                self.server.at_once -= 1
        if isinstance(reply, str):
            reply = 200, {}, completion(reply)
        if reply is not None:
            self.send(*reply)

    def send(self, status: int, headers: dict, body: bytes):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def completion(text: str | None, finish_reason: str = "stop") -> bytes:
    message = {"role": "assistant", "content": text}
    return json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": finish_reason}]}).encode()


@contextmanager
def chat_server(reply=lambda number, kind, label, messages, handler: good_answer(kind, label)):
    with ChatServer(reply) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        try:
            yield server
        finally:
            server.released.set()
            server.shutdown()


def endpoint_options(server, *argv) -> list[str]:
    return ["--candidate_labels", *LABELS, "--base_url", server.url, "--model", "served", *argv]


def test_endpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    label_list = tmp_path / "labels.csv"
    label_list.write_text("id,name\n0,ApplyEyeMakeup\n1,kick ball\n")
    out = tmp_path / "out"
    with chat_server() as server:
        argv = ["--label_list", str(label_list), "--candidate_labels", "flic_flac", "--base_url", server.url]
        assert generate(out, *argv, "--model", "served", "--temperature", "0.5", "--max_new_tokens", "99") == 0
    words = dict(zip(LABELS, ["Apply Eye Makeup", "kick ball", "flic flac"]))
    contents = {name: json.loads(text) for name, text in read_files(out).items()}
    assert list(contents) == ["all.json", "context.json", "decomposition.json", "description.json"]
    for kind in TEAR_KINDS:
        assert contents[f"{kind}.json"] == {name: expected_texts(kind, label) for name, label in words.items()}
    assert list(contents["all.json"]) == LABELS
    for name in LABELS:
        assert contents["all.json"][name] == [text for kind in TEAR_KINDS for text in contents[f"{kind}.json"][name]]
    assert read_class_descriptions([out / "all.json"]) == contents["all.json"]

    assert len(server.requests) == 9
    assert {request["path"] for request in server.requests} == {"/v1/chat/completions"}
    assert {request["key"] for request in server.requests} == {"Bearer secret"}
    bodies = [request["body"] for request in server.requests]
    assert {(body["model"], body["temperature"], body["max_tokens"]) for body in bodies} == {("served", 0.5, 99)}
    assert len({body["seed"] for body in bodies}) == 9
    assert "secret" not in (out / "journal.jsonl").read_text()


def test_steps(tmp_path, tiny_folder):
    def reply(number, kind, label, messages, handler):
        return "1. all at once" if len(messages) == 1 and label == "kick ball" else good_answer(kind, label)

    with chat_server(reply) as server:
        options = endpoint_options(server, "--num_requests", "1", "--kinds")
        assert generate(tmp_path, *options, "steps", "--max_attempts", "1") == 1
        assert list(json.loads((tmp_path / "steps.json").read_text())) == ["ApplyEyeMakeup", "flic_flac"]
        assert generate(tmp_path, *options, "steps", *TEAR_KINDS) == 0
    # The journal keeps the accepted steps, and all.json has the three kinds of TEAR alone.
    asked = [request["label"] for request in server.requests if request["kind"] == "steps"]
    assert asked == ["Apply Eye Makeup", "kick ball", "flic flac", "kick ball", "kick ball"]
    contents = {name: json.loads(text) for name, text in read_files(tmp_path).items()}
    assert list(contents) == ["all.json", *(f"{kind}.json" for kind in sorted(KINDS))]
    assert all(len(texts) == 8 and isinstance(texts, list) for texts in contents["all.json"].values())
    assert contents["steps.json"]["kick ball"] == {
        "steps": [
            [f"kick ball begins {n}", f"someone at kick ball {n}", f"picture {n} of kick ball"] for n in (1, 2, 3)
        ]
    }
    steps = read_class_descriptions([tmp_path / "steps.json"])
    bank = ClassBank.build(load_model(tiny_folder), load_processor(tiny_folder), LABELS, descriptions=steps)
    assert bank.steps.shape == (3, 3, 3)


def test_concurrent_requests(tmp_path):
    barrier = threading.Barrier(3, timeout=30)

    def reply(number, kind, label, messages, handler):
        barrier.wait()  # for three requests: one after the other would wait for ever
        return good_answer(kind, label)

    with chat_server(reply) as server:
        assert generate(tmp_path, *endpoint_options(server, "--num_requests", "3")) == 0
    assert server.most_at_once == 3


def test_ask_again(tmp_path, capsys):
    def reply(number, kind, label, messages, handler):
        if kind == "context" and label == "kick ball":
            return "no idea"  # always
        if kind == "decomposition" and len(messages) == 1:
            return "1. Only one step"
        if kind == "description" and number < 9:
            return 200, {}, completion(good_answer(kind, label), "length")
        return f"<think>1. kick it\n2. no</think>\n{good_answer(kind, label)}"

    with chat_server(reply) as server:
        assert generate(tmp_path, *endpoint_options(server, "--max_attempts", "3")) == 1
    second = [request for request in server.requests if request["kind"] == "decomposition"][3:]
    assert len(second) == 3
    for request in second:
        _, refused, complaint = request["body"]["messages"]
        assert refused["content"] == "1. Only one step" and "it has 1 text, not 3" in complaint["content"]
    seeds = [request["body"]["seed"] for request in server.requests if request["kind"] == "decomposition"]
    assert len(set(seeds)) == 6
    cut = [request for request in server.requests if request["kind"] == "description"][3:]
    assert all("it was cut after 512 tokens" in request["body"]["messages"][2]["content"] for request in cut)

    # A missing answer is named and the others are kept. A class that lacks a kind is not in all.json.
    error = capsys.readouterr().err
    assert "1 of 9 answers are missing (--max_attempts 3)" in error
    assert "context of 'kick ball': it has 1 text, not 3 to 5" in error
    contents = {name: json.loads(text) for name, text in read_files(tmp_path).items()}
    assert list(contents["decomposition.json"]) == list(contents["description.json"]) == LABELS
    assert list(contents["context.json"]) == list(contents["all.json"]) == ["ApplyEyeMakeup", "flic_flac"]

    with chat_server() as server:  # the same command asks for that one alone
        assert generate(tmp_path, *endpoint_options(server)) == 0
    assert [(request["kind"], request["label"]) for request in server.requests] == [("context", "kick ball")]
    assert list(json.loads((tmp_path / "all.json").read_text())) == LABELS


def cut_connection(number, kind, label, messages, handler):
    handler.connection.close()


def cut_answer(number, kind, label, messages, handler):
    handler.send(200, {"Content-Length": "9999"}, completion(good_answer(kind, label)))
    handler.connection.close()


def hang(number, kind, label, messages, handler):
    handler.server.released.wait(60)
    handler.connection.close()


@pytest.mark.parametrize(
    "failure",
    [
        (500, {}, b"out of order"),
        (429, {"Retry-After": "1"}, b"{}"),
        (200, {}, b"<html>Welcome</html>"),
        (200, {}, b'{"choices": []}'),
        (200, {}, b'["choices"]'),
        (200, {}, b'{"choices": [{"message": {"content": ["a"]}}]}'),
        (200, {}, completion(None)),
        (400, {}, b'{"error": "filtered"}'),
        cut_connection,
        cut_answer,
        hang,
    ],
    ids=lambda failure: getattr(failure, "__name__", None) or f"{failure[0]} {failure[2].decode()[:20]}",
)
def test_retry_request(tmp_path, failure):
    times = []

    def reply(number, kind, label, messages, handler):
        times.append(time.monotonic())
        if number == 1:
            return failure(number, kind, label, messages, handler) if callable(failure) else failure
        return good_answer(kind, label)

    with chat_server(reply) as server:
        argv = ("--num_requests", "1", "--timeout", "0.5", "--kinds", "description")
        assert generate(tmp_path, *endpoint_options(server, *argv)) == 0
    assert len(server.requests) == 4 and list(read_files(tmp_path)) == ["description.json"]
    assert all(len(request["body"]["messages"]) == 1 for request in server.requests)  # there is nothing to quote
    if isinstance(failure, tuple) and failure[0] == 429:
        assert times[2] - times[1] >= 1


def test_long_wait_is_announced(caplog):
    def wait(seconds):
        return PatientRetry(1).get_retry_after(urllib3.HTTPResponse(headers={"Retry-After": seconds}, status=429))

    assert wait("2") == 2 and not caplog.messages
    assert wait("3600") == 3600 and "asks to wait for 3600 s" in caplog.text


def test_one_failing_question(tmp_path, capsys):
    def reply(number, kind, label, messages, handler):
        return (500, {}, b"out of order") if label == "kick ball" else good_answer(kind, label)

    with chat_server(reply) as server:
        argv = ("--max_retries", "0", "--max_attempts", "2", "--kinds", "description", "context")
        assert generate(tmp_path, *endpoint_options(server, *argv)) == 1
    error = capsys.readouterr().err
    assert "2 of 6 answers are missing" in error
    assert error.count("of 'kick ball': the server answered 500 (out of order)") == 2
    assert list(json.loads((tmp_path / "context.json").read_text())) == ["ApplyEyeMakeup", "flic_flac"]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ((401, {}, b"no key"), r"answered 401 \(no key\).*OPENAI_API_KEY"),
        ((404, {}, b'{"error": "no such model"}'), "answered 404.*no such model.*--model"),
        ((302, {"Location": "http://127.0.0.1:1/"}, b""), r"answered 302 \(Found\).*--base_url"),
        ((503, {}, b"overloaded"), r"5 requests in a row.*503 \(overloaded\).*same command again"),
        ((200, {}, b"<html>"), "5 requests in a row.*not a chat completion"),
        (hang, "5 requests in a row.*does not answer.*timed out"),
    ],
    ids=["401", "404", "302", "503", "html", "hang"],
)
def test_failing_server(tmp_path, reply, reason):
    answer = reply if callable(reply) else lambda *_: reply
    with chat_server(answer) as server, pytest.raises(SystemExit) as stop:
        generate(tmp_path, *endpoint_options(server, "--max_retries", "0", "--timeout", "0.3"))
    assert re.match(f"ezclip describe: .*{reason}", stop.value.code)


def test_unreachable_address(tmp_path):
    with chat_server() as server:
        pass
    with pytest.raises(SystemExit, match="--base_url .* cannot be reached"):
        generate(tmp_path, *endpoint_options(server))


def test_ctrl_c(tmp_path, capsys):
    def reply(number, kind, label, messages, handler):
        if number < 2:
            return good_answer(kind, label)
        if number == 2:
            deadline = time.monotonic() + 5
            while len((tmp_path / "journal.jsonl").read_text().splitlines()) < 3 and time.monotonic() < deadline:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)
        return hang(number, kind, label, messages, handler)

    previous = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background of a shell
    try:
        with chat_server(reply) as server:
            start = time.monotonic()
            assert generate(tmp_path, *endpoint_options(server, "--num_requests", "2")) == 130
            assert time.monotonic() - start < 20
    finally:
        signal.signal(signal.SIGINT, previous)
    assert "stopped. Run the same command again" in capsys.readouterr().err
    assert not read_files(tmp_path)
    with chat_server() as server:
        assert generate(tmp_path, *endpoint_options(server)) == 0
    assert len(server.requests) == 7


def test_resume_after_kill(tmp_path, capsys):
    process, journal = None, tmp_path / "killed" / "journal.jsonl"

    def reply(number, kind, label, messages, handler):
        if number >= 4:
            # The next question is asked while the last answer is written.
            while len(journal.read_text().splitlines()) < 5:
                time.sleep(0.01)
            process.kill()
            return hang(number, kind, label, messages, handler)
        return good_answer(kind, label)

    with chat_server(reply) as server:
        command = [sys.executable, str(ROOT / "scripts" / "generate_descriptions.py"), "--num_requests", "1"]
        command += [*endpoint_options(server), "--output_dir", str(tmp_path / "killed")]
        process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
        assert process.wait(120) == -signal.SIGKILL
    assert len(journal.read_text().splitlines()) == 5 and not read_files(tmp_path / "killed")
    with open(journal, "a") as file:  # as if killed amid a line
        file.write('{"kind": "context", "cla')

    with chat_server() as server:
        assert generate(tmp_path / "killed", *endpoint_options(server)) == 0
        assert len(server.requests) == 5
        assert "4 of 9 answers" in capsys.readouterr().out
        assert generate(tmp_path / "whole", *endpoint_options(server)) == 0
        num_requests = len(server.requests)
        journal.with_name("all.json").unlink()  # written again without questions
        assert generate(tmp_path / "killed", *endpoint_options(server)) == 0
        assert len(server.requests) == num_requests
    assert read_files(tmp_path / "killed") == read_files(tmp_path / "whole")


def test_unusable_journal(tmp_path):
    with chat_server() as server:
        options = endpoint_options(server, "--kinds", "context")
        assert generate(tmp_path, *options) == 0
        for option, reason in {
            ("--model", "other"): "model 'served', now 'other'.*another --output_dir",
            ("--seed", "1"): "seed 0, now 1",
            ("--temperature", "0"): "temperature 0.7, now 0.0",
        }.items():
            with pytest.raises(SystemExit, match=reason):
                generate(tmp_path, *options, *option)
        journal = tmp_path / "journal.jsonl"
        whole = journal.read_text()
        lines = whole.splitlines()
        settings = json.loads(lines[0])["settings"]
        for line, reason in (
            (json.dumps({"settings": {**settings, "prompts": "0123"}}), "prompts '0123', now"),
            ("[]", "must begin with the settings"),
        ):
            journal.write_text("\n".join([line, *lines[1:]]) + "\n")
            with pytest.raises(SystemExit, match=reason):
                generate(tmp_path, *options)
        for line in ("{", '{"kind": "context", "class": "kick ball", "texts": "a"}', '{"kind": "context"}'):
            journal.write_text("\n".join([*lines[:2], line, *lines[3:]]) + "\n")
            with pytest.raises(SystemExit, match="Line 3 of .* is damaged"):
                generate(tmp_path, *options)
        journal.write_text(whole)
        assert len(server.requests) == 3
        assert generate(tmp_path, *options, "--candidate_labels", *LABELS, "archery") == 0  # a longer list goes on
        assert len(server.requests) == 4


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["--candidate_labels", "kick ball", "Kick_Ball"], "got 'kick ball' and 'Kick_Ball'"),
        (["--candidate_labels", "..."], "got '...'"),
        (["--candidate_labels", "a\nb"], "printable characters"),
        (["--label_list", "missing.csv"], "missing.csv cannot be read"),
    ],
)
def test_unusable_labels(tmp_path, argv, reason):
    with pytest.raises(SystemExit, match=re.escape(reason)):
        generate(tmp_path, *argv, "--base_url", "http://127.0.0.1:1/v1", "--model", "served")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["--base_url", "http://127.0.0.1:1"], "--base_url needs --model"),
        (["--base_url", "127.0.0.1:8000/v1", "--model", "m"], "must be an address like http://127.0.0.1:8000/v1"),
        (["--base_url", "http://x", "--model", "m", "--batch_size", "2"], "--batch_size is for --model_name_or_path"),
        (["--model_name_or_path", "m", "--timeout", "2"], "--timeout is for --base_url"),
        (["--model_name_or_path", "m", "--model", "m"], "--model is for --base_url"),
        (["--model_name_or_path", "m", "--batch_size", "0"], "--batch_size must be at least 1, got 0"),
        (["--model_name_or_path", "m", "--max_attempts", "0"], "--max_attempts must be at least 1, got 0"),
        (["--model_name_or_path", "m", "--temperature", "nan"], "--temperature must be 0 or more, got nan"),
        (["--base_url", "http://x", "--model", "m", "--timeout", "0"], "--timeout must be a number of seconds above"),
        (
            ["--base_url", "http://x", "--model", "m", "--max_retries", "-1"],
            "--max_retries must be at least 0, got -1",
        ),
    ],
)
def test_wrong_options(tmp_path, capsys, argv, reason):
    with pytest.raises(SystemExit):
        generate(tmp_path, "--candidate_labels", "a", *argv)
    assert reason in capsys.readouterr().err
    with pytest.raises(SystemExit):
        generate(tmp_path, "--model_name_or_path", "m")
    assert "give --label_list" in capsys.readouterr().err


def test_foreign_files(tmp_path):
    (tmp_path / "all.json").write_text('{"kick ball": ["mine"]}')
    with chat_server() as server, pytest.raises(SystemExit, match="has a all.json"):
        generate(tmp_path, *endpoint_options(server))
    assert (tmp_path / "all.json").read_text() == '{"kick ball": ["mine"]}'


# ---- A model of transformers ----

END = "<end>"
# Answers after these tokens; of two answers both are equally likely.
ANSWERS = {
    "<steps>": "1. The leg swings back\n2. The foot meets the ball",
    "<steps again>": "1. The leg swings back\n2. The foot meets the ball\n3. The ball flies off",
    "<one sentence>": ("1. A person kicks a ball over a field", "A foot in a shoe meets a ball on the grass"),
    "<one sentence again>": "1. Not asked for in these tests",
    "<place>": "no idea",
    "<place again>": "no idea",
}
TEMPLATE = (
    "{% set request = messages[0]['content'] %}"
    "{% if 'exactly 3 steps' in request %}<steps{% elif 'one sentence' in request %}<one sentence"
    "{% else %}<place{% endif %}"
    "{% if messages | length > 1 %} again{% endif %}>"
)


@pytest.fixture(scope="module")
def speaking_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speaking")
    save_speaking_model(folder, ANSWERS)
    return folder


def save_speaking_model(folder, answers: dict):
    """Save a GPT-2 with a chat template that gives `answers`: its blocks add nothing, so a token gives the next."""
    answers = {token: [answer] if isinstance(answer, str) else list(answer) for token, answer in answers.items()}
    tokens = list(dict.fromkeys([END, *answers, *(text for texts in answers.values() for text in texts)]))
    vocabulary = {token: number for number, token in enumerate(tokens)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=END))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, chat_template=TEMPLATE)
    tokenizer.add_tokens(tokens[1:])
    special = {"bos_token_id": None, "eos_token_id": 0, "tie_word_embeddings": False}
    config = GPT2Config(vocab_size=len(tokens), n_positions=64, n_embd=64, n_layer=1, n_head=1, **special)
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in (model.transformer.wpe.weight, *model.transformer.h.parameters(), model.lm_head.weight):
            parameter.zero_()
        model.transformer.wte.weight.copy_(torch.eye(len(tokens), 64))
        for token, number in vocabulary.items():
            for following in answers.get(token, [END]):
                model.lm_head.weight[vocabulary[following], number] = 20.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def babbling_model(tmp_path_factory):
    """Return a GPT-2 with random weights and characters as tokens, without chat template and padding token."""
    characters = sorted({chr(number) for number in range(32, 127)} | {"\n"})
    backend = Tokenizer(models.WordLevel({c: i for i, c in enumerate([END, *characters])}, unk_token=END))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END)
    torch.manual_seed(0)
    special = {"bos_token_id": None, "eos_token_id": 0, "initializer_range": 0.5}
    config = GPT2Config(vocab_size=len(characters) + 1, n_positions=1600, n_embd=32, n_layer=2, n_head=2, **special)
    folder = tmp_path_factory.mktemp("babbling")
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_transformers_model(tmp_path, speaking_model, capsys):
    argv = ["--candidate_labels", *LABELS, "--model_name_or_path", str(speaking_model), "--max_new_tokens", "8"]
    assert generate(tmp_path, *argv, "--batch_size", "2", "--max_attempts", "2", "--dtype", "float32") == 1
    contents = {name: json.loads(text) for name, text in read_files(tmp_path).items()}
    assert list(contents) == ["decomposition.json", "description.json"]  # no class has all
    assert contents["decomposition.json"] == dict.fromkeys(LABELS, STEPS)  # the second answer
    error = capsys.readouterr().err
    assert "3 of 9 answers are missing" in error
    assert "context of 'flic_flac': it has 1 text, not 3 to 5" in error


def test_answer_is_independent_of_batch(speaking_model):
    questions = [Question(KINDS["description"], f"class {number}") for number in range(24)]

    def ask(questions, batch_size, **sampling):
        model = TransformersModel(
            str(speaking_model), **{**SAMPLING, **sampling}, batch_size=batch_size, dtype="float32"
        )
        return {question.class_name: answer for question, answer in model.ask(questions)}

    answers = ask(questions, 5)
    assert {answer.text for answer in answers.values()} == set(ANSWERS["<one sentence>"])
    assert all(answer.problem is None for answer in answers.values())
    assert ask(questions[::-1], 24) == answers
    assert ask(questions[7:9], 1) == {name: answers[name] for name in ("class 7", "class 8")}
    assert ask(questions, 24, seed=1) != answers
    assert len(set(ask(questions, 24, temperature=0.0).values())) == 1
    assert len(set(ask([question.again("no", None) for question in questions], 24).values())) == 2


def test_padded_batch(babbling_model):
    questions = [Question(KINDS[kind], label) for kind, label in zip(KINDS, LABELS)]

    def ask(batch_size):
        model = TransformersModel(str(babbling_model), **SAMPLING, batch_size=batch_size, dtype="float32")
        return [answer for _, answer in model.ask(questions)]

    answers = ask(3)
    assert len({answer.text for answer in answers}) == 3 and all(answer.text.startswith("1.") for answer in answers)
    assert ask(1) == ask(2) == answers


def test_reasons_are_reported(tmp_path, babbling_model, capsys):
    argv = ["--candidate_labels", "kick ball", "--model_name_or_path", str(babbling_model), "--max_new_tokens", "16"]
    assert generate(tmp_path, *argv, "--max_attempts", "2") == 1
    error = capsys.readouterr().err
    assert "3 of 3 answers are missing (--max_attempts 2)" in error
    assert re.findall(r"^  (\w+) of 'kick ball': \S", error, re.MULTILINE) == list(TEAR_KINDS)
    assert not read_files(tmp_path)


def test_too_long_question(tmp_path, babbling_model, capsys):
    argv = ["--candidate_labels", "kick ball", "--model_name_or_path", str(babbling_model), "--max_attempts", "1"]
    assert generate(tmp_path, *argv, "--max_new_tokens", "1500") == 1
    assert re.search(r"need \d+ tokens, the model reads 1600", capsys.readouterr().err)


def test_missing_model(tmp_path):
    with pytest.raises(SystemExit, match="No text-generation model at .*nowhere"):
        generate(tmp_path, "--candidate_labels", "a", "--model_name_or_path", str(tmp_path / "nowhere"))


def test_unreachable_backends(tmp_path):
    with pytest.raises(ModelError, match="No text-generation model"):
        TransformersModel(str(tmp_path), **SAMPLING, batch_size=1, dtype="auto")
    with pytest.raises(ModelError, match="cannot be reached"):
        Endpoint("http://127.0.0.1:1/v1", "m", **SAMPLING, num_requests=1, timeout=1, max_retries=0)
