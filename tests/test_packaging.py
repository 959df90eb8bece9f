"""The package as it is installed: from a wheel, from a source distribution, in place."""

import subprocess
import sys
import tarfile
import zipfile

import pytest

from tests.helpers import ROOT


PROGRAM = """
import ezclip, modeling_ezclip, os
print(os.path.dirname(modeling_ezclip.__file__))
print(ezclip.EZClipConfig().model_type)
"""
ROOT_MODULES = sorted(path.name for path in ROOT.glob("*_ezclip.py"))


def pip(*argv, cwd):
    pytest.importorskip("setuptools")
    pytest.importorskip("wheel")
    # No build isolation: it would fetch setuptools
    command = [sys.executable, "-m", "pip", *argv, "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """The files that git tracks or would, as a fresh clone has them."""
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


def test_wheel_holds_the_root_modules(clone, tmp_path):
    pip("wheel", str(clone), "-w", str(tmp_path), cwd=tmp_path)
    (wheel,) = tmp_path.glob("ezclip-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {*ROOT_MODULES, "run_video_zeroshot.py", "ezclip/py.typed", "ezclip/data/__init__.pyi"} <= set(names)
    assert {"ezclip/configs/zero_shot.yaml", "ezclip/report/page.html"} <= set(names)
    assert not any(name.startswith(("tests", "scripts")) for name in names)


@pytest.mark.parametrize("source", ["wheel", "sdist"])
def test_an_installation_imports_from_anywhere(clone, tmp_path, source):
    place = clone
    if source == "sdist":
        subprocess.run([sys.executable, "setup.py", "-q", "sdist", "-d", tmp_path], cwd=clone, check=True)
        with tarfile.open(next(tmp_path.glob("ezclip-*.tar.gz"))) as archive:
            archive.extractall(tmp_path, filter="data")
        (place,) = (path for path in tmp_path.glob("ezclip-*") if path.is_dir())
    pip("install", str(place), "--target", str(tmp_path / "site"), cwd=tmp_path)
    program = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n{PROGRAM}"
    result = subprocess.run(
        [sys.executable, "-P", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == [str(tmp_path / "site"), "ezclip"]


def test_a_clone_imports_without_installation(clone):
    result = subprocess.run([sys.executable, "-c", PROGRAM], cwd=clone, capture_output=True, text=True, check=True)
    assert result.stdout.split() == [str(clone), "ezclip"]
