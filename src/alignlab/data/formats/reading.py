"""Convert the records of a source to rows, and report bad records together or count them."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

from alignlab.data.formats import check_format, to_row
from alignlab.data.sources.files.record import Record
from alignlab.errors import InputError, nearest
from alignlab.types.rows import Row

SHOWN_FAULTS = 5
# After the first bad record, this many more are checked so that errors are reported together; a stream may not end.
SEARCHED_RECORDS = 100_000


def to_rows(
    records: Iterable[Record],
    *,
    asked: str,
    format: str,
    columns: Mapping[str, str],
    bad_rows: str,
    dropped: Counter[str],
) -> Iterator[Row]:
    """Convert records to rows, lazily.

    Args:
        records: The records of one source.
        asked: What the user typed, ``data.path=…``, for errors about the source as a whole.
        format: ``auto`` or the name of a format.
        columns: Canonical column name → name of that column in the source.
        bad_rows: ``error`` refuses a source with bad records; ``drop`` skips and counts them.
        dropped: Filled with the number of dropped rows by reason.

    Raises:
        InputError: A row is bad under ``error``; no row is left; a column of ``columns`` is in no row.
    """
    check_format(format)
    records, absent, seen = iter(records), set(columns.values()), set()
    num_records = num_rows = 0
    for num_records, record in enumerate(records, 1):
        if absent and isinstance(record.value, dict):
            absent -= record.value.keys()
            seen |= record.value.keys()
        try:
            row = to_row(record, format, columns)
        except InputError as fault:
            if bad_rows == "error":
                raise _together(asked, fault, num_records, records, format, columns) from fault
            dropped[fault.why] += 1
        else:
            num_rows += 1
            yield row
    if not num_rows:
        why = f"every row was dropped: {_counts(dropped)}" if num_records else "there are no rows in it"
        raise InputError(asked, why, "Point it at data with rows")
    if absent:
        name = min(absent)
        raise InputError(f"data.columns={dict(columns)}", f"no row has a column {name!r}", nearest(name, seen))


def _together(
    asked: str, first: InputError, num_before: int, rest: Iterator[Record], format: str, columns: Mapping[str, str]
) -> InputError:
    """Combine the first error and those that follow it into one."""
    faults, num_faults, num_records = [first], 1, num_before
    for record in islice(rest, SEARCHED_RECORDS):
        num_records += 1
        try:
            to_row(record, format, columns)
        except InputError as fault:
            num_faults += 1
            faults = [*faults, fault][:SHOWN_FAULTS]
    if num_faults == 1:
        return first
    listed = "; ".join(f"{fault.asked}: {fault.why}" for fault in faults)
    more = f"; and {num_faults - len(faults)} more" if num_faults > len(faults) else ""
    remedies = ". ".join(dict.fromkeys(fault.instead.rstrip(".") for fault in faults))
    return InputError(asked, f"{num_faults} of {num_records} rows cannot be used: {listed}{more}", remedies)


def _counts(dropped: Counter[str]) -> str:
    return "; ".join(f"{count} × {reason}" for reason, count in dropped.most_common(SHOWN_FAULTS))
