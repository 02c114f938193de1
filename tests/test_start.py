"""What is answered before torch is imported, which takes seconds."""

import json
import subprocess
import sys

from alignlab.cli.main import VERBS
from tests.commands import REPOSITORY, alignlab

HEAVY = ("torch", "lightning", "transformers", "datasets", "matplotlib", "pandas", "numpy")

SCRIPT = f"""
import contextlib, io, json, sys
from alignlab.cli.main import main
for words in json.loads(sys.argv[1]):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main(words)
    print(json.dumps([code, said.getvalue(), [name for name in {HEAVY} if name in sys.modules]]))
"""

MISSPELT = {
    "methd=sft": ["Did you mean 'method'?"],
    "method.betaa=1 method=dpo": ["Did you mean 'method.beta'?"],
    "method=grpo peft=lora peft.rr=2 trainer.max_step=3": ["'peft.r'", "'trainer.max_steps'"],
    "data=jsonl optimizer.lrr=1 seed=-1": ["'optimizer.lr'", "data.path: it has no default", "seed=-1"],
    "method=nothing": ["method has no option 'nothing'"],
}
"""Command lines, and parts of their refusals."""


def answered(*lines):
    """For each command line, given one after another to one process: exit code, text, and heavy packages imported."""
    command = [sys.executable, "-c", SCRIPT, json.dumps(lines)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_help_imports_nothing_heavy():
    for code, text, heavy in answered(["--help"], *([verb, "--help"] for verb in VERBS)):
        assert code == 0 and text and not heavy, text


def test_misspelt_keys_are_refused_before_heavy_imports_in_the_words_of_the_whole_check(capsys):
    lines = [["train", *words.split()] for words in MISSPELT]
    for line, parts, (code, text, heavy) in zip(lines, MISSPELT.values(), answered(*lines), strict=True):
        assert code == 2 and not heavy
        assert all(part in text for part in parts)
        assert alignlab(*line, "--cfg", "job") == 2  # refused by the whole check
        assert capsys.readouterr().err.splitlines() == text.splitlines()


def test_a_wrong_value_elsewhere_is_reported_together_with_a_misspelt_key(capsys):
    assert alignlab("train", "method.betaa=1", "method=dpo", "optimizer.lr=-1") == 2
    refusal = capsys.readouterr().err
    assert "method.betaa=1" in refusal and "optimizer.lr=-1" in refusal
