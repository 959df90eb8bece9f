"""Published systems: presets, loading, tokenizer files, multiply-accumulates, citations."""

import lazy_loader


# The public names are listed in __init__.pyi.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
