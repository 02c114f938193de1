"""A table of token rows, read from disk by memory map."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from itertools import accumulate, islice, pairwise, starmap
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from alignlab.data.table.counts import Counts
from alignlab.types.rows import TokenRow, longest_sequence

_ROWS, _COUNTS = "rows.arrow", "counts.json"
_ROWS_PER_BATCH = 1000
_SCHEMA = pa.schema(
    {
        "tokens": pa.list_(pa.int32()),
        "supervised": pa.list_(pa.bool_()),
        "groups": pa.list_(pa.list_(pa.int32())),
        "origin": pa.string(),
        "columns": pa.string(),
        "record": pa.string(),
        "branches": pa.string(),
        "weights": pa.list_(pa.float64()),
        "longest_sequence": pa.int32(),
        "num_supervised": pa.int32(),
    }
)


class TokenTable:
    """Token rows, read by index.

    Args:
        folder: Folder that ``write_table`` wrote.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self._table = pa.ipc.open_file(pa.memory_map(str(self.folder / _ROWS))).read_all()

    def __reduce__(self):
        return TokenTable, (self.folder,)

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> TokenRow:
        row = {name: self._table[name][int(index)] for name in _SCHEMA.names}
        return TokenRow(
            tokens=row["tokens"].values.to_numpy().tolist(),
            supervised=row["supervised"].values.to_numpy(zero_copy_only=False).tolist(),
            groups=row["groups"].as_py(),
            origin=row["origin"].as_py(),
            columns=json.loads(row["columns"].as_py()) | {"row": index},
            record=json.loads(row["record"].as_py()),
            branches={int(number): parts for number, parts in json.loads(row["branches"].as_py()).items()},
            weights=row["weights"].as_py(),
        )

    def __iter__(self) -> Iterator[TokenRow]:
        return (self[index] for index in range(len(self)))

    @property
    def key(self) -> str:
        """Key under which the table is cached."""
        return self.folder.name

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens per row, each prompt counted once. Shape ``[rows]``."""
        return pc.list_value_length(self._table["tokens"]).to_numpy()

    @cached_property
    def longest_sequence(self) -> int:
        """Tokens of the longest prompt with one completion; 0 for an empty table."""
        return pc.max(self._table["longest_sequence"]).as_py() or 0

    @cached_property
    def num_supervised(self) -> np.ndarray:
        """Supervised tokens per row. Shape ``[rows]``."""
        return self._table["num_supervised"].to_numpy()

    @cached_property
    def counts(self) -> Counts:
        """Numbers of rows of the source that were kept, cut and dropped."""
        return Counts(**json.loads((self.folder / _COUNTS).read_text(encoding="utf-8")))


class View:
    """Base of tables whose rows get something added; other attributes are those of the underlying table.

    Args:
        table: A table or another view.
    """

    def __init__(self, table: "TokenTable | View"):
        self.table = table

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> TokenRow:
        raise NotImplementedError(f"{type(self).__name__} does not implement __getitem__")

    def __iter__(self) -> Iterator[TokenRow]:
        return (self[index] for index in range(len(self)))

    def __getattr__(self, name: str) -> Any:
        if name == "table":  # not set yet while the view is unpickled
            raise AttributeError(name)
        return getattr(self.table, name)


class Slice(View):
    """Some adjacent rows of a table.

    Args:
        table: The rows.
        indices: Their indices.
    """

    def __init__(self, table: "TokenTable | View", indices: range):
        super().__init__(table)
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> TokenRow:
        return self.table[self.indices[index]]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per row. Shape ``[rows]``."""
        return self.table.lengths[self.indices.start : self.indices.stop]


class Joined:
    """The rows of several tables, one table after the other; has the attributes of a table.

    Args:
        tables: Tables by name.
    """

    def __init__(self, tables: Mapping[str, TokenTable]):
        self.tables = dict(tables)
        ends = list(accumulate(len(table) for table in self.tables.values()))
        self.ranges = dict(zip(self.tables, starmap(range, pairwise([0, *ends])), strict=True))
        """Indices of the rows of each table."""

    def __len__(self) -> int:
        return sum(map(len, self.tables.values()))

    def __getitem__(self, index: int) -> TokenRow:
        name, rows = next((name, rows) for name, rows in self.ranges.items() if index in rows)
        row = self.tables[name][index - rows.start]
        return replace(row, columns=row.columns | {"row": index})

    def __iter__(self) -> Iterator[TokenRow]:
        return (self[index] for index in range(len(self)))

    @property
    def key(self) -> str:
        """Keys under which the tables are cached."""
        return " ".join(table.key for table in self.tables.values())

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens per row. Shape ``[rows]``."""
        return np.concatenate([table.lengths for table in self.tables.values()])

    @cached_property
    def num_supervised(self) -> np.ndarray:
        """Supervised tokens per row. Shape ``[rows]``."""
        return np.concatenate([table.num_supervised for table in self.tables.values()])

    @property
    def longest_sequence(self) -> int:
        """Tokens of the longest prompt with one completion."""
        return max(table.longest_sequence for table in self.tables.values())

    @property
    def counts(self) -> Counts:
        """Numbers of rows of all tables."""
        return sum((table.counts for table in self.tables.values()), Counts())


class WithColumn(View):
    """Rows with one more numeric column, which is held in memory.

    Args:
        table: The rows.
        name: Name of the column.
        values: One value per row.
        mismatched_values: One value per mismatched row, if the method needs them.
    """

    def __init__(
        self, table: TokenTable | View, name: str, values: Sequence[Any], mismatched_values: Sequence[Any] | None
    ):
        super().__init__(table)
        self.name, self.values, self.mismatched_values = name, values, mismatched_values

    def __getitem__(self, index: int) -> TokenRow:
        row = self._with(self.table[index], self.values[index])
        if self.mismatched_values is None:
            return row
        return replace(row, mismatched=self._with(row.mismatched, self.mismatched_values[index]))

    def _with(self, row: TokenRow, value: Any) -> TokenRow:
        return replace(row, columns=row.columns | {self.name: value})


def write_table(folder: Path, rows: Iterable[TokenRow], counts: Callable[[], Counts]) -> None:
    """Write a table in batches, without holding all rows in memory.

    Args:
        folder: Folder to create.
        rows: Rows to write.
        counts: Called after the last row.
    """
    folder.mkdir()
    rows = iter(rows)
    with pa.ipc.new_file(str(folder / _ROWS), _SCHEMA) as writer:
        while batch := list(islice(rows, _ROWS_PER_BATCH)):
            writer.write_batch(pa.RecordBatch.from_pylist([_record(row) for row in batch], _SCHEMA))
    (folder / _COUNTS).write_text(json.dumps(asdict(counts())), encoding="utf-8")


def _record(row: TokenRow) -> dict:
    texts = {name: json.dumps(getattr(row, name)) for name in ("columns", "record", "branches")}
    return vars(row) | texts | {"num_supervised": sum(row.supervised), "longest_sequence": longest_sequence(row)}
