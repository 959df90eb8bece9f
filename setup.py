"""Packaging of ezclip: the flat modules of the root, which the Hub also gets, become modules of the package."""

import re
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


ROOT = Path(__file__).resolve().parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "ezclip" / "__init__.py").read_text(encoding="utf-8")).group(1)


class BuildWithRootModules(build_py):
    """Adds the root's `*_ezclip.py` to the package, except in an editable install, where they are read in place."""

    def root_modules(self):
        return [] if self.editable_mode else sorted(ROOT.glob("*_ezclip.py"))

    def run(self):
        super().run()
        for source in self.root_modules():
            self.copy_file(str(source), str(Path(self.build_lib) / "ezclip" / source.name))

    def get_outputs(self, include_bytecode=1):
        outputs = super().get_outputs(include_bytecode)
        return outputs + [str(Path(self.build_lib) / "ezclip" / source.name) for source in self.root_modules()]


setup(
    name="ezclip",
    version=VERSION,
    description="Zero-shot video action recognition in transformers: EZ-CLIP, ActionCLIP, ViFi-CLIP, TEAR, CLIP",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    packages=["ezclip", "ezclip.report"],
    package_data={"ezclip.report": ["page.*"]},
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
        "PyYAML>=6.0",
        "psutil>=5.9",
        "requests>=2.32.2",
    ],
    extras_require={
        "plots": ["matplotlib>=3.8"],
        "compare": ["scipy>=1.15"],
        "app": ["gradio>=6.31,<7", "matplotlib>=3.8"],
        "report": ["matplotlib>=3.8", "scipy>=1.15", "scikit-learn>=1.5", "jinja2>=3.1"],
        "onnx": ["onnx>=1.20", "onnxscript>=0.6", "onnxruntime>=1.23"],
        "test": [
            "pytest>=8.0",
            "pytest-xdist>=3.6",
            "ruff>=0.9",
            "setuptools>=64",
            "wheel",
            "matplotlib>=3.8",
            "tensorboard>=2.16",
            "scipy>=1.15",
            "scikit-learn>=1.5",
            "jinja2>=3.1",
            "gradio>=6.31,<7",
            "onnx>=1.20",
            "onnxruntime>=1.23",
            "onnxscript>=0.6",
            "parameterized>=0.9",
            "peft>=0.18",
        ],
    },
    cmdclass={"build_py": BuildWithRootModules},
)
