"""The same training by alignlab and by TRL, run in turn on one machine, and how cost grows: benchmarks/RESULTS.md.

    make bench                                                # everything; about two hours on two cores
    make bench ARGS="--only sft_3m dpo_3m --rounds 5"         # some rows
    make bench ARGS="--write"                                 # the tables again, from what was measured

TRL is run by ``../shared/bench/bench_trl.py``; its package lies in ``.bench``, where ``make bench`` puts it. Both
train on the same rows in the same order, in float32 unless a row says otherwise, with AdamW, a constant rate and
gradients clipped at 1. Tokens are counted as a padded trainer counts them: a prompt once per completion. Each side has
its best settings; both keep freed memory in the process, which makes both faster. A figure is the median over rounds of
the mean over the steps after the first two; the order of the sides is turned round every round.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
SHARED = REPOSITORY.parent / "shared" / "bench"
TRL = REPOSITORY / ".bench"
SCRATCH = REPOSITORY / "runs" / "bench"
PEER = "1.16.0"
RESULTS = HERE / "RESULTS.md"

NUM_SKIPPED = 2
"""Steps at the start that are not counted."""
QUIET = 0.06
"""Share of the CPUs that other processes may use in a step; other steps are left out if there are enough."""
KEEPS_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "8589934592", "MALLOC_TOP_PAD_": "67108864"}
"""Settings of glibc with which it keeps what is freed: page faults are dear on virtual machines."""
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "DS_ACCELERATOR": "cpu",
    "OMP_NUM_THREADS": str(os.cpu_count()),
    "MKL_NUM_THREADS": str(os.cpu_count()),
}

COMMON = [
    "data=jsonl",
    "data.validation_size=null",
    "data.order=as_is",
    "data.tokenize_workers=1",
    "optimizer.weight_decay=0",
    "optimizer.lr=1e-4",
    "scheduler=constant",
    "scheduler.warmup_steps=0",
    "trainer.max_epochs=1",
    "trainer.num_sanity_val_steps=0",
    "trainer.limit_val_batches=0",
    "trainer.accelerator=cpu",
    "logger=none",
    "callbacks=none",
    "checkpoint.every_n_steps=100000",
    "+callbacks.clock._target_=benchmarks.step_clock.StepClock",
]
KEYS = {"sft": ("messages",), "grpo": ("prompt", "answer")}
"""Columns of a task's rows; of all others prompt, chosen and rejected."""
METHODS = {"reward": "reward_model"}
"""Our names of TRL's tasks, where they differ."""
FILES = {"sft": "sft", "grpo": "prompts"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the table.

    Args:
        work: What is compared, in words.
        task: Task of ``bench_trl.py``.
        size: Model: 3m, 30m, or 3m with the rows of its vocabulary.
        batch: Rows of an optimizer step; in GRPO completions, of 8 per prompt.
        steps: Number of steps.
        goal: Ratio to be reached.
        theirs: Further words for ``bench_trl.py``.
        ours: Further words for ``train.py``.
        rejected: Number of rejected completions per prompt; TRL trains on that many pairs.
        length: Tokens of every row; ``None`` for the lengths of the data.
    """

    work: str
    task: str
    size: str
    batch: int
    goal: float
    steps: int = 10
    theirs: tuple[str, ...] = ()
    ours: tuple[str, ...] = ()
    rejected: int = 1
    length: int | None = None


SPREAD = ("--max-new-tokens", "256", "--extra-eos", "128")
ROLLOUT = ("--max-new-tokens", "128")
BF16 = ("trainer.precision=bf16-mixed",)
ROWS: dict[str, Row] = {
    "sft_3m": Row(work="sft, the peer padded", task="sft", size="3m", batch=8, goal=6),
    "sft_30m": Row(work="sft, the peer padded", task="sft", size="30m", batch=8, goal=4, steps=7),
    "sft_packed_3m": Row(
        work="sft, the peer packed (bfd)", task="sft", size="3m", batch=8, goal=2.4, theirs=("--packing",)
    ),
    "sft_packed_30m": Row(
        work="sft, the peer packed (bfd)", task="sft", size="30m", batch=8, goal=1.5, steps=8, theirs=("--packing",)
    ),
    "sft_bf16_30m": Row(
        work="sft in bf16-mixed, the peer packed (bfd)",
        task="sft",
        size="30m",
        batch=8,
        goal=1.6,
        steps=8,
        theirs=("--packing", "--dtype", "autocast"),
        ours=BF16,
    ),
    "sft_vocabulary": Row(
        work="sft, vocabulary of 151,936, the peer padding-free",
        task="sft",
        size="3m-v151936",
        batch=8,
        goal=4,
        steps=6,
        theirs=("--padding-free",),
    ),
    "sft_overhead": Row(
        work="one document of 128 tokens a step", task="sft", size="3m", batch=1, goal=1.3, steps=60, length=128
    ),
    "reward_3m": Row(work="reward model", task="reward", size="3m", batch=4, goal=3.2),
    "reward_30m": Row(work="reward model", task="reward", size="30m", batch=4, goal=2.5, steps=7),
    "dpo_3m": Row(work="dpo, live reference", task="dpo", size="3m", batch=4, goal=5),
    "dpo_30m": Row(work="dpo, live reference", task="dpo", size="30m", batch=4, goal=3.5, steps=7),
    "dpo_precomputed_3m": Row(
        work="dpo, precomputed reference, loop alone",
        task="dpo",
        size="3m",
        batch=4,
        goal=6,
        theirs=("--ref", "precompute"),
        ours=("method.precompute_reference=true",),
    ),
    "grpo_3m": Row(work="grpo, 8 x 128", task="grpo", size="3m", batch=16, goal=3, steps=6, theirs=ROLLOUT),
    "grpo_30m": Row(work="grpo, 8 x 128", task="grpo", size="30m", batch=16, goal=2.2, steps=5, theirs=ROLLOUT),
    "grpo_spread_3m": Row(work="grpo, spread to 256", task="grpo", size="3m", batch=16, goal=4, steps=6, theirs=SPREAD),
    "grpo_spread_30m": Row(
        work="grpo, spread to 256", task="grpo", size="30m", batch=16, goal=3.5, steps=5, theirs=SPREAD
    ),
    "group_dpo_3m": Row(
        work="group dpo, K = 4, against exploded pairs", task="dpo", size="3m", batch=4, goal=12, steps=6, rejected=4
    ),
}


@dataclass
class Measured:
    """One side of a row over all rounds.

    Args:
        rates: Tokens per second; in the row of groups prompts per second.
        peaks: Largest resident set while training, in MiB.
        losses: Loss of the first step.
        quiet: Whether other processes left the machine alone.
    """

    rates: list[float] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    quiet: list[bool] = field(default_factory=list)


# --- models and data --------------------------------------------------------------------------------------------------


def prepare() -> None:
    """Write models and data, once, by the scripts beside that of TRL."""
    data, models = SCRATCH / "data", SCRATCH / "models"
    if not (data / "text.txt").is_file():
        script("make_bench_data.py", "--out", data, "--n", 1200)
    text = ("--text", data / "text.txt")
    for name, words in {
        "3m": ("--size", "3m", *text),
        "30m": ("--size", "30m", *text),
        "3m-v151936": ("--size", "3m", "--tokenizer", models / "3m", "--pad-vocab-to", 151_936),
    }.items():
        if not (models / name / "model.safetensors").is_file():
            script("make_tiny_model.py", *words, "--out", models / name)


def script(name: str, *words: Any) -> None:
    """Run a script of the folder beside the repository."""
    subprocess.run([sys.executable, SHARED / name, *map(str, words)], check=True, env={**os.environ, **ENVIRONMENT})


def rows_of(row: Row, folder: Path, max_length: int) -> tuple[Path, Path]:
    """Write the rows of a table's row for both sides, in order and none too long. Returns TRL's file and ours."""
    length = length_by(row.size)
    source = SCRATCH / "data" / f"{FILES.get(row.task, 'pref')}.jsonl"
    needed = row.steps * (row.batch // 8 if row.task == "grpo" else row.batch)
    found = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    theirs, ours = folder / "theirs.jsonl", folder / "ours.jsonl"
    kept: list[dict[str, Any]] = []
    for index, one in enumerate(map(dict, found)):
        if len(kept) == needed:
            break
        if row.length:
            one = {"messages": cut(one["messages"], length, row.length)}
        if row.rejected > 1:
            one["rejected"] = [found[(index + k) % len(found)]["rejected"] for k in range(row.rejected)]
        if max(map(length, dialogues(one))) <= max_length:
            kept.append({key: one[key] for key in KEYS.get(row.task, ("prompt", "chosen", "rejected"))})
    if len(kept) < needed:
        raise SystemExit(f"{source}: {len(kept)} rows of at most {max_length} tokens, {needed} needed")
    pairs = [{**one, "rejected": other} for one in kept for other in one["rejected"]] if row.rejected > 1 else kept
    for file, lines in ((theirs, pairs), (ours, kept)):
        file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return theirs, ours


def length_by(size: str) -> Callable[[list[dict[str, str]]], int]:
    """Counts the tokens of a dialogue with the tokenizer of a model."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(SCRATCH / "models" / size)
    return lambda messages: len(tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"])


def dialogues(row: dict[str, Any]) -> list[list[dict[str, str]]]:
    """The whole dialogues of a row: one, or one for each answer."""
    if "chosen" not in row:
        return [row.get("messages") or row["prompt"]]
    rejected = row["rejected"] if isinstance(row["rejected"][0], list) else [row["rejected"]]
    return [row["prompt"] + answer for answer in (row["chosen"], *rejected)]


def cut(messages: list[dict[str, str]], length: Any, num_tokens: int) -> list[dict[str, str]]:
    """A dialogue of about a number of tokens, from the words of another."""
    words = (" ".join(message["content"] for message in messages).split() * num_tokens)[:num_tokens]
    few, many = 1, len(words)
    while few < many:
        middle = (few + many + 1) // 2
        made = [{"role": "user", "content": words[0]}, {"role": "assistant", "content": " ".join(words[:middle])}]
        few, many = (middle, many) if length(made) <= num_tokens else (few, middle - 1)
    return [{"role": "user", "content": words[0]}, {"role": "assistant", "content": " ".join(words[:few])}]


# --- both sides -------------------------------------------------------------------------------------------------------


def run_theirs(row: Row, data: Path) -> tuple[float, float, float, bool]:
    """Run TRL. Returns its rate, peak in MiB, first loss, and whether the machine was quiet."""
    batch = row.batch * row.rejected
    words = ["--task", row.task, "--model", SCRATCH / "models" / row.size, "--data", data, "--batch", batch]
    words += ["--steps", row.steps, "--skip", NUM_SKIPPED, "--threads", os.cpu_count(), "--calibrate", 0, *row.theirs]
    found = last_json([SHARED / "bench_trl.py", *words], f"{TRL}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    clean = found["clean"] if found["clean"] and found["clean"]["steps"] * 2 >= found["steady_steps"] else found
    rate = clean["samples_per_s"] / row.rejected if row.rejected > 1 else clean["tokens_per_s"]
    return rate, found["train_peak_rss_mib"], found["loss_first"], clean is not found


def run_ours(row: Row, data: Path, folder: Path) -> tuple[float, float, float, bool]:
    """Run ``train.py``. Returns as ``run_theirs``."""
    steps, peak = training(
        row.task, row.size, data, folder, row.steps, row.batch, [*row.ours, *in_our_words(row, folder)]
    )
    steady = steps[NUM_SKIPPED:]
    clean = [step for step in steady if step["others"] < QUIET]
    counted = clean if 2 * len(clean) >= len(steady) else steady
    unit = "groups" if row.rejected > 1 else "tokens"
    rate = sum(step[unit] for step in counted) / sum(step["seconds"] for step in counted)
    return rate, peak, steps[0]["loss"], counted is clean


def in_our_words(row: Row, folder: Path) -> list[str]:
    """What a row of groups or of rollouts needs; stop tokens go into a copy of the model's generation config."""
    if row.rejected > 1:
        return ["method=group_dpo"]
    if row.task != "grpo":
        return []
    options = dict(zip(row.theirs[::2], row.theirs[1::2], strict=True))
    (folder / "reward.py").write_text(REWARD, encoding="utf-8")
    words = ["method.num_completions=8", f"rollout.max_completion_tokens={options['--max-new-tokens']}"]
    words += ["method/loss=dapo", "method/reward=python", f"method.reward.python.path={folder}/reward.py:even"]
    if "--extra-eos" in options:
        words.append(f"model.path={with_stop_tokens(row.size, int(options['--extra-eos']), folder)}")
    return words


REWARD = """
def even(completions):
    return [sum(1 - ord(character) % 2 for character in text) / max(1, len(text)) for text in completions]
"""
"""Differs within a group, and costs nothing."""


def with_stop_tokens(size: str, number: int, folder: Path) -> Path:
    """A copy of a model that stops at as many random tokens more, those that ``bench_trl.py`` draws."""
    from transformers import AutoTokenizer

    source, copy = SCRATCH / "models" / size, folder / "model"
    copy.mkdir(exist_ok=True)
    for file in source.iterdir():
        (copy / file.name).unlink(missing_ok=True)
        (copy / file.name).symlink_to(file)
    config = json.loads((source / "generation_config.json").read_text())
    drawn = random.Random(0).sample(range(3, len(AutoTokenizer.from_pretrained(source))), number)
    own = config.get("eos_token_id") or []
    config["eos_token_id"] = [*(own if isinstance(own, list) else [own]), *drawn]
    (copy / "generation_config.json").unlink()
    (copy / "generation_config.json").write_text(json.dumps(config))
    return copy


def training(
    task: str, size: str, data: Path, folder: Path, steps: int, batch: int, words: list[str]
) -> tuple[list[dict[str, float]], float]:
    """Train by ``train.py``. Returns what the clock noted of every step, and the peak in MiB."""
    rows, output = batch // 8 if task == "grpo" else batch, folder / "steps.json"
    output.unlink(missing_ok=True)
    typed = [f"method={METHODS.get(task, task)}", f"model.path={SCRATCH / 'models' / size}", *COMMON]
    typed += [f"data.path={data}", f"data.global_batch_size={rows}", f"data.batch_size_per_device={rows}"]
    typed += [
        f"data.max_tokens_per_sequence={MAX_LENGTH}",
        f"data.cache_dir={folder / 'cache'}",
        f"trainer.max_steps={steps}",
    ]
    typed += [f"run_dir={folder / 'run'}", "overwrite=true", f"+callbacks.clock.to={output}"]
    typed = [word for word in typed if word.partition("=")[0] not in {one.partition("=")[0] for one in words}] + words
    python(["train.py", *typed], f"{REPOSITORY}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    found = json.loads(output.read_text())
    return found["steps"], found["peak_mib"]


MAX_LENGTH = 1024


def python(words: list[Any], path: str) -> str:
    """Run a Python program and return its output, or end with its errors."""
    found = {**os.environ, **ENVIRONMENT, **KEEPS_MEMORY, "PYTHONPATH": path}
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, env=found, cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout


def last_json(words: list[Any], path: str) -> dict[str, Any]:
    """The last line of a program's output, in JSON."""
    return json.loads(python(words, path).strip().splitlines()[-1])


def compare(name: str, round_number: int) -> Iterator[dict[str, Any]]:
    """Run both sides of a row, and yield what was measured of each."""
    row, folder = ROWS[name], SCRATCH / "rows" / name
    folder.mkdir(parents=True, exist_ok=True)
    theirs, ours = rows_of(row, folder, MAX_LENGTH)
    sides = {"trl": lambda: run_theirs(row, theirs), "alignlab": lambda: run_ours(row, ours, folder)}
    for side in sorted(sides, reverse=bool(round_number % 2)):
        rate, peak, loss, quiet = sides[side]()
        yield {"row": name, "side": side, "rate": rate, "peak_mib": peak, "loss": loss, "quiet": quiet}


# --- growth -----------------------------------------------------------------------------------------------------------

GROWTH = {
    "sequence length": {n: ("sft", "3m", n, max(1, 16384 // n)) for n in (128, 512, 2048, 8192, 16384)},
    "documents of 64 tokens in a micro-batch": {n: ("sft", "3m", 64, n) for n in (8, 32, 64, 128, 256)},
    "rows of the vocabulary": {n: ("sft", size, 256, 32) for n, size in ((8192, "3m"), (151_936, "3m-v151936"))},
}
"""What grows → its values → task, model, tokens of a row, and rows of a micro-batch."""


def grow(what: str, value: int) -> dict[str, Any]:
    """Tokens per second of training alone with one value of what grows."""
    task, size, length, batch = GROWTH[what][value]
    folder = SCRATCH / "growth" / f"{what.replace(' ', '_')}_{value}"
    folder.mkdir(parents=True, exist_ok=True)
    row = Row(work="", task=task, size=size, batch=batch, goal=0, steps=6, length=length)
    words = [f"data.max_tokens_per_sequence={max(length, MAX_LENGTH)}", "data.order=as_is"]
    source, needed = SCRATCH / "data" / "sft.jsonl", row.steps * batch
    kept = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    count = length_by(size)
    made = [cut(kept[index % len(kept)]["messages"], count, length) for index in range(min(needed, 64))]
    lines = [json.dumps({"messages": made[index % len(made)]}) + "\n" for index in range(needed)]
    (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    steps, peak = training(task, size, folder / "rows.jsonl", folder, row.steps, batch, words)
    steady = steps[NUM_SKIPPED:]
    rate = sum(step["unique_tokens"] for step in steady) / sum(step["seconds"] for step in steady)
    return {"growth": what, "value": value, "rate": rate, "peak_mib": peak}


# --- the tables -------------------------------------------------------------------------------------------------------


def write(results: list[dict[str, Any]]) -> None:
    """Write the tables of all results."""
    sides: dict[tuple[str, str], Measured] = {}
    for one in results:
        if "row" in one:
            side = sides.setdefault((one["row"], one["side"]), Measured())
            side.rates.append(one["rate"])
            side.peaks.append(one["peak_mib"])
            side.losses.append(one["loss"])
            side.quiet.append(one["quiet"])
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "lightning"))
    lines = [
        "# Against TRL on a CPU\n",
        "Made by `make bench` (`benchmarks/against_trl.py`, which says how it is measured).\n",
        f"- {date.today()}, {cpu()}, {os.cpu_count()} threads; Python {platform.python_version()}, {packages}, TRL"
        f" {PEER}",
        "- Rates are tokens per second (of groups: prompts per second); medians over the rounds. Memory is the largest"
        " resident set while training. The losses of the first step show that both sides do the same work; packing puts"
        " other rows into TRL's first step, heads of reward models are drawn anew, samples of GRPO differ, and group"
        " DPO has another loss.\n",
        "| work | model | TRL | alignlab | ratio | goal | memory, MiB | ratio | first loss | rounds, quiet |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, row in ROWS.items():
        if (name, "trl") in sides and (name, "alignlab") in sides:
            lines.append(line(row, sides[name, "trl"], sides[name, "alignlab"]))
    grown = [one for one in results if "growth" in one]
    if grown:
        lines += [
            "\n## How cost grows\n",
            "Of alignlab, `method=sft`, as it grows alone. Memory includes freed blocks that",
        ]
        lines += ["the allocator keeps: with large ones of changing sizes several times what is in use.\n"]
        lines += ["| what | value | tokens/s | memory, MiB |\n|---|--:|--:|--:|"]
        for what, values in GROWTH.items():
            for value in values:
                same = [one for one in grown if (one["growth"], one["value"]) == (what, value)]
                if same:
                    rate, peak = (statistics.median(one[key] for one in same) for key in ("rate", "peak_mib"))
                    lines.append(f"| {what} | {value:,} | {rate:,.0f} | {peak:,.0f} |")
    RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")


def line(row: Row, theirs: Measured, ours: Measured) -> str:
    """A line of the table."""
    rates = [statistics.median(side.rates) for side in (theirs, ours)]
    peaks = [statistics.median(side.peaks) for side in (theirs, ours)]
    digits = 2 if row.rejected > 1 else 0
    cells = [row.work, row.size, *(f"{rate:,.{digits}f}" for rate in rates), f"**{rates[1] / rates[0]:.2f}**"]
    cells += [f"{row.goal:g}", f"{peaks[0]:,.0f} → {peaks[1]:,.0f}", f"{peaks[1] / peaks[0]:.2f}"]
    cells += [f"{theirs.losses[0]:.4f} / {ours.losses[0]:.4f}"]
    cells += [f"{len(ours.rates)}, {min(sum(theirs.quiet), sum(ours.quiet))}"]
    return f"| {' | '.join(cells)} |"


def cpu() -> str:
    """Name of the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    """Measure, and write the tables after every row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*ROWS, "growth"], default=[*ROWS, "growth"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="only write the tables")
    asked = parser.parse_args()
    if not SHARED.is_dir() or not (TRL / "trl").is_dir():
        sys.exit(f"nothing to compare with: {SHARED} or {TRL}/trl is not there")
    file = SCRATCH / "results.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    if not asked.write:
        prepare()
        for round_number in range(asked.rounds):
            for name in asked.only:
                cases = grown() if name == "growth" else compare(name, round_number)
                for found in cases:
                    print(f"round {round_number}, {time.strftime('%H:%M:%S')}: {found}", flush=True)
                    with file.open("a", encoding="utf-8") as results:
                        results.write(json.dumps(found) + "\n")
    write([json.loads(text) for text in file.read_text(encoding="utf-8").splitlines()])


def grown() -> Iterator[dict[str, Any]]:
    """All that grows."""
    for what, values in GROWTH.items():
        for value in values:
            yield grow(what, value)


if __name__ == "__main__":
    main()
