"""A server that speaks as vLLM does, with a model that is a table: P(next token | last token)."""

import json
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

from safetensors.torch import load_file

CONFIG = {
    "model_config": {"logprobs_mode": "processed_logprobs"},
    "parallel_config": {"worker_extension_cls": "alignlab_worker.PackTiedHead"},
}


class Fake:
    """State of the server, and what it was asked; ``broken`` answers 500, ``deaf`` loses what is sent."""

    context = 32

    def __init__(self, table):
        self.table = self.first_table = table
        self.version, self.adapters = "default", {}
        self.asked: list[tuple[str, dict]] = []
        self.broken, self.deaf, self.dead_paths = 0, False, set()

    def load(self, folder: Path):
        return load_file(next(folder.glob("*.safetensors")))["table"].log_softmax(-1).tolist()

    def restart(self):
        self.table, self.version, self.adapters = self.first_table, "default", {}

    def paths(self):
        return [path for path, _ in self.asked]

    def answer(self, path: str, body: dict):
        self.asked.append((path, body))
        if path in self.dead_paths:
            return 404, {"error": "no such path"}
        if self.broken and path == "/v1/completions":
            self.broken -= 1
            self.restart()
            return 500, {"error": "the engine is dead"}
        return 200, ANSWERS[path](self, body)

    def models(self, body):
        adapters = [{"id": name, "parent": "policy", "max_model_len": None} for name in self.adapters]
        return {"data": [{"id": "policy", "parent": None, "max_model_len": self.context}, *adapters]}

    def rpc(self, body):
        if body["method"] == "reload_weights" and not self.deaf:
            self.table = self.load(Path(body["kwargs"]["weights_path"]))
        return {"results": [None]}

    def load_adapter(self, body):
        self.adapters[body["lora_name"]] = self.load(Path(body["lora_path"]))
        return {}

    def unload_adapter(self, body):
        del self.adapters[body["lora_name"]]
        return {}

    def set_version(self, body):
        self.version = body["new_version"]
        return {"success": True}

    def complete(self, body):
        table = self.adapters.get(body["model"], self.table)
        prompt = body["prompt"]
        if "prompt_logprobs" in body:
            logps = [table[a][b] for a, b in pairwise(prompt)]
            places = [{str(token): {"logprob": logp}} for token, logp in zip(prompt[1:], logps, strict=True)]
            return {"choices": [{"prompt_logprobs": [None, *places]}]}
        return {"choices": [self.choice(body, table, index) for index in reversed(range(body["n"]))]}

    def choice(self, body, table, index):
        source, tokens, last = random.Random(body["seed"] + index), [], body["prompt"][-1]
        while len(tokens) < body["max_tokens"] and (not tokens or last not in body["stop_token_ids"]):
            last = source.randrange(len(table))
            tokens.append(last)
        before = [body["prompt"][-1], *tokens]
        return {
            "index": index,
            "token_ids": tokens,
            "logprobs": {"token_logprobs": [table[a][b] for a, b in pairwise(before)]},
            "finish_reason": "stop" if last in body["stop_token_ids"] else "length",
        }


ANSWERS = {
    "/health": lambda fake, body: "",
    "/server_info": lambda fake, body: {"vllm_config": CONFIG},
    "/weight_info": lambda fake, body: {"weight_version": fake.version},
    "/reset_prefix_cache": lambda fake, body: {"success": True},
    "/update_weight_version": Fake.set_version,
    "/v1/models": Fake.models,
    "/collective_rpc": Fake.rpc,
    "/v1/load_lora_adapter": Fake.load_adapter,
    "/v1/unload_lora_adapter": Fake.unload_adapter,
    "/v1/completions": lambda fake, body: fake.complete(body),
}


@contextmanager
def serving(fake: Fake, port: int = 0) -> Iterator[str]:
    """Its URL while it runs."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *given):
            pass

        def do_GET(self):
            self.reply({})

        def do_POST(self):
            self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def reply(self, body):
            status, answer = fake.answer(urlsplit(self.path).path, body)
            text = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
