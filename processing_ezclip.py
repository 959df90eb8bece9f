"""Videos and labels as tensors: frames sampled, cropped and normalised as published, prompts written and tokenized."""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from functools import partial

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature, CLIPImageProcessorPil, ProcessorMixin
from transformers.processing_utils import TextKwargs
from transformers.utils import logging


try:
    from .configuration_ezclip import check_numbers, check_sizes, truncated_repr
    from .video_ezclip import FrameSampler, is_single_video, read_frames, tear_frame_indices, uniform_frame_indices
except ImportError:
    if __package__:  # in a remote-code folder, a missing dependency must keep its own message
        raise
    from configuration_ezclip import check_numbers, check_sizes, truncated_repr
    from video_ezclip import FrameSampler, is_single_video, read_frames, tear_frame_indices, uniform_frame_indices


logger = logging.get_logger(__name__)

SAMPLINGS = ("uniform", "tear")
# The 16 templates of ActionCLIP, which EZ-CLIP uses too.
TEMPLATES = (
    "a photo of action {}",
    "a picture of action {}",
    "Human action of {}",
    "{}, an action",
    "{} this is an action",
    "{}, a video of action",
    "Playing action of {}",
    "{}",
    "Playing a kind of action, {}",
    "Doing a kind of action, {}",
    "Look, the human is {}",
    "Can you recognize the action of {}?",
    "Video classification of {}",
    "A video of {}",
    "The man is {}",
    "The woman is {}",
)
# Those of TEAR, which takes videos for images in three of them
TEAR_TEMPLATES = tuple(
    {
        "{}, a video of action": "{}, a photo of action",
        "Video classification of {}": "Image classification of {}",
        "A video of {}": "An image of {}",
    }.get(template, template)
    for template in TEMPLATES
)


def label_to_words(label: str) -> str:
    """
    A class name as one would say it: "ApplyEyeMakeup" is "Apply Eye Makeup", "climb_stairs" is "climb stairs".

    Runs of capitals stay together ("YoYo" is "Yo Yo", "TaiChi" is "Tai Chi", "playing NBA2K" stays as it is).
    """
    words = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", label.replace("_", " "))
    return " ".join(words.split())


def label_key(label: str) -> str:
    """What is left of a class name when case, blanks, underscores and punctuation are not looked at."""
    return re.sub(r"[\W_]+", "", label.lower())


def distinct_texts(prompts: Iterable[Iterable[Iterable[str]]]) -> list[str]:
    """Each different text of [`~EZClipProcessor.get_prompts`] once, class by class."""
    return list(dict.fromkeys(prompt for texts in prompts for row in texts for prompt in row))


class EZClipProcessor(ProcessorMixin):
    r"""
    Reads videos and writes prompts for [`EZClipModel`].

    Args:
        image_processor ([`CLIPImageProcessor`], *optional*):
            Holds the sizes, mean and standard deviation: `size["shortest_edge"]`, `crop_size`, `image_mean`,
            `image_std`. Defaults to the published test pixels: short side 256, centre crop 224, CLIP's normalisation.
        tokenizer ([`CLIPTokenizer`], *optional*):
            CLIP's tokenizer. Videos can be read without one.
        num_frames (`int`, *optional*, defaults to 8):
            Frames sampled from a video.
        split_camel_case (`bool`, *optional*, defaults to `True`):
            Whether CamelCase class names are split into words in prompts. The published code leaves them whole.
        sampling (`str`, *optional*, defaults to `"uniform"`):
            Test sampling: `"uniform"`, the middle of each of `num_frames` equal segments, as EZ-CLIP and ActionCLIP
            have it, or `"tear"`, TEAR's rule.

    Example:

    ```python
    >>> from ezclip import EZClipProcessor

    >>> processor = EZClipProcessor()
    >>> processor(videos="v_ApplyEyeMakeup_g01_c01.avi", return_tensors="pt").pixel_values.shape
    torch.Size([1, 8, 3, 224, 224])
    ```
    """

    def __init__(self, image_processor=None, tokenizer=None, num_frames=8, split_camel_case=True, sampling="uniform"):
        if image_processor is None:
            image_processor = default_image_processor()
        if tokenizer is None:
            self.image_processor, self.tokenizer, self.chat_template = image_processor, None, None
        else:
            super().__init__(image_processor, tokenizer)
        check_sizes({"num_frames": num_frames, **dict(zip(("height", "width"), self.crop_size))})
        _check_colours(image_processor)
        if sampling not in SAMPLINGS:
            raise ValueError(f"`sampling` must be one of {SAMPLINGS}, got {sampling!r}.")
        self.num_frames = num_frames
        self.split_camel_case = split_camel_case
        self.sampling = sampling

    @property
    def model_input_names(self) -> list[str]:
        return ["pixel_values", "input_ids", "attention_mask"]

    def __call__(
        self,
        videos=None,
        text: str | list[str] | None = None,
        num_frames: int | None = None,
        sample: FrameSampler | None = None,
        num_clips: int = 1,
        num_crops: int = 1,
        start: float | None = None,
        end: float | None = None,
        fps: float | None = None,
        backend: str = "auto",
        allow_partial: bool = False,
        do_normalize: bool = True,
        return_metadata: bool = False,
        return_tensors: str | None = None,
        **kwargs,
    ) -> BatchFeature:
        r"""
        Args:
            videos (*optional*):
                One video or a list of B: paths, URLs, `bytes`, file objects, arrays or tensors of frames, lists of
                images, folders of frame images, or rows `{"path", "bytes"}` of a `datasets` Video column.
            text (`str` or `list[str]`, *optional*):
                N texts, tokenized as they are; [`~EZClipProcessor.get_prompts`] writes them for labels.
            num_frames (`int`, *optional*):
                Frames to sample from each video, if not the processor's `num_frames`.
            sample (`Callable[[int], Sequence[int]]`, *optional*):
                From the number of frames of a video to the 0-based indices to take, in place of the published test
                sampling of `num_frames`. The same number gives the same indices.
            num_clips (`int`, *optional*, defaults to 1):
                Clips of `num_frames` for multi-view evaluation.
            num_crops (`int`, *optional*, defaults to 1):
                1 for the centre, or 3: beginning, centre and end of the longer side.
            start (`float`, *optional*), end (`float`, *optional*):
                Seconds: only frames on show between `start` and `end` are sampled.
            fps (`float`, *optional*):
                Frames per second to take, all of them, in place of `num_frames`.
            backend (`str`, *optional*, defaults to `"auto"`):
                What decodes files: `"pyav"`, `"decord"`, `"torchcodec"`, or `"auto"` for the fastest that is exact.
            allow_partial (`bool`, *optional*, defaults to `False`):
                Whether to go on with what can be decoded of a damaged or incomplete file.
            do_normalize (`bool`, *optional*, defaults to `True`):
                Whether to give float32 pixels as the model takes them. Without it they are the bytes `(…, T, H, W, 3)`
                that [`~EZClipProcessor.normalize`] makes them of, a quarter of the size: to be moved, and normalised
                where the model runs.
            return_metadata (`bool`, *optional*, defaults to `False`):
                Whether to return `video_metadata`, a list of B [`VideoFramesMetadata`] with indices and timestamps.
            return_tensors (`str`, *optional*):
                `"pt"` or `"np"`.
            kwargs:
                For the tokenizer, by themselves or in a dictionary `text_kwargs`. By default texts are padded to the
                longest and cut to what the tower reads, the last token end-of-text, and those that were cut are
                counted in a warning; `truncation=True` cuts them without one.

        Returns:
            [`BatchFeature`]: `pixel_values` `(B, T, 3, H, W)` if `videos` is given, `(B, V, T, 3, H, W)` with V views
            if there are several clips or crops (clip by clip); `input_ids` and `attention_mask`
            `(N, sequence_length)` if `text` is given.

        Raises:
            [`VideoReadError`]: if a video cannot be read. `ValueError`: if there is nothing to do, no tokenizer, or
            arguments that contradict each other. `TypeError`: if there is no such argument.
        """
        if videos is None and text is None:
            raise ValueError("`EZClipProcessor` needs `videos`, `text`, or both.")
        if text is None and kwargs:
            raise TypeError(f"{sorted(kwargs)} are no arguments of `EZClipProcessor` for videos.")
        data, metadata = {}, []
        if videos is not None:
            videos = [videos] if is_single_video(videos) else videos
            if len(videos) == 0:
                raise ValueError("`videos` is an empty list.")
            clips = []
            if sample is None and fps is None:
                sample = self.get_sampler(num_frames, num_clips)
            elif num_frames is not None or num_clips != 1:
                raise ValueError("`sample` and `fps` take the place of `num_frames` and `num_clips`: leave them out.")
            for video in videos:
                frames, video_metadata = read_frames(
                    video, sample, start=start, end=end, fps=fps, backend=backend, allow_partial=allow_partial
                )
                clips.append(self.crop_frames(frames, num_clips, num_crops))
                metadata.append(video_metadata)
            if len({len(clip) for clip in clips}) > 1:
                raise ValueError(
                    f"{[len(clip) for clip in clips]} frames are taken of the videos, which do not make one batch. "
                    "Give them one by one, or take as many of each."
                )
            frames = np.stack(clips)
            data["pixel_values"] = self.normalize(frames).numpy() if do_normalize else frames
        if text is not None:
            data.update(self._tokenize(text, **kwargs))
        features = BatchFeature(data, tensor_type=return_tensors)
        if return_metadata:
            features["video_metadata"] = metadata
        return features

    def get_sampler(self, num_frames: int | None = None, num_clips: int = 1) -> FrameSampler:
        """
        The test sampling of `num_frames`, by default the processor's, in `num_clips` clips.

        Raises:
            `ValueError`: if several clips are asked of TEAR's sampling, which defines one.
        """
        num_frames = self.num_frames if num_frames is None else num_frames
        if self.sampling == "uniform":
            return partial(uniform_frame_indices, num_frames=num_frames, num_clips=num_clips)
        if num_clips != 1:
            raise ValueError(
                f"TEAR's sampling takes one clip of a video, not {num_clips}. Leave `num_clips` out, or take the "
                "sampling of another preset (a processor's `sampling`)."
            )
        return partial(tear_frame_indices, num_frames=num_frames)

    def frames_to_pixels(self, frames: np.ndarray, num_clips: int = 1, num_crops: int = 1) -> torch.FloatTensor:
        """
        The published test pixels: [`~EZClipProcessor.crop_frames`], normalised.

        Returns:
            `torch.FloatTensor` of shape `(T, 3, crop_height, crop_width)`, or `(num_clips * num_crops, T, 3,
            crop_height, crop_width)` if there are several views, clip by clip.
        """
        return self.normalize(self.crop_frames(frames, num_clips, num_crops))

    def crop_frames(self, frames: np.ndarray, num_clips: int = 1, num_crops: int = 1) -> np.ndarray:
        """
        The published test frames: bicubic to the short side, centre crop.

        The crop's corner is rounded half to even, as torchvision's, where CLIP's image processor rounds down.

        Args:
            frames (`np.ndarray` of shape `(num_clips * T, H, W, 3)`):
                RGB frames, uint8.
            num_clips (`int`, *optional*, defaults to 1):
                Clips that the frames are.
            num_crops (`int`, *optional*, defaults to 1):
                1 for the centre, or 3: beginning, centre and end of the longer side.

        Returns:
            `np.ndarray` of shape `(T, crop_height, crop_width, 3)`, or `(num_clips * num_crops, T, crop_height,
            crop_width, 3)` if there are several views, clip by clip: RGB frames, uint8.
        """
        if num_crops not in (1, 3):
            raise ValueError(f"`num_crops` must be 1 or 3, got {num_crops}.")
        if not (self.image_processor.do_resize and self.image_processor.do_center_crop):
            raise ValueError(
                "The image processor says not to resize, or not to crop (`do_resize`, `do_center_crop`), and frames "
                "are always brought to its sizes. Set both to True, and the sizes to those of your frames."
            )
        short_side = self.image_processor.size.get("shortest_edge")
        crop_height, crop_width = self.crop_size
        if short_side is None or short_side < max(crop_height, crop_width):
            raise ValueError(
                f"The crop ({crop_height} x {crop_width}) must fit into the short side ({short_side}); change "
                '`crop_size` or `size["shortest_edge"]` of the image processor.'
            )
        height, width = frames.shape[1:3]
        if min(height, width) != short_side:
            height, width = (side * short_side // min(height, width) for side in (height, width))
            images, resample = map(Image.fromarray, frames), self.image_processor.resample
            frames = np.stack([np.asarray(image.resize((width, height), resample)) for image in images])
        tops, lefts = [round((height - crop_height) / 2)], [round((width - crop_width) / 2)]
        if num_crops == 3 and width >= height:
            lefts = [0, *lefts, width - crop_width]
        elif num_crops == 3:
            tops = [0, *tops, height - crop_height]
        crops = [frames[:, top : top + crop_height, left : left + crop_width] for top in tops for left in lefts]
        if num_clips * num_crops == 1:
            return crops[0]
        # [num_crops, num_clips, T, H, W, 3] -> [views, T, H, W, 3]
        views = np.stack(crops).reshape(num_crops, num_clips, -1, crop_height, crop_width, 3).swapaxes(0, 1)
        return views.reshape(num_clips * num_crops, -1, crop_height, crop_width, 3)

    def normalize(self, frames: np.ndarray | torch.ByteTensor) -> torch.FloatTensor:
        """
        Frames as pixels, with the image processor's scale, mean and standard deviation.

        Args:
            frames (`np.ndarray` or `torch.ByteTensor` of shape `(…, H, W, 3)`):
                RGB frames, uint8.

        Returns:
            `torch.FloatTensor` of shape `(…, 3, H, W)`: float32, on the device of the frames.
        """
        options = self.image_processor
        scale = 1.0 / options.rescale_factor if options.do_rescale else 1.0
        mean, std = (options.image_mean, options.image_std) if options.do_normalize else ((0.0,) * 3, (1.0,) * 3)
        pixels = torch.as_tensor(frames).movedim(-1, -3).contiguous().float()
        mean, std = (torch.tensor(values).view(3, 1, 1).mul(scale).to(pixels.device) for values in (mean, std))
        return pixels.sub_(mean).div_(std)

    @property
    def crop_size(self) -> tuple[int, int]:
        """Height and width of the frames that the model takes."""
        return self.image_processor.crop_size["height"], self.image_processor.crop_size["width"]

    def get_prompts(
        self,
        candidate_labels: list[str],
        templates: str | list[str] | None = None,
        descriptions: dict[str, str | list[str]] | None = None,
        include_label: bool = False,
        input_conditioning: bool = False,
    ) -> list[list[list[str]]]:
        r"""
        The texts that stand for classes: of each class its S texts, each in P templates.

        Args:
            candidate_labels (`list[str]`):
                C class names. Underscores and, unless `split_camel_case` is off, CamelCase are read as words.
            templates (`str` or `list[str]`, *optional*):
                P sentences with `{}` where a text goes. Defaults to the 16 published ones, with `descriptions` to
                `"{}"`: a description is used alone.
            descriptions (`dict[str, str | list[str]]`, *optional*):
                One or several texts for each class, in place of its name. Names match whatever their case, blanks,
                underscores and punctuation; those of other classes are left out.
            include_label (`bool`, *optional*, defaults to `False`):
                Whether the name of a class is the first of its texts, before its descriptions (TEAR).
            input_conditioning (`bool`, *optional*, defaults to `False`):
                Whether the name of a class and a blank begin each of its descriptions (TEAR).

        Returns:
            `list[list[list[str]]]`: C lists of S lists of P texts. S is 1 without descriptions, and may differ from
            class to class with them.

        Raises:
            `ValueError`: if a template has no `{}`, a class has no description or an empty one, or two descriptions
            are of one class.
        """
        templates = _check_templates(templates, TEMPLATES if descriptions is None else ("{}",))
        if self.split_camel_case:
            words = [label_to_words(label) for label in candidate_labels]
        else:
            words = [label.replace("_", " ") for label in candidate_labels]
        texts = [[word] for word in words]
        if descriptions is not None:
            described = _match_descriptions(candidate_labels, descriptions)
            if input_conditioning:
                described = [[f"{word} {text}" for text in own] for word, own in zip(words, described)]
            texts = [name + own for name, own in zip(texts, described)] if include_label else described
        return [[[template.replace("{}", text) for template in templates] for text in own] for own in texts]

    def save_pretrained(self, save_directory, push_to_hub=False, **kwargs):
        if self.tokenizer is None:
            raise ValueError("A processor without a tokenizer cannot be saved. Give it one (`processor.tokenizer`).")
        return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    def _tokenize(self, text: str | list[str], text_kwargs: dict | None = None, **kwargs) -> dict:
        if self.tokenizer is None:
            raise ValueError("This processor has no tokenizer. Make one with `EZClipProcessor(tokenizer=…)`.")
        text_kwargs = text_kwargs or {}
        if unknown := sorted({*kwargs, *text_kwargs} - {*TextKwargs.__annotations__}):
            # The tokenizer would go on without them.
            raise TypeError(f"{unknown} are no arguments of `EZClipProcessor`, nor of its tokenizer.")
        if twice := sorted({*kwargs} & {*text_kwargs}):
            raise ValueError(f"{twice} are given twice, in `text_kwargs` and beside it. Leave one of them out.")
        kwargs = {**kwargs, **text_kwargs}
        texts = [text] if isinstance(text, str) else list(text)
        if not texts:
            raise ValueError("`text` is an empty list.")
        encoded = self.tokenizer(texts, **{"padding": True, "truncation": True, **kwargs})
        cut = [bool(encoding.overflowing) for encoding in encoded.encodings or ()]
        if any(cut) and "truncation" not in kwargs:
            first = f"{texts[cut.index(True)][:60]}…"
            logger.warning_once(
                f"{sum(cut)} of {len(texts)} texts are longer than {self.tokenizer.model_max_length} tokens and were "
                f"cut. The first: {first!r}."
            )
        return dict(encoded)


def _check_templates(templates: str | list[str] | None, default: tuple[str, ...]) -> list[str]:
    templates = [templates] if isinstance(templates, str) else list(default if templates is None else templates)
    if not templates:
        raise ValueError("`templates` is empty. Give at least one sentence with {}.")
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(f"A template has one {{}} where the class name or description goes; got {template!r}.")
    return templates


def _match_descriptions(labels: list[str], descriptions: dict[str, str | list[str]]) -> list[list[str]]:
    """The descriptions of each class."""
    by_key = {}
    for name, texts in descriptions.items():
        texts = [texts] if isinstance(texts, str) else texts
        other, first = by_key.setdefault(label_key(name), (name, texts))
        if first != texts:
            raise ValueError(f"The descriptions of {other!r} and {name!r} are of one class, and differ. Remove one.")
    keys = [label_key(label) for label in labels]
    if missing := [label for label, key in zip(labels, keys) if key not in by_key]:
        others = {key: name for key, (name, _) in by_key.items() if key not in keys}
        listed = []
        for label in missing:
            nearest = [repr(others[key]) for key in get_close_matches(label_key(label), others, cutoff=0.75)]
            listed.append(f"{label!r} (nearest: {', '.join(nearest)})" if nearest else repr(label))
        raise ValueError(
            f"{len(missing)} of {len(labels)} classes have no description: {', '.join(listed)}. Add them, or use "
            "templates."
        )
    found = [by_key[key] for key in keys]
    for name, texts in found:
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise ValueError(f"{name!r} must have a text, or a list of texts, for its description; got {texts!r}.")
    return [list(texts) for _, texts in found]


def _check_colours(image_processor):
    """That an image processor has a mean and a deviation of each of three colours, and a scale."""
    mean, std = image_processor.image_mean, image_processor.image_std
    check_numbers({"rescale_factor": image_processor.rescale_factor})
    for name, values in (("image_mean", mean), ("image_std", std)):
        if not isinstance(values, (list, tuple)) or len(values) != 3:
            raise ValueError(f"`{name}` of the image processor must be three numbers, got {truncated_repr(values)}.")
        for value in values:
            check_numbers({name: value})
    if image_processor.rescale_factor == 0 or 0 in std:
        raise ValueError(
            f"`rescale_factor` and `image_std` of the image processor must not be 0, got "
            f"{image_processor.rescale_factor} and {truncated_repr(list(std))}."
        )


def default_image_processor(image_size: int = 224):
    """The published test pixels for a model of `image_size`: a centre crop from frames resized to 256/224 of it."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": image_size * 256 // 224}, crop_size={"height": image_size, "width": image_size}
    )


EZClipProcessor.register_for_auto_class("AutoProcessor")


__all__ = ["EZClipProcessor"]
