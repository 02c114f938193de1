"""Memory of each of two CPU processes with every strategy: their tensors, and their peak.

    python benchmarks/strategy_memory.py
    python benchmarks/strategy_memory.py --strategies ddp deepspeed_z3 -- strategy.config.zero_optimization.…=…

A Llama of 120 million random float32 weights is trained for three steps with AdamW by ``train.py``, with two rows per
step. Bytes are counted during the optimizer's step, when both gradients and state exist: every live tensor of the
process, each storage once. The peak is that of the resident set minus its size before the model was built; "peak
anonymous" excludes memory-mapped pages of the checkpoint, which the system can free. The table is printed in Markdown
for docs/strategies.md, in MiB, with the larger value of the two processes.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

REPOSITORY = Path(__file__).resolve().parents[1]
STRATEGIES = ("ddp", "fsdp", "deepspeed_z1", "deepspeed_z2", "deepspeed_z3")
KINDS = ("parameters", "gradients", "optimizer state", "other tensors")
COLUMNS = (*KINDS, "peak anonymous", "peak")
ARCHITECTURE = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 13,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "tie_word_embeddings": True,
}
QUIET = ["logger=none", "callbacks=none", "checkpoint.every_n_steps=1000", "trainer.num_sanity_val_steps=0"]
SMALL = ["method=sft", "data=arithmetic", "data.source.num_train=40", "data.source.num_validation=2"]
STEPS = [
    "data.global_batch_size=2",
    "data.batch_size_per_device=1",
    "trainer.max_steps=3",
    "trainer.limit_val_batches=0",
]
MIB = 2**20


class Memory(lightning.Callback):
    """Measures the memory of its process and writes ``RANK.json`` to a folder.

    Args:
        to: The folder.
    """

    def __init__(self, *, to: str):
        self.to, self.held = Path(to), dict.fromkeys(KINDS, 0)

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Measure the process before the model is built, with all libraries loaded."""
        import transformers.models.llama.modeling_llama  # noqa: F401  so that its pages are not counted

        gc.collect()
        self.before = resident()
        self.peaks = Peaks()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Measure at every step of the inner optimizer that updates the weights."""
        optimizer = trainer.strategy.optimizers[0]
        inner = getattr(optimizer, "optimizer", optimizer)
        inner.register_step_post_hook(lambda *_: self.measure(optimizer, inner, pl_module))

    def measure(self, optimizer: Any, inner: torch.optim.Optimizer, module: nn.Module) -> None:
        """Keep the measurement with the largest sum, since ZeRO-3 makes one step per parameter group."""
        held = by_kind(optimizer, inner, module)
        self.held = max(self.held, held, key=lambda found: sum(found.values()))

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Write the report after the last step, before a checkpoint is written and the final weights are gathered."""
        if trainer.global_step < trainer.max_steps:
            return
        anonymous, whole = (top - start for top, start in zip(self.peaks.end(), self.before, strict=True))
        report = {**self.held, "peak anonymous": anonymous, "peak": whole}
        (self.to / f"{trainer.global_rank}.json").write_text(json.dumps(report))


class Peaks(threading.Thread):
    """Peak of the resident set, sampled every few milliseconds."""

    def __init__(self):
        super().__init__(daemon=True)
        self.top, self.over = resident(), threading.Event()
        self.start()

    def run(self) -> None:
        """Sample until ``end`` is called."""
        while not self.over.wait(0.005):
            self.top = tuple(map(max, self.top, resident()))

    def end(self) -> tuple[int, ...]:
        """Stop, and return the peaks in bytes: anonymous, and total."""
        self.over.set()
        self.join()
        return self.top


def resident() -> tuple[int, int]:
    """Current resident bytes of this process: anonymous, and total."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    sizes = {words[0]: int(words[1]) * 1024 for words in lines if words[0] in ("RssAnon:", "VmRSS:")}
    return sizes["RssAnon:"], sizes["VmRSS:"]


def by_kind(optimizer: Any, inner: torch.optim.Optimizer, module: nn.Module) -> dict[str, int]:
    """Bytes of all live tensors by kind; each storage is counted once, for the first kind that it belongs to."""
    live = [tensor for tensor in gc.get_objects() if issubclass(type(tensor), Tensor)]
    held = list(weights(optimizer, module))
    seen: set[int] = set()
    named = (held, gradients(optimizer, held), state(inner), live)
    return {kind: sum(new_bytes(tensors, seen)) for kind, tensors in zip(KINDS, named, strict=True)}


def weights(optimizer: Any, module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers of the model, ZeRO's shards of them, and its master copies."""
    for tensor in (*module.parameters(), *module.buffers()):
        yield from (tensor, getattr(tensor, "ds_tensor", tensor))
    for masters in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups"):
        yield from getattr(optimizer, masters, ())


def gradients(optimizer: Any, held: list[Tensor]) -> Iterator[Tensor]:
    """Tensors in ``grad``, and those in which ZeRO keeps gradients until the step."""
    yield from (tensor.grad for tensor in held if tensor.is_leaf and tensor.grad is not None)
    for averaged in (getattr(optimizer, "averaged_gradients", None) or {}).values():
        yield from averaged or ()
    buffer = getattr(optimizer, "grad_partitions_flat_buffer", None)
    yield from () if buffer is None else (buffer,)


def state(inner: torch.optim.Optimizer) -> Iterator[Tensor]:
    """Tensors of the optimizer's state."""
    entries = (entry for entries in inner.state.values() for entry in entries.values())
    return (entry for entry in entries if isinstance(entry, Tensor))


def new_bytes(tensors: Iterable[Tensor], seen: set[int]) -> Iterator[int]:
    """Sizes of storages that were not seen before."""
    for tensor in tensors:
        storage = (tensor._local_tensor if isinstance(tensor, DTensor) else tensor).untyped_storage()
        if storage.nbytes() and storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            yield storage.nbytes()


def write_model(folder: Path) -> None:
    """Write a model with random weights of ``ARCHITECTURE`` and the tokenizer of the embedded model."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(REPOSITORY / "src/alignlab/assets/pocket")
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **ARCHITECTURE, **special))
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters", flush=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train(model: Path, folder: Path, strategy: str, words: list[str]) -> dict[str, int]:
    """Train with two processes; return the larger value of each column."""
    folder.mkdir()
    callback = ["+callbacks.memory._target_=strategy_memory.Memory", f"+callbacks.memory.to={folder}"]
    sharding = [f"strategy={strategy}", "trainer.devices=2", "trainer.accelerator=cpu", f"model.path={model}"]
    typed = [*SMALL, *STEPS, *QUIET, *callback, *sharding, f"run_dir={folder / 'run'}", *words]
    found = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY / "benchmarks"),
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
    }
    subprocess.run([sys.executable, REPOSITORY / "train.py", *typed], env=found, check=True, stdout=sys.stderr)
    reports = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
    return {column: max(report[column] for report in reports) for column in COLUMNS}


def row(strategy: str, report: dict[str, int], whole: float) -> str:
    """Format a line of the table."""
    held = sum(report[kind] for kind in KINDS[:3])
    cells = [*(report[kind] for kind in KINDS[:3]), held]
    numbers = [f"{size / MIB:,.0f}" for size in cells] + [f"{held / whole:.2f}"]
    numbers += [f"{report[column] / MIB:,.0f}" for column in COLUMNS[3:]]
    return f"| `{strategy}` | " + " | ".join(numbers) + " |"


def main() -> None:
    """Print the table, line by line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategies", nargs="+", default=STRATEGIES, help="the others are compared with the first")
    parser.add_argument("words", nargs="*", help="after --: further words for train.py")
    options = parser.parse_args()
    heads = ["strategy", *KINDS[:3], "together", f"of `{options.strategies[0]}`", *COLUMNS[3:]]
    with tempfile.TemporaryDirectory() as scratch:
        write_model(Path(scratch) / "model")
        print(f"| {' | '.join(heads)} |\n|---|{'--:|' * (len(heads) - 1)}")
        whole = None
        for strategy in options.strategies:
            words = [word for word in options.words if strategy.startswith("deepspeed") or "strategy." not in word]
            report = train(Path(scratch) / "model", Path(scratch) / strategy, strategy, words)
            whole = whole or sum(report[kind] for kind in KINDS[:3])
            print(row(strategy, report, whole), flush=True)


if __name__ == "__main__":
    main()
