"""Estimates as a table on the terminal."""

import math
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from alignlab.measures.estimates import Estimate


def print_estimates(results: Mapping[str | None, Mapping[str, Estimate]]) -> None:
    """Print one line for each metric of each set of rows.

    Args:
        results: Estimates by metric, for each set.
    """
    table = Table(box=None, pad_edge=False)
    table.add_column("metric", overflow="fold")
    for head in ("mean", "95 % interval", "rows"):
        table.add_column(head, justify="right")
    for name, metrics in results.items():
        for metric, one in metrics.items():
            interval = "–" if math.isnan(one.low) else f"{one.low:.4g} … {one.high:.4g}"
            shown = metric if name is None else f"{name}/{metric}"
            table.add_row(shown, f"{one.value:.4g}", interval, f"{one.num_rows:,}")
    Console().print(table)
