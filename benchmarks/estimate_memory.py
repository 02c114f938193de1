"""Estimated and measured memory of runs: methods, adapters and strategies.

    python -m benchmarks.estimate_memory                 # all cases; the table of docs/estimate.md
    python -m benchmarks.estimate_memory sft_3m dpo_30m  # some of them

Each case is trained for three optimizer steps by ``train.py``, and estimated by ``alignlab estimate`` for the same
words. On a CPU, with models of 3 to 120 million parameters and an allocator that keeps nothing, measured is the largest
``VmHWM`` (peak resident set) of its processes. Where there is a GPU, the cases are others, of 0.5 to 1.5 billion
parameters; measured is how much less memory the card has free.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from benchmarks.gpu_speed import SIZES as LARGE
from benchmarks.gpu_speed import VOCABULARY
from benchmarks.strategy_memory import ARCHITECTURE, write_model

REPOSITORY = Path(__file__).resolve().parents[1]
MIB = 2**20
SIZES = {
    "3m": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4},
    "30m": {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 8},
    "120m": ARCHITECTURE,
    **{
        size.lower(): {**LARGE[size], "num_key_value_heads": 2, "vocab_size": VOCABULARY[size]}
        for size in ("0.5B", "1.5B")
    },
}
RETURNS_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
"""Settings of glibc with which it returns what is freed to the system. By default it keeps blocks of up to 32 MiB, and
a process with 34 million parameters was 24 to 26 % larger."""

ROWS = ["data=arithmetic", "data.source.num_train=200", "data.source.num_validation=4"]
SHORT = ["trainer.max_steps=3", "logger=none", "callbacks=none", "trainer.accelerator=cpu"]
BATCHES = ["data.global_batch_size=32", "data.batch_size_per_device=8"]
SAMPLES = [
    "data.global_batch_size=4",
    "method.num_completions=8",
    "rollout.max_completion_tokens=64",
    "rollout.top_k=1",
]
"""The most probable tokens of random weights repeat themselves, so that completions have the maximum length, as is
estimated."""
TWO = ["trainer.devices=2"]
CASES: dict[str, tuple[str, list[str]]] = {
    "sft_3m": ("3m", ["method=sft", *BATCHES]),
    "sft_120m": ("120m", ["method=sft", *BATCHES]),
    "sft_120m_fsdp": ("120m", ["method=sft", *BATCHES, "strategy=fsdp", *TWO]),
    "sft_30m_z3": ("30m", ["method=sft", *BATCHES, "strategy=deepspeed_z3", *TWO]),
    "dpo_30m": ("30m", ["method=dpo", *BATCHES]),
    "dpo_120m_lora": ("120m", ["method=dpo", *BATCHES, "peft=lora"]),
    "group_dpo_30m_fsdp": ("30m", ["method=group_dpo", *BATCHES, "strategy=fsdp", *TWO]),
    "grpo_30m": ("30m", ["method=grpo", *SAMPLES]),
    "grpo_120m_lora_z3": ("120m", ["method=grpo", *SAMPLES, "peft=lora", "strategy=deepspeed_z3", *TWO]),
    "ppo_30m_separate": ("30m", ["method=ppo", *SAMPLES, "method.critic=separate"]),
    "reward_model_30m": ("30m", ["method=reward_model", *BATCHES]),
    "reward_model_120m_lora_fsdp": ("120m", ["method=reward_model", *BATCHES, "peft=lora", "strategy=fsdp", *TWO]),
}
FULL = ["data.source.num_train=2000", "data.global_batch_size=512", "data.batch_size_per_device=512"]
FULL += ["data.max_tokens_per_micro_batch=12288", "trainer.precision=bf16-mixed"]
GPU_CASES: dict[str, tuple[str, list[str]]] = {
    "gpu_sft_1.5b": ("1.5b", ["method=sft", *FULL]),
    "gpu_sft_0.5b_checkpointed_bf16": (
        "0.5b",
        ["method=sft", *FULL, "model.dtype=bfloat16", "model.gradient_checkpointing=true", "optimizer=adamw_8bit"],
    ),
    "gpu_dpo_0.5b": ("0.5b", ["method=dpo", *FULL]),
    "gpu_grpo_0.5b": (
        "0.5b",
        ["method=grpo", *FULL, "method.num_completions=8", "data.global_batch_size=16", "rollout.dtype=bfloat16"],
    ),
}


def words_of(name: str, folder: Path) -> list[str]:
    """The words of a case. An adapter needs weights on a disk, others are random."""
    size, words = {**CASES, **GPU_CASES}[name]
    short = SHORT[:-1] if name in GPU_CASES else SHORT
    sizes = {"num_key_value_heads": SIZES[size]["num_attention_heads"], **SIZES[size]}
    model = ["model=scratch", *(f"model.config.{key}={value}" for key, value in sizes.items())]
    if "peft=lora" in words:
        if not (folder / "model").is_dir():
            write_model(folder / "model")
        return [*ROWS, *words, *short, f"model.path={folder / 'model'}"]
    return [*ROWS, *words, *short, *model]


def measured(words: list[str], folder: Path) -> int:
    """Peak of a training in bytes: the resident set of its largest process, or what it took of a card."""
    found = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", **RETURNS_MEMORY}
    command = [sys.executable, REPOSITORY / "train.py", *words, f"run_dir={folder / 'run'}", "overwrite=true"]
    with (folder / "train.log").open("w") as log:
        process = subprocess.Popen(command, env=found, stdout=log, stderr=log)
        peak, before = 0, free_on_card()
        while process.poll() is None:
            if before:
                peak = max(peak, before - free_on_card())
            else:
                peak = max([peak, *(resident_peak(number) for number in family(process.pid))])
            time.sleep(0.01)  # memory of a card has no recorded peak
    if process.returncode:
        raise SystemExit((folder / "train.log").read_text()[-3000:])
    return peak


def free_on_card() -> int:
    """Free bytes of the first card; 0 without one."""
    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else 0


def family(number: int) -> Iterator[int]:
    """A process and all that it started."""
    yield number
    try:
        children = Path(f"/proc/{number}/task/{number}/children").read_text().split()
    except OSError:
        return
    for child in children:
        yield from family(int(child))


def resident_peak(number: int) -> int:
    """``VmHWM`` of a process in bytes; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{number}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def estimated(words: list[str], folder: Path) -> dict:
    """What ``alignlab estimate`` says of the same words."""
    file = folder / "estimate.json"
    program = "import sys; from alignlab.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "estimate", *words, f"estimate.json={file}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return json.loads(file.read_text())


def main() -> None:
    """Print a row of the table for each case."""
    print("| case | parameters | estimated | measured | difference | moment |\n|---|--:|--:|--:|--:|---|", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        for name in sys.argv[1:] or (GPU_CASES if torch.cuda.is_available() else CASES):
            words = words_of(name, Path(scratch))
            found, peak = estimated(words, Path(scratch)), measured(words, Path(scratch))
            sizes = [f"{size / MIB:,.0f}" for size in (found["peak_bytes"], peak)]
            numbers = [f"{found['parameters'] / 1e6:.0f} M", *sizes, f"{found['peak_bytes'] / peak - 1:+.0%}"]
            print(f"| `{name}` | {' | '.join(numbers)} | {found['peak_moment']} |", flush=True)


if __name__ == "__main__":
    main()
