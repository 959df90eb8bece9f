"""Pytest from the repository's root: makes `ezclip` importable without an installation."""
