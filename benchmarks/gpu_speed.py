"""Speed of one kind of training on one device: tokens per second, peak memory, and the share of time by part.

    python benchmarks/gpu_speed.py prepare FOLDER           # random models and data, once
    python benchmarks/gpu_speed.py sft FOLDER --size 1.5B   # one case; the result is the last line, in JSON

``gpu_check.py`` runs every case. Steps are those of ``train.py``; checkpoints and the final model are left out. Models
are of the Qwen2 kind with random weights and a vocabulary of 151,936; the tokenizer is that of the embedded model.
"""

import argparse
import json
import random
import statistics
import time
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import lightning
import torch
from filelock import FileLock
from torch.profiler import ProfilerActivity, profile

NUM_WARM_UP, NUM_MEASURED = 3, 5
NUM_STEPS = NUM_WARM_UP + NUM_MEASURED + 1

SIZES: dict[str, dict[str, int]] = {
    "0.5B": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14},
    "1.5B": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
}
VOCABULARY = {"0.5B": 151_936, "1.5B": 151_936, "tiny": 1024}

COMMON = [
    "logger=none",
    "callbacks=none",
    "trainer.precision=bf16-mixed",
    "trainer.limit_val_batches=0",
    "trainer.num_sanity_val_steps=0",
    "optimizer.lr=1e-6",
    "data=jsonl",
    "data.validation_size=null",
    "data.truncation=right_completion",
    "data.tokenize_workers=1",
]
CASES: dict[str, list[str]] = {
    "sft": ["method=sft", "data.path={folder}/long.jsonl", "data.global_batch_size=16"],
    "sft_ragged": ["method=sft", "data.path={folder}/ragged.jsonl", "data.global_batch_size=64"],
    "sft_lora": ["method=sft", "peft=lora", "data.path={folder}/long.jsonl", "data.global_batch_size=16"],
    "dpo": ["method=dpo", "data.path={folder}/pairs.jsonl", "data.global_batch_size=16"],
    "group_dpo": ["method=group_dpo", "data.path={folder}/groups.jsonl", "data.global_batch_size=8"],
    "grpo": [
        "method=grpo",
        "method/reward=[python]",
        "method.reward.python.path={folder}/reward.py:reward",
        "method.num_completions=8",
        "rollout.max_completion_tokens={completion}",
        "data.path={folder}/prompts.jsonl",
        "data.global_batch_size=8",
    ],
}
"""Words of each case. ``folder`` is that of the data; ``completion`` is a number of tokens."""

FORWARDS = {"dpo": 4, "group_dpo": 4}
"""Products per parameter and token, in units of 2 FLOPs, where it is not 3: a live reference adds a forward."""

PARTS = (
    ("attention", ("flash", "fmha", "attention", "sdpa")),
    ("matrix products", ("gemm", "nvjet", "cutlass", "xmma", "cublas", "mm_")),
    ("optimizer", ("multi_tensor", "adam", "foreach")),
    ("loss over the vocabulary", ("softmax", "logsumexp", "gather", "nll", "argmax", "index_put")),
    ("copies and casts", ("memcpy", "memset", "copy", "cast", "cat")),
    ("reductions", ("reduce", "norm", "sum")),
)
"""Parts of the time by words in the names of kernels; the first that fits counts, and the rest is element-wise."""


class Measure(lightning.Callback):
    """Measures steps after a warm-up, and profiles the last one.

    Args:
        on_gpu: Whether there is a CUDA device to synchronise and to profile.
        lock: Held from the first step on, so that others do not use the device.
    """

    def __init__(self, on_gpu: bool, lock: AbstractContextManager):
        self.on_gpu, self.lock = on_gpu, lock
        self.ends: list[float] = []
        self.tokens: list[int] = []
        self.logged: list[dict[str, float]] = []
        self.parts: dict[str, float] = {}
        self.profiler: Any = nullcontext()

    def on_train_batch_start(self, trainer: lightning.Trainer, method: lightning.LightningModule, *_: Any) -> None:
        """Take the device before the first step; forget the peak of the warm-up; profile the last step."""
        if trainer.global_step == 0:
            self.lock.__enter__()
        if trainer.global_step == NUM_WARM_UP and self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        if trainer.global_step == NUM_WARM_UP + NUM_MEASURED and self.on_gpu:
            self.profiler = profile(activities=[ProfilerActivity.CUDA])
            self.profiler.__enter__()
            self.started = time.perf_counter()

    def on_train_batch_end(self, trainer: lightning.Trainer, method: Any, *_: Any) -> None:
        """Note the end of a step."""
        if self.on_gpu:
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        self.tokens.append(method.progress.tokens)
        self.logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})
        if trainer.global_step == NUM_WARM_UP + NUM_MEASURED:
            self.peak = torch.cuda.max_memory_allocated() if self.on_gpu else 0
        if trainer.global_step == NUM_STEPS and self.on_gpu:
            self.profiler.__exit__(None, None, None)
            self.parts = shares(self.profiler, self.ends[-1] - self.started)

    def report(self) -> dict[str, Any]:
        """Medians over the measured steps: seconds, tokens per second, and what the method logged of its time."""
        first, last = NUM_WARM_UP, NUM_WARM_UP + NUM_MEASURED
        seconds = [self.ends[i] - self.ends[i - 1] for i in range(first, last)]
        tokens = [self.tokens[i] - self.tokens[i - 1] for i in range(first, last)]
        rollout = [logged.get("time/rollout") for logged in self.logged[first:last]]
        return {
            "seconds": statistics.median(seconds),
            "tokens_per_step": statistics.median(tokens),
            "tokens_per_second": statistics.median(n / took for n, took in zip(tokens, seconds, strict=True)),
            "peak_bytes": self.peak,
            "parts": self.parts,
            "rollout_seconds": statistics.median(rollout) if None not in rollout else None,
            "completion_tokens": self.logged[last - 1].get("completion_tokens/mean"),
        }


def shares(profiler: profile, seconds: float) -> dict[str, float]:
    """Share of a training step's time by part of ``PARTS``, and that in which the device had nothing to do.

    Args:
        profiler: Has profiled the step without its data and sampling.
        seconds: Duration of the step.
    """
    spent: Counter[str] = Counter()
    kernels: Counter[str] = Counter()
    for event in profiler.key_averages():
        if event.device_type == torch.autograd.DeviceType.CUDA and "#" not in event.key:  # not the label of a part
            name = event.key.lower()
            part = next((part for part, words in PARTS if any(word in name for word in words)), "element-wise")
            spent[part] += event.self_device_time_total / 1e6
            kernels[event.key[:90]] += event.self_device_time_total / 1e6
    for name, took in kernels.most_common(25):
        print(f"    {took / seconds:6.1%}  {name}")
    found = {part: took / seconds for part, took in spent.most_common()}
    return {**found, "idle": max(0.0, 1 - sum(found.values()))}


def measure(case: str, folder: Path, size: str, words: list[str], lock: str, num_steps: int) -> dict[str, Any]:
    """Train for a few steps, and return what was measured, if there were steps enough.

    Args:
        case: A name in ``CASES``.
        folder: Folder that ``prepare`` has filled.
        size: A name in ``SIZES``.
        words: Further words of the command line.
        lock: File that is locked while the device is used.
        num_steps: ``NUM_STEPS``, or fewer to fill the compiler's cache.
    """
    from alignlab import run
    from alignlab.assemble import make_method, make_trainer, open_model_and_data
    from alignlab.callbacks.checkpoint import Checkpoint
    from alignlab.cli.composition.compose import compose
    from alignlab.config import compat, schema
    from alignlab.distributed.strategies import num_parameters

    length = 128 if size == "tiny" else 2048
    typed = [word.format(folder=folder, completion=16 if size == "tiny" else 256) for word in CASES[case]]
    typed += [f"model.path={folder / size}", f"data.max_tokens_per_sequence={length}", f"data.cache_dir={folder}/cache"]
    typed += [f"trainer.max_steps={num_steps}", "data.batch_size_per_device=512"]
    typed += [f"data.max_tokens_per_micro_batch={8 * length}", f"run_dir={folder}/runs/{time.time_ns()}"]
    config = schema.check(compose([*COMMON, *typed, *words]))
    compat.check(config)
    config, run_folder = run.prepare(config, 1)
    lightning.seed_everything(config["seed"], verbose=False)
    model, data = open_model_and_data(config)
    method = make_method(config, model, data)
    trainer, _ = make_trainer(config, run_folder, data)
    held = FileLock(lock, poll_interval=0.02) if lock else nullcontext()
    measured = Measure(torch.cuda.is_available() and size != "tiny", held)
    trainer.callbacks = [one for one in trainer.callbacks if not isinstance(one, Checkpoint)] + [measured]
    trainer.fit(method, datamodule=data)
    if num_steps < NUM_STEPS:
        return {}
    report = measured.report()
    parameters = num_parameters(method.policy)
    flops = 2 * FORWARDS.get(case, 3) * parameters * report["tokens_per_second"]
    return {"case": case, "size": size, "words": words, "parameters": parameters, "flops": flops, **report}


def prepare(folder: Path, sizes: list[str]) -> None:
    """Write the models and the data."""
    folder.mkdir(parents=True, exist_ok=True)
    for size in sizes:
        write_model(folder / size, size)
    drawn = random.Random(1)
    length = 128 if sizes == ["tiny"] else 2048
    rows = 200 if sizes == ["tiny"] else 800

    def ragged() -> int:
        return round(min(length, max(length / 32, drawn.lognormvariate(0, 1) * length / 6)))

    short, half = length // 16, length // 4
    write(
        folder / "long.jsonl", ({"prompt": text(drawn, short), "completion": text(drawn, length)} for _ in range(rows))
    )
    write(
        folder / "ragged.jsonl",
        ({"prompt": text(drawn, short // 2), "completion": text(drawn, ragged())} for _ in range(rows)),
    )
    write(
        folder / "pairs.jsonl",
        (
            {"prompt": text(drawn, half), "chosen": text(drawn, half), "rejected": text(drawn, half)}
            for _ in range(rows // 2)
        ),
    )
    write(
        folder / "groups.jsonl",
        (
            {
                "prompt": text(drawn, half),
                "chosen": text(drawn, half),
                "rejected": [text(drawn, half) for _ in range(4)],
            }
            for _ in range(rows // 4)
        ),
    )
    (folder / "reward.py").write_text(REWARD, encoding="utf-8")
    write(folder / "prompts.jsonl", ({"prompt": text(drawn, half)} for _ in range(rows // 4)))


def write_model(folder: Path, size: str) -> None:
    """Write a Qwen2 of random weights in bfloat16, drawn on the GPU where there is one, and its tokenizer."""
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    from alignlab.models.locations import POCKET

    tokenizer = AutoTokenizer.from_pretrained(POCKET)
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    shape = {**SIZES[size], "num_key_value_heads": 2, "tie_word_embeddings": True, "vocab_size": VOCABULARY[size]}
    config = Qwen2Config(**shape, **special, max_position_embeddings=4096, dtype="bfloat16")
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


REWARD = """
import zlib

def reward(completions, **_):
    return [zlib.crc32(str(completion).encode()) % 8 / 7 for completion in completions]
"""
"""A reward that differs between completions, so that every step trains."""


def text(drawn: random.Random, num_tokens: int) -> str:
    """Text of about a number of tokens of the embedded model's tokenizer, which has a token for each digit."""
    return "".join(drawn.choices("0123456789", k=num_tokens))


def write(file: Path, rows: Any) -> None:
    """Write rows as JSON lines."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    """Prepare, or measure one case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=["prepare", *CASES])
    parser.add_argument("folder", type=Path, help="of models and data")
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["1.5B"])
    parser.add_argument("--lock", default="", help="file to lock while the device is used")
    parser.add_argument("--steps", type=int, default=NUM_STEPS, help="fewer fill the compiler's cache")
    parser.add_argument("--words", nargs="*", default=[], help="further words for train.py")
    asked = parser.parse_args()
    if asked.case == "prepare":
        return prepare(asked.folder, asked.size)
    print(json.dumps(measure(asked.case, asked.folder.resolve(), asked.size[0], asked.words, asked.lock, asked.steps)))


if __name__ == "__main__":
    main()
