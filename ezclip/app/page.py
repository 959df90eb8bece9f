"""Build and serve a Gradio page that classifies a video and shows scores, a timeline and attention maps."""

import base64
import functools
import html
import io
import json
import os
import re
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image
from starlette.middleware import Middleware

from ezclip.app.guard import KEPT_SECONDS, Guard
from ezclip.app.uploads import describe_error, find_upload, without_folder
from ezclip.attention.figures import draw_attention
from ezclip.attention.video_attention import describe_attention, look_at_video
from ezclip.data.isolated_reader import IsolatedReader
from ezclip.errors import DataError
from ezclip.timeline.results import Timeline
from ezclip.timeline.search import find_segments
from ezclip.utils.messages import get_logger
from ezclip.utils.tables import escape_markdown
from pipeline_ezclip import ZeroShotVideoClassificationPipeline
from processing_ezclip import TEMPLATES
from video_ezclip import ReadLimits, open_picture, printable


logger = get_logger(__name__)

MAX_LABELS, MAX_SENTENCES, MAX_CHARACTERS = 200, 32, 200
MAX_TEXTS = 200 * 16  # labels times sentences
MAX_WINDOWS = 600
MAX_BARS = 10
MAX_SCOPE = 400  # characters
MAX_MAPS = 3  # labels whose maps are drawn
MAX_WAITING = 32
MODEL = "model"  # what classifies one visitor's videos at a time
CAMERA_SIZE, CAMERA_INTERVAL = {"width": 640, "height": 480}, 0.25  # pixels, and seconds between two frames
MAX_CAMERA_FRAMES = 128
TICK = 0.25  # seconds between two looks for a visitor who has left
MAX_FRAME_PIXELS = 4096 * 2304
DRAWN_PIXELS = 1920 * 1088  # of a frame in pictures
MAX_PACKET_RATE = 300  # packets of picture and sound in a second
READER_BYTES = 2**31  # memory of the process that decodes
EMPTY_OUTPUTS = [None, "", None, None, ""]  # scores, segments, timeline, attention, words
SHORTEST_STRIDE, LONGEST_WINDOW = 0.25, 30.0  # seconds
NONE_OF_THESE = "none of these"
CSS = """
.gradio-container {max-width: 1500px !important; margin: auto}
#video video {max-height: 320px}
#segments table {width: 100%; border-collapse: collapse}
#segments caption {text-align: left}
#segments th, #segments td {padding: 0.3rem 0.6rem; text-align: left; border-bottom: 1px solid; word-break: break-word}
/* Letters in pictures stay large enough to read: on a phone, pictures are wider than it and move sideways. */
@media (max-width: 640px) {
  #timeline .image-container, #attention .image-container {overflow-x: auto; contain: inline-size}
  #timeline .image-container button:has(img), #attention .image-container button:has(img) {width: 900px}
  #timeline img, #attention img {width: 900px; max-width: none; height: auto}
}
"""


@dataclass(frozen=True)
class AppSettings:
    """Limits and defaults of a page."""

    max_size_mb: float = 100.0  # of a file
    max_seconds: float = 120.0  # of a video
    max_total_mb: float = 1000.0  # of all files
    max_answer_seconds: float = 60.0  # to decode a video, and to search it
    templates: tuple[str, ...] = ()  # sentences with `{}`; if empty, the 16 published ones
    example_labels: str = "archery, making a cake, yoga"  # shown at the field for labels

    @property
    def max_bytes(self) -> int:
        """Return the size of the largest upload, in bytes."""
        return int(self.max_size_mb * 2**20)

    @property
    def read_limits(self) -> ReadLimits:
        """Return what reading a video may take."""
        return ReadLimits(max_pixels=MAX_FRAME_PIXELS, max_packets=int(MAX_PACKET_RATE * self.max_seconds) + 1)


def make_page(
    classifier: ZeroShotVideoClassificationPipeline, settings: AppSettings, title: str, upload_folder: str
) -> gr.Blocks:
    """
    Make the page for a pipeline, which answers one visitor at a time. [`serve`] serves the page.

    `title` is the name of the model on the page. `upload_folder` is the value of `GRADIO_TEMP_DIR`, set before Gradio
    is imported. The page refuses videos outside it.
    """
    handler = _RequestHandler(classifier, settings, upload_folder)
    page = gr.Blocks(title=f"ezclip: {title}", analytics_enabled=False)
    with page:
        gr.Markdown(
            f"# What does the video show?\nGive a video and any labels; `{title}` says which label fits, when, and "
            f"where it looks. At most {settings.max_seconds:g} seconds and {settings.max_size_mb:g} MB; videos are "
            f"deleted after {KEPT_SECONDS // 60} minutes."
        )
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                inputs = _make_inputs(settings)
                button = gr.Button("Classify", variant="primary", elem_id="classify")
            with gr.Column(scale=3, min_width=320):
                if scope := getattr(classifier.model.config, "scope", None):
                    gr.Markdown(f"**{escape_markdown(scope[:MAX_SCOPE])}**", elem_id="scope", sanitize_html=True)
                scores = gr.Label(label="Which label fits", num_top_classes=MAX_BARS, elem_id="scores")
                segments = gr.Markdown(elem_id="segments", sanitize_html=True)
        timeline = _make_picture("Scores over time", "timeline")
        attention = _make_picture("Where the model looks", "attention")
        words = gr.Textbox(label="The same in words", lines=3, interactive=False, elem_id="words")
        outputs = [scores, segments, timeline, attention, words]
        button.click(
            handler.answer,
            list(inputs),
            outputs,
            api_name="classify",
            preprocess=False,  # which may convert a video by the command line of FFmpeg
            concurrency_limit=1,
            concurrency_id=MODEL,
            show_progress_on=[scores],
        )
        with gr.Accordion("Live, from the webcam", open=False, elem_id="live"):
            gr.Markdown(
                "The labels and options above, for the last seconds: as many as the window of the timeline. A visitor "
                f"has the camera for {settings.max_answer_seconds:g} seconds at a time. No frame is stored."
            )
            with gr.Row():
                camera = gr.Image(
                    label="Camera",
                    sources=["webcam"],
                    streaming=True,
                    webcam_options=gr.WebcamOptions(mirror=False, constraints={"video": CAMERA_SIZE}),
                    elem_id="camera",
                )
                live_scores = gr.Label(label="What it shows now", num_top_classes=MAX_BARS, elem_id="live_scores")
            camera.stream(
                handler.watch,
                [camera, *inputs[1:5]],
                live_scores,
                preprocess=False,
                time_limit=settings.max_answer_seconds,
                stream_every=CAMERA_INTERVAL,
                concurrency_limit=1,
                concurrency_id=MODEL,
                show_progress="hidden",
                api_visibility="private",
            )
        # The earlier results belong to another video.
        inputs[0].change(None, None, outputs, js=f"() => {json.dumps(EMPTY_OUTPUTS)}")
    return page


def serve(page: gr.Blocks, settings: AppSettings, upload_folder: str, **kwargs) -> str:
    """
    Serve a page of [`make_page`] from a thread until `page.close()`. Return its address on this machine.

    The server sends no file outside `upload_folder`. `kwargs` are `server_name`, `server_port`, `root_path` and other
    arguments of [`gr.Blocks.launch`].
    """
    # With the address of the page, Gradio does not take it from requests.
    root_path = kwargs.get("root_path") or os.environ.get("GRADIO_ROOT_PATH") or ""
    guard = Middleware(
        Guard,
        upload_folder=upload_folder,
        max_upload_bytes=settings.max_bytes,
        max_total_bytes=int(settings.max_total_mb * 2**20),
        hosts=("*",) if root_path.startswith(("http://", "https://")) else (str(kwargs.get("server_name")),),
    )
    fonts = ("system-ui", "sans-serif")
    page.queue(max_size=MAX_WAITING, default_concurrency_limit=1)
    _, address, _ = page.launch(
        prevent_thread_lock=True,
        share=False,
        quiet=True,  # it would advise to share
        show_error=False,
        enable_monitoring=False,
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        footer_links=["gradio"],
        max_file_size=settings.max_bytes,
        theme=gr.themes.Default(font=fonts, font_mono=("ui-monospace", "monospace")),
        css=CSS,
        app_kwargs={"middleware": [guard]},
        **kwargs,
    )
    return address


def _make_picture(label: str, name: str) -> gr.Image:
    gr.Markdown(f"### {label}")  # the label of the component would cover the picture
    return gr.Image(
        label=label, show_label=False, format="png", interactive=False, buttons=["fullscreen"], elem_id=name
    )


def _make_inputs(settings: AppSettings) -> tuple:
    video = gr.Video(
        label="Video",
        sources=["upload", "webcam"],
        include_audio=True,  # without it, Gradio would convert the file
        webcam_options=gr.WebcamOptions(mirror=False),  # labels such as "left" need unmirrored video
        elem_id="video",
    )
    labels = gr.Textbox(
        label="Labels, between commas or on lines of their own",
        info=f"For example: {settings.example_labels}",
        lines=3,
        max_length=MAX_LABELS * MAX_CHARACTERS,
        elem_id="labels",
    )
    with gr.Accordion("Options", open=False):
        background = gr.Textbox(
            label="Background labels: what it may show besides them",
            info="For example: a person talking, an empty room",
            max_length=MAX_LABELS * MAX_CHARACTERS,
            elem_id="background",
        )
        templates = gr.Textbox(
            label="Sentences with {} for the label, on lines of their own",
            info=f"By default: {' · '.join(settings.templates) or 'the 16 published ones'}",
            lines=2,
            max_length=MAX_LABELS * MAX_CHARACTERS,
            elem_id="templates",
        )
        window = gr.Slider(0.5, LONGEST_WINDOW, 2.0, step=0.25, label="Window of the timeline, in seconds")
        stride = gr.Slider(SHORTEST_STRIDE, 10.0, 1.0, step=0.25, label="From window to window, in seconds")
        partial = gr.Checkbox(label="Use what can be decoded of a damaged video (allow_partial)")
    return video, labels, background, templates, window, stride, partial


class _RequestHandler:
    """
    Answer one request at a time, and store nothing about visitors.

    Videos are decoded in a child process. Gradio closes the generator of an answer when its visitor leaves.
    """

    def __init__(self, classifier: ZeroShotVideoClassificationPipeline, settings: AppSettings, upload_folder: str):
        self.classifier, self.settings, self.upload_folder = classifier, settings, upload_folder
        self.processor: Any = classifier.processor
        self._camera: tuple[str | None, deque[tuple[float, np.ndarray]]] | None = None  # the last visitor's
        self.reader = IsolatedReader(
            settings.max_answer_seconds, READER_BYTES, backend="pyav", limits=settings.read_limits
        )

    def close(self):
        """End the process that decodes."""
        self.reader.close()

    def answer(self, upload, labels, background="", templates="", window=2.0, stride=1.0, partial=False):
        """Yield scores, timeline and attention, each when it is ready. The arguments may be of any type."""
        yield EMPTY_OUTPUTS  # removes the earlier results
        video = None
        try:
            video = find_upload(upload, self.upload_folder)
            texts, numbers = (labels, background, templates), (window, stride)
            if not all(isinstance(text, str | None) for text in texts):
                raise DataError("Labels and sentences must be texts.")
            if not all(type(number) in (int, float) and abs(number) <= sys.float_info.max for number in numbers):
                raise DataError("Window and stride must be numbers of seconds.")
            yield from self._steps(video, *texts, *numbers, partial is True)
        except (ValueError, MemoryError, FileNotFoundError) as error:
            logger.info("Refused: %s", error)
            text = describe_error(error, video) if video else str(error)
            text = html.escape(text or "The video is too large.", quote=False)
            raise gr.Error(text, print_exception=False) from None

    def _steps(
        self, video: str, labels: str, background: str, templates: str, window: float, stride: float, partial: bool
    ) -> Iterator[list]:
        names, options = self._read_classes(labels, background, templates)
        if not (stride >= SHORTEST_STRIDE and 0 < window <= LONGEST_WINDOW):
            raise DataError(
                f"The window must be above 0 and at most {LONGEST_WINDOW:g} seconds, the stride at least "
                f"{SHORTEST_STRIDE}, got {window:g} and {stride:g}."
            )
        deadline = time.monotonic() + self.settings.max_answer_seconds
        sampler = self.processor.get_sampler()
        clip = yield from self._until_done(lambda: self.reader(video, sampler, self._shrink, allow_partial=partial))
        check_length(clip[1].duration or 0.0, stride, self.settings.max_seconds)
        found = self.classifier(clip[0], candidate_labels=names, **options)
        scores = _as_scores(found)
        yield [scores, *EMPTY_OUTPUTS[1:]]
        search = functools.partial(
            find_segments,
            self.classifier,
            video,
            names,
            window=window,
            stride=stride,
            batch_size=2,  # so that it stops soon
            allow_partial=partial,
            limits=self.settings.read_limits,
            reader=self.reader,
            disable_tqdm=True,
            should_stop=lambda: time.monotonic() > deadline,
            **options,
        )
        timeline = yield from self._until_done(search)
        if timeline.problem:
            text = f"Not all of the video: {without_folder(timeline.problem, video)}"
            gr.Warning(html.escape(text, quote=False))
        table = _as_table(timeline)
        picture = gr.Image(value=_picture_of(timeline), alt_text=_timeline_in_words(timeline))
        yield [scores, table, picture, *EMPTY_OUTPUTS[3:]]
        best = [one["label"] for one in found if one["label"] is not None][:MAX_MAPS]
        attention = look_at_video(
            os.path.basename(video),
            self.classifier.model,
            self.processor,
            best,
            templates=options.get("hypothesis_template"),
            read=lambda *_: clip,
        )
        words = describe_attention(attention)
        yield [scores, table, picture, gr.Image(value=draw_attention(attention), alt_text=words), words]

    def _read_classes(self, labels: str, background: str, templates: str) -> tuple[list[str], dict]:
        """Return the labels, and the other options of the pipeline that choose the classes."""
        names, others = read_labels(labels), read_labels(background)
        if not names:
            raise DataError("There are no labels: type some, between commas or on lines of their own.")
        if others and NONE_OF_THESE in names:
            raise DataError(f"{NONE_OF_THESE!r} is the name for videos that fit no label. Remove it from the labels.")
        sentences = read_sentences(templates) or list(self.settings.templates) or None
        num_texts = (len(names) + len(others)) * len(sentences or TEMPLATES)
        if num_texts > MAX_TEXTS:
            raise DataError(f"Labels times sentences must be at most {MAX_TEXTS}, got {num_texts}. Leave some out.")
        options = {"hypothesis_template": sentences, "background_labels": others or None}
        return names, {name: value for name, value in options.items() if value is not None}

    def watch(self, image, labels, background, templates, window, request: gr.Request):
        """
        Return the scores of the last seconds of a camera, of which a visitor's page sends frame by frame.

        Only the frames of one visitor are held, and only in memory. The arguments may be of any type.
        """
        now, visitor = time.monotonic(), request.session_hash
        try:
            if not all(isinstance(text, str | None) for text in (labels, background, templates)):
                raise DataError("Labels and sentences must be texts.")
            if not (type(window) in (int, float) and 0 < window <= LONGEST_WINDOW):
                raise DataError(f"The window must be above 0 and at most {LONGEST_WINDOW:g} seconds.")
            frame = self.processor.resize_frame(read_camera_frame(image, self.settings.read_limits))
            if self._camera is None or self._camera[0] != visitor or self._camera[1][-1][1].shape != frame.shape:
                self._camera = visitor, deque(maxlen=MAX_CAMERA_FRAMES)
            held = self._camera[1]
            held.append((now, frame))
            while held[0][0] < now - window:
                held.popleft()
            names, options = self._read_classes(labels or "", background or "", templates or "")
            clip = np.stack([frame for _, frame in held])
            return _as_scores(self.classifier(clip, candidate_labels=names, **options))
        except ValueError as error:
            raise gr.Error(html.escape(str(error), quote=False), print_exception=False) from None

    def _shrink(self, frame: np.ndarray) -> np.ndarray:
        """Return a frame for the model and for the pictures. The processor would resize a large one later."""
        is_large = frame.shape[0] * frame.shape[1] > DRAWN_PIXELS
        return self.processor.resize_frame(frame) if is_large else frame

    def _until_done(self, work: Callable) -> Iterator[list]:
        """
        Work in a thread, and yield unchanged outputs until it is done. Return the result.

        Gradio closes this generator when the visitor has left: then the work fails as soon as it needs a frame.
        """
        with ThreadPoolExecutor(1) as thread:
            task = thread.submit(work)
            try:
                while not wait([task], timeout=TICK).done:
                    yield [gr.skip()] * len(EMPTY_OUTPUTS)
            finally:
                while not task.done():
                    self.reader.close()  # ends a decoding that takes long; the reader tries once more
                    wait([task], timeout=TICK)
        return task.result()


def read_camera_frame(image, limits: ReadLimits) -> np.ndarray:
    """
    Return a frame of a camera, `(H, W, 3)` uint8. `image` should be `{"url": "data:image/…;base64,…"}`.

    Raises:
        [`DataError`]: if it is none, as when the camera was just stopped. [`VideoReadError`]: if it is too large.
    """
    url = image.get("url") if isinstance(image, dict) else None
    head, _, content = url.partition(";base64,") if isinstance(url, str) else ("", "", "")
    try:
        if not head.startswith("data:image/"):
            raise ValueError(f"it must be a data URL, got {head[:40]!r}")
        with open_picture(io.BytesIO(base64.b64decode(content, validate=True)), "The frame", limits) as picture:
            return np.asarray(picture.convert("RGB"))
    except (ValueError, OSError) as error:
        raise DataError(f"The frame of the camera cannot be read ({error!s:.200}).") from error


def _as_scores(found: Any) -> dict[str, float]:
    return {NONE_OF_THESE if one["label"] is None else one["label"]: one["score"] for one in found}


def check_length(seconds: float, stride: float, max_seconds: float):
    """Raise [`DataError`] if a video is too long, or has too many windows."""
    if seconds > max_seconds:
        raise DataError(
            f"The video is longer than {max_seconds:g} seconds. Cut it, or run `ezclip app` yourself with another "
            "--max_seconds."
        )
    if seconds / stride > MAX_WINDOWS:
        raise DataError(
            f"The timeline must have at most {MAX_WINDOWS} windows, got {seconds / stride:.0f}. Give a longer stride."
        )


def read_sentences(text: str | None) -> list[str]:
    """
    Split sentences at line ends.

    Raises:
        [`DataError`]: if there are too many, or one is too long.
    """
    sentences = [line.strip() for line in (text or "").splitlines() if line.strip()]
    check_texts(sentences, "sentence", MAX_SENTENCES)
    return sentences


def read_labels(text: str | None) -> list[str]:
    """
    Split labels at commas and line ends, and remove repeated ones.

    Raises:
        [`DataError`]: if there are too many, or one is too long.
    """
    labels = list(dict.fromkeys(label.strip() for label in re.split(r"[,\n]", text or "") if label.strip()))
    check_texts(labels, "label", MAX_LABELS)
    return labels


def check_texts(texts: list[str], kind: str, limit: int):
    """Raise [`DataError`] if there are too many texts, or one is too long."""
    if len(texts) > limit:
        raise DataError(f"There must be at most {limit} {kind}s, got {len(texts)}. Leave some out.")
    for text in texts:
        if printable(text) != text:
            raise DataError(f"A {kind} must have no control characters, got {text[:30]!r}.")
        if len(text) > MAX_CHARACTERS:
            raise DataError(
                f"A {kind} must have at most {MAX_CHARACTERS} characters, got {len(text)} in {text[:30]!r}…."
            )


def _picture_of(timeline: Timeline) -> Image.Image:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "timeline.png"
        timeline.save(path)
        with Image.open(path) as picture:
            return picture.convert("RGB")


def _as_table(timeline: Timeline) -> str:
    if not timeline.segments:
        return "<p>No part of the video shows one of the labels.</p>"
    rows = "".join(
        f'<tr><td>{one.start:.2f} s</td><td>{one.end:.2f} s</td><td dir="auto">{html.escape(one.label)}</td>'
        f"<td>{one.score:.0%}</td></tr>"
        for one in timeline.segments
    )
    heads = "".join(f'<th scope="col">{name}</th>' for name in ("from", "to", "label", "score"))
    return f"<table><caption>What it shows when</caption><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"


def _timeline_in_words(timeline: Timeline) -> str:
    parts = [f"{one.label} from {one.start:.1f} to {one.end:.1f} s" for one in timeline.segments]
    return f"Scores of the labels over time. Segments: {', '.join(parts) or 'none'}."
