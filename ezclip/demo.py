"""A demonstration without network or data."""

import fractions
from pathlib import Path

import av
import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


def word_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """A tokenizer that knows `words` alone; like CLIP's it frames a text and the last id is end-of-text."""
    tokens = ["<|padding|>", "<|unknown|>", *words, "<|startoftext|>", "<|endoftext|>"]
    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<|unknown|>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    frame = [(token, tokens.index(token)) for token in ("<|endoftext|>", "<|startoftext|>")]
    backend.post_processor = processors.BertProcessing(*frame)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|padding|>",
        unk_token="<|unknown|>",
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        model_max_length=16,
    )


def write_video(path: str | Path, frames: np.ndarray, rate: int = 8):
    """
    Encode frames as H.264.

    Args:
        path (`str` or `Path`):
            The file to write; its ending chooses the container.
        frames (`np.ndarray` of shape `(T, H, W, 3)`):
            RGB frames, uint8, of even height and width.
        rate (`int`, *optional*, defaults to 8):
            Frames per second.
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fractions.Fraction(rate), options={"crf": "12"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def run_demo(*a, **k):
    raise NotImplementedError
