"""What the tests share: the reference data beside the repository, and small models and videos that they make."""

import os
from pathlib import Path

import pytest


# Nothing in the tests reaches the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


def shared_path(*parts: str) -> Path:
    """A path in the reference data; the test is skipped where it is absent."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs the reference data ../shared/{'/'.join(parts)}, which is not here")
    return path
