"""The tests that transformers ships in its source distribution, of the installed version."""

import functools
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import transformers
from huggingface_hub import cached_assets_path


@functools.cache  # pip takes its time to give up
def find_tests() -> tuple[Path | None, str | None]:
    """The folder of [`unpacked_tests`], or why there is none."""
    try:
        return unpacked_tests(), None
    except OSError as error:
        return None, str(error)


def unpacked_tests() -> Path:
    """
    The folder `tests` of the source distribution: from the cache, or fetched by pip from where pip is set to look.

    Raises:
        `OSError`: if it is not in the cache and cannot be fetched; with what pip said.
    """
    version = transformers.__version__
    cache = cached_assets_path("ezclip", namespace="transformers-source", subfolder=version)
    if not (cache / "tests").is_dir():
        # Beside its place, so that it is moved there whole; another process may have been faster.
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            unpack_tests(download(version, Path(folder)), Path(folder))
            try:
                os.rename(Path(folder) / "tests", cache / "tests")
            except OSError:
                if not (cache / "tests").is_dir():
                    raise
    return cache / "tests"


def download(version: str, folder: Path) -> Path:
    # pip reads the metadata of what it downloads by its build backend: the installed setuptools, not a fresh one.
    options = ["--no-deps", "--no-binary", "transformers", "--no-build-isolation", "--retries", "1", "--no-input"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), f"transformers=={version}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        said = [line.removeprefix("ERROR: ") for line in result.stderr.splitlines() if line.startswith("ERROR: ")]
        raise OSError(
            f"the source distribution of transformers {version}, which holds its tests, is not in the cache, and pip "
            f"could not download it (is this machine offline?): {said[-1] if said else result.stderr.strip()}"
        )
    return next(folder.glob("transformers-*.tar.gz"))


def unpack_tests(archive: Path, folder: Path):
    with tarfile.open(archive) as tar:
        for member in tar:
            name = member.name.partition("/")[2]  # below the folder of the version
            if name.startswith("tests/") and member.isfile():
                member.name = name
                tar.extract(member, folder, filter="data")
    # One of their modules runs it, and the source distribution leaves it out.
    (folder / "tests" / "__init__.py").touch()
