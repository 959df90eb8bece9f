"""Convert videos and labels to tensors: the published sampling, cropping, normalisation and prompts."""

import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import partial

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature, CLIPImageProcessorPil, PretrainedConfig, ProcessorMixin, SiglipImageProcessorPil
from transformers.processing_utils import TextKwargs
from transformers.utils import logging


try:
    from .checkpoint_ezclip import HUB_OPTIONS, check_folder, list_some, naming_damage
    from .configuration_ezclip import BASE_MODELS, check_model_type, check_numbers, check_sizes, truncated_repr
    from .video_ezclip import (
        DEFAULT_LIMITS,
        FrameSampler,
        ReadLimits,
        VideoFramesMetadata,
        VideoReadError,
        is_single_video,
        read_frames,
        tear_frame_indices,
        uniform_frame_indices,
    )
except ImportError:
    if __package__:  # in a remote-code folder, a missing dependency must keep its own message
        raise
    from checkpoint_ezclip import HUB_OPTIONS, check_folder, list_some, naming_damage
    from configuration_ezclip import BASE_MODELS, check_model_type, check_numbers, check_sizes, truncated_repr
    from video_ezclip import (
        DEFAULT_LIMITS,
        FrameSampler,
        ReadLimits,
        VideoFramesMetadata,
        VideoReadError,
        is_single_video,
        read_frames,
        tear_frame_indices,
        uniform_frame_indices,
    )


logger = logging.get_logger(__name__)

MAX_ASPECT_RATIO = 100  # of a frame
SAMPLINGS = ("uniform", "tear")
TEXT_PADDINGS = ("longest", "max_length")
# The 16 templates of ActionCLIP and EZ-CLIP
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
# The templates of TEAR. Three of them say photo or image instead of video.
TEAR_TEMPLATES = tuple(
    text.replace("a video of", "a photo of").replace("Video class", "Image class").replace("A video", "An image")
    for text in TEMPLATES
)

# The texts of a class: one, several, or its steps, `{"steps": [step, …]}`. A step is a text, or several wordings.
Description = str | Sequence[str] | Mapping[str, Sequence[str | Sequence[str]]]


def label_to_words(label: str) -> str:
    """
    Split a class name into words: "ApplyEyeMakeup" gives "Apply Eye Makeup", "climb_stairs" gives "climb stairs".

    Runs of capitals stay together: "YoYo" gives "Yo Yo", and "playing NBA2K" stays unchanged.
    """
    words = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", label.replace("_", " "))
    return " ".join(words.split())


def label_key(label: str) -> str:
    """
    Return what tells a class from another in its name: letters and digits, without case, blanks and punctuation.

    Two names with one key are two spellings of one class. Unicode forms of a letter are the same letter.
    """
    folded = unicodedata.normalize("NFKC", label).casefold()
    return re.sub(r"[\W_]+", "", folded) or folded


def text_padding_of(model_type: str) -> str:
    """Return how a dual encoder of `BASE_MODELS` pads texts: SigLIP reads the last of always equally many tokens."""
    return "max_length" if model_type.startswith("siglip") else "longest"


def fits_vocabulary(tokenizer, text_config: PretrainedConfig) -> bool:
    """Return whether a tokenizer is of the text tower's vocabulary. Only CLIP's towers have no unused rows."""
    is_clip = text_config.model_type in ("clip_text_model", "ezclip_text_model")
    return len(tokenizer) == text_config.vocab_size or (not is_clip and len(tokenizer) < text_config.vocab_size)


def max_text_length(text_config: PretrainedConfig) -> int:
    """Return how many tokens a text tower reads. XLM-RoBERTa (AltCLIP) counts positions from that after padding."""
    first = text_config.pad_token_id + 1 if text_config.model_type == "altclip_text_model" else 0
    return text_config.max_position_embeddings - first


def distinct_texts(prompts: Iterable[Iterable[Iterable[str]]]) -> list[str]:
    """Return each distinct text of [`~EZClipProcessor.get_prompts`] once, class by class."""
    return list(dict.fromkeys(prompt for texts in prompts for row in texts for prompt in row))


def default_image_processor(image_size: int = 224) -> CLIPImageProcessorPil:
    """Return the published test pixels: frames resized to 256/224 of `image_size`, and its centre crop."""
    crop_size = {"height": image_size, "width": image_size}
    return CLIPImageProcessorPil(size={"shortest_edge": image_size * 256 // 224}, crop_size=crop_size)


def as_square_frames(image_processor):
    """
    Return the image processor of SigLIP 2 ("NaFlex") for square frames of as many patches. Return others unchanged.

    All frames of a batch must have one shape, and videos have all aspect ratios: frames are squashed, as by SigLIP.
    """
    max_num_patches = getattr(image_processor, "max_num_patches", None)
    if max_num_patches is None:
        return image_processor
    side = math.isqrt(max_num_patches) * image_processor.patch_size
    names = ("resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
    options = {name: getattr(image_processor, name) for name in names}
    return SiglipImageProcessorPil(size={"height": side, "width": side}, **options)


class EZClipProcessor(ProcessorMixin):
    r"""
    Reads videos and writes prompts for [`EZClipModel`].

    Args:
        image_processor ([`CLIPImageProcessor`], *optional*):
            Provides `size["shortest_edge"]`, `crop_size`, `image_mean` and `image_std`. Defaults to the published
            test pixels: short side 256, centre crop 224, CLIP's normalisation. One of SigLIP 2 ("NaFlex") is replaced,
            see [`as_square_frames`].
        tokenizer ([`CLIPTokenizer`], *optional*):
            The text tower's tokenizer. It is not needed to read videos.
        num_frames (`int`, *optional*, defaults to 8):
            Number of frames sampled from a video.
        split_camel_case (`bool`, *optional*, defaults to `True`):
            Whether to split CamelCase class names into words in prompts. The published code does not split them.
        sampling (`str`, *optional*, defaults to `"uniform"`):
            Test sampling: `"uniform"`, the middle of `num_frames` equal segments (EZ-CLIP, ActionCLIP), or `"tear"`.
        use_published_crop (`bool`, *optional*, defaults to `True`):
            Whether frames are resized and cropped as published. Otherwise the image processor does all of it, as for
            a plain dual encoder, and may squash frames instead of cropping them.
        text_padding (`str`, *optional*, defaults to `"longest"`):
            Length of the tokenized texts: `"longest"`, that of the longest text, or `"max_length"`, the tokenizer's
            `model_max_length`, as SigLIP was trained.

    Example:

    ```python
    >>> processor = EZClipProcessor()
    >>> processor(videos="v_ApplyEyeMakeup_g01_c01.avi", return_tensors="pt").pixel_values.shape
    torch.Size([1, 8, 3, 224, 224])
    ```
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        num_frames=8,
        split_camel_case=True,
        sampling="uniform",
        use_published_crop=True,
        text_padding="longest",
    ):
        image_processor = default_image_processor() if image_processor is None else as_square_frames(image_processor)
        if tokenizer is None:
            self.image_processor, self.tokenizer, self.chat_template = image_processor, None, None
        else:
            super().__init__(image_processor, tokenizer)
        self.use_published_crop = use_published_crop
        check_sizes({"num_frames": num_frames, **dict(zip(("height", "width"), self.crop_size))})
        _check_channels(image_processor)
        if sampling not in SAMPLINGS:
            raise ValueError(f"`sampling` must be one of {SAMPLINGS}, got {sampling!r}.")
        if text_padding not in TEXT_PADDINGS:
            raise ValueError(f"`text_padding` must be one of {TEXT_PADDINGS}, got {text_padding!r}.")
        self.num_frames, self.split_camel_case, self.sampling = num_frames, split_camel_case, sampling
        self.text_padding = text_padding

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs) -> "EZClipProcessor":
        """
        Load the processor of an EZ-CLIP model, or of a plain dual encoder with its own image processor.

        Raises:
            `ValueError`: if the model is of another type, or a file has unexpected contents. `OSError`: if files are
            missing.
        """
        with naming_damage(pretrained_model_name_or_path):
            check_folder(pretrained_model_name_or_path)
            hub_options = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
            try:
                config, _ = PretrainedConfig.get_config_dict(pretrained_model_name_or_path, **hub_options)
            except OSError:  # a processor without a model
                config = {}
            check_model_type(config, pretrained_model_name_or_path)
            processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
            saved, _ = cls.get_processor_dict(pretrained_model_name_or_path, **hub_options)
            if config.get("model_type") in BASE_MODELS and saved.get("processor_class") != cls.__name__:
                processor.use_published_crop = kwargs.get("use_published_crop", False)
                processor.text_padding = kwargs.get("text_padding", text_padding_of(config["model_type"]))
                logger.warning_once(f"{pretrained_model_name_or_path}: {processor.describe_pixels()}")
            return processor

    def describe_pixels(self) -> str:
        """Return a sentence on how frames become pixels."""
        options = self.image_processor
        size = {name: value for name, value in dict(options.size).items() if value is not None}
        crop = "{}x{}".format(*self.crop_size) if options.do_center_crop else "none"
        who = "the published crop" if self.use_published_crop else "the model's own image processor"
        mean = list(options.image_mean) if options.do_normalize else "none"
        return f"frames are prepared by {who}: size {size}, crop {crop}, mean {mean}."

    @property
    def model_input_names(self) -> list[str]:
        """Return the names of the model's inputs."""
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
        square_pixels: bool = False,
        limits: ReadLimits = DEFAULT_LIMITS,
        do_normalize: bool = True,
        return_metadata: bool = False,
        return_tensors: str | None = None,
        **kwargs,
    ) -> BatchFeature:
        r"""
        Convert videos and texts to the model's inputs.

        Args:
            videos (*optional*):
                One video or a list of B: paths, URLs, `bytes`, file objects, arrays or tensors of frames, lists of
                images, folders of frame images, or rows `{"path", "bytes"}` of a `datasets` Video column.
            text (`str` or `list[str]`, *optional*):
                N texts, tokenized unchanged. [`~EZClipProcessor.get_prompts`] writes prompts for labels.
            num_frames (`int`, *optional*):
                Number of frames to sample from each video. Defaults to the processor's `num_frames`.
            sample (`Callable[[int], Sequence[int]]`, *optional*):
                Maps the number of frames of a video to the 0-based indices to take, always the same for the same
                number. It replaces the published test sampling.
            num_clips (`int`, *optional*, defaults to 1):
                Clips of `num_frames` for multi-view evaluation.
            num_crops (`int`, *optional*, defaults to 1):
                1 for the centre, or 3: beginning, centre and end of the longer side.
            start (`float`, *optional*), end (`float`, *optional*):
                Seconds. Only frames on display between `start` and `end` are sampled.
            fps (`float`, *optional*):
                Rate at which to sample the whole video, instead of `num_frames`.
            backend (`str`, *optional*, defaults to `"auto"`), allow_partial (`bool`, *optional*, defaults to `False`):
                The decoder of video files, and whether to accept a part of a damaged one, see [`read_frames`].
            square_pixels (`bool`, *optional*, defaults to `False`):
                Whether to scale the width of a file by its pixel aspect ratio, as a player does.
            limits ([`ReadLimits`], *optional*):
                What reading a video may take, and where it may reach.
            do_normalize (`bool`, *optional*, defaults to `True`):
                Whether to return float32 pixels. Otherwise `pixel_values` are uint8 `(…, T, H, W, 3)`, a quarter of
                the size. Move them to the model's device and apply [`~EZClipProcessor.normalize`] there.
            return_metadata (`bool`, *optional*, defaults to `False`):
                Whether to return `video_metadata`, a list of B [`VideoFramesMetadata`] with indices and timestamps.
            return_tensors (`str`, *optional*):
                `"pt"` or `"np"`.
            kwargs:
                Options of the tokenizer, directly or in a dictionary `text_kwargs`. By default texts are padded to the
                longest and cut to the length of the tower, keeping the end-of-text token, with a warning that counts
                the cut texts; `truncation=True` gives no warning.

        Returns:
            [`BatchFeature`]: `pixel_values` `(B, T, 3, H, W)` if `videos` is given, or `(B, V, T, 3, H, W)` with V
            views, clip by clip, for several clips or crops; `input_ids` and `attention_mask` `(N, sequence_length)` if
            `text` is given.

        Raises:
            [`VideoReadError`]: if a video cannot be read. `ValueError`: if inputs or the tokenizer are missing, or
            arguments contradict each other. `TypeError`: if an argument is unknown.
        """
        if videos is None and text is None:
            raise ValueError("`EZClipProcessor` needs `videos`, `text`, or both.")
        if text is None and kwargs:
            raise TypeError(f"{sorted(kwargs)} are no arguments of `EZClipProcessor` for videos. Remove them.")
        data, metadata = {}, []
        if videos is not None:
            videos = [videos] if is_single_video(videos) else videos
            if len(videos) == 0:
                raise ValueError("`videos` must not be an empty list.")
            options = {"start": start, "end": end, "fps": fps, "backend": backend, "allow_partial": allow_partial}
            options |= {"square_pixels": square_pixels, "limits": limits}
            clips = []
            if sample is None and fps is None:
                sample = self.get_sampler(num_frames, num_clips)
            elif num_frames is not None or num_clips != 1:
                raise ValueError("`sample` and `fps` replace `num_frames` and `num_clips`: pass only one pair.")
            for video in videos:
                frames, video_metadata = self.read_clip(video, sample, num_clips, num_crops, **options)
                clips.append(frames)
                metadata.append(video_metadata)
            if len(set(counts := [len(clip) for clip in clips])) > 1:
                raise ValueError(f"Videos of a batch must have equally many frames, got {counts}. Pass one by one.")
            frames = np.stack(clips)
            data["pixel_values"] = self.normalize(frames).numpy() if do_normalize else frames
        if text is not None:
            data.update(self._tokenize(text, **kwargs))
        features = BatchFeature(data, tensor_type=return_tensors)
        if return_metadata:
            features["video_metadata"] = metadata
        return features

    def get_sampler(self, num_frames: int | None = None, num_clips: int = 1) -> FrameSampler:
        """Return the test sampling of `num_frames`, by default the processor's. TEAR's sampling has only one clip."""
        num_frames = self.num_frames if num_frames is None else num_frames
        if self.sampling == "uniform":
            return partial(uniform_frame_indices, num_frames=num_frames, num_clips=num_clips)
        if num_clips != 1:
            raise ValueError(f"`num_clips` must be 1 with `sampling='tear'`, got {num_clips}. Use 'uniform'.")
        return partial(tear_frame_indices, num_frames=num_frames)

    def check_views(self, num_clips: int = 1, num_crops: int = 1):
        """Raise `ValueError` if the processor cannot make these views of a video."""
        self.get_sampler(num_clips=num_clips)
        if num_crops not in (1, 3):
            raise ValueError(f"`num_crops` must be 1 or 3, got {num_crops}.")
        if num_crops != 1 and not self.use_published_crop:
            raise ValueError(
                f"`num_crops` must be 1 with the model's own image processor, got {num_crops}. Published systems on "
                "CLIP have 3 (--preset vificlip, for one)."
            )

    def read_clip(
        self,
        video,
        sample: FrameSampler | None = None,
        num_clips: int = 1,
        num_crops: int = 1,
        read: Callable = read_frames,
        **options,
    ) -> tuple[np.ndarray, VideoFramesMetadata]:
        """
        Read a video and crop its frames, each as soon as it is decoded.

        Args:
            video:
                A video in any form that [`read_frames`] takes.
            sample (`Callable[[int], Sequence[int]]`, *optional*), options:
                The arguments of [`read_frames`] but `transform`.
            num_clips (`int`, *optional*, defaults to 1), num_crops (`int`, *optional*, defaults to 1):
                Views, as in [`~EZClipProcessor.crop_frames`].
            read (`Callable`, *optional*):
                [`read_frames`], or an `IsolatedReader`.

        Returns:
            `tuple[np.ndarray, VideoFramesMetadata]`: the frames as [`~EZClipProcessor.crop_frames`] returns them, and
            the metadata of the video.

        Raises:
            [`VideoReadError`]: if the video cannot be read. `ValueError`: if these views cannot be made.
        """
        self.check_views(num_clips, num_crops)
        if self.use_published_crop:
            frames, metadata = read(video, sample, transform=self.resize_frame, **options)
            return self.crop_frames(frames, num_clips, num_crops), metadata
        frames, metadata = read(video, sample, transform=self._process_frame, **options)
        return frames if num_clips == 1 else frames.reshape(num_clips, -1, *frames.shape[1:]), metadata

    def frames_to_pixels(self, frames: np.ndarray, num_clips: int = 1, num_crops: int = 1) -> torch.FloatTensor:
        """Return [`~EZClipProcessor.crop_frames`], normalised: `(T, 3, H, W)`, or `(V, T, 3, H, W)` with V views."""
        return self.normalize(self.crop_frames(frames, num_clips, num_crops))

    def crop_frames(self, frames: np.ndarray, num_clips: int = 1, num_crops: int = 1) -> np.ndarray:
        """
        Resize RGB frames `(num_clips * T, H, W, 3)`, uint8, to the short side (bicubic) and crop them, as published.

        The corner of the centre crop is rounded half to even, as in torchvision. CLIP's image processor rounds down.

        Returns:
            `np.ndarray` of shape `(T, crop_height, crop_width, 3)`, or `(num_clips * num_crops, T, crop_height,
            crop_width, 3)` for several views, clip by clip: RGB frames, uint8.
        """
        self.check_views(num_clips, num_crops)
        if not self.use_published_crop:
            frames = np.stack([self._process_frame(frame) for frame in frames])
            return frames if num_clips == 1 else frames.reshape(num_clips, -1, *frames.shape[1:])
        frames = np.stack([self.resize_frame(frame) for frame in frames])
        height, width = frames.shape[1:3]
        crop_height, crop_width = self.crop_size
        tops, lefts = [round((height - crop_height) / 2)], [round((width - crop_width) / 2)]
        if num_crops == 3 and width >= height:
            lefts = [0, *lefts, width - crop_width]
        elif num_crops == 3:
            tops = [0, *tops, height - crop_height]
        crops = [frames[:, top : top + crop_height, left : left + crop_width] for top in tops for left in lefts]
        if num_clips * num_crops == 1:
            return crops[0]
        # (num_crops, num_clips, T, H, W, 3) -> (num_clips * num_crops, T, H, W, 3)
        views = np.stack(crops).reshape(num_crops, num_clips, -1, crop_height, crop_width, 3).swapaxes(0, 1)
        return views.reshape(num_clips * num_crops, -1, crop_height, crop_width, 3)

    def resize_frame(self, frame: np.ndarray) -> np.ndarray:
        """
        Resize an RGB frame `(H, W, 3)`, uint8, to the published short side (bicubic).

        A frame that has it stays as it is, and so do all frames that the image processor resizes itself.
        """
        if not self.use_published_crop:
            return frame
        if not (self.image_processor.do_resize and self.image_processor.do_center_crop):
            hint = "To keep frames unchanged, set `size` and `crop_size` to theirs."
            raise ValueError(f"`do_resize` and `do_center_crop` of the image processor must be True. {hint}")
        short_side = self.image_processor.size.get("shortest_edge")
        crop_height, crop_width = self.crop_size
        if short_side is None or short_side < max(crop_height, crop_width):
            raise ValueError(
                f"`crop_size` of the image processor must fit into its `size['shortest_edge']`, {short_side}, got "
                f"{crop_height} x {crop_width}. Change one of them."
            )
        height, width = frame.shape[:2]
        if min(height, width) == short_side:
            return frame
        _check_shape(height, width)
        height, width = (side * short_side // min(height, width) for side in (height, width))
        return np.asarray(Image.fromarray(frame).resize((width, height), self.image_processor.resample))

    def _process_frame(self, frame: np.ndarray) -> np.ndarray:
        _check_shape(*frame.shape[:2])
        image = Image.fromarray(frame)
        pixels = self.image_processor(image, do_rescale=False, do_normalize=False, return_tensors="np")
        return np.moveaxis(pixels["pixel_values"][0], 0, -1).astype(np.uint8)

    def normalize(self, frames: np.ndarray | torch.ByteTensor) -> torch.FloatTensor:
        """
        Scale and normalise RGB frames `(…, H, W, 3)`, uint8, with the image processor's mean and standard deviation.

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
        """Return the height and width of the model's frames."""
        options = self.image_processor
        size = options.crop_size if self.use_published_crop or options.do_center_crop else options.size
        if size["height"] is None or size["width"] is None:
            raise ValueError(f"`size` of an image processor without a crop must be a height and a width, got {size}.")
        return size["height"], size["width"]

    def get_prompts(
        self,
        candidate_labels: list[str],
        templates: str | list[str] | None = None,
        descriptions: Mapping[str, Description] | None = None,
        include_label: bool = False,
        input_conditioning: bool = False,
    ) -> list[list[list[str]]]:
        r"""
        Return the prompts of classes: the S texts of each class, each in P templates.

        Args:
            candidate_labels (`list[str]`):
                C class names. Underscores and, unless `split_camel_case` is off, CamelCase are split into words.
            templates (`str` or `list[str]`, *optional*):
                P sentences with `{}` for a text. Defaults to the 16 published ones, or to `"{}"` with `descriptions`.
            descriptions (`Mapping[str, Description]`, *optional*):
                One or several texts for each class, used instead of its name; or its steps, see
                [`~EZClipProcessor.get_steps`]. Names match regardless of case, blanks, underscores and punctuation.
                Descriptions of other classes are ignored.
            include_label (`bool`, *optional*, defaults to `False`):
                Whether the class name is the first of its texts, before its descriptions (TEAR).
            input_conditioning (`bool`, *optional*, defaults to `False`):
                Whether each description begins with the class name and a blank (TEAR).

        Returns:
            `list[list[list[str]]]`: C lists of S lists of P texts. S is 1 without descriptions, and may differ between
            classes with them.

        Raises:
            `ValueError`: if a template has no `{}`, a class has no description or an empty one, or two different
            descriptions are for the same class.
        """
        templates = _check_templates(templates, TEMPLATES if descriptions is None else ("{}",))
        split = label_to_words if self.split_camel_case else (lambda label: label.replace("_", " "))
        words = [split(label) for label in candidate_labels]
        texts = [[word] for word in words]
        if descriptions is not None:
            found = _match_descriptions(candidate_labels, descriptions)
            described = [[text for step in as_steps(own) for text in step] for own in found]
            if input_conditioning:
                described = [[f"{word} {text}" for text in own] for word, own in zip(words, described)]
            texts = [name + own for name, own in zip(texts, described)] if include_label else described
        return [[[template.replace("{}", text) for template in templates] for text in own] for own in texts]

    def get_steps(
        self,
        candidate_labels: list[str],
        descriptions: Mapping[str, Description] | None,
        include_label: bool = False,
        in_order: bool = False,
    ) -> list[list[int]] | None:
        """
        Return how many wordings each step of each class has, or `None` if the descriptions are not steps.

        A class is described by steps as `{"steps": [step, …]}`, in the order in which a video shows them. A step is a
        text, or a list of texts, its wordings. The texts that [`~EZClipProcessor.get_prompts`] returns for the class
        are those of its first step, then those of the second, and so on. If one class has steps, another may have a
        single text, which is one step.

        Args:
            candidate_labels (`list[str]`), descriptions (*optional*), include_label (`bool`, *optional*):
                See [`~EZClipProcessor.get_prompts`].
            in_order (`bool`, *optional*, defaults to `False`):
                Whether a list of texts, such as TEAR's decomposition, also means steps, one a text.

        Raises:
            `ValueError`: if only some of the classes have steps, their names are among the texts, or `in_order` is
            given without descriptions.
        """
        if descriptions is None:
            if in_order:
                raise ValueError(
                    "`step_score` and `step_contrast` are for `descriptions`. Give some, or leave them out."
                )
            return None
        found = _match_descriptions(candidate_labels, descriptions)
        marked = [label for label, own in zip(candidate_labels, found) if isinstance(own, Mapping)]
        if not marked and not in_order:
            return None
        if include_label:
            raise ValueError(
                "`include_label` must be False with steps: the name of a class is no step of it. Leave it out, or use "
                "`input_conditioning`."
            )
        for label, own in zip(candidate_labels, found):
            if not in_order and isinstance(own, list) and len(own) > 1:
                raise ValueError(
                    f"{marked[0]!r} has steps, and {label!r} has {len(own)} texts in no order. Mark them all, as "
                    '`{"steps": [...]}`, or none.'
                )
        return [[len(step) for step in as_steps(own)] for own in found]

    def check_labels(self, candidate_labels: list[str]):
        """Warn of labels of which the tokenizer knows no word; raise `ValueError` if two are the same tokens."""
        words = [text for ((text,),) in self.get_prompts(candidate_labels, "{}")]
        tokens = self.tokenizer(words, add_special_tokens=False)["input_ids"]
        unknown = [label for label, own in zip(candidate_labels, tokens) if {*own} <= {self.tokenizer.unk_token_id}]
        if unknown:
            logger.warning_once(
                f"The tokenizer knows no word of these labels, so their scores mean nothing: {list_some(unknown)}."
            )
        first = {}
        for label, own in zip(candidate_labels, tokens):
            if (other := first.setdefault(tuple(own), label)) != label:
                raise ValueError(
                    f"{other!r} and {label!r} are the same tokens, so the model cannot tell them apart. Leave one of "
                    "them out, or use other words."
                )

    def save_pretrained(self, save_directory, push_to_hub=False, **kwargs):
        """Save the processor; raise `ValueError` if it has no tokenizer."""
        if self.tokenizer is None:
            raise ValueError("A processor without a tokenizer cannot be saved. Set `processor.tokenizer` first.")
        # `pipeline` passes its `dtype` on to the tokenizer, which would save it and cannot.
        self.tokenizer.init_kwargs.pop("dtype", None)
        return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    def _tokenize(self, text: str | list[str], text_kwargs: dict | None = None, **kwargs) -> dict:
        if self.tokenizer is None:
            raise ValueError("This processor has no tokenizer. Set `processor.tokenizer` first.")
        text_kwargs = text_kwargs or {}
        # The tokenizer silently ignores unknown arguments.
        if unknown := sorted({*kwargs, *text_kwargs} - {*TextKwargs.__annotations__}):
            raise TypeError(f"{unknown} are no arguments of `EZClipProcessor` or its tokenizer.")
        if twice := sorted({*kwargs} & {*text_kwargs}):
            raise ValueError(f"{twice} are given twice, in `text_kwargs` and directly. Pass them once.")
        kwargs = {**kwargs, **text_kwargs}
        texts = [text] if isinstance(text, str) else list(text)
        if not texts:
            raise ValueError("`text` must not be an empty list.")
        encoded = self.tokenizer(texts, **{"padding": self.text_padding, "truncation": True, **kwargs})
        cut = [bool(encoding.overflowing) for encoding in encoded.encodings or ()]
        if any(cut) and "truncation" not in kwargs:
            logger.warning_once(
                f"{sum(cut)} of {len(texts)} texts are longer than {self.tokenizer.model_max_length} tokens and were "
                f"cut. The first: {texts[cut.index(True)][:60] + '…'!r}."
            )
        return dict(encoded)


def _check_templates(templates: str | list[str] | None, default: tuple[str, ...]) -> list[str]:
    templates = [templates] if isinstance(templates, str) else list(default if templates is None else templates)
    if not templates:
        raise ValueError("`templates` must not be empty. Pass at least one sentence with {}.")
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(f"A template must have one {{}}, for the class name or description, got {template!r}.")
    return templates


def as_steps(description: Description) -> list[list[str]]:
    """Return the steps of a description, each as a list of wordings. Texts that are not marked are one step each."""
    steps = description["steps"] if isinstance(description, Mapping) else description
    steps = [steps] if isinstance(steps, str) else steps
    return [[step] if isinstance(step, str) else list(step) for step in steps]


def _is_text(value) -> bool:
    """Return whether a value is a text, or several, and none is blank."""
    texts = [value] if isinstance(value, str) else value
    is_list = isinstance(texts, (list, tuple)) and len(texts) > 0
    return is_list and all(isinstance(text, str) and text.strip() for text in texts)


def is_description(value) -> bool:
    """Return whether a value describes a class: by texts or by steps, and none is blank."""
    if not isinstance(value, Mapping):
        return _is_text(value)
    steps = value.get("steps") if len(value) == 1 else None
    return isinstance(steps, (list, tuple)) and len(steps) > 0 and all(map(_is_text, steps))


def _match_descriptions(labels: list[str], descriptions: Mapping[str, Description]) -> list[Description]:
    """Return the description of each label, a list or steps."""
    by_key = {}
    for name, texts in descriptions.items():
        texts = [texts] if isinstance(texts, str) else texts
        other, first = by_key.setdefault(label_key(name), (name, texts))
        if first != texts:
            raise ValueError(f"{other!r} and {name!r} are one class, but have different descriptions. Remove one.")
    keys = [label_key(label) for label in labels]
    if missing := [label for label, key in zip(labels, keys) if key not in by_key]:
        others = {key: name for key, (name, _) in by_key.items() if key not in keys}
        listed = []
        for label in missing:
            nearest = [repr(others[key]) for key in get_close_matches(label_key(label), others, cutoff=0.75)]
            listed.append(f"{label!r} (nearest: {', '.join(nearest)})" if nearest else repr(label))
        reason = f"{len(missing)} of {len(labels)} classes have no description: {', '.join(listed)}."
        raise ValueError(f"{reason} Add them, or use templates.")
    found = [by_key[key] for key in keys]
    for name, texts in found:
        if not is_description(texts):
            raise ValueError(
                f'The description of {name!r} must be a text, a list of texts, or `{{"steps": [...]}}` with a text or '
                f"a list of texts for each step, got {truncated_repr(texts)}."
            )
    return [texts if isinstance(texts, Mapping) else list(texts) for _, texts in found]


def _check_shape(height: int, width: int):
    """Raise if a frame is so long that resizing its short side would take very much memory."""
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        reason = f"is {width} x {height} pixels, more than {MAX_ASPECT_RATIO} times as long as short."
        raise VideoReadError("a frame", reason, "Cut it to the part that matters.")


def _check_channels(image_processor):
    """Raise unless the image processor has a scale, and a mean and a standard deviation for three channels."""
    scale, std = image_processor.rescale_factor, image_processor.image_std
    check_numbers({"rescale_factor": scale})
    for name, values in (("image_mean", image_processor.image_mean), ("image_std", std)):
        if not isinstance(values, (list, tuple)) or len(values) != 3:
            raise ValueError(f"`{name}` of the image processor must be three numbers, got {truncated_repr(values)}.")
        for value in values:
            check_numbers({name: value})
    if scale == 0 or 0 in std:
        values = f"{scale} and {truncated_repr(list(std))}"
        raise ValueError(f"`rescale_factor` and `image_std` of the image processor must not be 0, got {values}.")


EZClipProcessor.register_for_auto_class("AutoProcessor")


__all__ = ["EZClipProcessor"]
