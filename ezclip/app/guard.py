"""Limit a public page to known addresses, small requests and uploaded files."""

import json
import os

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send


API = "/gradio_api"
FILES = f"{API}/file="
UPLOAD = f"{API}/upload"
# Addresses that the browser and `gradio_client` use. Gradio has others, to fetch other sites, to record visitors, and
# for developers.
PAGES = {"", "/config", "/theme.css", "/favicon.ico", "/robots.txt", "/manifest.json", "/login_check"}
PAGES |= {f"{API}/{name}" for name in ("upload", "upload_progress", "queue/join", "queue/data", "cancel", "reset")}
PAGES |= {f"{API}/{name}" for name in ("info", "app_id", "startup-events", "theme.css", "login_check")}
FOLDERS = ("/assets/", "/static/", "/svelte/", f"{API}/heartbeat/", f"{API}/call/")
MAX_REQUEST_BYTES = 2**18  # except uploads
# Form data around an uploaded file. Gradio removes a file that is too large before this is used up.
MAX_ENVELOPE_BYTES = 2**20


class Guard:
    """
    Refuse requests that the page does not need, before they reach Gradio. It is an ASGI middleware.

    Gradio opens or fetches any file that a request names, for every component. The guard refuses requests that name a
    file which was not uploaded.

    Args:
        app (`ASGIApp`):
            The application for the other requests.
        upload_folder (`str`):
            Folder of uploads and results.
        max_upload_bytes (`int`):
            Size of the largest upload, in bytes.
    """

    def __init__(self, app: ASGIApp, upload_folder: str, max_upload_bytes: int):
        self.app, self.folder, self.max_upload_bytes = app, upload_folder, max_upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send):
        """Pass on a request that the page needs, and refuse any other."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http" or not self._is_served(scope["path"]):
            return await PlainTextResponse("Not found.", 404)(scope, receive, send)
        is_upload = scope["path"].rstrip("/") == UPLOAD
        limit = self.max_upload_bytes + MAX_ENVELOPE_BYTES if is_upload else MAX_REQUEST_BYTES
        inside = _Request(scope, receive, send, limit)
        try:
            if inside.content_length > limit:
                raise _TooLargeError
            if scope["method"] == "POST" and not is_upload and not self._names_uploads(await inside.read()):
                refusal = PlainTextResponse("The request names a file that was not uploaded.", 400)
                return await refusal(scope, receive, send)
            await self.app(scope, inside.receive, inside.send)
        except _TooLargeError:
            if not inside.is_answered:
                largest_file = f"The file must have at most {self.max_upload_bytes / 2**20:g} MB."
                text = largest_file if is_upload else "The request is too large."
                await PlainTextResponse(text, 413)(scope, receive, send)

    def _is_served(self, path: str) -> bool:
        if path.startswith(FILES):
            return is_inside(path.removeprefix(FILES), self.folder)
        return path.rstrip("/") in PAGES or path.startswith(FOLDERS)

    def _names_uploads(self, body: bytes) -> bool:
        """Return whether all files of a request are uploads."""
        try:
            waiting = [json.loads(body or "null")]
        except (ValueError, RecursionError):
            return False
        while waiting:
            value = waiting.pop()
            if isinstance(value, dict):
                if "path" in value and not is_inside(value["path"], self.folder):
                    return False
                waiting += value.values()
            elif isinstance(value, list):
                waiting += value
        return True


def is_inside(path, folder: str) -> bool:
    """Return whether a path lies in a folder, after links are followed. An address does not."""
    if not isinstance(path, str) or "\0" in path or not os.path.isabs(path):
        return False
    return os.path.realpath(path).startswith(os.path.realpath(folder) + os.sep)


class _TooLargeError(Exception):
    """Raised when a request exceeds its limit, also if it did not state its length."""


class _Request:
    """Read a request up to a limit, and let the application read it again."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, limit: int):
        self._receive, self._send, self.limit = receive, send, limit
        self.num_bytes, self.is_answered, self._read = 0, False, []
        lengths = [value for name, value in scope["headers"] if name == b"content-length" and value.isdigit()]
        self.content_length = int(lengths[0]) if lengths else 0

    async def read(self) -> bytes:
        while not self._read or self._read[-1].get("more_body"):
            self._read.append(await self._receive_more())
        return b"".join(message.get("body", b"") for message in self._read)

    async def receive(self) -> dict:
        return self._read.pop(0) if self._read else await self._receive_more()

    async def send(self, message: dict):
        self.is_answered = True
        await self._send(message)

    async def _receive_more(self) -> dict:
        message = await self._receive()
        self.num_bytes += len(message.get("body", b""))
        if self.num_bytes > self.limit:
            raise _TooLargeError
        return message
