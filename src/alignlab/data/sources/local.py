"""Sources that read records: files, the hub, and a LLaMA-Factory registry.

Every source has

    rows(split)       yields rows lazily and always in the same order; no rows if the source has no such part
    fingerprint()     hash of everything that decides the rows
    dropped           number of dropped rows by reason, in the last complete pass over each part
    validation_sets   names of its validation sets, whose rows ``rows("validation/NAME")`` yields; a source without
                      named sets need not have it
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any, Literal

from alignlab.data.formats import check_format
from alignlab.data.formats.reading import to_rows
from alignlab.data.formats.registry import Entry, read_entry, translate
from alignlab.data.sources import hub
from alignlab.data.sources.files import Record, listing, read
from alignlab.data.sources.fingerprint import digest, file_hashes
from alignlab.data.sources.mixture import Mixture
from alignlab.data.sources.validation import set_names, splits_of, validation_parts
from alignlab.errors import InputError, raise_all
from alignlab.types.rows import Row

__all__ = ["Files", "Hub", "Mixture", "Registry"]

Split = str
"""``train``, ``validation``, or ``validation/NAME``."""

Named = Mapping[str, str]
"""Validation sets by name."""

BadRows = Literal["error", "drop"]


class _Reader:
    """Base of the sources of records: converts records to rows, and counts dropped ones."""

    def __init__(self, bad_rows: str, splits: Iterable[str]):
        self.bad_rows, self.validation_sets = bad_rows, set_names(splits)
        self._dropped: dict[str, Counter[str]] = {}

    @property
    def dropped(self) -> Counter[str]:
        """Number of dropped rows by reason."""
        return sum(self._dropped.values(), Counter())

    def _rows(
        self, split: Split, asked: str, records: Iterable[Record], format: str, columns: Mapping[str, str]
    ) -> Iterator[Row]:
        dropped: Counter[str] = Counter()
        settings = {"format": format, "columns": columns, "bad_rows": self.bad_rows}
        yield from to_rows(records, asked=asked, dropped=dropped, **settings)
        self._dropped[split] = dropped


class Files(_Reader):
    """Rows of files on disk.

    Args:
        path: A file, a folder, or a list of them.
        format: ``auto``, or the name of a format.
        columns: Canonical column name → name of that column in the files.
        bad_rows: ``error`` refuses bad rows and reports them together; ``drop`` drops and counts them.
        validation_path: Files of the validation part, or of several by name; None if there is none.

    Raises:
        InputError: No path is given, there is no such file, or no such format.
    """

    def __init__(
        self,
        *,
        path: str | Sequence[str] | None,
        format: str,
        columns: Mapping[str, str],
        bad_rows: BadRows,
        validation_path: str | Sequence[str] | Mapping[str, str | Sequence[str]] | None,
    ):
        parts = validation_parts("validation_path", validation_path)
        super().__init__(bad_rows, parts)
        if not path:
            raise InputError("data.path=null", "this source reads files", "Type data.path=FILE or data.path=FOLDER")
        check_format(format)
        self.format, self.columns = format, dict(columns)
        self.paths = {split: _as_list(part) for split, part in {"train": path, **parts}.items()}
        for paths in self.paths.values():
            for each in paths:
                listing(each)

    def rows(self, split: Split) -> Iterator[Row]:
        """Yield the rows of a part."""
        for name in splits_of(split, self.paths):
            paths = self.paths[name]
            key = "path" if split == "train" else name.replace("validation", "validation_path").replace("/", ".")
            asked = f"data.{key}={paths[0] if len(paths) == 1 else paths}"
            yield from self._rows(name, asked, chain.from_iterable(map(read, paths)), self.format, self.columns)

    def fingerprint(self) -> str:
        """Hash the contents of all files and the settings."""
        contents = {split: [file_hashes(path) for path in paths] for split, paths in self.paths.items()}
        return digest("files", contents, self.format, self.columns, self.bad_rows)


class Hub(_Reader):
    """Rows of a data set on the Hugging Face hub.

    Args:
        path: Name of the data set, or a local folder in the hub's layout.
        subset: Configuration of the data set, if it has several.
        split: Split to train on, or a slice of one such as ``train[:1000]``.
        validation_split: Split to validate on, or several by name; None if there is none.
        format: ``auto``, or the name of a format.
        columns: Canonical column name → name of that column in the data set.
        bad_rows: ``error`` refuses bad rows and reports them together; ``drop`` drops and counts them.
        streaming: Read while training instead of downloading first.
    """

    def __init__(
        self,
        *,
        path: str,
        subset: str | None,
        split: str,
        validation_split: str | Named | None,
        format: str,
        columns: Mapping[str, str],
        bad_rows: BadRows,
        streaming: bool,
    ):
        parts = validation_parts("validation_split", validation_split)
        super().__init__(bad_rows, parts)
        check_format(format)
        self.path, self.subset, self.format, self.columns = path, subset, format, dict(columns)
        self.splits, self.streaming = {"train": split, **parts}, streaming

    def rows(self, split: Split) -> Iterator[Row]:
        """Yield the rows of a part."""
        for part in splits_of(split, self.splits):
            name = self.splits[part]
            records = hub.hub_records(self.path, name, self._load(name))
            yield from self._rows(part, f"data.path={self.path} data.split={name}", records, self.format, self.columns)

    def fingerprint(self) -> str:
        """Hash the loaded data and the settings; for streamed data only the names of the splits are known."""
        contents = {part: getattr(self._load(name), "_fingerprint", name) for part, name in self.splits.items()}
        if self.streaming:
            contents = self.splits
        return digest("hub", self.path, self.subset, contents, self.format, self.columns, self.bad_rows)

    def _load(self, split: str) -> Any:
        return hub.load(self.path, subset=self.subset, folder=None, split=split, streaming=self.streaming)


class Registry(_Reader):
    """Rows of a data set that a LLaMA-Factory ``dataset_info.json`` describes.

    Args:
        dataset_info: Path of the registry or of its folder; file names in the registry are relative to that folder.
        name: The data set to train on.
        validation_name: The data set to validate on, or several by a name each; None if there is none.
        bad_rows: ``error`` refuses bad rows and reports them together; ``drop`` drops and counts them.
        streaming: Read sets on the hub while training instead of downloading first.

    Raises:
        InputError: There is no such registry or entry, or the entry is not valid.
    """

    def __init__(
        self,
        *,
        dataset_info: str | None,
        name: str | None,
        validation_name: str | Named | None,
        bad_rows: BadRows,
        streaming: bool,
    ):
        parts = validation_parts("validation_name", validation_name)
        super().__init__(bad_rows, parts)
        missing = {"data.dataset_info": dataset_info, "data.name": name}
        raise_all(
            [
                InputError(f"{key}=null", "this source reads a dataset_info.json", f"Type {key}=…")
                for key, value in missing.items()
                if not value
            ]
        )
        self.names, self.streaming = {"train": name, **parts}, streaming
        self.entries = {split: read_entry(dataset_info, one) for split, one in self.names.items()}

    def rows(self, split: Split) -> Iterator[Row]:
        """Yield the rows of a part."""
        for part in splits_of(split, self.entries):
            entry = self.entries[part]
            records = (translate(record, entry) for record in islice(self._records(entry), entry.num_samples))
            columns = {ours: theirs for ours, theirs in entry.columns.items() if entry.declared or ours != theirs}
            yield from self._rows(part, f"data.name={self.names[part]}", records, entry.format, columns)

    def fingerprint(self) -> str:
        """Hash the entries, the data and the settings."""
        contents = {
            part: file_hashes(entry.path) if entry.path else getattr(self._load(entry), "_fingerprint", entry.hub)
            for part, entry in self.entries.items()
        }
        settings = [entry._replace(path=None) for entry in self.entries.values()]
        return digest("registry", settings, contents, self.bad_rows)

    def _records(self, entry: Entry) -> Iterator[Record]:
        return read(entry.path) if entry.path else hub.hub_records(entry.hub, entry.split, self._load(entry))

    def _load(self, entry: Entry) -> Any:
        settings = {"subset": entry.subset, "folder": entry.folder, "split": entry.split}
        return hub.load(entry.hub, **settings, streaming=self.streaming)


def _as_list(path: str | Sequence[str]) -> list[str]:
    return [path] if isinstance(path, str) else list(path)
