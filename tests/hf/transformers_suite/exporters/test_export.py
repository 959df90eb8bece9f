"""Stands for their tests of exporters, which the source distribution leaves out."""


class ExportTesterMixin:
    """Without tests."""
