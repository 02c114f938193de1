"""Servers of rewards that are no good."""

import contextlib
import http.server
import json
import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

Answer = tuple[int, bytes]

SERVERS: dict[str, Callable[[int, int], Answer]] = {
    "garbage": lambda count, number: (200, b"\xff\xfe{{{"),
    "another object": lambda count, number: (200, b'{"scores": [1]}'),
    "a list": lambda count, number: (200, b"[1, 2]"),
    "too few": lambda count, number: (200, json.dumps({"rewards": [1.0] * (count - 1)}).encode()),
    "too many": lambda count, number: (200, json.dumps({"rewards": [1.0] * (count + 3)}).encode()),
    "NaN": lambda count, number: (200, json.dumps({"rewards": [float("nan")] * count}).encode()),
    "infinity": lambda count, number: (200, b'{"rewards": [' + b", ".join([b"1e400"] * count) + b"]}"),
    "huge": lambda count, number: (200, b'{"rewards": [' + b", ".join([b"9" * 400] * count) + b"]}"),
    "texts": lambda count, number: (200, json.dumps({"rewards": ["good"] * count}).encode()),
    "null": lambda count, number: (200, json.dumps({"rewards": [None] * count}).encode()),
    "nested": lambda count, number: (200, b"[" * 100_000),
    "500": lambda count, number: (500, b"sorry"),
    "404": lambda count, number: (404, b""),
    "a redirect to itself": lambda count, number: (302, b""),
    "half a body": lambda count, number: (-1, b'{"rewards": [1'),
    "slow": lambda count, number: (-2, b""),
    "drops": lambda count, number: (-3, b""),
}
"""What a server answers to its so many-th request for so many rewards; below 0 it does not keep to HTTP."""


@contextlib.contextmanager
def served(answer: Callable[[int, int], Answer]) -> Iterator[str]:
    """A server in a process of its own; its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    process = multiprocessing.get_context("fork").Process(target=_serve, args=(listener, answer), daemon=False)
    process.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    finally:
        process.kill()
        process.join()
        listener.close()


def _serve(listener: socket.socket, answer: Callable[[int, int], Answer]) -> None:
    numbers = iter(range(10**9))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body: Any = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            code, text = answer(len(body["completions"]), next(numbers))
            if code == -2:
                time.sleep(3600)
            if code == -3:
                self.connection.close()
                return
            self.send_response(code if code > 0 else 200)
            if code == 302:
                self.send_header("Location", "/")
            self.send_header("Content-Length", str(len(text) + (1000 if code == -1 else 0)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(listener.getsockname(), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    server.serve_forever()
