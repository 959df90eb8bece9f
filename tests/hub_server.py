"""A Hub on this machine for pushing, loading and browsing models, with failures on demand.

It keeps repositories as branches of commits of `{path: bytes}`, takes regular and LFS files as the Hub does, knows
users by their tokens, and answers with the Hub's headers and error codes.
"""

import base64
import hashlib
import http.server
import json
import os
import re
import threading
import urllib.parse
from contextlib import contextmanager
from dataclasses import dataclass, field

import yaml


TOKEN, USER = "hf_of_me", "me"
LFS_ENDINGS = (".safetensors", ".bin", ".pt", ".onnx", ".parquet")
# Tasks of the Hub that a video model could have
PIPELINE_TAGS = {"video-classification", "zero-shot-classification", "zero-shot-image-classification"}
LICENSES = {"mit", "apache-2.0", "cc-by-4.0", "cc-by-nc-4.0", "other"}


@dataclass
class Commit:
    """A state of a repository."""

    files: dict[str, bytes]
    lfs: set[str]
    message: str
    parent: str | None

    @property
    def sha(self) -> str:
        content = hashlib.sha1(f"{self.parent} {self.message}".encode())
        for path, data in sorted(self.files.items()):
            content.update(f"{path} {hashlib.sha256(data).hexdigest()}".encode())
        return content.hexdigest()

    def oid(self, path: str) -> str:
        return oid_of(self.files[path], path in self.lfs)


def oid_of(data: bytes, is_lfs: bool) -> str:
    """Return the Hub's hash of a file: SHA-256 for an LFS file, git's blob hash for others."""
    return hashlib.sha256(data).hexdigest() if is_lfs else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Repository:
    """A repository: the commits of its branches, the latest last."""

    private: bool
    branches: dict[str, list[Commit]] = field(default_factory=dict)

    def head(self, revision: str = "main") -> Commit | None:
        """Return the last commit of a branch, or the commit with a hash."""
        if revision in self.branches:
            return self.branches[revision][-1]
        return next((c for commits in self.branches.values() for c in commits if c.sha == revision), None)


@dataclass
class Failure:
    """An error that the next matching requests get."""

    method: str
    path: re.Pattern
    times: float
    status: int | None  # none: the connection is cut
    after_bytes: int = 0
    message: str = ""


class LoopbackHub:
    """
    The Hub and its state. `environment` makes a process use it.

    ```python
    with LoopbackHub().serving() as hub:
        hub.fail("PUT", "/lfs/", times=1, status=500)
        subprocess.run([...], env={**os.environ, **hub.environment})
        assert "config.json" in hub.repositories["me/model"].head().files
    ```
    """

    def __init__(self):
        self.tokens = {TOKEN: USER}
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.failures: list[Failure] = []
        self.lock = threading.RLock()
        self.url = None

    @contextmanager
    def serving(self):
        handler = type("Handler", (HubHandler,), {"hub": self})
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            self.url = f"http://127.0.0.1:{server.server_port}"
            threading.Thread(target=server.serve_forever, daemon=True).start()
            try:
                yield self
            finally:
                server.shutdown()

    @property
    def environment(self) -> dict[str, str]:
        return {
            "HF_ENDPOINT": self.url,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }

    def fail(
        self, method: str, path: str, times: float = 1, status: int | None = None, after_bytes: int = 0, message=""
    ):
        """Answer the next requests whose path matches with an error, or cut their connections."""
        self.failures.append(Failure(method, re.compile(path), times, status, after_bytes, message))

    def add(self, repo_id: str, files: dict[str, bytes] | os.PathLike, private: bool = False, branch: str = "main"):
        """Add files, or the files of a folder, to a repository as one commit."""
        if not isinstance(files, dict):
            files = {path.name: path.read_bytes() for path in files.iterdir() if path.is_file()}
        repository = self.repositories.setdefault(repo_id, Repository(private))
        commits = repository.branches.setdefault(branch, [Commit({}, set(), "initial commit", None)])
        lfs = {path for path in files if path.endswith(LFS_ENDINGS)}
        commits.append(Commit({**commits[-1].files, **files}, commits[-1].lfs | lfs, "add", commits[-1].sha))

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        return self.repositories[repo_id].head(revision).files

    def asked(self, method: str, path: str) -> list[str]:
        """Return the paths of the matching requests so far."""
        return [asked for asked_method, asked in self.requests if asked_method == method and re.search(path, asked)]


class HubHandler(http.server.BaseHTTPRequestHandler):
    """Answer requests as the Hub does. `hub` is its state."""

    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def handle_any(self):
        path, _, query = self.path.partition("?")
        self.query = dict(urllib.parse.parse_qsl(query))
        self.hub.requests.append((self.command, self.path))
        if self.fail_on_demand():
            return
        self.body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        for method, pattern, answer in ROUTES:
            if method == ("GET" if self.command == "HEAD" else self.command) and (m := re.fullmatch(pattern, path)):
                with self.hub.lock:
                    return answer(self, *map(urllib.parse.unquote, m.groups()))
        self.error(404, "EntryNotFound", f"no such address: {self.command} {path}")

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def fail_on_demand(self) -> bool:
        """Answer with a failure on demand; return whether there was one."""
        for failure in self.hub.failures:
            if failure.times > 0 and failure.method == self.command and failure.path.search(self.path):
                failure.times -= 1
                if failure.status is None:
                    self.rfile.read(min(failure.after_bytes, int(self.headers["Content-Length"] or 0)))
                    self.close_connection = True
                    self.connection.close()
                    return True
                self.rfile.read(int(self.headers["Content-Length"] or 0))
                self.error(failure.status, None, failure.message or f"failure {failure.status} on demand")
                return True
        return False

    # Answers

    def reply(self, status=200, content=b"", **headers):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def error(self, status: int, code: str | None, message: str):
        headers = {"X_Error_Message": message, **({"X_Error_Code": code} if code else {})}
        self.reply(status, {"error": message}, Content_Type="application/json", **headers)

    # Users and commits

    @property
    def user(self) -> str | None:
        return self.hub.tokens.get((self.headers["Authorization"] or "").removeprefix("Bearer "))

    def may_write(self, repo_id: str) -> bool:
        if self.user is None:
            self.error(401, None, "Invalid credentials in Authorization header")
        elif repo_id.partition("/")[0] != self.user:
            self.error(403, None, f"You don't have the rights to write to {repo_id}")
        else:
            return True
        return False

    def find_commit(self, repo_id: str, revision: str = "main") -> Commit | None:
        """Return a commit, or answer with an error if it does not exist or the user may not read it."""
        repository = self.hub.repositories.get(repo_id)
        if repository is None or (repository.private and repo_id.partition("/")[0] != self.user):
            self.error(404 if self.user else 401, "RepoNotFound", "Repository not found")
            return None
        if (commit := repository.head(revision)) is None:
            self.error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    # Requests

    def whoami(self):
        if self.user is None:
            return self.error(401, None, "Invalid credentials in Authorization header")
        self.reply(content={"type": "user", "name": self.user, "orgs": []})

    def create(self):
        asked = json.loads(self.body)
        repo_id = f"{asked.get('organization') or self.user}/{asked['name']}"
        if not self.may_write(repo_id):
            return
        url = {"url": f"{self.hub.url}/{repo_id}"}
        if repo_id in self.hub.repositories:
            return self.reply(409, {**url, "error": "You already created this model repo"})
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.add(repo_id, {".gitattributes": b"*.safetensors filter=lfs\n"}, private)
        self.reply(content=url)

    def validate_yaml(self):
        errors, warnings = check_metadata(json.loads(self.body)["content"])
        content = {
            "errors": [{"message": message} for message in errors],
            "warnings": [{"message": message} for message in warnings],
        }
        self.reply(400 if errors else 200, content, Content_Type="application/json")

    def preupload(self, repo_id, revision):
        if not self.may_write(repo_id) or (commit := self.find_commit(repo_id, revision)) is None:
            return
        answers = []
        for file in json.loads(self.body)["files"]:
            path, is_large = file["path"], file["size"] > 10 * 2**20 or file["path"].endswith(LFS_ENDINGS)
            answer = {"path": path, "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False}
            answers.append({**answer, **({"oid": commit.oid(path)} if path in commit.files else {})})
        self.reply(content={"files": answers})

    def lfs_batch(self, repo_id):
        if not self.may_write(repo_id):
            return
        objects = [{"oid": item["oid"], "size": item["size"]} for item in json.loads(self.body)["objects"]]
        for item in objects:
            if item["oid"] not in self.hub.blobs:
                upload = {"href": f"{self.hub.url}/lfs/{item['oid']}"}
                item["actions"] = {"upload": upload, "verify": {"href": f"{self.hub.url}/lfs-verify"}}
        self.reply(content={"transfer": "basic", "objects": objects})

    def lfs_put(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self.error(400, None, "The content does not match its SHA-256")
        self.hub.blobs[oid] = self.body
        self.reply()

    def lfs_verify(self):
        asked = json.loads(self.body)
        if len(self.hub.blobs.get(asked["oid"], b"")) != asked["size"]:
            return self.error(404, None, "The file has not arrived")
        self.reply()

    def branch(self, repo_id, name):
        if not self.may_write(repo_id) or (start := self.find_commit(repo_id)) is None:
            return
        branches = self.hub.repositories[repo_id].branches
        if name in branches:
            return self.error(409, None, "Reference already exists")
        branches[name] = [start]
        self.reply()

    def commit(self, repo_id, revision):
        if not self.may_write(repo_id) or (parent := self.find_commit(repo_id, revision)) is None:
            return
        lines = [json.loads(line) for line in self.body.splitlines()]
        header, files, lfs = lines[0]["value"], dict(parent.files), set(parent.lfs)
        if header.get("parentCommit", parent.sha) != parent.sha:
            return self.error(412, None, "A commit has happened since. Please refresh and try again.")
        for line in lines[1:]:
            kind, value = line["key"], line["value"]
            path = value["path"]
            if kind == "lfsFile" and value["oid"] not in self.hub.blobs:
                return self.error(400, None, f"{path} was not uploaded")
            if kind == "deletedFile" and path not in files:
                return self.error(404, "EntryNotFound", f"{path}: A file with this name doesn't exist")
            if kind in ("deletedFile", "deletedFolder"):
                files = {name: data for name, data in files.items() if not (name + "/").startswith(path + "/")}
            elif kind == "lfsFile":
                files[path] = self.hub.blobs[value["oid"]]
                lfs.add(path)
            else:
                files[path] = base64.b64decode(value["content"])
                lfs.discard(path)
        new = Commit(files, lfs & files.keys(), header["summary"], parent.sha)
        branches, answer = self.hub.repositories[repo_id].branches, {}
        if self.query.get("create_pr"):
            number = 1 + sum(name.startswith("refs/pr/") for name in branches)
            revision = f"refs/pr/{number}"
            answer["pullRequestUrl"] = f"{self.hub.url}/{repo_id}/discussions/{number}"
        branches.setdefault(revision, []).append(new)
        self.reply(content={"commitOid": new.sha, "commitUrl": f"{self.hub.url}/{repo_id}/commit/{new.sha}", **answer})

    def info(self, repo_id, revision="main"):
        if (commit := self.find_commit(repo_id, revision)) is None:
            return
        metadata, _ = split_card(commit.files.get("README.md", b"").decode())
        card = yaml.safe_load(metadata or "{}")
        self.reply(
            content={
                "id": repo_id,
                "modelId": repo_id,
                "sha": commit.sha,
                "private": self.hub.repositories[repo_id].private,
                "siblings": [{"rfilename": path} for path in sorted(commit.files)],
                "pipeline_tag": card.get("pipeline_tag"),
                "library_name": card.get("library_name"),
                "tags": card.get("tags", []),
                "cardData": card,
            }
        )

    def tree(self, repo_id, revision):
        if (commit := self.find_commit(repo_id, revision)) is None:
            return
        entries = []
        for path, data in sorted(commit.files.items()):
            entry = {"type": "file", "path": path, "size": len(data), "oid": commit.oid(path)}
            if path in commit.lfs:
                entry |= {"lfs": {"oid": commit.oid(path), "size": len(data), "pointerSize": 134}}
            entries.append(entry)
        self.reply(content=entries)

    def resolve(self, repo_id, revision, path):
        if (commit := self.find_commit(repo_id, revision)) is None:
            return
        if path not in commit.files:
            headers = {"X_Error_Code": "EntryNotFound", "X_Error_Message": "Entry not found"}
            return self.reply(404, X_Repo_Commit=commit.sha, **headers)
        data, headers = commit.files[path], {"X_Repo_Commit": commit.sha, "ETag": f'"{commit.oid(path)}"'}
        if path in commit.lfs:
            headers |= {"X_Linked_Etag": f'"{commit.oid(path)}"', "X_Linked_Size": str(len(data))}
        if found := re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or ""):
            start = int(found[1])
            return self.reply(206, data[start:], **headers, Content_Range=f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.reply(content=data, **headers)


# The names of the oldest models have no slash.
NAME = r"([^/]+(?:/[^/]+)?)"
ROUTES = (
    ("GET", r"/api/whoami-v2", HubHandler.whoami),
    ("POST", r"/api/repos/create", HubHandler.create),
    ("POST", r"/api/validate-yaml", HubHandler.validate_yaml),
    ("POST", rf"/api/models/{NAME}/preupload/([^/]+)", HubHandler.preupload),
    ("POST", rf"/{NAME}\.git/info/lfs/objects/batch", HubHandler.lfs_batch),
    ("PUT", r"/lfs/([0-9a-f]+)", HubHandler.lfs_put),
    ("POST", r"/lfs-verify", HubHandler.lfs_verify),
    ("POST", rf"/api/models/{NAME}/branch/([^/]+)", HubHandler.branch),
    ("POST", rf"/api/models/{NAME}/commit/([^/]+)", HubHandler.commit),
    ("GET", rf"/api/models/{NAME}/revision/([^/]+)", HubHandler.info),
    ("GET", rf"/api/models/{NAME}/tree/([^/]+)", HubHandler.tree),
    ("GET", rf"/{NAME}/resolve/([^/]+)/(.+)", HubHandler.resolve),
    ("GET", rf"/api/models/{NAME}", HubHandler.info),
)


def split_card(content: str) -> tuple[str | None, str]:
    """Split a card into its metadata and its text."""
    found = re.match(r"---\r?\n(.*?)\r?\n---\r?\n(.*)\Z", content, re.DOTALL)
    return (found[1], found[2]) if found else (None, content)


def check_metadata(content: str) -> tuple[list[str], list[str]]:
    """Return errors and warnings for the metadata of a card, by the Hub's rules for models."""
    metadata, _ = split_card(content)
    if metadata is None:
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        card = yaml.safe_load(metadata)
    except yaml.YAMLError as error:
        return [f"the metadata is not YAML: {error}"], []
    if not isinstance(card, dict):
        return ["the metadata is no mapping"], []
    errors, warnings = [], []
    if "license" in card and card["license"] not in LICENSES:
        errors.append(f'"license" must be one of {sorted(LICENSES)}')
    if "pipeline_tag" in card and card["pipeline_tag"] not in PIPELINE_TAGS:
        warnings.append(f'The pipeline tag "{card["pipeline_tag"]}" is not in the official list')
    for name in ("base_model", "datasets"):
        values = card.get(name, [])
        for value in values if isinstance(values, list) else [values]:
            if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(value)):
                errors.append(f'"{name}" with value {value!r} is not valid: use a name on the Hub')
    for entry in card.get("model-index", []):
        for result in entry.get("results", []):
            if not result.get("task", {}).get("type") or not all(
                result.get("dataset", {}).get(k) for k in ("type", "name")
            ):
                errors.append('"model-index" results need a task with a type, and a data set with type and name')
            if not result.get("metrics") or any("type" not in m or "value" not in m for m in result["metrics"]):
                errors.append('"model-index" metrics need type and value')
        if not entry.get("name"):
            errors.append('"model-index" needs the name of the model')
    return errors, warnings
