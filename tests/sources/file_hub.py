"""A hub on loopback that serves folders as data sets, file by file and range by range."""

import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "1" * 40


class FileHub(ThreadingHTTPServer):
    """Serves `repos[name]`, a folder, as the data set of that name.

    Attributes:
        asked: what was asked for, in order.
        dead: set it to hang up on everyone from now on.
    """

    def __init__(self, repos: Mapping[str, Path]):
        super().__init__(("127.0.0.1", 0), _Answers)
        self.repos = repos
        self.asked: list[str] = []
        self.dead = False

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> FileHub:
        assert isinstance(self.server, FileHub)
        return self.server

    def do_GET(self):
        if self.hub.dead:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.hub.asked.append(f"{self.command} {self.path}")
        path = unquote(urlsplit(self.path).path)
        api = re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+)(?:/(.*))?)?", path)
        file = re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
        if api is not None and (folder := self.hub.repos.get(api[1])) is not None:
            self._describe(folder, api[1], api[2], api[4] or "")
        elif file is not None and (folder := self.hub.repos.get(file[1])) is not None:
            self._hand_out(folder / file[2])
        else:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def do_HEAD(self):
        self.do_GET()

    def _describe(self, folder: Path, name: str, question: str | None, below: str) -> None:
        if question in (None, "revision"):
            siblings = [{"rfilename": str(path.relative_to(folder))} for path in _files(folder)]
            self._json({"id": name, "sha": COMMIT, "gated": False, "private": False, "tags": [], "siblings": siblings})
        elif not (folder / below).is_dir():
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        else:
            recursive = "recursive=true" in self.path.lower()
            found = (folder / below).rglob("*") if recursive else (folder / below).iterdir()
            self._json([_entry(path, folder) for path in sorted(found)])

    def _hand_out(self, path: Path) -> None:
        if not path.is_file():
            return self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        data = path.read_bytes()
        headers = {"ETag": f'"{_oid(path)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            return self._send(200, data, headers)
        start, end = int(asked[1]), min(int(asked[2] or len(data) - 1), len(data) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
        return self._send(206, data[start : end + 1], headers)

    def _json(self, body: object) -> None:
        self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format, *args):
        pass


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _oid(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


def _entry(path: Path, folder: Path) -> dict:
    name = str(path.relative_to(folder))
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": "0" * 40, "size": 0}
    return {"type": "file", "path": name, "oid": _oid(path), "size": path.stat().st_size}


@contextmanager
def file_hub(repos: Mapping[str, Path]) -> Iterator[FileHub]:
    """Serve until the block ends."""
    hub = FileHub(repos)
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
