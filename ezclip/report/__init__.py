"""`predictions.jsonl` as a page to look at: figures, pictures and sample frames of one evaluation, or of several."""

try:
    import jinja2  # noqa: F401
    import matplotlib  # noqa: F401
    import scipy  # noqa: F401
    import sklearn  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"A report needs {error.name}. Run `pip install 'ezclip[report]'`, or `pip install matplotlib scipy "
        "scikit-learn jinja2`."
    ) from error

from .reading import EvaluationRun, read_run
from .writing import write_report


__all__ = ["EvaluationRun", "read_run", "write_report"]
