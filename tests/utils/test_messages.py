"""Text for terminals, spreadsheets, Markdown and files of JSON lines."""

import csv
import io
import json
import logging

import pytest

from ezclip.errors import DataError, ModelError
from ezclip.utils.files import as_json_line
from ezclip.utils.messages import get_logger, say
from ezclip.utils.tables import as_csv_cell, as_markdown_table, from_csv_cell
from video_ezclip import mask_secrets, printable


HOSTILE = "\x1b[2J\x07\u202e\r\x9b1mred\u2028\ud800"


def test_what_a_terminal_gets(capsys, caplog):
    say(HOSTILE)
    with caplog.at_level(logging.WARNING):
        get_logger("ezclip.test").warning("%s https://me:pw@host/?sig=1", HOSTILE)
    texts = [capsys.readouterr().out, caplog.messages[-1], str(DataError(HOSTILE)), str(ModelError(HOSTILE))]
    for text in texts:
        assert text.rstrip("\n").isprintable() and "\\x1b[2J" in text and "red" in text
    assert texts[1].endswith("https://***@host/?sig=***")


def test_ordinary_text_stays_as_it_is():
    for text in ("a\tb\nc", "नमस्ते", "👩\u200d🚒 crème", "می\u200cخواهم", "x\u00a0y"):
        assert printable(text) == text == mask_secrets(text)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("ftp://me:secret@host/a", "ftp://***@host/a"),
        ("https://h/a?v=3&X-Goog-Signature=1a&w=4", "https://h/a?v=3&X-Goog-Signature=***&w=4"),
        ("(https://h/a?token=1a)", "(https://h/a?token=***)"),
        ("https://h/a?design=blue&keyboard=1", "https://h/a?design=blue&keyboard=1"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        ("hf_abcdefghij and sk-proj-0123456789", "hf_*** and sk-***"),
        ("mail me@example.org", "mail me@example.org"),
        ("https://me:a@b@h/x@y", "https://***@h/x@y"),
        ("https://h/a#access_token=1a", "https://h/a#access_token=***"),
        ("https://h/a?to%6ben=1a&jwt=2b", "https://h/a?to%6ben=***&jwt=***"),
        ("https://h/a?token=(x)y'z', twice", "https://h/a?token=***', twice"),
    ],
)
def test_secrets(text, masked):
    assert mask_secrets(text) == masked


@pytest.mark.parametrize("text", ["=1+1", "+1", "-red", "@a", "\tx", "'=a", "''-a", "red", "'red", "", "a=b"])
def test_cells_of_a_spreadsheet(text):
    cell = as_csv_cell(text)
    assert from_csv_cell(cell) == text and not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    file = io.StringIO(newline="")
    csv.writer(file).writerow([cell])
    file.seek(0)
    assert list(map(from_csv_cell, next(csv.reader(file)))) == [text]


def test_json_lines():
    content = {"label": "a\u2028b\u2029c\x85d\x0be\ud800é"}
    line = as_json_line(content)
    assert line.splitlines() == [line.removesuffix("\n")] and json.loads(line) == content
    assert line.encode("utf-8") and "é" in line


def test_cells_of_markdown():
    table = as_markdown_table(["name"], [["a|b\n<script> [x](http://evil) ![i](j) `c` www.evil.com"]])
    (row,) = table.splitlines()[2:]
    for markup in ("<script>", "[x](", "![i]", "`c`", "www.evil", "a|b"):
        assert markup not in row.replace("\\", "\0")


def test_a_terminal_that_knows_ascii_only():
    with io.TextIOWrapper(io.BytesIO(), encoding="ascii") as terminal:
        say("yoga 55 % █▌ 太", file=terminal)
        terminal.flush()
        assert terminal.buffer.getvalue().decode() == "yoga 55 % ## \\u592a\n"
