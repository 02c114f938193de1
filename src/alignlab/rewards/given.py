"""Rewards that the data gives to the completions that it gives."""

from collections.abc import Sequence


class GivenReward:
    """Reads a column that holds a number or null for each completion of its row.

    Args:
        column: Name of the column.
    """

    own_process = False

    def __init__(self, *, column: str):
        self.column = column
        self.needs = {column}

    def __call__(self, completions: list[str], prompts: list, **columns: list[Sequence[float]]) -> list[float | None]:
        """Return the rewards of the rows, each of which stands once for each of its completions."""
        rows, found = columns[self.column], []
        while len(found) < len(rows):
            found += rows[len(found)]
        return found
