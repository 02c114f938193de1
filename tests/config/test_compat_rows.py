"""What each row of ``config/compat.py`` is for: its combination, run without the row.

It fails later and in other words, or a part of what was typed is lost without a word, or other numbers result. A row
whose combination works has no place there.
"""

import contextlib
import io
import re
import sys
import traceback
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import NamedTuple

import pytest
import torch
from lightning.pytorch.plugins import HalfPrecision
from transformers.utils import import_utils

from alignlab.cli.composition.compose import compose
from alignlab.config import compat, schema
from alignlab.losses.advantages import advantages
from alignlab.rollout.sampler.given import GivenCompletions
from tests.commands import QUIET, alignlab, metrics
from tests.methods.prompts import as_rows, make_tokenizer

SHORT = [
    *QUIET,
    "trainer.max_steps=2",
    "trainer.max_epochs=-1",
    "data.source.num_train=8",
    "data.source.num_validation=2",
    "data.global_batch_size=4",
    "data.batch_size_per_device=2",
    "scheduler.warmup_steps=0",
]
FULL = ["trainer.precision=32-true"]
ENGINE = ["strategy=deepspeed_z1"]
GRPO = ["method=grpo", "rollout.max_completion_tokens=4"]
VLLM = ["method=grpo", "rollout=vllm", "rollout.vllm_executable=/bin/true"]
DISK = ["strategy=deepspeed_z3_nvme", "strategy.config.zero_optimization.offload_optimizer.nvme_path=disk"]


class Case(NamedTuple):
    """A combination, and what becomes of it without its row.

    Args:
        words: The combination.
        fails: Pattern of the later failure.
        same_as: It runs as if only these words had been typed: the rest is lost.
        other_than: It runs, and the losses are not those of these words, as they should be.
        without: A package that is not installed.
        shown_by: The test that shows it with less than a run.
    """

    words: list[str]
    fails: str | None = None
    same_as: list[str] | None = None
    other_than: list[str] | None = None
    without: str | None = None
    shown_by: str | None = None


RATE = "optimizer.lr=1e-3"  # else weights of one's own get another
CASES = {
    "a path that the source does not read": Case(["data.path=rows.jsonl"], same_as=[]),
    "a format that the source does not read": Case(["data.format=messages"], same_as=[]),
    "columns that the source does not read": Case(["data.columns.prompt=question"], same_as=[]),
    "a validation file that the source does not read": Case(["data.validation_path=rows.jsonl"], same_as=[]),
    "weights named twice": Case(["init_from=pocket", "model.path=elsewhere", RATE], same_as=["init_from=pocket", RATE]),
    # Two processes each do the whole of the same work in the same folder, and one may stumble over the other's files.
    "one process on two devices": Case(
        ["strategy=single", "trainer.devices=2"], fails=r"Refused\.|\.partial", same_as=["strategy=single"]
    ),
    "weights in bfloat16": Case(["trainer.precision=bf16-true"], shown_by="rotary frequencies"),
    "a TPU without its package": Case(["trainer.accelerator=tpu"], fails="torch_xla", without="torch_xla"),
    "8 bits in shards": Case(["strategy=fsdp", "peft=qlora_8bit", "trainer.devices=2"], fails="no attribute 'CB'"),
    "Adafactor of flat weights": Case([*ENGINE, "optimizer=adafactor"], other_than=["optimizer=adafactor"]),
    "Muon of flat weights": Case([*ENGINE, "optimizer=muon"], fails="2D"),
    "an optimizer of DeepSpeed without DeepSpeed": Case(
        ["optimizer=cpu_adamw", "trainer.accelerator=cpu"], fails="is not installed", without="deepspeed"
    ),
    "weights on another device than the optimizer": Case(
        ["optimizer=cpu_adamw", "trainer.accelerator=cuda"], shown_by="stops it"
    ),
    "the address of a shard": Case(
        ["strategy=fsdp", "optimizer=cpu_adamw", "trainer.accelerator=cpu"], shown_by="end the process"
    ),
    "a disk without libaio": Case(DISK, fails="async_io"),
    "bfloat16 of the engine alone": Case([*ENGINE, *FULL, "+strategy.config.bf16.enabled=true"], other_than=ENGINE),
    "an optimizer of the engine": Case([*ENGINE, "+strategy.config.optimizer.type=SGD"], fails="NoneType"),
    "a schedule of the engine": Case([*ENGINE, "+strategy.config.scheduler.type=WarmupLR"], same_as=ENGINE),
    "clipping of the engine": Case([*ENGINE, "+strategy.config.gradient_clipping=1e-6"], same_as=ENGINE),
    "a batch size of the engine": Case([*ENGINE, "+strategy.config.train_batch_size=64"], fails="Check batch related"),
    "a micro-batch size of the engine": Case(
        [*ENGINE, "+strategy.config.train_micro_batch_size_per_gpu=64"], same_as=ENGINE
    ),
    "accumulation of the engine": Case([*ENGINE, "+strategy.config.gradient_accumulation_steps=8"], fails="Do not set"),
    "prefix tuning in packed rows": Case(["peft=prefix", "data.packing=true"], fails="differ by"),
    "quantisation without its package": Case(["peft=qlora"], fails="bitsandbytes", without="bitsandbytes"),
    "float16 on a CPU": Case(
        ["trainer.precision=16-mixed", "trainer.accelerator=cpu"],
        same_as=["trainer.precision=bf16-mixed", "trainer.accelerator=cpu"],
    ),
    "accumulation of the trainer": Case(["trainer.accumulate_grad_batches=4"], fails="manual optimization"),
    "a standardised divergence": Case(
        [*GRPO, "method.aggregation=normalize_then_sum", "method.reward_kl_coef=0.1"], shown_by="coefficients"
    ),
    "a standardised penalty": Case(
        [*GRPO, "method.aggregation=normalize_then_sum", "method.truncated=penalise"], shown_by="coefficients"
    ),
    "vLLM narrowed at a temperature": Case(
        [*VLLM, "rollout.temperature=0.5", "rollout.top_k=5"], fails="before temperature or after truncation"
    ),
    "vLLM without a program": Case(
        ["method=grpo", "rollout=vllm", "rollout.vllm_executable=/nowhere"], fails="there is no such program"
    ),
    "vLLM with DoRA": Case([*VLLM, "peft=dora"], fails="vLLM supports LoRA only"),
    "rollouts of a method that samples nothing": Case(["rollout=hf"], fails="unexpected keyword argument"),
    "a baseline that the data does not hold": Case(
        ["method=grpo", "rollout=data", "method/reward=given", "method.estimator=remax"], shown_by="greedy completion"
    ),
    "prompts of a stream": Case([*GRPO, "data.streaming=true"], fails="NoneType"),
    "a reference computed ahead of a stream": Case(
        ["method=dpo", "data.streaming=true", "method.precompute_reference=true"], fails="NoneType"
    ),
    "a moving reference computed ahead": Case(
        ["method=dpo", "method.reference=ema", "method.precompute_reference=true"], fails="NoneType"
    ),
    "a sorted stream": Case(
        ["data.streaming=true", "data.order=by_length"], same_as=["data.streaming=true", "data.order=as_is"]
    ),
    "a curriculum of nothing": Case(["data.order=curriculum"], fails="no number of that name"),
}


def rows_of(words):
    """The rows that refuse a combination."""
    config = compat.Config(schema.check(compose(words)))
    return [row for row in compat.ROWS if row.when(config)]


def losses(words, folder):
    """Of a short run with no row in the way; or a text that says how it failed."""
    rows, compat.ROWS = compat.ROWS, ()
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            code = alignlab("train", *SHORT, *words, f"run_dir={folder}")
    except Exception:
        return traceback.format_exc()
    finally:
        compat.ROWS = rows
    return told.getvalue() if code else [row["train/loss"] for row in metrics(folder)]


@pytest.fixture
def losses_of(tmp_path):
    """``losses`` by words; in a process of its own where a strategy leaves process groups and engines behind."""

    def run(words):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        words = [*words, f"data.cache_dir={folder}-cache"]
        if not any(word.startswith("strategy=") for word in words):
            return losses(words, folder)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(losses, words, folder).result(timeout=300)

    return run


@pytest.fixture
def absent(monkeypatch):
    """Let a package be missing."""

    def hide(name):
        if name:
            monkeypatch.setitem(sys.modules, name, None)

    yield hide
    import_utils.is_bitsandbytes_available.cache_clear()  # Transformers remembers that it was missing


@pytest.mark.parametrize("name", CASES)
def test_one_row_refuses_each_combination(name, absent, monkeypatch):
    monkeypatch.setattr(compat, "_has_asynchronous_io", lambda: False)
    absent(CASES[name].without)
    assert len(rows_of(CASES[name].words)) == 1


def test_every_row_has_its_combination(absent, monkeypatch):
    monkeypatch.setattr(compat, "_has_asynchronous_io", lambda: False)
    for name in ("torch_xla", "bitsandbytes", "deepspeed"):
        absent(name)
    covered = [row for case in CASES.values() for row in rows_of(case.words)]
    assert [row for row in compat.ROWS if row not in covered] == []


def slow_ones(name):
    """Strategies start processes of their own."""
    return pytest.param(name, marks=[pytest.mark.slow] if CASES[name].words[0].startswith("strategy=") else [])


@pytest.mark.parametrize("name", [slow_ones(name) for name, case in CASES.items() if case.fails and not case.same_as])
def test_without_its_row_it_fails_later(name, losses_of, absent):
    case = CASES[name]
    if case.words is DISK and compat._has_asynchronous_io():
        pytest.skip("libaio is installed")
    absent(case.without)
    found = losses_of(case.words)
    assert isinstance(found, str) and re.search(case.fails, found)


@pytest.mark.filterwarnings("ignore:You passed .*precision=.16-mixed")
@pytest.mark.parametrize("name", [slow_ones(name) for name, case in CASES.items() if case.same_as is not None])
def test_without_its_row_a_part_is_lost_without_a_word(name, losses_of):
    case = CASES[name]
    found = losses_of(case.words)
    if case.fails and isinstance(found, str):
        assert re.search(case.fails, found)
    else:
        assert len(found) >= 2 and set(found) == set(losses_of(case.same_as))


@pytest.mark.parametrize("name", [slow_ones(name) for name, case in CASES.items() if case.other_than is not None])
def test_without_its_row_other_numbers_result(name, losses_of):
    found, right = losses_of(CASES[name].words), losses_of(CASES[name].other_than)
    assert len(found) == len(right) == 2 and found != pytest.approx(right, rel=1e-3)


def test_weights_in_bfloat16_blur_positions():
    """Lightning casts every buffer too: 512 positions on, some rotary angle is off by over 0.06."""
    frequencies = 1 / 10000 ** (torch.arange(0, 64, 2) / 64)
    module = torch.nn.Module()
    module.register_buffer("inv_freq", frequencies.clone())
    HalfPrecision("bf16-true").convert_module(module)
    assert module.inv_freq.dtype == torch.bfloat16
    assert ((module.inv_freq.float() - frequencies).abs().max() * 512).item() > 0.06


def test_rows_hold_no_greedy_completion():
    """Asked for the most probable completion, the data gives those that it has."""
    row = as_rows([[1, 2]])[0]
    row.record["columns"] = {"completions": [[5], [6]]}
    draws = GivenCompletions(temperature=1.0, max_completion_tokens=4)
    options = {"num_completions": 1, "stop_tokens": [63], "tokenizer": make_tokenizer(), "generator": []}
    assert draws(None, [row], **options, greedy=True).token_lists() == [[5], [6]]


def test_coefficients_of_standardised_columns_change_nothing():
    """A penalty of 0.1 and one of 100 give the same advantages, as each column is divided by its own deviation."""
    reward, penalty = torch.tensor([1.0, 0.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 1.0, 0.0])
    settings = {"estimator": "grpo", "scale": "group", "aggregation": "normalize_then_sum"}

    def by(coefficient):
        columns = torch.stack([reward, -coefficient * penalty], 1)
        return advantages(columns, torch.ones(2), torch.zeros(4, dtype=torch.long), **settings)

    # The 1e-4 beside the deviation of 0.058 is 0.2 % of it.
    torch.testing.assert_close(by(0.1), by(100.0), rtol=1e-2, atol=5e-3)
