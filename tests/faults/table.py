"""The table of counts, as Markdown."""

import time
from collections.abc import Sequence
from pathlib import Path

from tests.faults.cases import Result

BEGIN, END = "<!-- counts: begin -->", "<!-- counts: end -->"
"""Between these lines of a document the table stands."""


def summary_table(results: Sequence[Result]) -> str:
    """One line per kind, and one for all."""
    kinds = list(dict.fromkeys(result.kind for result in results))
    rows = [_row(kind, [result for result in results if result.kind == kind]) for kind in kinds]
    head = "| kind | tried | passed | failed | skipped | seconds |\n|---|---|---|---|---|---|"
    return "\n".join([head, *rows, _row("**all**", results)])


def write_table(path: Path, results: Sequence[Result], *, seed: int, scale: str) -> None:
    """Put the table into a document, in place of the one before.

    Args:
        path: The document; made where it is absent.
        results: What the table counts.
        seed: Of the run.
        scale: ``small`` or ``full``.
    """
    text = path.read_text(encoding="utf-8") if path.exists() else f"{BEGIN}\n{END}\n"
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    date = time.strftime("%Y-%m-%d")
    skipped = sorted({f"{result.kind}: {result.why}" for result in results if result.verdict == "skipped"})
    notes = "".join(f"\nSkipped: {line}\n" for line in skipped)
    counted = f"`make faults` on {date}, seed {seed}, scale {scale}:\n\n{summary_table(results)}\n{notes}"
    path.write_text(f"{before}{BEGIN}\n{counted}{END}{after}", encoding="utf-8")


def _row(kind: str, results: Sequence[Result]) -> str:
    def count(verdict: str) -> int:
        return sum(max(1, result.tried) for result in results if result.verdict == verdict)

    passed, failed = count("passed"), count("failed")
    seconds = sum(result.seconds for result in results)
    return f"| {kind} | {passed + failed} | {passed} | {failed} | {count('skipped')} | {seconds:,.0f} |"
