"""Convert a published checkpoint to a folder that `AutoModel` and `AutoProcessor` load.

    ezclip convert --checkpoint best.pt --output_dir ezclip-vit-base-patch16

The keys of the file tell EZ-CLIP / T2L, ActionCLIP, ViFi-CLIP and OpenAI's CLIP apart. The weights tell the sizes, the
temporal modelling and, for most systems, the number of frames. Each tensor of the file is used, or listed as left out.
Each tensor of the model is set.
"""

import argparse
import sys
from pathlib import Path

from safetensors import SafetensorError
from transformers.utils import PROCESSOR_NAME

from ezclip.cli.parser import Parser
from ezclip.convert.conversion import convert, describe
from ezclip.convert.formats import read_checkpoint
from ezclip.errors import ModelError
from ezclip.systems.loading import load_tokenizer
from ezclip.utils.messages import say
from processing_ezclip import EZClipProcessor, default_image_processor


DEFAULT_TOKENIZER = "openai/clip-vit-base-patch16"


def convert_checkpoint(args: argparse.Namespace) -> str:
    """Convert a published checkpoint to a folder with model and processor. Return a description of the model."""
    output_dir, checkpoint = Path(args.output_dir), args.checkpoint
    original = read_checkpoint(checkpoint, args.base_model_name_or_path)
    tokenizer = None if args.model_only else load_tokenizer(args.tokenizer)
    model = convert(original, args.num_frames)
    vision_config, vocab_size = model.config.vision_config, model.config.text_config.vocab_size
    if tokenizer is not None and len(tokenizer) != vocab_size:
        raise ModelError(
            f"The tokenizer of {args.tokenizer} has {len(tokenizer)} tokens, {checkpoint} {vocab_size}. Give the "
            "tokenizer it was trained with, or --model_only."
        )
    if tokenizer is None and (output_dir / PROCESSOR_NAME).exists():
        raise ModelError(
            f"{output_dir} has the processor of another model, which --model_only would leave beside this one. Give "
            "another --output_dir."
        )
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(output_dir)
        if tokenizer is not None:
            image_processor = default_image_processor(vision_config.image_size)
            processor = EZClipProcessor(image_processor, tokenizer, num_frames=vision_config.num_frames)
            processor.save_pretrained(output_dir)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"--output_dir {output_dir} cannot be written ({error}). It is incomplete. Give another folder."
        ) from error
    return describe(model, original)


def make_parser() -> Parser:
    """Return the parser of `ezclip convert`."""
    parser = Parser(prog="ezclip convert", description=__doc__)
    parser.add_argument("--checkpoint", required=True, help="the published file")
    parser.add_argument("--output_dir", required=True, help="folder to write")
    parser.add_argument("--num_frames", type=int, help="frames of a video, if the weights do not depend on it")
    parser.add_argument(
        "--base_model_name_or_path",
        help="for ViFi-CLIP, whose files lack the token embedding: the CLIP it was trained from (folder, Hub name, or "
        "OpenAI's .pt file)",
    )
    text = parser.add_mutually_exclusive_group()
    text.add_argument(
        "--tokenizer",
        default=DEFAULT_TOKENIZER,
        help="Hub name, folder, or bpe_simple_vocab_16e6.txt.gz (default: %(default)s; all CLIP models share it)",
    )
    text.add_argument("--model_only", action="store_true", help="convert the weights without a processor")
    return parser


def main(argv: list[str] | None = None):
    """Run `ezclip convert` with the options `argv`, by default those of the process."""
    args = make_parser().parse_args(argv)
    try:
        description = convert_checkpoint(args)
    except ModelError as error:
        sys.exit(f"ezclip convert: {error}")
    say(f"{args.output_dir}: {description}")
