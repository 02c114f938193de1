"""README.md of a trained model: the model card that the Hugging Face hub shows."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from alignlab.models.locations import HUB_ID


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a model card says.

    Args:
        name: Name of the run.
        base: Weights that the training began with: a folder, a hub id, ``pocket`` or ``scratch``.
        adapter: Kind of adapter; None for full weights.
        method: Name of the method.
        data: The data, in words.
        hub_data: Hub ids of the data sets.
        command: The command line; None if it is not known.
        details: Further rows of the table, by name.
        before: Held-out metrics before the first step, by name.
        after: Held-out metrics at the last step, by name.
    """

    name: str
    base: str
    adapter: str | None
    method: str
    data: str
    hub_data: tuple[str, ...]
    command: str | None
    details: Mapping[str, object]
    before: Mapping[str, float]
    after: Mapping[str, float]


def model_card(facts: CardFacts) -> str:
    """Write a model card in Markdown, with the hub's metadata in front."""
    kind = f"A {facts.adapter} adapter for" if facts.adapter else "All weights of"
    rows = {"base": facts.base, "data": facts.data, "method": facts.method, **facts.details}
    lines = [
        f"---\n{yaml.safe_dump(metadata(facts), sort_keys=False)}---",
        f"# {facts.name}",
        f"{kind} `{facts.base}`, trained by {facts.method} on {facts.data} with alignlab.",
        _table(("", ""), [(name, str(value)) for name, value in rows.items()]),
    ]
    if facts.command is not None:
        lines.append(f"```bash\n{facts.command}\n```")
    if facts.after:
        results = [(name, _number(facts.before.get(name)), _number(value)) for name, value in facts.after.items()]
        lines += ["## Held-out rows", _table(("", "before", "last step"), sorted(results))]
    return "\n\n".join(lines) + "\n"


def metadata(facts: CardFacts) -> dict[str, object]:
    """The hub's metadata. It accepts names of the hub only, so a folder of this machine is not a ``base_model``."""
    on_hub = HUB_ID.fullmatch(facts.base) and "/" in facts.base and not Path(facts.base).exists()
    found = {
        "base_model": facts.base if on_hub else None,
        "library_name": "peft" if facts.adapter else "transformers",
        "tags": ["alignlab", facts.method, *([facts.adapter] if facts.adapter else [])],
        "datasets": list(facts.hub_data),
    }
    return {key: value for key, value in found.items() if value}


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    cells = [[" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
