"""The rehearsal on one GPU: are the numbers those of a CPU, and how fast is training? At most 8 minutes.

    python benchmarks/gpu_check.py                        # writes benchmarks/GPU.md
    python benchmarks/gpu_check.py --dry-run --out FILE   # the same code with tiny sizes, on any machine
    python benchmarks/gpu_check.py --store                # on a CPU: store the curves to compare with

Every check is a process of its own, so that one that fails does not end the others. Checks of numbers run several at a
time, those of speed alone on the device. The table is written again after every check. A machine without network needs
the folder of ``gpu_wheels.py``.
"""

import argparse
import csv
import json
import math
import os
import platform
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
CURVES = HERE / "gpu_curves.json"
NUM_STEPS = 8

SMALL = [
    "logger=none",
    "callbacks=none",
    "trainer.devices=1",
    f"trainer.max_steps={NUM_STEPS}",
    "trainer.limit_val_batches=0",
    "trainer.num_sanity_val_steps=0",
    "optimizer.lr=2e-5",
    "trainer.precision=32-true",
    "data.source.level=3",
    "data.source.num_train=64",
    "data.source.num_validation=4",
    "data.global_batch_size=8",
    "data.batch_size_per_device=4",
    "data.tokenize_workers=1",
]
METHODS = {
    "sft": ["method=sft"],
    "dpo": ["method=dpo"],
    "group_dpo": ["method=group_dpo"],
    "grpo": ["method=grpo", "method.num_completions=4", "rollout.max_completion_tokens=64"],
}
STRATEGIES = ("single", "fsdp", "deepspeed_z3")
QUANTISED = {
    "sft, qlora in 4 bits": ["method=sft", "peft=qlora"],
    "sft, qlora in 8 bits": ["method=sft", "peft=qlora_8bit"],
}
OTHERS = {
    "grpo, bf16-mixed": [*METHODS["grpo"], "trainer.precision=bf16-mixed"],
    "grpo, samples in bf16": [*METHODS["grpo"], "rollout.dtype=bfloat16"],
    "ppo": ["method=ppo", *METHODS["grpo"][1:]],
    "reward_model": ["method=reward_model"],
    "sft, adamw_8bit": ["method=sft", "optimizer=adamw_8bit"],
    "sft, 16-mixed": ["method=sft", "trainer.precision=16-mixed"],
    "sft, weights in bf16, lora": ["method=sft", "peft=lora", "model.dtype=bfloat16"],
    "sft, padded": ["method=sft", "data.packing=false", "trainer.precision=bf16-mixed"],
    "dpo, fsdp in bf16": ["method=dpo", "strategy=fsdp", "strategy.param_dtype=bfloat16"],
    "grpo, deepspeed_z2 in bf16": [*METHODS["grpo"], "strategy=deepspeed_z2", "trainer.precision=bf16-mixed"],
    "sft, gradient checkpointing": ["method=sft", "model.gradient_checkpointing=true"],
    "sft, muon": ["method=sft", "optimizer=muon"],
    "sft, activations in host memory": ["method=sft", "model.activation_offloading=true"],
    "sft, activations in host memory, checkpointing, bf16": [
        "method=sft",
        "model.activation_offloading=true",
        "model.gradient_checkpointing=true",
        "trainer.precision=bf16-mixed",
    ],
    "sft, deepspeed_z2_offload": ["method=sft", "strategy=deepspeed_z2_offload"],
}
"""Must train to the end with finite losses."""

LOSS_BOUND = {"32-true": 1e-3, "bf16-mixed": 0.2, "quantised": 0.05}
"""Largest difference of a step's loss from that on the CPU."""
GRADIENT_BOUND = {"32-true": 1e-3, "bf16-mixed": 0.1, "quantised": 0.2}
"""Largest relative difference of the first step's gradient norm."""

COMPILED = ["model.compile=true"]
SPEED = [
    ("sft_ragged", "1.5B", COMPILED),
    ("grpo", "0.5B", ["rollout.dtype=bfloat16"]),
    ("sft", "1.5B", COMPILED),
    ("dpo", "1.5B", COMPILED),
    ("sft_ragged", "1.5B", ["model.attn_implementation=sdpa"]),
    ("sft_ragged", "1.5B", []),
    ("sft", "1.5B", []),
    ("group_dpo", "0.5B", []),
    ("sft_lora", "1.5B", []),
]
"""Case, size and further words for ``gpu_speed.py``."""


@dataclass
class Report:
    """The table, written again whenever a line is added.

    Args:
        file: Markdown file.
        ends: When the rehearsal must be over, by ``time.monotonic``.
        order: Names of the checks, in the order of the table.
    """

    file: Path
    ends: float
    order: list[str] = field(default_factory=list)
    machine: list[str] = field(default_factory=list)
    checks: list[str] = field(default_factory=list)
    speed: list[str] = field(default_factory=list)
    attention: list[str] = field(default_factory=list)
    lock: Any = field(default_factory=threading.Lock)

    @property
    def seconds_left(self) -> float:
        """Seconds until the rehearsal must be over."""
        return self.ends - time.monotonic()

    def add(self, part: str, line: str) -> None:
        """Add a line to a part, print it, and write the file."""
        with self.lock:
            print(f"[{self.seconds_left:4.0f} s left] {line}", flush=True)
            getattr(self, part).append(line)
            self.file.write_text(self.text(), encoding="utf-8")

    def place(self, line: str) -> int:
        """Place of a line in the table, by its first cell."""
        return self.order.index(line.split(" | ")[0].removeprefix("| "))

    def text(self) -> str:
        """The file's text."""
        parts = [
            "# On a GPU\n\nMade by `make gpu-check` (`benchmarks/gpu_check.py`).\n",
            *(f"- {line}" for line in self.machine),
            "\n## Numbers\n\nCurves of 8 steps of the embedded model against those of a CPU in float32.\n",
            "| check | loss, largest difference | gradient norm of step 1, relative | verdict |\n|---|--:|--:|---|",
            *sorted(self.checks, key=self.place),
            "\n## Attention\n\nRelative error against float64, and forward + backward, of 12 heads of 128.\n",
            "| layout | format | implementation | error | ms |\n|---|---|---|--:|--:|",
            *self.attention,
            "\n## Speed\n\nQwen2-type models of random float32 weights and a vocabulary of 151,936, with AdamW,"
            " computed in bf16. MFU: 6 FLOPs (with a live reference 8) per parameter and token, attention not counted,"
            " over the measured rate of matrix products. Shares are those of a profiled step without its data.\n",
            "| work | tokens/s | s/step | MFU | peak GB | share of the time |\n|---|--:|--:|--:|--:|---|",
            *sorted(self.speed, key=self.place),
        ]
        return "\n".join(parts) + "\n"


def process(words: list[Any], log: Path, timeout: float, **environment: str) -> str | None:
    """Run a process, with its output in a file. Returns ``None``, or why it failed."""
    found = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "2", **environment}
    paths = [str(REPOSITORY / "src"), found.get("PYTHONPATH", "")]
    found["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    try:
        with log.open("w") as output:
            done = subprocess.run(
                [sys.executable, *map(str, words)], env=found, stdout=output, stderr=subprocess.STDOUT, timeout=timeout
            )
    except subprocess.TimeoutExpired:
        return f"stopped after {timeout:.0f} s"
    lines = [line.strip(" │") for line in log.read_text(errors="replace").splitlines() if line.strip(" │")]
    return None if done.returncode == 0 else f"exit code {done.returncode}: {' '.join(lines[-1:])[-300:]}"


def train(folder: Path, words: list[str], timeout: float) -> str | None:
    """Run ``train.py``. Returns ``None``, or why it failed."""
    typed = [REPOSITORY / "train.py", *SMALL, *words, f"run_dir={folder}", f"data.cache_dir={folder}.cache"]
    return process(typed, Path(f"{folder}.log"), timeout, HYDRA_FULL_ERROR="1")


def curve(folder: Path) -> dict[str, list[float]]:
    """Loss and gradient norm of every step of a run."""
    with (folder / "metrics.csv").open(newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row["train/loss"]]
    return {name: [float(row[name]) for row in rows] for name in ("train/loss", "train/grad_norm")}


def against(curves: dict[str, list[float]], stored: dict[str, list[float]], kind: str) -> tuple[str, str, str]:
    """Compare curves with stored ones. Returns both differences and the verdict as cells of the table."""
    pairs = list(zip(curves["train/loss"], stored["train/loss"], strict=True))
    loss = max(abs(a - b) if math.isfinite(a) else math.inf for a, b in pairs)
    ours, theirs = curves["train/grad_norm"][0], stored["train/grad_norm"][0]
    gradient = abs(ours - theirs) / theirs
    fits = loss <= LOSS_BOUND[kind] and gradient <= GRADIENT_BOUND[kind]
    return f"{loss:.1e}", f"{gradient:.1e}", "equal" if fits else "**differs**"


def cells(*values: str) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(value.replace('|', '/') for value in values)} |"


def folder_of(scratch: Path, name: str) -> Path:
    """Run folder of a check."""
    return scratch / re.sub(r"\W+", "_", name)


# --- checks of numbers ------------------------------------------------------------------------------------------------


def check_curve(report: Report, scratch: Path, name: str, words: list[str], stored: str, kind: str) -> None:
    """Train for a few steps, and compare with the stored curve of ``stored``."""
    folder = folder_of(scratch, name)
    failed = train(folder, words, min(180, report.seconds_left))
    seen = ("", "", failed) if failed else against(curve(folder), json.loads(CURVES.read_text())[stored], kind)
    report.add("checks", cells(name, *seen))


def check_run(report: Report, scratch: Path, name: str, words: list[str]) -> None:
    """Train for a few steps; the losses must be finite."""
    folder = folder_of(scratch, name)
    failed = train(folder, words, min(180, report.seconds_left))
    if not failed:
        found = curve(folder)["train/loss"]
        finite = all(map(math.isfinite, found)) and len(found) == NUM_STEPS
    report.add("checks", cells(name, "", "", failed or ("trains" if finite else "**losses are not finite**")))


def check_resume(report: Report, scratch: Path, name: str, words: list[str]) -> None:
    """Train, resume from the middle, and compare the steps after it and the final weights."""
    from safetensors.torch import load_file

    whole, half = folder_of(scratch, name), folder_of(scratch, f"{name}, half")
    words = [*words, f"checkpoint.every_n_steps={NUM_STEPS // 2}"]
    middle = f"resume={whole}/checkpoints/step-{NUM_STEPS // 2:08d}"
    failed = train(whole, words, min(180, report.seconds_left))
    failed = failed or train(half, [*words, middle], min(180, report.seconds_left))
    if failed:
        return report.add("checks", cells(name, "", "", failed))
    ours, theirs = curve(half), curve(whole)
    loss = max(abs(a - b) for a, b in zip(ours["train/loss"][-4:], theirs["train/loss"][-4:], strict=True))
    weights = [load_file(folder / "model" / "model.safetensors") for folder in (whole, half)]
    equal = all(tensor.equal(weights[1][key]) for key, tensor in weights[0].items())
    close = "equal but for the order of sums" if loss < 1e-3 else "**differs**"
    verdict = "bit for bit" if equal and not loss else close
    report.add("checks", cells(name, f"{loss:.1e}", "", verdict))


def numbers(report: Report, scratch: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """Names and calls of the checks of numbers, the most telling first."""

    def same(name: str, words: list[str], stored: str, kind: str) -> tuple[str, Callable[[], None]]:
        return name, partial(check_curve, report, scratch, name, words, stored, kind)

    for strategy in STRATEGIES:
        for method, words in METHODS.items():
            yield same(f"{method}, {strategy}", [*words, f"strategy={strategy}"], method, "32-true")
    for method in ("sft", "dpo"):
        yield same(f"{method}, compiled", [*METHODS[method], "model.compile=true"], method, "32-true")
    fast = ["model.compile=true", "model.gradient_checkpointing=true", "model.activation_offloading=true"]
    yield same("sft, compiled, recomputed and offloaded", [*METHODS["sft"], *fast], "sft", "32-true")
    for method in ("sft", "dpo", "group_dpo"):
        words = [*METHODS[method], "trainer.precision=bf16-mixed"]
        yield same(f"{method}, bf16-mixed", words, method, "bf16-mixed")
    for name, words in QUANTISED.items():
        yield same(name, words, name, "quantised")
    for method in ("sft", "dpo", "grpo"):
        name = f"{method}, resumed"
        yield name, partial(check_resume, report, scratch, name, METHODS[method])
    for method in ("sft", "grpo"):
        name, words = f"{method}, resumed, deterministic", [*METHODS[method], "trainer.deterministic=true"]
        yield name, partial(check_resume, report, scratch, name, words)
    for name, words in OTHERS.items():
        if "trainer.precision=16-mixed" not in words or torch.cuda.is_available():  # refused on a CPU
            yield name, partial(check_run, report, scratch, name, words)


def store() -> None:
    """Store the curves of a CPU."""
    curves = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, words in {**METHODS, **QUANTISED}.items():
            folder = folder_of(Path(scratch), name)
            failed = train(folder, [*words, "trainer.accelerator=cpu"], 600)
            if failed:
                sys.exit(f"{name}: {failed}")
            curves[name] = curve(folder)
            print(name, curves[name], flush=True)
    CURVES.write_text(json.dumps(curves, indent=1) + "\n", encoding="utf-8")


# --- attention and speed ----------------------------------------------------------------------------------------------


def attention(report: Report, scratch: Path, dry_run: bool) -> None:
    """Run ``gpu_attention.py`` and add its table."""
    log = scratch / "attention.log"
    failed = process(
        [HERE / "gpu_attention.py", "--lock", scratch / "device.lock", *["--dry-run"] * dry_run],
        log,
        min(120, report.seconds_left),
    )
    if failed:
        return report.add("attention", cells("", "", "", "", failed))
    for row in json.loads(log.read_text().splitlines()[-1]):
        seen = row.get("failed") or f"{row['error']:.1e}"
        took = f"{row['ms']:.2f}" if "ms" in row else ""
        report.add("attention", cells(row["layout"], row["format"], f"`{row['implementation']}`", seen, took))


def measured_rate() -> tuple[float | None, str]:
    """Rate of a large product of bf16 matrices in FLOP/s, or ``None`` without a GPU, and what was found in words."""
    if not torch.cuda.is_available():
        return None, "no CUDA device"
    matrix = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    source = torch.empty(2**30, device="cuda", dtype=torch.uint8).random_()
    rate = 2 * 8192**3 / seconds(partial(torch.mm, matrix, matrix))
    bandwidth = 2 * source.numel() / seconds(source.clone)
    card = torch.cuda.get_device_properties(0)
    size = card.total_memory / 1e9
    found = f"bf16 matrix products {rate / 1e12:.0f} TFLOP/s, copies {bandwidth / 1e12:.1f} TB/s"
    del matrix, source
    torch.cuda.empty_cache()
    return rate, f"{card.name}, {size:.0f} GB; {found}"


def seconds(call: Callable[[], Any]) -> float:
    """Mean time of a call on the device, after a warm-up."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(10):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / 10


def prepared(scratch: Path, sizes: list[str]) -> str | None:
    """Write models and data, and compile once for all cases. Returns ``None``, or why it failed."""
    command = [HERE / "gpu_speed.py", "prepare", scratch / "speed", "--size", *sizes]
    failed = process(command, scratch / "prepare.log", 240)
    small = ["data.global_batch_size=1", "data.max_tokens_per_micro_batch=256"]
    compiled = [HERE / "gpu_speed.py", "dpo", scratch / "speed", "--size", sizes[-1], "--steps", "1"]
    return failed or process([*compiled, "--words", *small, *COMPILED], scratch / "compile.log", 240)


def speed(report: Report, scratch: Path, rate: float | None, case: str, size: str, words: list[str]) -> None:
    """Run a case of ``gpu_speed.py``, which waits for the device."""
    if report.seconds_left < 25:
        return report.add("speed", cells(named(case, size, words), "", "", "", "", "no time left"))
    log = scratch / f"{folder_of(Path(), named(case, size, words))}.log"
    command = [HERE / "gpu_speed.py", case, scratch / "speed", "--size", size, "--lock", scratch / "device.lock"]
    failed = process([*command, "--words", *words], log, report.seconds_left, OMP_NUM_THREADS="4")
    if failed:
        return report.add("speed", cells(named(case, size, words), "", "", "", "", failed))
    found = json.loads(log.read_text().splitlines()[-1])
    parts = ", ".join(f"{part} {share:.0%}" for part, share in found["parts"].items() if share >= 0.005)
    if found["rollout_seconds"] is not None:
        parts = f"sampling {found['rollout_seconds']:.2f} s; of the rest: {parts}"
    mfu = f"{found['flops'] / rate:.1%}" if rate else ""
    tokens, took, peak = f"{found['tokens_per_second']:,.0f}", f"{found['seconds']:.3f}", found["peak_bytes"] / 1e9
    report.add("speed", cells(named(case, size, words), tokens, took, mfu, f"{peak:.1f}", parts))


def named(case: str, size: str, words: list[str]) -> str:
    """Name of a line of the table of speed."""
    return ", ".join([case, size, *(f"`{word}`" for word in words)])


def main() -> None:
    """Run all checks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes")
    parser.add_argument("--store", action="store_true", help="store the curves of this CPU")
    parser.add_argument("--out", type=Path, default=HERE / "GPU.md", help="the table")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument(
        "--jobs", type=int, default=max(1, min(12, (os.cpu_count() or 2) * 3 // 4)), help="checks at a time"
    )
    parser.add_argument("--only", nargs="+", choices=("numbers", "attention", "speed"), default=())
    parser.add_argument("--match", default="", help="regular expression of the names of the checks to run")
    parser.add_argument("--logs", type=Path, help="folder for the output of every process")
    asked = parser.parse_args()
    if asked.store:
        return store()
    wanted = asked.only or ("numbers", "attention", "speed")
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(asked.jobs) as pool:
        scratch = asked.logs or Path(folder)
        scratch.mkdir(parents=True, exist_ok=True)
        sizes = ["tiny"] if asked.dry_run else sorted({size for _, size, _ in SPEED})
        speeds = [(case, "tiny" if asked.dry_run else size, words) for case, size, words in SPEED]
        report = Report(asked.out, time.monotonic() + 60 * asked.minutes)
        checks = list(numbers(report, scratch))
        report.order = [*(name for name, _ in checks), *(named(*one) for one in speeds)]
        packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "lightning", "deepspeed"))
        rate, found = measured_rate()
        report.add("machine", f"{date.today()}, {found}")
        report.add("machine", f"Python {platform.python_version()}, {packages}")
        jobs = []
        if "speed" in wanted:
            ready = pool.submit(prepared, scratch, sizes)
        if "numbers" in wanted:
            chosen = [check for name, check in checks if re.search(asked.match, name)]
            jobs = [pool.submit(guarded, check) for check in chosen]
        for job in jobs:
            job.result()
        with ThreadPoolExecutor(2) as few:  # they wait for each other before they use the device
            if "attention" in wanted:
                few.submit(guarded, partial(attention, report, scratch, asked.dry_run))
            if "speed" in wanted:
                print("models and data:", ready.result() or "ready", flush=True)
                for case, size, words in speeds:
                    if re.search(asked.match, named(case, size, words)):
                        few.submit(guarded, partial(speed, report, scratch, rate, case, size, words))
        report.add("machine", f"{asked.minutes * 60 - report.seconds_left:.0f} s in all")


def guarded(check: Callable[[], None]) -> None:
    """Run a check; print an error of the check itself."""
    try:
        check()
    except Exception as error:
        print(f"a check failed: {type(error).__name__}: {error}", flush=True)


if __name__ == "__main__":
    main()
