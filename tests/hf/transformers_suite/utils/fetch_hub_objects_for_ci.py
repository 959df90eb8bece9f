"""Stub of their cache of Hub files: a URL stays a URL, and its test fetches it or is skipped."""


def url_to_local_path(url: str) -> str:
    return url
