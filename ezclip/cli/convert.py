"""Convert a published checkpoint to a folder that `AutoModel` and `AutoProcessor` load.

    python scripts/convert_checkpoint.py --checkpoint best.pt --output_dir ezclip-vit-base-patch16

EZ-CLIP / T2L, ActionCLIP, ViFi-CLIP and OpenAI's CLIP are told apart by the keys of the file. Sizes, number of frames
and the kind of temporal modelling are read from the weights, as far as they tell. Every tensor of the file must be
used, or is named as left out, and every tensor of the model filled.
"""

import argparse
import sys
from pathlib import Path

from safetensors import SafetensorError
from transformers.utils import PROCESSOR_NAME

from ezclip.convert.conversion import convert, describe
from ezclip.convert.formats import read_checkpoint
from ezclip.errors import ModelError
from ezclip.systems.loading import load_tokenizer
from processing_ezclip import EZClipProcessor, default_image_processor


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="the authors' file")
    parser.add_argument("--output_dir", required=True, help="folder to write")
    parser.add_argument("--num_frames", type=int, help="frames of a video, where the weights do not tell")
    parser.add_argument(
        "--base_model_name_or_path",
        help="for ViFi-CLIP, whose files lack the token embedding: the CLIP it was trained from (folder, Hub name, or "
        "OpenAI's .pt file)",
    )
    text = parser.add_mutually_exclusive_group()
    text.add_argument(
        "--tokenizer",
        default="openai/clip-vit-base-patch16",
        help="Hub name, folder, or bpe_simple_vocab_16e6.txt.gz (default: %(default)s; all of CLIP share it)",
    )
    text.add_argument("--model_only", action="store_true", help="convert the weights without a processor")
    args = parser.parse_args(argv)
    try:
        tokenizer = None if args.model_only else load_tokenizer(args.tokenizer)
        checkpoint = read_checkpoint(args.checkpoint, args.base_model_name_or_path)
        model = convert(checkpoint, args.num_frames)
        vision_config, vocab_size = model.config.vision_config, model.config.text_config.vocab_size
        if tokenizer is not None and len(tokenizer) != vocab_size:
            raise ModelError(
                f"The tokenizer of {args.tokenizer} has {len(tokenizer)} tokens, {args.checkpoint} {vocab_size}. Give "
                "the tokenizer it was trained with, or --model_only."
            )
        if args.model_only and Path(args.output_dir, PROCESSOR_NAME).exists():
            raise ModelError(
                f"{args.output_dir} has the processor of another model, which --model_only would leave beside this "
                "one. Give another --output_dir."
            )
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
        model.save_pretrained(args.output_dir)
        if tokenizer is not None:
            EZClipProcessor(
                default_image_processor(vision_config.image_size), tokenizer, num_frames=vision_config.num_frames
            ).save_pretrained(args.output_dir)
    except ModelError as error:
        sys.exit(f"convert_checkpoint.py: {error}")
    except (OSError, SafetensorError) as error:
        sys.exit(
            f"convert_checkpoint.py: --output_dir {args.output_dir} cannot be written ({error}). It is not whole."
        )
    print(f"{args.output_dir}: {describe(model, checkpoint)}")


if __name__ == "__main__":
    main()
