"""Stands for their tests of `generate`, which the source distribution leaves out; ours are no generative models."""


class GenerationTesterMixin:
    """Without tests."""
