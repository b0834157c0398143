"""A hub on loopback: what `huggingface_hub` asks for when it looks up, fetches and uploads, kept in memory.

Commits are real ones: a file is there only once a commit has named it. `faults` fails the first requests of a kind.
"""

import base64
import hashlib
import json
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

ROOT = Path(__file__).parents[1]
LARGE = 10_000  # bytes: a file above goes by LFS


@dataclass
class Repo:
    """Files by path, and how often they were changed."""

    files: dict[str, bytes] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)
    visibility: str = "public"
    commits: list[list[str]] = field(default_factory=list)  # the paths of each

    @property
    def sha(self) -> str:
        state = sorted((path, blob_id(data)) for path, data in self.files.items())
        return hashlib.sha1(repr(state).encode()).hexdigest()

    def entry(self, path: str) -> dict[str, Any]:
        data = self.files[path]
        found = {"type": "file", "path": path, "size": len(data), "oid": blob_id(data)}
        if path in self.large:
            found["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return found


def blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Hub:
    """Serves `repos` by their paths, `datasets/me/set` or `models/me/model`. Notes every request."""

    def __init__(self, repos: Mapping[str, Mapping[str, bytes]] | None = None, faults: Mapping[str, int] | None = None):
        self.repos = {name: Repo(dict(files)) for name, files in (repos or {}).items()}
        self.stored: dict[str, bytes] = {}  # LFS objects by their SHA-256
        self.requests: list[str] = []  # "METHOD path"
        self.tokens: set[str] = set()
        self.ranges: list[int] = []  # bytes of each answer with content
        self.faults = Counter(faults or {})  # how often requests that hold this text are answered 503
        self.lock = threading.Lock()

    def __enter__(self) -> Self:
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def python(self, code: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run code whose hub is this one: its address is read when the library is imported."""
        given = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        paths = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PATH": "/usr/bin:/bin", "HOME": str(home)}
        return subprocess.run(
            [sys.executable, "-c", code], env=given | paths | environment, cwd=ROOT, capture_output=True, text=True
        )


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        body = self._body()
        with hub.lock:
            asked = f"{self.command} {path}"
            hub.requests.append(asked)
            hub.tokens.add(self.headers.get("Authorization") or "")
            fault = next((kind for kind, left in hub.faults.items() if left and kind in asked), None)
            if fault:
                hub.faults[fault] -= 1
                return self._send(503, b"{}")
            if path == "/api/repos/create":
                return self._create(json.loads(body))
            if path == "/api/validate-yaml":
                return self._json({"warnings": [], "errors": []})
            if path.startswith("/objects/"):
                hub.stored[path.removeprefix("/objects/")] = body
                return self._send(200, b"")
            if found := re.match(r"/(datasets/[^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
                return self._json(self._batch(json.loads(body)))
            if found := re.match(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                return self._resolve(f"{found[1] or 'models/'}{found[2]}", found[4])
            if found := re.match(
                r"/api/((?:datasets|models)/[^/]+/[^/]+)(?:/([a-z-]+)(?:/([^/]+))?(?:/(.*))?)?$", path
            ):
                return self._api(found[1], found[2], found[3], found[4] or "", body)
            self._missing("Entry")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, status: int, data: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", headers.get("Content_Length") or str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), Content_Type="application/json")

    def _missing(self, what: str) -> None:
        self._send(404, b'{"error": "not found"}', X_Error_Code=f"{what}NotFound")

    def _create(self, asked: Mapping[str, Any]) -> None:
        name = f"{asked['type']}s/{asked.get('organization') or 'me'}/{asked['name']}"
        if name in self.hub.repos:
            return self._json({"error": "it exists", "url": f"{self.hub.url}/{name}"}, 409)
        self.hub.repos[name] = Repo(visibility=asked.get("visibility") or "public")
        self._json({"url": f"{self.hub.url}/{name}"})

    def _api(self, name: str, verb: str | None, revision: str | None, path: str, body: bytes) -> None:
        repo = self.hub.repos.get(name)
        if repo is None:
            return self._missing("Repo")
        if (verb in (None, "revision") or revision is not None) and revision not in (None, "main", repo.sha):
            return self._missing("Revision")
        if verb in (None, "revision"):
            siblings = [{"rfilename": file} for file in repo.files]
            about = {"id": name.split("/", 1)[1], "sha": repo.sha, "siblings": siblings, "tags": []}
            return self._json(about | {"private": repo.visibility == "private", "downloads": 0, "likes": 0})
        if verb == "tree":
            deep = parse_qs(urlsplit(self.path).query).get("recursive", [""])[0].lower() == "true"
            return self._json(_listed(repo, path, deep))
        if verb == "paths-info":
            asked = parse_qs(body.decode()).get("paths") if not body.startswith(b"{") else json.loads(body)["paths"]
            return self._json([entry for one in asked or () for entry in _about(repo, one)])
        if verb == "preupload":
            files = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "lfs" if f["size"] > LARGE else "regular"} for f in files]
            known = [repo.entry(f["path"])["oid"] if f["path"] in repo.files else None for f in files]
            both = zip(modes, known, strict=True)
            return self._json({"files": [mode | {"shouldIgnore": False, "oid": oid} for mode, oid in both]})
        if verb == "commit":
            return self._commit(name, [json.loads(line) for line in body.splitlines()])
        self._missing("Entry")

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        repo, paths = self.hub.repos[name], []
        for line in lines[1:]:
            value = line["value"]
            paths.append(value["path"])
            if line["key"] == "lfsFile":
                repo.files[value["path"]] = self.hub.stored[value["oid"]]
                repo.large.add(value["path"])
            else:
                repo.files[value["path"]] = base64.b64decode(value["content"])
        repo.commits.append(paths)
        self._json({"success": True, "commitOid": repo.sha, "commitUrl": f"{self.hub.url}/{name}/commit/{repo.sha}"})

    def _batch(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        objects = []
        for wanted in asked["objects"]:
            upload = {"upload": {"href": f"{self.hub.url}/objects/{wanted['oid']}", "header": {}}}
            objects.append(wanted | ({} if wanted["oid"] in self.hub.stored else {"actions": upload}))
        return {"transfer": "basic", "objects": objects}

    def _resolve(self, name: str, path: str) -> None:
        repo = self.hub.repos.get(name)
        if repo is None or path not in repo.files:
            return self._missing("Repo" if repo is None else "Entry")
        data, entry = repo.files[path], repo.entry(path)
        about = {"ETag": f'"{entry["oid"]}"', "X_Repo_Commit": repo.sha, "Accept_Ranges": "bytes"}
        status, asked = 200, re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked and int(asked[1]) < len(data):
            first, last = int(asked[1]), min(int(asked[2] or len(data) - 1), len(data) - 1)
            about["Content_Range"] = f"bytes {first}-{last}/{len(data)}"
            status, data = 206, data[first : last + 1]
        if self.command == "GET":
            self.hub.ranges.append(len(data))
        self._send(status, data, Content_Length=str(len(data)), **about)


def _about(repo: Repo, path: str) -> list[dict[str, Any]]:
    if path in repo.files:
        return [repo.entry(path)]
    folder = any(file.startswith(f"{path}/") for file in repo.files)
    return [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0}] if folder else []


def _listed(repo: Repo, path: str, deep: bool) -> list[dict[str, Any]]:
    start = f"{path.strip('/')}/" if path.strip("/") else ""
    inside = [file for file in sorted(repo.files) if file.startswith(start)]
    folders: dict[str, None] = {}
    for file in inside:
        parts = file[len(start) :].split("/")[:-1]
        folders |= dict.fromkeys(
            start + "/".join(parts[: i + 1]) for i in range(len(parts) if deep else min(1, len(parts)))
        )
    files = [file for file in inside if deep or "/" not in file[len(start) :]]
    return [{"type": "directory", "path": f, "oid": "0" * 40, "size": 0} for f in folders] + [
        repo.entry(f) for f in files
    ]
