"""A video-text model as `mteb` evaluates it, on tasks of video, text, or both."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import mteb
import torch
from datasets import Video
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.results import ModelResult
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ezclip import __version__
from ezclip.data.isolated_reader import IsolatedReader
from ezclip.evaluation.identity import describe_model, describe_processor
from ezclip.evaluation.predictions import check_finite
from ezclip.utils.digests import digest
from ezclip.utils.messages import get_logger


logger = get_logger(__name__)

MODALITIES = ["video", "text"]


class LeaderboardEncoder(AbsEncoder):
    """
    An encoder for `mteb.evaluate`: `EncoderProtocol` around a model and its processor.

    Videos are read and cropped as by the other commands, in a child process. torchcodec is not needed. A damaged
    video is read as far as it goes, as the encoders of `mteb` do. Embeddings are not normalised, and those of an input
    with a video and a text are added, as for the CLIP and X-CLIP of `mteb`. Scores are cosines.

    `mteb` keeps results by the name of a model, `organization/model` or `local/FOLDER`, and by its revision. That is a
    digest of weights, configuration and processor, so that a changed model never gets old results.

    Args:
        model (`VideoTextEncoder`):
            Embeds videos and texts, in evaluation mode.
        processor ([`EZClipProcessor`]):
            Reads the videos and tokenizes the texts.
        video_timeout (`float`, *optional*, defaults to 60):
            Seconds after which a video counts as unreadable.

    Example:

    ```python
    >>> import mteb
    >>> from ezclip import load_model, load_processor
    >>> from ezclip.leaderboard import LeaderboardEncoder

    >>> name = "openai/clip-vit-base-patch16"
    >>> encoder = LeaderboardEncoder(load_model(name).eval(), load_processor(name))
    >>> mteb.evaluate(encoder, mteb.get_task("HMDB51ZeroShot"))
    ```
    """

    def __init__(self, model, processor, video_timeout: float = 60.0):
        self.model, self.processor, self.video_timeout = model, processor, video_timeout
        name = model.name_or_path
        if Path(name).is_dir() or name.count("/") != 1:
            name = f"local/{Path(name).name or 'model'}"
        described = {"ezclip": __version__, **describe_model(model), "processor": describe_processor(processor)}
        parameters = list(model.parameters())
        self.mteb_model_meta = ModelMeta(
            loader=None,
            name=name,
            revision=digest(described),
            release_date=None,
            languages=None,
            n_parameters=sum(parameter.numel() for parameter in parameters),
            memory_usage_mb=round(sum(parameter.nbytes for parameter in parameters) / 2**20),
            max_tokens=processor.tokenizer.model_max_length,
            embed_dim=self.embed_texts(["a"]).shape[-1],
            license=None,
            open_weights=None,
            public_training_code=None,
            public_training_data=None,
            framework=["PyTorch", "Transformers"],
            similarity_fn_name=ScoringFunction.COSINE,
            use_instructions=False,
            training_datasets=None,
            modalities=MODALITIES,
        )

    @torch.no_grad()
    def encode(
        self,
        inputs: DataLoader,
        *,
        task_metadata,
        hf_split: str,
        hf_subset: str,
        prompt_type=None,
        show_progress_bar: bool = True,
        **kwargs,
    ) -> torch.Tensor:
        """
        Embed the rows of a loader of `mteb`: their `video`, their `text`, or the sum of both.

        The other arguments are those of `EncoderProtocol`. They change nothing: the models take no instructions.

        Returns:
            `torch.Tensor` of shape `(number of rows, D)`: float32, on the CPU.

        Raises:
            [`VideoReadError`]: if a video cannot be read. [`ModelError`]: if an embedding is not finite. `ValueError`:
            if the rows have neither a video nor a text.
        """
        dataset: Any = inputs.dataset
        columns = [name for name in MODALITIES if name in dataset.features]
        if not columns:
            raise ValueError(f"The rows must have a video or a text, got {list(dataset.features)}.")
        dataset = dataset.select_columns(columns)
        if "video" in columns:
            dataset = dataset.cast_column("video", Video(decode=False))
        embeds = []
        with IsolatedReader(self.video_timeout, allow_partial=True) as read:
            collate = partial(self._collate, read=read)
            loader = DataLoader(dataset, inputs.batch_size, num_workers=inputs.num_workers, collate_fn=collate)
            for batch in tqdm(loader, desc="Embedding", unit="batch", disable=not show_progress_bar):
                parts = [self.embed_videos(batch["video"])] if "video" in batch else []
                parts += [self.embed_texts(batch["text"])] if "text" in batch else []
                embeds.append(torch.stack(parts).sum(dim=0).cpu())
        embeds = torch.cat(embeds)
        check_finite(embeds, self.model.dtype)
        return embeds

    def embed_videos(self, frames: torch.Tensor) -> torch.Tensor:
        """Embed cropped RGB frames `(B, T, H, W, 3)`, uint8, as `(B, D)`, float32."""
        pixels = self.processor.normalize(frames.to(self.model.device)).to(self.model.dtype)
        embeds = self.model.encode_videos(pixels).float()
        # (B, 1 + L, D) of X-CLIP: the video, and what the prompts of `score` read
        return embeds if embeds.ndim == 2 else embeds[:, 0]

    def embed_texts(self, texts: list[str]) -> torch.Tensor:
        """Embed N texts as `(N, D)`, float32."""
        tokens = self.processor(text=texts, return_tensors="pt").to(self.model.device)
        return self.model.encode_texts(tokens).float()

    def _collate(self, rows: list[dict], read: Callable) -> dict:
        batch: dict[str, Any] = {name: [row[name] for row in rows] for name in rows[0]}
        if "video" in batch:
            sample = self.processor.get_sampler()
            clips = [self.processor.read_clip(video, sample, read=read) for video in batch["video"]]
            for _, metadata in clips:
                if metadata.problem:
                    logger.warning(f"A video was read in part: {metadata.problem}")
            batch["video"] = torch.stack([torch.from_numpy(frames) for frames, _ in clips])
        return batch


def evaluate_tasks(
    encoder: LeaderboardEncoder, tasks: Sequence, output_dir: str | Path, batch_size: int = 8, num_workers: int = 0
) -> ModelResult:
    """
    Evaluate a model on tasks of `mteb`, and go on after a task that fails.

    Results are written to `output_dir/results/MODEL/REVISION/TASK.json` as `mteb` writes them. A task that is there
    already, of the same model, is not run again.

    Args:
        encoder ([`LeaderboardEncoder`]):
            The model.
        tasks (`Sequence[mteb.AbsTask]`):
            The tasks.
        output_dir (`str` or `Path`):
            Folder of the results.
        batch_size (`int`, *optional*, defaults to 8):
            Videos or texts of a batch.
        num_workers (`int`, *optional*, defaults to 0):
            Number of decoding processes.

    Returns:
        `mteb.ModelResult`: a result of each task, or an exception.
    """
    return mteb.evaluate(
        encoder,
        tasks,
        cache=mteb.ResultCache(output_dir),
        encode_kwargs={"batch_size": batch_size},
        co2_tracker=False,
        raise_error=False,
        num_proc=num_workers or None,
    )
