"""CLIP's tokenizer from OpenAI's file of merges."""

import gzip
from pathlib import Path

from tokenizers import Regex, decoders, normalizers
from transformers import CLIPTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode


# CLIP's text cleaning calls `html.unescape` twice. These are the entities that captions contain.
HTML_ENTITIES = (
    ("&amp;", "&"),
    ("&amp;", "&"),
    ("&lt;", "<"),
    ("&gt;", ">"),
    ("&quot;", '"'),
    ("&#39;", "'"),
    ("&apos;", "'"),
    ("&nbsp;", " "),
)
VOCABULARY_SIZE = 49408


def load_bpe_tokenizer(bpe_file: str | Path) -> PreTrainedTokenizerFast:
    """
    Load the tokenizer of `bpe_simple_vocab_16e6.txt.gz`, with the ids of `clip.tokenize`.

    CLIP's text cleaning is applied without `ftfy`'s repair of wrongly decoded text and without rare HTML entities.

    Args:
        bpe_file (`str` or `Path`):
            OpenAI's list of merges, gzipped or not.

    Raises:
        `ValueError`: if the file is not that list.
    """
    content = Path(bpe_file).read_bytes()
    try:
        lines = (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode("utf-8").split("\n")
    except (gzip.BadGzipFile, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{bpe_file} cannot be read ({error}). Fetch CLIP's bpe_simple_vocab_16e6.txt.gz.") from error
    characters = list(bytes_to_unicode().values())
    # The first line is a header, and the file has more merges than CLIP uses.
    num_merges = VOCABULARY_SIZE - 2 * len(characters) - 2
    merges = [tuple(line.split()) for line in lines[1 : num_merges + 1]]
    if len(merges) != num_merges or any(len(merge) != 2 for merge in merges):
        raise ValueError(f"{bpe_file} does not hold CLIP's {num_merges} merges. Give bpe_simple_vocab_16e6.txt.gz.")
    tokens = [
        *characters,
        *(character + "</w>" for character in characters),
        *("".join(merge) for merge in merges),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    backend = CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=merges)._tokenizer
    backend.normalizer = normalizers.Sequence(
        [
            *(normalizers.Replace(entity, character) for entity, character in HTML_ENTITIES),
            normalizers.NFC(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Lowercase(),
        ]
    )
    backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("</w>", " ")])
    # Not a CLIPTokenizer: on loading, that class replaces the normalizer by its own.
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        model_max_length=77,
    )
