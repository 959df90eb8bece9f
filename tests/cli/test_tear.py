"""TEAR: published outputs, description files and the preset."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file

from ezclip import ClassBank, EZClipConfig, EZClipModel, EZClipProcessor
from ezclip.cli import convert as convert_checkpoint
from ezclip.cli.arguments import parse_args
from ezclip.cli.plan import ClassTexts, plan_experiments
from ezclip.data.labels import read_class_descriptions, read_label_list
from ezclip.errors import DataError
from ezclip.systems.bpe_tokenizer import load_bpe_tokenizer
from ezclip.systems.loading import load_model, load_processor
from processing_ezclip import TEAR_TEMPLATES, TEMPLATES, default_image_processor, distinct_texts
from tests.helpers import error_of, make_clip, read_json, read_lines, run, shared_path


TEMPLATE = "A video action of {}"
PROMPTS, LISTS = ("data", "tear", "data", "prompts"), ("data", "EZ-CLIP", "lists")
LABELS = {"ucf101": "ucf_labels", "hmdb51": "hmdb51_labels", "k600": "kinetics_600_labels"}
# file, texts of a class (fewest, most), classes with a text of more than CLIP's 77 tokens
FILES = [
    ("hmdb51_all", 6, 10, 23),
    ("hmdb51_all_mistral", 7, 8, 0),
    ("hmdb51_context", 2, 6, 0),
    ("hmdb51_context_mistral", 3, 3, 0),
    ("hmdb51_decomposition", 3, 3, 0),
    ("hmdb51_decomposition_mistral", 2, 3, 0),
    ("hmdb51_description", 1, 1, 23),
    ("hmdb51_description_mistral", 1, 2, 0),
    ("hmdb51_only_label", 1, 1, 0),
    ("k600_only_label", 1, 1, 0),
    ("k600_splitted_all", 6, 11, 100),
    ("k600_splitted_context", 2, 5, 0),
    ("k600_splitted_decomposition", 2, 5, 0),
    ("k600_splitted_description", 1, 1, 100),
    ("k600_splitted_only_label", 1, 1, 0),
    ("k600_splitted_situation", 2, 2, 0),
    ("ucf101_all", 6, 11, 93),
    ("ucf101_context", 2, 7, 0),
    ("ucf101_decomposition", 3, 3, 0),
    ("ucf101_description", 1, 1, 93),
    ("ucf101_only_label", 1, 1, 0),
]


@pytest.fixture(scope="module")
def tokenizer():
    return load_bpe_tokenizer(shared_path("tokenizer", "bpe_simple_vocab_16e6.txt.gz"))


def read_descriptions(name: str) -> dict[str, list[str]]:
    return read_class_descriptions([shared_path(*PROMPTS, f"{name}.json")])


def read_labels(name: str) -> list[str]:
    return read_label_list(shared_path(*LISTS, f"{LABELS[name.split('_')[0]]}.csv"))


# ---- What TEAR's code gives, on tiny weights ----


class Golden:
    """
    Weights and outputs of TEAR's code, whose six ways to write texts are `v0` to `v5`.

    The tiny vocabulary takes the place of CLIP's by arithmetic (see [`as_tiny`]); the model here has a row for each
    token of CLIP, that of its stand-in, so that it reads what CLIP's tokenizer writes.
    """

    def __init__(self, folder, tokenizer):
        source = shared_path("golden", "tear_vitb")
        self.variants = json.loads((source / "meta.json").read_text(encoding="utf-8"))["variants"]
        self.tensors = load_file(source / "io.safetensors")
        argv = ["--checkpoint", str(source / "checkpoint.pt"), "--output_dir", str(folder), "--model_only"]
        convert_checkpoint.main(argv)
        tiny = EZClipModel.from_pretrained(folder)
        config = tiny.config.to_dict()
        ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        config["text_config"] |= {"vocab_size": len(tokenizer), **ids}
        self.model = EZClipModel(EZClipConfig(**config)).eval()
        weights, name = tiny.state_dict(), "text_model.embeddings.token_embedding.weight"
        weights[name] = weights[name][as_tiny(torch.arange(len(tokenizer)))]
        self.model.load_state_dict(weights)
        self.processor = EZClipProcessor(default_image_processor(32), tokenizer, sampling="tear")

    def settings(self, name: str) -> dict:
        """How our processor is asked for the texts of a variant."""
        variant = self.variants[name]
        return {
            "candidate_labels": variant["class_names"],
            "templates": list(TEAR_TEMPLATES) if variant["use_templates"] else TEMPLATE,
            "descriptions": read_descriptions(variant["prompts_file"].removesuffix(".json")),
            "include_label": True,
            "input_conditioning": variant["input_conditioning"],
        }


def as_tiny(ids: torch.Tensor) -> torch.Tensor:
    """The ids of CLIP's tokens in the vocabulary of 512."""
    tiny = ids % 509 + 1
    tiny[ids == 49406], tiny[ids == 49407] = 510, 511
    return tiny


@pytest.fixture(scope="module")
def golden(tmp_path_factory, tokenizer):
    return Golden(tmp_path_factory.mktemp("tear"), tokenizer)


@pytest.mark.parametrize("name", ["v0", "v1", "v2", "v3", "v4", "v5"])
def test_published_texts_and_tokens(golden, name):
    variant = golden.variants[name]
    templates = TEAR_TEMPLATES if variant["use_templates"] else [TEMPLATE]
    prompts = golden.processor.get_prompts(**golden.settings(name))
    assert len(prompts) == len(variant["class_names"]) == 6
    for label, own in zip(variant["class_names"], prompts):
        texts = [" ".join(text.split()) for text in variant["sub_actions"][label]]
        assert own == [[template.format(text) for template in templates] for text in texts]

    # Class by class, and in a class template by template
    rows = [own[text][i] for own in prompts for i in range(len(templates)) for text in range(len(own))]
    tokens = golden.processor(text=rows, padding="max_length", truncation=True, return_tensors="pt")
    ids, mask = tokens.input_ids, tokens.attention_mask
    assert torch.equal(as_tiny(ids) * mask, golden.tensors[f"{name}.token_ids"])
    if f"{name}.token_ids_real" in golden.tensors:
        assert torch.equal(ids * mask, golden.tensors[f"{name}.token_ids_real"])
    # As TEAR cuts them
    assert (ids[:, -1] == golden.processor.tokenizer.eos_token_id).all()


@pytest.mark.parametrize("name", ["v0", "v1", "v2", "v3", "v4", "v5"])
def test_published_values(golden, name):
    tensors = golden.tensors
    bank = ClassBank.build(golden.model, golden.processor, **golden.settings(name))
    assert bank.embeds.shape == (1, 6, 512)
    torch.testing.assert_close(bank.embeds[0], tensors[f"{name}.class_embeds"], atol=2e-5, rtol=0)
    with torch.no_grad():
        features = golden.model.get_video_features(tensors["pixel_values"])
    torch.testing.assert_close(features.frame_embeds, tensors["frame_embeds"], atol=2e-5, rtol=0)
    torch.testing.assert_close(features.pooler_output, tensors["video_embeds"], atol=2e-5, rtol=0)
    video_embeds = torch.nn.functional.normalize(features.pooler_output, dim=-1)
    for temperature, suffix in ((1.0, "t1"), (0.5, "t05")):
        scores = 100 / temperature * video_embeds @ bank.embeds[0].t()
        torch.testing.assert_close(scores, tensors[f"{name}.scores_{suffix}"], atol=2e-3, rtol=0)
        for ensemble in ("embedding", "probability"):
            probabilities = bank.probabilities(features.pooler_output, ensemble, 100 / temperature)
            torch.testing.assert_close(probabilities, tensors[f"{name}.probs_{suffix}"], atol=1e-5, rtol=0)


def test_sampling_of_the_preset(tmp_path, tiny_folder):
    make_clip(tmp_path, vocab_size=15)
    processor = load_processor(tmp_path, tiny_folder, preset="tear")
    assert (processor.sampling, processor.num_frames) == ("tear", 16)
    cases = json.loads(shared_path("golden", "aux", "tear_sampling.json").read_text(encoding="utf-8"))["cases"]
    for case in cases:
        assert processor.get_sampler(case["n_frames"])(case["num_frames"]) == case["indices"]
        if case["n_frames"] == 16:
            assert processor.get_sampler()(case["num_frames"]) == case["indices"]


# ---- Its files ----


@pytest.mark.parametrize(("name", "fewest", "most", "cut"), FILES)
def test_files_fit_label_lists(tokenizer, name, fewest, most, cut):
    descriptions, labels = read_descriptions(name), read_labels(name)
    prompts = EZClipProcessor().get_prompts(labels, None, descriptions)
    assert len(prompts) == len(labels) == len(descriptions)
    sizes = [len(texts) for texts in prompts]
    assert (min(sizes), max(sizes)) == (fewest, most)
    texts = distinct_texts(prompts)
    encoded = tokenizer(texts, truncation=True)
    too_long = {text for text, encoding in zip(texts, encoded.encodings) if encoding.overflowing}
    assert all(encoded["input_ids"][texts.index(text)][-1] == tokenizer.eos_token_id for text in too_long)
    assert sum(any(text in too_long for (text,) in texts) for texts in prompts) == cut


def test_all_files_are_tested():
    names = {path.stem for path in shared_path(*PROMPTS).glob("*.json")}
    assert names == {name for name, *_ in FILES} | {"k600_decomposition", "k6001_k600_decomposition"}


@pytest.mark.parametrize("subset", [1, 2, 3])
def test_files_fit_the_draws_of_kinetics_600(subset):
    labels = read_label_list(shared_path("data", "tear", "txt", "k600_split", f"k600_labels_split{subset}.txt"))
    prompts = EZClipProcessor().get_prompts(labels, None, read_descriptions("k600_splitted_all"), True)
    assert len(prompts) == 160 and min(map(len, prompts)) > 6


def test_names_in_other_spellings():
    descriptions = read_descriptions("ucf101_description")
    (((text,),),) = EZClipProcessor().get_prompts(["HandstandPushups"], None, descriptions)
    assert descriptions["Hand Stand Pushups"] == [text]
    # TEAR's own list of the classes
    labels = read_label_list(shared_path("data", "tear", "txt", "ucf101", "classInd.txt"))
    assert len(EZClipProcessor().get_prompts(labels, None, descriptions)) == 101
    label = "passing American football (in game)"
    assert label in read_labels("k600")
    descriptions = read_descriptions("k600_splitted_description")
    (((text,),),) = EZClipProcessor().get_prompts([label], None, descriptions)
    assert descriptions["passing american football (in game)"] == [text]


def test_missing_classes():
    labels = read_labels("k600")
    missing = ["playing dominoes", "playing poker", "beatboxing", "playing blackjack", "tying shoe laces"]
    missing += ["capoeira", "card stacking", "breakdancing"]
    with pytest.raises(DataError, match="8 of 600 classes have no description") as caught:
        ClassTexts(None, read_descriptions("k600_decomposition")).prompts(EZClipProcessor(), labels)
    assert all(repr(name) in str(caught.value) for name in missing)
    part = read_descriptions("k6001_k600_decomposition")
    with pytest.raises(DataError, match="500 of 600 classes have no description") as caught:
        ClassTexts(None, part).prompts(EZClipProcessor(), labels)
    assert sum(repr(label) in str(caught.value) for label in labels) == 500
    # The files of two data sets, where the second has what the first lacks
    both = [shared_path(*PROMPTS, f"{name}.json") for name in ("k6001_k600_decomposition", "k600_splitted_all")]
    assert len(EZClipProcessor().get_prompts(labels, None, read_class_descriptions(both))) == 600


# ---- Its preset ----

DESCRIPTIONS = {
    "Red Circle": ["a circle moving right", "red", "a photo of red of red of red of red of red of red of red"],
    "green square": ["a square", "green"],
}


@pytest.fixture
def preset(tmp_path, tiny_folder, clip_folder):
    """Arguments that evaluate a plain CLIP on the class folders as TEAR does."""
    make_clip(tmp_path / "clip", vocab_size=15)
    (tmp_path / "descriptions.json").write_text(json.dumps(DESCRIPTIONS))
    arguments = ["--model_name_or_path", tmp_path / "clip", "--tokenizer_name", tiny_folder, "--do_eval"]
    arguments += ["--validation_dir", clip_folder, "--preset", "tear"]
    return [*arguments, "--class_descriptions", tmp_path / "descriptions.json", "--output_dir", tmp_path / "out"]


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ([], {"templates": TEMPLATE, "descriptions": DESCRIPTIONS, "include_label": True}),
        (
            ["--templates", "tear", "--include_label", "False", "--input_conditioning"],
            {"templates": list(TEAR_TEMPLATES), "descriptions": DESCRIPTIONS, "input_conditioning": True},
        ),
    ],
)
def test_preset(preset, tmp_path, tiny_folder, clip_folder, options, settings):
    out = run(*preset, *options)
    assert read_json(out / "eval_results.json")["eval_samples"] == 5
    model = load_model(tmp_path / "clip", preset="tear").eval()
    processor = load_processor(tmp_path / "clip", tiny_folder, preset="tear")
    bank = ClassBank.build(model, processor, ["GreenSquare", "red_circle"], **settings)
    assert bank.embeds.shape == (1, 2, 16)
    for line in read_lines(out / "predictions.jsonl"):
        pixel_values = processor(videos=line["video"], return_tensors="pt").pixel_values
        assert pixel_values.shape == (1, 16, 3, 32, 32)
        with torch.no_grad():
            (scores,) = bank.probabilities(model.get_video_features(pixel_values).pooler_output).tolist()
        expected = dict(zip(bank.labels, scores))
        assert {p["label"]: p["score"] for p in line["predictions"]} == pytest.approx(expected, abs=1e-5)


def test_resume_needs_same_texts(preset, clip_folder, capsys):
    # Not --do_eval, and files in place of the class folders
    arguments = [*preset[:4], "--do_predict", "--videos", clip_folder / "red_circle" / "a.mp4", *preset[7:]]
    arguments += ["--candidate_labels", "red circle", "green square"]
    (line,) = read_lines(run(*arguments) / "predictions.jsonl")
    assert {p["label"] for p in line["predictions"]} == {"red circle", "green square"}
    assert "include_label: true → false" in error_of(capsys, *arguments, "--include_label", "False")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ensemble", "probability"], "--ensemble probability needs one text"),
        (["--num_clips", "2"], "`num_clips` must be 1"),
        (["--templates", "published", "a {}"], "got 'published'"),
    ],
)
def test_options_that_contradict_preset(preset, capsys, options, message):
    assert message in error_of(capsys, *preset, *options)


def test_label_options_need_descriptions(preset, capsys):
    without = [*preset[:7], *preset[-2:]]
    for option in ("--include_label", "--input_conditioning"):
        assert "are for --class_descriptions" in error_of(capsys, *without, option)
    # Of TEAR's preset they are a part, with or without descriptions.
    _, data_args, args = parse_args([*map(str, without), "--preset", "tear"])
    assert (data_args.templates, data_args.include_label, args.ensemble) == ([TEMPLATE], True, "embedding")
    _, data_args, args = parse_args(list(map(str, without)))
    assert (data_args.templates, data_args.include_label, args.ensemble) == (None, None, None)


def test_texts_of_data_sets(tmp_path, clip_folder):
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(json.dumps({name: [name]}))
    own = {"validation_dir": str(clip_folder)}
    described = {**own, "class_descriptions": ["b.json"], "templates": "published", "include_label": False}
    (tmp_path / "sets.yaml").write_text(
        yaml.safe_dump({"names": own, "texts": {**own, "class_descriptions": ["a.json"]}, "others": described})
    )
    arguments = ["--model_name_or_path", "x", "--protocol", "zero_shot", "--eval_datasets", tmp_path / "sets.yaml"]
    arguments += ["--preset", "tear", "--class_descriptions", "b.json", "--input_conditioning"]
    arguments += ["--list_root", tmp_path, "--output_dir", tmp_path / "out"]
    _, data_args, args = parse_args(list(map(str, arguments)))
    (experiment,) = plan_experiments(data_args, args)
    texts = {name.partition("/")[0]: own for name, own in experiment.test_texts.items()}
    assert experiment.train_texts == ClassTexts([TEMPLATE], {"b": ["b"]}, True, True)
    assert texts["names"] == ClassTexts([TEMPLATE], None, True, True)
    assert texts["texts"] == ClassTexts([TEMPLATE], {"a": ["a"]}, True, True)
    assert texts["others"] == ClassTexts(list(TEMPLATES), {"b": ["b"]}, False, True)
