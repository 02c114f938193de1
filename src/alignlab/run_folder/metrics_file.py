"""metrics.csv: one row per optimizer step with all its metrics, after one of step 0, the validation before them."""

import csv
import io
import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from alignlab.errors import InputError
from alignlab.system.disk import write_text

log = logging.getLogger(__name__)

AXIS = "progress/step"

MAX_CELL_CHARACTERS = 2**17
"""Default limit of the csv module, which readers of data raise for the whole process."""


def on_axis(metrics: Mapping[str, float], step: int | None) -> dict[str, float]:
    """The metrics in the form of every logger here: with their optimizer step, without Lightning's epoch.

    Args:
        metrics: Metrics that Lightning passes to a logger.
        step: Lightning's count of finished batches, one less than the optimizer steps done; -1 before the first step.
    """
    values = {name: value for name, value in metrics.items() if name != "epoch"}
    return {AXIS: float((step or 0) + 1), **values}


class MetricsFile(Logger):
    """A logger that writes a table. Columns can be added later, and metrics logged separately for a step share a row.

    Args:
        path: The CSV file.
        first_step: Optimizer step of the checkpoint that the run resumes from; rows after it are removed when the file
            is opened. 0 removes all rows.

    Raises:
        InputError: The path exists and is not a file.
    """

    def __init__(self, *, path: Path, first_step: int):
        super().__init__()
        self.path = Path(path)
        if self.path.exists() and not self.path.is_file():
            raise InputError(str(self.path), "it is not a file, so nothing can be logged to it", "Move it away")
        rows = list(_parsed(self.path))
        if unread := rows.count(None):
            log.warning("%s: left out %d rows that cannot be read", self.path, unread)
        self._rows = [row for row in rows if row is not None and first_step and row[AXIS] <= first_step]
        self._columns = list(dict.fromkeys([AXIS, *(name for row in self._rows for name in row)]))
        self._last_row = 0  # offset in the file of the row of the newest step
        self._opened = False

    @property
    def name(self) -> str:
        """Name of the file."""
        return self.path.stem

    @property
    def version(self) -> str:
        """Empty, since there is only one version."""
        return ""

    @property
    @rank_zero_experiment
    def experiment(self) -> "MetricsFile":
        """The logger itself. Lightning reads this before the run, so old rows are removed before anything is logged."""
        if not self._opened:
            self._opened = True
            self._write_all()
        return self

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the config has its own file."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add metrics to the row of their step and write it to disk."""
        values = on_axis(metrics, step)
        _ = self.experiment
        if self._rows and self._rows[-1][AXIS] == values[AXIS]:
            self._rows[-1] |= values
        else:
            # Only the newest row can still change; the others are in the file and need not be in memory.
            self._rows = [values]
            self._last_row = self.path.stat().st_size
        if values.keys() <= set(self._columns):
            self._write_last()
        else:
            self._rows = [row for row in read_metrics(self.path) if row[AXIS] < values[AXIS]] + self._rows[-1:]
            self._columns += [name for name in values if name not in self._columns]
            self._write_all()

    def _write_last(self) -> None:
        with self.path.open("r+", encoding="utf-8", newline="") as file:
            file.seek(self._last_row)
            file.write(self._text(self._rows[-1:]))
            file.truncate()

    def _write_all(self) -> None:
        header = io.StringIO()
        csv.writer(header, lineterminator="\n").writerow(self._columns)
        above = header.getvalue() + self._text(self._rows[:-1])
        write_text(self.path, above + self._text(self._rows[-1:]))
        self._last_row = len(above.encode())

    def _text(self, rows: list[dict[str, float]]) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, lineterminator="\n")
        writer.writerows({name: _digits(float(value)) for name, value in row.items()} for row in rows)
        return text.getvalue()


def _digits(value: float) -> str:
    """Whole numbers in full, others with nine digits, which distinguish any two float32 values."""
    return format(value, ".0f" if value.is_integer() else ".9g")


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Read the rows of a metrics file, each with the metrics that its step logged; empty if there is no file.

    Args:
        path: The CSV file. Rows that cannot be read are skipped, such as an incomplete last row after a crash.
    """
    return [row for row in _parsed(Path(path)) if row is not None]


def has_steps(path: Path) -> bool:
    """Whether a metrics file holds a row of an optimizer step, which the validation before the first one is not.

    Rows that cannot be read count as such, and so does a file that cannot be opened: what is there is kept.
    """
    try:
        return any(row is None or row[AXIS] > 0 for row in _parsed(path))
    except OSError:
        return True


def _parsed(path: Path) -> Iterator[dict[str, float] | None]:
    """Yield every row after the header; None for a row that cannot be read."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        csv.field_size_limit(MAX_CELL_CHARACTERS)
        try:
            yield from map(_to_row, csv.DictReader(file))
        except csv.Error:  # a damaged cell above the limit: no row after it can be read
            yield None


def _to_row(cells: Mapping[str | None, Any]) -> dict[str, float] | None:
    if None in cells or None in cells.values() or not cells.get(AXIS):
        return None
    try:
        row = {name: float(value) for name, value in cells.items() if value}
    except ValueError:
        return None
    return row if math.isfinite(row[AXIS]) else None
