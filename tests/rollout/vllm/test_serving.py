"""``alignlab serve``: what a server is started with and how it ends, by a stand-in; and the real one's answers."""

import json
import multiprocessing
import os
import signal
import stat
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from alignlab.models import adapters, export
from tests.commands import alignlab
from tests.models.test_export import KINDS, disturb, pretrained
from tests.rollout.vllm.policy import POCKET

SECONDS = 60
STAND_IN = """\
#!{python}
import json, os, pathlib, signal, sys, time
model = pathlib.Path(sys.argv[sys.argv.index("--model") + 1])
files = sorted(path.name for path in model.iterdir())
stops = json.loads((model / "generation_config.json").read_text())["eos_token_id"]
noted = dict(words=sys.argv[1:], files=files, stops=stops, environment=dict(os.environ))
pathlib.Path("started.json").write_text(json.dumps(noted))
if {code} is not None:
    sys.exit({code})
signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path("ended").touch(), sys.exit(0)))
time.sleep(60)
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Makes a program in place of vLLM's Python: it notes what it gets, and waits for SIGTERM or exits with a code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)

    def make(code=None):
        program = tmp_path / "vllm_python"
        program.write_text(STAND_IN.format(python=sys.executable, code=code))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        return program

    return make


@pytest.fixture
def adapter(tmp_path):
    """A LoRA of the embedded model with stop tokens of its own."""
    tokenizer = AutoTokenizer.from_pretrained(POCKET)
    model = disturb(adapters.attach(pretrained("pocket").load_model(tokenizer), KINDS["lora"]()))
    model.generation_config.eos_token_id = [1, 7]
    export.save(model, tokenizer, tmp_path / "adapter")
    return tmp_path / "adapter"


def _run(words):
    sys.exit(alignlab(*words))


def start(*words):
    """``alignlab serve WORDS`` in a process of its own."""
    process = multiprocessing.Process(target=_run, args=(["serve", *words],))
    process.start()
    return process


def wait_for(file: Path):
    until = time.monotonic() + SECONDS
    while not file.exists() or not file.stat().st_size:
        assert time.monotonic() < until, f"no {file} after {SECONDS} s"
        time.sleep(0.05)


def started():
    return json.loads(Path("started.json").read_text())


def test_an_adapter_is_merged_for_the_server_which_ends_with_the_command(stand_in, adapter, tmp_path, free_port):
    process = start(adapter, f"vllm_executable={stand_in()}", f"port={free_port}", 'arguments=["--seed", "5"]')
    wait_for(tmp_path / "started.json")
    time.sleep(0.2)  # until it has its handler
    process.terminate()
    process.join(SECONDS)
    assert process.exitcode == 128 + signal.SIGTERM and (tmp_path / "ended").exists()
    noted = started()
    assert "model.safetensors" in noted["files"] and "adapter_config.json" not in noted["files"]
    assert "chat_template.jinja" in noted["files"] and noted["stops"] == [1, 7]
    words = noted["words"]
    given = {words[i].removeprefix("--"): words[i + 1] for i in range(2, len(words) - 1)}
    assert (given["served-model-name"], given["host"], given["port"]) == (str(adapter), "127.0.0.1", str(free_port))
    assert given["seed"] == "5" and "VLLM_SERVER_DEV_MODE" not in noted["environment"]
    assert not Path(given["model"]).exists() and not list(tmp_path.glob("alignlab_serve_*"))


def test_full_weights_are_served_as_they_are_and_merged_ones_may_be_kept(
    stand_in, adapter, tmp_path, free_port, capsys
):
    words = [f"vllm_executable={stand_in(code=0)}", f"port={free_port}"]
    assert alignlab("serve", "pocket", *words) == 0
    assert str(POCKET) in started()["words"]
    assert alignlab("serve", adapter, "to=merged", *words) == 0
    assert GenerationConfig.from_pretrained("merged").eos_token_id == [1, 7]
    assert alignlab("serve", adapter, "to=merged", *words) == 2
    assert "to=merged: it exists and is not empty" in capsys.readouterr().err


def test_a_server_that_fails_fails_the_command(stand_in, free_port, capsys):
    assert alignlab("serve", "pocket", f"vllm_executable={stand_in(code=3)}", f"port={free_port}") == 1
    assert "serving pocket: vLLM ended with exit code 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], 'vLLM is not installed. Type pip install "alignlab[vllm]", or make vllm'),
        (["vllm_executable=no/python"], "vllm_executable=no/python: there is no such program"),
        (["vllm_executable=PROGRAM", "host=203.0.113.1"], "host=203.0.113.1 port=8000"),
        (["vllm_executable=PROGRAM", "to=out"], "vLLM reads as they are"),
        (["vllm_executable=PROGRAM", "from=gone/away/now"], "from=gone/away/now: no config.json"),
    ],
)
def test_what_cannot_be_served_is_refused(stand_in, words, told, capsys):
    program = stand_in(code=0)
    assert alignlab("serve", "from=pocket", *(word.replace("PROGRAM", str(program)) for word in words)) == 2
    assert told in capsys.readouterr().err and not Path("started.json").exists()


@pytest.mark.vllm
def test_the_real_server_answers_as_transformers_does(adapter, tmp_path, free_port, monkeypatch):
    python = os.environ.get("ALIGNLAB_VLLM", str(Path(__file__).resolve().parents[3] / ".venv-vllm" / "bin" / "python"))
    if not os.access(python, os.X_OK):
        pytest.skip(f"no vLLM environment: {python}")
    process = start(
        adapter, f"to={tmp_path / 'merged'}", f"vllm_executable={python}", f"port={free_port}", "dtype=float32"
    )
    try:
        until, text = time.monotonic() + 300, None
        while text is None:
            assert process.is_alive() and time.monotonic() < until
            text = ask(free_port, str(adapter))
    finally:
        process.terminate()
        process.join(SECONDS)
    assert process.exitcode == 143
    model, tokenizer = (kind.from_pretrained(tmp_path / "merged") for kind in (AutoModelForCausalLM, AutoTokenizer))
    turn = [{"role": "user", "content": QUESTION}]
    ids = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    tokens = model.generate(**ids, max_new_tokens=48, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert text == tokenizer.decode(tokens, skip_special_tokens=True)


QUESTION = "What is 59 + 63?"


def ask(port, name):
    """The greedy answer by OpenAI's API; None while nothing listens."""
    body = {"model": name, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 48}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request) as answered:
            return json.load(answered)["choices"][0]["message"]["content"]
    except urllib.error.URLError:
        time.sleep(1)
        return None
