"""Index the windows of many videos, and find those that a text or a clip describes."""

import lazy_loader


# The public names stand in __init__.pyi.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
