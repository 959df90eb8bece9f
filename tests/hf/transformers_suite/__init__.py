"""transformers' own common tests as a package: what its source distribution has, and stubs of what that leaves out.

Importing it skips the importing test module where the source distribution cannot be had.
"""

import sys
from pathlib import Path

import pytest

from ..source_distribution import find_tests


folder, problem = find_tests()
if folder is None:
    pytest.skip(problem, allow_module_level=True)
# Their modules import each other by relative imports; what they have is found before the stubs beside this file.
__path__.insert(0, str(folder))

pytest.importorskip("parameterized", reason="transformers' tests need `parameterized`, of our extra `test`")
# `utils` beside `tests` is on the path of their tests too.
sys.path.append(str(Path(__file__).parent / "utils"))
