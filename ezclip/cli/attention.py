"""Draw the attention of a model, and of its base, such as CLIP, over the frames of a video.

    ezclip attention VIDEO --model_name_or_path FOLDER --labels archery yoga --output_dir maps

The command writes `attention.png`, the sampled frames with the maps of the base and of the model below them, and
`attention.mp4`, the whole video with its maps. For a model with temporal tokens it also writes
`temporal_attention.png`, their attention to the frames in each block. With `--labels` the maps show the evidence for
each label, without them the attention that pools a frame. With `--class_descriptions` it also writes `alignment.png`:
which frame shows which step of each label. The base is the model without its added parts, or `--baseline`.
"""

import os
import sys
from pathlib import Path

from accelerate import PartialState
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from transformers import AutoConfig, CLIPConfig

from configuration_ezclip import PRESETS
from ezclip.attention.alignment import (
    Alignment,
    alignment_of,
    check_frame_embeds,
    describe_alignment,
    draw_alignment,
)
from ezclip.attention.figures import draw_attention, draw_temporal_attention
from ezclip.attention.overlay import write_overlay
from ezclip.attention.video_attention import MAX_LABELS, METHODS, VideoAttention, describe_attention, look_at_video
from ezclip.cli.limits import add_limits, read_limits
from ezclip.cli.parser import Parser
from ezclip.data.labels import read_class_descriptions, split_labels
from ezclip.systems.loading import check_fit, load_model, load_processor
from ezclip.utils.files import replacing
from ezclip.utils.messages import say
from modeling_ezclip import EZClipModel
from processing_ezclip import EZClipProcessor
from video_ezclip import check_frame_folder, describe_video


SUFFIXES = (".png", ".mp4")


def load_system(
    name_or_path: str, preset: str | None, tokenizer_name: str | None = None
) -> tuple[EZClipModel, EZClipProcessor]:
    """Load a model, on the accelerator if there is one, and its processor."""
    model = load_model(name_or_path, preset=preset)
    processor = load_processor(name_or_path, tokenizer_name, None, preset)
    check_fit(model, processor)
    return model.eval().to(PartialState().device), processor


def load_baseline(name_or_path: str, tokenizer_name: str | None) -> tuple[EZClipModel, EZClipProcessor]:
    """Load a model of this package, or a plain CLIP."""
    try:
        is_clip = isinstance(AutoConfig.from_pretrained(name_or_path), CLIPConfig)
    except (OSError, ValueError):
        is_clip = False  # `load_system` reports the error
    return load_system(name_or_path, "clip" if is_clip else None, tokenizer_name if is_clip else None)


def save_picture(picture: Image.Image, path: Path, description: str):
    """Write a PNG with its description as text."""
    info = PngInfo()
    info.add_itxt("Description", description)
    with replacing(path) as temporary:
        picture.save(temporary, format="PNG", pnginfo=info)


def write(
    attention: VideoAttention,
    alignments: list[Alignment],
    video: str,
    output_dir: str | None,
    output_file: str | None,
) -> list[Path]:
    """Write all pictures to a folder, or one of them to a file. Return the paths."""
    folder = Path(output_dir or "")
    wanted = {suffix: folder / f"attention{suffix}" for suffix in SUFFIXES}
    if output_file is not None:
        wanted = {Path(output_file).suffix.lower(): Path(output_file)}
    written = list(wanted.values())
    if ".png" in wanted:
        save_picture(draw_attention(attention), wanted[".png"], describe_attention(attention))
    if output_file is None and attention.temporal is not None:
        written.append(folder / "temporal_attention.png")
        picture = draw_temporal_attention(attention.temporal)
        save_picture(picture, written[-1], "Attention of the temporal token of each frame to each frame, by block.")
    if output_file is None and alignments:
        written.append(folder / "alignment.png")
        picture = draw_alignment(attention, alignments)
        save_picture(picture, written[-1], describe_alignment(attention, alignments))
    if ".mp4" in wanted:
        write_overlay(attention, video, wanted[".mp4"])
    return written


def main(argv: list[str] | None = None):
    """Run `ezclip attention`."""
    parser = Parser(prog="ezclip attention", description=__doc__)
    parser.add_argument("video", metavar="VIDEO", help="path or URL of a video file, or a folder of frames")
    parser.add_argument("--model_name_or_path", required=True, help="model and processor: a folder, or a Hub name")
    parser.add_argument("--preset", choices=PRESETS, help="system to build from a plain dual encoder")
    parser.add_argument("--tokenizer_name", help="tokenizer, if the model has none")
    parser.add_argument("--baseline", help="model to compare with: a folder, or a Hub name (default: its own base)")
    labels_help = f"at most {MAX_LABELS} labels, each with its own maps; a single argument is split at commas"
    parser.add_argument("--labels", nargs="+", help=labels_help)
    parser.add_argument("--templates", nargs="+", help="sentences with {} (default: the 16 published ones)")
    steps_help = "files with the steps of each label, to align with the frames"
    parser.add_argument("--class_descriptions", nargs="+", metavar="FILE", help=steps_help)
    method_help = "how maps are made (default: relevance with labels, last without)"
    parser.add_argument("--method", choices=METHODS, help=method_help)
    parser.add_argument("--start", type=float, help="start of the part to read, in seconds")
    parser.add_argument("--end", type=float, help="end of the part to read, in seconds")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--output_dir", help="folder for all pictures")
    where.add_argument("--output_file", help="file for one picture: .png, or .mp4 for the video")
    parser.add_argument("--use_cpu", action="store_true", help="do not use an accelerator")
    add_limits(parser)
    args = parser.parse_args(argv)
    if args.output_file is not None and Path(args.output_file).suffix.lower() not in SUFFIXES:
        parser.error(f"--output_file must end in {' or '.join(SUFFIXES)}, got {args.output_file!r}.")
    PartialState(cpu=args.use_cpu)
    try:
        if os.path.isdir(args.video):
            check_frame_folder(args.video, describe_video(args.video))
        labels, descriptions = args.labels and split_labels(args.labels), None
        if args.class_descriptions is not None:
            descriptions = read_class_descriptions(args.class_descriptions)
            labels = labels or list(descriptions)
        model, processor = load_system(args.model_name_or_path, args.preset, args.tokenizer_name)
        if descriptions is not None:
            check_frame_embeds(model)
        attention = look_at_video(
            args.video,
            model,
            processor,
            labels,
            args.method,
            None if args.baseline is None else load_baseline(args.baseline, args.tokenizer_name),
            args.templates,
            descriptions,
            start=args.start,
            end=args.end,
            limits=read_limits(args),
        )
        alignments = []
        if descriptions is not None:
            alignments = alignment_of(attention, model, processor, labels, descriptions, args.templates)
        say("\n".join([describe_attention(attention), *filter(None, [describe_alignment(attention, alignments)])]))
        for path in write(attention, alignments, args.video, args.output_dir, args.output_file):
            say(path)
    except (ValueError, ImportError) as error:
        sys.exit(f"ezclip attention: {error}")
    except OSError as error:
        sys.exit(f"ezclip attention: {error.filename or 'The output'} cannot be written ({error.strerror}).")
