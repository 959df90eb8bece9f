"""Limit a public page to known addresses, small requests and uploaded files."""

import asyncio
import contextlib
import ipaddress
import json
import os
import re
import socket
import time

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send


KEPT_SECONDS = 30 * 60  # of a file
API = "/gradio_api"
FILES = f"{API}/file="
UPLOAD = f"{API}/upload"
# Addresses that the browser and `gradio_client` use. Gradio's other addresses fetch other sites, record visitors, or
# serve developers.
PAGES = {"", "/config", "/theme.css", "/favicon.ico", "/robots.txt", "/manifest.json", "/login_check"}
PAGES |= {f"{API}/{name}" for name in ("upload", "upload_progress", "queue/join", "queue/data", "cancel", "reset")}
PAGES |= {f"{API}/{name}" for name in ("info", "app_id", "startup-events", "theme.css", "login_check")}
FRAMES = re.compile(rf"{API}/stream/\w+(/close)?")  # of a camera
FOLDERS = ("/assets/", "/static/", "/svelte/", f"{API}/heartbeat/", f"{API}/call/")
MAX_REQUEST_BYTES = 2**18  # except uploads
MAX_NAME_CHARACTERS = 100  # of a session
# Form data around an uploaded file. Gradio removes a file that is too large before this is used up.
MAX_ENVELOPE_BYTES = 2**20
MAX_FILES = 1000  # of all visitors
MAX_REQUEST_SECONDS, MAX_UPLOAD_SECONDS = 30, 15 * 60  # until all of it is here: it takes up room
# Headers from which Gradio would take the address for its links
FORWARDING_HEADERS = (b"x-forwarded-host", b"x-forwarded-proto", b"x-forwarded-for", b"x-gradio-server", b"forwarded")


class Guard:
    """
    ASGI middleware that refuses requests which the page does not need, before they reach Gradio.

    Gradio opens or fetches any file that a request names, for every component. The guard refuses requests that name a
    file which was not uploaded. Gradio's links begin with the address that a request says it is for. The guard refuses
    addresses that are not the page's.

    Args:
        app (`ASGIApp`):
            The application that answers the other requests.
        upload_folder (`str`):
            Folder of uploads and results.
        max_upload_bytes (`int`):
            Size of the largest upload, in bytes.
        max_total_bytes (`int`):
            Size of all uploads and results together, in bytes.
        hosts (`tuple[str, ...]`, *optional*):
            Names of this machine, beside its own and the address that a request arrives at; `"*"` is any name.
    """

    def __init__(
        self,
        app: ASGIApp,
        upload_folder: str,
        max_upload_bytes: int,
        max_total_bytes: int,
        hosts: tuple[str, ...] = (),
    ):
        self.app, self.folder, self.max_upload_bytes = app, upload_folder, max_upload_bytes
        self.max_total_bytes, self.expected_bytes = max_total_bytes, 0  # of uploads on their way
        self.hosts = {"localhost", socket.gethostname().lower(), *hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send):
        """Pass on a request that the page needs, and refuse any other."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http" or not self._is_served(scope["path"]):
            return await PlainTextResponse("There is nothing here.", 404)(scope, receive, send)
        if not self._is_own_address(scope):
            text = "The page is not at this address. Who runs it can name the address: `ezclip app --root_path`."
            return await PlainTextResponse(text, 421)(scope, receive, send)
        scope["headers"] = [header for header in scope["headers"] if header[0].lower() not in FORWARDING_HEADERS]
        is_upload = scope["path"].rstrip("/") == UPLOAD
        if is_upload:
            limit, seconds = self.max_upload_bytes + MAX_ENVELOPE_BYTES, MAX_UPLOAD_SECONDS
            what = f"The file is larger than {self.max_upload_bytes / 2**20:g} MB."
        else:
            limit, seconds = MAX_REQUEST_BYTES, MAX_REQUEST_SECONDS
            what = "The request is too large."
        inside = _Request(scope, receive, send, limit, seconds)
        if inside.content_length > limit:
            return await PlainTextResponse(what, 413)(scope, receive, send)
        expected = (inside.content_length or limit) if is_upload else 0
        if is_upload and not self._has_room(expected):
            text = f"The page is full. Files are removed after {KEPT_SECONDS // 60} minutes: try again then."
            return await PlainTextResponse(text, 503)(scope, receive, send)
        self.expected_bytes += expected
        try:
            if scope["method"] == "POST" and not is_upload and (problem := self._find_problem(await inside.read())):
                return await PlainTextResponse(problem, 400)(scope, receive, send)
            await self.app(scope, inside.receive, inside.send)
        except _TooLargeError:
            if not inside.is_answered:
                await PlainTextResponse(what, 413)(scope, receive, send)
        except _TooSlowError:
            if not inside.is_answered:
                await PlainTextResponse("The request took too long to arrive.", 408)(scope, receive, send)
        finally:
            self.expected_bytes -= expected

    def _is_own_address(self, scope: Scope) -> bool:
        """Return whether a request is for an address of this page: any other name may be of somebody else."""
        if "*" in self.hosts:
            return True
        name = next((value for name, value in scope["headers"] if name == b"host"), b"").decode("latin-1").lower()
        name = re.sub(r":\d*$", "", name).strip("[]")
        own = scope.get("server") or ("",)
        with contextlib.suppress(ValueError):
            if ipaddress.ip_address(name).is_loopback:
                return True
        return name == own[0] or name in self.hosts

    def _has_room(self, num_bytes: int) -> bool:
        """Return whether a file of so many bytes fits beside what visitors have uploaded and what is on its way."""
        sizes = []
        for parent, _, names in os.walk(self.folder):
            for name in names:
                with contextlib.suppress(FileNotFoundError):  # another may remove it
                    sizes.append(os.lstat(os.path.join(parent, name)).st_size)
        return len(sizes) < MAX_FILES and sum(sizes) + self.expected_bytes + num_bytes <= self.max_total_bytes

    def _is_served(self, path: str) -> bool:
        if path.startswith(FILES):
            return is_inside(path.removeprefix(FILES), self.folder)
        return path.rstrip("/") in PAGES or path.startswith(FOLDERS) or FRAMES.fullmatch(path) is not None

    def _find_problem(self, body: bytes) -> str | None:
        """Return what is wrong with a request: it names a file that is no upload, say."""
        try:
            waiting = [json.loads(body or "null")]
        except (ValueError, RecursionError):
            return "The request is not JSON."
        while waiting:
            value = waiting.pop()
            if isinstance(value, dict):
                if "path" in value and not is_inside(value["path"], self.folder):
                    return "The request names a file that was not uploaded."
                if len(str(value.get("session_hash"))) > MAX_NAME_CHARACTERS:  # Gradio keeps it
                    return "The name of the session is too long."
                waiting += value.values()
            elif isinstance(value, list):
                waiting += value
        return None


def is_inside(path, folder: str) -> bool:
    """Return whether a path lies in a folder, after links are followed. An address does not."""
    if not isinstance(path, str) or "\0" in path or not os.path.isabs(path):
        return False
    return os.path.realpath(path).startswith(os.path.realpath(folder) + os.sep)


class _TooLargeError(Exception):
    """Raised when a request exceeds its limit, also if it did not state its length."""


class _TooSlowError(Exception):
    """Raised when a request has not arrived in time."""


class _Request:
    """A request that is read up to a limit of bytes and seconds, and can be read again."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, limit: int, seconds: float):
        self._receive, self._send, self.limit = receive, send, limit
        self._deadline, self._is_complete = time.monotonic() + seconds, False
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
        # After the whole request, a message says that the visitor has left.
        seconds = None if self._is_complete else max(self._deadline - time.monotonic(), 0.0)
        try:
            message = await asyncio.wait_for(self._receive(), seconds)
        except TimeoutError:
            raise _TooSlowError from None
        self._is_complete = not message.get("more_body")
        self.num_bytes += len(message.get("body", b""))
        if self.num_bytes > self.limit:
            raise _TooLargeError
        return message
