"""`ezclip describe` with servers that send too much, too slowly or anything at all, and with forged journals."""

import gzip
import json
import threading
import time

import pytest

from ezclip.cli import describe
from ezclip.descriptions import language_models
from ezclip.descriptions.language_models import Endpoint
from ezclip.descriptions.questions import KINDS, FormError, Question
from ezclip.errors import ModelError
from tests.descriptions.test_descriptions import (
    SAMPLING,
    ChatHandler,
    chat_server,
    endpoint_options,
    good_answer,
)


KEY = "sk-proj/Secret+0123456789"
QUESTION = Question(KINDS["description"], "kick ball")
HANG = 60  # seconds: a test that takes as long hangs


@pytest.fixture(autouse=True)
def loopback_with_key(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def ask(server, **options):
    """Return the answer of a server to one question, without retries by default."""
    options = {"num_requests": 1, "timeout": 30, "max_retries": 0, **options}
    start = time.monotonic()
    ((_, answer),) = Endpoint(server.url, "served", **SAMPLING, **options).ask([QUESTION])
    assert time.monotonic() - start < HANG
    return answer


def assert_printable(text: str):
    """Assert that a text is one line without control characters and without the key."""
    assert text.isprintable() and KEY not in text and "Secret" not in text, text


def send_slowly(handler, content: bytes, start=b""):
    handler.wfile.write(start)
    try:
        while not handler.server.released.wait(0.05):
            handler.wfile.write(content)
    except OSError:
        pass
    handler.close_connection = True


ENDLESS = {
    "status": ("x", b""),
    "header": ("x", b"HTTP/1.1 200 OK\r\nX: "),
    "headers": ("X: y\r\n", b"HTTP/1.1 200 OK\r\n"),
    "continue": ("HTTP/1.1 100 Continue\r\n\r\n", b""),
    "body": ("x", b"HTTP/1.1 200 OK\r\n\r\n"),
    "length": ("x", b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n"),
    "chunks": ("1\r\nx\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "chunk": ("x", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffff\r\n"),
    "failure": ("x", b"HTTP/1.1 503 Out of order\r\n\r\n"),
}


@pytest.mark.parametrize("part", ENDLESS)
@pytest.mark.parametrize("max_retries", [0, 1])
def test_slow_answer(part, max_retries):
    content, start = ENDLESS[part]
    with chat_server(lambda *args: send_slowly(args[-1], content.encode(), start)) as server:
        answer = ask(server, timeout=0.3, max_retries=max_retries)
    assert "timed out" in answer.problem and not answer.text
    assert_printable(answer.problem)


@pytest.mark.parametrize("part", ENDLESS)
def test_long_answer(part, monkeypatch):
    monkeypatch.setattr(language_models, "MAX_ANSWER_BYTES", 100_000)
    content, start = ENDLESS[part]

    def reply(number, kind, label, messages, handler):
        handler.server.released.wait(0.1)
        send_slowly(handler, content.encode() * 100_000, start)

    with chat_server(reply) as server:
        answer = ask(server)
    assert not answer.text and "timed out" not in answer.problem
    if part not in ("status", "header", "headers"):  # Python itself refuses so long ones
        assert "the answer has more than 100,000 bytes" in answer.problem
    assert_printable(answer.problem)


@pytest.mark.parametrize("location", [{}, {"Location": "/"}])
def test_compressed_answer(location):
    bomb = gzip.compress(b" " * 10**8)
    with chat_server(lambda *_: (200, {"Content-Encoding": "gzip", **location}, bomb)) as server:
        assert "not a chat completion" in ask(server).problem


def test_slow_models(monkeypatch):
    monkeypatch.setattr(ChatHandler, "do_GET", lambda handler: send_slowly(handler, b"x", b"HTTP/1.1 200 OK\r\nX: "))
    with chat_server() as server, pytest.raises(ModelError, match="cannot be reached .*timed out"):
        ask(server, timeout=0.3)
    monkeypatch.setattr(ChatHandler, "do_GET", lambda handler: send_slowly(handler, b"x", b"HTTP/1.1 200 OK\r\n\r\n"))
    with chat_server() as server:  # its body is not read
        assert ask(server, timeout=5).problem is None


@pytest.mark.parametrize("wait", ["1000000", "9" * 5000, "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_long_wait(wait):
    with chat_server(lambda *_: (429, {"Retry-After": wait}, b"too many")) as server:
        problem = ask(server, timeout=5, max_retries=1).problem
    assert f"429 (too many), Retry-After: {wait[:20]}" in problem and len(problem) < 1000


@pytest.mark.parametrize("wait", ["soon", "-1", "Fri, 99 Dec 99999 23:59:59 GMT", "\xb2", ""])
def test_invalid_wait(wait):
    def reply(number, kind, label, messages, handler):
        return (429, {"Retry-After": wait}, b"") if number == 0 else good_answer(kind, label)

    with chat_server(reply) as server:
        assert ask(server, max_retries=1).problem is None


@pytest.mark.parametrize("location", ["http://[", "//\xff", "http://127.0.0.1:1/", "x" * 60_000])
def test_redirect(location):
    with chat_server(lambda *_: (302, {"Location": location}, b"")) as server:
        with pytest.raises(ModelError, match=r"answered 302 \(Found\)"):
            ask(server)
        assert len(server.requests) == 1


# The key and control characters


ECHO = f"{KEY} Bearer {KEY} {json.dumps(KEY)} {KEY.replace('/', chr(92) + '/')} \x1b[2J\x00\x9b\u2028 \r\n"


@pytest.mark.parametrize("status", [200, 302, 400, 401, 429, 503])
@pytest.mark.parametrize("start", ["", "x" * 270, "x" * 290])  # the message ends amid the key
def test_key_in_body(status, start, tmp_path, capfd):
    reply = (status, {"Retry-After": f"{KEY}\x1b[2J"}, (start + ECHO).encode())
    with chat_server(lambda *_: reply) as server, pytest.raises(SystemExit) as stop:
        describe.main([*endpoint_options(server, "--max_retries", "1"), "--output_dir", str(tmp_path)])
    assert_printable(stop.value.code)
    assert f"answered {status}" in stop.value.code
    captured = capfd.readouterr()
    assert "Secret" not in captured.out + captured.err + (tmp_path / "journal.jsonl").read_text()
    assert "\x1b[2J" not in captured.err


@pytest.mark.parametrize(
    "answer",
    [
        f"HTTP/1.1 400 {KEY}\x1b[2J\r\n\r\n",
        f"HTTP/1.1 401 {KEY}\x1b[2J\r\n\r\n",
        f"{KEY}\x1b[2J\r\n\r\n",
        f"HTTP/{KEY} 200 OK\r\n\r\n",
        f"HTTP/1.1 200 OK\r\nContent-Length: 5, 6 {KEY}\r\n\r\n",
        f"HTTP/1.1 200 OK\r\n{KEY}\x1b[2J\r\n{KEY}: {KEY}\r\n\r\n",
        f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{KEY}\r\n",
        f"HTTP/1.1 302 Found\r\nLocation: {KEY}\r\nSet-Cookie: {KEY}={KEY}\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_key_in_headers(answer, tmp_path, capfd):
    def reply(number, kind, label, messages, handler):
        handler.wfile.write(answer.encode())
        handler.close_connection = True

    with chat_server(reply) as server, pytest.raises(SystemExit) as stop:
        describe.main([*endpoint_options(server, "--max_retries", "1"), "--output_dir", str(tmp_path)])
    assert_printable(stop.value.code)
    captured = capfd.readouterr()
    assert "Secret" not in captured.out + captured.err and "\x1b[2J" not in captured.err


def test_key_in_answer(tmp_path, capfd):
    with chat_server(lambda *_: f"1. A person shows {KEY}") as server:
        assert ask(server).problem == "it holds the key in OPENAI_API_KEY"
    assert "Secret" not in capfd.readouterr().err


def test_placeholder_key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    with chat_server(lambda *_: "1. A fox boxes") as server:
        assert ask(server).text == "1. A fox boxes"


# Any JSON


def choice(**fields) -> str:
    return json.dumps({"choices": [{"message": {"content": "1. a"}, **fields}]})


@pytest.mark.parametrize(
    "body",
    [
        *("", "null", "1", '"a"', "[]", "{}", "NaN", '{"choices": NaN}', '{"choices": {}}', '{"choices": {"0": 1}}'),
        *('{"choices": [[]]}', '{"choices": [null]}', '{"choices": ["message"]}', '{"choices": [{"message": []}]}'),
        *(choice(message={"content": value}) for value in ([], {}, 1, True, ["a"], [{"type": "text"}])),
        *('{"choices": ' + "[" * 200_000, "[" * 200_000 + "]" * 200_000, '{"a":' * 100_000),
        *("9" * 10_000, '{"choices": [' + "9" * 10_000 + "]}", '{"choices": 1e999999}', "\ud800", "\x00\x1b[2J"),
    ],
    ids=lambda body: ascii(body[:25]),
)
def test_any_json(body):
    with chat_server(lambda *_: (200, {}, body.encode(errors="surrogatepass"))) as server:
        answer = ask(server)
    assert not answer.text and "not a chat completion" in answer.problem
    assert_printable(answer.problem)


@pytest.mark.parametrize("reason", [{}, [], {"length": 1}, 1, None, "a\x1b", float("nan"), [[[]]]], ids=repr)
def test_any_finish_reason(reason):
    with chat_server(lambda *_: (200, {}, choice(finish_reason=reason).encode())) as server:
        answer = ask(server)
    assert answer.text == "1. a" and answer.problem is None


LONG = [
    *(" ", "a", "\n", "a\n", "1.", "1.\n", "- ", "step ", "```", "```\n", "```a", "*", "a b ", "[", "1. a\nb\n"),
    *("</think>", "<think>"),
]


@pytest.mark.parametrize("text", LONG, ids=ascii)
@pytest.mark.parametrize("kind", KINDS)
def test_long_text(text, kind):
    start = time.monotonic()
    for size in (2**20, 100_000):  # a refused one, and the longest that is read
        for prefix in ("", "1. ", "[", "```\n"):
            answer = (prefix + text * (size // len(text)))[:size]
            with pytest.raises(FormError):
                Question(KINDS[kind], "kick ball").read(answer)
    assert time.monotonic() - start < HANG


def test_hostile_texts(tmp_path, capfd):
    texts = {
        "ApplyEyeMakeup": "1. a person\x1b[2J moves",
        "kick ball": "1. a person \ud800 moves",
        "flic_flac": "[1" + "0" * 5000 + "]",
    }

    def reply(number, kind, label, messages, handler):
        return next(text for name, text in texts.items() if name[0].lower() == label[0].lower())

    with chat_server(reply) as server:
        argv = endpoint_options(server, "--max_attempts", "2", "--output_dir", str(tmp_path))
        assert describe.main(argv) == 1
    error = capfd.readouterr().err
    assert "9 of 9 answers are missing" in error and "\x1b[2J" not in error
    assert len((tmp_path / "journal.jsonl").read_text().splitlines()) == 1


# The journal


@pytest.mark.parametrize(
    "line",
    [
        *("[" * 200_000, '{"a":' * 100_000, "null", "1", "{", "", '"a"', "9" * 10_000, "\ud800", "\x00"),
        *('{"kind": [], "class": "a", "texts": []}', '{"kind": "a", "class": {}, "texts": ["a"]}'),
        *(
            '{"kind": "context", "class": "a", "texts": [1]}',
            '{"settings": 1}',
            '{"settings": []}',
            '{"settings": "a"}',
        ),
        *(
            '{"settings": {"\\n\\u001b[2J": 1}}',
            '{"settings": {"model": [[["\\n"]]]}}',
            '{"settings": {"model": NaN}}',
        ),
        '{"settings": {"model": "' + "x" * 100_000 + '"}}',
    ],
    ids=lambda line: ascii(line[:30]),
)
@pytest.mark.parametrize("number", [0, 1])
def test_forged_journal(tmp_path, line, number):
    with chat_server() as server:
        argv = [*endpoint_options(server, "--kinds", "context"), "--output_dir", str(tmp_path)]
        assert describe.main(argv) == 0
        journal = tmp_path / "journal.jsonl"
        lines = journal.read_bytes().splitlines()
        lines[number] = line.encode(errors="surrogatepass")
        journal.write_bytes(b"\n".join(lines) + b"\n")
        with pytest.raises(SystemExit) as stop:
            describe.main(argv)
    assert str(journal) in stop.value.code and len(stop.value.code) < 1000
    assert_printable(stop.value.code)


def test_threads_end():
    with chat_server(lambda *args: send_slowly(args[-1], b"x")) as server:
        ask(server, timeout=0.2)
        before = threading.active_count()
        ask(server, timeout=0.2)
        assert threading.active_count() <= before + 1
