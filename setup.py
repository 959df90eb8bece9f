"""Packaging of ezclip: the package, and the top-level modules that a checkpoint on the Hub carries too."""

import re
from pathlib import Path

from setuptools import find_packages, setup


ROOT = Path(__file__).resolve().parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "ezclip" / "__init__.py").read_text(encoding="utf-8")).group(1)
URL = "https://github.com/ezclip/ezclip"

PLOTS = ["matplotlib>=3.8"]
APP = ["gradio>=6.31,<7", *PLOTS]
COMPARE = ["scipy>=1.15"]
REPORT = [*PLOTS, *COMPARE, "scikit-learn>=1.5"]
PE = ["timm>=1.0.16"]
OPENVINO = ["openvino>=2025.4", "nncf>=3.0"]
ONNX = ["onnx>=1.20", "onnxscript>=0.6", "onnxruntime>=1.23"]


def long_description() -> str:
    """Return the README with absolute links: the page on PyPI has no files beside it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    pictures = re.sub(r"(!\[[^\]]*\]\()(?!https?:)", rf"\1{URL}/raw/main/", text)
    return re.sub(r"(\]\()(?!https?:|#)", rf"\1{URL}/blob/main/", pictures)


setup(
    name="ezclip",
    version=VERSION,
    description="Zero-shot video action recognition in transformers: EZ-CLIP, ActionCLIP, ViFi-CLIP, TEAR, CLIP",
    long_description=long_description(),
    long_description_content_type="text/markdown",
    license="MIT",
    url=URL,
    project_urls={
        "Documentation": f"{URL}/tree/main/docs",
        "Issues": f"{URL}/issues",
        "Changelog": f"{URL}/blob/main/CHANGELOG.md",
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    py_modules=[
        "checkpoint_ezclip",
        "configuration_ezclip",
        "modeling_ezclip",
        "pipeline_ezclip",
        "processing_ezclip",
        "run_video_zeroshot",
        "video_ezclip",
    ],
    packages=find_packages(include=["ezclip", "ezclip.*"]),
    package_data={
        "": ["*.pyi"],
        "ezclip": ["py.typed"],
        "ezclip.configs": ["*.yaml", "datasets/*.yaml"],
        "ezclip.hub": ["*.md"],
        "ezclip.report": ["page.*"],
    },
    entry_points={"console_scripts": ["ezclip = ezclip.cli.main:main"]},
    python_requires=">=3.11",
    install_requires=[
        "torch>=2.6",
        "transformers>=5.6.2",
        "datasets>=4.0",
        "accelerate>=1.13",
        "evaluate>=0.4.6",
        # decord publishes no wheels for macOS on Arm, nor for Linux on Arm
        'decord>=0.6.0; platform_machine == "x86_64" or platform_machine == "AMD64"',
        "safetensors>=0.4.3",
        "Pillow>=10.0",
        "av>=17.0",
        "ruamel.yaml>=0.18",
        "lazy-loader>=0.4",
        "psutil>=5.9",
        "filelock>=3.12",
        "requests>=2.32.2",
        "jinja2>=3.1",
    ],
    extras_require={
        "plots": PLOTS,
        "compare": COMPARE,
        "app": APP,
        "report": REPORT,
        "onnx": ONNX,
        # Its exports start from ONNX, and intervals of the agreement need scipy.
        "openvino": [*OPENVINO, *ONNX, *COMPARE],
        "pe": PE,
        "mteb": ["mteb>=2.26"],
        "faiss": ["faiss-cpu>=1.9"],
        # From 2.64 on, map_batches takes no max_restarts
        "ray": ["ray[data]>=2.60,<2.64"],
        # Formatting the signatures of the API reference needs ruff
        "docs": ["mkdocs>=1.6", "mkdocs-material>=9.6", "mkdocstrings[python]>=1.0", "ruff>=0.9"],
        "test": [
            *APP,
            *REPORT,
            *ONNX,
            "basedpyright>=1.30",
            "import-linter>=2.3",
            "ipykernel>=6.29",
            "nbclient>=0.10",
            "parameterized>=0.9",
            "peft>=0.18",
            "pytest>=8.0",
            "pytest-xdist>=3.6",
            "ruff>=0.9",
            "setuptools>=64",
            "tensorboard>=2.16",
            "wheel",
        ],
    },
)
