"""A server on loopback that answers chats in OpenAI's format, or in any other way."""

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def completion(text: str | None) -> dict[str, Any]:
    """An answer as OpenAI's servers give it."""
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14}
    return {"object": "chat.completion", "choices": [{"index": 0, "message": message}], "usage": usage}


class ChatServer:
    """A server that listens as soon as it is created.

    Args:
        answer: gets a request's body; returns a text for a chat completion, or a status, headers and a body.
        seconds: between two bytes of every answer.

    Attributes:
        bodies: of all requests so far.
        headers: of all requests so far.
        paths: of all requests so far.
        url: the address.
    """

    def __init__(
        self,
        answer: Callable[[dict[str, Any]], str | tuple[int, dict[str, str], str]],
        seconds: float = 0.0,
    ) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.bodies.append(body)
                server.headers.append(dict(self.headers))
                server.paths.append(self.path)
                found = answer(body)
                status, headers, text = (200, {}, json.dumps(completion(found))) if isinstance(found, str) else found
                content = text.encode()
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(content))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                for byte in [content] if seconds == 0 else [bytes([each]) for each in content]:
                    time.sleep(seconds)
                    try:
                        self.wfile.write(byte)
                    except OSError:
                        return

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def __enter__(self) -> "ChatServer":
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
