"""Stub of their tests of `generate`, which the source distribution lacks; our models do not generate."""


class GenerationTesterMixin:
    """A mixin without tests."""
