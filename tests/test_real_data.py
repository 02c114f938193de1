"""Files of every format: training runs and the loss falls, also on real ones with a real model and real tokenizers."""

import gzip
import json
import shutil
from statistics import mean

import pytest

from tests.commands import QUIET, alignlab, metrics, summary

STEPS = 20
COMMON = [
    *QUIET,
    f"trainer.max_steps={STEPS}",
    "trainer.max_epochs=-1",
    "trainer.val_check_interval=20",
    "data.global_batch_size=4",
    "data.batch_size_per_device=4",
    "data.truncation=right_completion",
    "data.max_dropped_fraction=1.0",
    "data.validation_size=2",
    "optimizer.lr=3e-3",
    "scheduler=constant",
    "scheduler.warmup_steps=0",
]
SFT = {
    "alpaca_data_cleaned_first_100_lines.jsonl": [],
    "alpaca_en_200.json": [],
    "alpaca_zh_200.json": [],
    "gsm8k_test_300.jsonl": [],
    "gsm8k_train_1000.jsonl": [],
    "huanhuan_zh_100.json": [],
    "messages_bare_list_100.jsonl": [],
    "messages_content_parts_60.jsonl": [],
    # Rows with a verdict are Unpaired by detection; named, they are demonstrations.
    "messages_kto_50.json": ["data.format=messages"],
    # The prompts alone are longer than the model's context.
    "messages_reason_tool_10.jsonl": ["data.truncation=left_prompt", "data.loss_on=last"],
    # Five of its 17 rows hold images or videos.
    "messages_reasoning_tokenize.jsonl": ["data.bad_rows=drop"],
    "multi_turn_sharegpt_200.jsonl": [],
    "openai-gsm8k_first_100_lines.jsonl": [],
    "toolcall_sharegpt_40.json": [],
}
QUICK = {
    "alpaca_en_200.json", "gsm8k_test_300.jsonl", "messages_content_parts_60.jsonl", "messages_kto_50.json",
    "messages_reason_tool_10.jsonl", "messages_reasoning_tokenize.jsonl", "toolcall_sharegpt_40.json",
    "c4_50.jsonl", "tinyshakespeare_first_300k.txt",
}  # fmt: skip
TEXT = {
    "c4_50.jsonl": [],
    "mlx_demo_text_200.jsonl": [],
    "tinyshakespeare_first_300k.txt": ["data.validation_size=0.05"],
    "wiki_2_long_lines.txt": ["data.validation_size=0.05"],
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def assert_learned(run, validated=True):
    losses = [row["train/loss"] for row in metrics(run)]
    assert len(losses) == STEPS
    assert mean(losses[-5:]) < mean(losses[:5])
    assert summary(run)["status"] == "done"
    assert ("val/loss" in summary(run)["metrics"]) == validated


def each(names):
    return [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in names]


def turns(n, role="role", content="content", user="user", assistant="assistant"):
    return [{role: user, content: f"{n}+1="}, {role: assistant, content: f"{n + 1}"}]


OWN = [
    lambda n: {"instruction": "Add.", "input": f"{n}+1=", "output": f"{n + 1}"},
    lambda n: {"question": f"{n}+1=", "answer": f"{n + 1}"},
    lambda n: {"messages": turns(n)},
    lambda n: {"conversations": turns(n, "from", "value", "human", "gpt") * 2},
    lambda n: {"messages": [turns(n)[0] | {"content": [{"type": "text", "value": f"{n}+1="}]}, turns(n)[1]]},
]
"""A demonstration in each format."""


def test_sft_learns_from_rows_of_every_format(tmp_path):
    rows = [make(n) for n in range(10, 20) for make in OWN]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["data=jsonl", f"data.path={tmp_path / 'rows.jsonl'}"]
    assert alignlab("train", *COMMON, *words, f"run_dir={tmp_path / 'run'}") == 0
    assert_learned(tmp_path / "run")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.txt"])
def test_pretraining_learns_from_rows_and_from_a_document(tmp_path, name):
    texts = [f"{n}+1={n + 1}" for n in range(10, 40)]
    document = "\n\n".join(texts * 4)
    (tmp_path / name).write_text(document if name == "rows.txt" else "\n".join(json.dumps({"text": t}) for t in texts))
    words = ["data=jsonl", f"data.path={tmp_path / name}", "data.max_tokens_per_sequence=64"]
    words += ["data.validation_size=0.1"] if name == "rows.txt" else []
    assert alignlab("train", "method=pretrain", *COMMON, *words, f"run_dir={tmp_path / 'run'}") == 0
    assert_learned(tmp_path / "run")


# --- real files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", each(SFT))
def test_sft_learns_every_file(shared, tmp_path, name):
    model = f"model.path={shared / 'data/models/stories260K'}"
    words = ["data=jsonl", f"data.path={shared / 'data/sft' / name}", "data.max_tokens_per_sequence=512", *SFT[name]]
    assert alignlab("train", *COMMON, model, *words, f"run_dir={tmp_path / 'run'}") == 0
    # Of its ten long rows none of the two that are held out fits the model's context.
    assert_learned(tmp_path / "run", validated=name != "messages_reason_tool_10.jsonl")


@pytest.mark.parametrize("name", each(TEXT))
def test_pretraining_learns_every_text(shared, tmp_path, name):
    model = f"model.path={shared / 'data/models/stories260K'}"
    words = ["data=jsonl", f"data.path={shared / 'data/text' / name}", "data.max_tokens_per_sequence=256", *TEXT[name]]
    assert alignlab("train", "method=pretrain", *COMMON, model, *words, f"run_dir={tmp_path / 'run'}") == 0
    assert_learned(tmp_path / "run")


LARGE = [pytest.param(name, marks=pytest.mark.slow) for name in ("smollm2", "qwen2.5", "qwen3")]


@pytest.mark.parametrize("name", ["minimind", *LARGE])
def test_scratch_learns_with_every_tokenizer(shared, tmp_path, name):
    folder = shutil.copytree(shared / "data/tokenizers" / name, tmp_path / name)
    packed = shared / "data/tokenizers" / ("qwen2.5" if name == "qwen3" else name) / "tokenizer.json.gz"
    if packed.exists():
        (folder / "tokenizer.json").write_bytes(gzip.decompress(packed.read_bytes()))
    words = ["model=scratch", f"model.tokenizer={folder}", "model.config.hidden_size=32", "data=jsonl"]
    words += [f"data.path={shared / 'data/sft/gsm8k_test_300.jsonl'}", "data.max_tokens_per_sequence=512"]
    assert alignlab("train", *COMMON, *words, f"run_dir={tmp_path / 'run'}") == 0
    assert_learned(tmp_path / "run")
    assert (tmp_path / "run/model/tokenizer.json").exists()
