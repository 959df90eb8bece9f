"""transformers' common tests as a package: those in its source distribution, and stubs for those it lacks.

Importing this package skips the importing test module if the source distribution cannot be found.
"""

import sys
from pathlib import Path

import pytest

from tests.hf.source_distribution import find_tests


folder, problem = find_tests()
if folder is None:
    pytest.skip(problem, allow_module_level=True)
# Their modules use relative imports. Their files come before the stubs beside this file.
__path__.insert(0, str(folder))

pytest.importorskip("parameterized", reason="transformers' tests need `parameterized`: pip install ezclip[test]")
# Their tests also expect their folder `utils` on the path.
sys.path.append(str(Path(__file__).parent / "utils"))
