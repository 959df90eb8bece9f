"""Write an HTML page about one or several evaluations."""

import lazy_loader


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

# The public names stand in __init__.pyi.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
