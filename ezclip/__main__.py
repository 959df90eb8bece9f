"""Run `python -m ezclip`."""

import sys

from ezclip.cli.main import main


sys.exit(main())
