"""Suggestions for keys that do not exist."""

import difflib
from collections.abc import Iterable

from alignlab.config.schema.other_tools import OTHER_TOOLS

OTHER_NAMES = {
    "learning_rate": "optimizer.lr",
    "batch_size": "data.batch_size_per_device",
    "micro_batch_size": "data.batch_size_per_device",
    "train_batch_size": "data.global_batch_size",
    "per_device_train_batch_size": "data.batch_size_per_device",
    "accumulate_grad_batches": "data.global_batch_size",
    "gradient_accumulation_steps": "data.global_batch_size",
    "epochs": "trainer.max_epochs",
    "num_train_epochs": "trainer.max_epochs",
    "steps": "trainer.max_steps",
    "max_length": "data.max_tokens_per_sequence",
    "max_seq_length": "data.max_tokens_per_sequence",
    "cutoff_len": "data.max_tokens_per_sequence",
    "model_name_or_path": "model.path",
    "model_name": "model.path",
    "dataset": "data.path",
    "output_dir": "run_dir",
    "resume_from_checkpoint": "resume",
    "lora_rank": "peft.r",
    "rank": "peft.r",
    "alpha": "peft.lora_alpha",
    "max_grad_norm": "trainer.gradient_clip_val",
    "warmup_ratio": "scheduler.warmup_steps",
    "save_steps": "checkpoint.every_n_steps",
    "report_to": "logger",
}
"""Names in other tools, with our keys, which take the same value."""

MAX_LISTED = 24
"""Maximum number of names to list when none is similar."""


def suggest(key: str, known: Iterable[str]) -> str:
    """Suggest existing keys for one that does not exist, in one sentence.

    Args:
        key: The dotted key, as typed.
        known: All dotted keys that exist.
    """
    known = sorted(set(known))
    parent, _, last = key.rpartition(".")
    if not parent and OTHER_NAMES.get(last) in known:
        return f"Did you mean {OTHER_NAMES[last]!r}?"
    if not parent and last in OTHER_TOOLS:
        return f"Type {OTHER_TOOLS[last]}"
    siblings = [name for name in known if name.rpartition(".")[0] == parent]
    same = [name for name in known if name.rpartition(".")[2] == last]
    found = (
        difflib.get_close_matches(key, siblings, n=1, cutoff=0.75)
        or same[:3]
        or [name for name in known if name == OTHER_NAMES.get(last)]
        or ([] if parent and siblings else _alike(key, last, known))
    )
    if found:
        return f"Did you mean {' or '.join(map(repr, found))}?"
    section = parent if siblings else ""
    names = [name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == section]
    if len(names) > MAX_LISTED:
        return f"Among the names in {section} are: {', '.join(difflib.get_close_matches(last, names, n=8, cutoff=0))}"
    return f"The names {f'in {section}' if section else 'at the root'} are: {', '.join(names)}"


def _alike(key: str, last: str, known: list[str]) -> list[str]:
    by_last = {name.rpartition(".")[2]: name for name in reversed(known)}
    whole = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    return whole or [by_last[name] for name in difflib.get_close_matches(last, by_last, n=1, cutoff=0.75)]
