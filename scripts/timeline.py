#!/usr/bin/env python
"""Run `ezclip timeline` from a clone."""

import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ezclip.cli.timeline import main


if __name__ == "__main__":
    sys.exit(main())
