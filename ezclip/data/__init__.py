"""Sources of videos, label lists, splits, datasets and loaders."""

import lazy_loader


# The public names are listed in __init__.pyi.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
