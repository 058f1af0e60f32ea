"""Model hubs on loopback that refuse as the real one does: one that knows four repositories, and one that takes
uploads."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0" * 40


class _Answers(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self._answer()

    def _answer(self):
        path = self.path
        if "/open/" in path and "/no-such-branch" in path:
            self._send(404, code="RevisionNotFound")
        elif "owner/open" in path:
            self._send(200, {"id": "owner/open", "gated": False, "siblings": [{"rfilename": "data/train.jsonl"}]})
        elif "owner/no-model" in path:
            self._send(404, code="EntryNotFound")
        elif "owner/gated" in path:
            # Anyone may list a gated repository; its files are refused.
            if path.startswith("/api/"):
                self._send(200, {"id": "owner/gated", "gated": "manual", "siblings": [{"rfilename": "data/a.parquet"}]})
            else:
                self._send(401, code="GatedRepo")
        elif "owner/broken" in path:
            self._send(503)
        else:
            self._send(404, code="RepoNotFound")

    def _send(self, status: int, body: dict | None = None, code: str | None = None):
        data = json.dumps(body or {}).encode()
        self.send_response(status)
        if code is not None:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", '"0"')
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format, *args):
        pass


@contextmanager
def fake_hub() -> Iterator[str]:
    """Serve until the block ends; yields the address."""
    with _serving(_Answers) as address:
        yield address


@dataclass
class WritableHub:
    """A hub that takes uploads as huggingface_hub sends them without Xet.

    Attributes:
        owner: the only name under which the token may write.
        repos: the files of each repository, by path.
        private: the repositories that were made private.
        messages: of the commits.
        large: contents that were uploaded by their SHA-256, for LFS.
        failing: whether every request is answered by a server error.
    """

    owner: str = "me"
    token: str = "hf_right_token"
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    messages: list[str] = field(default_factory=list)
    large: dict[str, bytes] = field(default_factory=dict)
    failing: bool = False
    address: str = ""


@contextmanager
def writable_hub() -> Iterator[WritableHub]:
    """Serve until the block ends."""
    hub = WritableHub()
    with _serving(type("_Bound", (_Uploads,), {"hub": hub})) as address:
        hub.address = address
        yield hub


@contextmanager
def _serving(answers: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), answers)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class _Uploads(BaseHTTPRequestHandler):
    """Answers of a writable hub: /api/repos/create, preupload, the LFS batch, commit, and downloads."""

    hub: WritableHub

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self._answer()

    def do_POST(self):
        self._answer()

    def do_PUT(self):
        self._answer()

    def _answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        if self.hub.failing:
            return self._send(503)
        # The storage of large files is another service, to which no token is sent.
        if found := re.fullmatch(r"/storage/(\w+)", path):
            assert "Authorization" not in self.headers
            assert hashlib.sha256(body).hexdigest() == found[1]
            self.hub.large[found[1]] = body
            return self._send(200)
        if self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self._send(401, message="Invalid credentials in Authorization header")
        if path == "/api/validate-yaml":
            return self._send(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(preupload|commit|revision)/main)?", path)
        if found is None and (batch := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path)):
            return self._batch(batch[1], json.loads(body))
        if found is None and (download := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)):
            return self._download(download[1], download[2])
        if found is None and (tree := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/\w+", path)):
            files = self.hub.repos[tree[1]].items()
            entries = [{"type": "file", "path": name, "size": len(data), "oid": COMMIT} for name, data in files]
            return self._send(200, entries)
        if found is None:
            return self._send(404, message=f"this hub does not know {path}")
        repo, action = found.groups()
        if repo not in self.hub.repos:
            return self._send(404, code="RepoNotFound")
        if action in (None, "revision"):
            files = [{"rfilename": name} for name in self.hub.repos[repo]]
            return self._send(200, {"id": repo, "sha": COMMIT, "siblings": files})
        if repo.partition("/")[0] != self.hub.owner:
            return self._send(403, message="You have read access, and no write access")
        return self._preupload(json.loads(body)) if action == "preupload" else self._commit(repo, body)

    def _create(self, request: dict):
        repo = f"{request['organization']}/{request['name']}"
        if request["organization"] != self.hub.owner:
            return self._send(403, message=f"You don't have the rights to create a model under {repo}")
        assert repo not in self.hub.repos
        self.hub.repos[repo] = {".gitattributes": b"*.safetensors filter=lfs"}
        if request.get("visibility") == "private":
            self.hub.private.add(repo)
        return self._send(200, {"url": f"{self.hub.address}/{repo}"})

    def _preupload(self, request: dict):
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith((".safetensors", ".png")) else "regular",
                "shouldIgnore": False,
            }
            for file in request["files"]
        ]
        return self._send(200, {"files": modes})

    def _batch(self, repo: str, request: dict):
        assert repo in self.hub.repos
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.hub.address}/storage/{each['oid']}"}}}
            for each in request["objects"]
        ]
        return self._send(200, {"transfer": "basic", "objects": objects})

    def _commit(self, repo: str, body: bytes):
        files = self.hub.repos[repo]
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                self.hub.messages.append(value["summary"])
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            else:
                assert entry["key"] == "deletedFile"
                del files[value["path"]]
        url = f"{self.hub.address}/{repo}/commit/{COMMIT}"
        return self._send(200, {"commitUrl": url, "commitOid": COMMIT})

    def _download(self, repo: str, path: str):
        return self._send(200, self.hub.repos[repo][path])

    def _send(
        self, status: int, body: dict | list | bytes | None = None, code: str | None = None, message: str | None = None
    ):
        data = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
        self.send_response(status)
        for name, value in (("X-Error-Code", code), ("X-Error-Message", message)):
            if value is not None:
                self.send_header(name, value)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format, *args):
        pass
