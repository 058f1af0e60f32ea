"""A model hub on loopback that knows four repositories and refuses as the real one does."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
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
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
