"""`ezclip push` with a server that echoes the token, and with private or forged texts in the folder to push."""

import json
import re
import warnings

import pytest
from huggingface_hub import constants
from markdown_it import MarkdownIt

from ezclip import ClassBank, EZClipModel, EZClipProcessor
from ezclip.utils.tables import as_markdown_table, escape_markdown
from tests.helpers import edit_config
from tests.hub.test_push import card_of, connect, error_of, models, run, scores, whole, write_json  # noqa: F401
from tests.hub_server import USER, HubHandler, LoopbackHub


TOKEN = "plain-0123456789"  # without the Hub's hf_
OTHER_TOKEN = "hf_abcdefghijklmnopqrst"
SAID = f"{TOKEN} and {OTHER_TOKEN}"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with LoopbackHub().serving() as hub:
        connect(hub, monkeypatch)
        hub.tokens = {TOKEN: USER}
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield hub


def assert_masked(text: str):
    assert TOKEN not in text and OTHER_TOKEN not in text and "\x1b[2J" not in text, text


# The token


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 429, 500])
@pytest.mark.parametrize("path", ["/repos/create", "/commit/", "/preupload/", "/validate-yaml"])
def test_token_in_error(hub, whole, status, path, caplog, capfd):  # noqa: F811
    hub.fail("POST", path, times=float("inf"), status=status, message=SAID)
    said = error_of("--model", whole, "--repo_id", "me/x")
    assert ("***" in said or "KeyError" in said) and len(said.splitlines()) == 1
    assert_masked(said + caplog.text + "".join(capfd.readouterr()))


def test_control_characters_in_error(hub, whole, monkeypatch):  # noqa: F811
    def error(handler, status, code, message):
        handler.reply(status, {"error": f"a\x1b[2J\n{SAID}"}, Content_Type="application/json")

    monkeypatch.setattr(HubHandler, "error", error)
    hub.fail("POST", "/commit/", status=400)
    said = error_of("--model", whole, "--repo_id", "me/x")
    assert "a\\x1b[2J" in said
    assert_masked(said)


def test_token_in_warning(hub, whole, monkeypatch, caplog, capfd):  # noqa: F811
    reply = HubHandler.reply

    def reply_with_warning(handler, *args, **headers):
        reply(handler, *args, X_HF_Warning=f"a; {SAID}", **headers)

    monkeypatch.setattr(HubHandler, "reply", reply_with_warning)
    # The Hub warns of metadata in the body
    monkeypatch.setattr("tests.hub_server.check_metadata", lambda content: ([], [f"\x1b[2J {SAID}"]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run("--model", whole, "--repo_id", "me/x")
    said = "".join(str(warning.message) for warning in caught)
    output = "".join(capfd.readouterr())
    assert "***" in said + output + caplog.text
    assert_masked(said + output + caplog.text)


def test_token_in_commit_url(hub, whole, monkeypatch, capsys):  # noqa: F811
    reply = HubHandler.reply

    def reply_with_token(handler, status=200, content=b"", **headers):
        if isinstance(content, dict) and "commitUrl" in content:
            content["commitUrl"] += f"{TOKEN}\x1b[2J"
        reply(handler, status, content, **headers)

    monkeypatch.setattr(HubHandler, "reply", reply_with_token)
    run("--model", whole, "--repo_id", "me/x")
    output = capsys.readouterr().out
    assert "***\\x1b[2J" in output
    assert_masked(output)


def test_name_of_user(hub, whole):  # noqa: F811
    for name in ("a](http://evil)", "a\x1b[2J", SAID, "a/b", ""):
        hub.tokens[TOKEN] = name
        said = error_of("--model", whole, "--repo_id", "x")
        assert "cannot be the name of a repository" in said
        assert_masked(said)


# Unknown fields


def test_unknown_fields(whole, tmp_path, caplog):  # noqa: F811
    config = json.loads((whole / "config.json").read_text())
    edit_config(whole, api_key=SAID, notes={"mine": SAID}, **{"\x1b[2J": 1})
    edit_config(whole, vision_config={**config["vision_config"], "annotator": SAID})
    processor = json.loads((whole / "processor_config.json").read_text())
    processor["password"] = processor["image_processor"]["password"] = SAID
    (whole / "processor_config.json").write_text(json.dumps(processor))
    run("--model", whole, "--repo_id", "me/x", "--dry_run", tmp_path / "look")
    for path in (tmp_path / "look").iterdir():
        assert SAID.encode() not in path.read_bytes(), path
    (message,) = [record.getMessage() for record in caplog.records if "not pushed" in record.getMessage()]
    for field in ("api_key", "notes", "vision_config.annotator", "\\x1b[2J"):
        assert f"{field} of config.json" in message
    assert "image_processor.password of processor_config.json" in message
    assert SAID not in message and "\x1b" not in message
    # What the classes know is pushed as it was
    assert json.loads((tmp_path / "look" / "config.json").read_text()) == config
    EZClipModel.from_pretrained(tmp_path / "look")
    EZClipProcessor.from_pretrained(tmp_path / "look")


def test_known_fields_stay(whole, tmp_path, caplog):  # noqa: F811
    processor = EZClipProcessor.from_pretrained(whole)
    processor.image_processor.do_rescale, processor.sampling = False, "tear"
    processor.save_pretrained(whole)
    edit_config(whole, problem_type="single_label_classification", motion_loss_weight=0.5)
    run("--model", whole, "--repo_id", "me/x", "--dry_run", tmp_path / "look")
    assert not [record for record in caplog.records if "not pushed" in record.getMessage()]
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        assert json.loads((tmp_path / "look" / name).read_text()) == json.loads((whole / name).read_text())


# The card


EVIL = [
    "](http://evil) <script>alert(1)</script>",
    "![x](http://evil) http://evil www.evil me@evil &lt;b&gt;",
    "*a* __b__ ~~c~~ `d` $e$ | f \\",
    "a\n\n# b\n---\n- c\r\n| d |\n<!-- ",
    "--- : # {{ facts }} {% x %} \x1b[2J \u2028 \u202e",
]


def shown(text: str) -> str:
    return re.sub(r"[\x1b\u202e]", lambda match: ascii(match.group())[1:-1], " ".join(text.split()))


@pytest.mark.parametrize("text", EVIL, ids=range(len(EVIL)))
def test_escape_markdown(text):
    (inline,) = MarkdownIt("gfm-like", {"linkify": False}).parseInline(escape_markdown(text))
    assert {token.type for token in inline.children} == {"text"}
    assert "".join(token.content for token in inline.children) == shown(text)
    assert as_markdown_table(["a", "b"], [[text, "x"]]).count("\n") == 2


@pytest.mark.parametrize(
    "text", ["red circle", "base_to_novel", "hmdb51/split1", "UCF-101", "0.0001", "80.0 ± 0.1 (a)"]
)
def test_plain_text_stays(text):
    assert escape_markdown(text) == text


def tokens_of(text: str) -> list:
    return [
        token
        for block in MarkdownIt("gfm-like", {"linkify": False}).parse(text)
        for token in (block, *(block.children or ()))
    ]


def test_card_with_hostile_texts(whole, tmp_path):  # noqa: F811
    arguments = ["--model", whole, "--repo_id", "me/x", "--dry_run"]

    def write(texts, name):
        bank = ClassBank.from_pretrained(whole)
        ClassBank(texts, bank.embeds[:, :1].expand(-1, len(texts), -1).contiguous()).save_pretrained(whole)
        tests = {f"{text}/{text}": scores(0.5, 0.9) for text in texts}
        settings = {"learning_rate": texts[0], "seed": texts[1], "videos of train": "5 videos"}
        write_json(whole / "results.json", {"settings": settings, "results": {text: scores(0.5) for text in texts}})
        row = {"top1": {"mean": 0.5, "std": 0.1, "num_runs": texts[2]}}
        summary = {text: {**row, "top5": row["top1"]} for text in texts}
        experiments = {"": tests, "other": tests}
        content = {"protocol": "zero_shot", "std_ddof": 1, "experiments": experiments, "summary": summary}
        write_json(whole / "protocol_results.json", content)
        performance = {"device": texts[3], "train_runtime": 5.0, "num_processes": 2}
        write_json(whole / "train_results.json", {"performance": performance})
        return card_of(*arguments, tmp_path / name)

    card, text = write(EVIL, "evil")
    plain, _ = write([f"plain {number}" for number in range(len(EVIL))], "plain")
    found, expected = (
        [(token.type, token.tag) for token in tokens_of(content.text) if not token.type.startswith("text")]
        for content in (card, plain)
    )
    assert found == expected
    rendered = "".join(token.content for token in tokens_of(card.text) if token.type.startswith("text"))
    for hostile in EVIL:
        assert shown(hostile).rstrip("-") in rendered
    assert text.count("written by ezclip, sha256") == 1


def test_card_with_hostile_data_set(whole, tmp_path):  # noqa: F811
    content = {"protocol": "zero_shot", "std_ddof": 1, "summary": {}}
    tests = {f"hmdb51/{text.replace('/', ' ')}": scores(0.5, 0.9) for text in EVIL}
    write_json(whole / "protocol_results.json", {**content, "experiments": {"": tests}})
    card, _ = card_of("--model", whole, "--repo_id", "me/x", "--dry_run", tmp_path / "look")
    splits = {result.dataset_split for result in card.data.eval_results}
    assert splits == {shown(text.replace("/", " ")) for text in EVIL}


# Forged JSON

DEEP = ("[" * 100_000, '{"a":' * 100_000, '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}")
FORGED = (*DEEP, "", "1", "null", '"a"', "[]", "9" * 10_000, '{"a": 1e999999}', "\x1b[2J", "\x00")


@pytest.mark.parametrize(
    "name",
    [
        *("eval_results.json", "results.json", "protocol_results.json", "trainer_state.json", "train_results.json"),
        *("config.json", "processor_config.json", "tokenizer_config.json", "tokenizer.json"),
    ],
)
def test_forged_json(whole, tmp_path, name):  # noqa: F811
    for number, content in enumerate(FORGED):
        (whole / name).write_text(content)
        try:
            run("--model", whole, "--repo_id", "me/x", "--dry_run", tmp_path / str(number))
        except SystemExit as stop:
            assert stop.code.isprintable() and str(whole) in stop.code, content[:20]
        else:
            assert content == '{"a": 1e999999}' or (name.startswith("processor") and content in ("{}",)), content[:20]


def test_forged_card(hub, whole, caplog):  # noqa: F811
    card = f"---\na: {'[' * 5000}\n---\nThis model card has been automatically generated.\n"
    hub.add("me/x", {"README.md": card.encode()})
    run("--model", whole, "--repo_id", "me/x")
    assert "README.md of me/x was written or changed by hand and stays" in caplog.text
    (whole / "README.md").write_text(card)
    assert "The Hub refuses the metadata of README.md" in error_of("--model", whole, "--repo_id", "me/x")


@pytest.mark.parametrize(
    "fields",
    [
        *({"fixed_num_frames": SAID}, {"vision_config": 1}, {"vision_config": {"hidden_size": 10**400}}),
        *(
            {"id2label": [1]},
            {"dtype": "os"},
            {"dtype": {}},
            {"auto_map": 1},
            {"architectures": 1},
            {"text_config": []},
        ),
        *({"model_type": {}}, {"model_type": "\x1b[2J"}, {"projection_dim": "\x1b[2J"}, {"label2id": "a"}),
        *({"quantization_config": 1}, {"base_model_name_or_path": {}}, {"to_dict": 1}),
    ],
    ids=str,
)
def test_forged_config(whole, tmp_path, fields, capfd):  # noqa: F811
    edit_config(whole, **fields)
    try:
        run("--model", whole, "--repo_id", "me/x", "--dry_run", tmp_path / "look")
    except SystemExit as stop:
        assert "\x1b" not in stop.code and len(stop.code.splitlines()) == 1
    assert "\x1b[2J" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("trainer_state.json", {"global_step": 1, "epoch": "x", "log_history": []}),
        ("trainer_state.json", {"global_step": 1, "train_batch_size": "x", "log_history": []}),
        ("trainer_state.json", {"global_step": 1e999, "log_history": []}),
        ("trainer_state.json", {"global_step": 1, "log_history": [{"loss": 10**4000}]}),
        ("train_results.json", {"performance": {"num_processes": "x"}}),
        ("train_results.json", {"performance": {"train_runtime": []}}),
        ("train_results.json", {"recipe": 1}),
        ("results.json", {"settings": {"videos of train": 1}, "results": 1}),
        ("results.json", {"settings": ["videos of train"], "results": {}}),
        ("protocol_results.json", {"protocol": "zero_shot", "experiments": {"": {"a": 1}}}),
        ("eval_results.json", {"eval_top1": 0.5, "eval_samples": "\x1b[2J\n"}),
    ],
    ids=str,
)
def test_forged_results(whole, tmp_path, name, content):  # noqa: F811
    write_json(whole / name, content)
    said = error_of("--model", whole, "--repo_id", "me/x", "--dry_run", tmp_path / "look")
    assert f"{whole / name} is not what training and evaluation write" in said
    assert len(said.splitlines()) == 1 and "\x1b" not in said
