"""Exports of a model for other engines, and the measure of what they lose."""

import lazy_loader


# The public names stand in __init__.pyi.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
