"""Log of completions with their rewards, to a file and to the trackers."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from alignlab.rollout.rollout import Rollout
from alignlab.system.disk import write_text
from alignlab.types.rows import Message

STEPS_BETWEEN = 20
"""Optimizer steps between two rollouts that are logged."""

MAX_PROMPTS = 4
"""Number of prompts of a rollout whose completions are written."""

MAX_TABLE_ROWS = 16
"""Number of completions of a rollout that are logged to the trackers."""


class SampleLog(lightning.Callback):
    """Writes completions with their rewards to ``samples.jsonl`` and, as tables, to the trackers.

    Args:
        path: Path of ``samples.jsonl``.
        first_step: Optimizer step of the checkpoint that the run resumes from; records after it are removed before the
            run begins. 0 removes all records.
    """

    def __init__(self, *, path: Path, first_step: int):
        self.path, self.first_step, self.next_step = Path(path), first_step, 1

    def state_dict(self) -> dict[str, Any]:
        """The first step whose rollout is logged next."""
        return {"next_step": self.next_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state."""
        self.next_step = state["next_step"]

    @rank_zero_only
    def on_fit_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Remove records that will be sampled again."""
        if self.path.is_file():
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
            write_text(self.path, "".join(line for line in lines if _step_of(line) <= self.first_step))

    @rank_zero_only
    def on_train_batch_end(self, trainer: lightning.Trainer, method: Any, outputs: Any, batch: Any, index: int) -> None:
        """Log a new rollout if one is due."""
        rollout, method.rollout.latest = method.rollout.latest, None
        if rollout is None or method.progress.step < self.next_step:
            return
        self.next_step = method.progress.step + STEPS_BETWEEN
        shown = rollout.keep(rollout.prompt_index < MAX_PROMPTS)
        records = sample_records(shown, trainer.datamodule.tokenizer, method.progress.step)
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        for logger in trainer.loggers:
            _log_table(logger, records[:MAX_TABLE_ROWS], method.progress.step)


def _step_of(line: str) -> float:
    """Optimizer step of a record; infinite if the record is incomplete or damaged."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return math.inf


def sample_records(rollout: Rollout, tokenizer: Any, step: int) -> list[dict[str, Any]]:
    """Make one record of plain values per completion."""
    names = ["reward", *(name for name in rollout.columns if name.startswith("reward/"))]
    rewards = {name: rollout.columns[name].tolist() for name in names}
    completions, prompts = rollout.completions, rollout.prompt_index.tolist()
    return [
        {
            "step": step,
            "prompt": written(rollout.prompts[prompts[index]].record["prompt"]),
            "completion": tokenizer.decode(tokens, skip_special_tokens=True),
            **{name: _plain(values[index]) for name, values in rewards.items()},
            "tokens": len(tokens),
            "finished": bool(completions.finished[index]),
        }
        for index, tokens in enumerate(completions.token_lists())
    ]


def written(prompt: Sequence[Message]) -> str:
    """Format a prompt as text; several messages are prefixed with their roles."""
    if len(prompt) == 1:
        return str(prompt[0]["content"])
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value


def _cell(value: Any) -> str:
    """A value in a cell of a Markdown table."""
    return str(value).replace("|", "\\|").replace("\n", "<br>")


def _log_table(logger: Any, records: list[dict[str, Any]], step: int) -> None:
    columns = list(records[0])
    rows = [[record[column] for column in columns] for record in records]
    if isinstance(logger, WandbLogger):
        logger.log_table("samples", columns=columns, data=rows, step=step - 1)  # Lightning's count of finished batches
    elif isinstance(logger, TensorBoardLogger):
        lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
        logger.experiment.add_text("samples", "\n".join(lines), step)
