"""What sampled completions are worth."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from alignlab.assemble import Config
from alignlab.data.formats.conversions import converts
from alignlab.evaluation.completions import Drawn, draw, make_score, records
from alignlab.evaluation.opened import Opened, encode_prompts
from alignlab.measures.estimates import share_of
from alignlab.measures.sampled import right_answers, sample_metrics
from alignlab.types.loss import Ratio
from alignlab.types.rows import Prompt, Row


def why_no_samples(config: Config, opened: Opened, row: Row) -> str | None:
    """Why completions of rows cannot be measured; ``None`` if they can."""
    why = why_no_prompts(opened, row)
    if why or config["method"]["reward"] or "answer" in row.columns:
        return why
    return "the rows have no column 'answer', and there is no method/reward="


def why_no_prompts(opened: Opened, row: Row) -> str | None:
    """Why a model cannot complete rows; ``None`` if it can."""
    if not opened.model.can_generate():
        return "a reward model gives no completions"
    return None if converts(row, Prompt) else f"{row.origin} has no prompt"


def measure_samples(
    config: Config, opened: Opened, other: Opened | None, rows: Sequence[Row]
) -> tuple[dict[str, Ratio], list[dict[str, Any]]]:
    """Right greedy answers; rewards and pass rates of sampled completions."""
    prompts, settings = encode_prompts(config, opened, rows), config["samples"]
    score, metrics, written = make_score(config, opened, rows), {}, []
    if any("answer" in row.record["columns"] for row in prompts):
        greedy = draw(config, opened, prompts, 1, greedy=True)
        right = right_answers(prompts, greedy.texts, 1)
        metrics["exact_match"] = share_of(right[:, 0])
        written += records(greedy, {"right": right}, "greedy")
    if score or settings["k"]:
        drawn = draw(config, opened, prompts, settings["num_completions"])
        columns = score(drawn) if score else {}
        if settings["k"]:
            columns["passed"] = _passed(settings["pass_reward"], columns, drawn)
        metrics |= sample_metrics(columns, settings["k"])
        written += records(drawn, columns, "sampled")
    return metrics, written


def _passed(pass_reward: float | None, columns: Mapping[str, torch.Tensor], drawn: Drawn) -> torch.Tensor:
    """1 for completions that pass, 0 for others, NaN where nobody knows. Shape ``[P, n]``."""
    if pass_reward is None:
        return right_answers(drawn.prompts, drawn.texts, len(drawn.texts) // len(drawn.prompts))
    total = columns["reward"]
    return (total >= pass_reward).double().masked_fill(total.isnan(), torch.nan)
