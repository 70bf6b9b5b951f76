"""A stand-in for the Hugging Face Hub, on loopback, for the real `huggingface_hub` client.

    with StandInHub() as hub:                       # and HF_ENDPOINT=hub.url, before any HF import
        model.push_to_hub("user/name")
        hub.files("user/name")["config.json"]       # what a visitor sees

It keeps model, dataset and Space repositories in memory: each commit is a complete mapping from
path to content, and only a commit request that arrived whole makes one. Large files come by LFS
(batch, then PUT), small ones inside the commit. Writing needs a token, any token; its owner is
"user". Faults can be set: `fail_next`, `cut_next_upload`, `cut_next_download`, `delay`; each at any
request, or only at those whose "METHOD /path" a regular expression finds.
"""

import base64
import hashlib
import json
import math
import re
import sys
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".parquet", ".arrow", ".bin", ".npy", ".png", ".wav", ".gz", ".zip")


def git_hash(content: bytes) -> str:
    """The name that git gives a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_lfs(path: str) -> bool:
    return path.endswith(LFS_SUFFIXES)


def etag(path: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if is_lfs(path) else git_hash(content)


class HubError(Exception):
    """An answer other than 200; `code` is what the client turns into its own exception."""

    def __init__(self, status: int, message: str, code: str | None = None, **more):
        super().__init__(message)
        self.status, self.code, self.answer = status, code, {"error": message} | more


@dataclass
class Fault:
    """What goes wrong with the next `left` requests whose "METHOD /path" matches `on`."""

    kind: str
    on: str
    left: float
    value: float = 0

    def suffers(self, kind: str, request: str) -> bool:
        return self.kind == kind and self.left > 0 and re.search(self.on, request) is not None


class StandInHub:
    """The server and its repositories. Thread-safe; `url` is what HF_ENDPOINT should be."""

    def __init__(self):
        self.repos: dict[tuple[str, str], dict[str, dict[str, bytes]]] = {}  # commit sha -> files
        self.blobs: dict[str, bytes] = {}  # LFS uploads by sha256; visible once a commit names them
        self.requests: list[tuple[str, str]] = []  # (method, path) of each that was made
        self.lock = threading.Lock()
        self.faults: list[Fault] = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = _Server(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def files(self, repo_id: str, repo_type: str = "model") -> dict[str, bytes]:
        """What the last commit holds; empty where there is no such repository."""
        with self.lock:
            commits = self.repos.get((repo_type, repo_id))
            return dict(list(commits.values())[-1]) if commits else {}

    def fail_next(self, n: float, status: int = 500, on: str = "") -> None:
        """The next `n` requests are answered with this status. The client tries most 5xx again."""
        self.faults.append(Fault("fail", on, n, status))

    def cut_next_upload(self, times: float = 1, on: str = "^PUT /lfs/") -> None:
        """The next uploads break off half way, without an answer."""
        self.faults.append(Fault("cut_upload", on, times))

    def cut_next_download(self, times: float = 1, on: str = "/resolve/") -> None:
        """The next downloads break off half way."""
        self.faults.append(Fault("cut_download", f"^GET .*{on}", times))

    def delay(self, seconds: float, on: str = "", times: float = math.inf) -> None:
        """The next requests, all unless `times` says how many, take so much longer."""
        self.faults.append(Fault("delay", on, times, seconds))

    def heal(self) -> None:
        """No faults from here on."""
        self.faults.clear()

    def link(self, kind: str, repo_id: str) -> str:
        """A repository's address."""
        return f"{self.url}/{repo_id}" if kind == "model" else f"{self.url}/{kind}s/{repo_id}"

    def take_fault(self, kind: str, request: str) -> Fault | None:
        """The fault of this kind that a request is to suffer; it has then suffered it."""
        with self.lock:
            fault = next((f for f in self.faults if f.suffers(kind, request)), None)
            if fault is not None:
                fault.left -= 1
            return fault

    def create(self, kind: str, repo_id: str) -> None:
        if (kind, repo_id) in self.repos:
            url = self.link(kind, repo_id)
            raise HubError(409, "You already created this repository", url=url)
        first = hashlib.sha1(f"{kind}/{repo_id}".encode()).hexdigest()
        self.repos[kind, repo_id] = {first: {}}

    def at(self, kind: str, repo_id: str, revision: str) -> tuple[str, dict[str, bytes]]:
        """(commit sha, files) of a revision: "main" or a commit."""
        commits = self.repos.get((kind, repo_id))
        if commits is None:
            raise HubError(404, "Repository not found", "RepoNotFound")
        sha = list(commits)[-1] if revision == "main" else revision
        if sha not in commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha, commits[sha]

    def commit(self, kind: str, repo_id: str, lines: list[dict]) -> str:
        """All operations or none."""
        parent, files = self.at(kind, repo_id, "main")
        files = dict(files)
        for key, value in ((line["key"], line["value"]) for line in lines):
            if key == "header" and value.get("parentCommit", parent) != parent:
                raise HubError(412, "A commit has happened since")
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                if value["oid"] not in self.blobs:
                    raise HubError(400, f"{value['path']} was never uploaded")
                files[value["path"]] = self.blobs[value["oid"]]
            elif key == "deletedFile":
                if files.pop(value["path"], None) is None:
                    raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
            elif key == "deletedFolder":
                folder = value["path"].rstrip("/") + "/"
                files = {path: data for path, data in files.items() if not path.startswith(folder)}
        commits = self.repos[kind, repo_id]
        sha = hashlib.sha1(f"{parent} {len(commits)}".encode()).hexdigest()
        commits[sha] = files
        return sha


REPO = r"(?P<repo>[^/]+/[^/]+)"
API = rf"/api/(?P<kind>model|dataset|space)s/{REPO}"
GIT = rf"/(?:(?P<kind>dataset|space)s/)?{REPO}"
REVISION = r"(?P<revision>[^/]+)"
ROUTES = [
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/repos/create", "create"),
    ("DELETE", r"/api/repos/delete", "delete"),
    ("POST", r"/api/validate-yaml", "validate_yaml"),
    ("POST", rf"{API}/preupload/{REVISION}", "preupload"),
    ("POST", rf"{API}/commit/{REVISION}", "commit"),
    ("POST", rf"{API}/paths-info/{REVISION}", "paths_info"),
    ("GET", rf"{API}(?:/revision/{REVISION})?", "info"),
    ("GET", rf"{API}/tree/{REVISION}(?:/(?P<path>.+))?", "tree"),
    ("POST", rf"{GIT}\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", r"/lfs/(?P<oid>\w+)", "lfs_put"),
    ("GET", rf"{GIT}/resolve/{REVISION}/(?P<path>.+)", "resolve"),
]
ROUTES = [(method, re.compile(pattern), name) for method, pattern, name in ROUTES]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """A client that has gone away is no error of the server's."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """One method for each call that the client makes; each returns what is sent as JSON."""

    hub: StandInHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def answer_request(self):
        url = urlsplit(self.path)
        self.query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        self.hub.requests.append((self.command, url.path))
        self.call = f"{self.command} {unquote(url.path)}"
        if slow := self.hub.take_fault("delay", self.call):
            threading.Event().wait(slow.value)  # not time.sleep, which tests replace
        if self.hub.take_fault("cut_upload", self.call):
            self.rfile.read(int(self.headers.get("Content-Length", 2)) // 2)
            self.close_connection = True
            return
        self.body = self.read_body()
        if self.body is None:  # the client went away: nothing that it asked for happens
            self.close_connection = True
            return
        try:
            if failure := self.hub.take_fault("fail", self.call):
                raise HubError(failure.value, "A fault that the test has set")
            answer = self.route(unquote(url.path))
        except HubError as error:
            code = {"X-Error-Code": error.code} if error.code else {}
            message = {"X-Error-Message": str(error)}
            self.send_json(error.answer, error.status, code | message)
        else:
            if answer is not None:
                self.send_json(answer)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer_request

    def route(self, path: str):
        method = "GET" if self.command == "HEAD" else self.command
        if method != "GET" and not path.startswith("/lfs/") and "Authorization" not in self.headers:
            raise HubError(401, "Invalid username or password.")
        for verb, pattern, name in ROUTES:
            match = pattern.fullmatch(path)
            if match and verb == method:
                args = match.groupdict()
                if "kind" in args:
                    args["kind"] = args["kind"] or "model"
                if "revision" in args:  # the client quotes it twice
                    args["revision"] = unquote(args["revision"] or "main")
                if name == "resolve":
                    return self.resolve(**args)
                with self.hub.lock:
                    return getattr(self, name)(**args)
        raise HubError(404, f"The stand-in Hub has no {method} {path}")

    def read_body(self) -> bytes | None:
        """The whole body, or None where the connection broke before its end."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            length = int(self.headers.get("Content-Length", 0))
            body = self.rfile.read(length)
            return body if len(body) == length else None
        body = b""
        while size := int(self.rfile.readline() or b"-1", 16):
            chunk = self.rfile.read(size + 2)[:-2] if size > 0 else b""
            if size < 0 or len(chunk) < size:
                return None
            body += chunk
        self.rfile.readline()
        return body

    def send_json(self, answer, status: int = 200, headers: dict | None = None) -> None:
        self.send_bytes(json.dumps(answer).encode(), status, headers)

    def send_bytes(self, content: bytes, status: int = 200, headers: dict | None = None) -> None:
        self.send_response(status)
        headers = {"Content-Type": "application/json"} | (headers or {})
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.hub.take_fault("cut_download", self.call):
            content = content[: len(content) // 2]
            self.close_connection = True
        if self.command != "HEAD":
            self.wfile.write(content)

    # ------------------------------------------------------------------------------- the calls

    def whoami(self):
        if "Authorization" not in self.headers:
            raise HubError(401, "Invalid credentials")
        token = {"type": "access_token", "accessToken": {"role": "write", "displayName": "test"}}
        return {"type": "user", "name": "user", "fullname": "User", "orgs": [], "auth": token}

    def create(self):
        asked = json.loads(self.body)
        kind = asked.get("type") or "model"
        repo_id = f"{asked.get('organization') or 'user'}/{asked['name']}"
        self.hub.create(kind, repo_id)
        return {"url": self.hub.link(kind, repo_id), "name": repo_id, "id": repo_id}

    def delete(self):
        asked = json.loads(self.body)
        repo_id = f"{asked.get('organization') or 'user'}/{asked['name']}"
        if self.hub.repos.pop((asked.get("type") or "model", repo_id), None) is None:
            raise HubError(404, "Repository not found", "RepoNotFound")
        return {}

    def validate_yaml(self):
        return {"errors": [], "warnings": []}

    def preupload(self, kind, repo, revision):
        _, files = self.hub.at(kind, repo, revision)
        answers = []
        for path in (file["path"] for file in json.loads(self.body)["files"]):
            mode = "lfs" if is_lfs(path) else "regular"
            oid = etag(path, files[path]) if path in files else None
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": answers}

    def lfs_batch(self, kind, repo):
        self.hub.at(kind, repo, "main")
        answers = []
        for asked in json.loads(self.body)["objects"]:
            answer = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.hub.blobs:
                answer["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{asked['oid']}"}}
            answers.append(answer)
        return {"transfer": "basic", "objects": answers}

    def lfs_put(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise HubError(400, "The content does not have the sha256 that was announced")
        self.hub.blobs[oid] = self.body
        return {}

    def commit(self, kind, repo, revision):
        if revision != "main":
            raise HubError(400, "The stand-in Hub has one branch, main")
        sha = self.hub.commit(kind, repo, [json.loads(line) for line in self.body.splitlines()])
        return {"commitUrl": f"{self.hub.link(kind, repo)}/commit/{sha}", "commitOid": sha}

    def info(self, kind, repo, revision):
        sha, files = self.hub.at(kind, repo, revision)
        siblings = [{"rfilename": path} for path in files]
        counts = {"downloads": 0, "likes": 0, "tags": [], "private": False, "gated": False}
        return {"id": repo, "modelId": repo, "sha": sha, "siblings": siblings} | counts

    def tree(self, kind, repo, revision, path):
        _, files = self.hub.at(kind, repo, revision)
        top = f"{path}/" if path else ""
        inside = [name for name in files if name.startswith(top)]
        if path and not inside:
            raise HubError(404, f"{path} does not exist on {revision}", "EntryNotFound")
        folders = {name[: m.start()] for name in inside for m in re.finditer("/", name)}
        entries = [_folder_entry(folder) for folder in sorted(folders) if folder.startswith(top)]
        entries += [_file_entry(name, files[name]) for name in inside]
        if self.query.get("recursive", "false").lower() == "true":
            return entries
        return [entry for entry in entries if "/" not in entry["path"][len(top) :]]

    def paths_info(self, kind, repo, revision):
        _, files = self.hub.at(kind, repo, revision)
        if "json" in self.headers.get("Content-Type", ""):
            paths = json.loads(self.body)["paths"]
        else:
            paths = parse_qs(self.body.decode()).get("paths", [])
        entries = []
        for path in paths:
            if path in files:
                entries.append(_file_entry(path, files[path]))
            elif any(name.startswith(f"{path}/") for name in files):
                entries.append(_folder_entry(path))
        return entries

    def resolve(self, kind, repo, revision, path):
        with self.hub.lock:
            sha, files = self.hub.at(kind, repo, revision)
        headers = {"X-Repo-Commit": sha}
        if path not in files:
            raise HubError(404, "Entry not found", "EntryNotFound")
        content = files[path]
        headers |= {"ETag": f'"{etag(path, content)}"', "Accept-Ranges": "bytes"}
        headers |= {"Content-Type": "application/octet-stream"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            self.send_bytes(content, 200, headers)
            return
        start, end = int(asked[1]), int(asked[2] or len(content) - 1)
        if start >= len(content):
            raise HubError(416, "Range not satisfiable")
        part = content[start : end + 1]
        headers["Content-Range"] = f"bytes {start}-{start + len(part) - 1}/{len(content)}"
        self.send_bytes(part, 206, headers)


def _file_entry(path: str, content: bytes) -> dict:
    entry = {"type": "file", "path": path, "size": len(content), "oid": git_hash(content)}
    if is_lfs(path):
        entry["lfs"] = {"oid": etag(path, content), "size": len(content), "pointerSize": 134}
    return entry


def _folder_entry(path: str) -> dict:
    return {"type": "directory", "path": path, "size": 0, "oid": git_hash(path.encode())}
