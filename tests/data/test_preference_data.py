"""Real comparisons, every adapter and a large vocabulary: dpo and group_dpo train on them, and within memory."""

import json
import subprocess
import sys
from pathlib import Path
from statistics import mean

import pytest

from tests.commands import QUIET, alignlab, metrics, summary

STEPS = 20
LEARN = [
    *QUIET,
    f"trainer.max_steps={STEPS}",
    "trainer.max_epochs=-1",
    "trainer.val_check_interval=20",
    "data=jsonl",
    "data.global_batch_size=4",
    "data.batch_size_per_device=4",
    "data.truncation=right_completion",
    "data.max_dropped_fraction=1.0",
    "data.max_tokens_per_sequence=512",
    "optimizer.lr=1e-3",
    "scheduler=constant",
    "scheduler.warmup_steps=0",
]
FILES = {
    "preference/dpo_en_sharegpt_100.json": ["data.validation_size=2"],
    "preference/dpo_zh_sharegpt_100.json": ["data.validation_size=2"],
    "preference/messages_dpo_5.jsonl": ["data.validation_size=null"],
    "groups/gsm8k_solution_groups_100.jsonl": ["data.validation_size=2"],
    "groups/alpacaeval_ranked_60.jsonl": ["data.validation_size=2"],
}
QUICK = {("preference/messages_dpo_5.jsonl", method) for method in ("dpo", "group_dpo")}


OWN = {
    "pairs": lambda n: {"prompt": f"{n}+1=", "chosen": f"{n + 1}", "rejected": f"{n}"},
    "dialogues": lambda n: {
        "chosen_messages": [turn("user", f"{n}+1="), turn("assistant", f"{n + 1}")],
        "rejected_messages": [turn("user", f"{n}+1="), turn("assistant", f"{n}")],
    },
    "groups": lambda n: {"question": f"{n}+1=", "chosen": f"{n + 1}", "rejected": [f"{n}", f"{n + 2}"]},
    "ranked": lambda n: {"prompt": f"{n}+1=", "completions": [f"{n}", f"{n + 1}"], "scores": [0, 1]},
}
"""A row of each format."""


def turn(role, content):
    return {"role": role, "content": content}


def cases(tuples, quick):
    """Those of a table; what is not among the quick ones is left to the long suite."""
    return [pytest.param(*one, marks=[] if one in quick else [pytest.mark.slow]) for one in tuples]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def assert_learned(run):
    losses = [row["train/loss"] for row in metrics(run)]
    assert len(losses) == STEPS
    assert mean(losses[-5:]) < mean(losses[:5])
    assert summary(run)["status"] == "done"


@pytest.mark.parametrize(
    ("name", "method"),
    cases([(n, m) for n in OWN for m in ("dpo", "group_dpo")], {("dialogues", "dpo"), ("groups", "group_dpo")}),
)
def test_the_loss_falls_on_rows_of_every_format(tmp_path, name, method):
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(OWN[name](n)) for n in range(10, 30)))
    words = [f"method={method}", f"data.path={tmp_path / 'rows.jsonl'}", "data.validation_size=2"]
    assert alignlab("train", *LEARN, *words, f"run_dir={tmp_path / 'run'}") == 0
    assert_learned(tmp_path / "run")


@pytest.mark.parametrize(("file", "method"), cases([(f, m) for f in FILES for m in ("dpo", "group_dpo")], QUICK))
def test_the_loss_falls_on_every_real_file(shared, tmp_path, file, method):
    model = f"model.path={shared / 'data/models/stories260K'}"
    words = [f"method={method}", model, f"data.path={shared / 'data' / file}", *FILES[file]]
    assert alignlab("train", *LEARN, *words, f"run_dir={tmp_path / 'run'}") == 0
    assert_learned(tmp_path / "run")


SHORT = [
    *QUIET,
    "trainer.max_steps=3",
    "trainer.max_epochs=-1",
    "data.source.num_train=12",
    "data.source.num_validation=4",
    "data.global_batch_size=4",
    "data.batch_size_per_device=2",
    "scheduler.warmup_steps=0",
]
PEFTS = {
    "lora": [],
    "qlora": ["trainer.precision=32-true"],
    "dora": [],
    "prefix": [],
    "ia3": [],
    "llama_adapter": ["data.packing=false"],
}


@pytest.mark.parametrize(
    ("method", "peft"),
    cases([(m, p) for m in ("dpo", "group_dpo") for p in PEFTS], {("dpo", "prefix"), ("group_dpo", "lora")}),
)
def test_every_adapter_learns_from_comparisons(tmp_path, method, peft):
    """Three steps change the loss from that of equal policies; the result is one adapter, without the reference."""
    words = [f"method={method}", f"peft={peft}", *PEFTS[peft], f"run_dir={tmp_path / 'run'}"]
    assert alignlab("train", *SHORT, *words) == 0
    rewards = [row["rewards/chosen"] for row in metrics(tmp_path / "run")]
    assert rewards[0] == pytest.approx(0, abs=1e-4) and rewards[2] != rewards[0]
    assert (tmp_path / "run/model/adapter_config.json").exists()
    assert not (tmp_path / "run/model/reference").exists()


def test_an_adapter_goes_on_against_what_it_was(tmp_path):
    """A second stage from the first one's adapter starts at log-ratios of 0, not at the distance from the base."""
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    assert alignlab("train", "method=dpo", *SHORT, "peft=lora", "optimizer.lr=1e-2", f"run_dir={first}") == 0
    assert alignlab("train", "method=dpo", *SHORT, f"init_from={first}", f"run_dir={second}") == 0
    words = ["method.reference=base", f"init_from={first}", f"run_dir={third}"]
    assert alignlab("train", "method=dpo", *SHORT, *words) == 0
    assert metrics(second)[0]["train/loss"] == pytest.approx(0.693147, abs=1e-5)
    assert abs(metrics(third)[0]["train/loss"] - 0.693147) > 1e-3
    assert not (second / "model/reference").exists()


MEASURE = """
import re, sys, torch
from pathlib import Path
from alignlab.models import scoring
scoring.token_scores.__defaults__ = (int(sys.argv[1]),)
from transformers import LlamaConfig, LlamaForCausalLM
from tests.methods.toy import METHODS, Rows, fit, make_loader, make_method
from alignlab.types.rows import TokenRow
torch.set_num_threads(1)

def peak():  # getrusage would count what the process that started this one holds
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

def make_policy():
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    return LlamaForCausalLM._from_config(LlamaConfig(vocab_size=151936, pad_token_id=0, **sizes),
                                         attn_implementation="packed")

tokens, flags = list(range(1, 111)), [False] * 10 + [True] * 100
rows = Rows(TokenRow(tokens, flags, [[10, 50, 50]], "", {"row": index}) for index in range(8))
before = peak()
_, steps = fit(make_method("dpo", policy=make_policy, lr=0.1), make_loader(rows, 8, num_steps=1), weights=False)
print((peak() - before) // 1024, steps[0]["train/loss"])
"""


def peak(max_logits):
    """Mebibytes that a step adds at most, and its loss."""
    done = subprocess.run([sys.executable, "-c", MEASURE, str(max_logits)], capture_output=True, text=True, check=True)
    mebibytes, loss = done.stdout.split()[-2:]
    return int(mebibytes), float(loss)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read from /proc")
@pytest.mark.slow
def test_chunks_of_the_vocabulary_head_bound_the_memory_of_dpo():
    """800 targets over 151,936 tokens are 464 MiB of float32 logits, and several times that with gradients.

    In chunks of 2^24 logits (64 MiB) the loss is the same.
    """
    whole, expected = peak(2**40)
    chunked, loss = peak(2**24)
    print(f"peak of a step: {whole} MiB whole, {chunked} MiB in chunks")
    assert loss == pytest.approx(expected, rel=1e-5)
    assert chunked < 0.4 * whole
