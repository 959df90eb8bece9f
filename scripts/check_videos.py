#!/usr/bin/env python
"""Run `ezclip check` from a clone."""

import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ezclip.cli.check import main


if __name__ == "__main__":
    sys.exit(main())
