"""Build and serve a Gradio page that classifies a video and shows scores, a timeline and attention maps."""

import html
import json
import logging
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
from PIL import Image
from starlette.middleware import Middleware

from ezclip.app.guard import Guard
from ezclip.app.uploads import check_upload, describe_error, find_upload, without_folder
from ezclip.attention.figures import draw_attention
from ezclip.attention.video_attention import describe_attention, look_at_video
from ezclip.errors import DataError
from ezclip.timeline.results import Timeline
from ezclip.timeline.search import find_segments
from pipeline_ezclip import ZeroShotVideoClassificationPipeline


logger = logging.getLogger(__name__)

MAX_LABELS, MAX_CHARACTERS = 200, 200
MAX_BARS = 10
MAX_MAPS = 3  # labels whose maps are drawn
MAX_WAITING = 32
EMPTY_OUTPUTS = [None, "", None, None, ""]  # scores, segments, timeline, attention, words
SHORTEST_STRIDE, LONGEST_WINDOW = 0.25, 30.0  # seconds
KEPT_SECONDS = 30 * 60
NONE_OF_THESE = "none of these"
CSS = """
.gradio-container {max-width: 1500px !important; margin: auto}
#video video {max-height: 320px}
#segments table {width: 100%; border-collapse: collapse}
#segments caption {text-align: left}
#segments th, #segments td {padding: 0.3rem 0.6rem; text-align: left; border-bottom: 1px solid; word-break: break-word}
/* On a phone, pictures are wider than the screen and scroll sideways, so that their letters stay readable. */
@media (max-width: 640px) {
  #timeline .image-container, #attention .image-container {overflow-x: auto; contain: inline-size}
  #timeline .image-container button:has(img), #attention .image-container button:has(img) {width: 900px}
  #timeline img, #attention img {width: 900px; max-width: none; height: auto}
}
"""


@dataclass(frozen=True)
class AppSettings:
    """
    Limits and defaults of a page.

    Args:
        max_size_mb (`float`, *optional*, defaults to 100):
            Largest file, in megabytes.
        max_seconds (`float`, *optional*, defaults to 120):
            Longest video, in seconds.
        templates (`tuple[str, ...]`, *optional*):
            Sentences with `{}` for the labels, by default the 16 published ones.
        example_labels (`str`, *optional*):
            Example in the field for labels.
    """

    max_size_mb: float = 100.0
    max_seconds: float = 120.0
    templates: tuple[str, ...] = ()
    example_labels: str = "archery, making a cake, yoga"

    @property
    def max_bytes(self) -> int:
        """Return the size of the largest upload, in bytes."""
        return int(self.max_size_mb * 2**20)


def make_page(
    classifier: ZeroShotVideoClassificationPipeline, settings: AppSettings, title: str, upload_folder: str
) -> gr.Blocks:
    """
    Make the page. [`serve`] serves it.

    Args:
        classifier ([`ZeroShotVideoClassificationPipeline`]):
            The pipeline. It answers one visitor at a time.
        settings (`AppSettings`):
            Limits and defaults of the page.
        title (`str`):
            Title of the page: the name of the model.
        upload_folder (`str`):
            The value of `GRADIO_TEMP_DIR`, set before Gradio is imported. Videos outside it are refused.
    """
    handler = _RequestHandler(classifier, settings, upload_folder)
    page = gr.Blocks(title=f"ezclip: {title}", analytics_enabled=False)
    with page:
        gr.Markdown(
            f"# What does the video show?\nGive a video and any labels. `{title}` shows which label fits, when, and "
            f"where in the picture. The limit is {settings.max_seconds:g} seconds and {settings.max_size_mb:g} MB. "
            f"Videos are deleted after {KEPT_SECONDS // 60} minutes."
        )
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                inputs = _make_inputs(settings)
                button = gr.Button("Classify", variant="primary", elem_id="classify")
            with gr.Column(scale=3, min_width=320):
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
            show_progress_on=[scores],
        )
        # The earlier results belong to another video.
        inputs[0].change(None, None, outputs, js=f"() => {json.dumps(EMPTY_OUTPUTS)}")
    return page


def serve(page: gr.Blocks, settings: AppSettings, upload_folder: str, **kwargs) -> str:
    """
    Serve a page, from a thread, until `page.close()`. Return its address on this machine.

    Args:
        page (`gr.Blocks`):
            The page of [`make_page`].
        settings (`AppSettings`):
            Limits and defaults of the page.
        upload_folder (`str`):
            As for [`make_page`]. Files outside it are not sent.
        kwargs:
            `server_name`, `server_port` and others of [`gr.Blocks.launch`].
    """
    guard = Middleware(Guard, upload_folder=upload_folder, max_upload_bytes=settings.max_bytes)
    page.queue(max_size=MAX_WAITING, default_concurrency_limit=1)
    _, address, _ = page.launch(
        prevent_thread_lock=True,
        share=False,
        show_error=False,
        enable_monitoring=False,
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        footer_links=["gradio"],
        max_file_size=settings.max_bytes,
        theme=gr.themes.Default(font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace")),
        css=CSS,
        app_kwargs={"middleware": [guard]},
        **kwargs,
    )
    return address


def _make_picture(label: str, name: str) -> gr.Image:
    gr.Markdown(f"### {label}")  # the component's own label would lie over the picture
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
        label="Labels, separated by commas or line breaks",
        info=f"For example: {settings.example_labels}",
        lines=3,
        max_length=MAX_LABELS * MAX_CHARACTERS,
        elem_id="labels",
    )
    with gr.Accordion("Options", open=False):
        background = gr.Textbox(
            label="Background labels: what the video may show instead",
            info="For example: a person talking, an empty room",
            max_length=MAX_LABELS * MAX_CHARACTERS,
            elem_id="background",
        )
        templates = gr.Textbox(
            label="Templates with {} for the label, one on each line",
            info=f"By default: {' · '.join(settings.templates) or 'the 16 published ones'}",
            lines=2,
            max_length=MAX_LABELS * MAX_CHARACTERS,
            elem_id="templates",
        )
        window = gr.Slider(0.5, LONGEST_WINDOW, 2.0, step=0.25, label="Window of the timeline, in seconds")
        stride = gr.Slider(SHORTEST_STRIDE, 10.0, 1.0, step=0.25, label="Stride of the windows, in seconds")
        partial = gr.Checkbox(label="Use the undamaged part of a damaged video (allow_partial)")
    return video, labels, background, templates, window, stride, partial


class _RequestHandler:
    """Answer one request at a time, and store nothing about visitors."""

    def __init__(self, classifier: ZeroShotVideoClassificationPipeline, settings: AppSettings, upload_folder: str):
        self.classifier, self.settings, self.upload_folder = classifier, settings, upload_folder

    def answer(self, upload, labels, background="", templates="", window=2.0, stride=1.0, partial=False):
        """Yield scores, timeline and attention, each as soon as it is computed. The inputs may be of any type."""
        yield EMPTY_OUTPUTS  # remove the earlier results
        video = None
        try:
            video = find_upload(upload, self.upload_folder)
            texts, numbers = (labels, background, templates), (window, stride)
            if not all(isinstance(text, str | None) for text in texts):
                raise DataError("Labels and templates must be texts.")
            if not all(isinstance(number, int | float) for number in numbers):
                raise DataError("Window and stride must be numbers of seconds.")
            yield from self._steps(video, *texts, *numbers, partial is True)
        except (ValueError, MemoryError) as error:
            logger.info("Refused: %s", error)
            text = describe_error(error, video) if video else str(error)
            text = html.escape(text or "The video is too large.", quote=False)
            raise gr.Error(text, print_exception=False) from None

    def _steps(
        self, video: str, labels: str, background: str, templates: str, window: float, stride: float, partial: bool
    ) -> Iterator[list]:
        names, others = read_labels(labels), read_labels(background)
        if not names:
            raise DataError("There are no labels. Type some, separated by commas or line breaks.")
        if others and NONE_OF_THESE in names:
            raise DataError(f"{NONE_OF_THESE!r} is the answer for background labels. Remove it from the labels.")
        if not (stride >= SHORTEST_STRIDE and 0 < window <= LONGEST_WINDOW):
            raise DataError(
                f"The window must be above 0 and at most {LONGEST_WINDOW:g} seconds, got {window:g}; the stride must "
                f"be at least {SHORTEST_STRIDE} seconds, got {stride:g}."
            )
        check_upload(video, self.settings.max_seconds)
        sentences = [line.strip() for line in (templates or "").splitlines() if line.strip()]
        sentences = sentences or list(self.settings.templates) or None
        options: dict = {"hypothesis_template": sentences, "background_labels": others or None}
        options = {name: value for name, value in options.items() if value is not None}
        found = self.classifier(video, candidate_labels=names, backend="pyav", allow_partial=partial, **options)
        scores = {NONE_OF_THESE if one["label"] is None else one["label"]: one["score"] for one in found}
        yield [scores, *EMPTY_OUTPUTS[1:]]
        options |= {"window": window, "stride": stride, "allow_partial": partial}
        timeline = find_segments(self.classifier, video, names, disable_tqdm=True, **options)
        if timeline.problem:
            warning = f"Only a part of the video was read: {without_folder(timeline.problem, video)}"
            gr.Warning(html.escape(warning, quote=False))
        table = _as_table(timeline)
        picture = gr.Image(value=_picture_of(timeline), alt_text=_timeline_in_words(timeline))
        yield [scores, table, picture, *EMPTY_OUTPUTS[3:]]
        best = [one["label"] for one in found if one["label"] is not None][:MAX_MAPS]
        attention = look_at_video(
            video,
            self.classifier.model,
            self.classifier.processor,
            best,
            templates=sentences,
            backend="pyav",
            allow_partial=partial,
        )
        words = without_folder(describe_attention(attention), video)
        yield [scores, table, picture, gr.Image(value=draw_attention(attention), alt_text=words), words]


def read_labels(text: str | None) -> list[str]:
    """Split labels at commas and line ends, and remove repeated ones. Raise [`DataError`] if they are too long."""
    labels = list(dict.fromkeys(label.strip() for label in re.split(r"[,\n]", text or "") if label.strip()))
    if len(labels) > MAX_LABELS:
        raise DataError(f"Give at most {MAX_LABELS} labels, got {len(labels)} labels.")
    for label in labels:
        if len(label) > MAX_CHARACTERS:
            shown = f"{label[:30]!r}… with {len(label)} characters"
            raise DataError(f"A label must have at most {MAX_CHARACTERS} characters, got {shown}.")
    return labels


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
    return f"<table><caption>Segments</caption><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"


def _timeline_in_words(timeline: Timeline) -> str:
    parts = [f"{one.label} from {one.start:.1f} to {one.end:.1f} s" for one in timeline.segments]
    return f"Scores of the labels over time. Segments: {', '.join(parts) or 'none'}."
