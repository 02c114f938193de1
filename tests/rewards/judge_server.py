"""A small OpenAI-compatible server that may also be busy, slow, broken or rude."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import Any, NamedTuple

from alignlab.rewards.judge.client import TRIAL


class Response(NamedTuple):
    """What the server answers to one question."""

    text: str = ""
    status: int = 200
    headers: Mapping[str, str] = MappingProxyType({})
    raw: bytes | None = None
    seconds: float = 0.0
    closes: bool = False


class Server:
    """The server's address and what it was asked, without the trial of each client.

    Args:
        answer: Response to a message and the number of times that it was asked before.
    """

    def __init__(self, answer: Callable[[str, int], Response]):
        self.answer, self.lock, self.url = answer, threading.Lock(), ""
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.times: list[float] = []
        self.busy = self.most_at_once = 0

    @property
    def messages(self) -> list[str]:
        return [body["messages"][0]["content"] for body in self.bodies]

    def respond(self, body: dict[str, Any], key: str | None) -> Response:
        message = body["messages"][0]["content"]
        with self.lock:
            self.keys.add(key)
            if message == TRIAL:
                return Response("ready")
            before = self.messages.count(message)
            self.bodies.append(body)
            self.times.append(time.monotonic())
            self.busy += 1
            self.most_at_once = max(self.most_at_once, self.busy)
        response = self.answer(message, before)
        time.sleep(response.seconds)
        with self.lock:
            self.busy -= 1
        return response


@contextlib.contextmanager
def served(answer: Callable[[str, int], Response]) -> Iterator[Server]:
    """A server in threads of this process."""
    server = Server(answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            response = server.respond(body, self.headers["Authorization"])
            if response.closes:
                self.close_connection = True
                return
            completion = {"choices": [{"message": {"role": "assistant", "content": response.text}}]}
            raw = json.dumps(completion).encode() if response.raw is None else response.raw
            with contextlib.suppress(OSError):  # the client waits no longer
                self.send_response(response.status)
                for name, value in {**response.headers, "Content-Length": str(len(raw))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(raw)

        def log_message(self, *_: Any) -> None:
            """Stay silent."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        http.block_on_close = False
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        server.url = f"http://127.0.0.1:{http.server_port}/v1"
        yield server
        http.shutdown()
        thread.join()
