"""Processes of ours; a line of Python stands for vLLM."""

import os
import sys
import time
from pathlib import Path

import pytest
import torch

from alignlab.errors import InputError
from alignlab.rollout.vllm.launch import command_line, servers
from alignlab.rollout.vllm.server import Server, ServerError
from tests.rollout.vllm.policy import server_settings

ANSWER = """
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
print("listening", flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
DIE_ONCE = """
import pathlib, sys
mark = pathlib.Path(sys.argv[2])
if not mark.exists():
    mark.touch()
    sys.exit("out of memory")
"""


@pytest.fixture
def make(tmp_path, free_port):
    made = []

    def make(code, num_restarts=0):
        command = [sys.executable, "-c", code, str(free_port), str(tmp_path / "mark")]
        log_file = tmp_path / "logs" / "vllm_0.log"
        made.append(Server(f"http://127.0.0.1:{free_port}", command, dict(os.environ), log_file, num_restarts))
        made[-1].start()
        return made[-1]

    yield make
    for server in made:
        server.stop()


def test_it_answers_and_ends(make):
    server = make(ANSWER)
    server.wait(20)
    process = server.process
    server.stop()
    assert process.poll() is not None
    assert "listening" in server.log_file.read_text()


def test_death_is_told_with_the_last_lines(make):
    server = make("import sys; print('loading'); sys.exit('out of memory')")
    with pytest.raises(ServerError, match=r"exit code 1; the last lines of .*vllm_0\.log:\n *loading\n *out of memory"):
        server.wait(20)


def test_a_dead_server_is_started_again(make):
    server = make(DIE_ONCE + ANSWER, num_restarts=1)
    server.wait(20)
    assert server.restarts_left == 0


def test_silence_is_told_with_the_last_lines(make):
    server = make("import time; print('loading', flush=True); time.sleep(60)")
    with pytest.raises(ServerError, match=r"has not answered for 1 s; the last lines of"):
        server.wait(1)


@pytest.mark.skipif(sys.platform != "linux", reason="a service of Linux")
def test_it_ends_with_the_process_that_started_it(make, tmp_path):
    """The child starts a grandchild through Server and is then killed; the grandchild must go too."""
    child = f"""
import os, pathlib, signal, sys
from alignlab.rollout.vllm.server import Server
server = Server("http://127.0.0.1:1", [sys.executable, "-c", "import time; time.sleep(60)"], None,
                pathlib.Path({str(tmp_path / "inner.log")!r}))
server.start()
pathlib.Path(sys.argv[2]).write_text(str(server.process.pid))
os.kill(os.getpid(), signal.SIGKILL)
"""
    server = make(child)
    server.process.wait(60)
    inner = int((tmp_path / "mark").read_text())
    for _ in range(100):
        if not alive(inner):
            return
        time.sleep(0.1)
    os.kill(inner, 9)
    pytest.fail("it lives on")


def alive(process_id):
    status = Path(f"/proc/{process_id}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_the_command_line(monkeypatch):
    settings = server_settings(vllm_executable="python", arguments=["--swap", "2"], enforce_eager=False)
    command = command_line(settings, model=Path("m"), mode="raw_logprobs", lora_rank=12, port=8000)
    words = " ".join(command)
    assert words.startswith("python -m vllm.entrypoints.openai.api_server --model m ")
    assert words.endswith("--enable-lora --swap 2")
    assert ("--no-enable-chunked-prefill" in command) == (not torch.cuda.is_available())
    assert "--enforce-eager" not in command
    for name, value in {"port": 8000, "max-lora-rank": 16, "logprobs-mode": "raw_logprobs", "dtype": "float32"}.items():
        assert f"--{name} {value}" in words


def asked_for(tmp_path, **changes):
    settings = server_settings(vllm_executable=sys.executable, **changes)
    return servers(settings, model=tmp_path, mode="processed_logprobs", lora_rank=None, log_dir=tmp_path)


def test_each_server_has_its_own_port_log_and_devices(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    one, two = asked_for(tmp_path, num_servers=2, devices=["1", "2,3"], environment={"A": "b"})
    assert one.url != two.url
    assert [one.log_file.name, two.log_file.name] == ["vllm_0.log", "vllm_1.log"]
    assert [server.environment["CUDA_VISIBLE_DEVICES"] for server in (one, two)] == ["1", "2,3"]
    assert (one.environment["A"], one.environment["HF_HUB_OFFLINE"]) == ("b", "1")
    assert "RANK" not in one.environment
    assert Path(one.environment["PYTHONPATH"], "alignlab_worker.py").exists()


def test_servers_of_others_are_only_addressed(tmp_path):
    (server,) = asked_for(tmp_path, urls=["http://node:8000/"])
    server.start()
    assert (server.url, server.process) == ("http://node:8000", None)


def test_what_cannot_be_started(tmp_path):
    with pytest.raises(InputError, match=r"rollout\.num_servers=1"):
        asked_for(tmp_path, num_servers=2, devices=["0"])
    with pytest.raises(InputError, match="make vllm"):
        servers(server_settings(), model=tmp_path, mode="raw_logprobs", lora_rank=None, log_dir=tmp_path)
    with pytest.raises(InputError, match=r"peft\.r=600"):
        command_line(server_settings(), model=tmp_path, mode="raw_logprobs", lora_rank=600, port=1)
