"""Stub of their tests of exporters, which the source distribution lacks."""


class ExportTesterMixin:
    """A mixin without tests."""
