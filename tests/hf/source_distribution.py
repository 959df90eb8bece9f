"""Find the tests in the source distribution of the installed transformers."""

import functools
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import transformers
from huggingface_hub import cached_assets_path


@functools.cache  # a failing pip takes long
def find_tests() -> tuple[Path | None, str | None]:
    """Return the folder of [`unpacked_tests`], or the reason why there is none."""
    try:
        return unpacked_tests(), None
    except OSError as error:
        return None, str(error)


def unpacked_tests() -> Path:
    """
    Return the folder `tests` of the source distribution, from the cache or downloaded by pip.

    Raises:
        `OSError`: if it is not in the cache and cannot be downloaded.
    """
    version = transformers.__version__
    cache = cached_assets_path("ezclip", namespace="transformers-source", subfolder=version)
    if not (cache / "tests").is_dir():
        # Unpack beside the final folder and rename; another process may have been faster.
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            unpack_tests(download(version, Path(folder)), Path(folder))
            try:
                os.rename(Path(folder) / "tests", cache / "tests")
            except OSError:
                if not (cache / "tests").is_dir():
                    raise
    return cache / "tests"


def download(version: str, folder: Path) -> Path:
    # Without build isolation pip uses the installed setuptools to read the metadata.
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
    # One of their modules imports it, and the source distribution lacks it.
    (folder / "tests" / "__init__.py").touch()
