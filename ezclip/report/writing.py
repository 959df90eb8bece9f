"""From folders of runs to a page and its pictures."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ezclip.data.isolated_reader import IsolatedReader
from ezclip.errors import DataError
from ezclip.report.material import Material
from ezclip.report.page import Section, Shown, render
from ezclip.report.reading import EvaluationRun, align_runs, read_run
from ezclip.report.sections import make_sections
from ezclip.report.side_by_side import compare_section
from ezclip.utils.files import replacing
from ezclip.utils.fonts import Lettering


REPORT_NAME = "report.html"
PICTURES_NAME = "report_pictures"
PICTURES = ("calibration", "class_", "confusion_", "embedding_map", "predicted_classes", "scores")


def write_report(
    runs: str | Path | Sequence[str | Path],
    output_dir: str | Path | None = None,
    *,
    names: Sequence[str] | None = None,
    sample_frames: bool = True,
    video_timeout: float = 60.0,
    seed: int = 0,
) -> Path:
    """
    Write `report.html`, one file that refers to nothing outside it, and its pictures in `report_pictures/`.

    Args:
        runs (`str`, `Path`, or a sequence of them):
            Folders that `run_video_zeroshot.py` wrote, or `predictions.jsonl` files, which are enough. Several are
            shown side by side, and compared on the videos that all of them have.
        output_dir (`str` or `Path`, *optional*):
            Where to write. By default, for a single run, its own folder.
        names (`Sequence[str]`, *optional*):
            What to call the runs. By default as their folders.
        sample_frames (`bool`, *optional*, defaults to `True`):
            Whether to show frames of videos that are confused. Videos are read where they were when they were
            predicted; a relative path is relative to the working folder.
        video_timeout (`float`, *optional*, defaults to 60):
            Seconds after which reading one of them is given up.
        seed (`int`, *optional*, defaults to 0):
            Seed of the bootstrap and of the map.

    Returns:
        `Path`: that of `report.html`.

    Raises:
        [`DataError`]: if a run cannot be read, or runs disagree on the label of a video. `ValueError`: if there is no
        run, several have no `output_dir`, or names are not one for each.

    Example:

    ```python
    >>> from ezclip.report import write_report

    >>> write_report("out")
    >>> write_report(["with", "without"], "comparison", names=["with prompts", "without"])
    ```
    """
    folders = [runs] if isinstance(runs, (str, Path)) else list(runs)
    if not folders:
        raise ValueError("`runs` is empty: give at least one folder with a predictions.jsonl.")
    if output_dir is None and len(folders) > 1:
        raise ValueError("Several runs need an `output_dir` for what is written of all of them.")
    if names is not None and (len(names) != len(folders) or len(set(names)) < len(names)):
        raise ValueError(f"`names` must be {len(folders)} different ones, one for each run; got {list(names)}.")
    found = [read_run(folder, name) for folder, name in zip(folders, names or [None] * len(folders))]
    _tell_apart(found)
    output_dir = Path(output_dir if output_dir is not None else found[0].folder)

    found = align_runs(found)
    lettering = Lettering(found[0].class_names)
    with IsolatedReader(video_timeout, allow_partial=True) as read:
        materials = [
            Material(run, f"_{place}" if len(found) > 1 else "", lettering, seed, read if sample_frames else None)
            for place, run in enumerate(found, 1)
        ]
        compared = [compare_section(materials, seed)] if len(found) > 1 else []
        first, *others = make_sections(materials)
    return _write(output_dir, found, [first, *compared, *others])


def _tell_apart(runs: list[EvaluationRun]):
    """Rename runs of one name by their folders, or number them."""
    for name_of in (lambda place, run: str(run.folder), lambda place, run: f"{run.name} ({place})"):
        counts = Counter(run.name for run in runs)
        for place, run in enumerate(runs, 1):
            if counts[run.name] > 1:
                run.name = name_of(place, run)


def _write(output_dir: Path, runs: list[EvaluationRun], sections: list[Section]) -> Path:
    several = len(runs) > 1
    notes = [f"{run.name}: {note}" if several else note for run in runs for note in run.notes]
    title = " and ".join(run.name for run in runs)
    pictures = [
        item.picture
        for section in sections
        for _, items in section.columns
        for item in items
        if isinstance(item, Shown)
    ]
    page = render(
        f"Report: {title}",
        "; ".join(f"{run.name}: {run.folder.resolve()}" if several else f"{run.folder.resolve()}" for run in runs),
        notes,
        sections,
        f"Written by ezclip. The pictures are in {PICTURES_NAME}/ too.",
    )
    folder = output_dir / PICTURES_NAME
    try:
        for name in PICTURES:  # of an earlier report, which this one may not have
            for path in folder.glob(f"{name}*.png"):
                path.unlink()
        for picture in pictures:
            with replacing(folder / f"{picture.name}.png") as temporary:
                temporary.write_bytes(picture.content)
        with replacing(output_dir / REPORT_NAME) as temporary:
            temporary.write_text(page, encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"The report cannot be written to {output_dir} ({error.strerror}). Give another folder."
        ) from error
    return output_dir / REPORT_NAME
