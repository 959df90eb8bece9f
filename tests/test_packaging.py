"""The package as users get it: from a wheel, a source distribution or a clone."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile

import pytest

from tests.helpers import ROOT


ROOT_MODULES = {
    "checkpoint_ezclip",
    "configuration_ezclip",
    "modeling_ezclip",
    "pipeline_ezclip",
    "processing_ezclip",
    "video_ezclip",
}
PROGRAM = """
import os
import modeling_ezclip  # before ezclip: a root module works without the package
import ezclip, run_video_zeroshot
from ezclip.cli.main import COMMANDS
print(*(os.path.dirname(module.__file__) for module in (modeling_ezclip, run_video_zeroshot)))
print(ezclip.EZClipConfig().model_type)
"""


def run(*command, cwd, **environment) -> str:
    environment = {**os.environ, "PYTHONPATH": "", **environment}
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def pip(*argv, cwd):
    pytest.importorskip("setuptools")
    pytest.importorskip("wheel")
    # No build isolation: it would fetch setuptools
    run(sys.executable, "-m", "pip", *argv, "--no-deps", "--no-build-isolation", "--no-index", "-q", cwd=cwd)


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """The files that git tracks or would track, as in a fresh clone."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode != 0:
        pytest.skip("needs git and a checkout")
    root = tmp_path_factory.mktemp("clone")
    for name in filter(lambda name: (ROOT / name).is_file(), listed.stdout.splitlines()):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes((ROOT / name).read_bytes())
    return root


@pytest.fixture(scope="module")
def wheel(clone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", str(clone), "-w", str(folder), cwd=folder)
    return next(folder.glob("ezclip-*.whl"))


def test_files_of_the_wheel(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    top_level = {name for name in names if "/" not in name}
    assert top_level == {f"{name}.py" for name in (*ROOT_MODULES, "run_video_zeroshot")}
    # Every file of the package, data and type stubs too
    package = {path.relative_to(ROOT).as_posix() for path in (ROOT / "ezclip").rglob("*.*")}
    package = {name for name in package if not name.endswith(".pyc") and (ROOT / name).is_file()}
    assert package == {name for name in names if name.startswith("ezclip/")}
    kinds = {"ezclip/py.typed", "ezclip/data/__init__.pyi", "ezclip/configs/zero_shot.yaml"}
    assert kinds | {"ezclip/hub/model_card_template.md", "ezclip/report/page.html"} <= names
    assert {name.split("/")[0].rsplit(".", 1)[-1] for name in names - top_level} == {"ezclip", "dist-info"}


def test_links_of_the_description_are_absolute(wheel):
    """The page of a package index has no files beside it."""
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith("METADATA"))
    links = re.findall(r"\]\(([^)\s]+)\)", archive.read(name).decode())
    assert len(links) > 10
    assert all(link.startswith(("https://", "#")) for link in links)
    assert any(link.endswith("/raw/main/docs/pictures/directions.png") for link in links)


@pytest.mark.parametrize("source", ["wheel", "sdist"])
def test_installation(request, clone, tmp_path, source):
    site = tmp_path / "site"
    if source == "wheel":
        package = request.getfixturevalue("wheel")
    else:
        run(sys.executable, "setup.py", "-q", "sdist", "-d", str(tmp_path), cwd=clone)
        with tarfile.open(next(tmp_path.glob("ezclip-*.tar.gz"))) as archive:
            archive.extractall(tmp_path, filter="data")
        (package,) = (path for path in tmp_path.glob("ezclip-*") if path.is_dir())
    pip("install", str(package), "--target", str(site), cwd=tmp_path)
    printed = run(sys.executable, "-P", "-c", PROGRAM, cwd=tmp_path, PYTHONPATH=str(site))
    assert printed.split() == [str(site), str(site), "ezclip"]
    script = next(path for path in (site / "bin", site / "Scripts") if path.exists()) / "ezclip"
    printed = run(sys.executable, "-P", str(script), "--help", cwd=tmp_path, PYTHONPATH=str(site))
    assert {"run", "demo", "convert"} <= set(printed.split())


def test_clone_without_installation(clone):
    printed = run(sys.executable, "-c", PROGRAM, cwd=clone)
    assert printed.split() == [str(clone), str(clone), "ezclip"]
