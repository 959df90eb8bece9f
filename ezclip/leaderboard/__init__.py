"""Evaluate a model on the video tasks of `mteb` (MVEB, the Massive Video Embedding Benchmark)."""

import lazy_loader


# The public names stand in __init__.pyi.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
