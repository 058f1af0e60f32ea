"""A server that asks for a name and a password (HTTP Basic) and forwards requests to another server."""

import base64
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class PasswordServer:
    """A server on loopback that listens as soon as it is created.

    Args:
        target: the address of the server that answers.
    """

    def __init__(self, target: str, user: str, password: str) -> None:
        wanted = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or None
                status, text, kind = 401, b"", "text/plain"
                if self.headers.get("Authorization") == wanted:
                    kept = {name: self.headers[name] for name in ("Content-Type", "Accept") if name in self.headers}
                    request = urllib.request.Request(target + self.path, body, kept, method=self.command)
                    try:
                        with urllib.request.urlopen(request) as answer:
                            status, text, kind = answer.status, answer.read(), answer.headers.get_content_type()
                    except urllib.error.HTTPError as error:
                        status, text, kind = error.code, error.read(), error.headers.get_content_type()
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer  # noqa: N815 (http.server's names)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
