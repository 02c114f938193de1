"""What a model says of rows that it is given: how likely answers and texts are, and which completion is better."""

from collections.abc import Iterator, Sequence
from typing import Any

from alignlab.assemble import Config, pick
from alignlab.data.formats.conversions import converts
from alignlab.data.settings import PlanSettings
from alignlab.evaluation.opened import Opened, encode
from alignlab.measures.batches import micro_batches
from alignlab.measures.likelihood import likelihood
from alignlab.measures.pairs import preferences
from alignlab.models.scoring import verify
from alignlab.types.loss import Ratio
from alignlab.types.rows import Demonstration, Preference, Row, Text, TokenRow


def why_no_loss(config: Config, opened: Opened, row: Row) -> str | None:
    """Why rows have no loss; ``None`` if they have one."""
    if not opened.model.can_generate():
        return "a reward model gives no probabilities"
    return None if converts(row, _kind(row)) else f"{row.origin} has no answer, and is no text"


def why_no_pairs(config: Config, opened: Opened, row: Row) -> str | None:
    """Why completions of rows cannot be scored; ``None`` if they can."""
    if opened.model.can_generate():
        return "a language model scores no sequences"
    return None if converts(row, Preference) else f"{row.origin} compares no completions"


def _kind(row: Row) -> type[Row]:
    return Text if isinstance(row, Text) else Demonstration


def measure_loss(
    config: Config, opened: Opened, other: Opened | None, rows: Sequence[Row]
) -> tuple[dict[str, Ratio], list[dict[str, Any]]]:
    """Loss, accuracy and bits per byte of the answers, or of the texts."""
    encoded = encode(config, opened, rows, _kind(rows[0]))
    return likelihood(opened.model, _batches(config, opened, encoded), opened.tokenizer), []


def measure_pairs(
    config: Config, opened: Opened, other: Opened | None, rows: Sequence[Row]
) -> tuple[dict[str, Ratio], list[dict[str, Any]]]:
    """How often the reward model prefers the chosen completion."""
    return preferences(opened.model, _batches(config, opened, encode(config, opened, rows, Preference))), []


def _batches(config: Config, opened: Opened, rows: Sequence[TokenRow]) -> Iterator[Any]:
    packing = config["data"]["packing"]
    verify(opened.model, packing)
    plan = pick(PlanSettings, config["data"] | {"seed": config["seed"]})
    pad = opened.tokenizer.pad_token_id or 0
    return micro_batches(rows, plan, packing=packing, pad_token_id=pad, device=opened.model.device)
