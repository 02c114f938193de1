"""The ranked settings as a table on the terminal."""

import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from alignlab.report.page import number
from alignlab.report.results import Ranked


def print_ranking(ranking: Sequence[Ranked], metric: str) -> None:
    """Print one line for each settings, the best first.

    Args:
        ranking: Of ``results.rank``.
        metric: Metric that ranks.
    """
    table = Table(title=f"final {metric}", title_justify="left", box=None, pad_edge=False)
    table.add_column("settings", overflow="fold")
    for head in ("runs", "mean", "deviation", "difference", "error"):
        table.add_column(head, justify="right")
    for one in ranking:
        numbers = (_mean(one), number(one.std), number(one.difference), number(one.error))
        table.add_row(one.label, str(len(one.records)), *numbers)
    Console().print(table)


def _mean(one: Ranked) -> str:
    """The mean; without one, whether the runs are not done or did not measure the metric."""
    if not math.isnan(one.mean):
        return number(one.mean)
    return "not measured" if all(record.status == "done" for record in one.records) else "not done"
