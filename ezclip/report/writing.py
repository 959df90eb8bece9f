"""Write the report of one or several runs."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ezclip.data.isolated_reader import IsolatedReader
from ezclip.errors import DataError
from ezclip.report.drawing import Picture
from ezclip.report.material import Material
from ezclip.report.page import Section, render
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
    Write an HTML report of one or several evaluations.

    `report.html` is a single self-contained file. Its pictures are also written to `report_pictures/` (PNG).

    Args:
        runs (`str`, `Path`, or a sequence of them):
            Output folders of `ezclip run` with `--do_eval` or `--do_predict`, or `predictions.jsonl` files. Several
            runs are shown side by side and compared on the videos that all of them contain.
        output_dir (`str` or `Path`, *optional*):
            Folder of the report. Defaults to the folder of the run; required for several runs.
        names (`Sequence[str]`, *optional*):
            A different name for each run. Defaults to the names of the folders.
        sample_frames (`bool`, *optional*, defaults to `True`):
            Whether to show frames of confused videos. Videos are read from the paths in the predictions; a relative
            path is relative to the working directory. URLs are not fetched.
        video_timeout (`float`, *optional*, defaults to 60):
            Time limit for reading one video, in seconds.
        seed (`int`, *optional*, defaults to 0):
            Seed of the bootstrap and of the map.

    Returns:
        `Path`: the path of `report.html`.

    Raises:
        [`DataError`]: if a run cannot be read, runs disagree on the label of a video, or the report cannot be written.
        `ValueError`: if `runs` is empty, several runs have no `output_dir`, or `names` are not one for each run.
        `ImportError`: if a package of `ezclip[report]` is missing.

    Example:

    ```python
    >>> from ezclip.report import write_report

    >>> write_report("out")
    >>> write_report(["with", "without"], "comparison", names=["with prompts", "without"])
    ```
    """
    folders = [runs] if isinstance(runs, (str, Path)) else list(runs)
    if not folders:
        raise ValueError("`runs` must have at least one folder with predictions.jsonl, got none.")
    if output_dir is None and len(folders) > 1:
        raise ValueError("`output_dir` must be given for several runs.")
    if names is not None and (len(names) != len(folders) or len(set(names)) < len(names)):
        raise ValueError(f"`names` must be {len(folders)} different names, one for each run, got {list(names)}.")
    found = [read_run(folder, name) for folder, name in zip(folders, names or [None] * len(folders))]
    _make_names_unique(found)
    output_dir = Path(output_dir if output_dir is not None else found[0].folder)

    found = align_runs(found)
    lettering = Lettering(found[0].class_names)
    with IsolatedReader(video_timeout, allow_partial=True) as read:
        materials = [
            Material(run, f"_{number}" if len(found) > 1 else "", lettering, seed, read if sample_frames else None)
            for number, run in enumerate(found, 1)
        ]
        compared = [compare_section(materials, seed)] if len(found) > 1 else []
        first, *others = make_sections(materials)
    return _write(output_dir, found, [first, *compared, *others])


def _make_names_unique(runs: list[EvaluationRun]):
    """Rename runs with equal names to their folders. Number them if these are equal too."""
    for form in ("{run.folder}", "{run.name} ({number})"):
        counts = Counter(run.name for run in runs)
        for number, run in enumerate(runs, 1):
            if counts[run.name] > 1:
                run.name = form.format(run=run, number=number)


def _write(output_dir: Path, runs: list[EvaluationRun], sections: list[Section]) -> Path:
    prefixes = [f"{run.name}: " if len(runs) > 1 else "" for run in runs]
    page = render(
        f"Report: {' and '.join(run.name for run in runs)}",
        "; ".join(f"{prefix}{run.folder.resolve()}" for prefix, run in zip(prefixes, runs)),
        [f"{prefix}{note}" for prefix, run in zip(prefixes, runs) for note in run.notes],
        sections,
        f"The pictures are also in {PICTURES_NAME}/.",
    )
    items = [item for section in sections for _, column in section.columns for item in column]
    folder, path = output_dir / PICTURES_NAME, output_dir / REPORT_NAME
    try:
        for name in PICTURES:  # of an earlier report
            for old in folder.glob(f"{name}*.png"):
                old.unlink()
        for picture in items:
            if isinstance(picture, Picture):
                with replacing(folder / f"{picture.name}.png") as temporary:
                    temporary.write_bytes(picture.content)
        with replacing(path) as temporary:
            temporary.write_text(page, encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"The report cannot be written to {output_dir} ({error.strerror}). Give another folder."
        ) from error
    return path
